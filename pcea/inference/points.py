"""Classification of meshes and clouds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pcea.inference.base import in_evaluation
from pcea.inference.classes import ClassPrediction, ClassPredictor, check_top, rank
from pcea.inference.examples import Examples, feature_of, read_examples
from pcea.inference.pose import PosedLogits, find_pose, log_odds, up_rotation
from pcea.io.points import (
    Points,
    as_points,
    check_axis,
    estimate_normals,
    leave_out_empty,
    load_points,
    normalize_points,
    sample_points,
)
from pcea.io.surroundings import SurroundedShape, choose_points, find_standing, leave_out_strays, shape_of
from pcea.ops.grouping import gather_points
from pcea.ops.neighbors import knn
from pcea.transforms.points import axis_rotations

if TYPE_CHECKING:
    from pcea.inference.explanation import Explanation
    from pcea.inference.point_subject import PointSubject

# Parts of a shape are far apart if no two of their points are nearer, in radii of its bounding sphere: so are parts of
# 0.25 % of the training shapes of ModelNet40, and of all scenes that were put together from four of them.
_GAP, _POINTS_TO_CHECK = 0.25, 1024
# A cloud of at most this share of the points that the network was trained for is judged twice: as it is, and with
# points added between its own. Of held-out upright clouds of 128, 96 and 64 points 88.8, 85.6 and 78.3 % are named
# rightly so, instead of 85.9, 81.5 and 65.9; with 256 points there is little to win (90.4 instead of 89.7).
_SPARSE = 1 / 8
# How many points there are then, as a share of the same number; and how many neighbours of a point they lie between.
_DENSE, _NEARBY = 1 / 2, 8
# A plane so many times as wide as what stands on it is ground as likely as it is a part of the shape, and the odds grow
# with the width: hardly a shape has a plane of its own that is much wider than the rest. Shapes are more often made of
# blocks. What is left must stand on one of them. Of 985 held-out clouds, without any ground, 311 have such planes: 288
# of these are named rightly so and 289 if they are always left in; in random poses along the axes 276 and 275; of 164
# in any pose 140 and 139.
_EVEN_WIDTH, _EVEN_WIDTH_OF_PEDESTAL = 2.0, 12.0

CloudSource = str | Path | Points | Tensor | np.ndarray
"""A mesh or cloud file; or points (N, 3), or with normals (N, 6), in memory."""


class PointPredictor(ClassPredictor):
    """Classifies meshes and clouds."""

    purpose: ClassVar[str] = "names the class of a mesh or cloud"
    batch_size: ClassVar[int] = 16

    @in_evaluation
    def predict(
        self,
        source: CloudSource,
        *,
        up: str = "auto",
        top: int = 3,
        seed: int = 0,
        like: Examples | str | Path | None = None,
    ) -> ClassPrediction:
        """Name the class of a mesh or cloud.

        A cloud of few points is judged twice: as it is, and with points added between its own (`make_denser`). So is
        one that stands on ground wider than itself, or before a wall: as it is, and without them; the surest answer
        counts. Up to 5 % of the points, of 96 or more, are left out with a warning if they lie far from all others.

        Args:
            source: A file; or points (N, 3), or with normals (N, 6), in any unit.
            up: Its upward axis: x, y, z, -x, -y or -z; where it faces is taken as it is. auto finds both, if the
                network was trained with a background; else the file lies like those of training, mostly y up.
            top: How many classes are returned.
            seed: Decides which points are sampled.
            like: Folders of examples, or what `read_examples` made of them: the classes are these folders instead, and
                the pose does not matter.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no usable shape, or an argument is out of range.
        """
        self.check(up=up, top=top, seed=seed)
        if like is not None and up != "auto":
            raise ValueError(f"up={up!r} is not for `like`, which compares shapes in all poses: leave it out.")
        if like is not None and not isinstance(like, Examples):
            like = read_examples(self, like, seed=seed)
        return self.predict_contents([self.read(source, seed=seed)], up=up, top=top, like=like)[0]

    @in_evaluation
    def predict_contents(
        self, contents: Sequence[Points], *, up: str = "auto", top: int = 3, like: Examples | None = None, **_: Any
    ) -> list[ClassPrediction]:
        """The classes of clouds that have been read. Those of one size in a known pose go through as one batch."""
        if like is not None:
            if like.network not in ("", self.digest()):
                raise ValueError("The examples were read with another network: read them with this one.")
            return [self._compare(cloud, like, top) for cloud in contents]
        sizes = {len(cloud.points) for cloud in contents}
        stands = any(isinstance(cloud, SurroundedShape) and cloud.standing for cloud in contents)
        if len(sizes) == 1 and not stands and not self._finds_pose(up):
            all_posed = self._judge_upright(contents, up)
        else:
            all_posed = [self.pose_standing(cloud, up=up)[0] for cloud in contents]
        return [self.rank(posed.logits, top, score=posed.score, pose=posed.name) for posed in all_posed]

    def pose_standing(self, cloud: Points, *, up: str = "auto") -> tuple[PosedLogits, int]:
        """What `pose` says of a cloud, or of it without planes around it: the surest; and without how many that is.

        A network that cannot tell shapes from background is asked of the whole cloud only.
        """
        best, num_planes = self.pose(cloud, up=up), 0
        if isinstance(cloud, SurroundedShape) and self.description.background:
            for count, (ground, standing) in enumerate(zip(cloud.planes, cloud.standing), 1):
                other = self.pose(standing, up=up)
                evidence = float(other.logits.logsumexp(0) - best.logits.logsumexp(0))
                even = _EVEN_WIDTH_OF_PEDESTAL if ground.is_pedestal else _EVEN_WIDTH
                is_likelier = evidence + math.log(ground.width / even) > 0
                if is_likelier and cloud.stands_on(count, other.rotation[1]):  # what becomes y
                    name = f"{other.name}, without {cloud.name_of_planes(count)}".lstrip(", ")
                    best, num_planes = other._replace(name=name), count
        return best, num_planes

    def reader(self, *, seed: int = 0, **_: Any) -> Callable[[Path], SurroundedShape]:
        """See `Predictor.reader`."""
        about = self.description
        return partial(read_shape, num_points=about.num_points or None, with_normals=about.has_normals, seed=seed)

    def read(self, source: CloudSource, *, seed: int = 0) -> SurroundedShape:
        """What the network is to see of a file, or of data in memory; arguments and errors as for `predict`."""
        return self.reader(seed=seed)(source)  # type: ignore[arg-type]

    @in_evaluation
    def embed(self, source: CloudSource, *, seed: int = 0) -> Tensor:
        """The feature of a shape before the last layer, (D,): its mean over the 24 poses along the axes."""
        return self._feature(self.read(source, seed=seed))

    def _compare(self, cloud: Points, like: Examples, top: int) -> ClassPrediction:
        """The folders of examples that a cloud, or what stands on its ground, is like: the most alike."""
        standing = cloud.standing if isinstance(cloud, SurroundedShape) else ()
        features = [self._feature(each) for each in (cloud, *standing)]
        logits, best = max(((like.compare(each), each) for each in features), key=lambda pair: float(pair[0].max()))
        prediction = rank(logits, top, like.class_names)
        if like.known_above is None:
            return prediction
        score = like.score(best)
        return prediction._replace(score=score, is_known=score >= like.known_above)

    def _feature(self, cloud: Points) -> Tensor:
        turn = axis_rotations().mT.to(self.device)
        normals = None
        if self.description.has_normals and cloud.normals is not None:
            normals = cloud.normals.to(self.device) @ turn
        points = normalize_points(cloud.points).to(self.device) @ turn
        if self._is_sparse(points, normals):
            points = self._denser(points)
        return feature_of(self.network, points, normals).mean(0).cpu()

    def explain(self, source: CloudSource, *, up: str = "auto", num_regions: int = 8, seed: int = 0) -> Explanation:
        """What decides the class of a file: its regions, and what it would be without them; as for `predict`."""
        from pcea.inference.explanation import explain

        drawn = load_cloud(source, mesh_points=40_000, seed=seed)
        cloud, kept, posed = self._named_of(self.read(source, seed=seed), drawn, up, name_of(source))
        return explain(self, cloud, choose_points(drawn, kept), posed, num_regions=num_regions)

    def _named_of(self, seen: SurroundedShape, drawn: Points, up: str, name: str) -> tuple[Points, Tensor, PosedLogits]:
        """The cloud that is classified, which points of the file are drawn, (N,), and what `predict` says of it.

        Strays are not drawn, nor is ground that was left out.
        """
        kept = seen.includes(drawn.points)
        some = choose_points(drawn, kept)
        near = shape_of(some, seed=0).includes(some.points)
        if not near.all():  # so few that what the network sees has none of them
            count = int((~near).sum())
            what = "1 point" if count == 1 else f"{count} points"
            warnings.warn(f"{name} is drawn without {what} far from all others.", stacklevel=3)
            kept = kept.masked_scatter(kept, near)
        posed, num_planes = self.pose_standing(seen, up=up)
        if not num_planes:
            return seen, kept, posed
        around = seen.name_of_planes(num_planes)
        warnings.warn(f"{name} is drawn without {around}, no part of what is named.", stacklevel=3)
        return seen.standing[num_planes - 1], kept & seen.includes(drawn.points, num_planes), posed

    def check(
        self,
        *,
        up: str = "auto",
        top: int = 3,
        seed: int = 0,
        num_points: int = 40_000,
        points_per_pass: int | None = None,
        **_: Any,
    ) -> None:
        """Raise a ValueError for invalid options."""
        check_seed(seed)
        if up != "auto":
            check_axis(up)
        check_top(top)
        check_num_points(num_points, points_per_pass)

    @in_evaluation
    def pose(self, cloud: Points, *, up: str = "auto") -> PosedLogits:
        """What the network says of a cloud, N points in random order, and the pose in which it says that.

        Args:
            cloud: The points, and normals if the network takes them; as many as the network is to see.
            up: As for `predict`.
        """
        about = self.description
        shuffled = torch.randperm(len(cloud.points), generator=torch.Generator().manual_seed(0))

        def judge(rotations: Tensor, count: int) -> Tensor:
            turn, some = rotations.mT.to(self.device), shuffled[:count] if count < len(shuffled) else slice(None)
            points = normalize_points(cloud.points[some]).to(self.device) @ turn
            normals = None
            if about.has_normals and cloud.normals is not None:
                normals = cloud.normals[some].to(self.device) @ turn
            return self._logits(points, normals)

        if self._finds_pose(up):
            fewest = int(getattr(self.network, "min_points", 1))
            points = normalize_points(cloud.points)
            return find_pose(judge, points, temperature=about.temperature, min_points=fewest)
        return self._judge_upright([cloud], up)[0]

    def _logits(self, points: Tensor, normals: Tensor | None) -> Tensor:
        """What the network says of clouds (B, N, 3): of few points, on average with what it says of more between."""
        logits = self.network(points, normals)
        return (logits + self.network(self._denser(points))) / 2 if self._is_sparse(points, normals) else logits

    def _is_sparse(self, points: Tensor, normals: Tensor | None) -> bool:
        return normals is None and 2 <= points.shape[1] <= _SPARSE * self.description.num_points

    def _denser(self, points: Tensor) -> Tensor:
        return make_denser(points, round(_DENSE * self.description.num_points))

    def _finds_pose(self, up: str) -> bool:
        return up == "auto" and self.description.background

    def _judge_upright(self, clouds: Sequence[Points], up: str) -> list[PosedLogits]:
        """What the network says of B clouds of N points each, whose upward axis is known."""
        about, rotation = self.description, up_rotation((self.description.up or "y") if up == "auto" else up)
        turn = rotation.T.to(self.device)
        points = torch.stack([normalize_points(cloud.points) for cloud in clouds]).to(self.device) @ turn  # (B, N, 3)
        normals = None
        if about.has_normals and all(cloud.normals is not None for cloud in clouds):
            normals = torch.stack([cloud.normals for cloud in clouds]).to(self.device) @ turn  # type: ignore[misc]
        logits = self._logits(points, normals)
        logits = log_odds(logits, about.temperature) if about.background else logits.float().cpu() / about.temperature
        return [PosedLogits(each, float(each.logsumexp(0)), rotation) for each in logits]

    def subject(
        self,
        source: CloudSource,
        *,
        up: str = "auto",
        num_points: int = 40_000,
        points_per_pass: int | None = None,
        seed: int = 0,
    ) -> PointSubject:
        """What the network attends to in a cloud, and its class and pose, those that `predict` finds with this seed.

        Arguments as for `pcea visualize`.
        """
        from pcea.inference.point_subject import PointSubject

        cloud = load_cloud(source, mesh_points=num_points, seed=seed, with_normals=self.description.has_normals)
        _, kept, posed = self._named_of(self.read(source, seed=seed), cloud, up, name_of(source))
        options: dict[str, Any] = {"points_per_pass": points_per_pass, "seed": seed}
        return PointSubject(name_of(source), cloud, self, up=up, kept=kept, posed=posed, **options)


def make_denser(points: Tensor, num_points: int) -> Tensor:
    """Add points to sparse clouds, each at a random place between a point and two of its nearest neighbours.

    Args:
        points: (B, N, 3), N of 2 or more.
        num_points: How many points there are then.

    Returns:
        (B, num_points, 3), at first those that there were. The same of a turned cloud, turned, and in any batch.
    """
    N, generator = points.shape[1], torch.Generator().manual_seed(0)
    near = knn(points, points, k=min(1 + _NEARBY, N)).index[..., 1:]  # without the point itself
    start = torch.randint(N, (num_points - N,), generator=generator)
    columns = torch.randint(near.shape[-1], (2, len(start)), generator=generator)
    corners = [start.expand(len(points), -1).to(points.device), *(near[:, start, column] for column in columns)]
    weights = torch.rand(3, len(start), 1, generator=generator, dtype=torch.float32)
    weights = (weights / weights.sum(0)).to(points)
    between = sum(weight * gather_points(points, corner) for weight, corner in zip(weights, corners))
    return torch.cat([points, between], dim=1)


def read_shape(source: CloudSource, *, num_points: int | None, with_normals: bool, seed: int) -> SurroundedShape:
    """Load a cloud to be classified as a whole, with a warning if it is no shape of one object; see `load_cloud`.

    Stray points are left out, and the ground and wall around it are looked for.
    """

    def load(count: int | None) -> Points:
        # The network itself says how many points it needs.
        return load_cloud(source, count, min_points=1, seed=seed, with_normals=with_normals)

    shape = leave_out_strays(load(num_points), name_of(source))
    check_shape(shape.points, name_of(source))
    if num_points is not None:
        find_standing(shape, load, num_points, seed=seed)
    return shape


def check_shape(points: Tensor, name: str) -> None:
    """Warn if points (N, 3) are no shape of one object.

    Raises:
        ValueError: If all are equal.
    """
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    table = normalize_points(points).double().numpy()
    extents = np.linalg.svd(table - table.mean(0), compute_uv=False)
    if not extents[0] > 0:
        raise ValueError(f"{name} holds no shape: {len(points)} points, all in one place.")
    if extents[1:].max(initial=0) < 1e-3 * extents[0]:
        warnings.warn(f"{name} is a line, not a shape: its class means little.", stacklevel=3)
        return
    some = table[np.random.default_rng(0).permutation(len(table))[:_POINTS_TO_CHECK]]
    near = KDTree(some).sparse_distance_matrix(KDTree(some), _GAP, output_type="coo_matrix")
    sizes = np.bincount(connected_components(near, directed=False)[1])
    parts = int((sizes >= 0.05 * len(some)).sum())
    # Few points lie far apart by themselves.
    if parts > 1 and len(some) >= _POINTS_TO_CHECK // 2:
        warnings.warn(
            f"{name} seems to hold {parts} things far apart, where one object is expected: give each its own file.",
            stacklevel=3,
        )


def check_seed(seed: int) -> None:
    """Raise a ValueError if a seed is negative, which NumPy does not take."""
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}.")


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
        with_normals: Whether normals are needed. Missing ones are estimated, with a warning, and broken ones an error;
            otherwise they are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no usable points.
        ImportError: If the format, or estimating normals, needs a package that cannot be imported.
    """
    name = name_of(source)
    normals: Literal["file", "usable"] = "file" if with_normals else "usable"
    if isinstance(source, str | Path):
        cloud = load_points(
            source, num_points, mesh_points=mesh_points, min_points=min_points, seed=seed, normals=normals
        )
    else:
        if isinstance(source, Points):
            source = _check_points(source, name)
        else:
            if isinstance(source, Tensor) and source.dtype == torch.bfloat16:  # NumPy has no such type
                source = source.float()
            table = source.detach().cpu().numpy() if isinstance(source, Tensor) else _as_array(source)
            source = as_points(table, path=Path(name), normals=normals)
        source = leave_out_empty(source, name)
        cloud = sample_points(source, num_points, min_points=min_points, seed=seed, path=Path(name))
    if with_normals and cloud.normals is None:
        warnings.warn(
            f"{name} has no normals, which the network needs: they are estimated by Open3D, which costs accuracy.",
            stacklevel=2,
        )
        cloud = cloud._replace(normals=estimate_normals(cloud.points))
    return cloud


