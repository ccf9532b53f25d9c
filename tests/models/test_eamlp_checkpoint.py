import argparse
import os
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from reference import StraightforwardEamlp, sinusoid_positions
from torch import Tensor, nn

from pcea.models.eamlp import ImageTransformer, eamlp_7, t2t_vit_7
from pcea.models.eamlp_checkpoint import load_eamlp_checkpoint
from pcea.nn.attention import MultiHeadExternalAttention


@pytest.fixture(scope="module")
def authors() -> nn.Module:
    torch.manual_seed(0)
    return small_authors()


def small_authors() -> StraightforwardEamlp:
    model = StraightforwardEamlp(5, dim=24, depth=2, num_heads=3, hidden=36, splits=((3, 1, 1), (3, 2, 1), (3, 2, 1)))
    return lively(model)


def lively(model: nn.Module) -> nn.Module:
    """Weights of which every one matters, unlike those at the start of a training."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1, 0.5)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=2 if name.endswith("linear_1") else module.in_features**-0.5)
    return model


def small() -> ImageTransformer:
    attention = partial(MultiHeadExternalAttention, num_heads=3)
    splits = {"kernel_sizes": (3, 3, 3), "strides": (1, 2, 2)}
    return ImageTransformer(attention, num_classes=5, dim=24, depth=2, mlp_ratio=1.5, **splits).eval()


@pytest.fixture
def state(authors: nn.Module) -> dict[str, Tensor]:
    return {"pos_embed": sinusoid_positions(577, 24)[None], **authors.state_dict()}


def write(content: object, folder: Path) -> Path:
    path = folder / "model_best.pth.tar"
    torch.save(content, path)
    return path


def assert_same_outputs(authors: nn.Module, model: nn.Module, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, logits = authors(images), model(images)
    assert expected.std() > 0.1  # else the comparison says nothing
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_outputs_and_gradients_of_the_authors_network(
    authors: nn.Module, state: dict[str, Tensor], tmp_path: Path
) -> None:
    model = small()
    assert load_eamlp_checkpoint(model, write(state, tmp_path)) is model
    assert_same_outputs(authors, model, (20, 12))
    assert_same_outputs(authors, model, (60, 64))  # 240 tokens, more than the position table of 224 x 224 pixels
    images = [torch.randn(2, 3, 11, 8).requires_grad_()] * 2
    ours, theirs = (torch.autograd.grad(m(x).square().sum(), x)[0] for m, x in zip((model, authors), images))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_published_size(tmp_path: Path) -> None:
    authors = lively(StraightforwardEamlp())
    state = {"pos_embed": sinusoid_positions(197, 256)[None], **authors.state_dict()}
    assert sum(weight.numel() for weight in state.values()) == 6_146_638
    model = load_eamlp_checkpoint(eamlp_7(), write(state, tmp_path)).eval()
    assert_same_outputs(authors, model, (32, 48))


def test_checkpoint_of_the_training_script(authors: nn.Module, state: dict[str, Tensor], tmp_path: Path) -> None:
    state["pos_embed"] = state["pos_embed"] * (1 - 1e-3)  # as averaging in fp32 leaves it
    averaged = {f"module.{name}": weight for name, weight in state.items()}
    content = {
        "epoch": 309,
        "arch": "T2t_vit_7",
        "state_dict": {name: weight + 1 for name, weight in authors.state_dict().items()},
        "optimizer": {"state": {0: {"step": 7}}, "param_groups": [{"lr": 1e-5, "params": [0]}]},
        "args": argparse.Namespace(img_size=384, mean=None),
        "state_dict_ema": averaged,
        "metric": 71.66,
    }
    assert_same_outputs(authors, load_eamlp_checkpoint(small(), write(content, tmp_path)), (20, 12))
    content["state_dict"] = content.pop("state_dict_ema")
    assert_same_outputs(authors, load_eamlp_checkpoint(small(), write(content, tmp_path)), (20, 12))


def assert_refused(content: object, message: str, folder: Path, model: nn.Module | None = None) -> None:
    """Loading raises an error of this message and changes nothing."""
    model = small() if model is None else model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_eamlp_checkpoint(model, write(content, folder))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_first_name_that_differs(state: dict[str, Tensor], tmp_path: Path) -> None:
    gone = {name: weight for name, weight in state.items() if "blocks.1" not in name}
    assert_refused(gone, r"tar does not fit: the model needs blocks\.1\.norm1\.weight\. .* this depth", tmp_path)
    more = state | {"blocks.2.norm1.weight": torch.zeros(24), "blocks.2.norm1.bias": torch.zeros(24)}
    assert_refused(more, r"tar does not fit: the model has no blocks\.2\.norm1\.weight\. .* depth", tmp_path)


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("head.weight", r"\(5, 24\), got \(7, 5\)"),
        ("tokens_to_token.attention1.attn.linear_1.weight", r"\(128, 64\), got \(5, 7\)"),
        ("tokens_to_token.project.weight", r"\(24, 64, 3, 3\), got \(7, 5\)"),
    ],
)
def test_the_first_shape_that_differs(name: str, needs: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    message = rf"does not fit at {name}: the model needs {needs}\. .* num_classes"
    assert_refused(state | {name: torch.zeros(7, 5)}, message, tmp_path)


@pytest.mark.parametrize("position", [torch.zeros(1, 577, 24), torch.zeros(24), sinusoid_positions(9, 24)])
def test_positions_that_are_no_sines(position: Tensor, state: dict[str, Tensor], tmp_path: Path) -> None:
    assert_refused(state | {"pos_embed": position}, "does not fit at pos_embed: it is not the fixed table", tmp_path)


@pytest.mark.parametrize("build", [t2t_vit_7, partial(eamlp_7, norm="batch")])
def test_other_networks_are_refused(build, state: dict[str, Tensor], tmp_path: Path) -> None:
    assert_refused(state, r"fits the models of eamlp_7\(\)", tmp_path, build(5))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No checkpoint file .*absent\.pth"):
        load_eamlp_checkpoint(small(), tmp_path / "absent.pth")


@pytest.mark.parametrize("content", [b"", b"hello world\n", bytes(100)])
def test_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pth is not a checkpoint: it is damaged"):
        load_eamlp_checkpoint(small(), path)


def test_truncated_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(state, tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="it is damaged"):
        load_eamlp_checkpoint(small(), path)


class _Intruder:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickled_code_is_not_executed(save, tmp_path: Path) -> None:
    save({"cls_token": _Intruder(tmp_path / "executed")}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="pickled code, which is never executed"):
        load_eamlp_checkpoint(small(), tmp_path / "model.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"state_dict": {"epoch": 3}}, {"epoch": 3}])
def test_file_without_a_state_dict(content: object, tmp_path: Path) -> None:
    assert_refused(content, "does not hold a state dict, names to tensors", tmp_path)
