import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pcea.datasets import images
from pcea.datasets.batches import IGNORE
from pcea.datasets.images import ImageFiles, ImageTensors, TransformedImages, read_header, read_image
from pcea.datasets.masks import read_mask


def save(path, values, mode=None, **options):
    """Write values (H, W) or (H, W, C) as a picture file."""
    picture = Image.fromarray(np.asarray(values))
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


COLOURS = np.array(
    [[[255, 0, 0], [0, 128, 0], [10, 20, 30]], [[0, 0, 255], [255, 255, 255], [0, 0, 0]]], dtype=np.uint8
)


def colours(path) -> list:
    """The pixels of a file as rows of colours."""
    return read_image(path).permute(1, 2, 0).tolist()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif", "ppm"])
def test_colours_are_read_as_they_are(tmp_path, suffix):
    image = read_image(save(tmp_path / f"x.{suffix}", COLOURS))
    assert (image.shape, image.dtype) == ((3, 2, 3), torch.uint8)
    assert image.is_contiguous()
    assert image.permute(1, 2, 0).tolist() == COLOURS.tolist()


def test_grey_values_become_equal_colours(tmp_path):
    grey = np.array([[0, 7, 255]], dtype=np.uint8)
    assert colours(save(tmp_path / "x.png", grey)) == [[[0] * 3, [7] * 3, [255] * 3]]
    assert colours(save(tmp_path / "bw.png", grey > 100)) == [[[0] * 3, [0] * 3, [255] * 3]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix):
    grey = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    # 128 / 257 = 0.498, 129 / 257 = 0.502, 32768 / 257 = 127.5
    assert [pixel[0] for pixel in colours(save(tmp_path / f"x.{suffix}", grey))[0]] == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_of_12_bits_are_dark_which_is_said_once(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(images, "_warned_of_few_bits", False)
    path = save(tmp_path / f"x.{suffix}", np.array([[0, 4095]], dtype=np.uint16))
    with pytest.warns(
        UserWarning, match=rf"x.{suffix} has 16 bits, but no value above 4095: it is seen as nearly black"
    ):
        read_image(path)
    assert colours(path)[0][1] == [16] * 3  # without another warning
    save(path, np.array([[0, 4096]], dtype=np.uint16))
    monkeypatch.setattr(images, "_warned_of_few_bits", False)
    read_image(path)


def test_8_bits_in_numbers_of_32_are_8_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_warned_of_few_bits", False)
    with pytest.warns(UserWarning, match="y.tif has 32 bits, but no value above 9: it is taken for an image of 8 bits"):
        read_image(save(tmp_path / "y.tif", np.array([[0, 9]], dtype=np.int32)))
    assert [pixel[0] for pixel in colours(save(tmp_path / "x.tif", np.array([[0, 7, 255]], dtype=np.int32)))[0]] == [
        0,
        7,
        255,
    ]


def test_a_dark_pgm_of_16_bits_is_dark(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_warned_of_few_bits", False)
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([0, 200], ">u2").tobytes())
    with pytest.warns(UserWarning, match="x.pgm has 16 bits, but no value above 200"):
        assert [pixel[0] for pixel in colours(tmp_path / "x.pgm")[0]] == [0, 1]


def test_32_bits_that_hold_16_are_scaled_too(tmp_path):
    path = save(tmp_path / "x.tif", np.array([[0, 65535]], dtype=np.int32))
    assert [pixel[0] for pixel in colours(path)[0]] == [0, 255]
    save(path, np.array([[0, 65536]], dtype=np.int32))
    with pytest.raises(ValueError, match=r"x\.tif: grey values must be 8 or 16 bits, got 0\.\.65536"):
        read_image(path)


def test_floating_point_values_have_no_range(tmp_path):
    path = save(tmp_path / "x.tif", np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match=r"x\.tif holds floating-point values.* Save it with 8 or 16 bits"):
        read_image(path)


def test_what_is_transparent_is_laid_over_white(tmp_path):
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], dtype=np.uint8)
    expected = [[200, 0, 0], [255, 255, 255], [244, 204, 204]]  # 255 - 0.2 * 55, 255 - 0.2 * 255
    assert colours(save(tmp_path / "x.png", rgba)) == [expected]
    grey = np.array([[[90, 255], [90, 0]]], dtype=np.uint8)
    assert colours(save(tmp_path / "la.png", grey)) == [[[90] * 3, [255] * 3]]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=1)
    assert colours(tmp_path / "p.png") == [[[10, 20, 30], [255] * 3]]
    palette.save(tmp_path / "opaque.png")
    assert colours(tmp_path / "opaque.png") == [[[10, 20, 30], [40, 50, 60]]]


def test_cmyk_is_converted(tmp_path):
    flat = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    image = read_image(save(tmp_path / "x.jpg", flat, "CMYK", quality=95))
    assert image.shape == (3, 16, 16)
    assert (image.float().mean((1, 2)) - torch.tensor([200.0, 100, 50])).abs().max() < 3


