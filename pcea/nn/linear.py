"""Linear maps of tokens, by the fastest of the products that torch offers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.nn.shortcuts import can_shortcut, tokenwise

_is_convolution_used = True
# Below this many multiplications the choice does not matter.
_SMALL = 1 << 22
# With this many images torch chooses oneDNN even on one thread.
_IMAGES = 16


class use_convolutions:  # noqa: N801  # named as torch.set_grad_enabled, which it works like
    """Choose whether `linear` may compute a product as a 1x1 convolution: from now on, or inside a `with` block.

    Example:
        use_convolutions(False)  # from here on
        with use_convolutions(False):  # in the block
            ...

    Args:
        enabled: True, the default, where `linear` finds it faster; False for `torch.nn.functional.linear` everywhere.
    """

    def __init__(self, enabled: bool):
        global _is_convolution_used
        self._before, _is_convolution_used = _is_convolution_used, enabled

    def __enter__(self) -> None:
        """Keep the choice until the block ends."""

    def __exit__(self, *_: object) -> None:
        """Restore the earlier choice."""
        global _is_convolution_used
        _is_convolution_used = self._before


def at_least_fp32(values: Tensor) -> Tensor:
    """Values in fp32, or in fp64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, in fp32 on a CPU as the 1x1 convolution that it equals.

    torch sends products of matrices to MKL and convolutions to oneDNN, and MKL leaves the vector units of some
    processors idle: on an AMD EPYC with AVX-512 the convolution is 2.4 to 3.4 times as fast. On one without AVX-512 the
    plain product is as fast, and its backward pass up to four times as fast, so that the convolution is left out there.
    Other processors were not measured; `use_convolutions(False)` switches the convolution off. Lower precision goes to
    oneDNN either way. While a graph is captured or a function is transformed (torch.func) the product is always the
    plain one.

    Args:
        tokens: (..., C).
        weight: (D, C).
        bias: (D,).

    Returns:
        (..., D).
    """
    if not can_shortcut() or not _is_convolution_faster(tokens, weight):
        return F.linear(tokens, weight, bias)
    images = 1 if (tokens.numel() // tokens.shape[-1]) % _IMAGES else _IMAGES
    if images == 1 and torch.get_num_threads() == 1:
        return F.linear(tokens, weight, bias)
    # Images of rows x 1 pixels in channels-last memory, which is how tokens lie already.
    image = tokens.reshape(images, -1, 1, tokens.shape[-1]).permute(0, 3, 1, 2)
    out = F.conv2d(image, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*tokens.shape[:-1], len(weight))


def _is_convolution_faster(tokens: Tensor, weight: Tensor) -> bool:
    return (
        _is_convolution_used
        and tokens.dtype == weight.dtype == torch.float32
        and type(weight) in (Tensor, nn.Parameter)  # not one that is quantized
        and not torch.is_autocast_enabled("cpu")
        and tokens.device.type == "cpu"
        and tokens.numel() * len(weight) >= _SMALL
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


@tokenwise
class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., C) to (..., D)."""
        return linear(tokens, self.weight, self.bias)
