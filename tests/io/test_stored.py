import pickle

import h5py
import numpy as np
import pytest
import torch

from pcea.io.stored import stored_h5

SIZES = torch.tensor([3, 1, 4, 2])


@pytest.fixture
def path(tmp_path):
    """Ten rows x y z, where x is the number of the row, and ten labels."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = (np.arange(10)[:, None] + [0, 0.25, 0.5]).astype(np.float32)
        file["label"] = np.arange(10) % 3
    return tmp_path / "a.h5"


def first(rows):
    return rows[:, 0].tolist()


def test_rows_are_read_in_the_order_asked_for(path):
    array = stored_h5(path, ["data"])["data"]
    assert (array.shape, array.ndim, len(array)) == ((10, 3), 2, 10)
    rows = array[torch.tensor([7, 0, 7, -1])]
    assert rows.tolist() == [[n, n + 0.25, n + 0.5] for n in (7, 0, 7, 9)]
    assert first(array[torch.tensor([], dtype=torch.int64)]) == []
    with pytest.raises(IndexError):
        array[torch.tensor([10])]


def test_clouds_of_several_sizes_follow_one_another(path):
    array = stored_h5(path, ["data"])["data"].split(SIZES)
    assert (array.shape, array.nbytes) == ((10, 3), 120)
    assert first(array[torch.tensor([3, 0])]) == [8, 9, 0, 1, 2]
    some = array.select(torch.tensor([2, 3, 0]))
    assert len(some) == 9
    assert first(some[torch.tensor([2, 1])]) == [0, 1, 2, 8, 9]
    for wrong in ([3, 1, 4, 1], [3, 0, 5, 2]):
        with pytest.raises(ValueError, match="sizes must be positive and sum to 10 rows"):
            stored_h5(path, ["data"])["data"].split(torch.tensor(wrong))


def test_labels_can_be_renumbered_again_and_again(path):
    array = stored_h5(path, ["label"])["label"].split(SIZES)
    other = array.renumber(torch.tensor([2, 0, 1])).renumber(torch.tensor([7, 8, 9]))
    assert other[torch.tensor([3])].tolist() == [8, 9]  # 2 and 0 -> 1 and 2 -> 8 and 9
    assert array[torch.tensor([3])].tolist() == [2, 0]


def test_it_goes_to_other_processes(path):
    array = pickle.loads(pickle.dumps(stored_h5(path, ["data"])["data"].split(SIZES)))
    assert first(array[torch.tensor([1])]) == [3]


def test_a_file_that_changes_while_it_is_read(path):
    array = stored_h5(path, ["data"])["data"]
    path.write_bytes(path.read_bytes()[: array.offset + 100])
    with pytest.raises(ValueError, match=r"a\.h5 is shorter than it was"):
        array[torch.tensor([9])]
    path.unlink()
    with pytest.raises(ValueError, match=r"a\.h5 cannot be read any more \(No such file or directory\)"):
        array[torch.tensor([0])]


def test_arrays_that_cannot_be_read_by_place(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("chunked", data=np.zeros((9, 3)), chunks=(3, 3))
        file["foreign"] = np.zeros((9, 3), dtype=">f4")
        file["empty"] = np.zeros((0, 3))
    for name in ("chunked", "foreign"):
        with pytest.raises(ValueError, match=f"'{name}' must be stored without chunks, as numbers of this machine"):
            stored_h5(tmp_path / "a.h5", [name])
    assert stored_h5(tmp_path / "a.h5", ["empty"])["empty"].shape == (0, 3)
    with pytest.raises(ValueError, match="has no array 'data'"):
        stored_h5(tmp_path / "a.h5", ["data"])
