"""What the tasks of images share."""

from __future__ import annotations

from typing import Any

from pcea.datasets.batches import ImageBatch
from pcea.io.description import NetworkDescription
from pcea.tasks.base import Task


class ImageTask(Task):
    """A network of images with its optimizer; arguments as for `Task`.

    Attributes:
        mean: Mean of red, green and blue that the data subtracts from images, in 0..1.
        std: Their standard deviation, by which it divides.
        image_size: Height and width of the images of the last training batch.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: tuple[int, ...] = ()

    def setup(self, stage: str) -> None:
        """Take class names and normalization from the data, and refuse data with another number of classes."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        self.mean, self.std = getattr(data, "mean", ()), getattr(data, "std", ())

    def on_train_batch_start(self, batch: ImageBatch, batch_idx: int) -> None:
        """Note the size of the images."""
        super().on_train_batch_start(batch, batch_idx)
        self.image_size = tuple(batch.images.shape[-2:])

    def describe_network(self) -> NetworkDescription | None:
        """How the network is built, and how images are shown to it."""
        description = super().describe_network()
        return description and description._replace(mean=self.mean, std=self.std, image_size=self.image_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what prediction needs beside the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["mean"], checkpoint["std"] = list(self.mean), list(self.std)
        checkpoint["image_size"] = list(self.image_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what prediction needs, and refuse another architecture."""
        super().on_load_checkpoint(checkpoint)
        self.mean, self.std = tuple(checkpoint.get("mean", ())), tuple(checkpoint.get("std", ()))
        self.image_size = tuple(checkpoint.get("image_size", ()))
