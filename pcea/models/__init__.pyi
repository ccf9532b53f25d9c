from .build import build_network
from .capture import example_inputs, export_onnx, export_program
from .dilated_resnet import DilatedResNet
from .eamlp import ImageTransformer, eamlp_7, eamlp_14, eamlp_19, t2t_vit_7, t2t_vit_14, t2t_vit_19
from .eamlp_checkpoint import load_eamlp_checkpoint
from .eanet import EANet, eanet_50, eanet_101
from .edge_pooling import EdgePooling, EllipsoidEncoding
from .ensemble import ClassifierEnsemble
from .neighbor_embedding import NeighborEmbedding
from .pct_checkpoint import load_pct_checkpoint
from .point_ea import (
    PointEAClassifier,
    PointEAEncoder,
    PointEASegmenter,
    point_ea_classifier,
    point_ea_part_segmenter,
)
from .point_segmenter import PointTransformerSegmenter, eat_part_segmenter, eat_semantic_segmenter, pct_part_segmenter
from .point_transformer import (
    PointTransformerClassifier,
    PointTransformerEncoder,
    eat_classifier,
    naive_pct_classifier,
    pct_classifier,
)
from .rcnn import CascadeRCNN, FasterRCNN, MaskRCNN, RetinaNet
from .resnet import ResNet
from .sagan import Discriminator, Generator

__all__ = [
    "CascadeRCNN",
    "ClassifierEnsemble",
    "DilatedResNet",
    "Discriminator",
    "EANet",
    "EdgePooling",
    "EllipsoidEncoding",
    "FasterRCNN",
    "Generator",
    "ImageTransformer",
    "MaskRCNN",
    "NeighborEmbedding",
    "PointEAClassifier",
    "PointEAEncoder",
    "PointEASegmenter",
    "PointTransformerClassifier",
    "PointTransformerEncoder",
    "PointTransformerSegmenter",
    "ResNet",
    "RetinaNet",
    "build_network",
    "eamlp_7",
    "eamlp_14",
    "eamlp_19",
    "eanet_50",
    "eanet_101",
    "eat_classifier",
    "eat_part_segmenter",
    "eat_semantic_segmenter",
    "example_inputs",
    "export_onnx",
    "export_program",
    "load_eamlp_checkpoint",
    "load_pct_checkpoint",
    "naive_pct_classifier",
    "pct_classifier",
    "pct_part_segmenter",
    "point_ea_classifier",
    "point_ea_part_segmenter",
    "t2t_vit_7",
    "t2t_vit_14",
    "t2t_vit_19",
]
