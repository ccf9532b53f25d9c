#!/usr/bin/env bash
# Install pcea with its development tools into .venv, then lint, check types and run the tests.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/install.sh" dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/pytest "$@"
