import errno
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from examples import mounted_disk

from pcea.datasets import cache
from pcea.datasets.cache import cache_path, cached, join, parse_files, read_h5_clouds, write_h5
from pcea.io.points import Points


def arrays(clouds=3, points=7, **changes):
    data = np.random.default_rng(0).normal(size=(clouds, points, 3)).astype(np.float32)
    label = np.arange(clouds, dtype=np.int64)
    return {"data": data, "label": label, "skipped": np.array([], dtype=bytes), **changes}


def pieces(**changes):
    """The arrays in one piece."""
    return [arrays(**changes)]


def write(path, **changes):
    with h5py.File(path, "w") as file:
        for name, array in arrays(**changes).items():
            file[name] = array
    return path


def test_reading_takes_the_first_points(tmp_path):
    expected = arrays()
    path = write(tmp_path / "a.h5", label=np.array([[2], [0], [1]], dtype=np.uint8), normal=-expected["data"])
    clouds = read_h5_clouds(path, num_classes=3, num_points=5, with_normals=True)
    assert torch.equal(clouds.points, torch.from_numpy(expected["data"][:, :5]))
    assert torch.equal(clouds.normals, -clouds.points)
    assert clouds.label.tolist() == [2, 0, 1]
    assert clouds.label.dtype == torch.int64
    assert read_h5_clouds(path, num_classes=3).normals is None


def test_files_are_never_opened_for_writing(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5")
    modes = []
    original = h5py.File
    monkeypatch.setattr(h5py, "File", lambda name, mode="a": (modes.append(mode), original(name, mode))[1])
    read_h5_clouds(path, num_classes=3)
    assert modes == ["r"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((3, 7))}, r"a.h5: data must be \(clouds, points, 3\), got \(3, 7\)"),
        ({"data": np.zeros((3, 7, 4))}, r"a.h5: data must be .* got \(3, 7, 4\)"),
        ({"label": np.zeros(4, dtype=int)}, r"a.h5: label must be 3 integers, got int64 of shape \(4,\)"),
        ({"label": np.zeros(3)}, r"a.h5: label must be 3 integers, got float64"),
        ({"label": np.array([0, 1, 40])}, r"a.h5: labels must be in 0..39, got 0..40"),
        ({"label": np.array([0, -1, 3])}, r"a.h5: labels must be in 0..39, got -1..3"),
        ({"points": 4}, r"a.h5 holds 4 points per cloud, but num_points=5"),
        ({"data": np.full((3, 7, 3), np.nan)}, r"a.h5: 3 clouds have NaN or infinite coordinates, first: cloud 0"),
        ({}, r"a.h5 has no array 'normal'"),
        ({"normal": np.zeros((3, 6, 3))}, r"normal must be \(3, 7, 3\) like data, got \(3, 6, 3\)"),
    ],
)
def test_wrong_content(tmp_path, changes, message):
    path = write(tmp_path / "a.h5", **changes)
    with pytest.raises(ValueError, match=message):
        read_h5_clouds(path, num_classes=40, num_points=5, with_normals=True)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file .*a.h5"):
        read_h5_clouds(tmp_path / "a.h5", num_classes=3)
    path = write(tmp_path / "b.h5", clouds=50, points=101)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"b.h5 is truncated or not HDF5"):
        read_h5_clouds(path, num_classes=50)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["points"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"c.h5 has no array 'data'; it holds \['points'\]"):
        read_h5_clouds(tmp_path / "c.h5", num_classes=3)


