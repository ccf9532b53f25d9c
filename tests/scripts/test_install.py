"""What `scripts/install.sh` does to the machine, and which files git does not see."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path):
    """A checkout where everything is installed already, and programs that stand in for those of the system."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "install.sh", tmp_path / "scripts")
    for path in (tmp_path / "pyproject.toml", tmp_path / ".venv" / "installed"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("the same")
    (tmp_path / "bin").mkdir()
    program(tmp_path, "apt-get", 'echo "$DEBIAN_FRONTEND apt-get $*" >> log')
    return tmp_path


def program(folder, name, command):
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def install_packages(folder):
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    environment.pop("DEBIAN_FRONTEND", None)
    command = ["bash", "-euc", ". scripts/install.sh; install_packages libone libtwo"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_root_installs_packages(installed):
    program(installed, "id", "echo 0")
    done = install_packages(installed)
    assert (done.returncode, done.stdout) == (0, "Installing with apt-get: libone libtwo\n")
    lines = [line.strip() for line in (installed / "log").read_text().splitlines()]
    assert lines == [
        "apt-get -qq update",
        "noninteractive apt-get -qq --yes install --no-install-recommends libone libtwo",
    ]


def test_others_are_told_what_to_run(installed):
    program(installed, "id", "echo 1000")
    done = install_packages(installed)
    assert done.returncode == 1
    assert done.stderr == "On Debian or Ubuntu, run as root: apt-get install libone libtwo\n"
    assert not (installed / "log").exists()


@pytest.mark.parametrize("is_link", [False, True])
def test_git_does_not_see_the_environment(tmp_path, is_link):
    elsewhere, checkout = tmp_path / "elsewhere", tmp_path / "checkout"
    elsewhere.mkdir()
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    shutil.copy(ROOT / ".gitignore", checkout)
    if is_link:
        (checkout / ".venv").symlink_to(elsewhere)
    else:
        shutil.copytree(elsewhere, checkout / ".venv")
        (checkout / ".venv" / "pyvenv.cfg").touch()
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    seen = subprocess.run(status, cwd=checkout, capture_output=True, text=True, check=True).stdout
    assert seen == "?? .gitignore\n"
