"""A folder of results, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def check_output(folder: Path, files: Sequence[Path], *, endings: Sequence[str]) -> None:
    """Refuse an output folder in which results would overwrite one another or an input.

    Args:
        folder: The folder.
        files: The inputs.
        endings: What is written for each, after the name without suffix.

    Raises:
        ValueError: If they would, or `folder` is a file or has the name of a CSV file.
    """
    if folder.is_file() or folder.suffix.lower() == ".csv":
        raise ValueError(
            f"--output {folder}: a network that labels points or pixels writes a folder, with {len(endings)} files for "
            "each."
        )
    sources: dict[str, Path] = {}
    for file in files:
        for name in (file.stem + ending for ending in endings):
            if name in sources:
                raise ValueError(
                    f"{sources[name]} and {file} would both be written to {folder / name}. "
                    "Rename one, or predict them into two folders."
                )
            sources[name] = file
    for file in files:
        if file.name in sources and (folder / file.name).resolve() == file.resolve():
            raise ValueError(f"The result would overwrite {file}. Give another --output folder.")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Make a folder, and in it a temporary one; its files move to `folder` at the end if nothing failed.

    Raises:
        OSError: If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".pcea_", dir=folder) as temporary:
            yield Path(temporary)
            for file in sorted(Path(temporary).iterdir()):
                file.replace(folder / file.name)
    except OSError as error:
        raise OSError(f"Cannot write to {folder}: {error.strerror or error}.") from error
