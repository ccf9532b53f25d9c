import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from reference import neighbor_embedding
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from pcea.models.neighbor_embedding import NeighborEmbedding, _PairReLU, _Uses

B, N, M, K, C, D = 2, 29, 11, 7, 5, 13


def embedding() -> NeighborEmbedding:
    """An embedding with the batch norms of a trained network, negative weights among them."""
    module = NeighborEmbedding(C, D)
    for norm in (module.norm1, module.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias, std=0.5)
        nn.init.normal_(norm.running_mean, std=0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    assert (module.norm2.weight < 0).any()
    assert (module.norm2.weight > 0).any()
    return module


def cloud() -> tuple[Tensor, Tensor, Tensor]:
    features = torch.randn(B, N, C)
    return features, features[:, :M].clone(), torch.randint(N, (B, M, K))


def results(embed, module: nn.Module, features: Tensor, centers: Tensor, *args: Tensor, **options: Tensor):
    """Output, gradients of the inputs and of the parameters, and the buffers afterwards."""
    features, centers = features.clone().requires_grad_(), centers.clone().requires_grad_()
    out = embed(features, centers, *args, **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad((out * weight).sum(), [features, centers, *module.parameters()])
    return out, grads, dict(module.named_buffers())


def assert_equals_unfactored(module: nn.Module, *inputs: Tensor) -> None:
    oracle = deepcopy(module)
    out, grads, buffers = results(module, module, *inputs)
    expected, expected_grads, expected_buffers = results(
        lambda *args: neighbor_embedding(oracle, *args), oracle, *inputs
    )
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(grads, expected_grads):
        # Sums over all pairs in another order; relative to the largest entry, since many cancel.
        torch.testing.assert_close(ours, theirs, atol=2e-5 * float(theirs.abs().max()) + 1e-6, rtol=1e-4)
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, expected_buffers[name], msg=lambda text, name=name: f"{name}: {text}")


both_ways = pytest.mark.usefixtures("_both_ways")


@both_ways
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_unfactored_formula(training: bool) -> None:
    assert_equals_unfactored(embedding().train(training), *cloud())


@both_ways
@pytest.mark.parametrize("training", [True, False])
def test_ties_between_duplicated_neighbors(training: bool) -> None:
    features, centers, index = cloud()
    index[..., 1:4] = index[..., :1]
    assert_equals_unfactored(embedding().train(training), features, centers, index)


@both_ways
@pytest.mark.parametrize("training", [True, False])
def test_ties_between_points_with_equal_values(training: bool) -> None:
    """One of them, or each its share, has the gradient: together they have what one point would have."""
    features, centers, index = cloud()
    module = embedding().train(training)
    features[:, 20:] = features[:, 10:19]

    def embed(features: Tensor, centers: Tensor) -> Tensor:
        return module(torch.cat([features, features[:, 10:19]], dim=1), centers, index)

    oracle = deepcopy(module)
    ours = results(embed, module, features[:, :20], centers)
    theirs = results(lambda *args: neighbor_embedding(oracle, *args), oracle, features, centers, index)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    together = theirs[1][0][:, :20].clone()
    together[:, 10:19] += theirs[1][0][:, 20:]
    for mine, other in zip(ours[1], [together, *theirs[1][1:]]):
        torch.testing.assert_close(mine, other, atol=2e-5 * float(other.abs().max()) + 1e-6, rtol=1e-4)


@both_ways
def test_nan_stays_visible() -> None:
    features, centers, index = cloud()
    features[0, 3] = torch.nan
    index[0, 0, 2] = 3
    assert embedding()(features, centers, index).isnan().all()  # through the statistics
    assert embedding().eval()(features, centers, index)[0, 0].isnan().all()


@both_ways
def test_statistics_far_from_zero() -> None:
    features, centers, index = cloud()
    module, oracle = embedding(), None
    oracle = deepcopy(module)
    out = module(features + 100, centers + 100, index)
    expected = neighbor_embedding(oracle.double(), features.double() + 100, centers.double() + 100, index)
    # fp32 keeps about 1e-5 of features near 100; a variance by E[x^2] - E[x]^2 would lose far more.
    torch.testing.assert_close(out.double(), expected, atol=2e-3, rtol=1e-3)


def test_one_neighbor_and_one_centre() -> None:
    module = embedding().eval()
    features = torch.randn(1, 1, C)
    index = torch.zeros(1, 1, 1, dtype=torch.int64)
    torch.testing.assert_close(module(features, features, index), neighbor_embedding(module, features, features, index))
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        module.train()(features, features, index)


@both_ways
@pytest.mark.parametrize("training", [True, False])
def test_center_mask_equals_removal(training: bool) -> None:
    module = embedding().train(training)
    alone = deepcopy(module)
    features, centers, index = cloud()
    mask = torch.rand(B, M) > 0.4
    centers[~mask] = 1e4
    out, grads, buffers = results(module, module, features, centers, index, center_mask=mask)
    assert not out[~mask].any()

    # The same real centres as one packed cloud.
    rows = (index + torch.arange(B)[:, None, None] * N)[mask]
    packed = alone(features.flatten(0, 1)[None], centers[mask][None], rows[None])
    torch.testing.assert_close(out[mask], packed[0])
    for name, buffer in alone.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)
    assert not grads[1][~mask].any()


