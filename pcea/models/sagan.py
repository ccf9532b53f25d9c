"""SAGAN: class-conditional image generation, with the attention passed in.

Source: "Self-Attention Generative Adversarial Networks" (Zhang et al., 2019) with external attention (Guo et al., 2021,
section 4.4); widths and places of the attention as in StudioGAN (Kang et al., 2023).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from pcea.nn.attention import AttentionFactory

_SIDE = 4
"""Rows and columns of the feature map that the generator starts from."""


class Generator(nn.Module):
    """Makes images of given classes from noise: a linear layer and one block per doubling of the 4 x 4 feature map.

    At 32 pixels all blocks have 4 `width` channels; from 64 pixels on each has half as many as the one before, the last
    one `width`. The attention stands where the feature map is half as large as the image: after block 2 at 32 pixels,
    after block 3 at 64.

    Args:
        attention: Builds the attention from its width: `ExternalAttention`, or `SelfAttention` for the original SAGAN.
            None leaves it out.
        num_classes: Number of classes.
        image_size: Height and width of the images, 16, 32, 64, ...
        width: 64 as published; half of it makes every layer half as wide.
        latent_dim: Length of the noise vector of an image.

    Raises:
        ValueError: If `image_size` is not one of these.
    """

    def __init__(
        self,
        attention: AttentionFactory | None = None,
        *,
        num_classes: int = 10,
        image_size: int = 32,
        width: int = 64,
        latent_dim: int = 128,
    ):
        super().__init__()
        doublings = _doublings(image_size)
        self.num_classes, self.image_size, self.latent_dim = num_classes, image_size, latent_dim
        if image_size <= 32:
            channels = [4 * width] * (doublings + 1)
        else:
            channels = [width * min(16, 2**i) for i in reversed(range(doublings + 1))]
        self.linear = nn.Linear(latent_dim, _SIDE * _SIDE * channels[0])
        self.blocks = nn.ModuleList(GeneratorBlock(c_in, c_out, num_classes) for c_in, c_out in pairwise(channels))
        self.attention = None if attention is None else ScaledAttention(channels[-2], attention=attention)
        self.norm = nn.BatchNorm2d(channels[-1], eps=1e-4)
        self.conv = nn.Conv2d(channels[-1], 3, 3, padding=1)
        _initialize(self)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Make images.

        Args:
            latent: Standard normal noise, (B, latent_dim).
            label: Class of each image, (B,).

        Returns:
            (B, 3, image_size, image_size), in -1..1.

        Raises:
            ValueError: If the noise has another shape.
        """
        if latent.ndim != 2 or latent.shape[1] != self.latent_dim:
            raise ValueError(f"latent must be (B, {self.latent_dim}), got {tuple(latent.shape)}.")
        with _normalized_weights(self, latent.device):
            # Channels last in memory, where convolutions are faster and tokens are a view.
            x = self.linear(latent).unflatten(1, (_SIDE, _SIDE, -1)).permute(0, 3, 1, 2)  # (B, C, 4, 4)
            for block in self.blocks[:-1]:
                x = block(x, label)
            if self.attention is not None:
                x = self.attention(x)
            x = self.blocks[-1](x, label)
            return self.conv(F.relu(self.norm(x))).float().tanh()


