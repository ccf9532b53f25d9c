from .ade20k import read_ade20k
from .batches import PointBatch, ObjectBatch, ImageBatch
from .camvid import read_camvid
from .cifar10 import read_cifar10
from .cityscapes import read_cityscapes
from .coco import CocoObjects
from .image_folder import read_image_folder
from .images import ImageFiles, ImageTensors, ImageDataset, read_image
from .labeled_psb import LabeledPSB
from .mask_folder import read_mask_folder
from .masks import MaskFiles
from .modelnet40 import ModelNet10, ModelNet40
from .object_folder import read_object_folder
from .objects import ObjectDataset
from .part_folder import PartFolder
from .point_folder import PointFolder
from .parts import PartDataset
from .points import PointDataset
from .pyg import from_pyg, parts_from_pyg
from .scanobjectnn import ScanObjectNN
from .shapenetpart import ShapeNetPart
from .shapes import Shapes, ShapesParts
from .voc2012 import read_voc2012
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
    "ShapesParts",
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
