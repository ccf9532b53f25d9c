"""The folders below a folder, linked ones too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def walk(folder: Path, *, without: Path | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from `folder` down, in alphabetical order, with the sorted names of its files.

    Links to folders are followed, but each folder comes once, if possible by its own name, and none above `folder`:
    links that form a loop come to an end. Hidden folders are left out, and so is the folder `without`.
    """
    if not folder.is_dir():
        return
    seen = {_identity(above) for above in folder.resolve().parents}
    if without is not None and without.is_dir() and not without.samefile(folder):
        seen.add(_identity(without))
    found: list[tuple[Path, list[str]]] = []
    waiting = [folder]  # and links, which wait for the folders that are there themselves
    for start in waiting:
        for root, folders, names in os.walk(start):
            here = Path(root)
            if _identity(here) in seen:
                folders.clear()
                continue
            seen.add(_identity(here))
            found.append((here, sorted(names)))
            shown = [name for name in sorted(folders) if name[0] != "."]
            folders[:] = [name for name in shown if not (here / name).is_symlink()]
            waiting += [here / name for name in shown if name not in folders]
    yield from sorted(found, key=lambda item: item[0].parts)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
