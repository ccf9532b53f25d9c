"""Quality of generated images, measured with Inception or with a classifier of pcea."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from pcea.datasets.batches import normalize


class GenerationMetrics:
    """How realistic and how varied generated images are, compared with real ones of the same classes.

    With Inception, in its own units, not percent:
        fid: Fréchet distance of its 2,048 features; 0 is best.
        inception_score: exp of the mean KL divergence of each image's class distribution from the overall one; mean of
            10 parts.

    With a classifier of pcea; these compare only with numbers of the same classifier, hence the other names:
        frechet_distance: The same distance between the inputs of its last layer.
        classifier_score: The inception score, from its classes.
        class_accuracy: Share of the generated images that it assigns to the requested class.
        diversity: Total variance of the features of generated images over that of real ones, averaged over classes: 1
            is as varied as real images, near 0 means copies of one image (mode collapse). Above 1 is not good either:
            images of one requested class look like several classes, or like noise.
        real_class_accuracy, real_classifier_score: The same for the real images: what can be reached.

    Args:
        num_classes: Number of classes.
        features: The classifier; None for Inception.

    Raises:
        ImportError: If Inception is wanted and torch-fidelity is not installed.
        FileNotFoundError: If its weights cannot be downloaded.

    Source:
        Heusel et al., 2017, for FID; Salimans et al., 2016, for the inception score.
    """

    def __init__(self, num_classes: int, features: FeatureNetwork | None):
        self._features = features
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Metric `InceptionScore` will save all")  # 10 numbers per image
            self._metrics: dict[str, Any] = _inception() if features is None else _classifier(num_classes, features)

    def to(self, device: torch.device) -> GenerationMetrics:
        """Move everything to a device."""
        for metric in self._metrics.values():
            metric.to(device)
        if self._features is not None:
            self._features.network.to(device)
        return self

    def reset(self) -> None:
        """Forget all images."""
        for metric in self._metrics.values():
            metric.reset()

    def update(self, real: Tensor, generated: Tensor, label: Tensor) -> None:
        """Count real and generated images (B, 3, H, W), uint8, that have the same classes (B,)."""
        metrics = self._metrics
        # A covariance matrix does not survive half precision.
        with torch.autocast(real.device.type, enabled=False):
            if self._features is None:
                metrics["fid"].update(real, real=True)
                metrics["fid"].update(generated, real=False)
                metrics["inception_score"].update(generated)
                return
            for images, prefix in ((real, "real_"), (generated, "")):
                features, logits = self._features(images)
                metrics["frechet_distance"].update(features, real=bool(prefix))
                metrics[f"{prefix}spread"].update(features, label)
                metrics[f"{prefix}class_accuracy"].update(logits, label)
                metrics[f"{prefix}classifier_score"].update(logits)

    def compute(self) -> dict[str, Tensor]:
        """The measured values by name."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # the scores divide the images into parts at random
            values = {name: metric.compute() for name, metric in self._metrics.items()}
        for name in values:
            if name.endswith("score"):
                values[name] = values[name][0]  # without its deviation
        if self._features is not None:
            ratio = values.pop("spread") / values.pop("real_spread")
            values["diversity"] = ratio.nanmean()
        return values


def _inception() -> dict[str, Metric]:
    instead = "or measure by a classifier of your own: model.init_args.feature_network"
    try:
        return {"fid": FrechetInceptionDistance(), "inception_score": InceptionScore()}
    except ModuleNotFoundError as error:
        raise ImportError(f"FID needs torch-fidelity: pip install torch-fidelity, {instead}.") from error
    except OSError as error:
        raise FileNotFoundError(
            f"Weights of Inception cannot be downloaded ({error}): try again, {instead}."
        ) from error


def _classifier(num_classes: int, features: FeatureNetwork) -> dict[str, Metric]:
    given = nn.Identity()  # the metrics take features and logits instead of images
    given.num_features = features.num_features  # type: ignore[assignment]
    metrics: dict[str, Metric] = {"frechet_distance": FrechetInceptionDistance(given)}
    for prefix in ("", "real_"):
        metrics[f"{prefix}class_accuracy"] = MulticlassAccuracy(num_classes, average="micro")
        metrics[f"{prefix}classifier_score"] = InceptionScore(given)
        metrics[f"{prefix}spread"] = ClassSpread(num_classes, features.num_features)
    return metrics


class FeatureNetwork:
    """Features and logits of images from a trained classifier.

    Args:
        network: The classifier; its last layer is a linear one named `head`.
        mean: Mean of red, green and blue that is subtracted from images, in 0..1.
        std: Standard deviation by which they are then divided.
        image_size: Height and width to which images are scaled; () leaves them as they are.

    Raises:
        ValueError: If it has no such layer.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float], image_size: Sequence[int] = ()):
        head = getattr(network, "head", None)
        if not isinstance(head, nn.Linear):
            raise ValueError(f"{type(network).__name__} is not an image classifier with a linear layer `head`.")
        self.network, self.mean, self.std, self.image_size = network, mean, std, tuple(image_size)
        self.num_features, self.num_classes = head.in_features, head.out_features
        self._seen = torch.empty(0)
        head.register_forward_pre_hook(lambda _, inputs: setattr(self, "_seen", inputs[0]))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, num_classes) of images (B, 3, H, W), uint8, of any size."""
        scaled = images.float()
        if self.image_size and tuple(images.shape[2:]) != self.image_size:
            scaled = F.interpolate(scaled, self.image_size, mode="bilinear", antialias=True)
        logits = self.network(normalize(scaled, self.mean, self.std))
        return self._seen.float(), logits.float()


class ClassSpread(Metric):
    """Total variance of the features of each class: the trace of their covariance, (num_classes,).

    NaN for a class of fewer than two images.

    Args:
        num_classes: Number of classes.
        num_features: Numbers D of a feature.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    square: Tensor

    def __init__(self, num_classes: int, num_features: int):
        super().__init__()
        zeros = partial(torch.zeros, dtype=torch.float64)
        self.add_state("count", zeros(num_classes), dist_reduce_fx="sum")
        self.add_state("total", zeros(num_classes, num_features), dist_reduce_fx="sum")
        self.add_state("square", zeros(num_classes), dist_reduce_fx="sum")

    def update(self, features: Tensor, label: Tensor) -> None:
        """Count features (B, D) of classes (B,)."""
        features = features.double()
        self.count.index_add_(0, label, torch.ones_like(label, dtype=torch.float64))
        self.total.index_add_(0, label, features)
        self.square.index_add_(0, label, features.square().sum(1))

    def compute(self) -> Tensor:
        """The variances."""
        excess = self.square - self.total.square().sum(1) / self.count
        return (excess / (self.count - 1)).masked_fill(self.count < 2, torch.nan)
