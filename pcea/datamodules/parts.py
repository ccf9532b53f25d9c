"""One small data module per dataset of clouds with a label a point. Constructors touch no disk; `setup` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from pcea.datamodules.points import PointDataModule, Split, batch_seed
from pcea.datasets.batches import PointBatch
from pcea.datasets.points import PartDataset, number_parts
from pcea.transforms.points import RandomSubset


class PartDataModule(PointDataModule):
    """Clouds with a label a point, of any sizes; training draws `num_points` of each cloud anew for every batch.

    Validation and test hand out all points of a cloud, in batches padded with a mask.

    Args:
        num_points: Points drawn; a cloud that has fewer is padded, with a mask.
        **options: Those of `PointDataModule`.
    """

    def __init__(self, *, num_points: int = 2048, **options: Any):
        super().__init__(num_points=num_points, **options)

    def load(self, split: Split) -> PartDataset:
        """Read one split from disk."""
        raise NotImplementedError

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Classes of each category, by its name, known after `setup`; empty where clouds have no category."""
        clouds = next(iter(self.sets.values()), None)
        return clouds.parts if isinstance(clouds, PartDataset) else {}

    def on_after_batch_transfer(self, batch: PointBatch, dataloader_idx: int) -> PointBatch:
        """Draw points and augment on the device."""
        trainer = self._attached_trainer
        if trainer.training and batch.points.shape[1] > self.num_points:
            generator = torch.Generator(batch.points.device).manual_seed(2 * batch_seed(trainer))
            batch = RandomSubset(num_points=self.num_points)(batch, generator=generator)
        return super().on_after_batch_transfer(batch, dataloader_idx)


class ShapeNetPartDataModule(PartDataModule):
    """ShapeNetPart in any of its official forms.

    Args:
        root: Folder that holds the dataset's folder.
        layout: `normals`, `points` or `h5`; None takes the first that is there.
        categories: Train and test on these categories only; None takes all.
        train_split: Official splits to train on: `trainval` as the papers do, `train`, which leaves the official `val`
            to validate by, or `val`.
        **options: Those of `PartDataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        *,
        layout: Literal["normals", "points", "h5"] | None = None,
        categories: Sequence[str] | None = None,
        train_split: Literal["train", "val", "trainval"] = "trainval",
        **options: Any,
    ):
        super().__init__(**options)
        self.root, self.layout, self.categories, self.train_split = root, layout, categories, train_split

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs, once."""
        super().setup(stage)
        if stage in ("fit", "validate") and self.train_split == "train" and "val" not in self.sets:
            self.sets["val"] = self._read("val")

    def load(self, split: Split) -> PartDataset:
        """Read one split from disk."""
        return self._read(self.train_split if split == "train" else "test")

    def _read(self, split: Literal["train", "val", "trainval", "test"]) -> PartDataset:
        from pcea.datasets.shapenetpart import ShapeNetPart

        return ShapeNetPart(
            self.root, split, with_normals=self.with_normals, categories=self.categories, layout=self.layout
        )


class LabeledPSBDataModule(PartDataModule):
    """Labeled Princeton Segmentation Benchmark, or another set in ShapeNetPart's text layout with a `parts.json`.

    Args:
        root: Folder of the dataset, or the one above `labeled_psb`.
        categories: Train and test on these categories only; None takes all.
        **options: Those of `PartDataModule`.
    """

    def __init__(self, root: str = "data", *, categories: Sequence[str] | None = None, **options: Any):
        super().__init__(**options)
        self.root, self.categories = root, categories

    def load(self, split: Split) -> PartDataset:
        """Read one split from disk."""
        from pcea.datasets.shapenetpart import LabeledPSB

        return LabeledPSB(self.root, split, with_normals=self.with_normals, categories=self.categories)


class ShapesPartsDataModule(PartDataModule):
    """PartClasses of procedural shapes, made in memory. Validation shapes are made, not held out.

    Args:
        num_train: Training shapes.
        num_val: Validation shapes, from the training parameters.
        num_test: Test shapes, from parameters that training never sees.
        data_seed: Decides the shapes.
        **options: Those of `PartDataModule`. Shapes are made of `num_points` points; `val_fraction` has no effect.
    """

    def __init__(
        self, *, num_train: int = 2000, num_val: int = 300, num_test: int = 1000, data_seed: int = 0, **options: Any
    ):
        super().__init__(**options)
        self.counts = {"train": num_train, "val": num_val, "test": num_test}
        self.data_seed = data_seed

    def setup(self, stage: str) -> None:
        """Make the shapes that a stage needs, once."""
        for split in ("train", "val") if stage in ("fit", "validate") else ("test",):
            if split not in self.sets:
                self.sets[split] = self._make(split)

    def _make(self, split: Literal["train", "val", "test"]) -> PartDataset:
        from pcea.datasets.shapes import PARTS, Shapes

        L, N = self.counts[split], self.num_points
        made = Shapes(split, num_shapes=L, num_points=N, target="part", seed=self.data_seed)
        assert made.normals is not None
        return PartDataset(
            made.points.flatten(0, 1),
            made.label.flatten(),
            torch.full((L,), N),
            class_names=made.class_names,
            normals=made.normals.flatten(0, 1) if self.with_normals else None,
            category=made.category,
            parts=number_parts(PARTS)[0],
        )


class PartFolderDataModule(PartDataModule):
    """The user's own labelled files, a folder per category.

    Args:
        root: The folder: root/<category>/*, or root/train/<category>/* and root/test/<category>/*.
        parts: YAML file with the names of each category's parts; None takes root/parts.yaml.
        up: The files' upward axis: x, y, z, -x, -y or -z.
        test_fraction: Share of each category held out for the test if the folder has no splits of its own.
        skip_unreadable: Leave unreadable files out with a warning that names and counts them, instead of stopping.
        **options: Those of `PartDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        parts: str | None = None,
        up: str = "y",
        test_fraction: float = 0.2,
        skip_unreadable: bool = False,
        **options: Any,
    ):
        super().__init__(**options)
        self.root, self.parts_file, self.up = root, parts, up
        self.test_fraction, self.skip_unreadable = test_fraction, skip_unreadable

    def load(self, split: Split) -> PartDataset:
        """Read one split from disk."""
        from pcea.datasets.part_folder import PartFolder

        return PartFolder(
            self.root,
            split,
            parts=self.parts_file,
            with_normals=self.with_normals,
            up=self.up,
            test_fraction=self.test_fraction,
            skip_unreadable=self.skip_unreadable,
        )


class PyGPartDataModule(PartDataModule):
    """Any dataset of PyTorch Geometric whose items have `pos`, `y` a point and perhaps `category`, such as ShapeNet.

    Args:
        train: Makes the training split; in YAML the class path and arguments of the dataset.
        test: Makes the test split.
        parts: The classes of each category, by its name; None takes the dataset's `seg_classes`.
        **options: Those of `PartDataModule`. Normals are an item's `normal`, or `x` of three columns.
    """

    def __init__(
        self,
        train: Callable[[], Dataset],
        test: Callable[[], Dataset],
        *,
        parts: Mapping[str, Sequence[int]] | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        self.splits = {"train": train, "test": test}
        self.classes = parts

    def load(self, split: Split) -> PartDataset:
        """Read one split from disk."""
        from pcea.datasets.pyg import parts_from_pyg

        return parts_from_pyg(self.splits[split](), parts=self.classes, with_normals=self.with_normals)
