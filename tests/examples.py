"""What several tests share: tiny recipes and networks, files made by hand, and the command line as a user meets it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace

import lightning  # noqa: F401  # before a test captures stderr, which its log handler keeps
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pcea.cli import main
from pcea.inference.images import ImagePredictor
from pcea.inference.parts import PartPredictor
from pcea.io.description import NetworkDescription
from pcea.io.points import normalize_points
from pcea.models.point_segmenter import eat_part_segmenter
from pcea.nn.recording import AttentionMap
from pcea.visualization.subject import Subject

TINY = """\
seed_everything: 0
trainer: {default_root_dir: ROOT, max_epochs: 2, accelerator: cpu, enable_progress_bar: false}
checkpoint: {monitor: val/overall_accuracy}
model:
  class_path: pcea.tasks.PointClassificationTask
  init_args:
    network:
      class_path: pcea.models.eat_classifier
      init_args:
        {num_classes: 12, dim: 16, num_centers: [16, 8], num_neighbors: 4, memory_units: 8, out_channels: 32,
         widths: [16, 8]}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
    scheduler: {class_path: pcea.tasks.OneCycle, init_args: {max_lr: 0.01}}
data:
  class_path: pcea.datamodules.ShapesDataModule
  init_args:
    {num_train: 48, num_val: 12, num_test: 24, num_points: 32, batch_size: 12,
     augment: [{class_path: pcea.transforms.RandomScale}]}
"""


def run(capsys, *arguments):
    """Exit code, output and errors of a command."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_one_line(result, *words):
    code, _, errors = result
    message = [line for line in errors.splitlines() if line.startswith("pcea: error:")]
    assert code == 2
    assert len(message) == 1
    assert "Traceback" not in errors, errors
    for word in words:
        assert word in message[0]


def recipe(name, folder, network):
    """Options that shrink a shipped recipe to two epochs of a tiny network."""
    options = {
        "trainer.default_root_dir": folder / "runs",
        "trainer.max_epochs": 2,
        "trainer.precision": 32,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "data.init_args.root": folder / "data",
        **{f"model.init_args.network.init_args.{key}": value for key, value in network.items()},
    }
    return ["--config", name, *(f"--{key}={value}" for key, value in options.items())]


PART_SIZES = {"dim": 16, "num_neighbors": 4, "memory_units": 8, "out_channels": 32, "widths": (16, 8), "dropout": 0.0}


# The classes of a category need not be neighbours.
PARTS = {"tower": (1, 3), "bar": (0, 2, 4)}


PART_NAMES = ("bar/left", "tower/foot", "bar/middle", "tower/head", "bar/right")


NUM_POINTS = 64


def true_parts(points, category):
    """Classes (..., N) of normalised points (..., N, 3)."""
    if category == "tower":
        return torch.tensor(PARTS["tower"])[(points[..., 1] > 0).long()]
    return torch.tensor(PARTS["bar"])[1 + (points[..., 0] > 0.3).long() - (points[..., 0] < -0.3).long()]


@contextmanager
def one_thread():
    """For what trains before a test's own fixture sets it: the same numbers on every machine, and less waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
@one_thread()
def trained_on_parts() -> PartPredictor:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = eat_part_segmenter(5, 2, **PART_SIZES)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(80):
        points = normalize_points(torch.rand(16, NUM_POINTS, 3, generator=generator))
        category = torch.arange(16) % 2
        label = torch.stack([true_parts(p, list(PARTS)[c]) for p, c in zip(points, category)])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(points, category=category).flatten(0, 1), label.flatten()).backward()
        optimizer.step()
    return PartPredictor(network, describe_parts({"num_classes": 5, "num_categories": 2, **PART_SIZES}))


def describe_parts(arguments):
    """What a weights file says of a segmenter of towers and bars."""
    has_normals = arguments.get("in_channels") == 6
    return NetworkDescription("parts", "pcea.eat_part_segmenter", arguments, PART_NAMES, NUM_POINTS, has_normals, PARTS)


POINT_SIZES = {"dim": 16, "num_centers": (16, 8), "num_neighbors": 4, "memory_units": 8, "out_channels": 32,
         "widths": (16, 8)}  # fmt: skip


PLY_VERTICES = [(0, 0, 0), (2, 0, 0), (2, 1, 0), (0, 1, 0), (1, 0.5, 3)]


PLY_HOUSE = [(0, 1, 2, 3), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)]  # a floor and a roof


PLY_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


def make_ply(kind, faces, *, faces_first=False, newline="\n", name="vertex_indices"):
    """A file with a colour and a list beside what is wanted, and an element behind."""
    order = PLY_ORDERS[kind]
    vertex = ["element vertex 5", "property float x", "property uchar red", "property double y", "property float z"]
    face = [f"element face {len(faces)}", f"property list uchar int {name}", "property uchar red"]
    elements = [face, vertex] if faces_first else [vertex, face]
    header = ["ply", f"format {kind} 1.0", "comment made by hand", *elements[0], *elements[1]]
    header += ["element edge 1", "property int vertex1", "property int vertex2", "end_header", ""]
    blocks = [
        [("fBdf", (x, 7, y, z)) for x, y, z in PLY_VERTICES],
        [(f"B{len(f)}iB", (len(f), *f, 9)) for f in faces],
    ]
    rows = [*(blocks[::-1] if faces_first else blocks), [("ii", (0, 1))]]
    if order:
        body = b"".join(struct.pack(order + code, *row) for block in rows for code, row in block)
    else:
        body = "".join(" ".join(map(str, row)) + newline for block in rows for _, row in block).encode()
    return newline.join(header).encode() + body


class MeanColor(nn.Module):
    """Its features are the mean colour, 0..1, and so are its logits, times 100; three classes."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.head = nn.Linear(3, num_classes, bias=False)
        self.head.weight.data = 100 * torch.eye(num_classes, 3)

    def forward(self, images):
        return self.head(images.mean((2, 3)))


