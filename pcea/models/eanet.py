"""EANet for semantic segmentation: a dilated ResNet and one external attention over all pixels.

Source: Guo et al., 2021, section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pcea.models.build import check_num_classes
from pcea.models.dilated_resnet import DilatedResNet
from pcea.nn.layers import ExternalAttention2d


class EANet(nn.Module):
    """Semantic segmenter: dilated ResNet, 3x3 convolution, external attention, 3x3 convolution, 1x1 convolution.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the image.
        depth: Blocks of the backbone's four stages: (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101.
        width: 64 as published; half of it makes every layer half as wide.
        output_stride: See `DilatedResNet`: 8 as published, 16 is several times cheaper.
        stem: See `DilatedResNet`: "deep" as published.
        memory_units: Slots S of the external attention.
        tied: One parameter as key and value memory. The published runs trained with False: two that start equal.
        dropout: Probability of dropping a feature map before the last convolution in training.
        pretrained: Start the backbone from torchvision's ImageNet weights, which are downloaded; needs the plain stem.

    Raises:
        ValueError: If an option of the backbone is unknown, or there are no ImageNet weights for it.
        FileNotFoundError: If the ImageNet weights cannot be downloaded.
    """

    def __init__(
        self,
        *,
        num_classes: int = 21,
        in_channels: int = 3,
        depth: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        output_stride: int = 8,
        stem: Literal["deep", "plain"] = "deep",
        memory_units: int = 64,
        tied: bool = False,
        dropout: float = 0.1,
        pretrained: bool = False,
    ):
        super().__init__()
        from torchvision.ops import Conv2dNormActivation  # importing pcea must not wait for torchvision

        check_num_classes(num_classes)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.backbone = DilatedResNet(
            in_channels=in_channels,
            depth=depth,
            width=width,
            output_stride=output_stride,
            stem=stem,
            pretrained=pretrained,
        )
        self.conv1 = Conv2dNormActivation(32 * width, 8 * width)
        self.attention = ExternalAttention2d(8 * width, memory_units=memory_units, tied=tied)
        self.conv2 = Conv2dNormActivation(8 * width, 4 * width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(4 * width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Classify the pixels of images (B, in_channels, H, W) of any size; logits (B, num_classes, H, W).

        Raises:
            ValueError: If the images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images must be (B, {self.in_channels}, H, W), got {tuple(images.shape)}.")
        x = self.conv1(self.backbone(images))  # (B, C, H / output_stride, W / output_stride)
        x = self.dropout(self.conv2(self.attention(x)))
        return F.interpolate(self.classify(x), images.shape[2:], mode="bilinear", align_corners=True)


def eanet_50(
    num_classes: int = 21, *, output_stride: int = 8, stem: Literal["deep", "plain"] = "deep", pretrained: bool = False
) -> EANet:
    """EANet on ResNet-50; 34.85M parameters for 21 classes. Arguments as for `EANet`."""
    return EANet(num_classes=num_classes, output_stride=output_stride, stem=stem, pretrained=pretrained)


def eanet_101(
    num_classes: int = 21, *, output_stride: int = 8, stem: Literal["deep", "plain"] = "deep", pretrained: bool = False
) -> EANet:
    """EANet on ResNet-101; 53.84M parameters for 21 classes. Arguments as for `EANet`."""
    return EANet(
        num_classes=num_classes, depth=(3, 4, 23, 3), output_stride=output_stride, stem=stem, pretrained=pretrained
    )
