from .checkpoints import newest_checkpoint, read_checkpoint, read_network
from .configs import config_names, config_path
from .description import NetworkDescription, StoredNetwork
from .meshes import Mesh
from .ply import read_ply, write_ply
from .points import Normalization, Points, estimate_normals, load_points, normalize_points, orient, sample_points
from .readers import read_file
from .weights import load_weights, save_weights, shipped_weights

__all__ = [
    "Mesh",
    "NetworkDescription",
    "Normalization",
    "Points",
    "StoredNetwork",
    "config_names",
    "config_path",
    "estimate_normals",
    "load_points",
    "load_weights",
    "newest_checkpoint",
    "normalize_points",
    "orient",
    "read_checkpoint",
    "read_file",
    "read_network",
    "read_ply",
    "sample_points",
    "save_weights",
    "shipped_weights",
    "write_ply",
]
