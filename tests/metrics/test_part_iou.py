import pytest
import torch
from reference import part_iou

from pcea.metrics.part_iou import PartIoU

PARTS = {"mug": (0, 1), "lamp": (2, 3, 4), "table": (5, 6, 7), "cap": (8, 9, 10)}


def one_hot(classes, num_classes=4):
    return torch.nn.functional.one_hot(torch.tensor(classes), num_classes).float()


def random_shapes(generator, B=7, N=13, fill=0.0):
    """Shapes of mugs, lamps and tables, none a cap; all points beyond a shape's own are padding."""
    category = torch.tensor([0, 1, 2, 1, 1, 2, 0])[:B]
    first = torch.tensor([classes[0] for classes in PARTS.values()])[category]
    width = torch.tensor([len(classes) for classes in PARTS.values()])[category]
    draws = torch.rand(B, N, generator=generator) ** 2  # the last part of a category is rare
    label = first.unsqueeze(1) + (draws * width.unsqueeze(1)).long()
    scores = torch.randn(B, N, 11, generator=generator) + 2 * one_hot(label.tolist(), 11)
    mask = torch.arange(N) < torch.randint(2, N + 1, (B, 1), generator=generator)
    scores[~mask] = fill
    return scores, label, category, mask


def by_oracle(scores, label, category, mask, **options):
    parts = list(PARTS.values())
    return part_iou(scores.numpy(), label.numpy(), category.tolist(), mask.numpy(), parts, **options)


@pytest.mark.parametrize("seed", range(5))
def test_metric_equals_the_oracle(seed):
    shapes = random_shapes(torch.Generator().manual_seed(seed))
    metric = PartIoU(PARTS, 11)
    metric.update(*shapes)
    result = {name: value.item() for name, value in metric.compute().items()}
    instance, category, of_category = by_oracle(*shapes, own_parts_only=True)
    instance_all, category_all, _ = by_oracle(*shapes, own_parts_only=False)
    assert result == pytest.approx(
        {
            "instance_miou": instance,
            "category_miou": category,
            "instance_miou_all_parts": instance_all,
            "category_miou_all_parts": category_all,
        },
        abs=1e-12,
    )
    assert instance_all != instance  # else the data would not tell the conventions apart
    for number, (count, mean) in enumerate(metric.by_category().values()):
        assert count == (shapes[2] == number).sum()
        assert mean == (pytest.approx(of_category[number], abs=1e-12) if count else None)


def test_by_hand():
    """Four mugs (parts 0 and 1) and one lamp (parts 2 and 3), of four points each."""
    metric = PartIoU({"mug": (0, 1), "lamp": (2, 3), "cap": (4,)}, 5)
    label = [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [2, 2, 3, 3]]
    predicted = [
        [0, 0, 1, 1],  # 2/3 and 1/2
        [0, 0, 0, 0],  # 1, and 1 for the part that is neither there nor predicted
        [1, 0, 0, 0],  # 3/4 and 0
        [0, 0, 2, 2],  # a lamp's part: over all parts 1 and 0; among its own, where 0 leads, 2/4 and 0
        [2, 2, 3, 3],
    ]
    scores = one_hot(predicted, 5)
    scores[:, :, 0] += 0.5
    metric.update(scores, torch.tensor(label), torch.tensor([0, 0, 0, 0, 1]))
    result = metric.compute()
    mugs = [7 / 12, 1, 3 / 8, 1 / 4]
    assert result["instance_miou"].item() == pytest.approx((sum(mugs) + 1) / 5, abs=1e-12)
    assert result["category_miou"].item() == pytest.approx((sum(mugs) / 4 + 1) / 2, abs=1e-12)
    mugs[3] = 1 / 2
    assert result["instance_miou_all_parts"].item() == pytest.approx((sum(mugs) + 1) / 5, abs=1e-12)
    assert result["category_miou_all_parts"].item() == pytest.approx((sum(mugs) / 4 + 1) / 2, abs=1e-12)
    assert metric.by_category()["mug"] == (4, pytest.approx((7 / 12 + 1 + 3 / 8 + 1 / 4) / 4, abs=1e-12))
    assert metric.by_category()["lamp"] == (1, 1.0)
    assert metric.by_category()["cap"] == (0, None)


