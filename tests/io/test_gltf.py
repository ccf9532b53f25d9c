import base64
import json
import struct
import warnings

import numpy as np
import pytest

from pcea.io.gltf import external_buffers
from pcea.io.readers import read_file

# The corners of a unit square in the plane z = 0, counter-clockwise seen from +z.
SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
COMPONENT = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
KIND = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class Builder:
    """A glTF file by hand: one buffer, and whatever is put into `header`."""

    def __init__(self):
        self.data = b""
        self.header = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": [], "meshes": [{"primitives": []}]}
        self.header |= {"nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}], "scene": 0}

    def view(self, array, **options):
        self.data += bytes(-len(self.data) % 4)
        self.header["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.data), "byteLength": array.nbytes, **options}
        )
        self.data += array.tobytes()
        return len(self.header["bufferViews"]) - 1

    def accessor(self, array, **options):
        array = np.asarray(array)
        width = 1 if array.ndim == 1 else array.shape[1]
        self.header["accessors"].append(
            {
                "bufferView": self.view(array),
                "componentType": COMPONENT[array.dtype.str[1:]],
                "count": len(array),
                "type": KIND[width],
            }
            | options
        )
        return len(self.header["accessors"]) - 1

    def primitive(self, positions, indices=None, *, mesh=0, attributes=None, **options):
        position = positions if isinstance(positions, int) else self.accessor(positions)
        primitive = {"attributes": {"POSITION": position, **(attributes or {})}, **options}
        if indices is not None:
            primitive["indices"] = self.accessor(np.array(indices, np.uint16))
        self.header["meshes"][mesh]["primitives"].append(primitive)
        return primitive

    def write(self, path):
        if path.suffix == ".gltf":
            uri = "data:application/octet-stream;base64," + base64.b64encode(self.data).decode()
            path.write_text(json.dumps(self.header | {"buffers": [{"byteLength": len(self.data), "uri": uri}]}))
            return path
        text = json.dumps(self.header | {"buffers": [{"byteLength": len(self.data)}]}).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
        chunks += struct.pack("<II", len(self.data), 0x004E4942) + self.data
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path


@pytest.fixture
def builder():
    return Builder()


@pytest.fixture
def read(builder, tmp_path):
    return lambda name="a.glb": read_file(builder.write(tmp_path / name))


@pytest.mark.parametrize("name", ["a.glb", "a.gltf"])
@pytest.mark.parametrize("kind", ["u1", "u2", "u4"])
def test_triangles(builder, read, name, kind):
    builder.primitive(SQUARE)["indices"] = builder.accessor(np.array([0, 1, 2, 0, 2, 3], kind))
    mesh = read(name)
    assert mesh.vertices.tolist() == SQUARE.tolist()
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_triangles_without_indices(builder, read):
    builder.primitive(SQUARE[[0, 1, 2, 0, 2, 3]])
    assert read().faces.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("mode", "indices", "faces"),
    [
        (5, [0, 1, 3, 2], [[0, 1, 3], [1, 2, 3]]),
        (5, [0, 1, 3, 3, 2], [[0, 1, 3]]),  # those of no area join strips
        (6, [0, 1, 2, 3], [[1, 2, 0], [2, 3, 0]]),
        (5, [0, 1], []),
        (6, [], []),
    ],
)
def test_strips_and_fans(builder, read, mode, indices, faces):
    builder.primitive(SQUARE, indices, mode=mode)
    mesh = read()
    assert mesh.faces.tolist() == faces
    corners = mesh.vertices[mesh.faces]
    assert (np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] > 0).all()  # all look to +z


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array([[0, 51, 255]], "u1"), [0, 0.2, 1]),
        (np.array([[-128, -127, 127]], "i1"), [-1, -1, 1]),
        (np.array([[0, 13107, 65535]], "u2"), [0, 0.2, 1]),
        (np.array([[-32768, 0, 32767]], "i2"), [-1, 0, 1]),
    ],
)
def test_normalized_integers_are_fractions(builder, read, stored, expected):
    builder.primitive(builder.accessor(stored, normalized=True), mode=0)
    builder.header |= {"extensionsUsed": ["KHR_mesh_quantization"], "extensionsRequired": ["KHR_mesh_quantization"]}
    np.testing.assert_allclose(read(), [expected], rtol=1e-12)
    builder.header["accessors"][0]["normalized"] = False
    np.testing.assert_array_equal(read(), stored)


@pytest.mark.parametrize("with_base", [True, False])
def test_sparse_accessors(builder, read, with_base):
    index = builder.accessor(SQUARE)
    if not with_base:
        del builder.header["accessors"][index]["bufferView"]
    builder.header["accessors"][index]["sparse"] = {
        "count": 2,
        "indices": {"bufferView": builder.view(np.array([1, 3], "u1")), "componentType": 5121},
        "values": {"bufferView": builder.view(np.array([[7, 8, 9], [4, 5, 6]], "f4"))},
    }
    builder.primitive(index, [0, 1, 2])
    expected = SQUARE * with_base
    expected[[1, 3]] = [[7, 8, 9], [4, 5, 6]]
    assert read().vertices.tolist() == expected.tolist()


