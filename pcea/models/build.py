"""Build a network from its description. A file alone cannot make pcea import anything outside pcea."""

from __future__ import annotations

import importlib
import inspect
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from pcea.io.checkpoints import read_network
from pcea.io.description import NetworkDescription, StoredNetwork, is_part, without_weights

Network = TypeVar("Network", bound=nn.Module)

# Where networks and their parts are defined. A file can name nothing elsewhere in pcea.
_MODULES = ("pcea.models", "pcea.nn")

# Builders list their blocks before they make one: 10 ** 9 would fill the memory.
_MOST_BLOCKS = 10_000

# What wrong arguments may raise.
_BUILDING_ERRORS = (
    TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RuntimeError, AssertionError,
)  # fmt: skip


def build_network(stored: StoredNetwork, where: str, *, packages: Sequence[str] = ()) -> nn.Module:
    """Build the network of a checkpoint or weights file, with its weights, in evaluation mode.

    The builder and the parts among its arguments must be networks and layers of pcea, or come from a package that the
    user names. This is checked for all of them, at every depth, before anything is imported; and the sizes of the
    weights are compared with the network's before memory is allocated for it.

    Args:
        stored: Description and weights.
        where: The file that they come from, for messages.
        packages: Names of top-level packages whose networks may be imported as well.

    Raises:
        ValueError: If the description names anything else, or does not fit the weights.
    """
    description, state = stored
    check_paths(description, where, packages=packages)
    builder = _resolve(description.builder, where)
    if _is_ours(description.builder):
        with torch.device("meta"), _Unfilled(), _at_most(2 * len(state) + 100):
            _check_shapes(_call(builder, description, where), state, where)
    with torch.random.fork_rng(devices=[]):  # the first weights, which are replaced, are drawn
        network = _call(builder, description, where)
    if torch.get_default_dtype() == torch.float64:  # clouds and images are in single precision nevertheless
        network.float()
    load_state(network, state, where)
    return network.eval()


