"""Imports inside pcea go downwards only, and importing it costs little more than torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pcea"

# From the bottom up; a folder may import itself and those before it.
ORDER = (
    "nn", "ops", "io", "models", "datasets", "metrics", "transforms", "visualization", "inference", "datamodules",
    "tasks", "commands", "cli", "__main__",
)  # fmt: skip


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def level_of(module: str) -> int:
    """The place of a module's folder in the order; the package itself is the front door of all, and imports lazily."""
    _, _, inside = module.partition(".")
    return ORDER.index(inside.partition(".")[0]) if inside else -1


def imported(path: Path) -> set[str]:
    """Modules of pcea that a file imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level], f"{path}: relative import"
    return {name for name in names if name.split(".")[0] == "pcea"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name_of)
def test_imports_go_downwards(path):
    here = name_of(path)
    upwards = {m for m in imported(path) if level_of(m) > level_of(here)}
    assert not upwards


def modules_after(code: str) -> set[str]:
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {
    "fpsample", "h5py", "jsonargparse", "lightning", "numba", "open3d", "safetensors", "scipy", "torch_geometric",
    "torchmetrics", "torchvision", "trimesh",
}  # fmt: skip


def test_importing_the_library_loads_torch_alone():
    assert not modules_after("from pcea import ExternalAttention") & HEAVY


def test_help_waits_for_torch_alone():
    assert not modules_after("from pcea.cli import main; main(['--help'])") & HEAVY


@pytest.mark.parametrize(
    "module", ["pcea.ops", "pcea.datasets.modelnet40", "pcea.datasets.shapes", "pcea.commands.predict"]
)
def test_ops_datasets_and_prediction_do_not_wait_for_lightning(module):
    assert not modules_after(f"import {module}") & {"lightning", "numba", "open3d", "torchmetrics", "torchvision"}
