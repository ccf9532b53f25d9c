"""The input files of a command: folders, patterns and lists, and the share of one process of several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from pcea.io.text import read_names
from pcea.io.walk import walk


def find_files(arguments: Iterable[str | Path], *, endings: Sequence[str], output: Path | None = None) -> list[Path]:
    """All files that arguments of a command name, in this order, each once.

    Args:
        arguments: Files; folders, of which all files with known endings are taken, those of inner and linked folders
            too, in alphabetical order; patterns such as `scans/**/*.stl`; and `@list.txt`, a list of all these, one per
            line, relative to the current folder like the arguments themselves. Hidden files in folders are left out.
        endings: The known endings, in lower case, such as `.off`.
        output: Where the command writes: results of an earlier run are not taken from folders.

    Raises:
        FileNotFoundError: If some are missing, or there are none at all.
    """
    arguments, missing = list(arguments), []
    found: dict[Path, Path] = {}
    for path in _expand(arguments):
        if path.is_dir():
            for file in _files_in(path, endings, output):
                found.setdefault(_absolute(file), file)
        elif path.is_file():
            found.setdefault(_absolute(path), path)
        else:
            missing.append(str(path))
    if missing:
        raise FileNotFoundError(f"No such file: {', '.join(missing)}.")
    if not found:
        named = ", ".join(map(str, arguments))
        raise FileNotFoundError(f"Nothing to read in {named}: no file ends in {' '.join(sorted(endings))}.")
    return list(found.values())


def _expand(arguments: Iterable[str | Path]) -> Iterator[Path]:
    for argument in arguments:
        text = str(argument)
        if os.path.lexists(text):
            yield Path(text)
        elif text.startswith("@"):
            yield from _expand(read_names(Path(text[1:])))
        elif has_magic(text):
            yield from map(Path, sorted(glob(text, recursive=True)) or [text])  # noqa: PTH207
        else:
            yield Path(text)


def _files_in(folder: Path, endings: Sequence[str], output: Path | None) -> Iterator[Path]:
    written = None if output is None else _absolute(output)
    for here, names in walk(folder, without=output):
        for name in names:
            if name[0] != "." and name.lower().endswith(tuple(endings)):
                is_output = written is not None and _absolute(here) == written.parent and _is_part(name, written)
                if not is_output:
                    yield here / name


def _absolute(path: Path) -> Path:
    """A path without `..`. Links stay: two links to one file are two files."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _is_part(name: str, output: Path) -> bool:
    """Whether a file is an output, its table, or that of one process of several."""
    stem, _, ending = name.rpartition(".")
    is_table = f".{ending}" in (".csv", output.suffix)
    return is_table and (stem == output.stem or stem.startswith(f"{output.stem}.rank"))


class Share(NamedTuple):
    """The share of one process of several in the files.

    Attributes:
        rank: Number of the process, counted from 0.
        ranks: How many there are.
    """

    rank: int = 0
    ranks: int = 1

    @classmethod
    def of_environment(cls) -> Share:
        """The share that torchrun (RANK of WORLD_SIZE), a SLURM job array, or both give to this process."""
        rank, ranks = _number("RANK", 0), _number("WORLD_SIZE", 1)
        tasks, step = _number("SLURM_ARRAY_TASK_COUNT", 1), _number("SLURM_ARRAY_TASK_STEP", 1)
        task = (_number("SLURM_ARRAY_TASK_ID", 0) - _number("SLURM_ARRAY_TASK_MIN", 0)) // step
        share = cls(task * ranks + rank, tasks * ranks)
        if not 0 <= share.rank < share.ranks:
            raise ValueError(
                f"The environment names process {share.rank} of {share.ranks}, counted from 0. RANK goes with "
                "WORLD_SIZE, and a SLURM array must have no gaps, as --array=0-7."
            )
        return share

    def of(self, files: Sequence[Path]) -> list[Path]:
        """The files of this process."""
        return list(files[self.rank :: self.ranks])

    def mark(self, path: Path) -> Path:
        """Where this process writes what one alone would write to `path`: out.csv becomes out.rank0of4.csv."""
        if self.ranks == 1:
            return path
        return path.with_name(f"{path.stem}.rank{self.rank}of{self.ranks}{path.suffix}")


def _number(variable: str, default: int) -> int:
    return int(os.environ.get(variable) or default)
