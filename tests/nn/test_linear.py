import pytest
import torch
import torch.nn.functional as F

from pcea.nn import linear as module
from pcea.nn.linear import linear, use_convolutions


@pytest.fixture(autouse=True)
def _vector_units(monkeypatch) -> None:
    """On a processor with AVX-512, where the convolution is the faster one."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [32, 35])  # a multiple of the images, and none
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_equals_the_product_of_torch(monkeypatch, threads, rows, has_bias) -> None:
    monkeypatch.setattr(module, "_SMALL", 0)
    torch.set_num_threads(threads)
    tokens = torch.randn(2, rows, 5, requires_grad=True)
    weight = torch.randn(3, 5, requires_grad=True)
    bias = torch.randn(3, requires_grad=True) if has_bias else None
    inputs = [tokens, weight, *([bias] if has_bias else [])]
    out, expected = linear(tokens, weight, bias), F.linear(tokens, weight, bias)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for ours, theirs in zip(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("threads", [1, 2])
def test_large_products_go_to_onednn(threads) -> None:
    torch.set_num_threads(threads)
    tokens, weight = torch.randn(2, 1024, 256), torch.randn(64, 256)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear(tokens, weight)
    assert any("mkldnn_convolution" in event.key for event in profile.key_averages())


def convolutions() -> int:
    torch.set_num_threads(1)
    tokens, weight = torch.randn(2, 1024, 256), torch.randn(64, 256)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear(tokens, weight)
    return sum("mkldnn_convolution" in event.key for event in profile.key_averages())


def test_the_convolution_can_be_switched_off() -> None:
    with use_convolutions(False):
        assert not convolutions()
        with use_convolutions(True):
            assert convolutions()
        assert not convolutions()
    assert convolutions()


def test_without_avx512_the_product_is_the_plain_one(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not convolutions()


class Quantized(torch.Tensor):
    """A weight of another kind, of which torch knows how to multiply by it, and nothing else."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function is F.linear:
            plain = [a.as_subclass(torch.Tensor) if isinstance(a, cls) else a for a in arguments]
            return F.linear(*plain, **(options or {}))
        if "__get__" in str(function) or function is torch.Tensor.__len__:
            return super().__torch_function__(function, types, arguments, options or {})
        raise NotImplementedError(function)


def test_a_weight_of_another_kind_is_left_to_torch(monkeypatch) -> None:
    monkeypatch.setattr(module, "_SMALL", 0)
    tokens, weight = torch.randn(2, 32, 5), torch.randn(3, 5)
    assert torch.equal(linear(tokens, weight.as_subclass(Quantized)), F.linear(tokens, weight))