def test_interleaved_elements(builder, read):
    rows = np.zeros(4, [("position", "<f4", 3), ("normal", "<f4", 3)])
    rows["position"], rows["normal"] = SQUARE, 9
    index = builder.accessor(SQUARE)
    builder.header["accessors"][index]["bufferView"] = builder.view(rows, byteStride=24)
    builder.primitive(index, [0, 1, 2])
    assert read().vertices.tolist() == SQUARE.tolist()


def test_nodes_move_turn_and_scale_their_meshes(builder, read):
    builder.primitive(SQUARE, [0, 1, 2])
    quarter = [0, 0, np.sqrt(0.5), np.sqrt(0.5)]  # about z: x becomes y
    matrix = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 10, 20, 30, 1]  # by columns
    builder.header["nodes"] = [
        {"children": [1], "matrix": matrix},
        {"mesh": 0, "translation": [1, 0, 0], "rotation": quarter, "scale": [2, 3, 1]},
    ]
    expected = [[11, 20, 30], [11, 22, 30], [8, 22, 30], [8, 20, 30]]
    np.testing.assert_allclose(read().vertices, expected, rtol=1e-12)


def test_hidden_nodes_are_left_out_with_what_is_in_them(builder, read):
    builder.primitive(SQUARE, [0, 1, 2])
    hidden = {"KHR_node_visibility": {"visible": False}}
    builder.header["nodes"] = [
        {"mesh": 0, "extensions": {"KHR_node_visibility": {"visible": True}}},
        {"extensions": hidden, "children": [2]},
        {"mesh": 0},
    ]
    assert len(read().vertices) == len(SQUARE)


def test_a_reflection_keeps_the_outside_outside(builder, read):
    builder.primitive(SQUARE, [0, 1, 2])
    builder.header["nodes"][0]["scale"] = [-1, 1, 1]
    assert read().faces.tolist() == [[2, 1, 0]]


def test_only_the_scene_is_shown(builder, read):
    builder.primitive(SQUARE, [0, 1, 2])
    builder.header["nodes"] = [{"mesh": 0}, {"mesh": 0, "translation": [5, 0, 0]}]
    builder.header |= {"scenes": [{"nodes": [0]}, {"nodes": [1]}], "scene": 1}
    assert read().vertices[0].tolist() == [5, 0, 0]
    del builder.header["scenes"]
    assert len(read().vertices) == 8  # all, where no scene says which
    del builder.header["nodes"]
    assert len(read().vertices) == 4


def test_morph_targets_and_skins_in_the_stored_pose(builder, read):
    target = builder.accessor(np.float32([[0, 0, 1]] * 4))
    primitive = builder.primitive(SQUARE, [0, 1, 2], targets=[{"POSITION": target}])
    builder.header["meshes"][0]["weights"] = [0.5]
    assert (read().vertices[:, 2] == 0.5).all()
    builder.header["nodes"][0]["weights"] = [0]
    assert (read().vertices[:, 2] == 0).all()

    # Vertices 0 and 1 follow joint 1 (up by 2), 3 follows joint 2 (up by 4), and 2 is halfway.
    joints = builder.accessor(np.array([[0, 1, 0, 0]] * 4, "u1"))
    weights = np.array([[255, 0, 0, 0], [255, 0, 0, 0], [51, 51, 0, 0], [0, 255, 0, 0]], "u1")
    primitive["attributes"] |= {"JOINTS_0": joints, "WEIGHTS_0": builder.accessor(weights, normalized=True)}
    inverse = np.eye(4, dtype=np.float32)
    inverse[3, 0] = 10  # by columns: along x
    builder.header["skins"] = [
        {"joints": [1, 2], "inverseBindMatrices": builder.accessor(np.stack([inverse, inverse]).reshape(2, 16))}
    ]
    builder.header["nodes"] = [
        {"mesh": 0, "skin": 0, "weights": [0], "translation": [99, 0, 0]},  # does not count
        {"translation": [0, 0, 2]},
        {"translation": [0, 0, 4]},
    ]
    builder.header["scenes"] = [{"nodes": [0, 1, 2]}]
    np.testing.assert_allclose(read().vertices, [[10, 0, 2], [11, 0, 2], [11, 1, 3], [10, 1, 4]], rtol=1e-12)


def test_points_are_a_cloud(builder, read):
    builder.primitive(SQUARE, mode=0)
    builder.primitive(SQUARE, [3, 1], mode=0)
    builder.header["nodes"][0]["translation"] = [0, 0, 5]
    assert read().tolist() == [[0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 1, 5], [0, 1, 5], [1, 0, 5]]


