"""The command line: `pcea COMMAND ...`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pcea.commands.cpu import tune_allocator
from pcea.io.configs import config_names, config_path

USAGE = """\
usage: pcea COMMAND [OPTIONS]

  fit        Train. `pcea fit` alone trains EAT on procedural shapes; `pcea fit --config modelnet40_eat` the real thing.
  validate   Measure a checkpoint on the validation split.
  test       Measure a checkpoint on the test split, print a table and write a JSON record.
  predict    Name the class of meshes, clouds, pictures, or each point or pixel, or find objects: `pcea predict FILE...`
  download   Fetch a dataset: `pcea download modelnet40 --root data`
  visualize  Draw what a network attends to, in a window or a picture: `pcea visualize FILE... --output picture.png`
  export     Turn a checkpoint into a small weights file for `predict` and Python.
  configs    List the configurations that come with pcea.

`pcea COMMAND --help` shows the options of a command."""

TRAINING = ("fit", "validate", "test")
DEFAULT_CONFIG = "shapes_eat"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    command, rest = arguments[0], arguments[1:]
    commands: dict[str, Callable[[list[str]], None]] = {
        **dict.fromkeys(TRAINING, lambda options: _train(command, options)),
        "predict": _predict,
        "visualize": _visualize,
        "download": _download,
        "export": _export,
        "configs": _configs,
    }
    if command not in commands:
        print(_message(f"no command {command!r}; there are {', '.join(commands)}."), file=sys.stderr)
        sys.exit(2)
    try:
        commands[command](rest)
    except (ValueError, OSError, ImportError, ArgumentError) as error:
        if os.environ.get("PCEA_TRACEBACK"):
            raise
        print(_message(_one_line(error)), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _message(text: str) -> str:
    return f"pcea: error: {text}"


def _one_line(error: Exception) -> str:
    """The message on one line, without what jsonargparse says of the types that it tried and the value it was given."""
    text = str(error).partition("Given value")[0]
    noise = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>")
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if not line.strip().startswith(noise)]
    return " ".join(" ".join(lines).split())


def resolve_configs(options: Sequence[str]) -> list[str]:
    """Replace the name after each `--config` (or `-c`) by the path of its YAML."""
    resolved = list(options)
    for i, option in enumerate(resolved):
        if option.startswith("--config="):
            resolved[i] = f"--config={config_path(option.partition('=')[2])}"
        elif i and resolved[i - 1] in ("-c", "--config"):
            resolved[i] = str(config_path(option))
    return resolved


def _train(command: str, options: list[str]) -> None:
    if not any(o.split("=")[0] in ("-c", "--config") for o in options) and not {"-h", "--help"} & set(options):
        options = ["--config", DEFAULT_CONFIG, *options]
    options = resolve_configs(options)
    tune_allocator()
    from pcea.commands.fit import run

    run(command, options)


def _predict(options: list[str]) -> None:
    tune_allocator()
    from pcea.commands.predict import predict

    _call(predict, options, files="files")


def _visualize(options: list[str]) -> None:
    tune_allocator()
    from pcea.commands.visualize import visualize

    _call(visualize, options, files="files", flags=("grid",))


def _download(options: list[str]) -> None:
    from pcea.commands.download import download

    _call(download, options)


def _export(options: list[str]) -> None:
    from pcea.commands.fit import export

    _call(export, options)


def _configs(options: list[str]) -> None:
    if options:
        raise ValueError(f"pcea configs takes no options, got {' '.join(options)}.")
    for name in config_names():
        first = config_path(name).read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:24} {first.lstrip('# ')}")


def _call(function: Callable[..., Any], options: list[str], *, files: str = "", flags: Sequence[str] = ()) -> None:
    """Parse the options of a plain function by its signature and docstring.

    Args:
        function: The function.
        options: The options.
        files: Name of its argument that is a list of paths.
        flags: Names of its arguments that are switched on by their option alone.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"pcea {function.__name__}", exit_on_error=False)
    if files:
        # Left to itself, jsonargparse reads a list from the file that is given.
        parser.add_argument(files, nargs="+", type=Path, metavar="FILE", help="Mesh, cloud or picture files.")
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true", help=_help(function, flag))
    parser.add_function_arguments(function, as_positional=True, skip={files, *flags})
    function(**parser.parse_args(options).as_dict())


def _help(function: Callable[..., Any], name: str) -> str:
    """What a function's docstring says of an argument, its first line."""
    return (function.__doc__ or "").partition(f"        {name}: ")[2].partition("\n")[0]
