#!/usr/bin/env bash
# Install pcea and its development tools into .venv, then lint, check types and run the tests.
# Usage: scripts/test.sh [PYTEST OPTIONS], such as -n 2 for two processes
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/install.sh" dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/pytest "$@"
