"""The README of this folder promises what the code keeps."""

import re
from pathlib import Path

import torch

import pcea.visualization
from pcea.visualization.subject import ATTENTION_MODES

FOLDER = Path(pcea.visualization.__file__).parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_python_examples_run(can_draw, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(pcea.visualization, "show", lambda *arguments: shown.append(arguments))
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(example, names)
    assert names["picture"].shape[0] == 600
    assert (tmp_path / "slot5.png").exists()
    [(points, attention)] = shown
    assert torch.equal(points, names["points"][0])
    assert list(attention) == [f"encoder.blocks.{i}.attention" for i in range(4)]
    assert max(names["drawn"].shape) >= 600


def test_the_attention_modes_are_explained_first():
    modes = re.findall(r"^\| `(\w+)` \|", README, re.M)
    assert tuple(modes[: len(ATTENTION_MODES)]) == ATTENTION_MODES
    assert set(modes) == {*ATTENTION_MODES, "critical", "prediction", "parts"}


def test_the_pictures_are_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert all((FOLDER / picture).is_file() for picture in pictures)
