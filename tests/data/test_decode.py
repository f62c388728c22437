import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from distcnn.data.decode import decode_image, failure_reason
from distcnn.data.resize import resize_images
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
        (b"\xff", "not an image in a format that Pillow reads"),
        (b"some text", "not an image in a format that Pillow reads"),
        (
            encoded(ARRAY, "JPEG")[:-200],
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
