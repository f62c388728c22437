import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from distcnn.data.decode import decode_image, failure_reason
from distcnn.data.resize import resize_images
from distcnn.runtime.memory import peak_bytes
from tests.data.samples import encoded, pixels

ARRAY = pixels(20, 30)


def decode(contents, image_shape):
    return decode_image(tf.constant(contents), image_shape)


@pytest.mark.parametrize(
    ("image_format", "mode", "tolerance"),
    [
        ("PNG", None, 0),
        ("PNG", "RGBA", 0),
        ("BMP", None, 0),
        ("TIFF", None, 0),
        ("JPEG", None, 12),
        ("WEBP", None, 12),
        ("AVIF", None, 12),
    ],
)
def test_decodes_colour(image_format, mode, tolerance):
    image = decode(encoded(ARRAY, image_format, mode), (20, 30, 3)).numpy()
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - ARRAY).mean() <= tolerance


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", [None, "L"])
def test_decodes_to_grey_as_pillow_does(image_format, mode):
    contents = encoded(ARRAY, image_format, mode)
    image = decode(contents, (20, 30, 1)).numpy()
    expected = np.asarray(Image.fromarray(ARRAY).convert("L")).astype(int)
    assert image.shape == (20, 30, 1)
    assert np.abs(image[..., 0] - expected).mean() < 12


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "GIF", "TIFF"])
def test_palettes_are_looked_up(image_format):
    palette = Image.fromarray(ARRAY).quantize(16)
    contents = encoded(np.asarray(palette), image_format)
    assert decode(contents, (20, 30, 3)).shape == (20, 30, 3)
    buffer = io.BytesIO()
    palette.save(buffer, image_format)
    image = decode(buffer.getvalue(), (20, 30, 3)).numpy()
    np.testing.assert_array_equal(image, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight(image_format):
    deep = np.linspace(0, 65535, 12 * 8).astype(np.uint16).reshape(12, 8)
    image = decode(encoded(deep, image_format), (12, 8, 1)).numpy()[..., 0]
    np.testing.assert_array_equal(image, deep >> 8)


def test_takes_the_first_frame_of_an_animation():
    frames = [Image.fromarray(pixels(10, 10, seed)) for seed in (1, 2)]
    contents = encoded(pixels(10, 10, 1), "GIF", save_all=True, append_images=frames[1:])
    one = encoded(pixels(10, 10, 1), "GIF")
    a, b = (decode(c, (10, 10, 3)).numpy().astype(int) for c in (contents, one))
    assert np.abs(a - b).mean() < 3


def gif(frame: Image.Image, position: tuple[int, int], size: tuple[int, int], count=1) -> bytes:
    """A GIF whose frames may be smaller than its canvas, with palette entry 0 transparent."""
    buffer = io.BytesIO()
    frame.save(buffer, "GIF", transparency=0)
    contents = buffer.getvalue()
    start = contents.index(b"!\xf9")
    image = contents.index(b",", start + 8)
    placed = struct.pack("<4H", *position, *frame.size)
    moved = contents[start:image] + b"," + placed + contents[image + 9 : -1]
    return contents[:6] + struct.pack("<2H", *size) + contents[10:start] + moved * count + b";"


def test_a_frame_smaller_than_its_gif_is_shown_as_pillow_does():
    frame = Image.new("P", (4, 3))
    frame.putpalette([9, 90, 200, 255, 0, 0, 0, 255, 0])
    frame.putdata([0, 1, 2, 1] * 3)
    contents = gif(frame, (5, 2), (12, 8))
    image = decode(contents, (8, 12, 3)).numpy()
    with Image.open(io.BytesIO(contents)) as opened:
        expected = np.asarray(opened.convert("RGBA").convert("RGB"))
    np.testing.assert_array_equal(image, expected)
    assert image[3, 6].tolist() == [255, 0, 0]
    assert image[3, 5].tolist() == image[0, 0].tolist() == [9, 90, 200]


def peak_megabytes(contents: bytes, tmp_path) -> int:
    """Memory that decoding takes in a process of its own, beyond that of a small image."""
    code = (
        "import sys, tensorflow as tf\n"
        "from distcnn.data.decode import decode_image\n"
        "from distcnn.runtime.memory import peak_bytes\n"
        "def peak(): return peak_bytes() // 1_000_000\n"
        "def decode(file):\n"
        "    try: decode_image(tf.io.read_file(file), (8, 8, 3))\n"
        "    except tf.errors.OpError: pass\n"
        "decode(sys.argv[1]); before = peak(); decode(sys.argv[2]); print(peak() - before)"
    )
    files = [tmp_path / "small", tmp_path / "large"]
    for file, content in zip(files, (encoded(ARRAY, "GIF"), contents), strict=True):
        file.write_bytes(content)
    command = [sys.executable, "-c", code, *map(str, files)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def test_only_the_first_frame_takes_memory(tmp_path):
    contents = gif(Image.new("P", (500, 500)), (0, 0), (500, 500), count=2000)
    assert len(contents) < 3_000_000  # all frames decoded are 1.5 GB
    assert peak_megabytes(contents, tmp_path) < 100


def large_png(width, height):
    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
    )


def large_jpeg(width, height):
    contents = encoded(ARRAY, "JPEG")
    size = contents.index(b"\xff\xc0") + 5
    return contents[:size] + struct.pack(">2H", height, width) + contents[size + 4 :]


def large_gif(width, height):
    return gif(Image.new("P", (2, 2)), (0, 0), (width, height))


def large_bmp(width, height):
    contents = encoded(ARRAY, "BMP")
    return contents[:18] + struct.pack("<2i", width, height) + contents[26:]


def large_tiff(width, height):
    contents = bytearray(encoded(ARRAY, "TIFF"))
    for tag, value in ((256, width), (257, height)):
        entry = contents.index(struct.pack("<H", tag))
        contents[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(contents)


@pytest.mark.parametrize("make", [large_png, large_jpeg, large_gif, large_bmp, large_tiff])
def test_too_many_pixels_are_refused_before_they_are_decoded(make):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_bytes()
    with pytest.raises(tf.errors.OpError) as caught:
        decode(make(20_000, 20_000), (8, 8, 3))
    assert failure_reason(caught.value) == (
        "more than 178,956,970 pixels; expected a smaller image"
    )
    assert peak_bytes() - before < 200_000_000


@pytest.mark.parametrize("image_format", ["EPS", "PPM", "TGA", "ICO", "JPEG2000"])
def test_other_formats_are_refused(image_format):
    with pytest.raises(tf.errors.OpError) as caught:
        decode(encoded(ARRAY, image_format), (8, 8, 3))
    assert failure_reason(caught.value).startswith("not an image of a known format (JPEG, PNG,")


def test_cmyk_jpeg_is_decoded_to_grey():
    assert decode(encoded(ARRAY, "JPEG", "CMYK"), (8, 8, 1)).shape == (8, 8, 1)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_half_a_file_is_an_error(image_format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    contents = encoded(noise, image_format)
    with pytest.raises(tf.errors.OpError):
        decode(contents[: len(contents) // 2], (8, 8, 3))


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "the file is empty"),
        (b"\xff", "not an image of a known format (JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF)"),
        (b"some text", "not an image of a known format (JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF)"),
        (encoded(ARRAY, "JPEG")[:-200], "Invalid JPEG data, size 592"),
        (encoded(ARRAY, "PNG")[:20], "Invalid PNG. Failed to initialize decoder."),
        (
            encoded(ARRAY, "JPEG")[:-40],
            "jpeg::Uncompress failed. Invalid JPEG data or crop window.",
        ),
        (encoded(ARRAY, "PNG")[:100], "Invalid PNG data, size 100"),
    ],
)
def test_no_image_is_an_error_of_one_line(contents, reason):
    with pytest.raises(tf.errors.OpError) as caught:
        decode(contents, (8, 8, 3))
    assert failure_reason(caught.value) == reason
    dataset = tf.data.Dataset.from_tensors(contents).map(lambda c: decode_image(c, (8, 8, 3)))
    with pytest.raises(tf.errors.OpError) as caught:
        next(iter(dataset))
    assert failure_reason(caught.value) == reason


def test_float_pixels_are_refused():
    with pytest.raises(tf.errors.OpError, match="pixels of type F"):
        decode(encoded(np.ones((4, 4), np.float32), "TIFF"), (4, 4, 3))


def test_resize_converts_channels_and_averages():
    white = np.full((1, 4, 4, 3), 255, np.uint8)
    assert (resize_images(tf.constant(white), (2, 2, 1)).numpy() == 255).all()
    grey = np.array([[[[0], [100]], [[100], [200]]]], np.uint8)
    small = resize_images(tf.constant(grey), (1, 1, 3)).numpy()
    assert small.tolist() == [[[[100, 100, 100]]]]
