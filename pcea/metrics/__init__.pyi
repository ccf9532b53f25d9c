from .generation import ClassSpread, FeatureNetwork, GenerationMetrics
from .part_iou import PartIoU

__all__ = ["ClassSpread", "FeatureNetwork", "GenerationMetrics", "PartIoU"]
