"""Learning with external attention on point clouds and images. Importing these names loads torch alone."""

from pcea.attention import (
    AttentionMap,
    ExternalAttention,
    MultiHeadExternalAttention,
    OffsetAttention,
    ResidualAttention,
    SelfAttention,
    double_normalize,
    record_attention,
)
from pcea.layers import ExternalAttention2d, LinearNormAct
from pcea.models.eamlp import (
    ImageTransformer,
    eamlp_7,
    eamlp_14,
    eamlp_19,
    t2t_vit_7,
    t2t_vit_14,
    t2t_vit_19,
)
from pcea.models.eanet import EANet, eanet_50, eanet_101
from pcea.models.point_segmenter import (
    PointTransformerSegmenter,
    eat_part_segmenter,
    eat_semantic_segmenter,
    pct_part_segmenter,
)
from pcea.models.point_transformer import (
    PointTransformerClassifier,
    PointTransformerEncoder,
    eat_classifier,
    naive_pct_classifier,
    pct_classifier,
)
from pcea.ops import (
    ball_query,
    farthest_point_sample,
    gather_points,
    group_neighbors,
    interpolate_features,
    knn,
)

__all__ = [
    "AttentionMap",
    "EANet",
    "ExternalAttention",
    "ExternalAttention2d",
    "ImageTransformer",
    "LinearNormAct",
    "MultiHeadExternalAttention",
    "OffsetAttention",
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
    "naive_pct_classifier",
    "pct_classifier",
    "pct_part_segmenter",
    "record_attention",
    "t2t_vit_7",
    "t2t_vit_14",
    "t2t_vit_19",
]
