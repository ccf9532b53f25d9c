"""Attention that was recorded on a GPU is seen in the same colours as on a CPU."""

import pytest
import torch

from pcea.nn.recording import AttentionMap
from pcea.visualization import color_parts, color_values, view_parts, view_picture, view_points
from pcea.visualization.images import draw_overlay
from pcea.visualization.navigator import Navigator
from pcea.visualization.subject import Subject, shared_views

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICES = [("cpu", "cuda"), ("cuda", "cuda"), ("cuda", "cpu")]


def to(attention, device):
    return AttentionMap(*(field.to(device) if isinstance(field, torch.Tensor) else field for field in attention))


def assert_same(found, expected):
    for name, value in expected._asdict().items():
        if isinstance(value, torch.Tensor):
            assert getattr(found, name).device.type == "cpu"
            # A value may be rounded to the next of viridis' 256 colours, which differ by up to 3.
            tolerance = 3 if name == "colors" else 1e-3
            torch.testing.assert_close(getattr(found, name).float(), value.float(), atol=tolerance, rtol=0)
    assert (found.title, found.legend, found.legend_title) == (expected.title, expected.legend, expected.legend_title)


@pytest.fixture
def clouds(generator):
    """Attention of 31 tokens, of which the last four are padding, and 101 points."""
    weights = torch.randn(1, 31, 7, generator=generator).mul(3).softmax(-1)
    mask = torch.arange(31)[None] < 27
    attention = AttentionMap(weights, mask, torch.randn(1, 31, 3, generator=generator))
    return torch.randn(101, 3, generator=generator), attention


@pytest.mark.parametrize(("points_on", "attention_on"), DEVICES)
@pytest.mark.parametrize("options", [{}, {"slot": 3}, {"query": 5}])
def test_points(clouds, points_on, attention_on, options):
    points, attention = clouds
    expected = view_points(points, attention, **options)
    assert_same(view_points(points.to(points_on), to(attention, attention_on), **options), expected)


@pytest.mark.parametrize(("points_on", "attention_on"), DEVICES)
def test_self_attention(generator, points_on, attention_on):
    points = torch.randn(13, 3, generator=generator)
    attention = AttentionMap(torch.rand(1, 13, 13, generator=generator), slots_are_tokens=True)
    expected = view_points(points, attention, query=4)
    assert_same(view_points(points.to(points_on), to(attention, attention_on), query=4), expected)


@pytest.mark.parametrize(("picture_on", "attention_on"), DEVICES)
def test_pictures(generator, picture_on, attention_on):
    picture = torch.randint(256, (3, 20, 30), generator=generator, dtype=torch.uint8)
    attention = AttentionMap(torch.rand(1, 6, 5, generator=generator).softmax(-1), grid=(2, 3))
    expected = view_picture(picture, attention, query=(7, 11))
    found = view_picture(picture.to(picture_on), to(attention, attention_on), query=(7, 11))
    assert_same(found, expected)
    assert abs(draw_overlay(found).astype(int) - draw_overlay(expected)).max() <= 3


@pytest.mark.parametrize(("points_on", "attention_on"), DEVICES)
def test_subjects(clouds, points_on, attention_on):
    points, attention = clouds
    normals = torch.nn.functional.normalize(points, dim=1)
    layers = {"a": attention, "b": attention._replace(weights=attention.weights.flip(-1))}
    expected = Subject(points, layers, normals=normals)
    moved = {name: to(layer, attention_on) for name, layer in layers.items()}
    found = Subject(points.to(points_on), moved, normals=normals.to(points_on))
    for mode in expected.modes:
        views = [shared_views([subject, subject], mode, layer=1) for subject in (found, expected)]
        for one, other in zip(*views):
            assert_same(one, other)
    navigator = Navigator([found])
    navigator.pick(points[17])
    assert navigator.query == 17


def test_labels_and_values_keep_their_device(generator):
    label = torch.randint(4, 6, (11,), generator=generator)
    colors = color_parts(label.cuda(), [4, 5])
    assert colors.device.type == "cuda"
    assert colors.cpu().equal(color_parts(label, [4, 5]))
    assert color_values(label.cuda(), low=0, high=9).cpu().equal(color_values(label, low=0, high=9))
    points = torch.randn(11, 3, generator=generator)
    names = {4: "low", 5: "high"}
    assert_same(view_parts(points.cuda(), label.cuda(), names), view_parts(points, label, names))
