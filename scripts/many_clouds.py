"""Data larger than memory: procedural shapes with normals in many poses, written to a file as they are made.

    export PYTHONPATH=scripts                # so that pcea finds this file
    pcea fit --config scripts/many_clouds.yaml --data.init_args.in_memory false

A data module of your own for as much data looks like this one: give `cached` a function that yields it in chunks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from pcea.datamodules import PointDataModule
from pcea.datasets import PointDataset, Shapes
from pcea.datasets.cache import Arrays, cached, to_tensors
from pcea.datasets.shapes import CATEGORIES


class ManyCloudsDataModule(PointDataModule):
    """Procedural shapes in many poses.

    Args:
        root: Folder for the files.
        num_train: Training clouds.
        num_shapes: Different shapes, and test clouds.
        in_memory: As for the data modules of files.
        **options: Those of `PointDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        num_train: int = 200_000,
        num_shapes: int = 2400,
        in_memory: bool | Literal["auto"] = "auto",
        **options: Any,
    ):
        super().__init__(**options)
        self.root, self.num_train, self.num_shapes, self.in_memory = root, num_train, num_shapes, in_memory

    def load(self, split: str) -> PointDataset:
        """Read one split from its file, which is made first if need be."""
        count = self.num_train if split == "train" else self.num_shapes
        path = Path(self.root, f"{split}_{count}_of_{self.num_shapes}_{self.num_points}.h5")
        arrays = cached(
            path,
            lambda: self._chunks(split, count),
            names=("data", "label", "normal"),
            in_memory=self.in_memory,
        )
        return PointDataset(**to_tensors(arrays, with_normals=self.with_normals), class_names=CATEGORIES)

    def _chunks(self, split: str, count: int) -> Iterator[Arrays]:
        shapes = Shapes(split, num_shapes=self.num_shapes, num_points=self.num_points)
        generator = torch.Generator().manual_seed(0)
        for numbers in torch.arange(count).split(256):
            batch = shapes.batch(numbers % self.num_shapes)
            rotations, _ = torch.linalg.qr(torch.randn(len(numbers), 3, 3, generator=generator))
            rotations *= rotations.det()[:, None, None]  # no reflections
            yield {
                "data": (batch.points @ rotations).numpy(),
                "label": batch.label.numpy(),
                "normal": (batch.normals @ rotations).numpy(),
            }
