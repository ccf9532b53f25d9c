import numpy as np
import pytest

from pcea.io.meshes import Mesh
from pcea.io.obj import read_obj


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("color", ["", " 1 0 0", " 1.0"])
def test_points_alone(tmp_path, end, color):
    lines = ["# scan", f"v 0 1 2{color}", f"  v 3\t4 5{color}", "vt 0 0", "p 1 2", "l 1 2", ""]
    (tmp_path / "a.obj").write_bytes(end.join(lines).encode())
    assert read_obj(tmp_path / "a.obj").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_points_with_normals(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 1 2\nvn 0 0 1\nv 3 4 5\nvn 0 1 0\n")
    np.testing.assert_array_equal(read_obj(tmp_path / "a.obj"), [[0, 1, 2, 0, 0, 1], [3, 4, 5, 0, 1, 0]])
    (tmp_path / "a.obj").write_text("v 0 1 2\nvn 0 0 1\nv 3 4 5\n")  # not one per point
    assert read_obj(tmp_path / "a.obj").shape == (2, 3)


def test_faces(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    mesh = read_obj(tmp_path / "a.obj")
    assert isinstance(mesh, Mesh)
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert mesh.faces.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("line", ["v 1 0", "v 1", "v 1 0 # flat", "v 1 0  "])
@pytest.mark.parametrize("faces", ["", "f 1 2 3\n"])
def test_flat_vertices_are_refused(tmp_path, line, faces):
    (tmp_path / "a.obj").write_text(f"v 0 0 0\n{line}\nv 0 1 0\n{faces}")
    with pytest.raises(ValueError, match=r"a.obj could not be read as .obj \(the vertex 'v 1.*' has fewer than three"):
        read_obj(tmp_path / "a.obj")


def test_words_for_coordinates(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 zero\n")
    with pytest.raises(ValueError, match=r"a.obj could not be read as .obj \(could not convert string 'zero'"):
        read_obj(tmp_path / "a.obj")
