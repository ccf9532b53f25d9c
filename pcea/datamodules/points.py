"""Data modules of labelled point clouds, one per dataset. Constructors touch no disk; `setup` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from torch.utils.data import Dataset

from pcea.datamodules.base import DataModule, augment_batch
from pcea.datasets.batches import PointBatch
from pcea.datasets.memory import InMemory
from pcea.datasets.modelnet40 import ModelNet10, ModelNet40
from pcea.datasets.parts import PartDataset
from pcea.datasets.point_folder import PointFolder
from pcea.datasets.points import PointDataset
from pcea.datasets.pyg import from_pyg
from pcea.datasets.scanobjectnn import ScanObjectNN
from pcea.datasets.splits import TrainOrTest
from pcea.transforms.points import Transform


class PointDataModule(DataModule):
    """Labelled clouds: split, loaded a batch at a time, augmented on the batch's device.

    Order and augmentation depend only on `seed_everything`, the epoch and the batch, so that a resumed run continues
    exactly where it stopped.

    Args:
        batch_size: Clouds per training batch, on each device.
        eval_batch_size: Clouds per batch in validation and test; None for twice as many.
        num_points: Points loaded of each cloud.
        with_normals: Whether the network gets normals as features.
        val_fraction: Stratified share of the training split that is held out for validation. With 0 there is no
            validation. No effect if the dataset has a validation split of its own.
        split_seed: Seed of the choice of the held-out clouds.
        num_workers: Processes that read clouds; 0 reads them in the training process, which is fast enough unless the
            clouds are on a slow disk.
        augment: Applied in turn to every training batch.
        evaluate: Applied in turn to every batch of validation and test.
    """

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_points: int = 1024,
        with_normals: bool = False,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        num_workers: int = 0,
        augment: Sequence[Transform] = (),
        evaluate: Sequence[Transform] = (),
    ):
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=2 * batch_size if eval_batch_size is None else eval_batch_size,
            val_fraction=val_fraction,
            split_seed=split_seed,
            num_workers=num_workers,
        )
        self.num_points, self.with_normals = num_points, with_normals
        self.augment, self.evaluate = tuple(augment), tuple(evaluate)

    def load(self, split: TrainOrTest) -> PointDataset | PartDataset:
        """Read one split from disk."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Read what the run needs in one process per node, which parses raw files into the cache.

        Lightning makes the other processes wait; they then read the cache in `setup`.
        """
        stages = ("fit", "test") if self.trainer is None else (self.trainer.state.fn,)
        for stage in stages:
            assert stage is not None
            self.setup(stage)

    def on_after_batch_transfer(self, batch: PointBatch, dataloader_idx: int) -> PointBatch:  # noqa: ARG002
        """Transform on the device: `augment` in training, otherwise `evaluate`."""
        trainer = self._attached_trainer
        if trainer.training:
            augmented: PointBatch = augment_batch(batch, self.augment, trainer, batch.points.device)
            return augmented
        for transform in self.evaluate:
            batch = transform(batch)
        return batch


class ModelNet40DataModule(PointDataModule):
    """ModelNet40 in any of its official forms.

    Args:
        root: Folder that holds the dataset's folder.
        layout: `h5`, `normals` or `off`; None takes the first that is found.
        in_memory: true holds the clouds in memory, false reads each batch from the cache of parsed files; `auto` holds
            them if they take at most a third of the free memory, shared among the processes on the machine.
        **options: Those of `PointDataModule`.
    """

    dataset: ClassVar[type[ModelNet40]] = ModelNet40

    def __init__(
        self,
        root: str = "data",
        *,
        layout: Literal["h5", "normals", "off"] | None = None,
        in_memory: InMemory = "auto",
        **options: Any,
    ):
        super().__init__(**options)
        self.root, self.layout, self.in_memory = root, layout, in_memory

    def load(self, split: TrainOrTest) -> PointDataset:
        """Read one split from disk."""
        return self.dataset(
            self.root,
            split,
            num_points=self.num_points,
            with_normals=self.with_normals,
            layout=self.layout,
            in_memory=self.in_memory,
        )


class ModelNet10DataModule(ModelNet40DataModule):
    """ModelNet10, from its own meshes or out of any form of ModelNet40; arguments as for `ModelNet40DataModule`."""

    dataset = ModelNet10


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

    def load(self, split: TrainOrTest) -> PointDataset:
        """Read one split from disk."""
        if self.with_normals:
            raise ValueError("ScanObjectNN has no normals: set data.init_args.with_normals to false.")
        return ScanObjectNN(self.root, split, num_points=self.num_points, variant=self.variant)


class PointFolderDataModule(PointDataModule):
    """The user's own meshes and clouds, one folder per class.

    Args:
        root: The folder: root/<class>/*, or root/train/<class>/* and root/test/<class>/*.
        up: The files' upward axis: x, y, z, -x, -y or -z.
        test_fraction: Share of each class held out as the test split if the folder has no splits of its own.
        skip_unreadable: Skip unreadable files, with a warning that counts and names them, instead of raising.
        in_memory: true holds the clouds in memory, false reads each batch from the cache of parsed files; `auto` holds
            them if they take at most a third of the free memory, shared among the processes on the machine.
        **options: Those of `PointDataModule`.
    """

    up: str

    def __init__(
        self,
        root: str,
        *,
        up: str = "y",
        test_fraction: float = 0.2,
        skip_unreadable: bool = False,
        in_memory: InMemory = "auto",
        **options: Any,
    ):
        super().__init__(**options)
        self.root, self.up, self.test_fraction = root, up, test_fraction
        self.skip_unreadable, self.in_memory = skip_unreadable, in_memory

    def load(self, split: TrainOrTest) -> PointDataset:
        """Read one split from disk."""
        return PointFolder(
            self.root,
            split,
            num_points=self.num_points,
            with_normals=self.with_normals,
            up=self.up,
            test_fraction=self.test_fraction,
            skip_unreadable=self.skip_unreadable,
            in_memory=self.in_memory,
        )


class PyGPointDataModule(PointDataModule):
    """Any PyTorch Geometric dataset whose items have `pos` (and `face` for meshes) and `y`.

    Args:
        train: Makes the training split; in YAML the class path and arguments of the dataset.
        test: Makes the test split.
        **options: Those of `PointDataModule`.
    """

    def __init__(self, train: Callable[[], Dataset], test: Callable[[], Dataset], **options: Any):
        super().__init__(**options)
        self.splits = {"train": train, "test": test}

    def load(self, split: TrainOrTest) -> PointDataset:
        """Read one split from disk."""
        return from_pyg(self.splits[split](), num_points=self.num_points, with_normals=self.with_normals)
