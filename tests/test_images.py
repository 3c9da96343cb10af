"""One rule for pictures: the plugin, training and ``show`` read the same bytes alike."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from dynllava import images
from dynllava.errors import UserError
from dynllava.prompts import Turn
from dynllava.training.images import open_image as open_for_training

UPRIGHT_TAG = 0x0112


def _file(path):
    return images.open_image(path)


def _plugin(path):
    prompts = pytest.importorskip("lmms_eval_dynllava.prompts")
    return prompts.opened_images([Turn("user", "what", [path.read_bytes()])])[0]


def _training(path):
    return open_for_training(path.name, path.parent, "record 0")


def _training_table(path):
    return open_for_training({"bytes": path.read_bytes(), "path": None}, None, "record 0")


READERS = (_file, _plugin, _training, _training_table)


def noise(size, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def read_alike(path):
    found = [np.asarray(reader(path)) for reader in READERS]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    return found[0]


def refused_alike(path, message):
    lines = set()
    for reader in READERS:
        with pytest.raises(UserError, match=message) as error:
            reader(path)
        assert "\n" not in str(error.value)
        lines.add(str(error.value).removeprefix(f"{path}: "))
    assert len(lines) == 1


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257, 25_700, 65_535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "p.png")
    assert read_alike(tmp_path / "p.png")[0].tolist() == [[v] * 3 for v in (0, 1, 100, 255)]


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_rotated_picture_is_turned_upright(tag, tmp_path):
    upright = noise((6, 4))
    turned = {
        1: lambda x: x,
        2: lambda x: x.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda x: x.rotate(180),
        4: lambda x: x.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda x: x.transpose(Image.Transpose.TRANSPOSE),
        6: lambda x: x.transpose(Image.Transpose.ROTATE_90),
        7: lambda x: x.transpose(Image.Transpose.TRANSVERSE),
        8: lambda x: x.transpose(Image.Transpose.ROTATE_270),
    }[tag](upright)
    exif = Image.Exif()
    exif[UPRIGHT_TAG] = tag
    turned.save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(read_alike(tmp_path / "p.png"), np.asarray(upright))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("lenient", [False, True])
def test_a_torn_file_is_refused_whatever_pillows_switch_says(kind, lenient, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    buffer = io.BytesIO()
    noise((64, 64)).save(buffer, kind)
    (tmp_path / "p").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    refused_alike(tmp_path / "p", "not a readable image")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def header_only(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1_048_575, 1_048_575), "not a readable image"),  # Pillow's own limit
        ((13_001, 100), "13001 x 100 pixels: accepted are sides from 1 to 13000"),
        ((100, 13_001), "100 x 13001 pixels"),
        ((201, 1), "at most 1 to 200"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_decoded(size, message, tmp_path):
    (tmp_path / "p.png").write_bytes(header_only(*size))
    refused_alike(tmp_path / "p.png", message)


def test_the_largest_accepted_ratio_is_read(tmp_path):
    noise((200, 1)).save(tmp_path / "p.png")
    assert read_alike(tmp_path / "p.png").shape == (1, 200, 3)


@pytest.mark.parametrize("data", [b"", b"hello", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(data, tmp_path):
    (tmp_path / "p.png").write_bytes(data)
    refused_alike(tmp_path / "p.png", "not a readable image")


def test_grey_values_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.array([[0.0, 1e9]], dtype=np.float32)).save(tmp_path / "p.tiff")
    refused_alike(tmp_path / "p.tiff", "accepted are 0 to 65535")


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("F", [[0.0, 0.5], [1.0, 0.25]], [[0, 128], [255, 64]]),
        ("F", [[0.0, 51.0], [255.0, 2.0]], [[0, 51], [255, 2]]),
        ("F", [[0.0, 256.0], [65_535.0, 514.0]], [[0, 1], [255, 2]]),
        ("I", [[0, 1], [255, 2]], [[0, 1], [255, 2]]),
        ("I", [[0, 257], [65_535, 2]], [[0, 1], [255, 0]]),
        ("I;16", [[0, 257], [514, 200]], [[0, 1], [2, 1]]),
    ],
)
def test_the_scale_of_a_grey_picture_follows_its_kind_and_largest_value(
    mode, values, expected, tmp_path
):
    kinds = {"F": np.float32, "I": np.int32, "I;16": np.uint16}
    picture = Image.fromarray(np.array(values, dtype=kinds[mode]))
    assert picture.mode == mode
    path = tmp_path / "grey.tiff"
    picture.save(path)
    found = np.asarray(images.open_image(path))
    assert found.shape == (2, 2, 3)
    assert found[..., 0].tolist() == expected


class Recorder:
    """Stands for an image processor: keeps what it was given."""

    image_mean = (0.1, 0.5, 0.9)

    def __init__(self, do_pad):
        self.do_pad = do_pad

    def __call__(self, image, **options):
        self.image, self.options = image, options
        return {"pixel_values": [np.zeros((3, 2, 2))]}


@pytest.mark.parametrize("do_pad", [True, False, None])
@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize("size", [(4, 2), (3, 3)])
def test_who_pads_a_picture(aspect, do_pad, size):
    """Ours for ``pad``, the processor only where the checkpoint's own way is asked for."""
    processor = Recorder(do_pad)
    images.ImagePreparation(processor, aspect)(Image.new("RGB", size, (200, 0, 0)))
    ours = aspect == "pad" and size == (4, 2)
    assert processor.image.size == ((4, 4) if ours else size)
    assert processor.options.get("do_pad") is (False if do_pad and aspect != "checkpoint" else None)
    if ours:
        assert processor.image.getpixel((0, 0)) == (25, 127, 229)
        assert [processor.image.getpixel((0, row))[0] for row in range(4)] == [25, 200, 200, 25]


@pytest.mark.parametrize(("size", "corner"), [((2, 6), (2, 0)), ((6, 2), (0, 2)), ((3, 6), (1, 0))])
def test_a_padded_picture_stands_in_the_middle(size, corner):
    square = images.pad_to_square(Image.new("RGB", size, (255, 255, 255)), (0, 0, 0))
    bright = np.argwhere(np.asarray(square)[..., 0] == 255)
    assert square.size == (6, 6)
    assert (bright.min(0)[::-1] == corner).all()
    assert (bright.max(0) - bright.min(0) + 1)[::-1].tolist() == list(size)
