"""ResNet whose last stages keep their resolution: the backbone for semantic segmentation.

Source: ResNet (He et al., 2016) with dilation and multi-grid (Chen et al., "Rethinking Atrous Convolution", 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pcea.models.resnet import imagenet_weights


class DilatedResNet(nn.Module):
    """Images to feature maps with torchvision's bottleneck blocks and the names of its `ResNet`.

    Where a stage would exceed the output stride, its blocks are dilated instead. In the last stage the dilation also
    doubles from block to block (multi-grid 1, 2, 4); the first block of a stage keeps the dilation of the stage before.
    Without ImageNet weights every block starts as its shortcut alone, its last batch norm at zero: otherwise ResNet-50
    amplifies the rounding errors of bf16 a hundredfold, and learns slowly in it.

    Args:
        in_channels: Channels of the image.
        depth: Blocks of the four stages.
        width: Width of the first stage's bottleneck; the output has 32 times as many channels.
        output_stride: Pixels of the image, along each side, that become one pixel of the feature map: 8 or 16.
        stem: "deep": three 3x3 convolutions, the last twice as wide. "plain": one 7x7 convolution.
        pretrained: Start from torchvision's ImageNet weights, which are downloaded.

    Raises:
        ValueError: If an option is unknown, or there are no ImageNet weights for this network.
        FileNotFoundError: If the ImageNet weights cannot be downloaded.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        output_stride: int = 8,
        stem: Literal["deep", "plain"] = "deep",
        pretrained: bool = False,
    ):
        super().__init__()
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride must be 8 or 16, got {output_stride}.")
        if len(depth) != 4 or any(blocks < 1 for blocks in depth):
            raise ValueError(f"depth must be 4 positive numbers of blocks, got {list(depth)}.")
        if stem not in ("deep", "plain"):
            raise ValueError(f"stem must be deep or plain, got {stem!r}.")
        self.out_channels = 32 * width
        channels = 2 * width if stem == "deep" else width
        self.conv1 = _deep_stem(in_channels, width) if stem == "deep" else _conv(in_channels, width, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(channels)
        stages, reached, dilation = [], 4, 1
        for i, blocks in enumerate(depth):
            stride, before = 1 if i == 0 else 2, dilation
            if reached * stride > output_stride:
                stride, dilation = 1, dilation * stride
            reached *= stride
            grid = [2**b if i == 3 else 1 for b in range(1, blocks)]
            stages.append(_stage(channels, width * 2**i, stride, [before, *(dilation * g for g in grid)]))
            channels = 4 * width * 2**i
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if pretrained:
            if (in_channels, width, stem) != (3, 64, "plain"):
                raise ValueError(
                    "pretrained needs in_channels=3, width=64 and stem='plain', as torchvision has no other ImageNet "
                    f"weights; got in_channels={in_channels}, width={width}, stem={stem!r}."
                )
            self.load_state_dict(_imagenet_weights(depth))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to features (B, 32 width, H / output_stride, W / output_stride)."""
        x = F.relu(self.bn1(self.conv1(images)))  # (B, C, H / 2, W / 2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)  # (B, C, H / 4, W / 4)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)


def _deep_stem(in_channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(in_channels, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        _conv(width, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        _conv(width, 2 * width, 3),
    )


def _stage(in_channels: int, width: int, stride: int, dilations: Sequence[int]) -> nn.Sequential:
    from torchvision.models.resnet import Bottleneck  # importing pcea must not wait for torchvision

    out_channels = 4 * width
    shortcut = nn.Sequential(_conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels))
    blocks = [Bottleneck(in_channels, width, stride, shortcut, dilation=dilations[0])]
    blocks += [Bottleneck(out_channels, width, dilation=dilation) for dilation in dilations[1:]]
    for block in blocks:
        nn.init.zeros_(block.bn3.weight)
    return nn.Sequential(*blocks)


def _imagenet_weights(depth: Sequence[int]) -> Mapping[str, Tensor]:
    from torchvision import models

    published: dict[tuple[int, ...], Any] = {
        (3, 4, 6, 3): models.ResNet50_Weights,
        (3, 4, 23, 3): models.ResNet101_Weights,
        (3, 8, 36, 3): models.ResNet152_Weights,
    }
    if tuple(depth) not in published:
        raise ValueError(f"pretrained needs a depth of {', '.join(map(str, published))}, got {list(depth)}.")
    state = imagenet_weights(published[tuple(depth)].IMAGENET1K_V1)  # which torchvision's own segmenters start from
    return {name: weight for name, weight in state.items() if not name.startswith("fc.")}
