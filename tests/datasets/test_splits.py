import pytest
import torch

from pcea.datasets.splits import stored_split, stratified_sample, warn_of_missing_classes


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"train", "val", "test"}, {"train": "train", "val": "val", "test": "test"}),
        ({"train", "val"}, {"train": "train", "val": None, "test": "val"}),
        ({"train", "test"}, {"train": "train", "val": None, "test": "test"}),
    ],
)
def test_val_is_the_test_split_where_there_is_no_other(stored, expected):
    assert {split: stored_split(split, stored, "data") for split in expected} == expected


@pytest.mark.parametrize(
    ("split", "stored", "message"),
    [
        ("test", {"train"}, "data has train, but not a `test` or a `val`"),
        ("train", {"val", "test"}, "but not a `train`"),
    ],
)
def test_a_split_that_is_missing(split, stored, message):
    with pytest.raises(FileNotFoundError, match=message):
        stored_split(split, stored, "data")


def test_stratified_sample_by_hand():
    label = torch.tensor([0] * 10 + [1] * 4 + [2] * 2 + [3])
    chosen = stratified_sample(label, 0.25, seed=0)
    # round(2.5) = 2, 1, at least one of two, and never the only one (round(0.25) = 0)
    assert label[chosen].bincount(minlength=4).tolist() == [2, 1, 1, 0]
    chosen = stratified_sample(label, 0.9, seed=0)  # nor all of them
    assert label[chosen].bincount(minlength=4).tolist() == [9, 3, 1, 0]


def test_stratified_sample_is_seeded_and_chooses_anybody():
    label = torch.arange(200) % 4
    assert torch.equal(stratified_sample(label, 0.1, seed=3), stratified_sample(label, 0.1, seed=3))
    drawn = torch.stack([stratified_sample(label, 0.1, seed=seed) for seed in range(150)])
    assert (drawn.sum(1) == 4 * round(0.1 * 50)).all()
    assert drawn.any(0).all()
    assert not stratified_sample(label, 0.0, seed=0).any()


def test_classes_that_cannot_be_learned_are_named():
    label = torch.tensor([[0, 2], [2, 0]])
    with pytest.warns(UserWarning, match=r"^No point in the training split of data has the class 'b', 'd' \(2 of 4 cl"):
        warn_of_missing_classes(label, "abcd", what="point", where="data")
    warn_of_missing_classes(torch.arange(3), "abc", what="point", where="data")  # warnings are errors
    with pytest.warns(UserWarning, match=r"'9' \.\.\. \(12 of 12 classes\)"):
        warn_of_missing_classes(label[:0], [*map(str, range(12))], what="point", where="data")
