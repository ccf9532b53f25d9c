"""What all data modules share: splits, loaders and seeds, and what a task may ask of its data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import lightning as L
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, get_worker_info

from pcea.datasets.splits import TrainOrTest, stratified_sample

# Arguments that decide which samples are held out.
_DIVIDING = ("val_fraction", "split_seed", "test_fraction")


class TaskData(Protocol):
    """What a task may ask of its data module after `setup`; `DataModule` answers all of it.

    Attributes:
        dataset_name: Name of the dataset, for records.
        sets: The datasets that were read: `train`, `val` if there is validation, and `test`.
        class_names: Name of each class.
        num_points: Points per cloud in training; 0 for images.
        with_normals: Whether clouds have normals.
        up: The upward axis of the files: x, y, z, -x, -y or -z; None if the dataset has its own orientation.
        parts: The classes of each category, by its name; empty unless clouds have categories.
        mean: Mean of red, green and blue, in 0..1, that is subtracted from images; () if none is.
        std: Their standard deviation, by which images are divided.
        eval_transforms: What changes images before validation and test.
        category_ids: Number of each object class in the dataset's files; () unless images have objects.
        has_masks: Whether objects have masks.
    """

    dataset_name: str
    sets: Mapping[str, Any]
    class_names: tuple[str, ...]
    num_points: int
    with_normals: bool
    up: str | None
    parts: dict[str, tuple[int, ...]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eval_transforms: Sequence[Any]
    category_ids: tuple[int, ...]
    has_masks: bool

    def match_classes(self, class_names: Sequence[str], parts: Mapping[str, Sequence[int]]) -> None:
        """Number the classes of all sets as a trained network does; they are matched by name."""


def data_of(trainer: L.Trainer) -> TaskData | None:
    """The data module of a trainer; None if it was given dataloaders instead.

    Raises:
        ValueError: If the data module lacks something that a task may ask for.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if data is None:
        return None
    missing = [name for name in TaskData.__annotations__ if not hasattr(data, name)]
    if missing:
        raise ValueError(
            f"{type(data).__name__} lacks {', '.join(missing)}, which tasks ask of their data. Derive it from "
            "pcea.datamodules.base.DataModule, add these attributes, or give its dataloaders to the trainer instead."
        )
    return data


