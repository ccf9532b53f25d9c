import numpy as np
import pytest
import torch

from pcea.visualization import color_parts, color_values, palette

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB; the first is full colour vision.
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def to_lab(linear):
    x = np.clip(linear, 0, 1) @ XYZ.T / (0.95047, 1, 1.08883)
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("vision", VISION)
def test_the_colours_can_be_told_apart(vision):
    """16 in CIELAB is what the closest two of Okabe and Ito's colours have; 2.3 can just be seen."""
    colors = palette(16).double().numpy() / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    lab = to_lab(linear @ np.asarray(VISION[vision]).T)
    distance = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1000 * np.eye(16)
    assert distance.min() > 16


@pytest.mark.parametrize("count", [1, 12, 17, 60, 500])
def test_no_colour_comes_twice(count):
    colors = palette(count)
    assert (colors.shape, colors.dtype) == ((count, 3), torch.uint8)
    assert len(colors.unique(dim=0)) == count
    assert colors[:12].equal(palette(12)[:count])


def test_after_500_colours_they_start_again():
    colors = palette(1203)
    assert colors.shape == (1203, 3)
    assert colors[500:1000].equal(colors[:500])
    assert colors[1000:].equal(colors[:203])


def test_a_part_has_the_colour_of_its_place_in_the_category():
    orange, sky_blue, green = [230, 159, 0], [86, 180, 233], [0, 158, 115]
    colors = color_parts(torch.tensor([7, 9, 7, 2]), (7, 2, 9))
    assert colors.tolist() == [orange, green, orange, sky_blue]


def test_errors():
    with pytest.raises(ValueError, match=r"part_label must be one of \[7, 2\], got 3"):
        color_parts(torch.tensor([7, 3, 8]), (7, 2))


def test_values_have_the_colours_of_viridis():
    dark, middle, bright = [68, 1, 84], [32, 144, 140], [253, 231, 36]  # as Matplotlib draws them
    values = torch.tensor([[2.0, 3.0, 4.0], [-9.0, 1.99, 100.0]], requires_grad=True)
    assert color_values(values, low=2, high=4).tolist() == [[dark, middle, bright], [dark, dark, bright]]


def test_higher_values_are_brighter():
    colors = color_values(torch.linspace(-1, 1, 50), low=-1, high=1).double()
    assert (colors @ torch.tensor([0.2126, 0.7152, 0.0722]).double()).diff().min() > 0


def test_equal_values_have_a_colour():
    assert color_values(torch.zeros(2), low=0, high=0).tolist() == [[68, 1, 84]] * 2
    assert color_values(torch.ones(2), low=0, high=0).tolist() == [[253, 231, 36]] * 2
