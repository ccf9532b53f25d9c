from .attention import (
    ExternalAttention,
    MultiHeadExternalAttention,
    OffsetAttention,
    ResidualAttention,
    SelfAttention,
    double_normalize,
)
from .layers import Dropout, ExternalAttention2d, LinearNormAct, TokenMLP
from .linear import Linear, use_convolutions
from .recording import AttentionMap, record_attention

__all__ = [
    "AttentionMap",
    "Dropout",
    "ExternalAttention",
    "ExternalAttention2d",
    "Linear",
    "LinearNormAct",
    "MultiHeadExternalAttention",
    "OffsetAttention",
    "ResidualAttention",
    "SelfAttention",
    "TokenMLP",
    "double_normalize",
    "record_attention",
    "use_convolutions",
]
