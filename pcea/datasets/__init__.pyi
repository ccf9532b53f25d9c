from .batches import CloudBatch, DetectionBatch, ImageBatch
from .coco import CocoImages
from .image_folder import read_cifar10, read_image_folder
from .images import ImageFiles, ImageTensors, LabelledImages, read_image
from .mask_folder import read_folder_masks
from .mask_sets import read_ade20k, read_camvid, read_cityscapes, read_voc2012
from .masks import MaskFiles
from .modelnet40 import ModelNet10, ModelNet40
from .object_folder import read_instance_folder
from .objects import ObjectImages
from .part_folder import FolderParts
from .point_folder import FolderClouds
from .points import LabelledPoints, PointClouds
from .pyg import from_pyg, parts_from_pyg
from .scanobjectnn import ScanObjectNN
from .shapenetpart import LabeledPSB, ShapeNetPart
from .shapes import Shapes
from .voc_objects import VocImages

__all__ = [
    "CloudBatch",
    "CocoImages",
    "DetectionBatch",
    "FolderClouds",
    "FolderParts",
    "ImageBatch",
    "ImageFiles",
    "ImageTensors",
    "LabeledPSB",
    "LabelledImages",
    "LabelledPoints",
    "MaskFiles",
    "ModelNet10",
    "ModelNet40",
    "ObjectImages",
    "PointClouds",
    "ScanObjectNN",
    "ShapeNetPart",
    "Shapes",
    "VocImages",
    "from_pyg",
    "parts_from_pyg",
    "read_ade20k",
    "read_camvid",
    "read_cifar10",
    "read_cityscapes",
    "read_folder_masks",
    "read_image",
    "read_image_folder",
    "read_instance_folder",
    "read_voc2012",
]
