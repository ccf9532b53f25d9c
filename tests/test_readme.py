"""The README promises what the code keeps."""

import re
from pathlib import Path

import pytest
import torch

import pcea
from pcea.configuration import config_names
from pcea.record import CLASSIFICATION, IMAGES, PARTS, SEMANTIC, category_table, read_records, results_table
from pcea.visualization.drawing import check_rendering

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_of_the_records():
    records = read_records(ROOT / "configs" / "results")
    assert records
    clouds, images = ([r for r in records if bool(r.num_points) is of_clouds] for of_clouds in (True, False))
    tables = [results_table(clouds, CLASSIFICATION), results_table(clouds, PARTS)]
    tables += [results_table(images, IMAGES), results_table(images, SEMANTIC)]
    for table in tables:
        assert table in README or table.count("\n") == 1  # the head alone: there are no such records
    psb = [record for record in records if record.config.startswith("labeled_psb_")]
    assert category_table(psb) in README


def test_every_record_has_its_configuration():
    for path in (ROOT / "configs" / "results").glob("*.json"):
        assert path.name.split(".")[0] in config_names()


def test_the_configurations_named_exist():
    assert set(re.findall(r"--config (\w+)", README)) <= set(config_names())


def test_the_names_in_the_table_can_be_imported():
    table = README[README.index("| name | what it is |") : README.index("`import pcea` loads")]
    names = [name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert len(names) > 10
    assert set(names) <= set(pcea.__all__)


# What each example makes: name and shape of a tensor.
EXAMPLES = {
    "predict": ("logits", (8, 40)),
    "see": ("picture", (600, 730, 3)),
    "layers": ("out", (300, 256)),
    "see pictures": ("drawn", (250, 460, 3)),
    "any size": ("logits", (1, 100_000, 50)),
}


CODE = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize(("code", "example"), list(zip(CODE, EXAMPLES, strict=True)), ids=EXAMPLES)
def test_the_examples_run(code, example, monkeypatch):
    if example == "see":
        monkeypatch.setattr("pcea.visualization.show", lambda *_: None)
        try:
            check_rendering()
        except (OSError, ImportError) as error:
            pytest.skip(str(error))
    scope: dict = {}
    exec(code, scope)
    name, shape = EXAMPLES[example]
    assert scope[name].shape == shape
    if example == "layers":
        torch.testing.assert_close(scope["weights"].sum(-1), torch.ones(2, 10_000))


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http|#)[^)]+)\)", README))
def test_the_links_lead_somewhere(target):
    assert (ROOT / target).exists()