class DataModule(L.LightningDataModule):
    """A dataset in splits, handed out a batch at a time.

    Subclasses read the splits: `load`, and `load_val` if the dataset has a validation split of its own. Constructors
    touch no disk. The order of the samples depends only on `seed_everything` and the epoch, so that a resumed run
    continues exactly where it stopped.

    Args:
        batch_size: Samples per training batch, on each device.
        eval_batch_size: Samples per batch in validation and test.
        val_fraction: Stratified share of the training split that is held out for validation. With 0 there is no
            validation. No effect if the dataset has a validation split of its own.
        split_seed: Seed of the choice of the held-out samples.
        num_workers: Processes that read samples; 0 reads them in the training process.

    Attributes:
        sets: The datasets that were read, by the name of the split.
        num_points: See `TaskData`, as for the other attributes that subclasses set.
    """

    num_points: int = 0
    with_normals: bool = False
    up: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    eval_transforms: Sequence[Any] = ()
    _train_sampler: ClassVar[type[DistributedSampler]] = DistributedSampler

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in 0..1, below 1, got {val_fraction}.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.split_seed, self.num_workers = val_fraction, split_seed, num_workers
        self.sets: dict[str, Any] = {}
        self._classes: tuple[tuple[str, ...], dict[str, tuple[int, ...]]] = ((), {})

    def load(self, split: TrainOrTest) -> Any:
        """Read one split from disk."""
        raise NotImplementedError

    def load_val(self) -> Any:
        """Read the dataset's own validation split; None if it has none."""
        return None

    def batches_of(self, name: str) -> Any:
        """The dataset that hands out the batches of `train`, `val` or `test`, by its method `batch`."""
        return self.sets[name]

    @property
    def dataset_name(self) -> str:
        """Name of the dataset, for records."""
        return type(self).__name__.removesuffix("DataModule")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, known after `setup`."""
        return self._any_set.class_names if self.sets else ()

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """The classes of each category, by its name, known after `setup`; empty unless clouds have categories."""
        return {}

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Number of each object class in the files, known after `setup`; () unless images have objects."""
        return ()

    @property
    def has_masks(self) -> bool:
        """Whether objects have masks, known after `setup`."""
        return False

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs, once."""
        if stage in ("fit", "validate") and "train" not in self.sets:
            train, val = self.load("train"), self.load_val()
            if val is None:
                held_out = stratified_sample(train.strata, self.val_fraction, seed=self.split_seed)
                if held_out.any():
                    train, val = (train.subset(chosen.nonzero().squeeze(1)) for chosen in (~held_out, held_out))
            self._keep("train", train)
            if val is not None:
                self._keep("val", val)
        if stage in ("test", "predict") and "test" not in self.sets:
            self._keep("test", self.load("test"))

    def state_dict(self) -> dict[str, Any]:
        """How the samples are divided, for checkpoints."""
        return {name: getattr(self, name) for name in _DIVIDING if hasattr(self, name)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare how the samples are divided with how they were in training.

        Raises:
            ValueError: If a resumed run divides them otherwise: it would be validated on what it was trained on.
        """
        stage = self._attached_trainer.state.fn
        ours = self.state_dict()
        names = ("test_fraction",) if stage == "test" else _DIVIDING  # the others only choose what validates
        differing = [name for name in names if name in ours and ours[name] != state_dict.get(name, ours[name])]
        if not differing:
            return
        listed = ", ".join(f"{name} {ours[name]} instead of {state_dict[name]}" for name in differing)
        if stage == "fit":
            raise ValueError(
                f"This run has {listed}, so it would be validated on samples that it was trained on: resume with the "
                "same."
            )
        warnings.warn(
            f"The data is divided otherwise than in training, with {listed}: the network may have been trained on "
            "these samples.",
            stacklevel=2,
        )

    def match_classes(self, class_names: Sequence[str], parts: Mapping[str, Sequence[int]]) -> None:
        """Number the classes of all sets as a trained network does; they are matched by name.

        Args:
            class_names: Names of the network's classes, in its order.
            parts: Classes of its categories, in its order; empty without categories.

        Raises:
            ValueError: If the data has other classes.
        """
        self._classes = tuple(class_names), {name: tuple(classes) for name, classes in parts.items()}
        for name, samples in list(self.sets.items()):
            self._keep(name, samples)

    def train_dataloader(self) -> DataLoader:
        """Batches in a new order every epoch; an incomplete last batch is dropped, unless it is the only one."""
        trainer, samples = self._attached_trainer, self.batches_of("train")
        size = self.batch_size
        if len(samples) < size * trainer.world_size:
            if trainer.world_size == 1 and len(samples) == 1:
                raise ValueError(f"There is one training sample: add another, or set batch_size={size} to 1.")
            if trainer.world_size > 1 or not len(samples):
                raise ValueError(
                    f"batch_size={size} on {trainer.world_size} devices needs at least as many training samples, got "
                    f"{len(samples)}."
                )
            warnings.warn(
                f"There are only {len(samples)} training samples: batches of these, not of {size}.", stacklevel=2
            )
            size = len(samples)
        sampler = self._train_sampler(
            samples, trainer.world_size, trainer.global_rank, seed=global_seed(trainer), drop_last=True
        )
        # Lightning says the epoch only when worker processes have begun to read its first batches.
        sampler.set_epoch(getattr(getattr(trainer, "lightning_module", None), "first_epoch", 0))
        return self._loader(samples, size, sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The validation split in order, each sample on one device only; empty if there is none."""
        return self._measuring_loader("val") if "val" in self.sets else []

    def test_dataloader(self) -> DataLoader:
        """The test split in order, each sample on one device only, so that none counts twice."""
        return self._measuring_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """The test split in order."""
        return self._loader(self.batches_of("test"), self.eval_batch_size)

    @property
    def _attached_trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError(
                "Loaders follow the trainer: call `trainer.fit(task, data)` or set `data.trainer`. Without one, "
                "`data.setup('fit')` fills `data.sets`, for a DataLoader of your own."
            )
        return self.trainer

    @property
    def _any_set(self) -> Any:
        return next(iter(self.sets.values()))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Raise what a worker process could not read."""
        if isinstance(batch, Exception):
            raise batch
        return batch

    def _keep(self, name: str, samples: Any) -> None:
        """Keep a set that was read, its classes numbered as a trained network does if there is one."""
        class_names, parts = self._classes
        other_parts = parts and [*parts.items()] != [*samples.parts.items()]
        if class_names and (class_names != samples.class_names or other_parts):
            samples = samples.with_classes(class_names, parts)
        self.sets[name] = samples

    def _measuring_loader(self, name: str) -> DataLoader:
        trainer, samples = self._attached_trainer, self.batches_of(name)
        if len(samples) < trainer.world_size:
            raise ValueError(
                f"{trainer.world_size} devices need at least as many samples in the {name} split, got {len(samples)}."
            )
        # Lightning's own choice for validation repeats samples, until all devices have the same number.
        sampler = UnrepeatedDistributedSampler(samples, trainer.world_size, trainer.global_rank, shuffle=False)
        return self._loader(samples, self.eval_batch_size, sampler)

    def _loader(
        self, samples: Any, batch_size: int, sampler: Sampler | None = None, *, drop_last: bool = False
    ) -> DataLoader:
        return DataLoader(
            _Batches(samples),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_unchanged,
            drop_last=drop_last,
            pin_memory=self.num_workers > 0 and torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


def augment_batch(batch: Any, transforms: Sequence[Any], trainer: L.Trainer, device: torch.device) -> Any:
    """Apply random transforms in turn to a training batch on its device, seeded by its number."""
    generator = torch.Generator(device).manual_seed(2 * batch_seed(trainer))
    for transform in transforms:
        batch = transform(batch, generator=generator)
    return batch


def batch_seed(trainer: L.Trainer) -> int:
    """A seed for the current training batch of this process, the same in a resumed run."""
    step = trainer.fit_loop.total_batch_idx * trainer.world_size + trainer.global_rank
    return global_seed(trainer) * 1_000_000_007 + step


def global_seed(trainer: L.Trainer | None = None) -> int:
    """The seed of the task that is trained, which a resumed run keeps; else that of `seed_everything`, or torch's."""
    seed_of_task: int | None = getattr(getattr(trainer, "lightning_module", None), "seed", None)
    if seed_of_task is not None:
        return seed_of_task
    seed = os.environ.get("PL_GLOBAL_SEED")
    return torch.initial_seed() % 2**32 if seed is None else int(seed)


class _Batches(Dataset):
    """Samples of which torch fetches a whole batch at once. With `__getitems__` of their own no other loader could."""

    def __init__(self, samples: Any):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, numbers: Sequence[int]) -> Any:
        try:
            return self.samples.batch(numbers)
        except (ValueError, OSError) as error:
            if get_worker_info() is None:
                raise
            return error  # raised in another process it would arrive as a traceback


def _unchanged(batch: Any) -> Any:
    return batch
