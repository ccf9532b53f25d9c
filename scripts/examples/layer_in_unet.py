"""External attention at the bottleneck of a U-Net, and what its pixels attend to."""

import torch
from torch import nn

from pcea import ExternalAttention2d, record_attention


def convolve(channels, width):
    """A 3 x 3 convolution with normalization and ReLU."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


class Skip(nn.Module):
    """Run layers at half the resolution and append their output to the input."""

    def __init__(self, inner):
        super().__init__()
        self.inner = nn.Sequential(nn.MaxPool2d(2), inner, nn.Upsample(scale_factor=2))

    def forward(self, image):
        """Map (B, C, H, W) to (B, C + D, H, W), H and W even."""
        return torch.cat((image, self.inner(image)), dim=1)


bottleneck = nn.Sequential(convolve(64, 128), ExternalAttention2d(128), convolve(128, 64))
middle = nn.Sequential(convolve(32, 64), Skip(bottleneck), convolve(128, 32))
unet = nn.Sequential(convolve(3, 32), Skip(middle), convolve(64, 32), nn.Conv2d(32, 5, 1))

with record_attention(unet) as maps:
    logits = unet(torch.rand(2, 3, 64, 96))  # (2, 5, 64, 96)
(attention,) = maps.values()
weights = attention.weights.unflatten(1, attention.grid)  # (2, 16, 24, 64): rows, columns, slots
