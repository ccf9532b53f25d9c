"""A GPU computes what a CPU does: ops, networks, a training step and prediction."""

import copy
import math
from functools import partial

import lightning as L
import pytest
import torch

import pcea
from pcea.datamodules.shapes import ShapesDataModule
from pcea.tasks.point_classification import PointClassificationTask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = "cuda"
SIZES = {"dim": 32, "num_neighbors": 5, "memory_units": 8, "out_channels": 32, "widths": (16, 8), "dropout": 0.0}
CLASSIFIER = partial(pcea.eat_classifier, 7, num_centers=(64, 32), **SIZES)
SEGMENTER = partial(pcea.eat_part_segmenter, 7, 2, **SIZES)


def assert_equal(found, expected, **tolerance):
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu(), expected, **tolerance)


def clouds(generator, *size):
    return torch.randn(*size, 3, generator=generator)


@pytest.mark.parametrize("num_points", [300, 9000])
def test_farthest_point_sampling(generator, num_points):
    points = clouds(generator, 2, num_points)
    mask = torch.arange(num_points) < torch.tensor([[num_points], [250]])
    sample = partial(pcea.farthest_point_sample, num_points=61)
    assert_equal(sample(points.to(DEVICE), mask=mask.to(DEVICE)), reference_order(points, mask, 61))


def reference_order(points, mask, num_points):
    """The order by the definition; for large clouds the CPU uses a tree that starts elsewhere."""
    order = torch.zeros(len(points), num_points, dtype=torch.int64)
    nearest = torch.full(mask.shape, math.inf).masked_fill(~mask, -1)
    for i in range(1, num_points):
        last = points[torch.arange(len(points)), order[:, i - 1]]
        nearest = torch.minimum(nearest, (points - last[:, None]).square().sum(-1))
        order[:, i] = nearest.argmax(1)
    return order


def test_neighbors(generator):
    query, source = clouds(generator, 2, 53), clouds(generator, 2, 301)
    mask = torch.arange(301) < torch.tensor([[301], [3]])
    expected = pcea.knn(query, source, k=7, mask=mask)
    found = pcea.knn(query.to(DEVICE), source.to(DEVICE), k=7, mask=mask.to(DEVICE))
    assert_equal(found.squared_distance, expected.squared_distance)
    assert_equal(found.index, expected.index)

    expected = pcea.ball_query(query, source, radius=0.5, k=7)
    found = pcea.ball_query(query.to(DEVICE), source.to(DEVICE), radius=0.5, k=7)
    assert_equal(found.mask, expected.mask)
    assert_equal(found.index, expected.index)


def test_gather_and_interpolate_with_gradients(generator):
    query, source = clouds(generator, 2, 53), clouds(generator, 2, 31)
    features = torch.randn(2, 31, 5, generator=generator)
    index = torch.randint(31, (2, 11, 3), generator=generator)
    for function, exact in (
        (lambda device, f: pcea.gather_points(f, index.to(device)), {"rtol": 0, "atol": 0}),
        (lambda device, f: pcea.interpolate_features(query.to(device), source.to(device), f), {}),
    ):
        ours, theirs = features.clone().to(DEVICE).requires_grad_(), features.clone().requires_grad_()
        found, expected = function(DEVICE, ours), function("cpu", theirs)
        assert_equal(found, expected, **exact)
        found.square().sum().backward()
        expected.square().sum().backward()
        assert_equal(ours.grad, theirs.grad)


NETWORKS = pytest.mark.parametrize(("build", "category"), [(CLASSIFIER, None), (SEGMENTER, torch.tensor([1, 0, 1]))])


def run_both(network, points, category):
    """Logits and gradients (one vector) of a network on the GPU, and on the CPU."""
    results = []
    for copied in (copy.deepcopy(network).to(DEVICE), network):
        device = next(copied.parameters()).device
        options = {} if category is None else {"category": category.to(device)}
        logits = copied(points.to(device), **options)
        logits.square().mean().backward()
        results.append((logits, torch.cat([parameter.grad.flatten() for parameter in copied.parameters()])))
    return results


@NETWORKS
def test_networks_in_evaluation(generator, build, category):
    # In double precision rounding decides no tie, so the tolerance is small.
    network = build().double().eval()
    found, expected = run_both(network, clouds(generator, 3, 128).double(), category)
    assert_equal(found[0], expected[0], rtol=1e-6, atol=1e-8)
    assert_equal(found[1], expected[1], rtol=1e-6, atol=1e-8)


@NETWORKS
def test_networks_in_training(generator, build, category):
    # Batch statistics over three rows amplify rounding errors: on a CPU, inputs that differ in their last bits change
    # logits by up to 4e-4 and gradients by up to 0.5 % of the largest.
    (logits, gradient), expected = run_both(build().train(), clouds(generator, 3, 128), category)
    assert_equal(logits, expected[0], rtol=1e-2, atol=1e-2)
    assert (gradient.cpu() - expected[1]).norm() < 0.05 * expected[1].norm()


def test_a_training_step_in_bf16(tmp_path):
    data = ShapesDataModule(num_train=24, num_val=12, num_test=12, num_points=128, batch_size=24)
    task = PointClassificationTask(
        pcea.eat_classifier(12, num_centers=(64, 32), **SIZES), partial(torch.optim.SGD, lr=0.1)
    )
    before = {name: p.detach().clone() for name, p in task.network.named_parameters()}
    trainer = L.Trainer(
        accelerator=DEVICE, devices=1, precision="bf16-mixed", max_steps=1, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == 1
    assert trainer.strategy.root_device.type == DEVICE
    assert 1 < trainer.callback_metrics["train/loss"] < 5  # log(12) = 2.5 by chance
    for name, parameter in task.network.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter.detach().cpu(), before[name]), name


def test_prediction(generator):
    points = clouds(generator, 1500)
    expected = pcea.load("modelnet40_eat_cpu", device="cpu").predict(points, top=40)
    network = pcea.load("modelnet40_eat_cpu")
    assert network.device.type == DEVICE  # `auto` takes the GPU
    found = network.predict(points, top=40)
    expected, found = (dict(zip(p.class_names, p.probabilities)) for p in (expected, found))
    assert found == pytest.approx(expected, abs=1e-3)
