"""Images that are decoded and checked when they are read."""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from distcnn.cli.command import describe
from distcnn.config import AugmentConfig, DataConfig
from distcnn.data.augment import Randomness, flip
from distcnn.data.dataset import load_dataset, load_split
from distcnn.data.framing import RandomCrop
from distcnn.data.pipeline import (
    BatchSharding,
    EpochSampler,
    sharded_evaluation_dataset,
    training_dataset,
)
from distcnn.data.sources import open_source
from distcnn.data.streaming import StreamedSplit
from distcnn.errors import DataError, UsageError
from tests.data.samples import encoded, pixels

SHAPE = (16, 16, 3)
AUGMENT = AugmentConfig(random_resized_crop=True, flip=True)


@pytest.fixture
def photos(tmp_path):
    """Two classes of 9 training and 3 test images, JPEG of several sizes and one PNG."""
    for part, count in (("train", 9), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                array = pixels(40 + 3 * number, 60 - 4 * number, 100 * label + number)
                kind = "PNG" if number == 8 else "JPEG"
                suffix = kind.lower().replace("e", "")
                (folder / f"{number}.{suffix}").write_bytes(encoded(array, kind))
    return tmp_path


def config_of(folder, **options):
    options = dict[str, Any](validation="none", augment=AUGMENT) | options
    return DataConfig(name="folder", dir=str(folder), image_size=16, **options)


def dataset_of(config):
    return load_dataset(config, open_source(config), SHAPE, 5)


def epochs(split, workers, config, epochs=2, batch=5, first=0):
    """The images and labels of each step, by any number of workers."""
    sampler = EpochSampler(len(split), batch, 7)
    last = epochs * sampler.steps_per_epoch
    parts = []
    for worker in range(workers):
        sharding = BatchSharding(range(worker, worker + 1), workers)
        batches = training_dataset(
            split, 2, sampler, config.augment, sharding, first_step=first, last_step=last
        )
        parts.append([[x.numpy() for x in element] for element in batches])
    steps = []
    for shards in zip(*parts, strict=True):
        shards = [shard for shard in shards if shard[2].all()]
        steps.append([np.concatenate(pieces) for pieces in zip(*shards, strict=True)])
    return steps


def assert_equal(steps, others):
    assert len(steps) == len(others)
    for step, other in zip(steps, others, strict=True):
        for a, b in zip(step, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_any_number_of_workers_and_any_start_give_the_same_batches(photos, cache):
    config = config_of(photos, cache=cache)
    split = dataset_of(config).train
    assert isinstance(split, StreamedSplit)
    one = epochs(split, 1, config)
    assert one[0][0].shape == (5, *SHAPE)
    assert_equal(one, epochs(split, 2, config))
    assert_equal(one, epochs(split, 3, config))
    assert_equal(one[3:], epochs(split, 1, config, first=3))
    first, second = (
        np.concatenate([step[0] for step in part]).astype(int) for part in (one[:4], one[4:])
    )
    assert np.abs(np.sort(first.mean((1, 2, 3))) - np.sort(second.mean((1, 2, 3)))).max() > 1


def test_kept_files_are_read_once(photos):
    config = config_of(photos, cache="memory")
    split = dataset_of(config).train
    before = epochs(split, 1, config)
    for path in photos.glob("train/*/*"):
        path.unlink()
    assert_equal(before, epochs(split, 1, config))


def test_flips_are_those_of_the_whole_batch(photos):
    flipped, plain = config_of(photos), config_of(photos, augment=replace(AUGMENT, flip=False))
    images, whole = (epochs(dataset_of(c).train, 1, c, 1) for c in (flipped, plain))
    for step, ((found, *_), (image, *_)) in enumerate(zip(images, whole, strict=True)):
        random = Randomness(tf.constant([7, step], tf.int64), 0, len(image), len(image))
        np.testing.assert_array_equal(found, flip(tf.constant(image), random))


def test_alternating_flips_mirror_crops_in_every_other_epoch(photos):
    alternating = config_of(photos, augment=replace(AUGMENT, alternate_flip=True))
    plain = config_of(photos, augment=replace(AUGMENT, flip=False))
    images, whole = (epochs(dataset_of(c).train, 1, c) for c in (alternating, plain))
    sampler = EpochSampler(18, 5, 7)
    for step, ((found, *_), (image, *_)) in enumerate(zip(images, whole, strict=True)):
        epoch, within = divmod(step, sampler.steps_per_epoch)
        seen = sampler.permutation(epoch)[5 * within : 5 * within + 5]
        mirrored = sampler.mirrored_at_first()[seen] ^ bool(epoch % 2)
        expected = np.where(mirrored[:, None, None, None], image[:, :, ::-1], image)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_headers_are_read_once(photos, cache, monkeypatch):
    config = config_of(photos, cache=cache)
    split = dataset_of(config).train
    before = epochs(split, 1, config)
    monkeypatch.setattr("distcnn.data.streaming.headers_of", None)
    assert_equal(before, epochs(split, 1, config))


def test_a_file_that_shrinks_while_the_run_goes_on_is_no_bad_image(photos):
    config = config_of(photos, cache="none", on_error="skip")
    split = dataset_of(config).train
    for found in epochs(split, 1, config, 1):
        assert found[0].any((1, 2, 3)).all()
    new = encoded(np.full((9, 9, 3), 200, np.uint8), "JPEG")
    for path in photos.glob("train/*/*.jpg"):
        path.write_bytes(new)
    images, used = split.fetch(tf.range(8, dtype=tf.int64), RandomCrop(), tf.ones([8, 22]) * 0.9)
    np.testing.assert_array_equal(used, np.arange(8))
    assert np.abs(images.numpy().astype(int) - 200).max() <= 3
    assert split.bad == []


def test_a_file_that_grows_while_the_run_goes_on_is_cut_as_it_is_now(photos):
    config = config_of(photos, cache="none")
    split = dataset_of(config).train
    before = epochs(split, 1, config)
    for path in photos.glob("train/*/*.jpg"):
        path.write_bytes(encoded(pixels(90, 120, len(path.name)), "JPEG"))
    after = epochs(split, 1, config)
    assert not np.array_equal(before[0][0], after[0][0])
    assert_equal(after, epochs(dataset_of(config).train, 1, config))


def test_a_file_that_is_turned_while_the_run_goes_on_has_the_same_size_and_another_header(photos):
    def write(orientation):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for number, path in enumerate(sorted(photos.glob("train/*/*.jpg"))):
            path.write_bytes(encoded(pixels(40, 60, number), "JPEG", exif=exif))
        return path.stat().st_size

    config = config_of(photos, cache="none")
    upright = write(1)
    split = dataset_of(config).train
    before = epochs(split, 1, config)
    assert write(6) == upright
    after = epochs(split, 1, config)
    assert not np.array_equal(before[0][0], after[0][0])
    assert_equal(after, epochs(dataset_of(config).train, 1, config))


def test_a_bad_image_stops_the_run_with_its_name(photos):
    path = photos / "train/cat/3.jpg"
    path.write_bytes(path.read_bytes()[:300])
    config = config_of(photos)
    split = dataset_of(config).train  # nothing is decoded here
    with pytest.raises(tf.errors.OpError) as caught:
        epochs(split, 1, config)
    line = describe(caught.value)
    assert line.startswith(f"{path} (")
    assert line.endswith("cannot be decoded; repair or remove it, or pass --data.on_error skip")


def test_the_next_good_image_replaces_a_bad_one(photos, caplog):
    config = config_of(photos, on_error="skip")
    split, other = dataset_of(config).train, dataset_of(config).train
    (photos / "train/cat/3.jpg").write_bytes(b"no image")
    (photos / "train/cat/4.jpg").unlink()  # the one after it is bad too
    (photos / "train/dog/8.png").write_bytes(b"")  # the last one; the first replaces it
    with caplog.at_level(logging.WARNING, "distcnn"):
        one = epochs(split, 1, config)
    names = [text.split(" ")[0].rpartition("/train")[2] for text in split.bad]
    assert names == ["/cat/3.jpg", "/cat/4.jpg", "/dog/8.png"]
    assert split.unreadable().tolist() == [3, 4, 17]
    assert len(caplog.records) == 3
    assert all("the next good image replaces it" in record.message for record in caplog.records)
    assert_equal(one, epochs(other, 3, config))
    # Labels are those of the images that were read.
    labels = np.concatenate([step[1] for step in one[:4]]).argmax(1)
    assert labels.sum() == 8  # of 9 dogs, one was replaced by a cat


def test_bad_images_have_no_weight_in_an_evaluation(photos):
    config = config_of(photos, on_error="skip", resize="crop", crop_fraction=0.875)
    expected = load_split(replace(config, check="start"), open_source(config), SHAPE, 5, "test")
    images = expected.gather(tf.range(6, dtype=tf.int64)).numpy()
    (photos / "test/dog/1.jpg").write_bytes(b"no image")
    test = dataset_of(config).test
    seen, weights = [], []
    for worker in range(2):
        sharding = BatchSharding(range(worker, worker + 1), 2)
        for batch in sharded_evaluation_dataset(test, 2, 2, sharding)[0]:
            seen.append(batch[0].numpy()[batch[2].numpy() > 0])
            weights.append(batch[2].numpy())
    np.testing.assert_array_equal(np.concatenate(seen), np.delete(images, 4, axis=0))
    assert np.concatenate(weights).sum() == 5
    assert test.unreadable().tolist() == [4]


def test_too_many_bad_images_stop_the_run(photos):
    for path in photos.glob("train/*/*.jpg"):
        path.write_bytes(b"no image")
    config = config_of(photos, on_error="skip")
    # Batches are read in parallel, and any of them may be the first to find too many.
    words = r"1\d of 18 images cannot be decoded, the last is \S+\.jpg \(not an image of a known"
    with pytest.raises(tf.errors.OpError, match=words):
        epochs(dataset_of(config).train, 1, config)


def test_images_are_checked_at_the_start_on_request(photos):
    (photos / "train/cat/3.jpg").write_bytes(b"no image")
    config = config_of(photos, check="start")
    with pytest.raises(DataError, match="1 of 18 images cannot be decoded"):
        dataset_of(config)
    split = dataset_of(replace(config, on_error="skip")).train
    assert isinstance(split, StreamedSplit)
    assert len(split) == 17
    assert len(epochs(split, 1, config, epochs=1)) == 4


def test_streamed_parts_have_their_own_framing(photos):
    config = config_of(photos, validation="split", validation_split=0.3, crop_fraction=0.5)
    dataset = dataset_of(config)
    plain = replace(config, augment=AugmentConfig(), cache="memory", check="start")
    expected = load_split(plain, open_source(plain), SHAPE, 5, "validation")
    indices = tf.range(len(expected), dtype=tf.int64)
    np.testing.assert_array_equal(dataset.validation.gather(indices), expected.gather(indices))
    train = load_split(plain, open_source(plain), SHAPE, 5, "train")
    wider = dataset_of(plain).train
    assert len(train) == len(wider) == len(dataset.train)
    assert (train.gather(indices).numpy() != wider.gather(indices).numpy()).any()


@pytest.mark.parametrize("options", [{"augment": AUGMENT}, {"check": "reading"}])
def test_a_cache_of_decoded_images_that_are_decoded_when_read_is_refused(options):
    with pytest.raises(UsageError, match="which is for decoded images"):
        DataConfig(cache="disk", **options)
