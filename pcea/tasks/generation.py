"""Image generation with two networks trained against each other.

Images from a trained generator:

    from torchvision.utils import save_image
    from pcea.tasks.generation import generate, load_generator

    generator = load_generator("last.ckpt")
    images = generate(generator, label=[0, 0, 1, 1], seed=3)  # (4, 3, H, W), uint8
    save_image(images / 255, "images.png")
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from pcea.datasets.batches import ImageBatch
from pcea.inference.base import evaluating
from pcea.inference.networks import load
from pcea.io.checkpoints import read_network
from pcea.metrics.generation import FeatureNetwork, GenerationMetrics
from pcea.models.build import build_network
from pcea.models.sagan import Discriminator, Generator
from pcea.tasks.base import Task

_LARGEST_GRID = 20
"""Classes shown in a picture of samples."""


class GenerationTask(Task):
    """Train a generator and a discriminator against each other with the hinge loss, and measure the generator.

    Every training batch is one step of the discriminator, on as many real as generated images; every
    `discriminator_steps`-th is also one of the generator. Lightning counts both, so that `trainer.max_steps` of S steps
    are S / (discriminator_steps + 1) of the generator.

    Validation and test generate one image for each image of the split, of the same class, and log what
    `GenerationMetrics` measures: `fid` and `inception_score`, or with a classifier of pcea the measures named there.

    Args:
        generator: Makes images.
        discriminator: Judges images.
        generator_optimizer: Builds the optimizer from the generator's parameters.
        discriminator_optimizer: Builds the optimizer from the discriminator's parameters.
        discriminator_steps: Steps of the discriminator for each of the generator.
        ema_decay: Also keep a moving average of the generator's weights, and use it for samples and measures. After
            step t of the generator its decay is at most (1 + t) / (10 + t), so that it forgets the start.
        sample_every: Steps of the generator between two pictures of samples, one row per class (20 at most), always
            from the same noise, in the folder `samples` of the run and in TensorBoard; 0 makes none.
        samples_per_class: Images in a row.
        feature_network: Checkpoint or weights file of an image classifier of pcea to measure with. None measures with
            Inception, whose weights torch-fidelity downloads.

    Raises:
        ValueError: If the networks do not fit each other, or a number is out of range.

    Source:
        Zhang et al., 2019; the hinge loss: "Geometric GAN" (Lim and Ye, 2017).
    """

    kind = "generation"
    network_argument = "generator"

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        generator_optimizer: OptimizerCallable,
        discriminator_optimizer: OptimizerCallable,
        *,
        discriminator_steps: int = 5,
        ema_decay: float | None = None,
        sample_every: int = 1000,
        samples_per_class: int = 8,
        feature_network: str | None = None,
    ):
        super().__init__(generator, generator_optimizer)
        if "_instantiator" not in self.hparams:
            # Not from YAML: Lightning would warn about networks, which cannot be pickled with normalized weights.
            self.hparams.clear()
            self.save_hyperparameters(ignore=["generator", "discriminator"])
        for name in ("num_classes", "image_size"):
            ours, theirs = getattr(generator, name), getattr(discriminator, name)
            if ours != theirs:
                raise ValueError(f"Generator and discriminator must have one {name}, got {ours} and {theirs}.")
        if discriminator_steps < 1 or samples_per_class < 1 or sample_every < 0:
            raise ValueError(
                "discriminator_steps and samples_per_class must be positive and sample_every not negative, got "
                f"{discriminator_steps}, {samples_per_class} and {sample_every}."
            )
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {ema_decay}.")
        self.automatic_optimization = False
        self.discriminator = discriminator
        self.average = None if ema_decay is None else copy.deepcopy(generator).requires_grad_(False)
        self._discriminator_optimizer = discriminator_optimizer
        self.discriminator_steps, self.ema_decay = discriminator_steps, ema_decay
        self.sample_every, self.samples_per_class = sample_every, samples_per_class
        self.feature_network = feature_network
        self._metrics: GenerationMetrics | None = None

    @property
    def convention(self) -> str:
        """How to read the Fréchet distance and the scores of the record."""
        network = self.feature_network
        by = "" if network is None else f", by the classifier {network}, not by Inception"
        return f"Measured on as many generated images as the split has, of the same classes{by}"

    def setup(self, stage: str) -> None:
        """Refuse data that does not fit the networks, and load the network to measure with.

        Raises:
            ValueError: If they do not fit, the weights to measure with are missing, or the strategy expects every
                network to learn in every step.
        """
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise ValueError(
                "The generator and the discriminator learn in turns: set trainer.strategy to "
                "ddp_find_unused_parameters_true."
            )
        data = self.data
        names = () if data is None else data.class_names
        if names and len(names) != self.generator.num_classes:
            raise ValueError(
                f"The data has {len(names)} classes, but the networks have num_classes={self.generator.num_classes}. "
                f"Set num_classes of generator and discriminator to {len(names)}."
            )
        super().setup(stage)
        if data is not None and {*data.mean, *data.std} != {0.5}:
            raise ValueError(
                "Images must be in -1..1: set mean and std of the data to [0.5, 0.5, 0.5], got "
                f"{list(data.mean)} and {list(data.std)}."
            )
        if stage != "fit" or (data is not None and "val" in data.sets):
            self._prepare_metrics()

    def configure_optimizers(self) -> Any:
        """Build both optimizers."""
        return [
            self._optimizer(self.generator.parameters()),
            self._discriminator_optimizer(self.discriminator.parameters()),
        ]

    @property
    def generator(self) -> Generator:
        """The generator in training."""
        assert isinstance(self.network, Generator)
        return self.network

    @property
    def averaged_generator(self) -> Generator:
        """The moving average of the generator if there is one, else the generator."""
        return self.generator if self.average is None else self.average

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Images (B, 3, H, W) in -1..1 from noise (B, latent_dim) and classes (B,)."""
        return self.averaged_generator(latent, label)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> None:  # noqa: ARG002
        """One step of the discriminator, and after every `discriminator_steps` one of the generator."""
        optimizers: Any = self.optimizers()
        generator_optimizer, discriminator_optimizer = optimizers
        B = len(batch.label)
        log = partial(self.log, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=B)

        with torch.no_grad():
            generated, label = self._generate(B)
        if batch.images.shape[1:] != generated.shape[1:]:
            raise ValueError(
                f"Images must be {tuple(generated.shape[1:])}, got {tuple(batch.images.shape[1:])}: set image_size of "
                "generator and discriminator, or train_transforms and eval_transforms of the data that resize them."
            )
        with self.toggled_optimizer(discriminator_optimizer):
            # In one batch, which costs one power iteration and holds no statistics of the batch.
            scores = self.discriminator(torch.cat([batch.images, generated]), torch.cat([batch.label, label]))
            loss = discriminator_loss(scores[:B], scores[B:])
            discriminator_optimizer.zero_grad()
            self.manual_backward(loss)
            discriminator_optimizer.step()
        log("train/discriminator_loss", loss.detach())

        batches = self.trainer.fit_loop.total_batch_idx + 1
        if batches % self.discriminator_steps:
            return
        with self.toggled_optimizer(generator_optimizer):
            loss = generator_loss(self.discriminator(*self._generate(B)))
            generator_optimizer.zero_grad()
            self.manual_backward(loss)
            generator_optimizer.step()
        log("train/generator_loss", loss.detach())
        step = batches // self.discriminator_steps
        self._update_average(step)
        if self.sample_every and step % self.sample_every == 0:
            self._draw_samples(step)

    def on_validation_epoch_start(self) -> None:
        """Begin to measure."""
        super().on_validation_epoch_start()
        self._prepare_metrics().reset()

    def on_test_epoch_start(self) -> None:
        """Begin to measure."""
        self._prepare_metrics().reset()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Generate as many images as the batch has, of the same classes."""
        self._compare(batch, batch_idx)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Generate as many images as the batch has, of the same classes."""
        self._compare(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log what was measured."""
        self._log_metrics("test")

    def _generate(self, count: int) -> tuple[Tensor, Tensor]:
        """Generate images of random classes; returns both."""
        generator = self.generator
        latent = torch.randn(count, generator.latent_dim, device=self.device)
        label = torch.randint(generator.num_classes, (count,), device=self.device)
        return generator(latent, label), label

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        if self.average is None or self.ema_decay is None:
            return
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        for (name, average), value in zip(self.average.state_dict().items(), self.generator.state_dict().values()):
            # Singular vectors must keep length 1: copy those of the latest weights.
            if average.is_floating_point() and not name.endswith(("._u", "._v")):
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    def _draw_samples(self, step: int) -> None:
        from torchvision.utils import make_grid, save_image

        folder = self.trainer.log_dir  # a broadcast: all processes must ask for it
        if not self.trainer.is_global_zero or folder is None:
            return
        label = torch.arange(min(self.generator.num_classes, _LARGEST_GRID)).repeat_interleave(self.samples_per_class)
        grid = make_grid(generate(self.averaged_generator, label), nrow=self.samples_per_class)
        path = Path(folder) / "samples" / f"step_{step:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(grid / 255, path)
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", grid, step)

    def _prepare_metrics(self) -> GenerationMetrics:
        if self._metrics is None:
            features = None
            if self.feature_network is not None:
                features = load_features(self.feature_network, self.generator.num_classes, self.class_names)
            self._metrics = GenerationMetrics(self.generator.num_classes, features)
        return self._metrics.to(self.device)

    def _compare(self, batch: ImageBatch, batch_idx: int) -> None:
        assert self._metrics is not None
        # The same noise in every epoch.
        seed = batch_idx * self.trainer.world_size + self.trainer.global_rank
        generated = generate(self.averaged_generator, batch.label, seed=seed, batch_size=len(batch.label))
        self._metrics.update(to_bytes(batch.images), generated, batch.label)

    def _log_metrics(self, prefix: str) -> None:
        assert self._metrics is not None
        for name, value in self._metrics.compute().items():
            self.log(f"{prefix}/{name}", value.to(self.device, torch.float32))


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Mean hinge loss of the scores of real images, (B,), plus that of generated ones: zero beyond 1 and -1."""
    return F.relu(1 - real).mean() + F.relu(1 + generated).mean()


def generator_loss(generated: Tensor) -> Tensor:
    """Minus the mean score of generated images, (B,)."""
    return -generated.mean()


def to_bytes(images: Tensor) -> Tensor:
    """Convert images in -1..1 to 0..255, uint8."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def generate(generator: Generator, label: Tensor | Sequence[int], *, seed: int = 0, batch_size: int = 64) -> Tensor:
    """Generate images of given classes.

    Args:
        generator: The network; its mode does not change.
        label: Class of each image, (B,).
        seed: Decides the noise of all images, on any device and for any `batch_size`.
        batch_size: Images made at once.

    Returns:
        (B, 3, H, W), uint8, on the generator's device.

    Raises:
        ValueError: If there is no image to make, or no such class.
    """
    label = torch.as_tensor(label)
    if label.ndim != 1 or not len(label):
        raise ValueError(f"label must be (B,) with B at least 1, got {tuple(label.shape)}.")
    for wrong in label[(label < 0) | (label >= generator.num_classes)]:
        raise ValueError(f"Classes are 0..{generator.num_classes - 1}, got {int(wrong)}.")
    device = next(generator.parameters()).device
    latent = torch.randn(len(label), generator.latent_dim, generator=torch.Generator().manual_seed(seed))
    with evaluating(generator):
        images = [
            to_bytes(generator(*(values.to(device) for values in part)))
            for part in zip(latent.split(batch_size), label.split(batch_size))
        ]
    return torch.cat(images)


def load_generator(weights: str | Path) -> Generator:
    """Load a trained generator, or its moving average if there is one, in evaluation mode.

    Args:
        weights: A checkpoint of `pcea fit`, a weights file, or a configuration's name (its newest run).

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If they do not belong to a generator.
    """
    stored = read_network(weights)
    if stored.description.task != "generation":
        raise ValueError(f"{weights} holds a network for {stored.description.task}, not a generator.")
    generator = build_network(stored, str(weights))
    if not isinstance(generator, Generator):
        raise ValueError(f"{weights} holds a {type(generator).__name__}, not a generator.")
    return generator


def load_features(weights: str, num_classes: int, class_names: Sequence[str] = ()) -> FeatureNetwork:
    """Load the classifier in a checkpoint or a weights file.

    Args:
        weights: The file.
        num_classes: Number of classes it must have.
        class_names: Class names it must have; () skips the check.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or a classifier for other classes.
    """
    trained = load(weights, device="cpu")
    about = trained.description
    if about.task != "images":
        raise ValueError(f"{weights} holds a {type(trained.network).__name__}, not a classifier of images.")
    try:
        features = FeatureNetwork(trained.network, about.mean, about.std, about.image_size)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    if features.num_classes != num_classes or (class_names and tuple(class_names) != trained.class_names):
        raise ValueError(
            f"{weights} has {features.num_classes} classes ({', '.join(trained.class_names[:3])}, ...), the generator "
            f"{num_classes} ({', '.join(class_names[:3])}, ...): they must be the same."
        )
    return features
