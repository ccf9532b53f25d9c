"""Arrays that stay in their HDF5 file and are read a few clouds at a time."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcea.io.hdf5 import open_h5


class StoredArray:
    """An array of T rows in an HDF5 file, of which single clouds are read; a cloud is one row or several in succession.

    The rows lie in the file one after the other, so that a cloud is read at once, by its place in the file. The file
    is opened for every batch, which takes microseconds: worker processes share no open file.

    Args:
        path: The file.
        offset: Where the first row begins, bytes.
        dtype: Type of the numbers.
        row_shape: Shape of one row.
        starts: First row of each cloud, (L,) int64.
        sizes: Rows of each cloud, (L,) int64.
        lookup: What stands for each number in the file, where another numbering of classes is wanted.
        checksums: CRC-32 of the bytes of each cloud in the file, (L,) int64; None if they are not known.
    """

    def __init__(
        self,
        path: Path,
        offset: int,
        dtype: np.dtype[Any],
        row_shape: tuple[int, ...],
        starts: Tensor,
        sizes: Tensor,
        lookup: Tensor | None = None,
        checksums: Tensor | None = None,
    ):
        self.path, self.offset, self.dtype, self.row_shape = path, offset, dtype, row_shape
        self.starts, self.sizes, self.lookup, self.checksums = starts, sizes, lookup, checksums

    def __len__(self) -> int:
        return int(self.sizes.sum())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all clouds, one after the other."""
        return (len(self), *self.row_shape)

    @property
    def ndim(self) -> int:
        """Number of its dimensions."""
        return 1 + len(self.row_shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __getitem__(self, index: Tensor) -> Tensor:
        """The rows of the clouds at `index`, (B,), one cloud after the other, as a tensor in memory.

        Raises:
            ValueError: If the file is gone or shorter than it was, or the bytes of a cloud have another checksum.
        """
        starts, sizes = self.starts[index], self.sizes[index]
        checksums = None if self.checksums is None else self.checksums[index]
        rows = torch.empty((int(sizes.sum()), *self.row_shape), dtype=_torch_dtype(self.dtype))
        if rows.numel():
            self._read_into(rows, starts, sizes, checksums)
        return rows if self.lookup is None else self.lookup[rows]

    def split(self, sizes: Tensor) -> StoredArray:
        """The same rows in clouds of these sizes, (L,) int64.

        Raises:
            ValueError: If the sizes are not positive or not those of all rows.
        """
        if int(sizes.sum()) != len(self) or (len(sizes) and int(sizes.min()) < 1):
            raise ValueError(
                f"{self.path}: sizes must be positive and sum to {len(self)} rows, got {int(sizes.sum())}."
            )
        if torch.equal(sizes, self.sizes):
            return self
        return self._with(sizes.cumsum(0) - sizes, sizes, self.lookup, None)

    def select(self, indices: Tensor) -> StoredArray:
        """The clouds at `indices`, (L',) int64; nothing is read."""
        checksums = None if self.checksums is None else self.checksums[indices]
        return self._with(self.starts[indices], self.sizes[indices], self.lookup, checksums)

    def renumber(self, order: Tensor) -> StoredArray:
        """The same clouds with `order[label]` in place of every label."""
        lookup = order if self.lookup is None else order[self.lookup]
        return self._with(self.starts, self.sizes, lookup, self.checksums)

    def with_checksums(self, checksums: Tensor) -> StoredArray:
        """The same clouds with the checksums of their bytes, (L,) int64, which are compared as they are read."""
        return self._with(self.starts, self.sizes, self.lookup, checksums)

    def _with(self, starts: Tensor, sizes: Tensor, lookup: Tensor | None, checksums: Tensor | None) -> StoredArray:
        return StoredArray(self.path, self.offset, self.dtype, self.row_shape, starts, sizes, lookup, checksums)

    def _read_into(self, rows: Tensor, starts: Tensor, sizes: Tensor, checksums: Tensor | None) -> None:
        row_bytes = self.dtype.itemsize * int(np.prod(self.row_shape))
        memory = memoryview(rows.numpy()).cast("B")  # type: ignore[arg-type]
        offsets, lengths = self.offset + starts * row_bytes, sizes * row_bytes
        places = lengths.cumsum(0) - lengths
        expected = [None] * len(starts) if checksums is None else checksums.tolist()
        parts = sorted(zip(offsets.tolist(), lengths.tolist(), places.tolist(), expected))  # in the order of the disk
        try:
            with self.path.open("rb", buffering=0) as file:
                if hasattr(os, "posix_fadvise"):  # the disk reads all clouds at once, and nothing beyond them
                    for offset, length, *_ in parts:
                        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)
                for offset, length, place, checksum in parts:
                    file.seek(offset)
                    part = memory[place : place + length]
                    if file.readinto(part) != length:
                        raise ValueError(f"{self.path} is shorter than it was. Start again: it is made anew.")
                    if checksum is not None and zlib.crc32(part) != checksum:
                        raise ValueError(f"{self.path} is damaged at byte {offset}. Delete it: it is made anew.")
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read any more ({error.strerror}). Start again.") from error


Array = Tensor | StoredArray
"""An array of clouds, in memory or in a file."""


def stored_h5(path: Path, names: Sequence[str]) -> dict[str, StoredArray]:
    """The named arrays of an HDF5 file, to be read later; each of their rows is a cloud.

    Args:
        path: The file.
        names: Arrays of its root group.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `read_h5`, or if the rows of an array do not lie one after the other (chunks, compression).
    """
    with open_h5(path, required=names) as datasets:
        arrays = {}
        for name, dataset in datasets.items():
            offset = dataset.id.get_offset()
            if (offset is None and dataset.size) or not dataset.dtype.isnative:
                raise ValueError(f"{path}: {name!r} must be stored without chunks, as numbers of this machine.")
            if (offset or 0) + dataset.nbytes > path.stat().st_size:
                raise ValueError(f"{path} is truncated: {name!r} is not complete.")
            clouds = torch.arange(len(dataset))
            arrays[name] = StoredArray(
                path, offset or 0, dataset.dtype, dataset.shape[1:], clouds, torch.ones_like(clouds)
            )
        return arrays


def select(array: Array, indices: Tensor) -> Array:
    """The clouds at `indices` of an array that has a row for each; nothing is read from a file."""
    return array[indices] if isinstance(array, Tensor) else array.select(indices)


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
