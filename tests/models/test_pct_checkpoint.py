import os
import pickle
from pathlib import Path

import pytest
import torch
from reference import StraightforwardClassifier, StraightforwardExternalAttention, StraightforwardOffsetAttention
from torch import Tensor, nn

from pcea.models.pct_checkpoint import load_pct_checkpoint
from pcea.models.point_transformer import eat_classifier, naive_pct_classifier, pct_classifier


def randomize(model: nn.Module) -> nn.Module:
    """Give batch norms the weights and statistics of a trained network, and switch to evaluation."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight, std=1)  # negative ones too
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def port() -> nn.Module:
    torch.manual_seed(0)
    return randomize(StraightforwardClassifier(7, attention=StraightforwardOffsetAttention))


@pytest.fixture
def state(port: nn.Module) -> dict[str, Tensor]:
    return dict(port.state_dict())


def assert_same_outputs(port: nn.Module, model: nn.Module) -> None:
    points = torch.randn(2, 600, 3)
    with torch.no_grad():
        expected, logits = port(points), model.eval()(points)
    assert expected.std() > 0.1  # else the comparison says nothing
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_outputs_of_the_port(port: nn.Module, state: dict[str, Tensor]) -> None:
    assert_same_outputs(port, load_pct_checkpoint(pct_classifier(7), state))


def test_file_with_module_prefix(port: nn.Module, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({f"module.{name}": weight for name, weight in state.items()}, tmp_path / "model.t7")
    model = pct_classifier(7)
    assert load_pct_checkpoint(model, tmp_path / "model.t7") is model
    assert_same_outputs(port, model)


def test_eat_equals_its_straightforward_form() -> None:
    port = randomize(StraightforwardClassifier(7, attention=StraightforwardExternalAttention))
    # Everything but the attention has PCT's names: load it as PCT, then put the memories in place.
    state = dict(port.state_dict())
    memories = [state.pop(f"pt_last.sa{i}.memory") for i in range(1, 5)]
    offset = StraightforwardClassifier(7, attention=StraightforwardOffsetAttention).state_dict()
    pct = load_pct_checkpoint(pct_classifier(7), offset | state).state_dict()
    shared = {name: weight for name, weight in pct.items() if ".attention." not in name}
    keys = {f"encoder.blocks.{i}.attention.key": memory for i, memory in enumerate(memories)}
    model = eat_classifier(7)
    model.load_state_dict(shared | keys)
    assert_same_outputs(port, model)


def test_missing_and_unexpected_names(state: dict[str, Tensor]) -> None:
    state["extra.weight"] = state.pop("bn6.bias")
    with pytest.raises(ValueError, match=r"missing: bn6\.bias; unexpected: extra\.weight\."):
        load_pct_checkpoint(pct_classifier(7), state)


def test_wrong_shape_loads_nothing(state: dict[str, Tensor]) -> None:
    model = pct_classifier(40)
    before = model.encoder.stem[0].linear.weight.clone()
    with pytest.raises(ValueError, match=r"linear3\.weight: the model needs \(40, 256\), got \(7, 256\).*num_classes"):
        load_pct_checkpoint(model, state)
    assert torch.equal(model.encoder.stem[0].linear.weight, before)


def test_query_and_key_must_be_one_weight(state: dict[str, Tensor]) -> None:
    state["pt_last.sa2.k_conv.weight"] = state["pt_last.sa2.k_conv.weight"] + 1
    with pytest.raises(ValueError, match=r"pt_last\.sa2\.q_conv\.weight and pt_last\.sa2\.k_conv\.weight"):
        load_pct_checkpoint(pct_classifier(7), state)


@pytest.mark.parametrize("build", [eat_classifier, naive_pct_classifier])
def test_other_networks_are_refused(build, state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"fits the model of pct_classifier\(\)"):
        load_pct_checkpoint(build(7), state)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No checkpoint file .*absent\.t7"):
        load_pct_checkpoint(pct_classifier(7), tmp_path / "absent.t7")


@pytest.mark.parametrize("content", [b"", b"hello world\n", b"OFF\n3 1 0\n", bytes(100)])
def test_file_that_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.t7"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.t7 is not a .*checkpoint"):
        load_pct_checkpoint(pct_classifier(7), path)


def test_truncated_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.t7"
    torch.save(state, path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="damaged"):
        load_pct_checkpoint(pct_classifier(7), path)


class _Intruder:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickled_code_is_not_executed(save, tmp_path: Path) -> None:
    save({"conv1.weight": _Intruder(tmp_path / "executed")}, tmp_path / "model.t7")
    with pytest.raises(ValueError, match="pickled code, which is never executed"):
        load_pct_checkpoint(pct_classifier(7), tmp_path / "model.t7")
    assert not (tmp_path / "executed").exists()


def test_file_without_a_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "model.t7")
    with pytest.raises(ValueError, match="does not hold a state dict, names to tensors, but list"):
        load_pct_checkpoint(pct_classifier(7), tmp_path / "model.t7")