class _Unfilled(TorchFunctionMode):
    """Leaves out what fills weights at random: those of the meta device have no values.

    There torch would import its compiler to do nothing, which takes more than a second.
    """

    def __torch_function__(self, func: Callable[..., Any], _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def _at_most(most: int) -> Iterator[None]:
    """Stop the building of networks with more parameters, such as those of 10 ** 9 blocks, which nothing would end.

    Raises:
        ValueError: If more than `most` are registered meanwhile. Parts that are built and replaced count too.
    """
    count, thread = 0, threading.get_ident()

    def register(*_: object) -> None:
        nonlocal count
        if threading.get_ident() != thread:  # the hook is of the whole process
            return
        count += 1
        if count > most:
            raise ValueError("it has far more parameters than the file has weights.")

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def load_state(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load the weights of a file into a network.

    Raises:
        ValueError: If they belong to another network, are not finite, or are numbers of another kind.
    """
    _check_shapes(network, state, where)
    own = network.state_dict()
    others = [name for name, value in state.items() if _kind(value) != _kind(own[name])]
    if others:
        got, expected = state[others[0]].dtype, own[others[0]].dtype
        raise ValueError(f"{where} holds weights of another type, first {others[0]}: {got} instead of {expected}.")
    state = {name: value.to(own[name].dtype) for name, value in state.items()}
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(f"{where} holds NaN or infinite weights, first in {broken[0]}: its training went wrong.")
    network.load_state_dict(state)


def _kind(value: Tensor) -> tuple[bool, bool, bool]:
    """What a type of numbers has in common with those that can stand for it."""
    return value.is_floating_point(), value.is_complex(), value.dtype == torch.bool


def _call(builder: Callable[..., Any], description: NetworkDescription, where: str) -> nn.Module:
    try:
        network = builder(**_arguments(builder, description.arguments, where))
    except _BUILDING_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{where}: {description.builder} cannot be built with the arguments in the file: {reason}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{where}: {description.builder} does not build a torch.nn.Module.")
    return network


def check_paths(description: NetworkDescription, where: str, *, packages: Sequence[str] = ()) -> None:
    """Refuse a description that names something outside pcea and the given packages; nothing is imported.

    Raises:
        ValueError: If there is such a name, at any depth.
    """
    for path in (description.builder, *_part_paths(description.arguments)):
        package = path.partition(".")[0]
        if package in packages:
            continue
        if package != "pcea":
            raise ValueError(
                f"{where} names {path}, which is not part of pcea. If you trust the file, add --trust {package}"
            )
        module = path.rpartition(".")[0]
        if module != "pcea" and not any(module == m or module.startswith(f"{m}.") for m in _MODULES):
            raise ValueError(f"{where} names {path}, which is neither a network nor a layer of pcea.")


def builds_networks(function: object) -> bool:
    """Whether this is the class of a network or a layer, or a function that builds one from plain values."""
    if isinstance(function, type):
        return issubclass(function, nn.Module)
    if not inspect.isfunction(function) or function.__name__.startswith("_") or function.__module__ == __name__:
        return False  # `build_network` is told whom to trust: a file must not call it
    hints = typing.get_type_hints(function)
    made = hints.pop("return", None)
    # Functions that take a network change it; a file must not call them.
    return _is_module(made) and not any(map(_is_module, hints.values()))


def _is_module(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, nn.Module)


def _part_paths(value: object) -> list[str]:
    """Import paths of all parts in arguments, at every depth."""
    if isinstance(value, Mapping):
        own = [str(value["class_path"])] if is_part(value) else []
        return own + [path for inner in value.values() for path in _part_paths(inner)]
    if isinstance(value, list | tuple):
        return [path for inner in value for path in _part_paths(inner)]
    return []


def _is_ours(path: str) -> bool:
    return path.partition(".")[0] == "pcea"


def _resolve(path: str, where: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where} names {path}, which cannot be imported: {error}.") from error
    if _is_ours(path):
        defined_in = getattr(found, "__module__", "")
        is_allowed = any(defined_in == m or defined_in.startswith(f"{m}.") for m in _MODULES)
        if not is_allowed or not builds_networks(found):
            raise ValueError(f"{where} names {path}, which is neither a network nor a layer of pcea.")
    if not callable(found):
        raise ValueError(f"{where} names {path}, which cannot be called.")
    return found


def _arguments(builder: Callable[..., Any], written: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keyword arguments with their parts built; a partial where the builder takes a callable."""
    hints = typing.get_type_hints(getattr(builder, "__init__") if isinstance(builder, type) else builder)  # noqa: B009
    for name, value in written.items():
        hint = hints.get(name)
        if hint in (int, float, bool, str) and not isinstance(value, (int, float) if hint is float else hint):
            raise ValueError(f"{name} must be {hint.__name__}, got {type(value).__name__}.")
        depths = value if isinstance(value, list | tuple) else [value]
        is_too_deep = any(isinstance(blocks, int) and blocks > _MOST_BLOCKS for blocks in depths)
        if name in ("depth", "depths") and is_too_deep:
            raise ValueError(f"{name} must be at most {_MOST_BLOCKS:,} blocks, got {value}.")
    return {name: _argument(value, hints.get(name), where) for name, value in written.items()}


def _argument(value: Any, hint: object, where: str) -> Any:
    if isinstance(value, list | tuple):
        return [_argument(inner, None, where) for inner in value]
    if not is_part(value):
        return value
    part = _resolve(value["class_path"], where)
    made = partial(part, **_arguments(part, value.get("init_args") or {}, where))
    return made if _takes_function(hint) else made()


def _takes_function(hint: object) -> bool:
    """Whether a type is `Callable[...]`, or a union with it."""
    return typing.get_origin(hint) is Callable or any(map(_takes_function, typing.get_args(hint)))


def _check_shapes(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    ours, theirs = _shapes(network.state_dict()), _shapes(state)
    if ours != theirs:
        raise ValueError(f"The weights in {where} are of another network: {difference(ours, theirs)}.")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def difference(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> str:
    """Say how the shapes of a network's weights differ from those in a file."""
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    first = differing[0]
    here, there = ours.get(first, "none"), theirs.get(first, "none")
    return f"{len(differing)} of {len(ours)} differ, first {first}: {here} in the network, {there} in the file"


def start_from(builder: Callable[..., Network], given: Mapping[str, Any]) -> Network:
    """Build a network with the sizes and weights of a file; another number of classes gets a new head.

    Args:
        builder: The calling function.
        given: Its arguments. `weights` is a weights file, a checkpoint, or the name of either; see `read_network`.
            Others replace the file's where they are not the defaults, such as a dropout.

    Returns:
        The network. If the numbers of classes and categories are the file's, it has all of its weights; otherwise those
        of the encoder, and everything after it is new.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If the weights belong to another builder, or do not fit a size that is given.
    """
    where = str(given["weights"])
    stored = read_network(given["weights"])
    made_by = stored.description.builder.rpartition(".")[2]
    if made_by != builder.__name__:
        raise ValueError(f"{where} holds the weights of {made_by}, not of {builder.__name__}.")
    network = build_network(stored, where).train()
    written = stored.description.arguments
    sizes, others = _replacing(builder, given, written)
    has_new_head = any(getattr(network, name) != value for name, value in sizes.items())
    if not others and not has_new_head:
        return network  # type: ignore[return-value]
    new = builder(**{**_arguments(builder, written, where), **others, **sizes})
    state, own = network.state_dict(), new.state_dict()
    if has_new_head:
        encoder = {name: value for name, value in state.items() if name.startswith("encoder.")}
        state = {**{name: value for name, value in own.items() if not name.startswith("encoder.")}, **encoder}
    ours, theirs = _shapes(own), _shapes(state)
    if ours != theirs:
        asked = ", ".join(f"{name}={value}" for name, value in others.items())
        raise ValueError(f"The weights in {where} do not fit {asked}: {difference(ours, theirs)}.")
    new.load_state_dict(state)
    return new


_HEAD_SIZES = ("num_classes", "num_categories")


def _replacing(
    builder: Callable[..., Any], given: Mapping[str, Any], written: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments that replace a file's: numbers of classes and categories, and others that are not the defaults."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(builder).parameters.items()}
    changed = {
        name: value
        for name, value in given.items()
        if name != "weights" and name in defaults and not _is_equal(value, defaults[name])
    }
    sizes = {name: changed.pop(name) for name in _HEAD_SIZES if name in changed}
    others = {n: value for n, value in changed.items() if n not in written or not _is_equal(value, written[n])}
    return sizes, others


def _is_equal(one: Any, other: Any) -> bool:
    one, other = (list(value) if isinstance(value, tuple) else value for value in (one, other))
    return one is other or bool(one == other)


def check_num_classes(num_classes: int, num_categories: int = 0) -> None:
    """Require a class, and no negative number of categories.

    Raises:
        ValueError: If it is otherwise.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
    if num_categories < 0:
        raise ValueError(f"num_categories must be at least 0, got {num_categories}.")


def actual_arguments(builder: str, written: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """The arguments that build a configured network from scratch, without weights to start from.

    Args:
        builder: Import path of the class or function that built it.
        written: Arguments in the configuration; if it starts from weights, see `start_from`. Numbers of classes that it
            leaves open are the network's.
        network: The network built from them.
    """
    arguments = _with_stored(builder, written)
    if written.get("weights"):
        open_sizes = [name for name in _HEAD_SIZES if name in inspect.signature(find_builder(builder)).parameters]
    else:
        open_sizes = [name for name in _HEAD_SIZES if arguments.get(name, 0) is None]
    arguments |= {name: getattr(network, name) for name in open_sizes}
    return without_weights(arguments)


def find_builder(builder: str) -> Callable[..., Any]:
    """The function or class of an import path that a configuration, not a file, has given."""
    module, _, name = builder.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _with_stored(builder: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """A builder's arguments, together with those of the weights that it or one of its parts starts from."""
    arguments = {name: _part_with_stored(value) for name, value in written.items()}
    if not arguments.get("weights"):
        return arguments
    stored = read_network(arguments["weights"]).description.arguments
    sizes, others = _replacing(find_builder(builder), arguments, stored)
    return {**stored, **others, **sizes}


def _part_with_stored(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_part_with_stored(inner) for inner in value]
    if not is_part(value):
        return value
    return {
        "class_path": value["class_path"],
        "init_args": _with_stored(value["class_path"], value.get("init_args") or {}),
    }
