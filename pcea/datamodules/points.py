"""One small data module per dataset of labelled clouds. Constructors touch no disk; `setup` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from pcea.datasets.batches import PointBatch
from pcea.datasets.points import PartDataset, PointDataset
from pcea.transforms.points import Transform

Split = Literal["train", "test"]


class PointDataModule(L.LightningDataModule):
    """Clouds of one size: split, loaded a batch at a time, augmented on the batch's device.

    Order and augmentation follow `seed_everything`, the epoch and the batch alone, so that a resumed run continues
    exactly where it stopped.

    Args:
        batch_size: Clouds in a training batch, per device.
        num_points: Points loaded of each cloud.
        with_normals: Whether the network gets normals as features.
        val_fraction: Stratified share of the training split held out to choose by. 0 trains on all of it; there is
            then no validation.
        split_seed: Decides which clouds are held out.
        augment: Applied in turn to every training batch.
        evaluate: Applied in turn to every batch of validation and test.
    """

    def __init__(
        self,
        *,
        batch_size: int = 32,
        num_points: int = 1024,
        with_normals: bool = False,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        augment: Sequence[Transform] = (),
        evaluate: Sequence[Transform] = (),
    ):
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in 0..1, below 1, got {val_fraction}.")
        self.batch_size, self.num_points, self.with_normals = batch_size, num_points, with_normals
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.augment, self.evaluate = tuple(augment), tuple(evaluate)
        self.sets: dict[str, PointDataset | PartDataset] = {}

    def load(self, split: Split) -> PointDataset | PartDataset:
        """Read one split from disk."""
        raise NotImplementedError

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, known after `setup`."""
        return next(iter(self.sets.values())).class_names if self.sets else ()

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs, once."""
        if stage in ("fit", "validate") and "train" not in self.sets:
            clouds = self.load("train")
            held_out = stratified_sample(clouds.strata, self.val_fraction, seed=self.split_seed)
            self.sets["train"] = clouds.subset((~held_out).nonzero().squeeze(1)) if held_out.any() else clouds
            if held_out.any():
                self.sets["val"] = clouds.subset(held_out.nonzero().squeeze(1))
        if stage in ("test", "predict") and "test" not in self.sets:
            self.sets["test"] = self.load("test")

    def train_dataloader(self) -> DataLoader:
        """Batches in a new order every epoch; the last small one is dropped."""
        trainer = self._attached_trainer
        if len(self.sets["train"]) < self.batch_size * trainer.world_size:
            raise ValueError(
                f"batch_size={self.batch_size} on {trainer.world_size} devices needs at least as many training clouds, "
                f"got {len(self.sets['train'])}."
            )
        sampler: DistributedSampler = DistributedSampler(
            self.sets["train"], trainer.world_size, trainer.global_rank, seed=global_seed(), drop_last=True
        )
        return DataLoader(
            self.sets["train"], batch_size=self.batch_size, sampler=sampler, collate_fn=_as_it_is, drop_last=True
        )

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The held-out clouds in order; nothing if `val_fraction` is 0."""
        return self._in_order("val") if "val" in self.sets else []

    def test_dataloader(self) -> DataLoader:
        """The test split in order, each cloud on one device only, so that none counts twice."""
        trainer, clouds = self._attached_trainer, self.sets["test"]
        sampler = UnrepeatedDistributedSampler(clouds, trainer.world_size, trainer.global_rank, shuffle=False)
        return DataLoader(clouds, batch_size=2 * self.batch_size, sampler=sampler, collate_fn=_as_it_is)

    def predict_dataloader(self) -> DataLoader:
        """The test split in order."""
        return self._in_order("test")

    def on_after_batch_transfer(self, batch: PointBatch, dataloader_idx: int) -> PointBatch:  # noqa: ARG002
        """Augment on the device."""
        trainer = self._attached_trainer
        if not trainer.training:
            for transform in self.evaluate:
                batch = transform(batch)
            return batch
        generator = torch.Generator(batch.points.device).manual_seed(2 * batch_seed(trainer))
        for transform in self.augment:
            batch = transform(batch, generator=generator)
        return batch

    @property
    def _attached_trainer(self) -> L.Trainer:
        assert self.trainer is not None
        return self.trainer

    def _in_order(self, name: str) -> DataLoader:
        return DataLoader(self.sets[name], batch_size=2 * self.batch_size, collate_fn=_as_it_is)


class ModelNet40DataModule(PointDataModule):
    """ModelNet40 in any of its official forms.

    Args:
        root: Folder that holds the dataset's folder.
        layout: `h5`, `normals` or `off`; None takes the first that is there.
        **options: Those of `PointDataModule`.
    """

    def __init__(self, root: str = "data", *, layout: Literal["h5", "normals", "off"] | None = None, **options: Any):
        super().__init__(**options)
        self.root, self.layout = root, layout

    def load(self, split: Split) -> PointDataset:
        """Read one split from disk."""
        from pcea.datasets.modelnet40 import ModelNet40

        return ModelNet40(
            self.root, split, num_points=self.num_points, with_normals=self.with_normals, layout=self.layout
        )


