"""Your own dataset: a data module of one method that returns tensors. Splits, batches and augmentation come with it.

From this folder, with `train.npz` and `test.npz`, each of them with arrays `points` (L, N, 3) and `label` (L,):

    export PYTHONPATH=.                      # so that pcea finds this file
    pcea fit  --config own_dataset.yaml --data.init_args.root path/to/folder
    pcea test --config own_dataset.yaml --data.init_args.root path/to/folder

Meshes and clouds in folders need no code: see the configuration folder_eat.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcea.datamodules import PointDataModule
from pcea.datasets import PointDataset
from pcea.io import normalize_points


class NumpyDataModule(PointDataModule):
    """Labelled clouds of one size in two NumPy files.

    Args:
        root: Folder that holds train.npz and test.npz.
        names: Name of each class, in the order of the labels.
        **options: Those of `PointDataModule`.
    """

    def __init__(self, root: str, names: list[str], **options: Any):
        super().__init__(**options)
        self.root, self.names = root, names

    def load(self, split: str) -> PointDataset:
        """Read one split from disk."""
        arrays = np.load(Path(self.root, f"{split}.npz"))
        points = normalize_points(torch.from_numpy(arrays["points"])[:, : self.num_points])  # into the unit sphere
        return PointDataset(points, torch.from_numpy(arrays["label"]).long(), class_names=self.names)