def test_batches_add_up(generator):
    scores, label, category, mask = random_shapes(generator)
    once, often = PartIoU(PARTS, 11), PartIoU(PARTS, 11)
    once.update(scores, label, category, mask)
    for rows in ([4], [0, 1, 6], [2, 3, 5]):
        often.update(scores[rows], label[rows], category[rows], mask[rows])
    torch.testing.assert_close(often.compute(), once.compute(), atol=1e-12, rtol=0)
    assert often.by_category() == {n: (k, v and pytest.approx(v)) for n, (k, v) in once.by_category().items()}
    often.reset()
    often.update(scores[:3], label[:3], category[:3], mask[:3])
    alone = PartIoU(PARTS, 11)
    torch.testing.assert_close(alone(scores[:3], label[:3], category[:3], mask[:3]), often.compute())


def test_padding_makes_no_difference(generator):
    scores, label, category, mask = random_shapes(generator)
    metric = PartIoU(PARTS, 11)
    for b in range(7):  # one by one without padding
        rows = slice(b, b + 1)
        metric.update(scores[rows, mask[b]], label[rows, mask[b]], category[rows])
    for fill in (0.0, 100.0, torch.nan):
        padded = PartIoU(PARTS, 11)
        padded.update(scores.masked_fill(~mask.unsqueeze(-1), fill), label.masked_fill(~mask, 7), category, mask)
        torch.testing.assert_close(padded.compute(), metric.compute(), atol=1e-12, rtol=0)


def test_what_stands_at_padding_need_be_no_class():
    metric = PartIoU({"a": (0, 1)}, 2)
    mask = torch.tensor([[True, True, False]])
    metric.update(torch.tensor([[[1.0, 0], [0, 1], [1, 0]]]), torch.tensor([[0, 1, -100]]), torch.tensor([0]), mask)
    assert metric.compute()["instance_miou"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nothing", [0.0, -torch.inf])
def test_a_part_of_the_category_is_predicted_even_if_none_is_likely(dtype, nothing):
    """All of lamp's parts tie, as probabilities that underflow to 0 or logits of -inf; the best class is a mug's."""
    scores = torch.full((1, 3, 5), nothing, dtype=dtype)
    scores[..., 1] = 1
    metric = PartIoU({"mug": (0, 1), "lamp": (2, 3, 4)}, 5)
    metric.update(scores, torch.full((1, 3), 2), torch.tensor([1]))
    result = metric.compute()
    # The first part wins a tie: parts 3 and 4 are absent from prediction and truth.
    assert result["instance_miou"] == 1
    # Over all parts 2 is missed, 3 and 4 are absent.
    assert result["instance_miou_all_parts"].item() == pytest.approx(2 / 3)


def test_all_classes_at_minus_infinity_stay_within_the_category():
    metric = PartIoU({"mug": (0, 1), "lamp": (2, 3, 4)}, 5)
    metric.update(torch.full((1, 3, 5), -torch.inf), torch.full((1, 3), 2), torch.tensor([1]))
    assert metric.compute()["instance_miou"] == 1


def test_many_shapes_lose_no_digits():
    metric = PartIoU({"mug": (0, 1)}, 2)
    label = torch.tensor([[0, 0, 1]])
    for _ in range(300):
        metric.update(one_hot([[0, 1, 1]], 2), label, torch.tensor([0]))
    assert metric.compute()["instance_miou"].item() == pytest.approx(1 / 2, abs=1e-14)


def test_no_shapes_give_nan():
    metric = PartIoU(PARTS, 11)
    assert metric.by_category() == dict.fromkeys(PARTS, (0, None))
    with pytest.warns(UserWarning, match="compute.* method of metric PartIoU was called before"):
        result = metric.compute()
    assert len(result) == 4
    assert all(value.isnan() for value in result.values())
