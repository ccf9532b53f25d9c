import json

import pytest

from pcea.io.description import NetworkDescription, parse_description

FULL = NetworkDescription(
    "parts",
    "pcea.models.Net",
    {"dim": 8, "attention": {"class_path": "pcea.A", "init_args": {"units": [1, 2.5, None, True]}}},
    ("a", "b", "c"),
    1024,
    True,
    {"chair": (2, 0), "lamp": (1,)},
    (0.5, 0.4, 0.3),
    (0.2, 0.3, 0.4),
    (224, 192),
    (3, 7, 1),
    {"commit": "1", "epoch": 7},
)


def test_it_comes_back_from_json():
    content = json.loads(json.dumps(FULL.as_plain()))
    back = parse_description(content, "file")
    assert back._replace(arguments={}) == FULL._replace(arguments={})
    assert back.arguments == json.loads(json.dumps(FULL.arguments))
    assert list(back.parts) == ["chair", "lamp"]


def test_only_task_and_builder_are_needed():
    back = parse_description({"task": "points", "builder": "pcea.Net", "of the future": 1}, "file")
    assert back == NetworkDescription("points", "pcea.Net", {}, parts={})


def test_arguments_that_name_other_weights_are_left_out():
    part = {"class_path": "pcea.ResNet", "init_args": {"pretrained": True, "depth": 18}}
    content = {"task": "points", "builder": "pcea.Net", "arguments": {"weights": "self", "body": part, "dim": 1}}
    arguments = parse_description(content, "file").arguments
    assert arguments == {"body": {"class_path": "pcea.ResNet", "init_args": {"depth": 18}}, "dim": 1}
    content["arguments"] = {"bodies": [[part]]}
    arguments = parse_description(content, "file").arguments
    assert arguments == {"bodies": [[{"class_path": "pcea.ResNet", "init_args": {"depth": 18}}]]}


def nested(levels, width):
    """A list within itself: `levels` lists in memory, width ** levels values for who walks them."""
    value = [0] * width
    for _ in range(levels):
        value = [value] * width
    return value


@pytest.mark.parametrize("name", ["arguments", "class_names", "of the future"])
@pytest.mark.parametrize(("levels", "width", "reason"), [(100_000, 1, "64 levels deep"), (40, 8, "1,000,000 values")])
def test_descriptions_without_end(name, levels, width, reason):
    with pytest.raises(ValueError, match=rf"^file: the description of the network .*more than {reason}"):
        parse_description({**FULL.as_plain(), name: nested(levels, width)}, "file")


def test_a_description_that_holds_itself():
    content = FULL.as_plain()
    content["arguments"]["again"] = content
    with pytest.raises(ValueError, match=r"^file: the description of the network .*more than"):
        parse_description(content, "file")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "walk"), ("task", ["points"]), ("builder", "main"), ("builder", "os.system('x')"), ("builder", 3),
        ("builder", "..x"), ("arguments", []), ("arguments", {1: 2}), ("arguments", {"x": float("nan")}),
        ("arguments", {"x": {"class_path": "a.b", "args": []}}), ("arguments", {"x": {"class_path": 3}}),
        ("arguments", {"x": [{"class_path": "a.b", "init_args": [1]}]}), ("arguments", {"x": object()}),
        ("class_names", "abc"), ("class_names", [1, 2]), ("num_points", -1), ("num_points", 1e3), ("num_points", True),
        ("has_normals", 1), ("parts", {"chair": [3]}), ("parts", {"chair": []}), ("parts", {"chair": ["a"]}),
        ("parts", [[0]]), ("mean", [0.5]), ("mean", [1, 2, "3"]), ("std", [0.1, 0, 0.1]), ("std", []),
        ("image_size", [3]), ("image_size", [0, 4]), ("image_size", [4.0, 4]), ("category_ids", [1, 2]),
        ("up", "w"), ("up", ["z"]), ("category_ids", ["1", "2", "3"]), ("source", 3),
        ("class_names", ["a", "b", "\x1b[2J"]),
        ("parts", {"chair\n": [0]}), ("mean", [10**400] * 3), ("num_points", 2**30), ("image_size", [4, 65535]),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(field, value):
    with pytest.raises(ValueError, match=rf"^file.*{field}"):
        parse_description({**FULL.as_plain(), field: value}, "file")


@pytest.mark.parametrize("content", [None, [], "text", {}, {"task": "points"}])
def test_what_is_no_description(content):
    with pytest.raises(ValueError, match=r"^file"):
        parse_description(content, "file")
