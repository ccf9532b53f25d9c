"""Data modules of procedural shapes, which are made in memory: nothing to download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pcea.datamodules.parts import PartDataModule
from pcea.datamodules.points import PointDataModule
from pcea.datasets.parts import PartDataset
from pcea.datasets.points import PointDataset
from pcea.datasets.shapes import Shapes, ShapesParts
from pcea.datasets.splits import Split


class ShapesDataModule(PointDataModule):
    """Procedural shapes, made in memory. Validation shapes are made, not held out.

    Args:
        num_train: Training shapes.
        num_val: Validation shapes, drawn like the training shapes.
        num_test: Test shapes, with parameters that training never sees.
        data_seed: Seed of the shapes.
        **options: Those of `PointDataModule`. Shapes have `num_points` points; `val_fraction` has no effect.
    """

    _make: ClassVar[Callable[..., PointDataset | PartDataset]] = Shapes

    def __init__(
        self, *, num_train: int = 2000, num_val: int = 300, num_test: int = 1000, data_seed: int = 0, **options: Any
    ):
        super().__init__(**options)
        self.counts = {"train": num_train, "val": num_val, "test": num_test}
        self.data_seed = data_seed

    def load(self, split: Split) -> Any:
        """Make the shapes of one split."""
        return self._make(
            split,
            num_shapes=self.counts[split],
            num_points=self.num_points,
            with_normals=self.with_normals,
            seed=self.data_seed,
        )

    def load_val(self) -> Any:
        """Make the validation shapes."""
        return self.load("val")


class ShapesPartsDataModule(ShapesDataModule, PartDataModule):
    """Procedural shapes with the part of every point; arguments as for `ShapesDataModule`."""

    _make = ShapesParts
