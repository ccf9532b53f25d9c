import h5py
import numpy as np
import pytest

from pcea.io.hdf5 import read_h5

POINTS = np.arange(12.0).reshape(4, 3)


@pytest.fixture
def other(tmp_path):
    """Files that no cloud may come from."""
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = POINTS
    (tmp_path / "secret.bin").write_bytes(POINTS.tobytes())


def external_link(file):
    file["data"] = h5py.ExternalLink("other.h5", "/data")


def link_into_another_file(file):
    file["elsewhere"] = h5py.ExternalLink("other.h5", "/")
    file["data"] = h5py.SoftLink("/elsewhere/data")


def virtual_dataset(file):
    layout = h5py.VirtualLayout(shape=POINTS.shape, dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "data", shape=POINTS.shape)
    file.create_virtual_dataset("data", layout)


def external_storage(file):
    file.create_dataset("data", shape=POINTS.shape, dtype="f8", external=[("secret.bin", 0, h5py.h5f.UNLIMITED)])


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (external_link, r"'data' is a link, which is not followed"),
        (link_into_another_file, r"'data' is a link, which is not followed"),
        (virtual_dataset, r"'data' lies in another file, which is not read"),
        (external_storage, r"'data' lies in another file, which is not read"),
    ],
)
@pytest.mark.parametrize("names", [{"required": ("data",)}, {"required": (), "optional": ("data",)}])
def test_nothing_outside_the_file_is_read(tmp_path, monkeypatch, make, message, names):
    monkeypatch.chdir(tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["data"][()].tolist() == POINTS.tolist()  # HDF5 itself follows
    with pytest.raises(ValueError, match=rf"a.h5: {message}"):
        read_h5(tmp_path / "a.h5", **names)


def test_an_array_larger_than_the_file_can_hold_is_refused_before_it_is_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", shape=(10**11, 3), dtype="f4", chunks=(1024, 3))
    with pytest.raises(ValueError, match=r"'data' claims 1,200,000,000,000 bytes, more than a file of [\d,]+ can hold"):
        read_h5(tmp_path / "a.h5")


def test_a_compressed_array_of_zeros_is_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=np.zeros((3 << 20, 3)), compression="gzip", compression_opts=9)
    assert read_h5(tmp_path / "a.h5")["data"].shape == (3 << 20, 3)


@pytest.mark.parametrize("value", ["hello", np.zeros(3, [("x", "f4"), ("y", "f4")]), h5py.Empty("f4")])
def test_what_is_not_an_array_of_numbers_is_refused(tmp_path, value):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = value
    with pytest.raises(ValueError, match=r"a.h5: 'data' must hold numbers"):
        read_h5(tmp_path / "a.h5")
