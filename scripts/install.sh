# Sourced by demo.sh and test.sh: make .venv and install pcea into it, once.
# Usage: . scripts/install.sh [EXTRA]      (EXTRA: dev)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-}
stamp=.venv/installed${extra:+-$extra}

# Install Debian packages if that is possible here; otherwise say what to run, and fail.
install_packages() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing with apt-get: $*"
        apt-get -qq update &&
            DEBIAN_FRONTEND=noninteractive apt-get -qq --yes install --no-install-recommends "$@" >/dev/null
    else
        echo "On Debian or Ubuntu, run as root: apt-get install $*" >&2
        return 1
    fi
}

if ! cmp --quiet pyproject.toml "$stamp"; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        { echo "pcea needs Python 3.10 or later: set PYTHON to one." >&2; exit 1; }
    if [ ! -x .venv/bin/pip ]; then
        "$python" -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
        "$python" -m venv .venv
    fi
    echo "Installing pcea into .venv: several GB and some minutes, this once."
    .venv/bin/pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
    libraries=$(.venv/bin/python - <<'END'
from pcea.io.readers import SYSTEM_PACKAGES, import_open3d
try:
    import_open3d()
except ImportError:
    print(SYSTEM_PACKAGES.removeprefix("apt-get install "))
END
    )
    [ -z "$libraries" ] || install_packages $libraries ||
        echo "Without these libraries of Open3D pcea draws no pictures and estimates no normals." >&2
    cp pyproject.toml "$stamp"
fi
