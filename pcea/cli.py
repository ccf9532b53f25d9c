"""The command line: `pcea COMMAND ...`."""

from __future__ import annotations

import io
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pcea.commands.cpu import quick_imports, share_cores, tune_allocator
from pcea.io.configs import config_names, config_path

USAGE = """\
usage: pcea COMMAND [OPTIONS]

  fit        Train. `pcea fit` alone trains EAT on procedural shapes; add `--config modelnet40_eat` for the real thing.
  validate   Measure a trained network on the validation split.
  test       Measure a trained network on the test split, print a table and write a JSON record.
  predict    Name the class of meshes, clouds or images, or of their points or pixels, or find objects in images.
  visualize  Draw what a network attends to, in a window, page or picture: `pcea visualize FILE... --output picture.png`
  export     Turn a trained network into a small weights file, or a graph for ONNX or torch.export.
  download   Fetch a dataset: `pcea download modelnet40 --root data`
  configs    List the configurations that come with pcea.

`--weights` names a trained network everywhere: weights that come with pcea (modelnet40_pointea_files), a weights file,
a checkpoint, or a configuration (its newest run).

`pcea COMMAND --help` shows the options of a command. With PCEA_TRACEBACK=1 in the environment, errors show where they
come from."""

TRAINING = ("fit", "validate", "test")
DEFAULT_CONFIG = "shapes_eat"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        # File names can be in any script, or undecodable: what a console cannot show is escaped, not lost.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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
    warnings.formatwarning = _warning
    try:
        commands[command](rest)
        sys.stdout.flush()
    except BrokenPipeError:
        if os.environ.get("PCEA_TRACEBACK"):
            raise
        # The reader closed the output, as in `pcea predict ... | head`: exit like a program killed by SIGPIPE.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemError as error:
        # What an interruption becomes in compiled code, such as numba's between two loops.
        cause: BaseException | None = error
        while isinstance(cause, SystemError):
            cause = cause.__cause__
        if not isinstance(cause, KeyboardInterrupt):
            raise
        sys.exit(130)
    except Exception as error:
        if not _is_mistake(error):
            raise
        if os.environ.get("PCEA_TRACEBACK"):
            raise
        print(_message(_one_line(error)), file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        # Lightning ends with 1 when it is interrupted and with 0 when it is told to stop: `fit && test` would go on.
        if isinstance(stop.__context__, KeyboardInterrupt):
            sys.exit(130)
        if type(stop).__name__ == "SIGTERMException":
            sys.exit(143)
        raise


def _message(text: str) -> str:
    return f"pcea: error: {text}"


def _is_mistake(error: Exception) -> bool:
    """Whether an error is probably the user's: Lightning has types of its own for wrong options."""
    if isinstance(error, ValueError | OSError | ImportError | ArgumentError | MemoryError):
        return True
    return type(error).__name__ == "MisconfigurationException" or "conditioned on metric" in str(error)


def _one_line(error: Exception) -> str:
    """The message on one line, without jsonargparse's remarks on the types it tried and the value it got."""
    text = str(error).partition("Given value")[0] or type(error).__name__
    noise = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>")
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if not line.strip().startswith(noise)]
    return " ".join(" ".join(lines).split())


def resolve_configs(options: Sequence[str]) -> list[str]:
    """Replace the name after each `--config` (or `-c`) with the path of its YAML."""
    resolved = list(options)
    for i, option in enumerate(resolved):
        if option.startswith("--config="):
            resolved[i] = f"--config={config_path(option.partition('=')[2])}"
        elif i and resolved[i - 1] in ("-c", "--config"):
            resolved[i] = str(config_path(option))
    return resolved


def _warning(message: object, *_: object, **__: object) -> str:
    """A warning in one line, like errors; its place in the code does not help at a command line."""
    return f"pcea: warning: {message}\n"


def _train(command: str, options: list[str]) -> None:
    if not any(o.split("=")[0] in ("-c", "--config") for o in options) and not {"-h", "--help"} & set(options):
        options = ["--config", DEFAULT_CONFIG, *options]
    options = resolve_configs(options)
    _refuse_deep_nulls(options)
    tune_allocator()
    share_cores()
    with quick_imports():
        from pcea.commands.fit import run

    warnings.formatwarning = _warning  # which importing Lightning has replaced
    run(command, options)