def test_order_of_neighbors_does_not_matter() -> None:
    module = embedding()
    features, centers, index = cloud()
    out = module(features, centers, index)
    torch.testing.assert_close(module(features, centers, index[..., torch.randperm(K)]), out)


@both_ways
@pytest.mark.parametrize("training", [True, False])
def test_bf16_autocast_is_close(training: bool) -> None:
    module = embedding().train(training)
    plain = deepcopy(module)
    inputs = cloud()
    expected, expected_grads, expected_buffers = results(plain, plain, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out, grads, buffers = results(module, module, *inputs)
    # bf16 keeps 8 bits: a few hundredths after two layers.
    assert (out.float() - expected).norm() < 0.02 * expected.norm()
    for ours, theirs in zip(grads, expected_grads):
        assert ours.dtype == torch.float32
        assert (
            ours - theirs
        ).norm() < 0.3 * theirs.norm()  # rounding changes who wins a maximum, also in the unfactored form
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, expected_buffers[name], atol=0.02, rtol=0.02)


@both_ways
@pytest.mark.parametrize("frozen", ["norm1", "norm2"])
def test_each_norm_has_a_mode_of_its_own(frozen: str) -> None:
    module = embedding()
    getattr(module, frozen).eval()
    assert_equals_unfactored(module, *cloud())


@pytest.mark.parametrize("options", [{"momentum": None}, {"track_running_stats": False}])
def test_norms_with_other_statistics(options) -> None:
    module = embedding()
    module.norm1, module.norm2 = nn.BatchNorm1d(D, **options), nn.BatchNorm1d(D, **options)
    for _ in range(2):
        assert_equals_unfactored(module, *cloud())
    assert_equals_unfactored(module.eval(), *cloud())


@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives(training: bool) -> None:
    module = embedding().double().train(training)
    features, centers, index = cloud()
    inputs = features.double().requires_grad_(), centers.double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda f, c: module(f, c, index), inputs, fast_mode=True)


@pytest.mark.parametrize("training", [True, False])
def test_many_gradients_at_once(training: bool) -> None:
    module = embedding().train(training)
    features, centers, index = cloud()

    def embed(features: Tensor) -> Tensor:
        return module(features, centers, index).flatten()[:5]

    one_by_one = torch.autograd.functional.jacobian(embed, features)
    torch.testing.assert_close(torch.autograd.functional.jacobian(embed, features, vectorize=True), one_by_one)


