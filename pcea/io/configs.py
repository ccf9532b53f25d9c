"""The configurations that come with pcea, by name."""

from __future__ import annotations

from pathlib import Path


def config_path(name: str) -> Path:
    """Find the YAML of a configuration: a file, or the name of one that comes with pcea.

    Raises:
        FileNotFoundError: If there is neither.
    """
    for path in (Path(name), *(folder / f"{name}.yaml" for folder in _config_folders())):
        if path.is_file():
            return path
    raise FileNotFoundError(f"No configuration {name!r}: neither a file nor one of {', '.join(config_names())}.")


def runs_folder(name: str) -> Path:
    """The folder of a configuration's runs, its `trainer.default_root_dir`."""
    import yaml

    content = yaml.safe_load(config_path(name).read_text(encoding="utf-8"))
    return Path(content.get("trainer", {}).get("default_root_dir") or "runs")


def config_names() -> list[str]:
    """Names of the configurations that come with pcea."""
    return sorted({path.stem for folder in _config_folders() for path in folder.glob("*.yaml")})


def _config_folders() -> list[Path]:
    package = Path(__file__).parents[1]
    # In a wheel the folder lies inside the package, in a checkout beside it.
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]