def test_the_cameras_note_which_side_is_up_is_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right of the stored picture
    wide = np.zeros((16, 32, 3), dtype=np.uint8)
    wide[:, 16:] = 255
    image = read_image(save(tmp_path / "x.jpg", wide, exif=exif))
    assert image.shape == (3, 32, 16)
    assert image[:, :14].max() < 20  # turned clockwise, its left half is on top
    assert image[:, 18:].min() > 235


def test_the_header_tells_the_size_of_the_image_that_is_read(tmp_path):
    flat = np.zeros((16, 32, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "tif"):
        for note, size in ((1, (16, 32)), (3, (16, 32)), (5, (32, 16)), (8, (32, 16))):
            exif = Image.Exif()
            exif[0x0112] = note
            path = save(tmp_path / f"x.{suffix}", flat, exif=exif)
            assert read_header(path) == ("RGB", *size, note > 4)
            assert read_image(path).shape[1:] == size
    assert read_header(save(tmp_path / "x.png", flat[:, :, 0])) == ("L", 16, 32, False)
    (tmp_path / "x.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
        read_header(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match=r"No image .*y\.png"):
        read_header(tmp_path / "y.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot identify image file"),
        (b"hello", "cannot identify image file"),
        ("half of x.png", "truncated"),
        ("half of x.jpg", "truncated"),
        ("half of x.bmp", "truncated"),
        ("half of x.webp", "could not create decoder"),
    ],
)
def test_a_damaged_file(tmp_path, content, reason, rng):
    if isinstance(content, str):
        name = content.split()[-1]
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
            buffer, {"jpg": "jpeg"}.get(name[2:], name[2:])
        )
        content = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^[^\n]*broken\.jpg cannot be read as an image: [^\n]*{reason}[^\n]*\.$"
    ) as error:
        read_image(path)
    assert str(error.value).count("broken.jpg") == 1


@pytest.mark.parametrize("suffix", ["eps", "pcx", "tga", "ico", "jp2", "fli"])
def test_only_the_promised_formats_are_decoded_whatever_the_name(tmp_path, suffix):
    """Pillow would start Ghostscript for EPS."""
    if suffix == "fli":
        (tmp_path / "x.png").write_bytes(b"\0\0\0\0\x12\xaf" + bytes(200))
    else:
        picture = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
        picture.save(tmp_path / f"x.{suffix}")
        (tmp_path / f"x.{suffix}").rename(tmp_path / "x.png")
    for read in (read_image, read_header, lambda path: read_mask(path, {0: 0})):
        with pytest.raises(ValueError, match=r"x\.png cannot be read as an image: cannot identify image file"):
            read(tmp_path / "x.png")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No image .*none\.png"):
        read_image(tmp_path / "none.png")


@pytest.fixture
def files(tmp_path):
    """Five pictures; the red of picture i is i everywhere; its size is 2 x 3."""
    paths = [save(tmp_path / f"{i}.png", np.full((2, 3, 3), (i, 100, 200), dtype=np.uint8)) for i in range(5)]
    return ImageFiles(paths, torch.tensor([0, 1, 0, 1, 1]), class_names=["cat", "dog"])


def test_files_have_their_classes(files):
    image, label = files[3]
    assert image[0].unique().tolist() == [3]
    assert (label.item(), label.dtype, label.ndim) == (1, torch.int64, 0)
    part = files.subset(torch.tensor([4, 0]))
    assert [int(part[i][0][0, 0, 0]) for i in range(len(part))] == [4, 0]
    assert part.strata.tolist() == [1, 0]
    assert part.class_names == ("cat", "dog")
    with pytest.raises(ValueError, match=r"label must be \(5,\) like the files, got \(4,\)"):
        ImageFiles(files.files, torch.zeros(4), class_names=["cat"])


def test_files_are_read_once_into_memory(files):
    kept = files.in_memory("reading")
    for path in files.files:
        path.unlink()
    assert kept.images.shape == (5, 3, 2, 3)
    assert kept.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert kept.label.tolist() == kept.strata.tolist() == [0, 1, 0, 1, 1]
    assert kept.class_names == ("cat", "dog")
    assert kept.in_memory("again") is kept
    part = kept.subset(torch.tensor([4, 0]))
    assert part.images[:, 0, 0, 0].tolist() == [4, 0]
    assert part.label.tolist() == [1, 0]


def of_sizes(*sizes):
    images = [torch.full((3, *size), i, dtype=torch.uint8) for i, size in enumerate(sizes)]
    masks = [torch.full(size, i, dtype=torch.uint8) for i, size in enumerate(sizes)]
    return images, masks


def test_memory_holds_images_of_any_sizes():
    images, masks = of_sizes((2, 3), (5, 7), (2, 3))
    held = ImageTensors(images, masks, class_names=["a", "b", "c"])
    assert held.strata.tolist() == [0, 0, 0]
    part = held.subset(torch.tensor([1, 2]))
    assert [tuple(part[i][1].shape) for i in range(2)] == [(5, 7), (2, 3)]
    assert torch.equal(part[1][0], images[2])