def _refuse_deep_nulls(options: Sequence[str]) -> None:
    """Refuse null for an argument of an argument, which jsonargparse 4.53 would take for the text "None".

    Raises:
        ValueError: If there is one.
    """
    for option, following in zip(options, [*options[1:], ""]):
        name, _, value = option.partition("=")
        if name.count(".init_args.") > 1 and (value or following) == "null":
            raise ValueError(f"{name} cannot be set to null here: copy the configuration and write null in it.")


def _predict(options: list[str]) -> None:
    tune_allocator()
    with quick_imports():
        from pcea.commands.predict import OPTIONS, predict

    _call(predict, options, files=True, groups=OPTIONS)


def _visualize(options: list[str]) -> None:
    tune_allocator()
    with quick_imports():
        from pcea.commands.visualize import OPTIONS, visualize

    _call(visualize, options, files=True, groups=OPTIONS)


def _download(options: list[str]) -> None:
    with quick_imports():
        from pcea.commands.download import download

    _call(download, options)


def _export(options: list[str]) -> None:
    with quick_imports():
        from pcea.commands.export import export

    _call(export, options)


def _configs(options: list[str]) -> None:
    if options:
        raise ValueError(f"pcea configs takes no options, got {' '.join(options)}.")
    for name in config_names():
        first = config_path(name).read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:24} {first.lstrip('# ')}")


class _FileName:
    """A file name as it is: for the type Path, jsonargparse would parse it as YAML, which not every name is."""

    def __call__(self, text: str) -> Path:
        return Path(text)

    def __repr__(self) -> str:
        return "Path"  # in the help


def _call(
    function: Callable[..., Any],
    options: list[str],
    *,
    files: bool = False,
    groups: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Parse the options of a plain function by its signature and docstring, and call it.

    Args:
        function: The function. Arguments without a default are positional, those of type bool are switched on by their
            bare option, each repetition of an option adds to a list of text, and a list of paths takes several.
        options: The options.
        files: Whether its first argument is a list of paths, `files`.
        groups: Options that have their own section in the help, by its title.
    """
    import inspect
    import typing

    import docstring_parser
    from jsonargparse import ArgumentParser

    documented = docstring_parser.parse(function.__doc__ or "")
    # Without docstrings, under `python -OO`, there are no help texts.
    helps = {each.arg_name: " ".join((each.description or "").split()) for each in documented.params}
    summary = f"{documented.short_description or ''} {documented.long_description or ''}"
    parser = ArgumentParser(prog=f"pcea {function.__name__}", exit_on_error=False, description=summary)
    hints = typing.get_type_hints(function)
    parameters = dict(inspect.signature(function).parameters)
    if files:
        # By default, jsonargparse would read a list from the given file.
        parser.add_argument("files", nargs="+", type=_FileName(), metavar="FILE", help=helps.pop("files", None))
        del parameters["files"]
    titled = {title: parser.add_argument_group(f"for {title}") for title in groups}
    places = {name: titled[title] for title, names in groups.items() for name in names}
    for name, parameter in parameters.items():
        place: Any = places.get(name, parser)
        if hints[name] is bool:
            place.add_argument(f"--{name}", action="store_true", help=helps.get(name))
        elif hints[name] == list[str] | None:
            place.add_argument(f"--{name}", action="append", default=None, help=helps.get(name))
        elif hints[name] == list[Path] | None:
            place.add_argument(f"--{name}", nargs="+", type=_FileName(), metavar="FILE", help=helps.get(name))
        elif parameter.default is not parameter.empty:
            place.add_argument(f"--{name}", type=hints[name], default=parameter.default, help=helps.get(name))
        elif parameter.kind is parameter.KEYWORD_ONLY:
            place.add_argument(f"--{name}", type=hints[name], required=True, help=helps.get(name))
        else:
            place.add_argument(name, type=hints[name], help=helps.get(name))
    function(**parser.parse_args(options).as_dict())
