"""Your own network with everything that the shipped ones have: training, tests, export, prediction and pictures.

A classifier of point clouds takes `(points, features, mask=)` and has the attribute `num_classes`; nothing else is
asked of it. No file but this one and own_network.yaml is needed. From this folder:

    export PYTHONPATH=.                      # so that pcea finds this file
    pcea fit  --config own_network.yaml
    pcea test --config own_network.yaml
    pcea predict chair.obj --weights own_network.yaml --trust own_network
    pcea visualize chair.obj --weights own_network.yaml --trust own_network --output chair.png
    pcea export own_network.yaml --trust own_network --output own_network.safetensors
"""

import torch
from torch import Tensor, nn

from pcea import ExternalAttention


class SetNetwork(nn.Module):
    """Classify clouds by one external attention between pointwise layers and a maximum over the points.

    Args:
        num_classes: Number of classes.
        width: Width of the point features, C.
    """

    def __init__(self, num_classes: int, *, width: int = 64):
        super().__init__()
        self.num_classes = num_classes
        self.embed = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
        self.attention = ExternalAttention(width)
        self.classify = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, num_classes))

    def forward(self, points: Tensor, features: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Logits of clouds.

        Args:
            points: Coordinates in the unit sphere, (B, N, 3).
            features: Not used: this network takes no normals.
            mask: True for real points, (B, N); None if all are real.

        Returns:
            Logits, (B, num_classes).
        """
        tokens = self.embed(points)  # (B, N, C)
        tokens = torch.cat((tokens, self.attention(tokens, mask=mask)), dim=-1)  # (B, N, 2C)
        if mask is not None:
            tokens = tokens.masked_fill(~mask[..., None], -torch.inf)
        return self.classify(tokens.amax(1))
