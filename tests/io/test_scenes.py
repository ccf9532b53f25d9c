import sys
import warnings
import zipfile

import numpy as np
import pytest
import trimesh
from examples import write
from trimesh.transformations import translation_matrix

from pcea.io.meshes import Mesh
from pcea.io.readers import read_file

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


def two_boxes():
    """Boxes of volume 1 at x 5, and of volume 8, mirrored, at x -7."""
    scene = trimesh.Scene()
    scene.add_geometry(trimesh.creation.box(), "left", "box", transform=translation_matrix([5, 0, 0]))
    scene.graph.update("right", geometry="box", matrix=translation_matrix([-7, 0, 0]) @ np.diag([-2, 2, 2, 1]))
    return scene


@pytest.mark.parametrize("lines", ["", "p 1 2 3\n", "vn 0 0 1\n"])
def test_an_obj_of_points_is_a_cloud(tmp_path, lines):
    assert read_file(write(tmp_path / "a.obj", TRIANGLE + lines)).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert isinstance(read_file(write(tmp_path / "a.obj", TRIANGLE + lines + "f 1 2 3\n")), Mesh)


def test_an_obj_in_two_dimensions_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a.obj could not be read as .obj \(.*three coordinates"):
        read_file(write(tmp_path / "a.obj", "v 0 0\nv 1 0\nv 0 1\nf 1 2 3\n"))


def test_materials_of_an_obj_are_not_looked_for(tmp_path, caplog, capfd):
    (tmp_path / "a.mtl").write_text("newmtl paint\nmap_Kd missing.png\n")
    text = "mtllib a.mtl\nmtllib missing.mtl\nusemtl paint\n" + TRIANGLE + "vt 0 0\nf 1/1 2/1 3/1\n"
    assert len(read_file(write(tmp_path / "a.obj", text)).faces) == 1
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_3mf_shows_each_item_where_its_transforms_put_it(tmp_path):
    pytest.importorskip("lxml")
    two_boxes().export(tmp_path / "a.3mf")
    parts = trimesh.Trimesh(*read_file(tmp_path / "a.3mf")).split()
    assert sorted(part.volume for part in parts) == pytest.approx([1, 8])
    assert sorted(part.bounds[0][0] for part in parts) == pytest.approx([-8, 4.5])


MODEL = '<model xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02" {}><resources/><build/></model>'


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"3D/3dmodel.model": b"<model>" + bytes(80 << 20)}, "would unpack to 83,886,087 bytes .* zip bomb"),
        ({"3D/3dmodel.model": MODEL.format(""), "3D/Objects/o.model": MODEL.format("")}, "extension production"),
        ({"3D/3dmodel.model": MODEL.format('requiredextensions="p b"')}, "3MF extension p b"),
        ({"readme.txt": "hello"}, "could not be read as .3mf"),
        (
            {"3D/3dmodel.model": MODEL.format("").replace("/>", '><object id="1" type="support"/>', 1)},
            "support the shape",
        ),
    ],
)
def test_3mf_that_trimesh_would_read_in_part_or_never_end_is_refused(tmp_path, members, message):
    pytest.importorskip("lxml")
    with zipfile.ZipFile(tmp_path / "a.3mf", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / "a.3mf")


def test_what_trimesh_logs_is_a_warning_of_one_line(tmp_path):
    pytest.importorskip("lxml")
    trimesh.creation.box().export(tmp_path / "whole.3mf")
    with zipfile.ZipFile(tmp_path / "whole.3mf") as whole, zipfile.ZipFile(tmp_path / "a.3mf", "w") as file:
        for name in whole.namelist():
            text = whole.read(name)
            if name.endswith(".model"):
                text = text.replace(b"</build>", b'<item objectid="99"/></build>')
            file.writestr(name, text)
    with pytest.warns(UserWarning, match=r"a.3mf: id 99 included but not defined"):
        assert len(read_file(tmp_path / "a.3mf").faces) == 12


@pytest.fixture
def collada():
    pytest.importorskip("collada")
    pytest.importorskip("lxml")
    return trimesh.creation.box().export(file_type="dae").decode()


def test_collada(tmp_path, collada):
    mesh = read_file(write(tmp_path / "a.dae", collada))
    assert trimesh.Trimesh(*mesh).volume == pytest.approx(1)
    node = '<node id="node0" name="node0">'
    assert node in collada
    moved = collada.replace(node, f"{node}<translate>5 0 0</translate><scale>-2 2 2</scale>")
    mesh = trimesh.Trimesh(*read_file(write(tmp_path / "b.dae", moved)))
    assert (mesh.bounds.tolist(), mesh.volume) == ([[4, -1, -1], [6, 1, 1]], pytest.approx(8))


