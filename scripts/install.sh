# Sourced by demo.sh and test.sh: make .venv and install pcea into it, once.
# Usage: . scripts/install.sh [EXTRA]      (EXTRA: dev)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-}
stamp=.venv/installed${extra:+-$extra}
if ! cmp --quiet pyproject.toml "$stamp"; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        { echo "pcea needs Python 3.10 or later: set PYTHON to one." >&2; exit 1; }
    [ -x .venv/bin/pip ] || "$python" -m venv .venv ||
        { echo "Python has no venv: apt-get install python3-venv" >&2; exit 1; }
    echo "Installing pcea into .venv: several GB and some minutes, this once."
    .venv/bin/pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
    # Pictures and .pcd files need Open3D; everything else works without its system libraries.
    .venv/bin/python - <<'END'
from pcea.io.points import import_open3d
try:
    import_open3d()
except ImportError as error:
    print("Note:", error)
END
    cp pyproject.toml "$stamp"
fi
