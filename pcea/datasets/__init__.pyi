from .batches import PointBatch, ObjectBatch, ImageBatch
from .coco import CocoObjects
from .image_folder import read_cifar10, read_image_folder
from .images import ImageFiles, ImageTensors, ImageDataset, read_image
from .mask_folder import read_mask_folder
from .mask_sets import read_ade20k, read_camvid, read_cityscapes, read_voc2012
from .masks import MaskFiles
from .modelnet40 import ModelNet10, ModelNet40
from .object_folder import read_object_folder
from .objects import ObjectDataset
from .part_folder import PartFolder
from .point_folder import PointFolder
from .points import PartDataset, PointDataset
from .pyg import from_pyg, parts_from_pyg
from .scanobjectnn import ScanObjectNN
from .shapenetpart import LabeledPSB, ShapeNetPart
from .shapes import Shapes
from .voc_objects import VocObjects

__all__ = [
    "CocoObjects",
    "ImageBatch",
    "ImageDataset",
    "ImageFiles",
    "ImageTensors",
    "LabeledPSB",
    "MaskFiles",
    "ModelNet10",
    "ModelNet40",
    "ObjectBatch",
    "ObjectDataset",
    "PartDataset",
    "PartFolder",
    "PointBatch",
    "PointDataset",
    "PointFolder",
    "ScanObjectNN",
    "ShapeNetPart",
    "Shapes",
    "VocObjects",
    "from_pyg",
    "parts_from_pyg",
    "read_ade20k",
    "read_camvid",
    "read_cifar10",
    "read_cityscapes",
    "read_image",
    "read_image_folder",
    "read_mask_folder",
    "read_object_folder",
    "read_voc2012",
]
