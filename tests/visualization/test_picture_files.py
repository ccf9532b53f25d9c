import weakref

import numpy as np
import pytest
from pictures import GREEN, ORANGE, SKY_BLUE, WHITE
from PIL import Image

from pcea.visualization.picture_files import save_gif, save_png


def test_a_picture_is_written_and_read_back(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for path in (tmp_path / "a.png", str(tmp_path / "b.png")):
        save_png(path, picture)
        assert (np.asarray(Image.open(path)) == picture).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_an_animation_is_written_and_read_back(tmp_path):
    colors = [ORANGE, SKY_BLUE, GREEN, WHITE]
    pictures = [np.full((5, 7, 3), color, dtype=np.uint8) for color in colors]
    for path in (tmp_path / "a.gif", str(tmp_path / "b.gif")):
        save_gif(path, pictures, frames_per_second=2)
        with Image.open(path) as animation:
            assert (animation.n_frames, animation.size, animation.info["loop"]) == (4, (7, 5), 0)
            for number, color in enumerate(colors):
                animation.seek(number)
                assert animation.info["duration"] == 500
                assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - color).max() <= 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "b.gif"]


def test_frames_are_written_as_they_come(tmp_path):
    """Of 50 frames, no more than three are in memory when the next is drawn."""
    frames, alive = [], []

    def draw():
        for shade in range(50):
            picture = np.full((5, 7, 3), shade, dtype=np.uint8)
            frames.append(weakref.ref(picture))
            yield picture
            alive.append(sum(frame() is not None for frame in frames))

    save_gif(tmp_path / "a.gif", draw())
    assert len(alive) == 50
    assert max(alive) <= 3


def test_the_palette_of_an_iterator_is_that_of_the_sample(tmp_path):
    pictures = [np.full((5, 7, 3), color, dtype=np.uint8) for color in (ORANGE, SKY_BLUE, GREEN)]

    def second_frame(**options):
        save_gif(tmp_path / "a.gif", iter(pictures), **options)
        with Image.open(tmp_path / "a.gif") as animation:
            animation.seek(1)
            return np.asarray(animation.convert("RGB")).astype(int)

    assert np.abs(second_frame(sample=pictures[:2]) - SKY_BLUE).max() <= 4


def test_an_animation_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one picture, got none"):
        save_gif(tmp_path / "a.gif", iter([]))


@pytest.mark.parametrize("save", [save_png, lambda path, picture: save_gif(path, [picture, picture])])
def test_a_failure_leaves_nothing_behind(tmp_path, save):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    with pytest.raises((TypeError, ValueError)):
        save(path, np.zeros((5, 7, 9), dtype=np.float64))
    assert path.read_bytes() == b"before"
    with pytest.raises(FileNotFoundError, match="missing"):
        save(tmp_path / "missing" / "a.png", np.zeros((5, 7, 3), dtype=np.uint8))
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
