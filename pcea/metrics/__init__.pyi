from .calibration import Calibration, Trust
from .generation import ClassSpread, FeatureNetwork, GenerationMetrics
from .part_iou import PartIoU

__all__ = ["Calibration", "ClassSpread", "FeatureNetwork", "GenerationMetrics", "PartIoU", "Trust"]
