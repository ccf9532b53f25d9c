"""Multi-head external attention in place of every self-attention of timm's ViT. Needs timm (pip install timm).

Pretrained weights can be kept except those of the attention, so the network has to be trained.
"""

import timm
import torch

from pcea import MultiHeadExternalAttention


class TimmAttention(MultiHeadExternalAttention):
    """The layer with the arguments that timm passes."""

    def forward(self, tokens, attn_mask=None, is_causal=False):
        """Map tokens (B, N, C) to (B, N, C)."""
        if attn_mask is not None or is_causal:
            raise ValueError("External attention does not compare pairs of tokens, so there are no pairs to mask.")
        return super().forward(tokens)


vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10)
for block in vit.blocks:
    block.attn = TimmAttention(vit.embed_dim, num_heads=block.attn.num_heads)
vit.token_grids = lambda _: {"blocks": (14, 14)}  # rows and columns of patches, for record_attention

logits = vit(torch.rand(2, 3, 224, 224))  # (2, 10)
