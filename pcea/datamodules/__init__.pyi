from .images import CIFAR10DataModule, ImageDataModule, ImageFolderDataModule, ImageNetDataModule
from .masks import (
    ADE20KDataModule,
    CamVidDataModule,
    CityscapesDataModule,
    FolderMasksDataModule,
    MaskDataModule,
    VOC2012DataModule,
)
from .objects import CocoDataModule, DetectionDataModule, InstanceFolderDataModule, VocDetectionDataModule
from .parts import (
    FolderPartsDataModule,
    LabeledPSBDataModule,
    PartDataModule,
    PyGPartsDataModule,
    ShapeNetPartDataModule,
    ShapesPartsDataModule,
)
from .points import (
    FolderDataModule,
    ModelNet10DataModule,
    ModelNet40DataModule,
    PointCloudDataModule,
    PyGDataModule,
    ScanObjectNNDataModule,
    ShapesDataModule,
)

__all__ = [
    "ADE20KDataModule",
    "CIFAR10DataModule",
    "CamVidDataModule",
    "CityscapesDataModule",
    "CocoDataModule",
    "DetectionDataModule",
    "FolderDataModule",
    "FolderMasksDataModule",
    "FolderPartsDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "InstanceFolderDataModule",
    "LabeledPSBDataModule",
    "MaskDataModule",
    "ModelNet10DataModule",
    "ModelNet40DataModule",
    "PartDataModule",
    "PointCloudDataModule",
    "PyGDataModule",
    "PyGPartsDataModule",
    "ScanObjectNNDataModule",
    "ShapeNetPartDataModule",
    "ShapesDataModule",
    "ShapesPartsDataModule",
    "VOC2012DataModule",
    "VocDetectionDataModule",
]
