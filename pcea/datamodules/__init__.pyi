from .base import DataModule
from .images import CIFAR10DataModule, ImageDataModule, ImageFolderDataModule, ImageNetDataModule
from .masks import (
    ADE20KDataModule,
    CamVidDataModule,
    CityscapesDataModule,
    MaskFolderDataModule,
    MaskDataModule,
    VOC2012DataModule,
)
from .objects import CocoDataModule, ObjectDataModule, ObjectFolderDataModule, VocObjectDataModule
from .parts import (
    PartFolderDataModule,
    LabeledPSBDataModule,
    PartDataModule,
    PyGPartDataModule,
    ShapeNetPartDataModule,
)
from .points import (
    PointFolderDataModule,
    ModelNet10DataModule,
    ModelNet40DataModule,
    PointDataModule,
    PyGPointDataModule,
    ScanObjectNNDataModule,
)
from .shapes import ShapesDataModule, ShapesPartsDataModule

__all__ = [
    "ADE20KDataModule",
    "CIFAR10DataModule",
    "CamVidDataModule",
    "CityscapesDataModule",
    "CocoDataModule",
    "DataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "LabeledPSBDataModule",
    "MaskDataModule",
    "MaskFolderDataModule",
    "ModelNet10DataModule",
    "ModelNet40DataModule",
    "ObjectDataModule",
    "ObjectFolderDataModule",
    "PartDataModule",
    "PartFolderDataModule",
    "PointDataModule",
    "PointFolderDataModule",
    "PyGPartDataModule",
    "PyGPointDataModule",
    "ScanObjectNNDataModule",
    "ShapeNetPartDataModule",
    "ShapesDataModule",
    "ShapesPartsDataModule",
    "VOC2012DataModule",
    "VocObjectDataModule",
]
