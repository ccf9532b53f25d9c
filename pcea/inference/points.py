"""Classification of meshes and clouds."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pcea.inference.classes import ClassPrediction, ClassPredictor, check_top
from pcea.io.points import (
    Points,
    as_points,
    check_axis,
    estimate_normals,
    load_points,
    normalize_points,
    orient,
    sample_points,
)

if TYPE_CHECKING:
    from pcea.inference.point_subject import PointSubject

CloudSource = str | Path | Points | Tensor | np.ndarray
"""A mesh or cloud file; or points (N, 3), or with normals (N, 6), in memory."""


class PointPredictor(ClassPredictor):
    """Classifies meshes and clouds."""

    purpose: ClassVar[str] = "names the class of a mesh or cloud"

    @torch.inference_mode()
    def predict(self, source: CloudSource, *, up: str = "y", top: int = 3, seed: int = 0) -> ClassPrediction:
        """Name the class of a mesh or cloud.

        Args:
            source: A file; or points (N, 3), or with normals (N, 6), in any unit.
            up: Its upward axis: x, y, z, -x, -y or -z.
            top: How many classes are returned.
            seed: Decides which points are sampled.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no usable shape, or an argument is out of range.
        """
        self.check(up=up, top=top)
        points, normals = self._show(source, up=up, seed=seed)
        return self._rank(self.network(points, normals)[0], top)

    def check(self, *, up: str = "y", top: int = 3, **_: Any) -> None:
        """Raise a ValueError for invalid options."""
        check_axis(up)
        check_top(top)

    def _show(self, source: CloudSource, *, up: str, seed: int) -> tuple[Tensor, Tensor | None]:
        """What the network sees: points (1, n, 3), and normals (1, n, 3) if it takes them."""
        cloud = load_cloud(
            source,
            self.description.num_points or None,
            min_points=1,  # the network itself says how many it needs
            seed=seed,
            with_normals=self.description.has_normals,
        )
        points = normalize_points(orient(cloud.points, up))[None].to(self.device)
        normals = orient(cloud.normals, up)[None].to(self.device) if self.description.has_normals else None  # type: ignore[arg-type]
        return points, normals

    def subject(
        self,
        source: CloudSource,
        *,
        up: str = "y",
        num_points: int = 40_000,
        points_per_pass: int | None = None,
        seed: int = 0,
    ) -> PointSubject:
        """What the network attends to in a cloud; the arguments are those of `pcea visualize`."""
        from pcea.inference.point_subject import PointSubject

        cloud = load_cloud(source, mesh_points=num_points, seed=seed, with_normals=self.description.has_normals)
        return PointSubject(name_of(source), cloud, self, up=up, points_per_pass=points_per_pass, seed=seed)


def name_of(source: CloudSource) -> str:
    """The name of a file, for messages; "The array" for data in memory."""
    return str(source) if isinstance(source, str | Path) else "The array"


def load_cloud(
    source: CloudSource,
    num_points: int | None = None,
    *,
    mesh_points: int = 10_000,
    min_points: int | None = None,
    seed: int = 0,
    with_normals: bool = False,
) -> Points:
    """Load a mesh or cloud from a file or from memory, in its own unit and orientation.

    Args:
        source: See `CloudSource`.
        num_points: How many points to keep; None keeps all points of a cloud and samples `mesh_points` of a mesh.
        mesh_points: How many points to sample on a mesh if `num_points` is None.
        min_points: A cloud of fewer than `num_points` is kept whole if it has at least this many.
        seed: Decides the sample.
        with_normals: Whether normals are needed. Missing ones are estimated, with a warning.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no usable points.
        ImportError: If the format, or estimating normals, needs a package that cannot be imported.
    """
    name = name_of(source)
    if isinstance(source, str | Path):
        cloud = load_points(
            source, num_points, mesh_points=mesh_points, min_points=min_points, seed=seed, normals="file"
        )
    else:
        if not isinstance(source, Points):
            table = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
            source = as_points(table, path=Path(name), normals="file")
        if num_points is not None and min_points is not None:
            num_points = max(min_points, min(num_points, len(source.points)))
        cloud = sample_points(source, num_points, seed=seed, path=Path(name))
    if with_normals and cloud.normals is None:
        warnings.warn(
            f"{name} has no normals, which the network needs: they are estimated by Open3D, which costs accuracy.",
            stacklevel=2,
        )
        cloud = cloud._replace(normals=estimate_normals(cloud.points))
    return cloud


def points_shown(trained_for: int, points_per_pass: int | None) -> int | None:
    """How many points a network sees at once; None for all.

    Args:
        trained_for: The number of points that it was trained for; 0 if unknown.
        points_per_pass: What was asked for: a number, 0 for all, None for as many as it was trained for.

    Raises:
        ValueError: If it is negative.
    """
    if points_per_pass is not None and points_per_pass < 0:
        raise ValueError(f"points_per_pass must be at least 1, or 0 for all points, got {points_per_pass}.")
    return (trained_for if points_per_pass is None else points_per_pass) or None
