import pytest
import torch

from pcea.datasets.pyg import from_pyg

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # by torch_geometric


def data(**fields):
    from torch_geometric.data import Data

    return Data(**fields)


def cloud(n=7, y=0, **fields):
    return data(pos=torch.rand(n, 3), y=torch.tensor([y]), **fields)


class Named(list):
    categories = ("Mug", "Key")


def test_clouds_of_several_sizes():
    items = [cloud(7, 1), cloud(11, 0), cloud(5, 1)]
    before = [item.pos.clone() for item in items]
    clouds = from_pyg(items, num_points=5)
    assert clouds.points.shape == (3, 5, 3)
    assert clouds.label.tolist() == [1, 0, 1]
    assert clouds.class_names == ("0", "1")
    assert clouds.normals is None
    torch.testing.assert_close(clouds.points.norm(dim=-1).amax(1), torch.ones(3))
    torch.testing.assert_close(clouds.points.mean(1), torch.zeros(3, 3), atol=1e-6, rtol=0)
    assert all(torch.equal(item.pos, pos) for item, pos in zip(items, before))  # the source is left alone


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    items = [cloud(50)]
    state = torch.get_rng_state()
    first = from_pyg(items, num_points=5, seed=1).points
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, from_pyg(items, num_points=5, seed=1).points)
    assert not torch.equal(first, from_pyg(items, num_points=5, seed=2).points)


def test_meshes_are_sampled_by_area():
    corners = torch.tensor([[0.0, 0, 0], [3, 0, 0], [3, 1, 0], [0, 1, 0]])
    item = data(pos=corners, face=torch.tensor([[0, 1, 2], [0, 2, 3]]).T, y=torch.tensor(0))
    clouds = from_pyg([item], num_points=501, class_names=["plate"])
    assert torch.equal(clouds.normals, torch.tensor([0.0, 0, 1]).expand(1, 501, 3))
    extent = (clouds.points.amax(1) - clouds.points.amin(1))[0]
    assert 2.7 < extent[0] / extent[1] < 3.3
    assert clouds.class_names == ("plate",)
    assert item.face.shape == (3, 2)


def test_labels_a_point_follow_their_points():
    item = cloud(50, category=torch.tensor([1]))
    item.y = (item.pos[:, 0] > 0.5).long() * 2
    item.normal = item.pos + 1
    clouds = from_pyg(Named([item]), num_points=31)
    assert clouds.label.shape == (1, 31)
    points, parts = clouds.points[0], clouds.label[0]
    assert points[parts == 2, 0].min() > points[parts == 0, 0].max()
    assert torch.equal(clouds.normals[0, :, 0].argsort(), points[:, 0].argsort())
    assert clouds.class_names == ("0", "1", "2")
    assert clouds.category.tolist() == [1]
    assert clouds.category_names == ("Mug", "Key")
    assert clouds.__getitems__([0]).category.tolist() == [1]


def test_names_of_the_dataset():
    assert from_pyg(Named([cloud(y=1)]), num_points=5).class_names == ("Mug", "Key")


def test_errors():
    triangle = data(pos=torch.rand(3, 3), face=torch.tensor([[0], [1], [2]]), y=torch.zeros(3))
    for items, message in [
        ([], r"dataset is empty"),
        ([cloud(), cloud(4)], r"Item 1 holds 4 points, fewer than num_points=5"),
        ([data(pos=torch.rand(7, 3))], r"Item 0 .* must have pos and y"),
        ([data(pos=torch.rand(7, 3), y=torch.zeros(3))], r"Item 0: y must have 1 or 7 entries"),
        ([triangle], r"Item 0 is a mesh with a label a vertex"),
        ([data(pos=torch.full((7, 3), torch.nan), y=torch.tensor(0))], r"NaN or infinite"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_pyg(items, num_points=5)
