#!/usr/bin/env bash
# Install pcea into .venv, train EAT on procedural shapes and test it on shapes made from other parameters.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/install.sh"
started=$SECONDS
.venv/bin/pcea fit "$@"
.venv/bin/pcea test "$@"
cat <<END

Trained and tested in $((SECONDS - started)) s. Next:

  . .venv/bin/activate
  pcea predict FILE...                       # name the class of any mesh or cloud
  pcea download modelnet40 --root data       # real shapes
  pcea fit --config modelnet40_eat_cpu       # about an hour on two cores
  pcea configs                               # everything else that can be trained
END
