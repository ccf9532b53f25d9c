"""The wheel holds what the package needs, and works outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pcea.io.configs import config_names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    # Nothing of the checkout may be found by accident.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Folder of the programs of a fresh environment with the wheel, which borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    builder = venv.EnvBuilder(symlinks=True)
    builder.create(folder)
    context = builder.ensure_directories(folder)
    pip = [sys.executable, "-m", "pip", "--python", context.env_exe, "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, wheel, cwd=folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder}))
    assert (packages / "pcea").is_dir()
    # A path file is not followed to the path files there, so the checkout, installed editable, stays out of sight.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Path(context.bin_path)


def test_the_wheel_holds_code_stubs_configurations_and_weights_alone(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = [
        path for kind in ("*.py", "*.pyi", "py.typed", "*.safetensors", "web/*") for path in (ROOT / "pcea").rglob(kind)
    ]
    expected = {path.relative_to(ROOT).as_posix() for path in package}
    expected |= {f"pcea/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert {name for name in names if not name.endswith(".md")} == expected
    assert {"pcea/__init__.pyi", "pcea/py.typed", "pcea/configs/shapes_eat.yaml"} <= names
    assert sum(name.endswith(".safetensors") for name in names) == 5


def test_the_installed_package_classifies_a_file(environment, tmp_path):
    imported = run(environment / "python", "-c", "import pcea; print(pcea.__file__)", cwd=tmp_path)
    assert Path(imported).is_relative_to(environment.parent)
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).normal(size=(1500, 3)))
    line = run(environment / "pcea", "predict", "cloud.npy", cwd=tmp_path)
    assert line.startswith("cloud.npy ")
    assert line.count("%") == 3


def test_the_installed_package_lists_the_configurations(environment, tmp_path):
    lines = run(environment / "pcea", "configs", cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == config_names()
