"""Fetch public datasets: several mirrors, resumed where interrupted, verified, unpacked as a whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import lzma
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pcea.io.archives import check_archive
from pcea.io.atomic import atomic_file, remove_leftovers, temporary_folder

# Seconds without an answer, or with less than the lowest rate (bytes per second), before the next mirror is tried.
TIMEOUT = 20
LOWEST_RATE = 1024
# Bytes of an archive whose size is not known; the largest that is known has 13 GB.
_LARGEST = 50_000_000_000
_CHUNK = 1 << 20
_ATTEMPTS = 5


class Archive(NamedTuple):
    """A zip file on the internet.

    Attributes:
        urls: Mirrors with the same file, the official one first.
        folder: The folder that the zip file holds.
        files: Some of what that folder holds, for those who have to put it there by hand.
        checksum: `sha256:...` or `md5:...` as published (see data/README.md), or None where none is known.
        size: Bytes, or None.
        terms: What the owners ask of users.
    """

    urls: tuple[str, ...]
    folder: str
    files: str
    checksum: str | None = None
    size: int | None = None
    terms: str = ""


_STANFORD = "https://shapenet.cs.stanford.edu/media"
_HUGGING_FACE = "https://huggingface.co/datasets"
_MODELNET_TERMS = "ModelNet: for academic research; the CAD models belong to their authors."
_SHAPENET_TERMS = "ShapeNet: for non-commercial research and education, under the terms on shapenet.org."

ARCHIVES = {
    "modelnet40": Archive(
        urls=(
            f"{_STANFORD}/modelnet40_ply_hdf5_2048.zip",
            f"{_HUGGING_FACE}/Msun/modelnet40/resolve/main/modelnet40_ply_hdf5_2048.zip",
            "https://github.com/ma-xu/pointMLP-pytorch/releases/download/Modenet40_dataset/modelnet40_ply_hdf5_2048.zip",
        ),
        folder="modelnet40_ply_hdf5_2048",
        files="train_files.txt, test_files.txt, shape_names.txt, ply_data_*.h5",
        checksum="sha256:07670e237db72ece0f723b9abb571534c9ad655a6456b389646587dc72bb8bae",
        size=435212151,
        terms=_MODELNET_TERMS,
    ),
    "modelnet40_normals": Archive(
        urls=(
            f"{_STANFORD}/modelnet40_normal_resampled.zip",
            f"{_HUGGING_FACE}/cminst/ModelNet40/resolve/main/modelnet40_normal_resampled.zip",
        ),
        folder="modelnet40_normal_resampled",
        files="modelnet40_train.txt, modelnet40_test.txt, modelnet40_shape_names.txt, <class>/*.txt",
        checksum="sha256:d64e9c5cfc479bac3260b164ae3c75ba83e94a1d216fbcd3f59ce2a9686d3762",
        terms=_MODELNET_TERMS,
    ),
    "modelnet40_off": Archive(
        urls=("http://modelnet.cs.princeton.edu/ModelNet40.zip", "https://modelnet.cs.princeton.edu/ModelNet40.zip"),
        folder="ModelNet40",
        files="<class>/train/*.off, <class>/test/*.off",
        checksum="sha256:42dc3e656932e387f554e25a4eb2cc0e1a1bd3ab54606e2a9eae444c60e536ac",
        size=2039180837,
        terms=_MODELNET_TERMS,
    ),
    "modelnet10": Archive(
        urls=(
            "http://vision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
            "http://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
            "http://3dshapenets.cs.princeton.edu/ModelNet10.zip",
            f"{_HUGGING_FACE}/Msun/modelnet10/resolve/main/ModelNet10.zip",
        ),
        folder="ModelNet10",
        files="<class>/train/*.off, <class>/test/*.off",
        checksum="sha256:9d8679435fc07d1d26f13009878db164a7aa8ea5e7ea3c8880e42794b7307d51",
        terms=_MODELNET_TERMS,
    ),
    "scanobjectnn": Archive(
        urls=(
            "https://hkust-vgd.ust.hk/scanobjectnn/h5_files.zip",
            "http://hkust-vgd.ust.hk/scanobjectnn/h5_files.zip",
        ),
        folder="h5_files",
        files="main_split/*.h5, main_split_nobg/*.h5",
        checksum="md5:36876af479f9ad39abad5ebcd89038dd",
        size=13099259542,
        terms="ScanObjectNN: agree to the terms of use first, by the form on hkust-vgd.github.io/scanobjectnn.",
    ),
    "shapenetpart": Archive(
        urls=(
            f"{_STANFORD}/shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
            f"{_HUGGING_FACE}/cminst/ShapeNet/resolve/main/shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
            "https://omnomnom.vision.rwth-aachen.de/data/point2vec/data/"
            "shapenetcore_partanno_segmentation_benchmark_v0_normal.zip",
        ),
        folder="shapenetcore_partanno_segmentation_benchmark_v0_normal",
        files="synsetoffset2category.txt, train_test_split/*.json, <category>/*.txt",
        checksum="sha256:0e26411700bae2da38ee8ecc719ba4db2e6e0133486e258665952ad5dfced0fe",
        terms=_SHAPENET_TERMS,
    ),
    "shapenetpart_h5": Archive(
        urls=(f"{_STANFORD}/shapenet_part_seg_hdf5_data.zip",),
        folder="hdf5_data",
        files="train_hdf5_file_list.txt, test_hdf5_file_list.txt, ply_data_*.h5",
        terms=_SHAPENET_TERMS,
    ),
}


def download(name: str, *, root: str | Path = "data") -> Path:
    """Download and unpack a dataset under `root`; what is there already is left alone.

    An interrupted download goes on where it stopped. A zip file that you put under `root` is unpacked and kept.

    Args:
        name: One of `ARCHIVES`.
        root: The folder for datasets.

    Returns:
        The dataset's folder, `root/<folder>`.

    Raises:
        ValueError: If there is no such dataset, or the zip file under `root` is not the one that was published.
        ConnectionError: If no mirror gives the file. The message says where to put which files.
    """
    if name not in ARCHIVES:
        raise ValueError(f"No dataset {name!r} to download; there are {', '.join(ARCHIVES)}.")
    archive, root = ARCHIVES[name], Path(root)
    folder, path = root / archive.folder, root / _file_name(archive.urls[0])
    if folder.exists():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    was_there = path.exists()
    digest = _verify(path, archive) if was_there else _fetch_from_mirrors(name, archive, path)
    _unpack(path, archive.folder, root)
    with atomic_file(root / f"{path.name}.sha256") as checksum:
        checksum.write_text(f"{digest}  {path.name}\n")
    if not was_there:
        path.unlink()
    return folder


def _file_name(url: str) -> str:
    return Path(urlsplit(url).path).name


def _fetch_from_mirrors(name: str, archive: Archive, path: Path) -> str:
    """Download to `path` and return the sha256."""
    from rich.console import Console

    Console(stderr=True).print(archive.terms, highlight=False)
    part = path.with_name(f"{path.name}.part")
    if part.is_symlink() or (part.exists() and not part.is_file()):
        raise FileExistsError(f"{part} is not a plain file, and what it stands for is not overwritten. Remove it.")
    failures = []
    for url in archive.urls:
        try:
            digest = _fetch_verified(url, part, archive)
        except (OSError, HTTPException, ValueError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            reason = getattr(error, "reason", None) or (str(error).splitlines() or [type(error).__name__])[0]
            failures.append(f"{urlsplit(url).netloc} ({reason})")
        else:
            part.replace(path)
            return digest
    raise ConnectionError(
        f"Could not download {name} from {'; '.join(failures)}. Try again later, or fetch {path.name} elsewhere and "
        f"put it at {path}, or its files ({archive.files}) into {path.parent / archive.folder}. See data/README.md."
    )


def _fetch_verified(url: str, part: Path, archive: Archive) -> str:
    """Complete `part` and return its sha256. What turns out not to be the archive is deleted."""
    was_begun = part.exists()
    try:
        _fetch(url, part, archive.size)
        return _verify(part, archive)
    except ValueError:
        part.unlink()
        if not was_begun:
            raise
    return _fetch_verified(url, part, archive)  # the beginning was wrong, not necessarily the mirror


def _fetch(url: str, part: Path, size: int | None) -> None:
    """Download to `part`, going on where it ends. A connection that breaks off is taken up again a few times.

    Raises:
        OSError: If the mirror does not send the file. What is there of it stays.
        ValueError: If it sends more than the file has.
    """
    for _ in range(_ATTEMPTS):
        start = part.stat().st_size if part.exists() else 0
        if start and start == size:
            return
        if _fetch_once(url, part, start, size):
            return
        if part.stat().st_size <= start:
            break
    raise ConnectionError(f"broke off after {part.stat().st_size} bytes")


def _fetch_once(url: str, part: Path, start: int, size: int | None) -> bool:
    """True when the server has sent all that it announced."""
    from rich.progress import Progress

    headers = {"User-Agent": "pcea", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416 or not start:
                raise ConnectionError(f"answered {error.code} {error.reason}") from error
            return True  # nothing lies behind what we have; the check that follows tells whether it is the file
    with response, Progress(transient=True) as progress:
        start = _check_answer(response, start)
        total = None if response.length is None else start + response.length
        if size is not None and total not in (None, size):
            raise ConnectionError(f"announces {total} bytes instead of {size}")
        task = progress.add_task(_file_name(url), total=total or size, completed=start)
        with part.open("ab" if start else "wb") as file:
            received, window, since = start, 0, time.monotonic()
            try:
                while chunk := response.read1(_CHUNK):
                    received += len(chunk)
                    if received > (size or _LARGEST):
                        raise ValueError(f"sends more than {size or _LARGEST} bytes")
                    file.write(chunk)
                    progress.advance(task, len(chunk))
                    window += len(chunk)
                    if (seconds := time.monotonic() - since) >= TIMEOUT:
                        if window < LOWEST_RATE * seconds:
                            raise OSError(f"sent only {window} bytes in {seconds:.0f} seconds")
                        window, since = 0, time.monotonic()
            except (HTTPException, ConnectionError, TimeoutError):
                return False
    return total is None or received == total


def _check_answer(response: HTTPResponse, start: int) -> int:
    """Where in the file an answer begins: at `start`, or at 0 if the server cannot go on there.

    Raises:
        ConnectionError: If it is neither the file nor the rest of it.
    """
    if not isinstance(response, HTTPResponse):
        raise ConnectionError("sends on to another protocol than HTTP")
    if "html" in response.headers.get("Content-Type", ""):
        raise ConnectionError("sent a web page instead of the file")
    if response.status == 200:
        return 0
    content_range = response.headers.get("Content-Range", "")
    if response.status == 206 and start and content_range.startswith(f"bytes {start}-"):
        return start
    came = f"{response.status} {response.reason}" + (f" with {content_range}" if content_range else "")
    raise ConnectionError(f"answered {came}, not 200 with the file" + (f" or 206 from byte {start}" if start else ""))


def _verify(path: Path, archive: Archive) -> str:
    """The file's sha256. Where no checksum is published, the checksums inside the zip file are tried.

    Raises:
        ValueError: If the file is not the archive.
    """
    kind, _, expected = (archive.checksum or "sha256:").partition(":")
    digests = {"sha256": hashlib.sha256(), kind: hashlib.new(kind)}
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    problem = None
    if archive.size is not None and path.stat().st_size != archive.size:
        problem = f"{path.stat().st_size} bytes instead of {archive.size}"
    elif expected and digests[kind].hexdigest() != expected:
        problem = f"wrong {kind} checksum {digests[kind].hexdigest()}"
    else:
        problem = _zip_problem(path, archive.folder, read_all=not expected)
    if problem:
        raise ValueError(f"{path} is not the archive that was published: {problem}")
    return digests["sha256"].hexdigest()


def _zip_problem(path: Path, folder: str, *, read_all: bool) -> str | None:
    """Why a file cannot be unpacked, or None; `read_all` tries the checksum of each member."""
    try:
        with zipfile.ZipFile(path) as file:
            check_archive(file, path)
            for member in file.infolist():
                if not _is_inside(member.filename):
                    return f"it holds the unsafe path {member.filename!r}"
                if stat.S_ISLNK(member.external_attr >> 16):
                    return f"it holds the symbolic link {member.filename!r}"
                if member.flag_bits & 1:
                    return f"{member.filename} is encrypted"
            if not any(name.startswith(f"{folder}/") for name in file.namelist()):
                return f"it holds no folder {folder}"
            broken = file.testzip() if read_all else None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, NotImplementedError) as error:
        return f"not a whole zip file ({error})"
    except ValueError as error:
        return str(error)
    return f"{broken} is damaged" if broken else None


def _is_inside(name: str) -> bool:
    """Whether a member stays in the folder that a zip file is unpacked into, on Windows too."""
    parts = name.replace("\\", "/").split("/")
    return bool(parts[0]) and ".." not in parts and ":" not in parts[0]


def _unpack(path: Path, folder: str, root: Path) -> None:
    """Unpack into a temporary folder, then rename, so that `root/folder` is whole or absent."""
    with temporary_folder(root) as name, zipfile.ZipFile(path) as file:
        file.extractall(Path(name))
        (Path(name) / folder).rename(root / folder)
