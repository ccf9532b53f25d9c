"""Data modules of point clouds with per-point labels, one per dataset. Constructors touch no disk; `setup` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch.utils.data import Dataset

from pcea.datamodules.base import augment_batch
from pcea.datamodules.points import PointDataModule
from pcea.datasets.batches import PointBatch
from pcea.datasets.labeled_psb import LabeledPSB
from pcea.datasets.memory import InMemory
from pcea.datasets.part_folder import PartFolder
from pcea.datasets.parts import PartDataset
from pcea.datasets.pyg import parts_from_pyg
from pcea.datasets.shapenetpart import ShapeNetPart
from pcea.datasets.splits import TrainOrTest
from pcea.transforms.points import RandomSubset


class PartDataModule(PointDataModule):
    """Clouds of any sizes with per-point labels; training draws `num_points` of each cloud anew for every batch.

    Validation and test hand out all points of a cloud, in batches that are padded, with a mask.

    Args:
        num_points: Points drawn in training; a cloud that has fewer is padded, with a mask.
        **options: Those of `PointDataModule`.
    """

    def __init__(self, *, num_points: int = 2048, **options: Any):
        super().__init__(num_points=num_points, **options)

    def load(self, split: TrainOrTest) -> PartDataset:
        """Read one split from disk."""
        raise NotImplementedError

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """The classes of each category, by its name, known after `setup`; empty if clouds have no category."""
        return self._any_set.parts if self.sets else {}

    def on_after_batch_transfer(self, batch: PointBatch, dataloader_idx: int) -> PointBatch:
        """Draw points and augment on the device."""
        trainer = self._attached_trainer
        if trainer.training and batch.points.shape[1] > self.num_points:
            # In one go: another call would draw the same random numbers for other things.
            steps = [RandomSubset(num_points=self.num_points), *self.augment]
            return augment_batch(batch, steps, trainer, batch.points.device)
        return super().on_after_batch_transfer(batch, dataloader_idx)


class ShapeNetPartDataModule(PartDataModule):
    """ShapeNetPart in any of its official forms.

    Args:
        root: Folder that holds the dataset's folder.
        layout: `normals`, `points` or `h5`; None takes the first that is found.
        categories: Train and test on these categories only; None takes all.
        train_split: Official split to train on: `trainval` as in the papers; `train`, with the official `val` for
            validation if `val_fraction` is 0; or `val`.
        in_memory: true holds the clouds in memory, false reads each batch from the cache of parsed files; `auto` holds
            them if they take at most a third of the free memory, shared among the processes on the machine.
        **options: Those of `PartDataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        *,
        layout: Literal["normals", "points", "h5"] | None = None,
        categories: Sequence[str] | None = None,
        train_split: Literal["train", "val", "trainval"] = "trainval",
        in_memory: InMemory = "auto",
        **options: Any,
    ):
        super().__init__(**options)
        self.in_memory = in_memory
        self.root, self.layout, self.categories, self.train_split = root, layout, categories, train_split

    def load(self, split: TrainOrTest) -> PartDataset:
        """Read one split from disk."""
        return self._read(self.train_split if split == "train" else "test")

    def load_val(self) -> PartDataset | None:
        """Read the official validation split, unless it is trained on or a share of training is held out."""
        return self._read("val") if self.train_split == "train" and not self.val_fraction else None

    def _read(self, split: Literal["train", "val", "trainval", "test"]) -> PartDataset:
        return ShapeNetPart(
            self.root,
            split,
            with_normals=self.with_normals,
            categories=self.categories,
            layout=self.layout,
            in_memory=self.in_memory,
        )


class LabeledPSBDataModule(PartDataModule):
    """Labeled Princeton Segmentation Benchmark, or another dataset in ShapeNetPart's text layout with a `parts.json`.

    Args:
        root: Folder of the dataset, or the one above `labeled_psb`.
        categories: Train and test on these categories only; None takes all.
        in_memory: true holds the clouds in memory, false reads each batch from the cache of parsed files; `auto` holds
            them if they take at most a third of the free memory, shared among the processes on the machine.
        **options: Those of `PartDataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        *,
        categories: Sequence[str] | None = None,
        in_memory: InMemory = "auto",
        **options: Any,
    ):
        super().__init__(**options)
        self.root, self.categories, self.in_memory = root, categories, in_memory

    def load(self, split: TrainOrTest) -> PartDataset:
        """Read one split from disk."""
        return LabeledPSB(
            self.root,
            split,
            with_normals=self.with_normals,
            categories=self.categories,
            in_memory=self.in_memory,
        )


class PartFolderDataModule(PartDataModule):
    """The user's own clouds with per-point labels, one folder per category.

    Args:
        root: The folder: root/<category>/*, or root/train/<category>/* and root/test/<category>/*.
        parts: YAML file with the names of each category's parts; None takes root/parts.yaml.
        up: The files' upward axis: x, y, z, -x, -y or -z.
        test_fraction: Share of each category held out as the test split if the folder has no splits of its own.
        skip_unreadable: Skip unreadable files, with a warning that counts and names them, instead of raising.
        in_memory: true holds the clouds in memory, false reads each batch from the cache of parsed files; `auto` holds
            them if they take at most a third of the free memory, shared among the processes on the machine.
        **options: Those of `PartDataModule`.
    """

    up: str

    def __init__(
        self,
        root: str,
        *,
        parts: str | None = None,
        up: str = "y",
        test_fraction: float = 0.2,
        skip_unreadable: bool = False,
        in_memory: InMemory = "auto",
        **options: Any,
    ):
        super().__init__(**options)
        self.root, self.parts_file, self.up = root, parts, up
        self.test_fraction, self.skip_unreadable, self.in_memory = test_fraction, skip_unreadable, in_memory

    def load(self, split: TrainOrTest) -> PartDataset:
        """Read one split from disk."""
        return PartFolder(
            self.root,
            split,
            parts=self.parts_file,
            with_normals=self.with_normals,
            up=self.up,
            test_fraction=self.test_fraction,
            skip_unreadable=self.skip_unreadable,
            in_memory=self.in_memory,
        )


class PyGPartDataModule(PartDataModule):
    """Any PyTorch Geometric dataset whose items have `pos`, one `y` per point and perhaps `category`, such as ShapeNet.

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

    def load(self, split: TrainOrTest) -> PartDataset:
        """Read one split from disk."""
        return parts_from_pyg(self.splits[split](), parts=self.classes, with_normals=self.with_normals)
