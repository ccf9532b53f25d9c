"""Scenes: OBJ, STL, glTF, Collada and 3MF files, read by trimesh."""

from __future__ import annotations

from pathlib import Path

from pcea.io.meshes import Mesh, as_mesh, unreadable


def read_scene(path: Path) -> Mesh:
    """Read a scene as one mesh, each node where its transforms put it.

    Raises:
        ValueError: If the file is not what it says.
    """
    import trimesh

    try:
        # process=False keeps NaN coordinates, which trimesh would drop without a word.
        loaded = trimesh.load(path, process=False)
        if isinstance(loaded, trimesh.Scene):
            for part in loaded.geometry.values():
                if isinstance(part, trimesh.Trimesh):
                    part.visual = trimesh.visual.ColorVisuals()  # else textures would be packed into one
            loaded = loaded.to_mesh()
        vertices, faces = loaded.vertices, getattr(loaded, "faces", [])
    except Exception as error:  # trimesh raises whatever its parsers raise
        raise unreadable(path, error) from error
    return as_mesh(path, vertices, faces)
