"""The README promises what the code keeps."""

import re
from pathlib import Path

import pytest
import torch

import pcea
from pcea.commands.record import (
    BOXES,
    CLASSIFICATION,
    GENERATED,
    IMAGES,
    MASKS,
    PARTS,
    SEMANTIC,
    category_table,
    read_records,
    results_table,
)
from pcea.io.configs import config_names
from pcea.visualization.renderer import check_rendering

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_of_the_records():
    records = read_records(ROOT / "configs" / "results")
    assert records
    clouds, images = ([r for r in records if bool(r.num_points) is of_clouds] for of_clouds in (True, False))
    tables = [results_table(clouds, CLASSIFICATION), results_table(clouds, PARTS)]
    tables += [results_table(images, metrics) for metrics in (IMAGES, SEMANTIC, MASKS, GENERATED)]
    tables += [results_table([record for record in images if "mask_ap" not in record.metrics], BOXES)]
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
    table = README[README.index("| name | what it is |") : README.index("A checkpoint of the PyTorch port")]
    names = [name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert len(names) > 10
    assert set(names) <= set(pcea.__all__)


# What each example makes: name and shape of a tensor.
EXAMPLES = {
    "predict": ("logits", (8, 40)),
    "see": ("picture", (600, 730, 3)),
    "layers": ("out", (300, 256)),
    "resnet": ("logits", (2, 1000)),
    "timm": ("logits", (2, 10)),
    "unet": ("weights", (2, 16, 24, 64)),
    "see pictures": ("drawn", (250, 460, 3)),
    "detect": ("boxes", (100, 4)),
    "any size": ("logits", (1, 100_000, 50)),
}


def check_layers(scope):
    torch.testing.assert_close(scope["weights"].sum(-1), torch.ones(2, 10_000))


def check_resnet(scope):
    network, images = scope["network"].eval(), torch.rand(2, 3, 64, 64)
    scope["logits"].square().mean().backward()
    assert scope["block"].norm.weight.grad.any()  # it does not stay as it was
    with torch.inference_mode():
        logits = network(images)
        assert network.layer3[-1] is scope["block"]
        del network.layer3[-1]
        torch.testing.assert_close(logits, network(images), rtol=0, atol=0)


def check_timm(scope):
    vit, images = scope["vit"], torch.rand(1, 3, 224, 224)
    scope["logits"].square().mean().backward()
    for block in vit.blocks:
        assert isinstance(block.attn, pcea.MultiHeadExternalAttention)
        assert block.attn.key.weight.grad.any()
        assert block.attn.value.weight.grad.any()
    with pcea.record_attention(vit) as maps, torch.inference_mode():
        vit(images)
    assert [attention.grid for attention in maps.values()] == [(14, 14)] * 12
    with pytest.raises(ValueError, match="no pairs of tokens to mask"):
        vit(images, attn_mask=torch.ones(197, 197, dtype=torch.bool))


def check_unet(scope):
    unet, images = scope["unet"].eval(), torch.rand(2, 3, 32, 32)
    assert scope["logits"].shape == (2, 5, 64, 96)
    torch.testing.assert_close(scope["weights"].sum(-1), torch.ones(2, 16, 24))
    with torch.inference_mode():
        torch.testing.assert_close(unet(images)[:1], unet(images[:1]))  # of its own image alone
        moved = images[:1].clone()
        moved[..., :4, :4] = 5
        far = (unet(moved) - unet(images[:1]))[..., -4:, -4:]
    assert far.any()  # of all of it: four corners apart is out of reach of these convolutions


CHECKS = {"layers": check_layers, "resnet": check_resnet, "timm": check_timm, "unet": check_unet}
CODE = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize(("code", "example"), list(zip(CODE, EXAMPLES, strict=True)), ids=EXAMPLES)
def test_the_examples_run(code, example, monkeypatch):
    if example == "see":
        monkeypatch.setattr("pcea.visualization.show", lambda *_: None)
        try:
            check_rendering()
        except (OSError, ImportError) as error:
            pytest.skip(str(error))
    if example == "timm":
        pytest.importorskip("timm", reason="timm is not installed: pip install 'pcea[dev]'")
    scope: dict = {}
    exec(code, scope)
    name, shape = EXAMPLES[example]
    assert scope[name].shape == shape
    if example in CHECKS:
        CHECKS[example](scope)


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http|#)[^)]+)\)", README))
def test_the_links_lead_somewhere(target):
    assert (ROOT / target).exists()
