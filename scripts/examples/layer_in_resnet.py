"""External attention in torchvision's ResNet, for classification or as a backbone.

The block becomes the last one of a stage. With a scale of zero the network computes what it did before, so pretrained
weights stay useful.
"""

import torch
from torchvision.models import resnet18

from pcea import ExternalAttention2d

network = resnet18(weights=None)  # or weights="DEFAULT"
block = ExternalAttention2d(256)  # the channels of layer3; 1024 in resnet50
torch.nn.init.zeros_(block.norm.weight)
network.layer3.append(block)

logits = network(torch.rand(2, 3, 224, 224))  # (2, 1000)
