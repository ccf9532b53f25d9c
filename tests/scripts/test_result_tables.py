"""The tables of the READMEs: made from records, and up to date."""

from pathlib import Path

import pytest

from pcea.commands.record import read_records

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import result_tables

    return result_tables


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_tables_of_the_readmes_are_those_of_the_records(tables):
    records = read_records(ROOT / "configs" / "results")
    assert records
    filled = set()
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.fill(text, records) == text, "run: python scripts/result_tables.py"
        filled |= {name for name in tables.TABLES if f"<!-- table: {name} -->" in text}
    assert filled == tables.TABLES.keys()


def test_every_record_is_shown(tables):
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    shown = text[text.index("## Results") :]
    for runs in tables.by_seed(read_records(ROOT / "configs" / "results")):
        record = runs[0]
        start = f"| `{record.config}`{tables._changes(record)} ("
        rows = [row for row in shown.splitlines() if row.startswith(start)]
        value = tables.spread([run.metrics[next(iter(record.metrics))] for run in runs], ".2f")
        (row,) = [row for row in rows if f" {record.votes} | {record.epoch}, {record.selection} |" in row]
        assert f"| {value} |" in row


def test_what_stands_between_the_markers_is_replaced(tables, record):
    page = "before\n<!-- table: point classification -->\nold\n<!-- end -->\nafter\n"
    filled = tables.fill(page, [record])
    assert filled.startswith("before\n<!-- table: point classification -->\n\n| configuration |")
    assert filled.endswith("|\n\n<!-- end -->\nafter\n")
    assert "93.46" in filled
    assert "old" not in filled
    assert tables.fill(filled, [record]) == filled
    with pytest.raises(ValueError, match="No table 'points'; there are headlines"):
        tables.fill("<!-- table: points -->\n<!-- end -->", [record])


def test_seeds_share_a_row(tables, record):
    other = {"overall_accuracy": 93.0, "mean_class_accuracy": 90.5}
    seeded = "pcea test --config modelnet40_eat --seed_everything 3 --weights runs/a/last.ckpt"
    voting = record._replace(votes=10, command=record.command + " --model.init_args.votes 10")
    records = [record, record._replace(seed=3, metrics=other, minutes=70.4, command=seeded), voting]
    _, _, both, voted = tables.results_table(records, tables.CLASSIFICATION).splitlines()
    # 93.456 and 93.0 have the mean 93.228 and lie 0.228 from it: the deviation is 0.228 * sqrt(2).
    assert cells(both) == [
        "`modelnet40_eat` (2 seeds)", "ModelNet40 test", "93.23 ± 0.32", "90.30 ± 0.28", "1024", "1", "250, last",
        "66 min, a device",
    ]  # fmt: skip
    assert cells(voted)[0] == "`modelnet40_eat`, votes: 10 (seed 2)"
    (headline,) = tables.headline_table(records).splitlines()[2:]
    assert headline == "| `modelnet40_eat` | ModelNet40 | accuracy 93.23 ± 0.32 % (2 seeds) | 66 min, a device |"
    shapes = [record._replace(seed=i, categories={"Cup": (8, 80.0 + i), "Mug": (0, None)}) for i in (1, 2)]
    assert tables.category_table(shapes).splitlines()[2:] == ["| Cup | 8 | 81.5 |", "| Mug | 0 | - |"]


def test_records_of_other_commands_have_rows_of_their_own(tables, record):
    other = record._replace(seed=3, command=record.command + " --data.init_args.batch_size 8")
    assert len(tables.results_table([record, other], tables.CLASSIFICATION).splitlines()) == 4
    with pytest.raises(ValueError, match="Two records of modelnet40_eat have seed 2 and the same command"):
        tables.by_seed([record, record])


def test_a_metric_that_some_seeds_lack_is_left_out(tables, record):
    parts = {"instance_miou": 70.0, "category_miou": 71.0, "overall_accuracy": 90.0}
    records = [record._replace(metrics=parts), record._replace(seed=3, metrics=parts | {"instance_miou_all_parts": 1})]
    assert cells(tables.results_table(records, tables.PARTS).splitlines()[2])[2:6] == [
        "70.00 ± 0.00", "71.00 ± 0.00", "-", "90.00 ± 0.00"
    ]  # fmt: skip


