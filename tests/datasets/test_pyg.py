import json

import numpy as np
import pytest
import torch

from pcea.datasets.pyg import from_pyg, parts_from_pyg

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # by torch_geometric


def data(**fields):
    from torch_geometric.data import Data

    return Data(**fields)


def cloud(n=7, y=0, **fields):
    return data(pos=torch.rand(n, 3), y=torch.tensor([y]), **fields)


class Named(list):
    categories = ("Mug", "Legend")


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
    assert from_pyg([item], num_points=501).normals is None
    clouds = from_pyg([item], num_points=501, class_names=["plate"], with_normals=True)
    assert torch.equal(clouds.normals, torch.tensor([0.0, 0, 1]).expand(1, 501, 3))
    extent = (clouds.points.amax(1) - clouds.points.amin(1))[0]
    assert 2.7 < extent[0] / extent[1] < 3.3
    assert clouds.class_names == ("plate",)
    assert item.face.shape == (3, 2)


def test_normals_follow_their_points():
    item = cloud(50, category=torch.tensor([1]))
    angle = item.pos[:, 0]
    item.normal = torch.stack([angle.sin(), angle.cos(), 0 * angle], dim=1)
    clouds = from_pyg([item], num_points=31, with_normals=True)
    assert torch.equal(clouds.normals[0, :, 0].argsort(), clouds.points[0, :, 0].argsort())
    assert clouds.batch([0]).category is None


def test_names_of_the_dataset():
    assert from_pyg(Named([cloud(y=1)]), num_points=5).class_names == ("Mug", "Legend")


