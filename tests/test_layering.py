"""Imports inside pcea go downwards only, and importing it costs little more than torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pcea"

# From the bottom up; a module may import its own layer and those before it. The longest name that fits counts.
LAYERS = (
    (
        "pcea.batch",
        "pcea.blocks",
        "pcea.checkpoint",
        "pcea.complete_file",
        "pcea.configuration",
        "pcea.cpu",
        "pcea.description",
        "pcea.detection_batch",
        "pcea.file_formats",
        "pcea.image_batch",
        "pcea.linear",
        "pcea.meshes",
        "pcea.norm",
        "pcea.output_folder",
        "pcea.ply",
        "pcea.record",
        "pcea.weights",
    ),
    ("pcea.attention", "pcea.ops"),
    ("pcea.layers",),
    ("pcea.models", "pcea.image_transforms", "pcea.transforms"),
    ("pcea.datasets", "pcea.metrics"),
    (
        "pcea.datamodules",
        "pcea.detection_datamodules",
        "pcea.image_datamodules",
        "pcea.mask_datamodules",
        "pcea.part_datamodules",
        "pcea.visualization",
    ),
    ("pcea.trained_network",),
    ("pcea.image_prediction", "pcea.object_prediction", "pcea.part_prediction"),
    ("pcea.predict", "pcea.studied_file", "pcea.studied_picture"),
    ("pcea.visualize",),
    ("pcea.tasks",),
    ("pcea.callbacks",),
    ("pcea.training",),
    ("pcea.cli",),
    ("pcea", "pcea.__main__"),
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> int:
    while module not in LAYER_OF:
        module = module.rpartition(".")[0]
    return LAYER_OF[module]


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
    upwards = {m for m in imported(path) if layer_of(m) > layer_of(here)}
    assert not upwards


def modules_after(code: str) -> set[str]:
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {
    "fpsample", "h5py", "jsonargparse", "lightning", "open3d", "safetensors", "scipy", "torch_geometric",
    "torchmetrics", "torchvision", "trimesh",
}  # fmt: skip


def test_importing_the_library_loads_torch_alone():
    assert not modules_after("from pcea import ExternalAttention") & HEAVY


def test_help_waits_for_torch_alone():
    assert not modules_after("from pcea.cli import main; main(['--help'])") & HEAVY


@pytest.mark.parametrize("module", ["pcea.ops", "pcea.datasets.modelnet40", "pcea.datasets.shapes", "pcea.predict"])
def test_ops_datasets_and_prediction_do_not_wait_for_lightning(module):
    assert not modules_after(f"import {module}") & {"lightning", "open3d", "torchmetrics", "torchvision"}