class ModelNet10DataModule(ModelNet40DataModule):
    """ModelNet10, from its own meshes or out of any form of ModelNet40; arguments as for `ModelNet40DataModule`."""

    def load(self, split: Split) -> PointDataset:
        """Read one split from disk."""
        from pcea.datasets.modelnet40 import ModelNet10

        return ModelNet10(
            self.root, split, num_points=self.num_points, with_normals=self.with_normals, layout=self.layout
        )


class ScanObjectNNDataModule(PointDataModule):
    """ScanObjectNN, main split.

    Args:
        root: Folder that holds `h5_files`.
        variant: `obj_only`, `obj_bg` (with background) or `pb_t50_rs` (the hardest, moved and rotated).
        **options: Those of `PointDataModule`.
    """

    def __init__(
        self,
        root: str = "data",
        *,
        variant: Literal["obj_only", "obj_bg", "pb_t50_rs"] = "pb_t50_rs",
        **options: Any,
    ):
        super().__init__(**options)
        self.root, self.variant = root, variant

    def load(self, split: Split) -> PointDataset:
        """Read one split from disk."""
        from pcea.datasets.scanobjectnn import ScanObjectNN

        if self.with_normals:
            raise ValueError("ScanObjectNN has no normals: set data.init_args.with_normals to false.")
        return ScanObjectNN(self.root, split, num_points=self.num_points, variant=self.variant)


class ShapesDataModule(PointDataModule):
    """Procedural shapes, made in memory. Validation shapes are made, not held out.

    Args:
        num_train: Training shapes.
        num_val: Validation shapes, from the training parameters.
        num_test: Test shapes, from parameters that training never sees.
        data_seed: Decides the shapes.
        **options: Those of `PointDataModule`; `val_fraction` has no effect.
    """

    def __init__(
        self, *, num_train: int = 2000, num_val: int = 300, num_test: int = 1000, data_seed: int = 0, **options: Any
    ):
        super().__init__(**options)
        self.counts = {"train": num_train, "val": num_val, "test": num_test}
        self.data_seed = data_seed

    def setup(self, stage: str) -> None:
        """Make the shapes that a stage needs, once."""
        from pcea.datasets.shapes import Shapes

        for split in ("train", "val") if stage in ("fit", "validate") else ("test",):
            if split not in self.sets:
                self.sets[split] = Shapes(
                    split, num_shapes=self.counts[split], num_points=self.num_points, seed=self.data_seed
                )
                if not self.with_normals:
                    self.sets[split].normals = None


class PointFolderDataModule(PointDataModule):
    """The user's own files, a folder per class.

    Args:
        root: The folder: root/<class>/*, or root/train/<class>/* and root/test/<class>/*.
        up: The files' upward axis: x, y, z, -x, -y or -z.
        test_fraction: Share of each class held out for the test if the folder has no splits of its own.
        skip_unreadable: Leave unreadable files out with a warning that names and counts them, instead of stopping.
        **options: Those of `PointDataModule`.
    """

    def __init__(
        self,
        root: str,
        *,
        up: str = "y",
        test_fraction: float = 0.2,
        skip_unreadable: bool = False,
        **options: Any,
    ):
        super().__init__(**options)
        self.root, self.up, self.test_fraction, self.skip_unreadable = root, up, test_fraction, skip_unreadable

    def load(self, split: Split) -> PointDataset:
        """Read one split from disk."""
        from pcea.datasets.point_folder import PointFolder

        return PointFolder(
            self.root,
            split,
            num_points=self.num_points,
            with_normals=self.with_normals,
            up=self.up,
            test_fraction=self.test_fraction,
            skip_unreadable=self.skip_unreadable,
        )


class PyGPointDataModule(PointDataModule):
    """Any dataset of PyTorch Geometric whose items have `pos` (and `face` for meshes) and `y`.

    Args:
        train: Makes the training split; in YAML the class path and arguments of the dataset.
        test: Makes the test split.
        **options: Those of `PointDataModule`.
    """

    def __init__(self, train: Callable[[], Dataset], test: Callable[[], Dataset], **options: Any):
        super().__init__(**options)
        self.splits = {"train": train, "test": test}

    def load(self, split: Split) -> PointDataset:
        """Read one split from disk."""
        from pcea.datasets.pyg import from_pyg

        if self.with_normals:
            raise ValueError("Normals of PyG datasets are not read: set data.init_args.with_normals to false.")
        return from_pyg(self.splits[split](), num_points=self.num_points)


def stratified_sample(label: Tensor, fraction: float, *, seed: int) -> Tensor:
    """Choose a share of every class at random.

    Args:
        label: Class of each sample, (L,) int64.
        fraction: Share to choose. Of a class of two or more, at least one is chosen if it is not 0.
        seed: Decides which.

    Returns:
        True for the chosen ones, (L,).
    """
    chosen = torch.zeros(len(label), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for members in (torch.nonzero(label == c).squeeze(1) for c in label.unique()):
        count = round(fraction * len(members))
        if fraction and len(members) > 1:
            count = max(1, count)
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return chosen


def _as_it_is(batch: Any) -> Any:
    """The dataset hands out whole batches."""
    return batch


def batch_seed(trainer: L.Trainer) -> int:
    """A seed for the current training batch of this process, the same in a resumed run."""
    step = trainer.fit_loop.total_batch_idx * trainer.world_size + trainer.global_rank
    return global_seed() * 1_000_000_007 + step


def global_seed() -> int:
    """The seed that `seed_everything` was called with, 0 without."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
