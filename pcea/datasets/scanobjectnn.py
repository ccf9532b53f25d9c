"""ScanObjectNN: real scans of 15 classes of indoor objects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from pcea.datasets.cache import read_h5_clouds
from pcea.datasets.points import PointDataset
from pcea.datasets.splits import TrainOrTest
from pcea.io.points import normalize_points

SCANOBJECTNN_CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table",
    "bed", "pillow", "sink", "sofa", "toilet",
)  # fmt: skip

_PREFIX = {"train": "training", "test": "test"}
_FILES = {
    "obj_only": "main_split_nobg/{}_objectdataset.h5",
    "obj_bg": "main_split/{}_objectdataset.h5",
    "pb_t50_rs": "main_split/{}_objectdataset_augmentedrot_scale75.h5",
}


class ScanObjectNN(PointDataset):
    """ScanObjectNN's main split, 15 classes; zero mean, unit sphere, y up.

    Args:
        root: The folder h5_files, or the one above it.
        split: train or test.
        num_points: Points per cloud, a seeded random subset of the 2,048 in the file.
        variant: `obj_only` (objects without background, 2,309 for training and 581 for testing), `obj_bg` (the same
            with background), or `pb_t50_rs`, the hardest: with background, each object up to five times, its box
            shifted by up to half, rotated and scaled (11,416 and 2,882).
        seed: Decides the subset.

    Raises:
        FileNotFoundError: If the file of the split is not under `root`.
        ValueError: If an option is unknown, or the file is damaged or has too few points.
    """

    def __init__(
        self,
        root: str | Path,
        split: TrainOrTest,
        *,
        num_points: int = 1024,
        variant: Literal["obj_only", "obj_bg", "pb_t50_rs"] = "pb_t50_rs",
        seed: int = 0,
    ):
        if split not in _PREFIX:
            raise ValueError(f"split must be train or test, got {split!r}.")
        if variant not in _FILES:
            raise ValueError(f"variant must be one of {', '.join(_FILES)}, got {variant!r}.")
        name = _FILES[variant].format(_PREFIX[split])
        path = next((path for path in (Path(root, "h5_files", name), Path(root, name)) if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"No ScanObjectNN {variant} {split} split under {root}: looked for h5_files/{name}. "
                f"Run `pcea download scanobjectnn --root {root}`, or see data/README.md."
            )
        clouds = read_h5_clouds(path, num_classes=len(SCANOBJECTNN_CLASSES))
        L, N = clouds.points.shape[:2]
        if not 1 <= num_points <= N:
            raise ValueError(f"{path} holds {N} points per cloud, so num_points={num_points} is not in 1..{N}.")
        order = torch.rand(L, N, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :num_points]
        points = clouds.points.gather(1, order[..., None].expand(-1, -1, 3))
        super().__init__(normalize_points(points), clouds.label, class_names=SCANOBJECTNN_CLASSES)