def test_errors():
    triangle = data(pos=torch.rand(3, 3), face=torch.tensor([[0], [1], [2]]), y=torch.zeros(3))
    for items, message in [
        ([], r"dataset is empty"),
        ([cloud(), cloud(4)], r"Item 1 holds 4 points, fewer than num_points=5"),
        ([data(pos=torch.rand(7, 3))], r"Item 0 .* must have pos and y"),
        ([data(pos=torch.rand(7, 3), y=torch.zeros(3))], r"Item 0: y must have 1 or 7 entries"),
        ([triangle], r"Item 0 has 3 labels, one per point: use `parts_from_pyg`"),
        ([cloud(y=0), cloud(y=-1)], r"Item 1: y must be whole numbers from 0, got -1"),
        ([cloud(y=torch.tensor(1.5))], r"Item 0: y must be whole numbers from 0, got 1.5"),
        ([cloud(), data(pos=torch.rand(7, 3), y=torch.zeros(7))], r"Item 1 has 7 labels, one per point"),
        ([data(pos=torch.full((7, 3), torch.nan), y=torch.tensor(0))], r"NaN or infinite"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_pyg(items, num_points=5)


def test_normals_are_of_unit_length_and_single_precision():
    clouds = from_pyg(
        [cloud(y=2, normal=torch.rand(7, 3).double() * 9 + 1) for _ in range(2)], num_points=5, with_normals=True
    )
    assert clouds.normals.dtype == torch.float32
    torch.testing.assert_close(clouds.normals.norm(dim=-1), torch.ones(2, 5))
    assert clouds.label.tolist() == [2, 2]
    by_x = [data(pos=torch.rand(9, 3), y=torch.tensor(0), x=torch.eye(3).repeat(3, 1)) for _ in range(2)]
    assert from_pyg(by_x, num_points=5, with_normals=True).normals.sum(-1).eq(1).all()
    with pytest.raises(ValueError, match="Item 1 has no normals"):
        from_pyg([cloud(normal=torch.rand(7, 3)), cloud()], num_points=5, with_normals=True)


def labelled(n, parts=(0, 1), **fields):
    """A cloud far from the origin whose first coordinate is the label of each point."""
    y = torch.arange(n) % len(parts) + parts[0]
    pos = torch.rand(n, 3) + 50
    pos[:, 0] = y
    return data(pos=pos, y=y, **fields)


class Segmented(list):
    """As ShapeNet of PyTorch Geometric, asked for some of its categories in an order of its own."""

    seg_classes = {"Bag": [0, 1], "Cap": [2, 3, 4], "Mug": [5, 6]}  # noqa: RUF012
    categories = ("Mug", "Cap")


def test_all_labelled_points_of_clouds_of_all_sizes():
    items = [
        labelled(7, (5, 6), category=torch.tensor([0])),
        labelled(11, (2, 3, 4), category=torch.tensor([1])),
        labelled(5, (5, 6), category=torch.tensor([0])),
    ]
    before = [item.pos.clone() for item in items]
    clouds = parts_from_pyg(Segmented(items))
    assert clouds.sizes.tolist() == [7, 11, 5]
    assert clouds.category.tolist() == [0, 1, 0]
    assert clouds.parts == {"Mug": (5, 6), "Cap": (2, 3, 4)}
    assert clouds.class_names == ("Bag/0", "Bag/1", "Cap/0", "Cap/1", "Cap/2", "Mug/0", "Mug/1")
    assert clouds.normals is None
    for cloud, item in zip(clouds, items):
        assert torch.equal(cloud.y, item.y)
        assert torch.equal(cloud.pos[:, 0].argsort(stable=True), item.y.argsort(stable=True))
        torch.testing.assert_close(cloud.pos.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
        assert cloud.pos.norm(dim=1).max().item() == pytest.approx(1)
    assert all(torch.equal(item.pos, pos) for item, pos in zip(items, before))  # the source is left alone


def test_parts_may_be_given():
    items = [labelled(7, (2, 3), category=1), labelled(5, (0, 1), category=0)]
    clouds = parts_from_pyg(items, parts={"key": [0, 1], "mug": [2, 3]}, class_names=["bit", "bow", "body", "handle"])
    assert clouds.parts == {"key": (0, 1), "mug": (2, 3)}
    assert clouds.category.tolist() == [1, 0]
    assert clouds.class_names == ("bit", "bow", "body", "handle")
    assert parts_from_pyg(items, parts={"key": [0, 1], "mug": [2, 3]}).class_names[2] == "mug/0"


def test_scenes_have_no_category():
    class Scenes(list):
        num_classes = 5

    items = [labelled(7), labelled(5, (0, 1, 2))]
    clouds = parts_from_pyg(Scenes(items))
    assert (clouds.category, clouds.parts) == (None, {})
    assert clouds.class_names == ("0", "1", "2", "3", "4")
    assert parts_from_pyg(items).class_names == ("0", "1", "2")


@pytest.mark.parametrize("name", ["x", "normal"])
def test_normals_of_labelled_points(name):
    items = [labelled(n, **{name: torch.nn.functional.normalize(torch.randn(n, 3), dim=1)}) for n in (7, 5)]
    assert parts_from_pyg(items).normals is None
    normals = parts_from_pyg(items, with_normals=True).normals
    torch.testing.assert_close(normals, torch.cat([item[name] for item in items]))


def write_shapenet(root, files):
    """Raw files as `torch_geometric.datasets.ShapeNet` unpacks them: {split: [(folder, shape, table), ...]}."""
    from torch_geometric.datasets import ShapeNet

    lists = root / "raw" / "train_test_split"
    lists.mkdir(parents=True)
    for folder in ShapeNet.category_ids.values():
        (root / "raw" / folder).mkdir()
    for split in ("train", "val", "test"):
        names = []
        for folder, shape, table in files[split]:
            np.savetxt(root / "raw" / folder / f"{shape}.txt", table, fmt="%.6f")
            names.append(f"shape_data/{folder}/{shape}")
        (lists / f"shuffled_{split}_file_list.json").write_text(json.dumps(names))


def shapenet_table(n, parts, rng):
    normals = rng.normal(size=(n, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.hstack([rng.random((n, 3)), normals, parts[0] + np.arange(n)[:, None] % len(parts)])


@pytest.mark.parametrize("categories", [None, ["Mug", "Cap"]])
def test_shapenet_of_pyg(tmp_path, rng, categories):
    from torch_geometric.datasets import ShapeNet

    mug, cap, bag = (ShapeNet.category_ids[name] for name in ("Mug", "Cap", "Bag"))
    files = {
        "train": [(cap, "a", shapenet_table(11, (6, 7), rng)), (mug, "b", shapenet_table(7, (36, 37), rng))],
        "val": [(mug, "c", shapenet_table(5, (36, 37), rng))],
        "test": [(mug, "d", shapenet_table(13, (36, 37), rng)), (cap, "e", shapenet_table(3, (6, 7), rng))],
    }
    if categories is None:
        files["test"].append((bag, "f", shapenet_table(3, (4, 5), rng)))
    write_shapenet(tmp_path, files)
    clouds = parts_from_pyg(ShapeNet(str(tmp_path), categories, split="trainval"), with_normals=True)
    assert clouds.sizes.tolist() == [11, 7, 5]
    names = list(clouds.parts)
    assert names == (categories or list(ShapeNet.category_ids))
    assert [names[number] for number in clouds.category] == ["Cap", "Mug", "Mug"]
    assert (clouds.parts["Cap"], clouds.parts["Mug"]) == ((6, 7), (36, 37))
    assert (len(clouds.class_names), clouds.class_names[7], clouds.class_names[49]) == (50, "Cap/1", "Table/2")
    for cloud, (_, _, table) in zip(clouds, files["train"] + files["val"]):
        table = torch.from_numpy(table).float()
        assert cloud.y.tolist() == table[:, 6].tolist()
        torch.testing.assert_close(cloud.normal, table[:, 3:6], atol=1e-5, rtol=0)
        centred = table[:, :3] - table[:, :3].mean(0)
        torch.testing.assert_close(cloud.pos, centred / centred.norm(dim=1).max(), atol=1e-5, rtol=0)
    test = ShapeNet(str(tmp_path), categories, include_normals=False, split="test")
    assert parts_from_pyg(test).category.tolist() == ([11, 2, 1] if categories is None else [0, 1])
    with pytest.raises(ValueError, match=r"Item 0 has no normals: neither normal nor x is \(13, 3\).*include_normals"):
        parts_from_pyg(test, with_normals=True)


def test_errors_of_labelled_points():
    for items, options, message in [
        ([], {}, r"dataset is empty"),
        ([labelled(7), cloud(7)], {}, r"Item 1: y must have 7 entries, one per point, got 1"),
        ([labelled(7, category=2)], {}, r"categories up to 2, but the parts of 0 categories are known. Give parts"),
        (Segmented([labelled(7, (2, 3), category=2)]), {}, r"up to 2, but the parts of 2 categories are known"),
        (Segmented([labelled(7, (2, 3), category=0)]), {}, r"category Mug have label 2; its parts are 5 Mug/0, 6 Mug"),
        ([labelled(7, x=torch.rand(7, 4))], {"with_normals": True}, r"Item 0 has no normals: .* x is \(7, 3\)"),
        ([labelled(7, x=100 * torch.rand(7, 3))], {"with_normals": True}, r"Item 0: x does not hold unit normals"),
        ([data(pos=torch.full((7, 3), torch.nan), y=torch.zeros(7))], {}, r"NaN or infinite"),
    ]:
        with pytest.raises(ValueError, match=message):
            parts_from_pyg(items, **options)


def test_doubles_far_from_the_origin_keep_their_digits():
    pos = torch.rand(50, 3, dtype=torch.float64)
    near, far = ([data(pos=pos + offset, y=torch.arange(50) % 2)] for offset in (0, 2**23))
    torch.testing.assert_close(parts_from_pyg(far).points, parts_from_pyg(near).points)
    for (item,) in (near, far):
        item.y = torch.tensor(1)
    torch.testing.assert_close(from_pyg(far, num_points=50).points, from_pyg(near, num_points=50).points)


def test_the_loader_of_pytorch_geometric_takes_a_dataset():
    from torch_geometric.loader import DataLoader

    clouds = from_pyg([cloud(7, i % 2) for i in range(4)], num_points=5)
    [batch] = DataLoader(clouds, batch_size=4)
    assert torch.equal(batch.pos, clouds.points.flatten(0, 1))
    assert batch.y.tolist() == [0, 1, 0, 1]
    assert batch.batch.bincount().tolist() == [5] * 4