def test_collada_whose_textures_are_missing(tmp_path, collada, caplog, capfd):
    texture = '<texture texture="missing-sampler" texcoord="UV"/>'
    damaged = collada.replace("<color>0.0 0.0 0.0 1.0</color>", texture)
    assert damaged.count(texture) > 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert len(read_file(write(tmp_path / "a.dae", damaged)).faces) == 12
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_collada_in_a_chinese_encoding(tmp_path, collada):
    text = collada.replace('name="node0"', 'name="椅子"')
    assert "椅子" in text
    (tmp_path / "a.dae").write_bytes(b'<?xml version="1.0" encoding="GB2312"?>\n' + text.encode("gb2312"))
    assert len(read_file(tmp_path / "a.dae").faces) == 12


def test_collada_that_cannot_be_shown_is_refused(tmp_path, collada):
    unknown = collada.replace("<scene>", "<scene_was>").replace("</scene>", "</scene_was>")
    with pytest.raises(ValueError, match=r"a.dae could not be read as .dae \(it has no scene"):
        read_file(write(tmp_path / "a.dae", unknown))
    strips = collada.replace("<triangles", "<tristrips").replace("</triangles", "</tristrips")
    with pytest.raises(ValueError, match=r"a.dae could not be read as .dae \(.*tristrips"):
        read_file(write(tmp_path / "a.dae", strips))
    entity = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>' + collada.replace(">-0.5 ", ">&x; ", 1)
    with pytest.raises(ValueError, match=r"a.dae could not be read as .dae"):
        read_file(write(tmp_path / "a.dae", entity))


def with_polygons(collada, kind, body):
    """The box with these polygons in place of its triangles."""
    start, end = collada.index("<triangles"), collada.index("</triangles>")
    given = '<input offset="0" semantic="VERTEX" source="#verts-array-vertices"/>'
    return f"{collada[:start]}<{kind} count='2'>{given}{body}</{kind}>{collada[end + len('</triangles>') :]}"


@pytest.mark.parametrize(
    ("kind", "body"),
    [("polylist", "<vcount>4 3</vcount><p>5 4 6 7 0 1 2</p>"), ("polygons", "<p>5 4 6 7</p><p>0 1 2</p>")],
)
def test_concave_polygons_of_collada(tmp_path, collada, kind, body):
    moved = collada.replace("0.5 0.5 0.5</float_array>", "0.5 -0.25 -0.25</float_array>", 1)
    mesh = read_file(write(tmp_path / "a.dae", with_polygons(moved, kind, body)))
    # From the first corner (y, z), (-1/2, 1/2), the third, (1/2, -1/2), is behind the fourth, (-1/4, -1/4).
    assert trimesh.Trimesh(*mesh, process=False).area_faces.tolist() == pytest.approx([0.125, 0.125, 0.5])


def test_collada_that_pycollada_reads_wrongly_is_refused(tmp_path, collada):
    holes = with_polygons(collada, "polygons", "<ph><p>0 1 3 2</p><h>4 5 6</h></ph>")
    with pytest.raises(ValueError, match=r"a.dae could not be read as .dae \(it has ph, which pycollada leaves out"):
        read_file(write(tmp_path / "a.dae", holes))
    accessor = '<accessor count="8" source="#verts-array-array" stride="3">'
    for wrong, message in (
        (collada.replace(accessor, accessor.replace(">", ' offset="3">')), "X Y Z with offset 3 and stride 3"),
        (collada.replace(accessor, accessor.replace("3", "6")), "X Y Z with offset 0 and stride 6"),
        (collada.replace('name="X"', 'name="Z"', 1), "Z Y Z with offset 0 and stride 3"),
    ):
        assert wrong != collada
        with pytest.raises(
            ValueError, match=rf"a.dae could not be read as .dae \(its positions #verts-array are {message}"
        ):
            read_file(write(tmp_path / "a.dae", wrong))
    assert len(read_file(write(tmp_path / "a.dae", collada.replace(' stride="3"', ""))).faces) == 12
    node = '<node id="node0" name="node0">'
    for element in ("<lookat>5 0 0 0 0 0 0 1 0</lookat>", "<skew>30 1 0 0 0 1 0</skew>"):
        with pytest.raises(ValueError, match=r"it places a part by (lookat|skew), which pycollada reads wrongly"):
            read_file(write(tmp_path / "a.dae", collada.replace(node, node + element)))
    camera = collada.replace(node, '<node id="camera"><lookat>5 0 0 0 0 0 0 1 0</lookat></node>' + node)
    assert len(read_file(write(tmp_path / "a.dae", camera)).faces) == 12


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("a.3mf", "lxml", "lxml"), ("a.dae", "collada", "pycollada"), ("a.dae", "lxml.etree", "lxml")],
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{name} needs {package}: pip install 'pcea\[formats\]', or pip install"):
        read_file(write(tmp_path / name, "hello"))
