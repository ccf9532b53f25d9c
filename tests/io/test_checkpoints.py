import argparse
import pickle

import pytest
import torch

from pcea.io.checkpoints import check_state_dict, load_safely, read_checkpoint


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_was_saved_comes_back(tmp_path):
    torch.save({"a": torch.arange(3), "b": [1, "x"]}, tmp_path / "file.pt")
    content = load_safely(tmp_path / "file.pt")
    assert content["a"].equal(torch.arange(3))
    assert content["b"] == [1, "x"]


def test_classes_must_be_allowed(tmp_path):
    torch.save({"options": argparse.Namespace(lr=1)}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"file\.pt is not a checkpoint"):
        load_safely(tmp_path / "file.pt")
    assert load_safely(tmp_path / "file.pt", allowed=[argparse.Namespace])["options"].lr == 1


@pytest.mark.parametrize("write", [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap))])
def test_code_is_never_executed(tmp_path, write):
    write(Trap(tmp_path / "trapped"), tmp_path / "file.pt")
    with pytest.raises(ValueError, match="holds pickled code, which is never executed"):
        load_safely(tmp_path / "file.pt")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04damaged"])
def test_other_files(tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt is not a checkpoint: it is damaged"):
        load_safely(tmp_path / "file.pt")
    with pytest.raises(FileNotFoundError, match=r"No checkpoint file .*none\.pt"):
        load_safely(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [[1], {"a": 1}, {1: torch.zeros(1)}])
def test_what_is_no_state_dict(content):
    with pytest.raises(ValueError, match=rf"x\.pt does not hold a state dict, .* but {type(content).__name__}"):
        check_state_dict(content, "x.pt")
    assert check_state_dict({"a": torch.zeros(1)}, "x.pt") == {"a": torch.zeros(1)}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.eye(3), 1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.eye(3)]),
    ],
)
def test_weights_without_plain_values(make):
    with pytest.raises(ValueError, match="file holds tensors that are sparse, quantized, nested or without values"):
        check_state_dict({"a": make()}, "file")


def test_weights_that_only_claim_their_size(tmp_path):
    small = torch.zeros(1000)
    check_state_dict({"a": small, "b": small[None], "c": torch.zeros(1).expand(9)}, "file")
    torch.save({"state_dict": {"a": torch.zeros(1).expand(10**9)}, "epoch": 0}, tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match=r"file\.ckpt stores 4 bytes of weights, but claims 4,000,000,000"):
        read_checkpoint(tmp_path / "file.ckpt")


@pytest.mark.parametrize("epoch", [None, "1", 1.5, [1], torch.ones(1)])
def test_an_epoch_that_is_no_number(tmp_path, epoch):
    torch.save({"state_dict": {}, "epoch": epoch}, tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match=r"file\.ckpt: epoch must be a whole number"):
        read_checkpoint(tmp_path / "file.ckpt")
