"""The programs of scripts/examples run, and what they make is what they say."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import run

import pcea
from pcea.datasets import Shapes
from pcea.visualization.renderer import check_rendering

EXAMPLES = Path(__file__).parents[2] / "scripts" / "examples"


def scope_of(name: str) -> dict:
    """The names that an example leaves behind."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def skip_without_rendering() -> None:
    try:
        check_rendering()
    except (OSError, ImportError) as error:
        pytest.skip(str(error))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory from which the examples can be imported, as their docstrings say."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def succeed(capsys, *arguments) -> str:
    """The output of a command that must not fail."""
    code, out, errors = run(capsys, *arguments)
    assert code == 0, errors
    return out


def accuracy_of(capsys, *options) -> float:
    """Overall accuracy, in percent, of a network that is trained and tested with the same options."""
    succeed(capsys, "fit", *options)
    out = succeed(capsys, "test", *options)
    (accuracy,) = [line.split()[-2] for line in out.splitlines() if line.startswith("overall accuracy")]
    return float(accuracy)


def test_every_example_is_tested():
    # run_onnx.py is run in tests/commands/test_export.py, slurm.sh in tests/commands/test_many_machines.py.
    text = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        assert path.suffix not in (".py", ".sh", ".yaml") or path.stem in text


def test_a_layer_in_a_resnet_changes_nothing_at_first():
    scope = scope_of("layer_in_resnet")
    assert scope["logits"].shape == (2, 1000)
    scope["logits"].square().mean().backward()
    assert scope["block"].norm.weight.grad.any()  # it will learn
    network, images = scope["network"].eval(), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        logits = network(images)
        assert network.layer3[-1] is scope["block"]
        del network.layer3[-1]
        torch.testing.assert_close(logits, network(images), rtol=0, atol=0)


def test_a_layer_in_a_vit_replaces_its_attention():
    pytest.importorskip("timm", reason="timm is not installed: pip install 'pcea[dev]'")
    scope = scope_of("layer_in_vit")
    vit, images = scope["vit"], torch.rand(1, 3, 224, 224)
    assert scope["logits"].shape == (2, 10)
    scope["logits"].square().mean().backward()
    for block in vit.blocks:
        assert isinstance(block.attn, pcea.MultiHeadExternalAttention)
        assert block.attn.key.weight.grad.any()
        assert block.attn.value.weight.grad.any()
    with pcea.record_attention(vit) as maps, torch.inference_mode():
        vit(images)
    assert [attention.grid for attention in maps.values()] == [(14, 14)] * 12
    with pytest.raises(ValueError, match="no pairs to mask"):
        vit(images, attn_mask=torch.ones(197, 197, dtype=torch.bool))


def test_a_layer_in_a_unet_sees_all_of_its_image_and_no_other():
    scope = scope_of("layer_in_unet")
    assert scope["logits"].shape == (2, 5, 64, 96)
    assert scope["weights"].shape == (2, 16, 24, 64)
    torch.testing.assert_close(scope["weights"].sum(-1), torch.ones(2, 16, 24))
    unet, images = scope["unet"].eval(), torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(unet(images)[:1], unet(images[:1]))
        moved = images[:1].clone()
        moved[..., :4, :4] = 5
        far = (unet(moved) - unet(images[:1]))[..., -4:, -4:]
    assert far.any()  # opposite corners are out of reach of the convolutions


def test_your_own_dataset_is_trained_on_and_tested(folder, capsys):
    for split, count in (("train", 240), ("test", 96)):
        shapes = Shapes(split, num_shapes=count, num_points=64)
        rows = shapes.label < 2
        np.savez(folder / f"{split}.npz", points=3 * shapes.points[rows].numpy() + 1, label=shapes.label[rows].numpy())
    options = [
        "--config", EXAMPLES / "own_dataset.yaml", "--data.init_args.root", folder, "--data.init_args.num_points", 64,
        "--model.init_args.network.init_args.num_centers", "[16,8]", "--model.init_args.network.init_args.dim", 16,
        "--model.init_args.network.init_args.num_neighbors", 8, "--trainer.max_epochs", 20,
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    assert accuracy_of(capsys, *options) > 80


def test_your_own_network_can_do_what_the_shipped_ones_can(folder, capsys):
    options = [
        "--config", EXAMPLES / "own_network.yaml", "--data.init_args.num_train", 240, "--data.init_args.num_val", 24,
        "--data.init_args.num_test", 96, "--data.init_args.num_points", 64, "--trainer.max_epochs", 10,
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    assert accuracy_of(capsys, *options) > 30  # 12 classes
    shapes = Shapes("test", num_shapes=1, num_points=200)
    np.save(folder / "shape.npy", shapes.points[0].numpy())
    weights = ["--weights", EXAMPLES / "own_network.yaml"]

    code, _, errors = run(capsys, "predict", "shape.npy", *weights)
    assert (code, "--trust own_network" in errors) == (2, True)
    out = succeed(capsys, "predict", "shape.npy", *weights, "--trust", "own_network")
    assert any(name in out for name in shapes.class_names)

    succeed(capsys, "export", *weights[1:], "--trust", "own_network", "--output", "own.safetensors")
    assert succeed(capsys, "predict", "shape.npy", "--weights", "own.safetensors", "--trust", "own_network") == out
    succeed(capsys, "export", "own.safetensors", "--trust", "own_network", "--output", "own.pt2")
    graph = torch.export.load("own.pt2").module()
    network = pcea.load("own.safetensors", trust=["own_network"]).network
    torch.testing.assert_close(graph(points=shapes.points), network(shapes.points))

    skip_without_rendering()
    succeed(capsys, "visualize", "shape.npy", *weights, "--trust", "own_network", "--output", "shape.png")
    assert (folder / "shape.png").stat().st_size > 1000


def test_a_notebook(folder):
    skip_without_rendering()
    scope = scope_of("notebook")
    assert (folder / "table.html").stat().st_size > 100_000
    assert scope["best"] in scope["network"].class_names
    assert scope["probability"] == max(scope["prediction"].probabilities)
    assert scope["part_label"].shape == scope["confidence"].shape == (2048,)
    assert {scope["parts"].part_names[part] for part in scope["part_label"].unique()} <= {"Table/leg", "Table/support"}
    assert scope["picture"].shape[2] == 3
    assert scope["picture"].dtype == np.uint8
    assert scope["logits"].shape == (1, 41)  # the classes and the background
    for weights in scope["weights"].values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
