"""The API reference holds all public names, and a docstring that contradicts its signature stops it."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pcea

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow
pytest.importorskip("mkdocstrings_handlers", reason="mkdocstrings is not installed: pip install 'pcea[dev]'")


@pytest.fixture
def copy(tmp_path):
    """What the script reads, in a folder of its own."""
    for name in ("pcea", "scripts"):
        ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    return tmp_path


def build(copy):
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([copy / "scripts" / "docs.sh"], env=environment, capture_output=True, text=True)


def test_all_public_names_are_documented(copy):
    built = build(copy)
    assert built.returncode == 0, built.stderr
    pages = (copy / "runs/docs/site").rglob("index.html")
    documented = set(re.findall(r'id="(pcea\.[\w.]+)"', "".join(page.read_text(encoding="utf-8") for page in pages)))
    folders = [path.parent.name for path in (ROOT / "pcea").glob("*/__init__.pyi")]
    assert len(folders) > 5
    for folder in folders:
        names = importlib.import_module(f"pcea.{folder}").__all__
        assert {f"pcea.{folder}.{name}" for name in names} <= documented
    assert set(pcea.__all__) <= {path.rpartition(".")[2] for path in documented}


def test_a_docstring_that_contradicts_its_signature_is_an_error(copy):
    file = copy / "pcea" / "ops" / "neighbors.py"
    text = file.read_text(encoding="utf-8")
    assert "        query: " in text
    file.write_text(text.replace("        query: ", "        querry: ", 1), encoding="utf-8")
    built = build(copy)
    assert built.returncode != 0
    assert "Parameter 'querry' does not appear in the function signature" in built.stderr
