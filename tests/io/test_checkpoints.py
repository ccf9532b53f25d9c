import argparse
import pickle

import pytest
import torch

from pcea.io.checkpoints import check_state_dict, load_safely


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
