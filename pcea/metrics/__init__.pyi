from .calibration import Calibration, Trust
from .class_accuracy import MeanClassAccuracy
from .generation import ClassSpread, FeatureNetwork, GenerationMetrics
from .part_iou import PartIoU

__all__ = ["Calibration", "ClassSpread", "FeatureNetwork", "GenerationMetrics", "MeanClassAccuracy", "PartIoU", "Trust"]
