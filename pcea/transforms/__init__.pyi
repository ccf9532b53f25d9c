from .images import RandomErase, RandomFlip, RandomScaledCrop, RandomShift
from .points import (
    FarthestSubset,
    RandomDropNormals,
    RandomDropPoints,
    RandomJitter,
    RandomOrientation,
    RandomRotate,
    RandomScale,
    RandomSubset,
    RandomTranslate,
)

__all__ = [
    "FarthestSubset",
    "RandomDropNormals",
    "RandomDropPoints",
    "RandomErase",
    "RandomFlip",
    "RandomJitter",
    "RandomOrientation",
    "RandomRotate",
    "RandomScale",
    "RandomScaledCrop",
    "RandomShift",
    "RandomSubset",
    "RandomTranslate",
]
