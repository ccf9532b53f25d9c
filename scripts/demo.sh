#!/usr/bin/env bash
# Install pcea into .venv, train EAT on procedural shapes, test it on shapes made from other parameters, and draw what it
# attends to in one shape of each class.
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
# Where no picture can be drawn, the command says what to install; the demonstration goes on.
.venv/bin/pcea visualize runs/demo/*.npy --config shapes_eat --grid --output runs/demo/attention.png || true
cat <<END

Trained, tested and drawn in $((SECONDS - started)) s. Next:

  . .venv/bin/activate
  pcea predict FILE...                       # name the class of any mesh or cloud
  pcea visualize FILE...                     # see what every point attends to
  pcea download modelnet40 --root data       # real shapes
  pcea fit --config modelnet40_eat_cpu       # about an hour on two cores
  pcea configs                               # everything else that can be trained
END
