"""Resize modes, random resized crops and EXIF orientations, against Pillow and NumPy."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from distcnn.config import AugmentConfig, DataConfig
from distcnn.data.arrays import ArraySplit
from distcnn.data.decode_plan import (
    CONTENT,
    METHOD,
    ORIENTATION,
    WINDOW,
    is_plain_crop,
    plan_batch,
    read_headers,
    turn_upright,
)
from distcnn.data.encoded import EncodedSplit
from distcnn.data.framing import RANDOM_CROP_DRAWS, Frame, Framing, RandomCrop
from distcnn.data.image_header import read_header
from distcnn.errors import UsageError
from tests.data.samples import encoded, pixels

SHAPE = (24, 24, 3)


class Corner(Frame):
    """The same box of every image."""

    reduced, antialias = False, True

    def boxes(self, sizes, image_shape, draws):
        return np.tile([[1, 2, 17, 30]], (len(sizes), 1))


class BytesSplit(EncodedSplit):
    """Encoded images in memory."""

    def __init__(self, files, shape=SHAPE, framing=None):
        self.files = list(files)
        self.labels = np.arange(len(self.files))
        self.image_shape = shape
        if framing is not None:
            self.framing = framing

    def read(self, indices):
        return tf.gather(tf.constant(self.files), indices)

    def describe(self, index):
        return f"file {index}"

    def fingerprint(self):
        return "0"

    def stored_bytes(self):
        return sum(map(len, self.files))

    def _select(self, indices):
        self.files = [self.files[index] for index in indices]


def decoded(files, shape=SHAPE, framing=None, frame=None, draws=None):
    split = BytesSplit(files, shape, framing)
    indices = tf.range(len(files), dtype=tf.int64)
    images = split.gather(indices) if frame is None else split.crops(indices, frame, draws)
    return images.numpy().astype(int)


def by_pillow(image, box, size):
    top, left, height, width = box
    part = image.crop((left, top, left + width, top + height))
    return np.asarray(part.resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)


def with_orientation(array, value, image_format="JPEG", **options):
    exif = Image.Exif()
    exif[0x0112] = value
    options = {"quality": 95, "subsampling": 0} | options
    return encoded(array, image_format, exif=exif, **options)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("height", "width"), [(61, 97), (97, 61), (48, 48), (10, 17)])
def test_resize_modes_are_as_in_pillow(image_format, height, width):
    options = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "PNG": {},
        "WEBP": {"quality": 100, "lossless": True},
    }[image_format]
    contents = encoded(pixels(height, width), image_format, **options)
    image = Image.open(io.BytesIO(contents)).convert("RGB")
    if image_format == "JPEG":  # whose decoders differ by a few levels
        image = Image.fromarray(tf.io.decode_jpeg(contents, 3).numpy())
    side = min(height, width)
    centre = ((height - side) // 2, (width - side) // 2, side, side)
    (cropped,) = decoded([contents], framing=Framing("crop", reduced=False))
    assert np.abs(cropped - by_pillow(image, centre, (24, 24))).max() <= 3
    part = round(side * 0.875)
    centre = ((height - part) // 2, (width - part) // 2, part, part)
    (fraction,) = decoded([contents], framing=Framing("crop", 0.875, reduced=False))
    assert np.abs(fraction - by_pillow(image, centre, (24, 24))).max() <= 3
    (padded,) = decoded([contents], framing=Framing("pad", reduced=False))
    rows, columns = (max(1, round(24 * x / max(height, width))) for x in (height, width))
    expected = np.zeros(SHAPE, int)
    above, beside = (24 - rows) // 2, (24 - columns) // 2
    whole = by_pillow(image, (0, 0, height, width), (rows, columns))
    expected[above : above + rows, beside : beside + columns] = whole
    assert np.abs(padded - expected).max() <= 3
    (stretched,) = decoded([contents])
    assert np.abs(stretched - by_pillow(image, (0, 0, height, width), (24, 24))).max() <= 3


def test_the_shorter_side_fits_a_model_that_takes_no_squares():
    contents = encoded(pixels(60, 60), "PNG")
    image = Image.fromarray(pixels(60, 60))
    (cropped,) = decoded([contents], (12, 24, 3), Framing("crop"))
    assert np.abs(cropped - by_pillow(image, (15, 0, 30, 60), (12, 24))).max() <= 1
    (padded,) = decoded([contents], (12, 24, 3), Framing("pad"))
    assert (padded[:, :6] == 0).all()
    assert (padded[:, 18:] == 0).all()
    assert np.abs(padded[:, 6:18] - by_pillow(image, (0, 0, 60, 60), (12, 12))).max() <= 1


@pytest.mark.parametrize(
    "framing", [Framing("crop", 0.75), Framing("pad"), Framing("stretch", 0.5)]
)
def test_decoded_images_are_framed_like_encoded_ones(framing):
    images = np.stack([pixels(40, 56, seed) for seed in range(3)])
    files = [encoded(image, "PNG") for image in images]
    split = ArraySplit(images, np.arange(3)).resized(SHAPE, framing)
    found = split.gather(tf.range(3, dtype=tf.int64)).numpy().astype(int)
    assert np.abs(found - decoded(files, framing=framing)).max() <= 1
    frame, draws = RandomCrop(antialias=True), np.random.default_rng(0).random((3, 22), np.float32)
    crops = ArraySplit(images, np.arange(3)).crops(tf.range(3, dtype=tf.int64), frame, draws)
    expected = decoded(files, (40, 56, 3), frame=frame, draws=tf.constant(draws))
    assert np.abs(crops.numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_every_orientation_is_applied(value, kind):
    # Four different corners, so that no two orientations look the same.
    array = np.repeat(np.repeat([[[220, 0, 0], [0, 220, 0], [0, 0, 220]]], 32, 0), 16, 1)
    array = np.concatenate([array, 255 - array]).astype(np.uint8)
    options = {"JPEG": {}, "WEBP": {"lossless": True, "quality": 100}, "TIFF": {}}[kind]
    if kind == "TIFF":
        exif = Image.Exif()
        exif[0x0112] = value
        contents = encoded(array, kind, exif=exif)
    else:
        contents = with_orientation(array, value, kind, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(contents))).convert("RGB")
    height, width = upright.height, upright.width
    assert (height < width) == (value >= 5)
    stretched, cropped = (
        decoded([contents], framing=f)[0] for f in (None, Framing("crop", 1, False))
    )
    assert np.abs(stretched - by_pillow(upright, (0, 0, height, width), (24, 24))).mean() < 2
    side = min(height, width)
    box = ((height - side) // 2, (width - side) // 2, side, side)
    assert np.abs(cropped - by_pillow(upright, box, (24, 24))).mean() < 2
    (padded,) = decoded([contents], framing=Framing("pad", 1, False))
    assert (padded[:3] == 0).all() == (value >= 5)
    (corner,) = decoded([contents], frame=Corner(), draws=tf.zeros([1, 0]))
    assert np.abs(corner - by_pillow(upright, (1, 2, 17, 30), (24, 24))).mean() < 3


@pytest.mark.parametrize("value", range(1, 9))
def test_a_crop_is_mirrored_after_it_was_turned_upright(value):
    files = [with_orientation(pixels(40, 56), value)] * 2
    draws = np.random.default_rng(value).random((2, RANDOM_CROP_DRAWS + 1), np.float32)
    draws[:] = draws[:1]
    draws[:, -1] = (0.49, 0.5)
    plain, mirroring = RandomCrop(), RandomCrop(mirrors=True)
    mirrored, kept = decoded(files, frame=mirroring, draws=tf.constant(draws))
    np.testing.assert_array_equal(mirrored, kept[:, ::-1])
    expected = decoded(files, frame=plain, draws=tf.constant(draws[:, :-1]))
    np.testing.assert_array_equal([kept, kept], expected)
    split = ArraySplit(np.stack([pixels(24, 24)] * 2), np.arange(2))
    mirrored, kept = split.crops(tf.range(2, dtype=tf.int64), mirroring, tf.constant(draws)).numpy()
    np.testing.assert_array_equal(mirrored, kept[:, ::-1])


def test_no_operation_of_turning_makes_tensorflow_complain_about_onednn():
    spec = (tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.int32))
    graph = tf.function(turn_upright).get_concrete_function(*spec).graph.as_graph_def()
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    operations = {node.op for body in bodies for node in body}
    assert "ReverseV2" in operations
    assert "Transpose" not in operations


def test_headers_of_odd_files_are_read_or_passed_over():
    plain = encoded(pixels(20, 30), "JPEG")
    turned = with_orientation(pixels(20, 30), 6)
    assert read_header(plain) == type(read_header(plain))(True, 20, 30, 1)
    assert read_header(turned).orientation == 6
    start = turned.index(b"Exif") + 6
    big_endian = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08"
    other_order = turned[:start] + big_endian + turned[start + len(big_endian) :]
    assert read_header(other_order).orientation == 8
    filled = plain[:2] + b"\xff\xff\xfe\0\x03x" + plain[2:]  # fill bytes, then a comment
    assert read_header(filled) == read_header(plain)
    for cut in range(len(turned)):
        header = read_header(turned[:cut])
        assert header.orientation in (1, 6)
        assert (header.height, header.width) in ((0, 0), (20, 30), (30, 20))
    damaged = bytearray(turned)
    damaged[start + 4 : start + 8] = b"\xff\xff\xff\xff"
    assert read_header(bytes(damaged)).orientation == 1
    assert read_header(b"no image").height == 0


def test_crop_boxes_have_the_distribution_of_inception():
    count = 20_000
    sizes = np.tile([[375, 500]], (count, 1))
    draws = np.random.default_rng(3).random((count, RANDOM_CROP_DRAWS), np.float32)
    boxes = RandomCrop().boxes(sizes, SHAPE, draws)
    top, left, height, width = boxes.T
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    area, ratio = height * width / (375 * 500), width / height
    assert 0.079 <= area.min() <= area.max() <= 1
    assert 0.74 <= ratio.min() <= ratio.max() <= 1.35
    # Rejection sampling by a loop of its own.
    random = np.random.default_rng(4)
    wanted: list[tuple[float, ...]] = []
    while len(wanted) < count:
        a, r = 375 * 500 * random.uniform(0.08, 1), np.exp(random.uniform(*np.log([3 / 4, 4 / 3])))
        h, w = round(np.sqrt(a / r)), round(np.sqrt(a * r))
        if h <= 375 and w <= 500:
            wanted.append((h * w / 375 / 500, w / h, random.random(), random.random()))
    expected = np.array(wanted)
    room = np.maximum(sizes.T - [height, width], 1)
    found = np.stack([area, ratio, top / room[0], left / room[1]], axis=1)
    for column in (0, 1):
        for q in (0.1, 0.25, 0.5, 0.75, 0.9):
            a, b = np.quantile(found[:, column], q), np.quantile(expected[:, column], q)
            assert abs(a - b) < 0.015, (column, q)
    assert abs(found[:, 2].mean() - 0.5) < 0.01
    assert abs(found[:, 3].mean() - 0.5) < 0.01


def test_an_image_without_room_for_a_crop_gives_its_centre():
    draws = np.full((3, RANDOM_CROP_DRAWS), 0.99, np.float32)
    boxes = RandomCrop(scale=(1, 1)).boxes(np.array([[10, 100], [90, 10], [1, 1]]), SHAPE, draws)
    assert boxes.tolist() == [[0, 43, 10, 13], [38, 0, 13, 10], [0, 0, 1, 1]]


def test_cutting_before_decoding_is_cutting_after_it():
    array = pixels(120, 160)
    files = [encoded(array, "JPEG", quality=q, subsampling=s) for q in (60, 95) for s in (0, 2)]
    files *= 8
    draws = np.random.default_rng(1).random((len(files), RANDOM_CROP_DRAWS), np.float32)
    frame = RandomCrop(reduced=False, antialias=True)
    boxes = frame.boxes(np.tile([[120, 160]], (len(files), 1)), SHAPE, draws)
    crops = decoded(files, frame=frame, draws=tf.constant(draws))
    for contents, box, crop in zip(files, boxes, crops, strict=True):
        whole = Image.fromarray(tf.io.decode_jpeg(contents, 3).numpy())
        # Chroma at the edge of the crop is interpolated from what is inside it.
        assert np.abs(crop - by_pillow(whole, box, (24, 24))).mean() < 1.5
    plain = decoded(files, frame=RandomCrop(reduced=False), draws=tf.constant(draws))
    assert np.abs(plain - crops).mean() < 12


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_need_only_be_cut_are_the_same_beside_others(channels):
    shape = (24, 24, channels)
    files = [encoded(pixels(height, 40, height), "JPEG") for height in range(30, 46)]
    count = len(files)
    draws = np.random.default_rng(5).random((count + 1, RANDOM_CROP_DRAWS + 1), np.float32)
    frame = RandomCrop(mirrors=True)
    cut = decoded(files, shape, frame=frame, draws=tf.constant(draws[:-1]))
    among = [*files, encoded(pixels(40, 40), "PNG")]
    planned = decoded(among, shape, frame=frame, draws=tf.constant(draws))
    np.testing.assert_array_equal(cut, planned[:-1])
    plan = plan_batch(read_headers(tf.constant(among)), frame, shape, tf.constant(draws))
    assert is_plain_crop(plan, shape).numpy().tolist() == [True] * count + [False]
    assert len(set(plan[:-1, ORIENTATION].numpy().tolist())) == 2  # some are mirrored


def test_only_what_has_few_pixels_and_is_stored_upright_need_only_be_cut():
    files = [with_orientation(pixels(40, 40), value) for value in range(1, 9)]
    files += [encoded(pixels(48, 48), "JPEG"), encoded(pixels(49, 49), "JPEG")]
    whole = RandomCrop(scale=(1, 1), reduced=False)
    draws = tf.fill([len(files), RANDOM_CROP_DRAWS], 0.5)
    plan = plan_batch(read_headers(tf.constant(files)), whole, SHAPE, draws)
    assert np.flatnonzero(is_plain_crop(plan, SHAPE)).tolist() == [0, 1, 8]
    reduced = plan_batch(read_headers(tf.constant(files)), RandomCrop(scale=(1, 1)), SHAPE, draws)
    assert np.flatnonzero(is_plain_crop(reduced, SHAPE)).tolist() == [
        0,
        1,
    ]  # 48 is decoded at a half


def test_large_files_are_decoded_at_the_least_sufficient_size():
    files = [encoded(pixels(400, 600), "JPEG", quality=95), encoded(pixels(60, 90), "JPEG")]
    headers = read_headers(tf.constant(files))
    plan = plan_batch(headers, Framing("crop"), SHAPE).numpy()
    assert plan[:, METHOD].tolist() == [4, 2]  # 1/8 of 400 is 50, 1/2 of 60 is 30
    assert plan[:, WINDOW].tolist() == [[0, 12, 50, 50], [0, 8, 30, 30]]
    assert plan[:, CONTENT].tolist() == [[24, 24]] * 2
    assert plan_batch(headers, Framing("crop", 1, False), SHAPE)[0, METHOD] == 1
    reduced, full = (decoded(files, framing=Framing("crop", 1, r)) for r in (True, False))
    assert 0 < np.abs(reduced - full).mean() < 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(crop_fraction=0), "data.crop_fraction is 0; expected 0 < value <= 1"),
        (lambda: DataConfig(crop_fraction=1.1), "data.crop_fraction is 1.1; expected 0 < value"),
        (lambda: DataConfig(resize="pad", crop_fraction=0.9), "data.resize pad keeps whole images"),
        (lambda: AugmentConfig(crop_scale=[0, 1]), r"crop_scale is \[0, 1\]; expected two numbers"),
        (lambda: AugmentConfig(crop_scale=[0.5, 1.5]), "0 < least <= greatest <= 1"),
        (lambda: AugmentConfig(crop_ratio=[2, 1]), "data.augment.crop_ratio is"),
        (lambda: AugmentConfig(crop_ratio=[1.0]), "data.augment.crop_ratio is"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()