def test_what_is_left_out_is_named(builder, read):
    builder.primitive(SQUARE, mode=3)
    with pytest.raises(ValueError, match=r"a.glb could not be read as .glb \(it has lines, but no triangles and no"):
        read()
    builder.primitive(SQUARE, mode=0)
    builder.primitive(SQUARE, [0, 1, 2])
    with pytest.warns(UserWarning, match=r"a.glb: 1 sets of lines and 1 sets of points beside the rest are left out"):
        assert len(read().vertices) == 4


def compressed_by_draco(builder):
    builder.header["extensionsUsed"] = ["KHR_draco_mesh_compression"]
    for accessor in builder.header["accessors"]:
        del accessor["bufferView"]


def instances(builder):
    builder.header["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": {}}}


REFUSED = [
    (lambda b: b.header.update(extensionsRequired=["KHR_draco_mesh_compression"]), "extension KHR_draco_mesh_compress"),
    (lambda b: b.header.update(extensionsRequired=["EXT_meshopt_compression"]), "extension EXT_meshopt_compression"),
    (compressed_by_draco, r"accessor 0 has no data \(KHR_draco_mesh_compression\)"),
    (instances, "EXT_mesh_gpu_instancing"),
    (lambda b: b.header["nodes"][0].update(children=[0]), "node 0 has two parents"),
    (lambda b: b.header["nodes"][0].update(mesh=-1), "it has 1 meshes, but names number -1"),
    (lambda b: b.header["accessors"][0].update(count=10**9), "buffer view 0 ends before its 1,000,000,000 elements"),
    (lambda b: b.header["accessors"][0].update(count=-1), "negative sizes"),
    (lambda b: b.header["bufferViews"][0].update(byteStride=0), "elements overlap"),
    (lambda b: b.header["bufferViews"][0].update(byteOffset=-8), "negative sizes"),
    (lambda b: b.header["asset"].update(version="1.0"), "only glTF 2 can be read, this is version 1.0"),
    (lambda b: b.header["meshes"][0]["primitives"][0].update(mode=9), "unknown mode 9"),
    (lambda b: b.header["accessors"][0].update(type="VEC2"), "positions must be VEC3"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSED)
def test_what_cannot_be_read_is_refused_by_name(builder, read, damage, message):
    builder.primitive(SQUARE, [0, 1, 2])
    damage(builder)
    with pytest.raises(ValueError, match=rf"a.glb could not be read as .glb \(.*{message}"):
        read()


def test_harmless_extensions_do_not_matter(builder, read):
    builder.primitive(SQUARE, [0, 1, 2])
    builder.header["extensionsRequired"] = ["KHR_materials_unlit", "KHR_texture_basisu", "EXT_texture_webp"]
    assert len(read().faces) == 1


def test_a_face_that_names_a_vertex_that_is_not_there(builder, read):
    builder.primitive(SQUARE, [0, 1, 4])
    with pytest.raises(ValueError, match="a face names a vertex that is not there"):
        read()


@pytest.mark.parametrize("uri", ["../secret.bin", "/etc/hostname", "file:///etc/hostname", "..%2Fsecret.bin"])
def test_buffers_outside_the_folder_are_not_read(builder, tmp_path, uri):
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    (tmp_path / "scene").mkdir()
    builder.primitive(SQUARE, mode=0)
    header = builder.header | {"buffers": [{"byteLength": 48, "uri": uri}]}
    (tmp_path / "scene/a.gltf").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"the buffer '.*' is not in the folder of the file"):
        read_file(tmp_path / "scene/a.gltf")


def test_meshes_shown_without_end_are_refused(builder, read):
    builder.primitive(np.zeros((30_000, 3), np.float32), mode=0)
    builder.header["nodes"] = [{"mesh": 0}] * 400
    builder.header["scenes"] = [{"nodes": [*range(400)]}]
    with pytest.raises(ValueError, match="more than 10,000,000 vertices"):
        read()


def test_missing_textures_do_not_matter(builder, read, caplog):
    builder.primitive(SQUARE, [0, 1, 2], material=0)
    builder.header |= {
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}],
        "images": [{"uri": "missing.png"}],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read("a.gltf").faces) == 1
    assert not caplog.records


def test_external_buffers(tmp_path):
    (tmp_path / "a.gltf").write_text('{"buffers": [{"uri": "data:,"}, {}, {"uri": "in/a%201.bin"}]}')
    assert external_buffers(tmp_path / "a.gltf") == [tmp_path / "in" / "a 1.bin"]
    for damaged in ("[]", "{", '{"buffers": [{"uri": "../a.bin"}]}', '{"buffers": [{"uri": 1}]}'):
        (tmp_path / "a.gltf").write_text(damaged)
        assert external_buffers(tmp_path / "a.gltf") == []