def trained_on_colors(network=None, **options):
    about = {"class_names": ("a", "b", "c"), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return ImagePredictor(network or MeanColor(), NetworkDescription("images", "own.MeanColor", **{**about, **options}))


def color_images(rows):
    """Images of one colour each."""
    return torch.tensor(rows, dtype=torch.uint8).view(-1, 3, 1, 1).expand(-1, 3, 4, 4)


REAL_COLORS = [[100, 0, 0], [200, 0, 0], [0, 100, 0], [0, 200, 0], [0, 0, 250]]


COLOR_LABEL = torch.tensor([0, 0, 1, 1, 2])


def run_visualize(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main(["visualize", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def write_image(path, values, red=0):
    """A mask of one row, or, with `red`, a picture of the same size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.array([values], dtype=np.uint8)
    if red:
        values = np.stack([np.full_like(values, red)] * 3, axis=-1)
    Image.fromarray(values).save(path)


def strongest_reds(files):
    """The strongest red of each image: `write_image` makes images that it tells apart."""
    return [int(files[i][0].max()) for i in range(len(files))]


@contextmanager
def mounted_disk(folder, size):
    """A small filesystem of its own; the test is skipped where none can be mounted."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a filesystem takes root on Linux")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a filesystem of its own cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def attach(data, *, world_size=1, rank=0, training=False, step=0):
    """Give a data module what it asks of a trainer."""
    loop = SimpleNamespace(total_batch_idx=step)
    data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, training=training, fit_loop=loop)
    return data


def check_order(order):
    """Check that `order(seed, epoch)`, of 30 samples, follows its arguments alone."""
    first = order(0, 0)
    assert sorted(number for batch in first for number in batch) == list(range(30))
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first


def check_same_batches(make, *arrays):
    """Check that clouds in memory and in their file give the same batches, in all loaders, epochs and processes.

    Args:
        make: Called with `in_memory`, and perhaps `num_workers`, returns a data module.
        arrays: Names of the arrays of its sets that stay in the file.
    """
    for world_size, rank, workers in ((1, 0, 0), (2, 0, 0), (2, 1, 0), (1, 0, 1)):
        batches = []
        for in_memory in (True, False):
            data = attach(make(in_memory=in_memory, num_workers=workers), world_size=world_size, rank=rank)
            for stage in ("fit", "test"):
                data.setup(stage)
            for samples in data.sets.values():
                assert all(isinstance(getattr(samples, name), torch.Tensor) == in_memory for name in arrays)
            loaders = [data.train_dataloader(), data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
            loaders[1].sampler.set_epoch(1)
            batches.append([batch for loader in loaders for batch in loader])
        assert len(batches[0]) == len(batches[1]) >= 5
        for held, read in zip(*batches):
            for one, other in zip(held, read):
                assert one is other is None or torch.equal(one, other)


def write(path, text):
    path.write_text(text)
    return path


def cloud(n=7, columns=3, seed=0):
    table = np.random.default_rng(seed).normal(size=(n, columns))
    if columns >= 6:
        table[:, 3:6] /= np.linalg.norm(table[:, 3:6], axis=1, keepdims=True)
    return table


def one_hot(slots, count):
    return torch.nn.functional.one_hot(torch.tensor([slots]), count).float()


# In layer a slot 2 is the strongest of most points, in layer b slot 1.
SLOTS = {"a": [2, 2, 0, 2, 1], "b": [1, 1, 1, 0, 0]}


def subject(*, name="", points=None, slots=SLOTS, **options):
    points = torch.randn(5, 3) if points is None else points
    return Subject(points, {key: AttentionMap(one_hot(row, 3)) for key, row in slots.items()}, name=name, **options)


def self_attention():
    return Subject(torch.randn(5, 3), {"": AttentionMap(torch.rand(1, 5, 5), slots_are_tokens=True)})
