import numpy as np
import pytest

from pcea.io.pcd import read_pcd

POINTS = np.array([[0.25, 1.5, -2.0], [1.75, 0.5, 3.25], [-0.5, 2.25, 1.0], [4, 5, 6]])
NORMALS = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, -1]])


def pcd(fields, *, data="binary", height=1, changes=()):
    """A file of `fields`, one (name, dtype, values (N,) or (N, count)) each."""
    n = len(fields[0][2])
    arrays = [np.asarray(values).reshape(n, -1).astype(kind) for _, kind, values in fields]
    lines = {
        "VERSION": "0.7",
        "FIELDS": " ".join(name for name, _, _ in fields),
        "SIZE": " ".join(str(a.itemsize) for a in arrays),
        "TYPE": " ".join(a.dtype.kind.upper() for a in arrays),
        "COUNT": " ".join(str(a.shape[1]) for a in arrays),
        "WIDTH": n // height,
        "HEIGHT": height,
        "VIEWPOINT": "0 0 0 1 0 0 0",
        "POINTS": n,
        "DATA": data,
    } | dict(changes)
    header = "# .PCD\n" + "".join(f"{key} {value}\n" for key, value in lines.items() if value is not None)
    if data == "ascii":
        return (header + "".join(" ".join(str(v) for a in arrays for v in a[i]) + "\n" for i in range(n))).encode()
    if data == "binary":
        return header.encode() + b"".join(a[i].tobytes() for i in range(n) for a in arrays)
    body = b"".join(a.tobytes() for a in arrays)
    packed = b"".join(bytes([len(body[i : i + 32]) - 1]) + body[i : i + 32] for i in range(0, len(body), 32))
    return header.encode() + len(packed).to_bytes(4, "little") + len(body).to_bytes(4, "little") + packed


def columns(points=POINTS, kinds=("<f4", "<f4", "<f4"), names="xyz"):
    return [(name, kind, column) for name, kind, column in zip(names, kinds, points.T)]


def normals(names=("normal_x", "normal_y", "normal_z")):
    return columns(NORMALS, ("<f4",) * len(names), names)


def pad(count):
    return ("_", "u1", np.full((4, count), 7))


KINDS = ("ascii", "binary", "binary_compressed")
FILES = {
    "plain": (columns(), POINTS),
    "doubles": (columns(kinds=("<f8",) * 3), POINTS),
    "mixed types": (columns(np.floor(POINTS), ("<i2", "<f8", "<i4")), np.floor(POINTS)),
    "upper case": (columns(names="XYZ"), POINTS),
    "two paddings of one name": ([*columns(), pad(4), ("intensity", "<f4", np.ones(4)), pad(12)], POINTS),
    "repeated names": ([*columns(), *columns(POINTS + 9), ("i", "u1", np.ones(4)), ("i", "<f8", np.ones(4))], POINTS),
    "normals": ([*normals(), *columns()], np.hstack([POINTS, NORMALS])),
    "short normals": ([*columns(), *normals(("nx", "ny", "nz"))], np.hstack([POINTS, NORMALS])),
    "one normal": ([*columns(), *normals(("normal_x",))], POINTS),
    "two normals": ([*columns(), *normals(("normal_x", "normal_y"))], POINTS),
    "histogram": ([("fpfh", "<f4", np.ones((4, 33))), *columns()], POINTS),
    "rgb": ([*columns(), ("rgb", "<u4", np.ones(4))], POINTS),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fields", "expected"), FILES.values(), ids=FILES)
def test_fields(tmp_path, fields, expected, kind):
    (tmp_path / "a.pcd").write_bytes(pcd(fields, data=kind))
    np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_organized_cloud_loses_what_the_camera_did_not_see(tmp_path, kind):
    points = POINTS.copy()
    points[1] = np.nan
    (tmp_path / "a.pcd").write_bytes(pcd([*columns(points), pad(4)], data=kind, height=2))
    with pytest.warns(UserWarning, match=r"a.pcd: 1 of 4 points have NaN coordinates and are dropped\.$"):
        np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), POINTS[[0, 2, 3]])
    (tmp_path / "a.pcd").write_bytes(pcd(columns(points * np.nan), data=kind))
    with pytest.raises(ValueError, match=r"a.pcd: all 4 points are NaN"):
        read_pcd(tmp_path / "a.pcd")


