from .base import Task
from .callbacks import AverageWeights, LogClouds
from .detection import DetectionTask
from .generation import GenerationTask, generate, load_generator
from .image_classification import ImageClassificationTask
from .image_segmentation import ImageSegmentationTask
from .point_classification import PointClassificationTask
from .point_segmentation import PointSegmentationTask
from .schedules import OneCycle, Poly, Steps, WarmupCosine

__all__ = [
    "AverageWeights",
    "DetectionTask",
    "GenerationTask",
    "ImageClassificationTask",
    "ImageSegmentationTask",
    "LogClouds",
    "OneCycle",
    "PointClassificationTask",
    "PointSegmentationTask",
    "Poly",
    "Steps",
    "Task",
    "WarmupCosine",
    "generate",
    "load_generator",
]
