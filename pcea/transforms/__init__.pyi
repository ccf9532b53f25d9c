from .images import RandomErase, RandomFlip, RandomScaledCrop, RandomShift
from .points import (
    FarthestSubset,
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
