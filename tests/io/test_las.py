import struct
import sys

import numpy as np
import pytest

from pcea.io.las import read_las

laspy = pytest.importorskip("laspy")
POINTS = np.round(np.random.default_rng(0).normal(size=(70, 3)) * 100 + [500000, 5400000, 300], 2)


def save(path, *, version="1.2", kind=3, points=POINTS):
    las = laspy.LasData(laspy.LasHeader(point_format=kind, version=version))
    las.header.scales, las.header.offsets = [0.01] * 3, [500000, 5400000, 0]
    las.xyz = points
    las.write(path)
    return path


def change(path, place, form, *numbers):
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, place, *numbers)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("extension", "version", "kind"),
    [
        *(("las", version, kind) for version, kind in (("1.1", 0), ("1.2", 3), ("1.3", 4), ("1.4", 6), ("1.4", 10))),
        *(("laz", version, kind) for version, kind in (("1.1", 0), ("1.2", 3), ("1.4", 6), ("1.4", 8))),
    ],
)
def test_versions_and_point_formats(tmp_path, extension, version, kind):
    if extension == "laz":
        pytest.importorskip("lazrs")
    path = save(tmp_path / f"a.{extension}", version=version, kind=kind)
    np.testing.assert_allclose(read_las(path), POINTS, rtol=0, atol=1e-8)


@pytest.mark.parametrize("extension", ["las", "laz"])
def test_no_points(tmp_path, extension):
    assert read_las(save(tmp_path / f"a.{extension}", points=np.empty((0, 3)))).shape == (0, 3)


def test_a_truncated_file(tmp_path):
    path = save(tmp_path / "a.las")
    whole = path.read_bytes()
    for cut in (1, 34, 300):
        path.write_bytes(whole[:-cut])
        with pytest.raises(ValueError, match=r"a.las could not be read as .las \(it ends before its 70 points\)"):
            read_las(path)
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"a.las could not be read as .las \(it ends within its header\)"):
        read_las(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"a.las could not be read as .las \(it does not begin with LASF\)"):
        read_las(path)


@pytest.mark.parametrize(
    ("place", "form", "number", "message"),
    [
        (100, "<I", 10**9, "1000000000 records of variable length come in 0 bytes"),
        (107, "<I", 2**32 - 1, "it ends before its 4294967295 points"),
        (96, "<I", 2**31, "points begin at byte 2147483648 of "),
        (94, "<H", 10, "points begin at byte "),
        (105, "<H", 3, "a point has 3 bytes"),
    ],
)
def test_headers_are_compared_with_the_size_of_the_file(tmp_path, place, form, number, message):
    with pytest.raises(ValueError, match=message):
        read_las(change(save(tmp_path / "a.las"), place, form, number))


def laszip_record(path):
    """Where the compressor's settings are."""
    return path.read_bytes().index(b"laszip encoded") + 52


def test_compressed_files_are_checked_too(tmp_path):
    pytest.importorskip("lazrs")
    path = save(tmp_path / "a.laz")
    whole, record = path.read_bytes(), laszip_record(path)
    [table] = struct.unpack_from("<q", whole, struct.unpack_from("<I", whole, 96)[0])
    for place, form, number, message in (
        (record, "<H", 1, "LASzip's kind 1; only 2 and 3"),
        (record + 12, "<I", 0, "another size than its header"),
        (record + 36, "<H", 7, "another size than its header"),
        (107, "<I", 2**31, "2147483648 points would grow from "),
        (table + 4, "<I", 2**32 - 1, "4294967295 chunks of 70 points"),
    ):
        path.write_bytes(whole)
        with pytest.raises(ValueError, match=rf"a.laz could not be read as .laz \(.*{message}") as caught:
            read_las(change(path, place, form, number))
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[: table - 20])
    with pytest.raises(ValueError, match="it ends before the table of its chunks"):
        read_las(path)


def test_layers_that_are_larger_than_the_file(tmp_path):
    """Whose sizes the Rust library allocates: out of memory, it ends the process."""
    pytest.importorskip("lazrs")
    path = save(tmp_path / "a.laz", version="1.4", kind=7)
    whole = path.read_bytes()
    start = struct.unpack_from("<I", whole, 96)[0] + 8
    assert struct.unpack_from("<I", whole, start + 36) == (70,)  # after the first point
    for place, number, message in (
        (start + 40, 2**32 - 1, "a chunk of its points is damaged"),
        (start + 40 + 4 * 9, 2**31, "a chunk of its points is damaged"),
        (start + 36, 0, "a chunk of its points is damaged"),
        (start + 36, 69, "it ends before its 70 points"),
    ):
        path.write_bytes(whole)
        with pytest.raises(ValueError, match=rf"a.laz could not be read as .laz \({message}"):
            read_las(change(path, place, "<I", number))


def test_a_panic_is_one_line(tmp_path, monkeypatch):
    lazrs = pytest.importorskip("lazrs")

    class PanicException(BaseException):
        pass

    def panic(*_):
        raise PanicException("index out of bounds")

    path = save(tmp_path / "a.laz")
    monkeypatch.setattr(lazrs, "LasZipDecompressor", panic)
    with pytest.raises(ValueError, match=r"compressed points are damaged: index out of bounds"):
        read_las(path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lazrs, "LasZipDecompressor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_las(path)


def test_compressed_points_need_a_package_and_others_none(tmp_path, monkeypatch):
    pytest.importorskip("lazrs")
    paths = [save(tmp_path / f"a.{extension}") for extension in ("las", "laz")]
    for module in ("laspy", "lazrs"):
        monkeypatch.setitem(sys.modules, module, None)
    assert len(read_las(paths[0])) == 70
    with pytest.raises(ImportError, match=r"a.laz is compressed, which needs lazrs: pip install 'pcea\[formats\]'\.$"):
        read_las(paths[1])
