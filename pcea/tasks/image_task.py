"""What the tasks of images share."""

from __future__ import annotations

from typing import Any

from pcea.tasks.base import Task


class ImageTask(Task):
    """A network of images with its optimizer; arguments as for `Task`.

    Attributes:
        mean: Mean of red, green and blue that the data subtracts from images, in 0..1.
        std: Their standard deviation, by which it divides.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def setup(self, stage: str) -> None:
        """Take class names and normalization from the data, and refuse data with another number of classes."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        self.mean, self.std = getattr(data, "mean", ()), getattr(data, "std", ())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what prediction needs beside the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["mean"], checkpoint["std"] = list(self.mean), list(self.std)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what prediction needs, and refuse another architecture."""
        super().on_load_checkpoint(checkpoint)
        self.mean, self.std = tuple(checkpoint.get("mean", ())), tuple(checkpoint.get("std", ()))
