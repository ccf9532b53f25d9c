import numpy as np
import pytest

from pcea.io.meshes import Mesh
from pcea.io.off import read_off

VERTICES = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
FACES = "3 0 1 2\n4 0 1 2 3\n"
TRIANGLES = [[0, 1, 2], [0, 1, 2], [0, 2, 3]]
FILES = {
    "usual": f"OFF\n4 2 0\n{VERTICES}{FACES}",
    "glued": f"OFF4 2 0\n{VERTICES}{FACES}",
    "on the keyword's line": f"OFF 4 2 0\n{VERTICES}{FACES}",
    "no keyword": f"4 2 0\n{VERTICES}{FACES}",
    "byte order mark": f"\ufeffOFF\n4 2 0\n{VERTICES}{FACES}",
    "byte order mark, no keyword": f"\ufeff4 2 0\n{VERTICES}{FACES}",
    "lower case": f"off\n4 2 0\n{VERTICES}{FACES}",
    "no edges": f"OFF\n4 2\n{VERTICES}{FACES}",
    "one line": f"OFF 4 2 0 {VERTICES}{FACES}".replace("\n", " "),
    "two lines": f"OFF\n4 2 0 {VERTICES}{FACES}".replace("\n", " ").replace("OFF ", "OFF\n"),
    "coordinates one by one": f"OFF\n4 2 0\n{VERTICES}{FACES}".replace(" ", "\n"),
    "colours": "COFF\n4 2 0\n" + (VERTICES + FACES).replace("\n", " 255 0 0 1\n"),
    "blank lines and remarks": "# by hand\nOFF\n\n4 2 0  # counts\n" + (VERTICES + FACES).replace("\n", "\n\n"),
    "blank lines and remarks at the end": f"OFF\n4 2 0\n{VERTICES}{FACES}\n  \n# the end\n",
    "letters in another order": "CNOFF\n4 2 0\n" + VERTICES.replace("\n", " 0 0 1 9 9 9\n") + FACES,
    "letters in VCGLIB's order": "NCSTOFF\n4 2 0\n" + VERTICES.replace("\n", " 0 0 1 9 9 9 0 0\n") + FACES,
    "Windows": f"OFF\n4 2 0\n{VERTICES}{FACES}".replace("\n", "\r\n"),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_faces(tmp_path, content):
    (tmp_path / "a.off").write_bytes(content.encode())
    mesh = read_off(tmp_path / "a.off")
    assert isinstance(mesh, Mesh)
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert mesh.faces.tolist() == TRIANGLES


@pytest.mark.parametrize("content", [f"OFF\n4 0 0\n{VERTICES}", f"OFF 4 0 0 {VERTICES}".replace("\n", " ")])
def test_points_alone(tmp_path, content):
    (tmp_path / "a.off").write_text(content)
    assert read_off(tmp_path / "a.off").tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]


def test_points_with_normals_or_colours(tmp_path):
    rows = "0 0 0 0 0 1\n1 0 0 0 1 0\n"
    (tmp_path / "a.off").write_text(f"NOFF\n2 0 0\n{rows}")
    np.testing.assert_array_equal(read_off(tmp_path / "a.off"), [[0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0]])
    (tmp_path / "a.off").write_text(f"COFF\n2 0 0\n{rows}")
    assert read_off(tmp_path / "a.off").shape == (2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"OFF\n4 2 0\n{VERTICES}3 0 1 {9 * 10**18}\n4 0 1 2 {10**30}\n", "too large"),
        ("OFF BINARY\n1 0 0\n", "it is of the kind OFF BINARY"),
        ("4OFF\n1 0 0\n0 0 0 1\n", "it is of the kind 4OFF"),
        ("OFF\n2 1 0\n0 0\n1 1\n3 0 1 1\n", "its vertices have 2 coordinates"),
        ("OFF\n4 2 0\n" + VERTICES + "3 0 1 2\n", "it ends before its 4 vertices and 2 faces"),
        ("OFF 4 1 0 " + VERTICES.replace("\n", " ") + "3 0 1 2 9", "1 numbers are left over"),
        ("OFF\n4 1 0\n" + VERTICES + FACES, "1 lines are left over after its 4 vertices and 1 faces; its counts are"),
        ("OFF\n3 2 0\n" + VERTICES + FACES, "1 lines are left over after its 3 vertices and 2 faces"),
        ("OFF\n2 0 0\n" + VERTICES, "2 lines are left over after its 2 vertices and 0 faces"),
        ("OFF\n4 1 0\n" + VERTICES + "3 0 1\n", "loadtxt|invalid column"),
        ("OFF\n4 1 0\n" + VERTICES + "4 0 1\n", "it has a face '4 0 1'"),
        ("OFF\n1000000000000 1 0\n0 0 0\n", "it ends before its 1000000000000 vertices"),
        ("1 2 3 4 5 6 7\n", "it ends before its 1 vertices and 2 faces"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "a.off").write_text(content)
    with pytest.raises(ValueError, match=rf"a.off could not be read as .off \(.*({message})") as caught:
        read_off(tmp_path / "a.off")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("faces", ["3\n0 1 2\n4\n0 1 2 3\n", "3 0 1 2\n4 0 1\n2 3\n"])
@pytest.mark.parametrize("counts", ["4 2 0", "4 2"])
def test_faces_of_several_lines(tmp_path, faces, counts):
    (tmp_path / "a.off").write_text(f"OFF\n{counts}\n{VERTICES}{faces}")
    assert read_off(tmp_path / "a.off").faces.tolist() == TRIANGLES
