"""Draw test pictures, what is true of them and what trained networks predict into data/pictures/<config>.jpg.

Needs the data of the configurations, and their newest checkpoints under runs/: `pcea fit --config NAME` first.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from pcea.datamodules.images import CIFAR10DataModule, ImageDataModule
from pcea.datamodules.masks import CamVidDataModule
from pcea.datamodules.objects import ObjectDataModule, ObjectFolderDataModule, VocObjectDataModule
from pcea.datasets.batches import IGNORE
from pcea.inference import ImagePredictor, MaskPredictor, ObjectPredictor, load
from pcea.inference.objects import ObjectPrediction, draw_objects
from pcea.io.checkpoints import newest_checkpoint
from pcea.io.configs import runs_folder
from pcea.visualization.colors import palette

PICTURES = Path(__file__).parents[1] / "data" / "pictures"


def main() -> None:
    """Draw all pictures, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="Configurations to draw; all by default.")
    parser.add_argument("--root", type=Path, default=Path("data"), help="Folder of the data.")
    parser.add_argument("--runs", type=Path, help="Folder of the runs; that of the configurations by default.")
    options = parser.parse_args()
    cells = VocObjectDataModule(str(options.root / "BCCD"), class_names=("RBC", "WBC", "Platelets"))
    drawings: dict[str, tuple[ImageDataModule | ObjectDataModule, Callable, Sequence[int]]] = {
        "cifar10_eamlp": (CIFAR10DataModule(str(options.root)), draw_classes, range(0, 10_000, 313)),
        "camvid_eanet50": (CamVidDataModule(str(options.root)), draw_masks, (20, 100, 180)),
        "bccd_fasterrcnn_ea": (cells, draw_boxes, (3, 30, 60)),
        "dsb2018_maskrcnn_ea": (ObjectFolderDataModule(str(options.root / "dsb2018")), draw_boxes, (5, 40, 100)),
    }
    for name in options.names or drawings:
        data, draw, chosen = drawings[name]
        data.setup("test")
        runs = options.runs / name if options.runs else runs_folder(name)
        figure = draw(data.sets["test"], load(newest_checkpoint(runs)), chosen)
        figure.savefig(PICTURES / f"{name}.jpg", dpi=100, pil_kwargs={"quality": 88})
        print(PICTURES / f"{name}.jpg")


def draw_classes(images, trained: ImagePredictor, chosen: Sequence[int]) -> plt.Figure:
    """Pictures with the class predicted, in red where it is wrong, then with the true one."""
    columns = 8
    figure, axes = plt.subplots(len(chosen) // columns, columns, figsize=(10, 5.6), layout="constrained")
    for axis, index in zip(axes.flat, chosen):
        picture, label = images[index]
        found = trained.predict(picture, top=1)
        is_right = found.class_names[0] == trained.class_names[int(label)]
        axis.imshow(picture.permute(1, 2, 0))
        axis.set_title(
            found.title if is_right else f"{found.title}\nis {trained.class_names[int(label)]}",
            fontsize=8, color="black" if is_right else "#c00000",
        )  # fmt: skip
        axis.axis("off")
    return figure


def draw_masks(images, trained: MaskPredictor, chosen: Sequence[int]) -> plt.Figure:
    """One row per picture: itself, its true classes, those predicted."""
    colors = torch.cat([palette(len(trained.class_names)), torch.zeros(256, 3, dtype=torch.uint8)])
    colors[IGNORE] = 255
    rows, shown = [], set()
    for index in chosen:
        picture, truth = images[index]
        label = trained.predict(picture).label
        shown |= {*truth.unique().tolist(), *label.unique().tolist()} - {IGNORE}
        rows.append([picture.permute(1, 2, 0).numpy(), colors[truth.long()].numpy(), colors[label].numpy()])
    figure = _table(rows)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colors[i].numpy() / 255) for i in sorted(shown)]
    names = [trained.class_names[i] for i in sorted(shown)]
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def draw_boxes(images, trained: ObjectPredictor, chosen: Sequence[int]) -> plt.Figure:
    """One row per picture: itself, its true objects, those predicted."""
    rows = []
    for index in chosen:
        picture, target = images[index]
        masks: Tensor | None = target["masks"].bool() if "masks" in target else None
        truth = ObjectPrediction(
            picture, target["boxes"], target["labels"] - 1, torch.ones(len(target["boxes"])), images.class_names, masks
        )
        found = trained.predict(picture)
        shown = (found._replace(boxes=found.boxes[:0]), truth, found)
        rows.append([draw_objects(objects, size=500 if masks is None else 900) for objects in shown])
    return _table(rows)


def _table(rows: Sequence[Sequence[np.ndarray]]) -> plt.Figure:
    height = sum(row[0].shape[0] / row[0].shape[1] for row in rows)
    figure, axes = plt.subplots(len(rows), 3, figsize=(10.5, 3.5 * height + 0.6), layout="constrained", squeeze=False)
    for axis, title in zip(axes[0], ("test picture", "truth", "prediction")):
        axis.set_title(title, fontsize=10)
    for row, row_axes in zip(rows, axes):
        for axis, drawn in zip(row_axes, row):
            axis.imshow(drawn)
            axis.axis("off")
    return figure


if __name__ == "__main__":
    main()
