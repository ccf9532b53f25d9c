"""Draw the pictures of pcea/visualization/README.md into data/pictures/, with the weights that come with pcea.

Needs data/psb_meshes (meshes of the Princeton Shape Benchmark), data/labeled_psb and data/modelnet40_ply_hdf5_2048; see
data/README.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pcea.commands.visualize import visualize
from pcea.datasets.modelnet40 import ModelNet40
from pcea.inference.networks import DEFAULT_WEIGHTS
from pcea.visualization.picture_files import reduced_palette

MAX_BYTES = 300_000  # of a picture in a README
PICTURES = Path(__file__).parents[1] / "data" / "pictures"


def main() -> None:
    """Draw all pictures, or only those named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="Pictures to draw, such as slots; all by default.")
    parser.add_argument("--root", type=Path, default=Path("data"), help="Folder of the data.")
    options = parser.parse_args()
    psb = options.root / "psb_meshes"
    chair, airplane = psb / "chair_114.off", psb / "airplane_74.off"
    with tempfile.TemporaryDirectory() as folder:
        labeled, classes = options.root / "labeled_psb", ("Chair", "Airplane", "Human", "Table")
        colored = [file for name in classes for file in sorted((labeled / name).iterdir())[:4]]
        chairs = _test_clouds(options.root, "chair", 8, Path(folder))
        pictures = {
            "colors": {"files": colored, "grid": True, "size": 200, "weights": DEFAULT_WEIGHTS},
            "layers": {"files": [chair], "grid": True, "size": 250, "weights": DEFAULT_WEIGHTS},
            "airplane": {"files": [airplane], "mode": "query", "up": "z", "azimuth": -20, "elevation": 40, "size": 500},
            "meshes": {"files": sorted(psb.glob("*.off")), "grid": True, "size": 220, "weights": DEFAULT_WEIGHTS},
            "chairs": {"files": chairs, "grid": True, "size": 220, "mode": "slots"},
            "parts": {
                "files": sorted(psb.glob("chair*.off")), "mode": "parts", "weights": "labeled_psb_pointea",
                "category": "Chair", "size": 500,
            },
        }  # fmt: skip
        for name in options.names or pictures:
            # All tokens of this network are points of a fine layer.
            visualize(**{"weights": "modelnet40_eat_cpu", **pictures[name]}, output=PICTURES / f"{name}.png")
            _compress(PICTURES / f"{name}.png")


def _test_clouds(root: Path, name: str, count: int, folder: Path) -> list[Path]:
    """Write the first test shapes of a class of ModelNet40 to files."""
    clouds = ModelNet40(root, "test", num_points=1024)
    label = clouds.class_names.index(name)
    paths = []
    for i in (clouds.label == label).nonzero().squeeze(1)[:count].tolist():
        paths.append(folder / f"{name}_{i}.npy")
        np.save(paths[-1], clouds.points[i].numpy())
    return paths


def _compress(path: Path) -> None:
    """Reduce a large file to 256 colours; those of the legend do not change."""
    if path.stat().st_size > MAX_BYTES:
        picture = Image.open(path).convert("RGB")
        palette = reduced_palette(np.asarray(picture))
        picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
