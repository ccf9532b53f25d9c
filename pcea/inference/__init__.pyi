from .base import Predictor
from .classes import ClassPrediction
from .examples import Examples, read_examples
from .explanation import Explanation
from .images import ImagePredictor
from .masks import MaskPrediction, MaskPredictor
from .networks import load
from .objects import ObjectPrediction, ObjectPredictor
from .parts import PartPrediction, PartPredictor
from .points import PointPredictor

__all__ = [
    "ClassPrediction",
    "Examples",
    "Explanation",
    "ImagePredictor",
    "MaskPrediction",
    "MaskPredictor",
    "ObjectPrediction",
    "ObjectPredictor",
    "PartPrediction",
    "PartPredictor",
    "PointPredictor",
    "Predictor",
    "load",
    "read_examples",
]