def _as_array(source: Any) -> np.ndarray:
    with suppress(ValueError):  # of rows of different lengths
        table = np.asarray(source)
        if table.dtype != object:
            return table
    raise TypeError(
        f"A file or an array of points (N, 3) is needed, got {type(source).__name__}: give the array in it, as "
        "`data.pos`, `np.asarray(cloud.points)` or, of a mesh, `mesh.sample(10_000)`."
    )


def _check_points(cloud: Points, name: str) -> Points:
    """A cloud in memory in the types of `Points`, its normals of unit length.

    Raises:
        ValueError: If there are no usable points, or normals of another number or that are not finite.
    """
    points, normals = (None if part is None else torch.as_tensor(part).detach().cpu().double() for part in cloud)
    assert points is not None
    exact = as_points(points.numpy(), path=Path(name)).points
    if normals is None:
        return Points(exact)
    if normals.shape != points.shape:
        raise ValueError(f"{name}: normals must be {tuple(points.shape)} like points, got {tuple(normals.shape)}.")
    if not normals.isfinite().all():
        raise ValueError(f"{name}: normals must be finite numbers.")
    return Points(exact, torch.nn.functional.normalize(normals, dim=1).float())


def check_num_points(num_points: int, points_per_pass: int | None) -> None:
    """Raise a ValueError for impossible numbers of points to draw or label."""
    if num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}.")
    points_shown(0, points_per_pass)


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
