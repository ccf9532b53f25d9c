"""glTF 2.0 files, .glb and .gltf: every triangle where the scene puts it, or the points of a cloud.

trimesh leaves out sparse accessors, normalized integers, fans, skins and morph targets without a word, and keeps zeros
where it cannot decompress.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
import urllib.parse
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pcea.io.meshes import Mesh, as_mesh, unreadable

# Section 3.6.2 of the specification: component types and elements.
_DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
# Extensions that a file may require although they do not change where its triangles are.
_HARMLESS = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "KHR_lights_", "EXT_lights_", "KHR_mesh_quantization")
_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942
_FEW = 10_000_000  # vertices that any file may unfold to by showing a mesh several times


def read_gltf(path: Path) -> Mesh | np.ndarray:
    """Read the scene of a glTF file as one mesh, in the pose it is stored in, or as points (N, 3) if it has no faces.

    Lines, and points beside triangles, are left out with a warning. Materials and textures are not read.

    Raises:
        ValueError: If the file is damaged, needs an extension that changes the geometry (Draco, meshopt, instances),
            has nothing but lines, or names a buffer outside its own folder.
    """
    try:
        return _read(path)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise unreadable(path, error) from error
    except struct.error as error:
        raise unreadable(path, ValueError("it ends within its header")) from error


def external_buffers(path: Path) -> list[Path]:
    """The files that hold the numbers of a .gltf file; none of a damaged one, which cannot be read anyway."""
    try:
        buffers = json.loads(path.read_bytes()).get("buffers", ())
        names = [buffer["uri"] for buffer in buffers if not buffer.get("uri", "data:").startswith("data:")]
        return [_buffer_path(path.parent, name) for name in names]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError):
        return []


def _read(path: Path) -> Mesh | np.ndarray:
    scene = _Document(path)
    num_lines, num_vertices = 0, 0
    vertices: list[np.ndarray] = []
    faces: list[np.ndarray] = []
    clouds: list[np.ndarray] = []
    for matrix, node, primitive, positions, indices in scene.primitives():
        mode = primitive.get("mode", _TRIANGLES)
        positions = scene.skinned(node, primitive, positions) if "skin" in node else _moved(matrix, positions)
        if mode == _POINTS:
            clouds.append(positions[indices])
        elif mode in (_TRIANGLES, _STRIP, _FAN):
            triangles = _triangles(mode, indices) + num_vertices
            # A reflection turns the inside out (section 3.7.4).
            is_mirrored = "skin" not in node and np.linalg.det(matrix[:3, :3]) < 0
            faces.append(triangles[:, ::-1] if is_mirrored else triangles)
            vertices.append(positions)
            num_vertices += len(positions)
        elif mode in (1, 2, 3):
            num_lines += 1
        else:
            raise ValueError(f"a primitive has the unknown mode {mode}")
        if num_vertices + sum(map(len, clouds)) > max(_FEW, scene.num_bytes):
            raise ValueError(f"its nodes show its meshes so often that they have more than {_FEW:,} vertices")
    if num_lines and not faces and not clouds:
        raise ValueError("it has lines, but no triangles and no points")
    left_out = [f"{num_lines} sets of lines"] if num_lines else []
    if faces and clouds:
        left_out.append(f"{len(clouds)} sets of points")
    if left_out:
        warnings.warn(f"{path}: {' and '.join(left_out)} beside the rest are left out.", stacklevel=2)
    if faces:
        return as_mesh(path, np.concatenate(vertices), np.concatenate(faces))
    return np.concatenate(clouds) if clouds else np.empty((0, 3))


class _Document:
    """The JSON of a file and the bytes of its buffers.

    Args:
        path: The file.

    Raises:
        ValueError: If it is not glTF 2, or needs an extension that is not known.
    """

    def __init__(self, path: Path):
        content = path.read_bytes()
        text, binary = _chunks(content) if content.startswith(b"glTF") else (content, None)
        self.header = json.loads(text)
        version = str(self.header["asset"]["version"])
        if version.partition(".")[0] != "2":
            raise ValueError(f"only glTF 2 can be read, this is version {version}")
        unknown = [n for n in self.header.get("extensionsRequired", ()) if not str(n).startswith(_HARMLESS)]
        if unknown:
            raise ValueError(f"it needs the extension {', '.join(map(str, unknown))}; export it without, uncompressed")
        self._buffers = [
            _buffer(path.parent, buffer, binary if i == 0 else None)
            for i, buffer in enumerate(self.header.get("buffers", ()))
        ]
        self.num_bytes = len(content) + sum(map(len, self._buffers))

    def item(self, kind: str, index: Any) -> dict[str, Any]:
        """Number `index` of the objects of a kind, such as "nodes"."""
        items = self.header.get(kind, ())
        if not isinstance(index, int) or not 0 <= index < len(items):
            raise ValueError(f"it has {len(items)} {kind}, but names number {index}")
        return items[index]

    def accessor(self, index: int) -> np.ndarray:
        """The elements of an accessor, (count, width): float64 if it is normalized, else as stored."""
        accessor = self.item("accessors", index)
        count, dtype, width = accessor["count"], np.dtype(_DTYPES[accessor["componentType"]]), _WIDTHS[accessor["type"]]
        if "bufferView" in accessor:
            values = self._view(accessor["bufferView"], accessor.get("byteOffset", 0), count, dtype, width)
        elif "sparse" not in accessor:
            compression = "".join(f" ({name})" for name in self.header.get("extensionsUsed", ()) if "compress" in name)
            raise ValueError(f"accessor {index} has no data{compression}")
        elif count > self.num_bytes:
            raise ValueError(f"accessor {index} claims {count:,} elements, more than the file can hold")
        else:
            values = np.zeros((count, width), dtype)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            number, places, replaced = sparse["count"], sparse["indices"], sparse["values"]
            places_dtype = np.dtype(_DTYPES[places["componentType"]])
            where = self._view(places["bufferView"], places.get("byteOffset", 0), number, places_dtype, 1)[:, 0]
            values = values.copy()
            values[where] = self._view(replaced["bufferView"], replaced.get("byteOffset", 0), number, dtype, width)
        if accessor.get("normalized", False) and dtype.kind != "f":
            # Section 3.11: the lowest of the signed integers stands for -1 as does the one above it.
            return np.maximum(values.astype(np.float64) / np.iinfo(dtype).max, -1)
        return values

    def _view(self, index: int, offset: int, count: int, dtype: np.dtype, width: int) -> np.ndarray:
        view = self.item("bufferViews", index)
        self.item("buffers", view["buffer"])
        start, size = view.get("byteOffset", 0), dtype.itemsize * width
        data = memoryview(self._buffers[view["buffer"]])[start : start + view["byteLength"]]
        stride = view.get("byteStride", size)
        if min(start, offset, count, stride - size) < 0:
            raise ValueError(f"buffer view {index} has negative sizes, or its elements overlap")
        if count and offset + (count - 1) * stride + size > len(data):
            raise ValueError(f"buffer view {index} ends before its {count:,} elements")
        return np.ndarray((count, width), dtype, buffer=data, offset=offset, strides=(stride, dtype.itemsize))

    def nodes(self) -> Iterator[tuple[np.ndarray, dict[str, Any], int | None]]:
        """Each node of the scene with its matrix (4, 4) to the world, and its number; None for a mesh without nodes."""
        nodes = self.header.get("nodes", ())
        if not nodes:
            yield from ((np.eye(4), {"mesh": i}, None) for i in range(len(self.header.get("meshes", ()))))
            return
        if self.header.get("scenes"):
            roots = self.item("scenes", self.header.get("scene", 0)).get("nodes", ())
        else:
            children = {child for node in nodes for child in node.get("children", ())}
            roots = [i for i in range(len(nodes)) if i not in children]
        waiting, seen = [(np.eye(4), root) for root in reversed(roots)], set()
        while waiting:
            parent, index = waiting.pop()
            if index in seen:
                raise ValueError(f"node {index} has two parents")
            seen.add(index)
            node = self.item("nodes", index)
            if node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible") is False:
                continue  # with all that is in it
            matrix = parent @ _matrix(node)
            yield matrix, node, index
            waiting += [(matrix, child) for child in reversed(node.get("children", ()))]

    def primitives(self) -> Iterator[tuple[np.ndarray, dict[str, Any], dict[str, Any], np.ndarray, np.ndarray]]:
        """Each primitive of each node: matrix, node, primitive, its positions (V, 3), and the vertex at each corner."""
        for matrix, node, _ in self.nodes():
            if "mesh" not in node:
                continue
            if "EXT_mesh_gpu_instancing" in node.get("extensions", ()):
                raise ValueError("it repeats meshes by the extension EXT_mesh_gpu_instancing; export it without")
            mesh = self.item("meshes", node["mesh"])
            weights = node.get("weights", mesh.get("weights", ()))
            for primitive in mesh["primitives"]:
                if "POSITION" not in primitive["attributes"]:
                    continue
                positions = self._positions(primitive["attributes"]["POSITION"])
                for weight, target in zip(weights, primitive.get("targets", ())):
                    if weight and "POSITION" in target:
                        positions = positions + weight * self._positions(target["POSITION"])
                indices = np.arange(len(positions))
                if "indices" in primitive:
                    indices = self.accessor(primitive["indices"])[:, 0].astype(np.int64)
                if indices.size and not 0 <= indices.min() <= indices.max() < len(positions):
                    raise ValueError("a face names a vertex that is not there")
                yield matrix, node, primitive, positions, indices

    def _positions(self, index: int) -> np.ndarray:
        positions = self.accessor(index).astype(np.float64)
        if positions.shape[1] != 3:
            raise ValueError(f"positions must be VEC3, accessor {index} has {positions.shape[1]} numbers")
        return positions

    def skinned(self, node: dict[str, Any], primitive: dict[str, Any], positions: np.ndarray) -> np.ndarray:
        """Positions (V, 3) where the joints of a skin put them; the node's own matrix does not count (3.7.3)."""
        skin, attributes = self.item("skins", node["skin"]), primitive["attributes"]
        worlds = {index: matrix for matrix, _, index in self.nodes()}
        joints = np.stack([worlds[joint] for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            inverse = self.accessor(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
            joints = joints @ inverse[: len(joints)]
        moved, total = np.zeros_like(positions), np.zeros((len(positions), 1))
        for name in (name for name in attributes if name.startswith("JOINTS_")):
            influences = self.accessor(attributes[name]).astype(np.int64)
            weights = self.accessor(attributes[name.replace("JOINTS", "WEIGHTS")]).astype(np.float64)
            for k in range(influences.shape[1]):
                matrices, weight = joints[influences[:, k]], weights[:, k, None]
                moved += weight * (np.einsum("vij,vj->vi", matrices[:, :3, :3], positions) + matrices[:, :3, 3])
                total += weight
        if not (total > 0).all():
            raise ValueError("a vertex of a skin follows no joint")
        return moved / total


def _chunks(content: bytes) -> tuple[bytes, bytes | None]:
    """The JSON and the binary chunk of a .glb file."""
    _, version, length = struct.unpack_from("<4sII", content)
    if version != 2:
        raise ValueError(f"only glTF 2 can be read, this is version {version}")
    if length > len(content):
        raise ValueError(f"it ends after {len(content)} of its {length} bytes")
    chunks: dict[int, bytes] = {}
    place = 12
    while place + 8 <= length:
        size, kind = struct.unpack_from("<II", content, place)
        chunks.setdefault(kind, content[place + 8 : place + 8 + size])
        place += 8 + size
    if _JSON_CHUNK not in chunks:
        raise ValueError("it has no JSON chunk")
    return chunks[_JSON_CHUNK], chunks.get(_BINARY_CHUNK)


def _buffer(folder: Path, buffer: dict[str, Any], binary: bytes | None) -> bytes:
    """The bytes of a buffer: in the .glb file itself, in a data URI, or in a file of the same folder or below."""
    uri = buffer.get("uri")
    if uri is None:
        data = binary or b""  # empty where an extension was to fill it
    elif uri.startswith("data:"):
        try:
            data = base64.b64decode(uri.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise ValueError(f"a data URI is damaged: {error}") from error
    else:
        file = _buffer_path(folder, uri)
        if not file.is_file():
            raise FileNotFoundError(f"no file {uri}")
        data = file.read_bytes()
    return data[: buffer["byteLength"]]


def _buffer_path(folder: Path, uri: str) -> Path:
    name = urllib.parse.unquote(uri)
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name:
        raise ValueError(f"the buffer {uri!r} is not in the folder of the file")
    return folder / parts


def _matrix(node: dict[str, Any]) -> np.ndarray:
    """From a node to its parent, (4, 4)."""
    from scipy.spatial.transform import Rotation

    if "matrix" in node:
        return np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    rotation = Rotation.from_quat(node.get("rotation", (0, 0, 0, 1))).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.array(node.get("scale", (1, 1, 1)), dtype=np.float64).reshape(3)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _moved(matrix: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return positions @ matrix[:3, :3].T + matrix[:3, 3]


def _triangles(mode: int, indices: np.ndarray) -> np.ndarray:
    """The triangles of a primitive, (F, 3); those of no area that join strips are left out (section 3.7.2.1)."""
    if mode == _TRIANGLES:
        return indices[: len(indices) // 3 * 3].reshape(-1, 3)
    i = np.arange(max(len(indices) - 2, 0))
    if mode == _FAN:
        return np.stack([indices[i + 1], indices[i + 2], indices[i * 0]], axis=1)
    strip = np.stack([indices[i], indices[i + 1 + i % 2], indices[i + 2 - i % 2]], axis=1)
    return strip[(strip != np.roll(strip, 1, axis=1)).all(axis=1)]
