"""Scenes: 3MF files, read by trimesh, and Collada, read by pycollada."""

from __future__ import annotations

import importlib
import io
import logging
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pcea.io.archives import check_archive
from pcea.io.meshes import Mesh, as_mesh, cut_polygons, unreadable

# Elements of Collada that say how a surface looks, not where it is. Their textures may be missing.
_LOOKS = ("library_images", "library_effects", "library_materials", "bind_material")

_SUPPORT = re.compile(rb"""<(?:\w+:)?object\s[^>]*type\s*=\s*["'](?:solid)?support["']""")

# What pycollada leaves out without a word; ph is a polygon with holes.
_UNREAD = ("tristrips", "trifans", "ph", "convex_mesh", "spline", "brep")


def read_3mf(path: Path) -> Mesh | np.ndarray:
    """Read a 3MF file as one mesh, or as points (N, 3) if it has no faces.

    Each node is where its transforms put it. Materials and textures are not read.

    Raises:
        ValueError: If the file is not what it says.
        ImportError: If lxml is missing.
    """
    import trimesh

    _require(path, "lxml", "lxml")
    _check_3mf(path)
    try:
        with _reported(path):
            # process=False keeps NaN coordinates, which trimesh would drop without a word.
            loaded = trimesh.load(path, process=False, skip_materials=True)
            if isinstance(loaded, trimesh.Scene):
                for part in loaded.geometry.values():
                    if isinstance(part, trimesh.Trimesh):
                        part.visual = trimesh.visual.ColorVisuals()
                loaded = loaded.to_mesh()
        vertices, faces = np.asarray(loaded.vertices), getattr(loaded, "faces", None)
        if vertices.ndim != 2 or vertices.shape[1] != 3:
            raise ValueError(f"its vertices must have three coordinates, got {vertices.shape}")
    except Exception as error:  # trimesh raises whatever its parsers raise
        raise unreadable(path, error) from error
    return vertices.astype(np.float64) if faces is None else as_mesh(path, vertices, faces)


def read_collada(path: Path) -> Mesh:
    """Read the scene of a Collada file as one mesh, each node where its transforms put it.

    Raises:
        ValueError: If the file is not Collada, has skins or morphs, which put a surface elsewhere, or what pycollada
            does not read or reads wrongly.
        ImportError: If pycollada or lxml is missing.
    """
    _require(path, "lxml.etree", "lxml")
    _require(path, "collada", "pycollada")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)  # pycollada calls np.matrix
            triangles, num_lines = _collada_triangles(path)
        if num_lines and not triangles:
            raise ValueError("it has lines, but no triangles")
    except Exception as error:  # pycollada raises also what lxml and NumPy raise
        raise unreadable(path, error) from error
    if num_lines:
        warnings.warn(f"{path}: {num_lines} sets of lines beside the triangles are left out.", stacklevel=2)
    vertices = np.concatenate(triangles).reshape(-1, 3) if triangles else np.empty((0, 3))
    return as_mesh(path, vertices, np.arange(len(vertices)).reshape(-1, 3))


def _collada_triangles(path: Path) -> tuple[list[np.ndarray], int]:
    """The corners of the triangles of each primitive, (F, 3, 3), and the number of primitives that are lines."""
    collada, etree = importlib.import_module("collada"), importlib.import_module("lxml.etree")

    tree = etree.parse(str(path), etree.XMLParser(resolve_entities=False, no_network=True))
    etree.strip_elements(tree, *(f"{{*}}{name}" for name in _LOOKS), with_tail=False)
    unknown = next(tree.iter(*(f"{{*}}{name}" for name in _UNREAD)), None)
    if unknown is not None:
        raise ValueError(f"it has {etree.QName(unknown).localname}, which pycollada leaves out; export it as triangles")
    for name in ("lookat", "skew"):
        for element in tree.iter(f"{{*}}{name}"):
            if element.getparent().find(".//{*}instance_geometry") is not None:
                raise ValueError(f"it places a part by {name}, which pycollada reads wrongly; export it with matrices")
    _check_positions(tree)
    document = collada.Collada(io.BytesIO(etree.tostring(tree)))
    if document.scene is None:
        raise ValueError("it has no scene")
    if next(document.scene.objects("controller"), None) is not None:
        raise ValueError("it has skins or morphs (instance_controller); export it without")
    num_lines, triangles = 0, []
    for geometry in document.scene.objects("geometry"):
        is_mirrored = np.linalg.det(geometry.matrix[:3, :3]) < 0
        for primitive in geometry.primitives():
            if isinstance(primitive, collada.lineset.BoundLineSet):
                num_lines += 1
            elif primitive.vertex is not None and len(primitive.vertex_index):
                vertices, faces = primitive.vertex.astype(np.float64), primitive.vertex_index
                if hasattr(primitive, "polyindex"):  # where each polygon begins and ends
                    flat = faces.tolist()
                    faces = cut_polygons(vertices, [flat[start:end] for start, end in primitive.polyindex.tolist()])
                corners = vertices[faces]
                triangles.append(corners[:, ::-1] if is_mirrored else corners)
    return triangles, num_lines


def _check_positions(tree: Any) -> None:
    """Refuse positions that are not x y z one after another, as pycollada reads them whatever the accessor says."""
    sources = {f"#{source.get('id')}": source for source in tree.iter("{*}source")}
    for given in tree.iterfind(".//{*}vertices/{*}input[@semantic='POSITION']"):
        source = sources.get(given.get("source"))
        accessor = None if source is None else source.find("{*}technique_common/{*}accessor")
        if accessor is None:
            continue  # which pycollada reports
        names = [param.get("name") for param in accessor.iterfind("{*}param")]
        offset, stride = int(accessor.get("offset", 0)), int(accessor.get("stride", len(names)))
        if (names, offset, stride) != (["X", "Y", "Z"], 0, 3):
            raise ValueError(
                f"its positions {given.get('source')} are {' '.join(map(str, names))} with offset {offset} and stride "
                f"{stride}, but only X Y Z with offset 0 and stride 3 is read; export it anew"
            )


def _check_3mf(path: Path) -> None:
    """Refuse what trimesh would read in part, or take all memory for."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path)
            models = [name for name in archive.namelist() if name.lower().endswith(".model")]
            beginning = archive.open(models[0]).read(1 << 14) if models else b""
            has_support = any(_SUPPORT.search(archive.read(name)) for name in models)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise unreadable(path, error) from error
    required = re.search(rb"""requiredextensions\s*=\s*["']([^"']+)["']""", beginning)
    if has_support:
        raise unreadable(path, ValueError("it has structures that support the shape in printing; export it without"))
    if len(models) > 1 or (required and not {*required[1].split()} <= {b"m"}):  # m is materials
        names = required[1].decode(errors="replace") if required else "production (several .model files)"
        raise unreadable(path, ValueError(f"it needs the 3MF extension {names}; export it as one plain model"))


def _require(path: Path, module: str, package: str) -> None:
    """Say what to install if a module of the extra `formats` is missing."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{path} needs {package}: pip install 'pcea[formats]', or pip install {package}.") from error


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Make one-line warnings of what trimesh logs, which would otherwise go to stderr with tracebacks."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("trimesh")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    for message in messages:
        warnings.warn(f"{path}: {message.splitlines()[0] if message else 'unknown problem'}", stacklevel=2)
