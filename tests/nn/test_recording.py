import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pcea.nn.attention import ExternalAttention, SelfAttention
from pcea.nn.layers import ExternalAttention2d
from pcea.nn.recording import record_attention


class Output:
    def __init__(self, centers):
        self.centers = centers


class Located(nn.Module):
    """A module that says where its tokens are."""

    def __init__(self, shift: float):
        super().__init__()
        self.attention, self.shift = ExternalAttention(5, memory_units=3), shift

    def forward(self, tokens):
        self.attention(tokens)
        return Output(tokens[..., :3] + self.shift)


class Model(nn.Module):
    """Layers whose names begin with the name of another."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.part10, self.partner = Located(1), Located(2), ExternalAttention(5, memory_units=3)

    def forward(self, tokens):
        self.partner(tokens)
        self.part10(tokens)
        self.part(tokens)
        return tokens


def test_positions_belong_to_whole_names() -> None:
    model, tokens = Model(), torch.rand(2, 7, 5)
    with record_attention(model) as maps:
        model(tokens)
    torch.testing.assert_close(maps["part.attention"].points, tokens[..., :3] + 1)
    torch.testing.assert_close(maps["part10.attention"].points, tokens[..., :3] + 2)
    assert maps["partner"].points is None


def test_nested_and_overlapping_blocks() -> None:
    model, tokens = Model(), torch.rand(2, 7, 5)
    with record_attention(model) as outer:
        with record_attention(model.part) as inner:
            model(tokens)
        outer.clear()
        model(tokens)
        assert set(outer) == {"part.attention", "part10.attention", "partner"}
    assert set(inner) == {"attention"}
    first, second = record_attention(model), record_attention(model)
    a, b = first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    model(tokens)
    assert (len(a), len(b)) == (0, 3)
    second.__exit__(None, None, None)
    b.clear()
    model(tokens)
    assert not b


def test_an_error_ends_the_recording() -> None:
    model = Model()
    with pytest.raises(ZeroDivisionError), record_attention(model) as maps:
        raise ZeroDivisionError
    model(torch.rand(2, 7, 5))
    assert not maps
    assert not any(module._forward_hooks for module in model.modules())


def test_copies_are_others() -> None:
    model, tokens = Model(), torch.rand(2, 7, 5)
    with record_attention(model) as maps:
        twin = copy.deepcopy(model)
        twin(tokens)
        assert not maps
        with record_attention(twin) as others:
            twin(tokens)
    assert len(others) == 3
    assert not maps


def test_replicas_are_refused() -> None:
    layer = ExternalAttention(5)
    with record_attention(layer):
        replica = layer._replicate_for_data_parallel()
        replica.key = layer.key  # as torch.nn.parallel.replicate copies it
        with pytest.raises(RuntimeError, match=r"replicas of DataParallel: call its `\.module`"):
            replica(torch.rand(2, 7, 5))


def test_threads_do_not_mix() -> None:
    model, tokens, other = Model(), torch.rand(2, 7, 5), torch.rand(2, 11, 5)
    with record_attention(model) as maps:
        model(tokens)
        thread = threading.Thread(target=model, args=(other,))
        thread.start()
        thread.join()
    assert {attention.weights.shape[1] for attention in maps.values()} == {7}


def test_compiled_models_are_recorded_eagerly() -> None:
    model, tokens = ExternalAttention(5, memory_units=3).eval(), torch.rand(2, 7, 5)
    compiled = torch.compile(model, backend="eager")
    expected = compiled(tokens)
    with record_attention(compiled) as outer, record_attention(model) as inner:
        torch.testing.assert_close(compiled(tokens), expected)
    assert torch.equal(outer[""].weights, inner[""].weights)
    outer.clear()
    compiled(tokens)
    assert not outer
    torch._dynamo.reset()


@pytest.mark.parametrize("normalization", ["softmax", "double"])
def test_gradients_do_not_depend_on_a_recording_around_one_of_the_passes(normalization) -> None:
    """Checkpointing runs the forward pass again in the backward one, where nobody may be recording."""
    torch.manual_seed(0)
    module = SelfAttention(8, key_dim=4, num_heads=2, normalization=normalization)
    tokens = torch.randn(2, 6, 8)
    expected = torch.autograd.grad(module(tokens).square().sum(), [*module.parameters()])
    with record_attention(module) as maps:
        out = checkpoint(module, tokens, use_reentrant=False)
    assert maps[""].weights.shape == (2, 2, 6, 6)
    grads = torch.autograd.grad(out.square().sum(), [*module.parameters()])
    out = checkpoint(module, tokens, use_reentrant=False)
    with record_attention(module):
        others = torch.autograd.grad(out.square().sum(), [*module.parameters()])
    for one, two, three in zip(expected, grads, others):
        torch.testing.assert_close(two, one)
        torch.testing.assert_close(three, one)


def test_the_grid_of_tokens_of_an_image_that_is_given_by_keyword() -> None:
    layer = ExternalAttention2d(8)
    with record_attention(layer) as maps:
        layer(image=torch.randn(1, 8, 5, 6))
    assert maps["attention"].grid == (5, 6)