class Discriminator(nn.Module):
    """Judges how real an image of a class looks: blocks that halve the feature map, and a projection on the class.

    At 32 pixels two blocks halve and two follow, all with 2 `width` channels; from 64 pixels on a block halves until
    4 x 4 are left and one follows, with `width` channels in the first and twice as many in each next one. The attention
    stands after the first block.

    Args:
        attention: As for `Generator`.
        num_classes: Number of classes.
        image_size: Height and width of the images, 16, 32, 64, ...
        width: 64 as published; half of it makes every layer half as wide.

    Raises:
        ValueError: If `image_size` is not one of these.

    Source:
        The projection: "cGANs with Projection Discriminator" (Miyato and Koyama, 2018).
    """

    def __init__(
        self,
        attention: AttentionFactory | None = None,
        *,
        num_classes: int = 10,
        image_size: int = 32,
        width: int = 64,
    ):
        super().__init__()
        doublings = _doublings(image_size)
        self.num_classes, self.image_size = num_classes, image_size
        if image_size <= 32:
            channels, halving = [2 * width] * 4, [True, True, False, False]
        else:
            channels = [width * min(16, 2**i) for i in range(doublings + 1)]
            halving = [True] * doublings + [False]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(c_in, c_out, halve=halve, first=i == 0)
            for i, (c_in, c_out, halve) in enumerate(zip([3, *channels[:-1]], channels, halving))
        )
        self.attention = None if attention is None else ScaledAttention(channels[0], attention=attention)
        self.linear = nn.Linear(channels[-1], 1)
        self.embedding = nn.Embedding(num_classes, channels[-1])
        _initialize(self)

    def forward(self, images: Tensor, label: Tensor) -> Tensor:
        """Judge images.

        Args:
            images: (B, 3, image_size, image_size), in -1..1.
            label: Class of each image, (B,).

        Returns:
            Scores, (B,), larger for images that look real; without a scale.

        Raises:
            ValueError: If the images have another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"images must be (B, 3, {self.image_size}, {self.image_size}), got {tuple(images.shape)}.")
        with _normalized_weights(self, images.device):
            x = self.blocks[0](images.contiguous(memory_format=torch.channels_last))
            if self.attention is not None:
                x = self.attention(x)
            for block in self.blocks[1:]:
                x = block(x)
            x = F.relu(x).float().sum((2, 3))  # (B, C)
            return self.linear(x).squeeze(1).float() + (self.embedding(label) * x).sum(1)


class ScaledAttention(nn.Module):
    """x + sigma * attention(x) over all pixels of a feature map, with a learned factor sigma that starts at 0.

    Args:
        channels: Channels C.
        attention: Builds the attention from its width.

    Source:
        Zhang et al., 2019, equation 3.
    """

    def __init__(self, channels: int, *, attention: AttentionFactory):
        super().__init__()
        self.attention = attention(channels)
        self.sigma = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) to (B, C, H, W)."""
        attended = self.attention(image.flatten(2).transpose(1, 2))  # (B, H W, C)
        return image + self.sigma * attended.transpose(1, 2).unflatten(2, image.shape[2:])

    def token_grids(self, image: Tensor) -> dict[str, tuple[int, int]]:
        """Rows and columns of the tokens, for `record_attention`."""
        return {"attention": (image.shape[2], image.shape[3])}


class ConditionalBatchNorm(nn.Module):
    """Batch norm with a scale and shift per class.

    Args:
        channels: Channels C.
        num_classes: Number of classes.

    Source:
        Dumoulin et al., 2017, with the scale learned as a difference from 1.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-4, affine=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) and classes (B,) to (B, C, H, W)."""
        x = self.norm(image)
        scale, shift = (embed(label)[:, :, None, None].to(x.dtype) for embed in (self.scale, self.shift))
        return torch.addcmul(shift, x, 1 + scale)


class GeneratorBlock(nn.Module):
    """A residual block that doubles the sides of a feature map.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        num_classes: Number of classes.
    """

    def __init__(self, in_channels: int, out_channels: int, num_classes: int):
        super().__init__()
        self.norm1 = ConditionalBatchNorm(in_channels, num_classes)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = ConditionalBatchNorm(out_channels, num_classes)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) and classes (B,) to (B, out_channels, 2 H, 2 W)."""
        x = self.conv1(_double(F.relu(self.norm1(image, label))))
        x = self.conv2(F.relu(self.norm2(x, label)))
        return x + _double(self.skip(image))  # published in the other order: the same result at four times the work


class DiscriminatorBlock(nn.Module):
    """A residual block that may halve the sides of a feature map.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        halve: Whether the result has half the sides.
        first: The input is an image, so no ReLU may come first.
    """

    def __init__(self, in_channels: int, out_channels: int, *, halve: bool, first: bool):
        super().__init__()
        self.halve, self.first = halve, first
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if halve or in_channels != out_channels else None

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W), or half of H and W."""
        x = self.conv2(F.relu(self.conv1(image if self.first else F.relu(image))))
        skipped = image
        if self.halve:
            x, skipped = F.avg_pool2d(x, 2), F.avg_pool2d(image, 2)  # the skip commutes with the mean
        return x + (skipped if self.skip is None else self.skip(skipped))


def _double(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2, mode="nearest")


def _doublings(image_size: int) -> int:
    """How often the 4 x 4 map is doubled."""
    doublings = (image_size // _SIDE).bit_length() - 1
    if image_size != _SIDE * 2**doublings or doublings < 2:
        raise ValueError(f"image_size must be 16, 32, 64 or a further doubling, got {image_size}.")
    return doublings


def _initialize(network: nn.Module) -> None:
    """Initialize orthogonally, and divide every matrix, including the attention's, by its spectral norm."""
    for module in [*network.modules()]:
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.orthogonal_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if parameter.ndim > 1:
                spectral_norm(module, name)


@contextmanager
def _normalized_weights(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Divide all weights by their spectral norms, once for the `with` block and in fp32.

    Otherwise a tied memory would become two, one power iteration apart, and autocast would iterate in half precision.
    """
    with parametrize.cached():
        with torch.autocast(device.type, enabled=False):
            for module in network.modules():
                if parametrize.is_parametrized(module):
                    for name in module.parametrizations:  # type: ignore[union-attr]
                        getattr(module, name)
        yield
