from .nn.attention import (
    ExternalAttention,
    MultiHeadExternalAttention,
    OffsetAttention,
    ResidualAttention,
    SelfAttention,
    double_normalize,
)
from .nn.layers import ExternalAttention2d, LinearNormAct
from .nn.recording import AttentionMap, record_attention
from .inference.networks import load
from .models.eamlp import ImageTransformer, eamlp_7, eamlp_14, eamlp_19, t2t_vit_7, t2t_vit_14, t2t_vit_19
from .models.eanet import EANet, eanet_50, eanet_101
from .models.point_ea import (
    PointEAClassifier,
    PointEAEncoder,
    PointEASegmenter,
    point_ea_classifier,
    point_ea_part_segmenter,
)
from .models.point_segmenter import (
    PointTransformerSegmenter,
    eat_part_segmenter,
    eat_semantic_segmenter,
    pct_part_segmenter,
)
from .models.point_transformer import (
    PointTransformerClassifier,
    PointTransformerEncoder,
    eat_classifier,
    naive_pct_classifier,
    pct_classifier,
)
from .ops.grouping import gather_points, group_neighbors
from .ops.interpolation import interpolate_features
from .ops.neighbors import ball_query, knn
from .ops.pooling import max_neighbors, max_quadratic
from .ops.sampling import farthest_point_sample
from .commands.cpu import tune_allocator

__all__ = [
    "AttentionMap",
    "EANet",
    "ExternalAttention",
    "ExternalAttention2d",
    "ImageTransformer",
    "LinearNormAct",
    "MultiHeadExternalAttention",
    "OffsetAttention",
    "PointEAClassifier",
    "PointEAEncoder",
    "PointEASegmenter",
    "PointTransformerClassifier",
    "PointTransformerEncoder",
    "PointTransformerSegmenter",
    "ResidualAttention",
    "SelfAttention",
    "ball_query",
    "double_normalize",
    "eamlp_7",
    "eamlp_14",
    "eamlp_19",
    "eanet_50",
    "eanet_101",
    "eat_classifier",
    "eat_part_segmenter",
    "eat_semantic_segmenter",
    "farthest_point_sample",
    "gather_points",
    "group_neighbors",
    "interpolate_features",
    "knn",
    "load",
    "max_neighbors",
    "max_quadratic",
    "naive_pct_classifier",
    "pct_classifier",
    "pct_part_segmenter",
    "point_ea_classifier",
    "point_ea_part_segmenter",
    "record_attention",
    "t2t_vit_7",
    "t2t_vit_14",
    "t2t_vit_19",
    "tune_allocator",
]
