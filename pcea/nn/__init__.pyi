from .attention import (
    AttentionMap,
    ExternalAttention,
    MultiHeadExternalAttention,
    OffsetAttention,
    ResidualAttention,
    SelfAttention,
    double_normalize,
    record_attention,
)
from .layers import Dropout, ExternalAttention2d, LinearNormAct
from .linear import Linear

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
    "double_normalize",
    "record_attention",
]