def test_each_configuration_has_a_row(tables, record):
    records = [record, record._replace(seed=3, config="other")]
    head, rule, *rows = tables.results_table(records, tables.CLASSIFICATION).splitlines()
    assert head.count("|") == rule.count("|") == rows[0].count("|")
    assert cells(rows[0]) == [
        "`modelnet40_eat` (seed 2)", "ModelNet40 test", "93.46", "90.10", "1024", "1", "250, last", "62 min, a device",
    ]  # fmt: skip
    assert "(seed 3)" in rows[1]


def test_a_row_says_what_the_command_changed_in_the_model(tables, record):
    changed = record._replace(
        command="pcea test --config modelnet40_eat --model.init_args.network.init_args.external_attention false "
        "--model.dim=7 --model.feature_network runs/last.ckpt --data.root x"
    )
    row = tables.results_table([changed], tables.CLASSIFICATION).splitlines()[2]
    assert row.startswith("| `modelnet40_eat`, external_attention: false, dim: 7 (seed 2) |")


def test_records_of_other_metrics_are_left_out(tables, record):
    parts = {"instance_miou": 70.0, "category_miou": 71.0, "instance_miou_all_parts": 69.0, "overall_accuracy": 90.0}
    records = [record, record._replace(config="parts", metrics=parts)]
    _, _, row = tables.results_table(records, tables.PARTS).splitlines()
    assert row.startswith("| `parts` (seed 2) | ModelNet40 test | 70.00 | 71.00 | 69.00 | 90.00 | 1024 |")


def test_tables_of_images_have_no_points(tables, record):
    metrics = {"overall_accuracy": 70.0, "mean_class_accuracy": 70.0, "top5_accuracy": 98.76}
    images = record._replace(config="cifar10_eamlp", dataset="CIFAR10", num_points=0, metrics=metrics)
    head, rule, row = tables.results_table([images, record], tables.IMAGES).splitlines()
    assert head == "| configuration | dataset | top-1 accuracy | top-5 accuracy | votes | epoch | training |"
    assert rule.count("|") == head.count("|")
    assert row == "| `cifar10_eamlp` (seed 2) | CIFAR10 test | 70.00 | 98.76 | 1 | 250, last | 62 min, a device |"


def test_categories_are_rows_and_records_columns(tables, record):
    first = record._replace(categories={"Cup": (8, 91.04), "Mug": (0, None)})
    second = first._replace(config="other", categories={"Cup": (8, 80.0), "Mug": (0, None)})
    assert tables.category_table([first, second]).splitlines() == [
        "| category | shapes | `modelnet40_eat` | `other` |",
        "|---|---|---|---|",
        "| Cup | 8 | 91.0 | 80.0 |",
        "| Mug | 0 | - | - |",
    ]
    masks = record._replace(num_points=0, categories={"sky": (123456, 91.04)})
    assert tables.category_table([masks]).splitlines()[0] == "| class | pixels | `modelnet40_eat` |"


def test_headlines_show_one_number_of_each_configuration(tables, record):
    variant = record._replace(command="pcea test --model.init_args.network.init_args.dim 7", seed=9)
    masks = record._replace(config="nuclei", dataset="dsb", metrics={"box_ap": 41.76, "mask_ap": 41.24})
    generated = record._replace(config="gan", metrics={"frechet_distance": 6.5})
    assert tables.headline_table([record, variant, masks, generated]).splitlines()[2:] == [
        "| `modelnet40_eat` | ModelNet40 | accuracy 93.46 % | 62 min, a device |",
        "| `nuclei` | dsb | mask AP 41.2 % | 62 min, a device |",
    ]


def test_configurations_are_listed_with_their_first_line(tables):
    rows = tables.configuration_table().splitlines()[2:]
    assert len(rows) == len(list((ROOT / "configs").glob("*.yaml")))
    (row,) = [row for row in rows if "shapes_eat.yaml" in row]
    assert row.startswith("| [`shapes_eat`](shapes_eat.yaml) | EAT on procedural shapes")
