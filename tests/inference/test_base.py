"""Where results go, and pictures for notebooks."""

import numpy as np
import pytest
import torch
from examples import trained_on_parts

from pcea.inference.base import check_output_folder
from pcea.inference.points import load_cloud
from pcea.io.points import Points
from pcea.visualization.renderer import check_rendering


def check(folder, files, endings=(".ply", ".npz")):
    check_output_folder(folder, files, endings=endings)


def test_results_that_would_overwrite_something(tmp_path):
    files = [tmp_path / "a" / "scan.off", tmp_path / "b" / "scan.npy"]
    with pytest.raises(ValueError, match=r"scan\.off and .*scan\.npy would both be written to .*out/scan\.ply"):
        check(tmp_path / "out", files)
    check(tmp_path / "out", files[:1])
    check(tmp_path / "a", files[:1])
    with pytest.raises(ValueError, match=r"would overwrite .*scan\.ply"):
        check(tmp_path / "b" / ".." / "a", [tmp_path / "a" / "scan.ply"])
    (tmp_path / "file").touch()
    for output in ("file", "parts.csv"):
        with pytest.raises(ValueError, match="writes a folder of results, not a table"):
            check(tmp_path / output, files[:1])


def test_endings_may_be_more_than_a_suffix(tmp_path):
    files = [tmp_path / "photo.jpg", tmp_path / "photo_overlay.jpg"]
    check(tmp_path / "out", files, [".png", "_overlay.jpg"])
    with pytest.raises(ValueError, match=r"would overwrite .*photo_overlay\.jpg"):
        check(tmp_path, files, [".png", "_overlay.jpg"])
    with pytest.raises(ValueError, match=r"photo\.jpg and .*photo_overlay\.jpg would both be written to"):
        check(tmp_path / "out", files, ["_overlay.png", ".png"])


def test_a_picture():
    try:
        check_rendering()
    except (OSError, ImportError) as error:
        pytest.skip(str(error))
    points = torch.rand(100, 3)
    picture = trained_on_parts().draw(points, mode="query", query=5, category="bar", size=120, azimuth=10)
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 150  # with the title
    assert (picture[40:, :120] != 255).any(-1).mean() > 0.05
    with pytest.raises(
        ValueError, match="has the modes colors, slots, slot, query, critical, prediction, parts, not 'x'"
    ):
        trained_on_parts().draw(points, mode="x", category="bar")


def test_a_query_that_is_no_point_is_refused() -> None:
    predictor, points = trained_on_parts(), torch.rand(100, 3)
    for mode in (None, "query", "parts"):
        for query in (-1, 100):
            with pytest.raises(ValueError, match=rf"query must be the number of a point, 0\.\.99, got {query}"):
                predictor.visualize(points, mode=mode, query=query, category="bar")
    subject = predictor.subject(points, category="bar")
    assert [subject.first_mode(query=0), subject.first_mode(0), subject.first_mode()] == ["query", "slot", "colors"]


def test_clouds_in_memory_are_checked() -> None:
    points, normals = torch.rand(100, 3), torch.nn.functional.normalize(torch.rand(100, 3), dim=1)
    expected = load_cloud(Points(points, normals))
    found = load_cloud(Points(points.double(), 2 * normals.double()))
    assert found.points.equal(expected.points)
    assert found.normals is not None
    torch.testing.assert_close(found.normals, normals)
    with pytest.raises(ValueError, match=r"normals must be \(100, 3\) like points, got \(99, 3\)"):
        load_cloud(Points(points, normals[:99]))
    with pytest.raises(ValueError, match="normals must be finite"):
        load_cloud(Points(points, normals / 0))
    with pytest.raises(ValueError, match="1 of 100 points have NaN"):
        load_cloud(Points(points.index_fill(0, torch.tensor([3]), torch.nan)))
