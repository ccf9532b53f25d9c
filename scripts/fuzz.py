"""Damage valid files of every format in many ways, and see that each is read or refused, and nothing else.

Each case is a valid file that a seeded generator has cut, overwritten, or given other numbers. A child process with a
limit of memory reads it, each case within a limit of time. Allowed are finite points, ValueError, OSError, and
ImportError where an optional package is missing. Anything else is reported with the number of the case, which
`--only NUMBER` runs again and `--keep FOLDER` saves.

    python scripts/fuzz.py --cases 25000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

MEMORY, SECONDS = 2 << 30, 20
HOSTILE = [
    "0",
    "-1",
    "1",
    "65536",
    "2147483647",
    "4294967295",
    "1000000000000",
    "1e38",
    "1e400",
    "nan",
    "-inf",
    "",
    "x",
]


def write_seeds(folder: Path) -> list[Path]:
    """Valid files of each format and variant, 60 points or a box, except where a package is missing."""
    import h5py
    import trimesh

    from pcea.io.ply import write_ply

    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 3))
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    rows = np.hstack([points, normals])
    box = trimesh.creation.box()

    np.save(folder / "a.npy", rows)
    np.save(folder / "fields.npy", np.rec.fromarrays(points.T, names="x,y,z"))
    np.savez(folder / "a.npz", points=points, normals=normals)
    np.savez_compressed(folder / "small.npz", points=points)
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"] = points
        file.create_dataset("normal", data=normals, compression="gzip")
    for name, delimiter, header in (
        ("a.txt", " ", ""), ("a.csv", ",", "x,y,z,nx,ny,nz"), ("a.xyz", "\t", "# x y z nx ny nz"),
        ("b.csv", ";", "X;Y;Z;nx;ny;nz"), ("a.pts", " ", "60"),
    ):  # fmt: skip
        np.savetxt(folder / name, rows, fmt="%.5f", delimiter=delimiter, header=header, comments="")
    (folder / "utf16.asc").write_bytes((folder / "a.txt").read_text().encode("utf-16"))
    write_ply(folder / "cloud.ply", dict(zip("xyz", points.T)))
    box.export(folder / "box.ply")
    box.export(folder / "text.ply", encoding="ascii")
    for extension in ("off", "obj", "stl", "glb"):
        box.export(folder / f"a.{extension}")
    (folder / "ascii.stl").write_text(trimesh.exchange.stl.export_stl_ascii(box))
    (folder / "points.obj").write_text("".join("v {} {} {}\n".format(*row) for row in points))
    gltf = trimesh.exchange.gltf.export_gltf(trimesh.Scene(box), embed_buffers=True)
    (folder / "a.gltf").write_bytes(gltf["model.gltf"])
    _write_pcds(folder, rows)
    try:
        import laspy

        for version, kind in (("1.2", 3), ("1.4", 6)):
            las = laspy.LasData(laspy.LasHeader(point_format=kind, version=version))
            las.header.scales = [0.001] * 3
            las.xyz = points
            las.write(folder / f"{kind}.las")
            las.write(folder / f"{kind}.laz")
    except Exception as error:  # laspy or lazrs is missing
        print(f"No LAS or LAZ files: {error}.", file=sys.stderr)
    for extension in ("3mf", "dae"):
        try:
            box.export(folder / f"a.{extension}")
        except ImportError as error:
            print(f"No {extension} files: {error}.", file=sys.stderr)
    return sorted(folder.iterdir())


def _write_pcds(folder: Path, rows: np.ndarray) -> None:
    names = "x y z _ normal_x normal_y normal_z"
    header = (
        f"VERSION 0.7\nFIELDS {names}\nSIZE 4 4 4 1 4 4 4\nTYPE F F F U F F F\nCOUNT 1 1 1 4 1 1 1\nWIDTH 60\n"
        "HEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 60\nDATA "
    )
    text = "".join("{:.5f} {:.5f} {:.5f} 0 0 0 0 {:.5f} {:.5f} {:.5f}\n".format(*row) for row in rows)
    (folder / "text.pcd").write_text(f"{header}ascii\n{text}")
    records = np.zeros(60, [("p", "<f4", 3), ("pad", "u1", 4), ("n", "<f4", 3)])
    records["p"], records["n"] = rows[:, :3], rows[:, 3:]
    (folder / "binary.pcd").write_bytes(f"{header}binary\n".encode() + records.tobytes())
    body = rows[:, :3].T.astype("<f4").tobytes() + bytes(240) + rows[:, 3:].T.astype("<f4").tobytes()
    # LZF without any repetition: runs of 32 literal bytes.
    packed = b"".join(bytes([len(body[i : i + 32]) - 1]) + body[i : i + 32] for i in range(0, len(body), 32))
    sizes = len(packed).to_bytes(4, "little") + len(body).to_bytes(4, "little")
    (folder / "packed.pcd").write_bytes(f"{header}binary_compressed\n".encode() + sizes + packed)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three damages: cut, overwritten, inserted or repeated bytes, other numbers."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        # Half of the damages go to the beginning, where headers are.
        place = rng.randrange(min(len(data), 400) if rng.random() < 0.5 else len(data)) if data else 0
        kind = rng.randrange(8)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place : place + rng.choice((1, 2, 4, 8))] = rng.randbytes(rng.choice((1, 2, 4, 8)))
        elif kind == 2:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, -1, 2 ** (8 * width - 1) - 1, 10**9, 10**12)) & (2 ** (8 * width) - 1)
            data[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 3:
            data[place : place + 8] = np.array(rng.choice((np.nan, np.inf, 1e38, 1e300)), "<f8").tobytes()
        elif kind == 4:
            data[place : place + 4] = np.array(rng.choice((np.nan, -np.inf, 3e38)), "<f4").tobytes()
        elif kind == 5:
            del data[place : place + rng.randrange(1, 20)]
        elif kind == 6:
            data[place:place] = data[place : place + rng.randrange(1, 60)]
        else:
            numbers = list(re.finditer(rb"[-+]?\d+(?:\.\d+)?", bytes(data)))
            if numbers:
                number = rng.choice(numbers[:40] if rng.random() < 0.5 else numbers)
                data[number.start() : number.end()] = rng.choice(HOSTILE).encode()
    return bytes(data)


def make_case(seeds: list[Path], number: int, seed: int) -> tuple[Path, bytes]:
    """The seed file of a case, and its damaged content; the same for the same number and seed."""
    rng = random.Random(f"{seed} {number}")
    path = seeds[number % len(seeds)]
    return path, mutate(path.read_bytes(), rng)


def read_cases(seeds: list[Path], numbers: list[int], seed: int, folder: Path, pipe: Connection) -> None:
    """In a child: read cases one by one, telling the number before and the outcome after each."""
    import torch
    import trimesh  # noqa: F401

    from pcea.io.points import load_points, normalize_points

    warnings.simplefilter("ignore")
    used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10  # type: ignore[index]
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in numbers:
        source, content = make_case(seeds, number, seed)
        path = folder / f"{number}{source.suffix}"
        path.write_bytes(content)
        pipe.send((number, None))
        signal.alarm(SECONDS)
        try:
            cloud = load_points(path, normals="file")
            arrays = [normalize_points(cloud.points), *([] if cloud.normals is None else [cloud.normals])]
            finite = all(bool(torch.isfinite(array).all()) for array in (cloud.points, *arrays))
            outcome = "points" if finite else "FAULT: points that are not finite"
        except (ValueError, OSError, ImportError) as error:
            one_line = "\n" not in str(error)
            outcome = type(error).__name__ if one_line else f"FAULT: a message of several lines: {error}"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"FAULT: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        signal.alarm(0)
        path.unlink()
        pipe.send((number, outcome))


def run(seeds: list[Path], numbers: list[int], seed: int, folder: Path) -> dict[int, str]:
    """The outcome of each case. A child that dies is replaced, and its case is a fault."""
    context = multiprocessing.get_context("spawn")
    outcomes: dict[int, str] = {}
    while todo := [number for number in numbers if number not in outcomes]:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=read_cases, args=(seeds, todo, seed, folder, theirs))
        child.start()
        theirs.close()
        current = todo[0]
        try:
            while len(outcomes) < len(numbers):
                current, outcome = ours.recv()
                if outcome is not None:
                    outcomes[current] = outcome
        except EOFError:
            child.join()
            death = f"killed by {signal.Signals(-child.exitcode).name}" if child.exitcode < 0 else child.exitcode
            hint = f", more than {SECONDS} s" if child.exitcode == -signal.SIGALRM else ""
            outcomes[current] = f"FAULT: the process ended: {death}{hint}"
        child.join()
    return outcomes


def main() -> int:
    """Run the cases of the command line; the exit code is 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="*", help="extensions, such as ply pcd; all if not given")
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--keep", type=Path, help="save the files of faults here")
    options = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        seeds = write_seeds(folder / "seeds")
        if options.formats:
            seeds = [path for path in seeds if path.suffix[1:] in options.formats]
        numbers = [options.only] if options.only is not None else [*range(options.first, options.first + options.cases)]
        outcomes = run(seeds, numbers, options.seed, folder)
        faults = {number: outcome for number, outcome in sorted(outcomes.items()) if outcome.startswith("FAULT")}
        for number, outcome in faults.items():
            path, content = make_case(seeds, number, options.seed)
            print(f"case {number} ({path.name}) {outcome}")
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{number}_{path.name}").write_bytes(content)
    counts = Counter(outcome.partition(":")[0] for outcome in outcomes.values())
    print(json.dumps({"cases": len(outcomes), **counts, "seconds": round(time.perf_counter() - begin, 1)}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
