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
        save_gif(path, pictures, seconds=2.0)
        with Image.open(path) as animation:
            assert (animation.n_frames, animation.size, animation.info["loop"]) == (4, (7, 5), 0)
            for number, color in enumerate(colors):
                animation.seek(number)
                assert animation.info["duration"] == 500
                assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - color).max() <= 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "b.gif"]


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
