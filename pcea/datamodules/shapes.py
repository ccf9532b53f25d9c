"""Data modules of procedural shapes, which are made in memory: nothing to download."""

from __future__ import annotations

from typing import Any, Literal

import torch

from pcea.datamodules.parts import PartDataModule
from pcea.datamodules.points import PointDataModule
from pcea.datasets.parts import PartDataset, number_parts
from pcea.datasets.shapes import PARTS, Shapes


class ShapesDataModule(PointDataModule):
    """Procedural shapes, made in memory. Validation shapes are made, not held out.

    Args:
        num_train: Training shapes.
        num_val: Validation shapes, drawn like the training shapes.
        num_test: Test shapes, with parameters that training never sees.
        data_seed: Seed of the shapes.
        **options: Those of `PointDataModule`. Shapes have `num_points` points; `val_fraction` has no effect.
    """

    target: Literal["category", "part"] = "category"

    def __init__(
        self, *, num_train: int = 2000, num_val: int = 300, num_test: int = 1000, data_seed: int = 0, **options: Any
    ):
        super().__init__(**options)
        self.counts = {"train": num_train, "val": num_val, "test": num_test}
        self.data_seed = data_seed

    def load(self, split: Literal["train", "val", "test"]) -> Any:
        """Make the shapes of one split."""
        shapes = Shapes(
            split,
            num_shapes=self.counts[split],
            num_points=self.num_points,
            target=self.target,
            seed=self.data_seed,
        )
        if not self.with_normals:
            shapes.normals = None
        return shapes

    def load_val(self) -> Any:
        """Make the validation shapes."""
        return self.load("val")


class ShapesPartsDataModule(ShapesDataModule, PartDataModule):
    """Procedural shapes with the part of every point; arguments as for `ShapesDataModule`."""

    target = "part"

    def load(self, split: Literal["train", "val", "test"]) -> PartDataset:
        """Make the shapes of one split."""
        shapes = super().load(split)
        L, N = shapes.points.shape[:2]
        return PartDataset(
            shapes.points.flatten(0, 1),
            shapes.label.flatten(),
            torch.full((L,), N),
            class_names=shapes.class_names,
            normals=None if shapes.normals is None else shapes.normals.flatten(0, 1),
            category=shapes.category,
            parts=number_parts(PARTS)[0],
        )
