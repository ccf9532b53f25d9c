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


@pytest.mark.parametrize("line", ["v 1 0", "v 1", "v 1 0 # flat", "v 1 0  ", "v "])
@pytest.mark.parametrize("faces", ["", "f 1 2 3\n"])
def test_flat_vertices_are_refused(tmp_path, line, faces):
    (tmp_path / "a.obj").write_text(f"v 0 0 0\n{line}\nv 0 1 0\n{faces}")
    with pytest.raises(ValueError, match=r"a.obj could not be read as .obj \(line 2, 'v.*', has fewer than three"):
        read_obj(tmp_path / "a.obj")


def test_words_for_coordinates(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 zero\n")
    with pytest.raises(ValueError, match=r"a.obj could not be read as .obj \(could not convert string 'zero'"):
        read_obj(tmp_path / "a.obj")


TRIANGLES = "v 0 0 0\nv 1 0 0\nv 0 1 0\n{}v 5 0 0\nv 6 0 0\nv 5 1 0\n{}"


@pytest.mark.parametrize("corners", ["{} {} {}", "{0}/{0} {1}/{1} {2}/{2}", "{0}//{0} {1}//{1} {2}//{2}"])
@pytest.mark.parametrize("indices", [(-3, -2, -1), (1, 2, 3)])
def test_negative_indices_count_back_from_their_line(tmp_path, corners, indices):
    first, second = f"f {corners.format(*indices)}\n", f"f {corners.format(-3, -2, -1)}\nf {corners.format(4, -2, 6)}\n"
    (tmp_path / "a.obj").write_text(TRIANGLES.format(first, second))
    mesh = read_obj(tmp_path / "a.obj")
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [6, 0, 0], [5, 1, 0]]
    assert mesh.faces.tolist() == [[0, 1, 2], [3, 4, 5], [3, 4, 5]]


def test_texture_coordinates_and_normals_have_their_own_negative_indices(tmp_path):
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvn 0 0 1\nf -3/-1/-1 -2/-1/-1 -1/-1/-1\nv 9 9 9\nvt 1 1\nvn 0 1 0\n"
    (tmp_path / "a.obj").write_text(text)
    mesh = read_obj(tmp_path / "a.obj")
    assert mesh.vertices[mesh.faces].tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]


@pytest.mark.parametrize(
    ("faces", "message"),
    [
        ("f 0 1 2\nf 1 2 3\n", "line 4, 'f 0 1 2', names vertex 0, but OBJ counts from 1"),
        ("f 1 2 3\n\nf 1 2 4 # far\n", "line 6, 'f 1 2 4', names vertex 4, but .* the file has 3 vertices"),
        ("f 1 2 3\nf 1 2 3 3\nf 1 2 -4\nv 0 0 0\n", "line 6, 'f 1 2 -4', names vertex -4"),
        ("f 1 \\\n2 3\nf 0/1 1/1 2/1\n", "line 6, 'f 0/1 1/1 2/1', names vertex 0"),
        ("f \nf 1 2 4\n", "line 5, 'f 1 2 4', names vertex 4"),
        ("f 1 2 x\n", "'x'"),
        ("f 1 2 3\nf 1 2 3 y\n", "'y'"),
        ("f 1 2 2.5\n", "'2.5'"),
        (f"f 1 2 {10**30}\n", "too large"),
    ],
)
def test_faces_that_name_no_vertex_are_refused_with_their_line(tmp_path, faces, message):
    (tmp_path / "a.obj").write_text(f"v 0 0 0\nv 1 0 0\nv 0 1 0\n{faces}")
    with pytest.raises(ValueError, match=rf"a.obj could not be read as .obj \(.*{message}") as caught:
        read_obj(tmp_path / "a.obj")
    assert "\n" not in str(caught.value)


SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
FILES = {
    "usual": f"{SQUARE}f 1 2 3\nf 1 3 4\n",
    "a quad": f"{SQUARE}f 1 2 3 4\n",
    "comments": f"# C:\\shapes\\\n{SQUARE}f 1 2 3 # c\nf 1 3 4#c\n".replace("v 1 0 0", "v 1 0 0 # a corner"),
    "tabs": f"{SQUARE}f 1 2 3\nf 1 3 4\n".replace(" ", "\t"),
    "indents": f"{SQUARE}f 1 2 3\nf 1 3 4\n".replace("v ", "  v ").replace("f ", "\tf "),
    "several blanks": f"{SQUARE}f 1 2 3\nf 1 3 4\n".replace(" ", "   ").replace("\n", "  \n"),
    "Windows": f"{SQUARE}f 1 2 3\nf 1 3 4\n".replace("\n", "\r\n"),
    "Macintosh": f"{SQUARE}f 1 2 3\nf 1 3 4\n".replace("\n", "\r"),
    "no line end": f"{SQUARE}f 1 2 3\nf 1 3 4",
    "byte order mark": f"\ufeff{SQUARE}f 1 2 3\nf 1 3 4\n",
    "continued lines": f"{SQUARE}f 1 2 \\\n3\nf 1 3 4\n".replace("v 1 0 0", "v 1 \\\n  0 \\\n0"),
    "continued lines of Windows": f"{SQUARE}f 1 2 3\nf 1 3 4\n".replace("f 1 2", "f 1 2\\\n").replace("\n", "\r\n"),
    "colours": f"{SQUARE}f 1 2 3\nf 1 3 4\n".replace("v 1 1 0", "v 1 1 0 255 0 0"),
    "other corners": f"{SQUARE}vt 0 0\nvn 0 0 1\nf 1/1 2/1 3/1\nf 1//1 3/1/1 4\n",
    "groups": f"mtllib a#b.mtl\no left\n{SQUARE}g a\nusemtl b#c\ns off\nf 1 2 3\no right\ng b\nusemtl d\nf 1 3 4\n",
    "faces first": f"f 1 2 3\nf 1 3 4\n{SQUARE}",
    "other vertices": f"{SQUARE}v nan 0 0\nf 1 2 3\nf 1 3 4\n",
    "lines and points": f"{SQUARE}l 1 2\np 1\nf 1 2 3\nf 1 3 4\n",
    "Chinese": f"o 椅子\n{SQUARE}f 1 2 3\nf 1 3 4\n",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_square_comes_out_however_it_is_written(tmp_path, content):
    (tmp_path / "a.obj").write_bytes(content.encode())
    mesh = read_obj(tmp_path / "a.obj")
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_faces_of_different_sizes(tmp_path):
    (tmp_path / "a.obj").write_text(f"{SQUARE}v 0 2 0\nf 3 4 5\nf 1/2/3 2/3/4 3/4/5 4/5/6\nf 1 2\nf 1 2 3 5 4\n")
    faces = read_obj(tmp_path / "a.obj").faces.tolist()
    assert faces == [[2, 3, 4], [0, 1, 2], [0, 2, 3], [0, 1, 2], [0, 2, 4], [0, 4, 3]]


def test_lines_alone_are_a_cloud_with_a_warning(tmp_path):
    (tmp_path / "a.obj").write_text(f"{SQUARE}l 1 2 3 4\n")
    with pytest.warns(UserWarning, match=r"a.obj has lines and no faces: only its vertices are read, as points"):
        assert read_obj(tmp_path / "a.obj").tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_faces_beside_a_cloud_or_curves_give_a_warning(tmp_path):
    triangle = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
    (tmp_path / "a.obj").write_text(triangle + "v 5 5 5\n" * 9 + "f 1 2 3\n")
    with pytest.warns(UserWarning, match=r"a.obj: only the faces are read; 9 of 12 vertices are in none"):
        assert read_obj(tmp_path / "a.obj").vertices.shape == (3, 3)
    (tmp_path / "a.obj").write_text(triangle + "surf 0 1 0 1 1 2 3\nend\nf 1 2 3\n")
    with pytest.warns(UserWarning, match="only faces are read, not what 'surf' describes beside them"):
        read_obj(tmp_path / "a.obj")
    (tmp_path / "a.obj").write_text(triangle + "cstype bspline\nsurf 0 1 0 1 1 2 3\nend\n")
    with pytest.raises(ValueError, match="it has 'surf', which is not read; export it as a mesh of faces"):
        read_obj(tmp_path / "a.obj")


def test_names_that_end_in_a_backslash_do_not_go_on(tmp_path):
    (tmp_path / "a.obj").write_text("mtllib C:\\tex\\\nv 0 0 0\nv 1 0 \\\n0\nv 0 1 0\nusemtl C:\\tex\\\nf 1 2 3\n")
    mesh = read_obj(tmp_path / "a.obj")
    assert (mesh.vertices.tolist(), mesh.faces.tolist()) == ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
