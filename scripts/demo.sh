#!/usr/bin/env bash
# Install pcea into .venv, train EAT on procedural shapes, test it on new ones, and draw what it attends to in one shape
# of each class.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/install.sh"
started=$SECONDS
.venv/bin/pcea fit "$@"
.venv/bin/pcea test "$@"
mkdir -p runs/demo
.venv/bin/python - <<'END'
import numpy as np
from pcea.datasets.shapes import Shapes
shapes = Shapes("test", num_shapes=12, num_points=10_000)
for points, label in zip(shapes.points, shapes.label):
    np.save(f"runs/demo/{shapes.class_names[label]}.npy", points)
END
.venv/bin/pcea visualize runs/demo/*.npy --weights shapes_eat --output runs/demo/attention.html
cat <<END

Trained, tested and drawn in $((SECONDS - started)) s. Open runs/demo/attention.html in a browser, on any machine. Next:

  . .venv/bin/activate
  pcea predict FILE...                       # classify meshes and point clouds
  pcea visualize FILE...                     # see what each point attends to
  pcea download modelnet40 --root data       # real shapes
  pcea fit --config modelnet40_pointea_fast  # about an hour on one core
  pcea configs                               # list everything else that can be trained
END
