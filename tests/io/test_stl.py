import struct

import numpy as np
import pytest
import trimesh

from pcea.io.meshes import Mesh
from pcea.io.readers import read_file

TRIANGLE = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
FACET = """  facet normal 0 0 1
    outer loop
      vertex 0 0 0
      vertex 1 0 0
      vertex 0 1 0
    endloop
  endfacet
"""


def solid(name, facets=FACET):
    return f"solid {name}\n{facets}endsolid {name}\n"


FILES = {
    "usual": solid("a"),
    "no name": f"solid\n{FACET}endsolid\n",
    "a name of keywords": solid("vertex facet endsolid solid 3 4 5"),
    "a remark for a name": solid("facet normals of a solid"),
    "another name at the end": f"solid a\n{FACET}endsolid b\n",
    "capitals": solid("A").upper().replace("1", "1.0E0"),
    "Windows": solid("a").replace("\n", "\r\n"),
    "Macintosh": solid("a").replace("\n", "\r"),
    "tabs": solid("a").replace("  ", "\t"),
    "no line end": solid("a").rstrip(),
    "blank lines": "\n" + solid("a").replace("\n", "\n\n"),
    "one line": "solid a " + " ".join(FACET.split()) + " endsolid a",
    "byte order mark": "\ufeff" + solid("a"),
    "Chinese": solid("椅子"),
    "an empty solid": solid("a", "") + solid("b"),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_text(tmp_path, content):
    (tmp_path / "a.stl").write_bytes(content.encode())
    mesh = read_file(tmp_path / "a.stl")
    assert isinstance(mesh, Mesh)
    assert mesh.vertices[mesh.faces].tolist() == [TRIANGLE]


def test_several_solids(tmp_path):
    (tmp_path / "a.stl").write_text(solid("x") + "\n" + solid("y", FACET + FACET.replace("vertex 0", "vertex 7")))
    mesh = read_file(tmp_path / "a.stl")
    moved = [[7, 0, 0], [1, 0, 0], [7, 1, 0]]
    assert mesh.vertices[mesh.faces].tolist() == [TRIANGLE, TRIANGLE, moved]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (solid("x") + f"solid y\n{FACET}", "it has 2 solids, of which 1 end with endsolid; is it cut off"),
        (f"solid x\n{FACET}{FACET}", "it has 1 solids, of which 0 end with endsolid"),
        (solid("x", FACET + FACET[:60]), "it has 2 facets, of which 1 end with endfacet"),
        (solid("x", FACET.replace("vertex 1 0 0\n", "")), "its 1 facets have 2 vertices instead of three each"),
        (solid("x", FACET.replace("1 0 0", "1 0")), "its 1 facets have 2 vertices instead of three each"),
        (solid("x", FACET.replace("1 0 0", "1 0 zero")), "could not convert string to float: 'zero'"),
        ("hello", "it does not begin with solid"),
        ("", "it does not begin with solid"),
        ("a\0b", "it ends within its header, after 3 bytes"),
    ],
)
def test_bad_text(tmp_path, content, message):
    (tmp_path / "a.stl").write_text(content)
    with pytest.raises(ValueError, match=rf"a.stl could not be read as .stl \(.*{message}") as caught:
        read_file(tmp_path / "a.stl")
    assert "\n" not in str(caught.value)


@pytest.fixture(params=[b"", b"solid made by a scanner", b" " * 80])
def binary(request):
    """A box of 12 facets, whatever its header says."""
    content = trimesh.creation.box().export(file_type="stl")
    return request.param.ljust(80, b"\0") + content[80:]


def test_binary(tmp_path, binary):
    (tmp_path / "a.stl").write_bytes(binary)
    mesh = read_file(tmp_path / "a.stl")
    assert mesh.vertices.dtype == np.float64
    assert trimesh.Trimesh(*mesh).volume == pytest.approx(1)


@pytest.mark.parametrize("extra", [1, 50, 130])
def test_bytes_after_the_facets_are_ignored_with_a_warning(tmp_path, binary, extra):
    (tmp_path / "a.stl").write_bytes(binary + b"\1" * extra)
    with pytest.warns(UserWarning, match=rf"a.stl: {extra} bytes after its 12 facets are ignored"):
        assert len(read_file(tmp_path / "a.stl").faces) == 12


@pytest.mark.parametrize(("size", "count"), [(84, 0), (133, 0), (134, 1), (683, 11)])
def test_a_binary_file_that_is_cut_off(tmp_path, binary, size, count):
    (tmp_path / "a.stl").write_bytes(binary[:size])
    with pytest.raises(ValueError, match=rf"a.stl could not be read as .stl \(it ends after {count} of its 12 facets"):
        read_file(tmp_path / "a.stl")


def test_more_facets_than_memory(tmp_path):
    (tmp_path / "a.stl").write_bytes(bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(50))
    with pytest.raises(ValueError, match="it ends after 1 of its 4294967295 facets"):
        read_file(tmp_path / "a.stl")