def test_old_and_terse_headers(tmp_path):
    for changes in ({"COUNT": None}, {"POINTS": None}, {"WIDTH": None, "HEIGHT": None}, {"VIEWPOINT": None}):
        (tmp_path / "a.pcd").write_bytes(pcd(columns(), changes=changes))
        np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), POINTS)
    old = pcd(columns(), data="ascii").replace(b"FIELDS", b"COLUMNS").replace(b"\n", b"\r\n")
    (tmp_path / "a.pcd").write_bytes(old)
    np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), POINTS)


def test_copies_in_compressed_data(tmp_path):
    # 48 bytes: three literals, then a copy that overlaps what it writes, as PCL makes of equal coordinates.
    body = bytes([3, 0, 0, 128, 63]) + bytes([(7 << 5), 44 - 7 - 2, 3])
    header = pcd(columns(), changes={"DATA": "binary_compressed"}).partition(b"compressed\n")[0] + b"compressed\n"
    (tmp_path / "a.pcd").write_bytes(header + len(body).to_bytes(4, "little") + (48).to_bytes(4, "little") + body)
    np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), np.ones((4, 3)))
    for damaged in (bytes([32, 5]), bytes([40]), body[:-1], body + b"\0\0"):
        sizes = len(damaged).to_bytes(4, "little") + (48).to_bytes(4, "little")
        (tmp_path / "a.pcd").write_bytes(header + sizes + damaged)
        with pytest.raises(ValueError, match=r"a.pcd could not be read as .pcd \(its compressed data is damaged\)"):
            read_pcd(tmp_path / "a.pcd")


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file(tmp_path, kind):
    whole = pcd(columns(), data=kind)
    start = whole.index(kind.encode() + b"\n") + len(kind) + 1
    for end in range(start, len(whole) - (4 if kind == "ascii" else 0), 5):
        (tmp_path / "a.pcd").write_bytes(whole[:end])
        with pytest.raises(
            ValueError, match=r"a.pcd could not be read as .pcd \((it ends before its 4|invalid column)"
        ):
            read_pcd(tmp_path / "a.pcd")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"COUNT": "1 1 -5"}, "its header has COUNT 1 1 -5"),
        ({"COUNT": "1 1 1000000000"}, "it ends before its 4 points"),
        ({"COUNT": "1 1"}, "its header has 3 fields, but 3 sizes, 3 types and 2 counts"),
        ({"FIELDS": "x y"}, "its header has 2 fields, but 3 sizes"),
        ({"TYPE": "F F X"}, "its header has the type and size 'X4'"),
        ({"SIZE": "4 4 3"}, "its header has the type and size 'F3'"),
        ({"WIDTH": 5}, "its header has 4 points, but width x height is 5"),
        ({"WIDTH": 10**12, "POINTS": 10**12}, "it ends before its 1000000000000 points"),
        ({"POINTS": "many"}, "its header has POINTS many"),
        ({"POINTS": ""}, None),
        ({"DATA": "binry"}, "its data is 'binry', neither ascii"),
        ({"VIEWPOINT": "0\nHELLO x"}, "its header has the line 'HELLO x'"),
    ],
)
def test_bad_headers(tmp_path, changes, message):
    (tmp_path / "a.pcd").write_bytes(pcd(columns(), changes=changes))
    if message is None:  # width and height tell the same
        np.testing.assert_array_equal(read_pcd(tmp_path / "a.pcd"), POINTS)
        return
    with pytest.raises(ValueError, match=rf"a.pcd could not be read as .pcd \({message}") as caught:
        read_pcd(tmp_path / "a.pcd")
    assert "\n" not in str(caught.value)


def test_files_that_are_something_else(tmp_path):
    (tmp_path / "a.pcd").write_bytes(pcd(columns(names="uvw")))
    with pytest.raises(ValueError, match=r"a.pcd has no fields x, y and z; its fields are u v w"):
        read_pcd(tmp_path / "a.pcd")
    for content in (b"", b"hello", b"VERSION 0.7\nFIELDS x y"):
        (tmp_path / "a.pcd").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.pcd could not be read as .pcd \(its header has no DATA"):
            read_pcd(tmp_path / "a.pcd")
