import io
import struct
import zipfile

import numpy as np
import pytest

from pcea.io.arrays import drop_missing, read_numpy, read_numpy_cloud

POINTS = np.array([[0.25, 1.5, -2.0], [1.75, 0.5, 3.25]])
NORMALS = np.array([[0.0, 0, 1], [0, 1, 0]])


def header(text, version=1):
    """A .npy file with this header and 48 bytes of numbers."""
    text = text.encode().ljust(117) + b"\n"
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + bytes(48)
    )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f8", ">f8", "<f4", "<f2"])
def test_one_array(tmp_path, order, kind):
    array = np.asarray(POINTS, kind, order=order)
    for rows in (array, array[None]):
        np.save(tmp_path / "a.npy", rows)
        np.testing.assert_array_equal(read_numpy_cloud(tmp_path / "a.npy"), POINTS)
        assert read_numpy(tmp_path / "a.npy").dtype == kind


@pytest.mark.parametrize("names", ["x,y,z", "X,Y,Z", "rgb,x,y,z", "x,y,z,nx,ny,nz", "x,y,z,normal_x,normal_y,normal_z"])
def test_structured_arrays(tmp_path, names):
    columns = {**dict(zip("xyz", POINTS.T)), "rgb": np.arange(2)}
    columns |= {axis + name: column for axis in ("n", "normal_") for name, column in zip("xyz", NORMALS.T)}
    records = np.rec.fromarrays([columns[name.lower()] for name in names.split(",")], names=names)
    np.save(tmp_path / "a.npy", records[None])  # as an organized cloud of one row
    expected = np.hstack([POINTS, NORMALS]) if "n" in names else POINTS
    np.testing.assert_array_equal(read_numpy_cloud(tmp_path / "a.npy"), expected)


@pytest.mark.parametrize("kind", [[("a", "f4"), ("b", "f4")], [("x", "U3"), ("y", "f4"), ("z", "f4")]])
def test_structured_arrays_without_points(tmp_path, kind):
    np.save(tmp_path / "a.npy", np.zeros(5, kind))
    with pytest.raises(ValueError, match=r"a.npy has no fields x, y and z of numbers; its fields are"):
        read_numpy_cloud(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }"), "shorter than its header"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-2, 3), }"), "shorter than its header"),
        (
            header("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }"),
            "Python objects, which are never loaded",
        ),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3"), ""),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }   \x00'''"), ""),
        (header("(" * 100), ""),
        (header("{'descr': 'q9', 'fortran_order': False, 'shape': (2, 3), }"), ""),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }", version=9), ""),
        (b"\x93NUMPY", ""),
        (b"", ""),
    ],
)
def test_bad_headers(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a.npy is not a NumPy file of numbers \(.*{message}") as caught:
        read_numpy_cloud(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("points.npy", content)
    with pytest.raises(ValueError, match=rf"a.npz is not a NumPy file of numbers \(.*{message}"):
        read_numpy_cloud(tmp_path / "a.npz")


def test_only_what_is_needed_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in (("points", POINTS), ("normals", NORMALS)):
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
        archive.writestr("broken.npy", b"hello")
        archive.writestr("remarks.txt", b"hello")
    np.testing.assert_array_equal(read_numpy_cloud(tmp_path / "a.npz"), np.hstack([POINTS, NORMALS]))
    with pytest.raises(ValueError, match=r"a.npz is not a NumPy file of numbers"):
        read_numpy(tmp_path / "a.npz")


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "points.npy",
            header("{'descr': '<f8', 'fortran_order': False, 'shape': (3000000, 3), }") + bytes(72 * 10**6),
        )
    with pytest.raises(ValueError, match=r"a.npz .*zip bomb"):
        read_numpy_cloud(tmp_path / "a.npz")


def test_missing_points_are_counted(tmp_path):
    rows = np.vstack([POINTS, [[np.nan, 0, 0]]])
    with pytest.warns(UserWarning, match=r"a: 1 of 3 points have NaN coordinates and are dropped"):
        np.testing.assert_array_equal(drop_missing(rows, "a"), POINTS)
    assert drop_missing(POINTS, "a") is POINTS
    assert drop_missing(np.arange(6).reshape(2, 3), "a").tolist() == [[0, 1, 2], [3, 4, 5]]
