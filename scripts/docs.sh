#!/usr/bin/env bash
# Build an API reference from the docstrings into runs/docs/site. A page for each folder of pcea, warnings are errors.
# Needs the development tools: scripts/test.sh installs them, or pip install 'pcea[dev]'.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
pages=runs/docs/pages
rm -rf "$pages"
mkdir -p "$pages"
# `from pcea import NAME` works for many names of these folders; each is documented once, in its folder.
printf '# pcea\n\n::: pcea\n    options: {members: [tune_allocator]}\n' > "$pages/index.md"
for front_door in pcea/*/__init__.pyi; do
    folder=$(basename "$(dirname "$front_door")")
    printf '# pcea.%s\n\n::: pcea.%s\n' "$folder" "$folder" > "$pages/$folder.md"
done
"$python" -m mkdocs build --strict --config-file scripts/docs.yml
echo "API reference: runs/docs/site/index.html"
