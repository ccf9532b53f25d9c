"""ResNet with external attention at its end: the backbone of detectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcea.nn.layers import ExternalAttention2d


class ResNet(nn.Module):
    """torchvision's ResNet without its classifier, with one EANet block at the end of the last stage.

    The block starts as the identity, its batch norm at zero, so that a pretrained network starts unchanged. The same
    seed gives the other weights the same values with and without the block. Without ImageNet weights every residual
    block starts as its shortcut too.

    Args:
        depth: Layers: 18, 34, 50 or 101.
        external_attention: Whether to add the EANet block. Its memories are two parameters, as in `EANet`.
        attention_width: Channels inside the block; by default as many as in the last stage. The paper does not say
            whether its block narrows the 2,048 channels of ResNet-50.
        memory_units: Slots S of the external attention.
        norm: "batch", or "frozen": batch norm that keeps its weights and statistics, for pretrained networks and
            small batches. The norm of the EANet block, which is not pretrained, is never frozen.
        pretrained: Start from torchvision's ImageNet weights, which are downloaded.
        trainable_stages: How many of the stem and four stages are trained, counted from the last; the EANet block
            always is.

    Attributes:
        channels: Channels of the four outputs.

    Raises:
        ValueError: If an option is unknown.
        FileNotFoundError: If the ImageNet weights cannot be downloaded.

    Source:
        He et al., 2016; the place of the block: Guo et al., 2021.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        external_attention: bool = True,
        attention_width: int | None = None,
        memory_units: int = 64,
        norm: Literal["batch", "frozen"] = "batch",
        pretrained: bool = False,
        trainable_stages: int = 5,
    ):
        super().__init__()
        from torchvision import models, ops  # importing pcea must not wait for torchvision

        if depth not in (18, 34, 50, 101):
            raise ValueError(f"depth must be 18, 34, 50 or 101, got {depth}.")
        if norm not in ("batch", "frozen"):
            raise ValueError(f"norm must be batch or frozen, got {norm!r}.")
        if not 0 <= trainable_stages <= 5:
            raise ValueError(f"trainable_stages must be in 0..5, got {trainable_stages}.")
        name, layer = f"resnet{depth}", nn.BatchNorm2d if norm == "batch" else ops.FrozenBatchNorm2d
        # A frozen norm that starts at zero would stay there.
        network = models.get_model(name, norm_layer=layer, zero_init_residual=norm == "batch")
        if pretrained:
            network.load_state_dict(imagenet_weights(models.get_model_weights(name).IMAGENET1K_V1))
        self.channels = [network.inplanes // 2**i for i in (3, 2, 1, 0)]
        self.conv1, self.bn1 = network.conv1, network.bn1
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(network, f"layer{i}") for i in (1, 2, 3, 4))
        stages = [nn.ModuleList([self.conv1, self.bn1]), self.layer1, self.layer2, self.layer3, self.layer4]
        for stage in stages[: 5 - trainable_stages]:
            stage.requires_grad_(False)
        self.attention = None
        if external_attention:
            with torch.random.fork_rng(devices=[]):  # what is built next starts the same with and without the block
                self.attention = ExternalAttention2d(
                    self.channels[-1], width=attention_width, memory_units=memory_units, tied=False
                )
            nn.init.zeros_(self.attention.norm.weight)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) to the feature maps of the four stages.

        Returns:
            "0", "1", "2", "3": (B, channels[i], H / 4 / 2^i, W / 4 / 2^i), rounded up.

        Raises:
            ValueError: If the images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}.")
        x = F.relu(self.bn1(self.conv1(images)))  # (B, 64, H / 2, W / 2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        features = {}
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            features[str(i)] = x = stage(x)
        if self.attention is not None:
            features["3"] = self.attention(x)
        return features


def imagenet_weights(weights: Any) -> Mapping[str, Tensor]:
    """Load the state of a torchvision network, downloading it if needed.

    Args:
        weights: An entry of a torchvision enumeration of weights.

    Raises:
        FileNotFoundError: If the download fails.
    """
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a damaged file
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise FileNotFoundError(
            f"Downloading the ImageNet weights from {weights.url} failed: {error}. Put that file into {folder}, or set "
            "pretrained to false."
        ) from error
