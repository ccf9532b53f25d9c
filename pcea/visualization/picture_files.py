"""Write pictures and animations to files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pcea.io.atomic import atomic_file


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture, (H, W, 3) uint8, completely or not at all.

    Raises:
        OSError: If the folder does not exist or cannot be written to.
    """
    from PIL import Image

    with atomic_file(Path(path)) as part:
        Image.fromarray(picture).save(part, format="PNG", optimize=True)


def save_gif(
    path: str | Path,
    pictures: Iterable[np.ndarray],
    *,
    sample: Sequence[np.ndarray] | None = None,
    frames_per_second: float = 9.0,
) -> None:
    """Write pictures of one size, (H, W, 3) uint8, as an animation that repeats for ever.

    Args:
        path: A file ending in .gif.
        pictures: The frames. Those of an iterator are taken one after another and not kept, but for a byte per pixel.
        sample: Pictures with the colours of all frames; None for a few of the frames, of an iterator the first alone.
        frames_per_second: How fast they are shown.

    Raises:
        ValueError: If there are no pictures.
        OSError: If the folder does not exist or cannot be written to.
    """
    from PIL import Image

    frames = iter(pictures)
    first = next(frames, None)
    if first is None:
        raise ValueError("An animation needs at least one picture, got none.")
    if sample is None:
        sample = pictures[:: max(1, len(pictures) // 4)] if isinstance(pictures, Sequence) else [first]
    palette = reduced_palette(np.concatenate(sample))
    reduced = (
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in chain([first], frames)
    )
    with atomic_file(Path(path)) as part:
        duration = round(1000 / frames_per_second)
        start = next(reduced)
        start.save(part, format="GIF", save_all=True, append_images=reduced, duration=duration, loop=0, optimize=True)


def reduced_palette(picture: np.ndarray) -> Any:
    """A palette of 256 colours: the 64 most frequent ones unchanged, among them those of the legend, and averages."""
    from PIL import Image

    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    others = Image.fromarray(picture).quantize(256 - 64).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*colors[counts.argsort()[::-1][:64]].ravel().tolist(), *others])
    return palette
