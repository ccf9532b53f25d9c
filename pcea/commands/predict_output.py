"""Where `pcea predict` writes: a table of all files, and for some networks a folder of results."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pcea.commands.input_files import Share
from pcea.inference.base import Predictor, check_not_read, digest_of
from pcea.io.atomic import atomic_folder, remove_leftovers
from pcea.io.result_table import ResultTable, check_parquet, name_in_table, write_parquet


class PredictionOutput:
    """What is written for each file: a row in a table, and files in a folder where the network has such results.

    Args:
        predictor: The network.
        path: The folder, or the CSV or Parquet file.
        table: The table. Files that are in it already are skipped.
    """

    def __init__(self, predictor: Predictor, path: Path, table: ResultTable):
        self._predictor, self._path, self.table = predictor, path, table

    def has(self, file: Path) -> bool:
        """Whether a file has a result, or failed."""
        return name_in_table(file) in self.table.files

    def error(self, file: Path) -> str | None:
        """Why a file failed in an earlier run."""
        return self.table.errors.get(name_in_table(file))

    def add(self, file: Path, prediction: Any) -> None:
        """Write a result; its row is in the table after `table.save`."""
        if self._predictor.endings:
            with atomic_folder(self._path) as folder:
                self._predictor.write(folder, file.stem, prediction)
        self.table.add(file, self._predictor.rows(prediction))

    def finish(self) -> str:
        """Write what is made of all results; returns what was written, in words."""
        self._predictor.finish(self.table.path)
        if _is_parquet(self._path):
            write_parquet(self.table.path, self._path, self._predictor.columns)
        if not self._predictor.endings:
            return str(self._path)
        return ", ".join([*(str(self._path / f"<name>{end}") for end in self._predictor.endings), str(self.table.path)])


@contextmanager
def open_output(
    predictor: Predictor,
    path: Path,
    files: Sequence[Path],
    options: Mapping[str, Any],
    *,
    share: Share,
    overwrite: bool,
) -> Iterator[PredictionOutput]:
    """Begin to write results, or go on.

    Args:
        predictor: The network.
        path: A folder, created if missing; or a CSV or Parquet file if the results are a table.
        files: All inputs, those of other processes too.
        options: The options of `predict`.
        share: Which part of the inputs is this process's; each one has a table of its own.
        overwrite: Start anew.

    Raises:
        ValueError: If results would overwrite one another or an input, or the output is of the wrong kind or has
            results of other options.
        OSError: If it cannot be written.
    """
    predictor.check_output(path, files)
    if predictor.endings:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"Cannot write to {path}: {error.strerror or error}.") from error
        remove_leftovers(path)
        table = share.mark(path / "predictions.csv")
    else:
        path = share.mark(path)
        table = path.with_suffix(".csv") if _is_parquet(path) else path
    for written in {path, table}:
        check_not_read(written, files)
    if _is_parquet(path):
        check_parquet()
    with ResultTable(
        table,
        predictor.columns,
        num_rows=predictor.num_rows(**options),
        settings=describe_settings(predictor, options, files),
        overwrite=overwrite,
    ) as opened:
        if predictor.endings:
            _check_kept(predictor, path, opened, files)
            if not opened.files and not overwrite:
                _check_nothing_lost(predictor, path, share.of(files))
        yield PredictionOutput(predictor, path, opened)


def _check_kept(predictor: Predictor, folder: Path, table: ResultTable, files: Sequence[Path]) -> None:
    """Refuse to write over the results of other files, and to keep results that are gone.

    Raises:
        ValueError: If one of `files` has the name of another file in the table, or results in the table are gone.
    """
    kept = {Path(name).stem: name for name in table.files if name not in table.errors}
    for file in files:
        other = kept.get(file.stem)
        if other is None:
            continue
        if other != name_in_table(file):
            raise ValueError(
                f"{file} would be written over the results of {other} in {folder}. Give another --output folder."
            )
        gone = [file.stem + end for end in predictor.endings if not (folder / (file.stem + end)).is_file()]
        if gone:
            raise ValueError(f"{folder / gone[0]} is gone, but {table.path} names it: --overwrite makes all anew.")


def _check_nothing_lost(predictor: Predictor, folder: Path, files: Sequence[Path]) -> None:
    """Refuse to write over files of which no table says that they are results.

    Raises:
        ValueError: If there are some.
    """
    there = [path for file in files for end in predictor.endings if (path := folder / (file.stem + end)).exists()]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ValueError(
            f"{there[0]}{more} would be written over, and {folder} has no table of results that names it: give another "
            "--output folder, or --overwrite."
        )


def describe_settings(predictor: Predictor, options: Mapping[str, Any], files: Sequence[Path] = ()) -> str:
    """What results depend on besides the names of files: a digest of the network, and all options of `predict`.

    Also the folder to which names are relative, if any is.
    """
    settings = {"weights": predictor.digest()}
    for name, parameter in inspect.signature(predictor.predict).parameters.items():
        value = options.get(name, parameter.default)
        if name == "like" and value is not None:
            value = digest_of(*(part if isinstance(part, Tensor) else str(part) for part in value))
        if name != "source" and value is not None:
            settings[name] = value
    if not all(file.is_absolute() for file in files):
        settings["folder"] = str(Path.cwd())
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"
