from .base import OneCycle, Task
from .callbacks import LogClouds
from .detection import DetectionTask
from .generation import GenerationTask, generate, load_generator
from .image_classification import ImageClassificationTask
from .image_segmentation import SemanticSegmentationTask
from .point_classification import ClassificationTask
from .point_segmentation import SegmentationTask
from .schedules import Poly, Steps, WarmupCosine

__all__ = [
    "ClassificationTask",
    "DetectionTask",
    "GenerationTask",
    "ImageClassificationTask",
    "LogClouds",
    "OneCycle",
    "Poly",
    "SegmentationTask",
    "SemanticSegmentationTask",
    "Steps",
    "Task",
    "WarmupCosine",
    "generate",
    "load_generator",
]
