"""The READMEs promise what the code keeps."""

import re
from pathlib import Path

import pytest
import torch
from examples import run

import pcea
import pcea.datamodules
from pcea.io.configs import config_names
from pcea.io.readers import read_file

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[cdps]*/README.md"), *ROOT.glob("pcea/*/README.md")])
TEXT = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXT["README.md"]


def test_the_pages_are_there():
    assert TEXT.keys() >= {"README.md", *(f"{folder}/README.md" for folder in ("configs", "data", "pcea", "scripts"))}


def test_the_readme_is_read_to_the_end():
    assert len(README.splitlines()) <= 200


def test_every_record_has_its_configuration():
    for path in (ROOT / "configs" / "results").glob("*.json"):
        assert path.name.split(".")[0] in config_names()


@pytest.mark.parametrize("page", TEXT)
def test_the_configurations_named_exist(page):
    named = set(re.findall(r"--config (\w+)(?![\w.])", TEXT[page]))
    weights = set(re.findall(r"--weights (\w+)(?![\w.])", TEXT[page]))
    # Shipped weights have the name of their configuration.
    assert named | weights <= set(config_names())


def test_the_names_in_the_table_can_be_imported():
    table = README[README.index("| name | what it is |") : README.index("Complete examples to copy")]
    names = [name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert len(names) > 10
    assert set(names) <= set(pcea.__all__)


def test_the_data_modules_named_exist():
    named = {name for text in TEXT.values() for name in re.findall(r"`(\w+DataModule)`", text)}
    assert len(named) > 10
    assert named <= set(pcea.datamodules.__all__)


@pytest.mark.parametrize("page", ["README.md", "data/README.md"])
def test_the_formats_are_those_that_are_read(page, tmp_path):
    (tmp_path / "file.unknown").touch()
    with pytest.raises(ValueError, match="known are") as error:
        read_file(tmp_path / "file.unknown")
    known = set(str(error.value).partition("known are ")[2].rstrip(".").split())
    text = re.sub(r"\n *\.", " .", TEXT[page])  # a list may go on in the next line
    listed = " ".join(re.findall(r"(?:Meshes|Clouds):? \(?`([^`]*)`", text))
    assert set(listed.split()) == known


def commands_of(text):
    """The options of each use of a command, by its name; lines that end in a backslash go on."""
    for line in text.replace("\\\n", " ").splitlines():
        for name, rest in re.findall(r"(?:^|`| )pcea (\w+)(.*?)(?:#|`|$)", line):
            yield name, re.findall(r"--(\w+)", rest)


def test_the_options_of_commands_exist(capsys):
    uses = {(name, option) for text in TEXT.values() for name, options in commands_of(text) for option in options}
    assert len({name for name, _ in uses}) > 4
    for command in ("predict", "visualize", "export", "download"):
        _, listed, _ = run(capsys, command, "--help")
        used = {option for name, option in uses if name == command}
        assert used <= set(re.findall(r"--(\w+)", listed))


CODE = re.findall(r"```python\n(.*?)```", README, re.S)


def test_predict_in_python(capsys):
    scope: dict = {}
    exec(CODE[0], scope)
    assert scope["prediction"].class_names[0] in scope["network"].class_names
    assert scope["prediction"].class_names[0] in capsys.readouterr().out


def test_a_layer_alone():
    scope: dict = {}
    exec(CODE[1], scope)
    assert scope["out"].shape == (300, 256)
    torch.testing.assert_close(scope["weights"].sum(-1), torch.ones(2, 10_000))
    assert len(CODE) == 2


def anchors_of(text):
    """The links to headings that GitHub makes."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [(page, link) for page, text in TEXT.items() for link in re.findall(r"\]\(((?!http)[^)]+)\)", text)]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page}: {link}" for page, link in LINKS])
def test_the_links_lead_somewhere(page, link):
    name, _, anchor = link.partition("#")
    target = (ROOT / page).parent / name if name else ROOT / page
    assert target.exists()
    if anchor:
        assert anchor in anchors_of(target.read_text(encoding="utf-8"))