def test_norms_more_exact_than_the_layers() -> None:
    module, (features, centers, index) = embedding().eval(), cloud()
    expected = module(features, centers, index)
    module.bfloat16()
    for norm in (module.norm1, module.norm2):
        norm.float()
    found = module(features.bfloat16(), centers.bfloat16(), index)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_second_derivatives_after_compiled_loops() -> None:
    module, (features, centers, index) = embedding(), cloud()

    def curvature(dtype: torch.dtype) -> Tensor:
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (features, centers)]
        grads = torch.autograd.grad(
            deepcopy(module).to(dtype)(*inputs, index).square().sum(), inputs, create_graph=True
        )
        return torch.cat(torch.autograd.grad(sum(grad.square().sum() for grad in grads), inputs), dim=1)

    expected = curvature(torch.float64)
    torch.testing.assert_close(
        curvature(torch.float32).double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )


def test_compiled_loops_round_to_bf16_as_torch_does() -> None:
    neighbor, center = torch.randn(N, D), torch.zeros(M, D)
    neighbor[:4] = 1 + torch.arange(4)[:, None] * 2.0**-8  # half way between two numbers of bf16
    neighbor[4, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 3.4e38])
    index = torch.arange(M * K).remainder(N).view(M, K)
    pairs = _PairReLU.apply(neighbor, center, index, _Uses.of(index, N, 1), torch.bfloat16)
    torch.testing.assert_close(pairs, neighbor[index].bfloat16().relu(), rtol=0, atol=0, equal_nan=True)


SYNCHRONIZED = """
import sys, torch
from torch import nn
from pcea.models.neighbor_embedding import NeighborEmbedding
folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
given = torch.load(f"{folder}/given.pt")
share = slice(0, 1) if rank == 0 else slice(1, None)
module = nn.SyncBatchNorm.convert_sync_batchnorm(NeighborEmbedding(5, 13))
module.load_state_dict(given["state"])
features, centers = (given[name][share].requires_grad_() for name in ("features", "centers"))
out = module(features, centers, given["index"][share])
grads = torch.autograd.grad((out * given["weight"][share]).sum(), [features, centers, *module.parameters()])
torch.save((out.detach(), grads, dict(module.named_buffers())), f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_synchronized_norms_see_the_batches_of_all_processes(tmp_path) -> None:
    module = embedding()
    features, centers, index = (torch.cat([t, t[:1].flip(1)]) for t in cloud())  # 1 cloud, and 2
    weight = torch.randn(3, M, D)
    given = {"state": module.state_dict(), "features": features, "centers": centers, "index": index, "weight": weight}
    torch.save(given, tmp_path / "given.pt")
    command = [sys.executable, "-c", SYNCHRONIZED, str(tmp_path)]
    others = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [other.wait(100) for other in others] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    inputs = [features.requires_grad_(), centers.requires_grad_()]
    expected = module(*inputs, index)
    torch.testing.assert_close(torch.cat([out for out, _, _ in parts]), expected, atol=1e-5, rtol=1e-4)
    for _, _, buffers in parts:
        for name, buffer in module.named_buffers():
            torch.testing.assert_close(buffers[name], buffer)
    theirs = torch.autograd.grad((expected * weight).sum(), [*inputs, *module.parameters()])
    ours = [torch.cat([grads[i] for _, grads, _ in parts]) for i in range(2)]
    ours += [parts[0][1][i] + parts[1][1][i] for i in range(2, len(theirs))]
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other, atol=1e-4 * float(other.abs().max()), rtol=1e-3)


def test_a_first_map_with_a_bias_as_after_the_fusion_of_torch() -> None:
    module, inputs = embedding().eval(), cloud()
    expected = module(*inputs)
    module.linear1, module.norm1 = fuse_linear_bn_eval(module.linear1, module.norm1), nn.Identity()
    assert module.linear1.bias.abs().max() > 0
    torch.testing.assert_close(module(*inputs), expected)


def test_statistics_that_are_not_tracked_stay() -> None:
    module = embedding()
    module.norm1.track_running_stats = module.norm2.track_running_stats = False
    before = deepcopy(dict(module.named_buffers()))
    module(*cloud())
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