@pytest.mark.parametrize(
    ("images", "label", "message"),
    [
        (torch.zeros(2, 3, 5, 7, dtype=torch.uint8), torch.zeros(3), "got 2 images and 3 labels"),
        (
            torch.zeros(2, 1, 5, 7, dtype=torch.uint8),
            torch.zeros(2),
            r"Image 0 must be \(3, H, W\) uint8, got \(1, 5, 7\)",
        ),
        (torch.zeros(2, 3, 5, 7), torch.zeros(2), r"Image 0 must be \(3, H, W\) uint8, .* torch\.float32"),
        (torch.zeros(1, 3, 5, 7, dtype=torch.uint8), torch.tensor([2]), r"labels must be in 0\.\.1, got 2"),
        (torch.zeros(1, 3, 5, 7, dtype=torch.uint8), torch.tensor([-1]), r"labels must be in 0\.\.1, got -1"),
        (torch.zeros(1, 3, 5, 7, dtype=torch.uint8), torch.tensor([IGNORE]), r"labels must be in 0\.\.1, got 255"),
        (
            torch.zeros(1, 3, 5, 7, dtype=torch.uint8),
            torch.full((1, 5, 7), 3, dtype=torch.uint8),
            r"labels must be in 0\.\.1, got 3",
        ),
        (of_sizes((5, 7), (2, 3))[0], of_sizes((5, 7), (3, 2))[1], r"Image 1 is \(2, 3\), but its mask \(3, 2\)"),
    ],
)
def test_tensors_that_do_not_fit(images, label, message):
    with pytest.raises(ValueError, match=message):
        ImageTensors(images, label, class_names=["a", "b"])


def test_ignored_pixels_are_no_class():
    mask = torch.tensor([[[0, 1, IGNORE]]], dtype=torch.uint8)
    images = ImageTensors(torch.zeros(1, 3, 1, 3, dtype=torch.uint8), mask, class_names=["a", "b"])
    assert images[0][1].tolist() == [[0, 1, IGNORE]]


class Noise(nn.Module):
    """Adds one random byte to an image."""

    def forward(self, image):
        return image + torch.randint(256, (1,)).to(torch.uint8)


def bytes_added(numbers, seed=0, count=5):
    images = ImageTensors(
        torch.zeros(count, 3, 2, 3, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64), class_names=["a"]
    )
    return TransformedImages(images, [Noise()], seed=seed).batch(numbers).images[:, 0, 0, 0].tolist()


def test_what_is_drawn_depends_on_seed_epoch_and_image_alone():
    first = bytes_added(range(5))
    assert len(set(first)) > 1
    torch.manual_seed(99)
    assert bytes_added([3, 1]) == [first[3], first[1]]
    assert bytes_added(range(5, 10)) != first  # the next epoch
    assert bytes_added([6, 8]) == [bytes_added(range(5, 10))[i] for i in (1, 3)]
    assert bytes_added(range(5), seed=1) != first


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    bytes_added(range(5))
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_without_transforms_is_one_index(files):
    kept = TransformedImages(files.in_memory("reading"))
    batch = kept.batch([4, 7])  # the second is image 2 in epoch 1
    assert batch.images[:, 0, 0, 0].tolist() == [4, 2]
    assert batch.label.tolist() == [1, 0]
    assert len(kept) == 5


def test_transforms_get_image_and_mask():
    from torchvision.transforms import v2

    image = torch.arange(6, dtype=torch.uint8).view(1, 2, 3).expand(3, 2, 3)
    held = ImageTensors(image[None], image[:1], class_names=[str(i) for i in range(6)])
    [flipped], [mask] = TransformedImages(held, [v2.RandomHorizontalFlip(p=1.0)]).batch([0])
    assert type(flipped) is type(mask) is torch.Tensor
    assert torch.equal(flipped, image.flip(-1))
    assert torch.equal(mask, image[0].flip(-1))


def test_transforms_are_applied_in_turn():
    from torchvision.transforms import v2

    image = torch.arange(2 * 8 * 9, dtype=torch.uint8).view(2, 1, 8, 9).expand(2, 3, 8, 9)
    held = ImageTensors(image, torch.zeros(2, dtype=torch.int64), class_names=["a"])
    steps = [v2.Resize((4, 6), antialias=True), v2.CenterCrop(2)]
    batch = TransformedImages(held, steps).batch([0, 1])
    assert batch.images.shape == (2, 3, 2, 2)
    assert torch.equal(batch.images, steps[1](steps[0](image)))


def test_images_of_a_batch_have_one_size():
    images, masks = of_sizes((2, 3), (5, 7))
    held = TransformedImages(ImageTensors(images, masks, class_names=["a", "b"]))
    assert held.batch([1]).images.shape == (1, 3, 5, 7)
    with pytest.raises(ValueError, match=r"must have one size, got 2x3 and 5x7\. .*eval_batch_size: 1"):
        held.batch([0, 1])