def test_the_cache_is_made_once(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return [arrays(skipped=np.array(["ä".encode()], dtype=bytes))]

    path = tmp_path / ".pcea" / "a.h5"
    first, second = cached(path, make), cached(path, make)
    assert len(calls) == 1
    assert set(first) == set(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert {*path.parent.iterdir()} == {path, path.with_name("lock")}
    cached(None, make)
    assert len(calls) == 2


def test_pieces_follow_one_another(tmp_path):
    """Large arrays stay in the file where they are not to be held in memory."""
    first, second = arrays(clouds=3), arrays(clouds=2)
    make = partial(iter, [first, second])
    for in_memory in (False, True):
        made = cached(tmp_path / "a.h5", make, in_memory=in_memory)
        assert made["label"].tolist() == [0, 1, 2, 0, 1]
        data = made["data"] if in_memory else made["data"][torch.arange(5)].numpy()
        np.testing.assert_array_equal(data, np.concatenate([first["data"], second["data"]]))
    with pytest.raises(ValueError, match=r"in_memory=False reads the clouds from the cache\. Leave cache at True"):
        cached(None, make, in_memory=False)


def test_memory_holds_one_piece_at_a_time(tmp_path):
    """64 pieces of 1 MiB are written; the largest part of the process that numpy ever held is a few of them."""

    def make():
        for _ in range(64):
            yield {"data": np.zeros((1, 1 << 18), np.float32)}

    tracemalloc.start()
    write_h5(tmp_path / "a.h5", make())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20  # 16 MiB are copied at once


def test_a_cache_of_another_version_is_not_read(tmp_path, monkeypatch):
    now = cache_path(tmp_path, "train", [], 1024)
    monkeypatch.setattr(cache, "_FORMAT", 1)
    assert cache_path(tmp_path, "train", [], 1024) != now


def test_of_two_at_once_one_makes_the_cache(tmp_path):
    """Two threads lock a file as two processes do."""
    path, made = tmp_path / "new" / "a.h5", []

    def make():
        made.append(None)
        time.sleep(0.3)
        return [arrays()]

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: cached(path, make), range(2))
    assert len(made) == 1
    assert np.array_equal(first["data"], second["data"])


def test_a_corrupt_cache_is_made_again(tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(b"half a file")
    with pytest.warns(UserWarning, match=r"a.h5 is truncated or not HDF5 .*The cache is made again"):
        cached(path, pieces)
    assert len(read_h5_clouds(path, num_classes=3).points) == 3


def test_a_cache_that_lacks_a_required_array_is_made_again(tmp_path):
    path = tmp_path / "a.h5"
    write_h5(path, pieces())
    with pytest.warns(UserWarning, match=r"a.h5 has no array 'sizes'; it holds \[.*\]. The cache is made again"):
        made = cached(path, lambda: pieces(sizes=np.array([7, 7, 7])), names=("data", "sizes"))
    assert made["sizes"].tolist() == [7, 7, 7]
    again = cached(path, pytest.fail, names=("data", "sizes"))
    assert set(again) == {"data", "sizes"}


def test_a_full_disk_leaves_nothing_behind_and_loses_nothing(tmp_path, monkeypatch):
    class FullDisk(h5py.File):
        def create_dataset(self, name, *shape_and_type):
            if name == "label":
                raise OSError(errno.ENOSPC, "Can't write data")
            return super().create_dataset(name, *shape_and_type)

    path = tmp_path / "folder" / "a.h5"
    monkeypatch.setattr(h5py, "File", FullDisk)
    with pytest.raises(OSError, match=r"Could not write the cache .*a.h5 \(0 MiB\): No space left on device"):
        write_h5(path, pieces())
    assert not any(path.parent.iterdir())
    with pytest.warns(UserWarning, match="No space left on device. The data is used without a cache"):
        assert len(cached(path, pieces)["data"]) == 3
    with pytest.raises(OSError, match=r"No space left on device\. Make room, or set in_memory to true"):
        cached(path, pieces, in_memory=False)
    assert [*path.parent.iterdir()] == [path.with_name("lock")]


def test_interrupted_writing_leaves_no_cache(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    def interrupted():
        yield arrays()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        write_h5(tmp_path / "a.h5", interrupted())
    monkeypatch.setattr(h5py.File, "create_dataset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_h5(tmp_path / "a.h5", pieces())
    assert not any(tmp_path.iterdir())


def test_the_name_of_a_cache_follows_files_and_options(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("1")
    first = cache_path(tmp_path, "train", [file], 1024)
    assert first == cache_path(tmp_path, "train", [file], 1024)
    assert first.parent == tmp_path / ".pcea"
    file.write_text("12")
    assert len({first, *(cache_path(tmp_path, "train", [file], n) for n in (1024, 512))}) == 3


def test_the_name_of_a_cache_follows_the_buffers_of_gltf(tmp_path):
    file, buffer = tmp_path / "mug" / "a.gltf", tmp_path / "mug" / "a 1.bin"
    file.parent.mkdir()
    file.write_text('{"buffers": [{"uri": "data:,"}, {}, {"uri": "a%201.bin"}]}')
    buffer.write_bytes(b"1")
    first = cache_path(tmp_path, "train", [file])
    buffer.write_bytes(b"12")
    assert cache_path(tmp_path, "train", [file]) != first
    for damaged in ("[]", '{"buffers": [{"uri": "../a.bin"}, 1]}', "{"):
        file.write_text(damaged)
        assert cache_path(tmp_path, "train", [file]) != first


PACKED = {
    "data": np.arange(15, dtype=np.float32).reshape(5, 3),
    "label": np.array([3, 1, 2, 2, 5]),
    "sizes": np.array([2, 3]),
    "category": np.array([1, 0]),
}


def cached_parts(path, pieces=lambda: [PACKED], **options):
    return cached(path, pieces, names=tuple(PACKED), large=("data", "label"), **options)


def overwrite(path, array, *, start):
    """Zeros in the bytes of an array from its element `start` on, where it lies in a file."""
    content, numbers = path.read_bytes(), array.tobytes()
    kept = start * array.itemsize
    assert content.count(numbers) == 1
    path.write_bytes(content.replace(numbers, numbers[:kept] + bytes(len(numbers) - kept)))


@pytest.mark.parametrize("name", PACKED)
def test_a_cache_with_zeros_within_is_made_again(tmp_path, name):
    cached_parts(tmp_path / "a.h5")
    overwrite(tmp_path / "a.h5", PACKED[name], start=0)
    with pytest.warns(UserWarning, match=r"a.h5 is damaged: .* The cache is made again"):
        made = cached_parts(tmp_path / "a.h5")
    np.testing.assert_array_equal(made[name], PACKED[name])
    np.testing.assert_array_equal(cached_parts(tmp_path / "a.h5", pytest.fail)[name], PACKED[name])


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", ["label", "category", "label.crc32"])
def test_a_cache_with_a_short_array_is_made_again(tmp_path, name, in_memory):
    cached_parts(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        short = file[name][:-1]
        del file[name]
        file[name] = short
    with pytest.warns(UserWarning, match=r"a.h5 is damaged: .* The cache is made again"):
        assert len(cached_parts(tmp_path / "a.h5", in_memory=in_memory)["label"]) == 5


def test_damage_is_found_as_a_cloud_is_read(tmp_path):
    data, label = (cached_parts(tmp_path / "a.h5", in_memory=False)[name] for name in ("data", "label"))
    overwrite(tmp_path / "a.h5", PACKED["data"], start=3 * 4)
    some = data.split(torch.tensor([2, 3])).select(torch.tensor([1, 0]))
    np.testing.assert_array_equal(some[torch.tensor([1])], PACKED["data"][:2])
    assert label.renumber(torch.arange(6) + 1)[torch.tensor([1])].tolist() == [3, 3, 6]
    with pytest.raises(ValueError, match=r"^\S*a\.h5 is damaged at byte \d+\. Delete it: it is made anew\.$"):
        some[torch.tensor([0])]


def read(path):
    if "bad" in path.name:
        raise ValueError(f"{path} is bad")
    return Points(torch.tensor([[0.0, 0, 0], [0, 4, 0]]))


def test_unreadable_files_are_counted_and_named():
    files = [Path("a"), *(Path(f"bad{i}") for i in range(12)), Path("b")]
    with pytest.raises(
        ValueError, match=r"^12 of 14 files cannot be read: bad0 is bad; .*bad9 is bad; and 2 more. Rep"
    ):
        join(parse_files(files, range(14), read, description=""))
    arrays = join(parse_files(files, range(14), read, description="", skip_unreadable=True))
    assert arrays["label"].tolist() == [0, 13]
    np.testing.assert_array_equal(arrays["data"], [[[0, -1, 0], [0, 1, 0]]] * 2)  # normalised
    assert len(arrays["skipped"]) == 12
    with pytest.raises(ValueError, match="1 of 1 files cannot be read"):
        join(parse_files([Path("bad")], [0], read, description="", skip_unreadable=True))
    with pytest.raises(ValueError, match="this split has no files"):
        join(parse_files([], [], read, description="Reading"))


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 4 MiB of its own; a cache takes twice its size while it is written."""
    with mounted_disk(tmp_path / "disk", size="4m") as disk:
        yield disk


@pytest.mark.parametrize("megabytes", [1, 1.9, 1.99, 2.5, 3.999, 40])
def test_a_disk_that_really_is_full(small_disk, megabytes):
    """HDF5 ended the process with a segmentation fault when it found out at closing time."""
    code = (
        "import sys; import numpy as np; from pathlib import Path\n"
        "from pcea.datasets.cache import CacheError, write_h5\n"
        "whole = np.zeros(int(float(sys.argv[2]) * 2**20), np.uint8)\n"
        "pieces = ({'data': piece} for piece in np.array_split(whole, 99_991))\n"  # less than a file buffers
        "try: write_h5(Path(sys.argv[1]), pieces)\n"
        "except CacheError as error: print(error)"
    )
    target = small_disk / ".pcea" / "cache.h5"
    done = subprocess.run([sys.executable, "-c", code, target, str(megabytes)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert megabytes > 1.5 or not done.stdout
    assert megabytes < 2 or done.stdout
    if not done.stdout:
        assert [path.name for path in target.parent.iterdir()] == ["cache.h5"]
    else:
        assert "No space left on device" in done.stdout
        assert list(target.parent.iterdir()) == []
