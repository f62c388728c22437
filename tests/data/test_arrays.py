import numpy as np
import pytest
import tensorflow as tf

from distcnn.data.arrays import ArraySplit


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 6, 4, 3), dtype=np.uint8)


def as_memmap(path, images):
    np.save(path, images)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("mapped", [False, True])
def test_gather_in_a_graph_equals_indexing(images, mapped, tmp_path):
    stored = as_memmap(tmp_path / "x.npy", images) if mapped else images
    split = ArraySplit(stored, np.arange(20) % 3)
    assert len(split) == 20
    assert split.labels.dtype == np.int64
    assert split.image_shape == (6, 4, 3)
    order = np.random.default_rng(1).permutation(20)
    dataset = tf.data.Dataset.from_tensor_slices(order).batch(7).map(split.gather)
    assert dataset.element_spec.shape.as_list() == [None, 6, 4, 3]
    read = np.concatenate([batch.numpy() for batch in dataset])
    np.testing.assert_array_equal(read, images[order])


@pytest.mark.parametrize("mapped", [False, True])
def test_subset_of_subset_keeps_order(images, mapped, tmp_path):
    stored = as_memmap(tmp_path / "x.npy", images) if mapped else images
    split = (
        ArraySplit(stored, np.arange(20)).subset(np.array([9, 3, 5, 7])).subset(np.array([2, 0]))
    )
    assert split.labels.tolist() == [5, 9]
    np.testing.assert_array_equal(split.gather(tf.constant([0, 1])).numpy(), images[[5, 9]])


def test_a_graph_holds_no_copy_of_the_images(images):
    split = ArraySplit(images, np.zeros(20, np.int64))
    graph = tf.function(split.gather).get_concrete_function(tf.TensorSpec([None], tf.int64)).graph
    constants = [op for op in graph.get_operations() if op.type == "Const"]
    assert all(op.outputs[0].dtype != tf.uint8 for op in constants)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("wanted", [(3, 2, 3), (12, 9, 1), (6, 4, 1)])
def test_resized(images, channels, wanted):
    split = ArraySplit(images[..., :channels], np.arange(20)).subset(np.array([4, 2]))
    resized = split.resized(wanted)
    assert resized.image_shape == wanted
    assert resized.labels.tolist() == [4, 2]
    assert resized.gather(tf.constant([0, 1])).shape == (2, *wanted)


def test_resized_to_its_own_shape_is_itself(images):
    split = ArraySplit(images, np.arange(20))
    assert split.resized((6, 4, 3)) is split


@pytest.mark.parametrize(("dtype", "labels"), [(np.float32, 20), (np.uint8, 19)])
def test_refuses_other_arrays(images, dtype, labels):
    with pytest.raises(ValueError, match="Expected uint8"):
        ArraySplit(images.astype(dtype), np.zeros(labels, np.int64))


def test_the_content_hash_follows_pixels_and_order():
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    labels = np.zeros(5, np.int64)
    first = ArraySplit(images, labels).content_hash()
    assert first == ArraySplit(images.copy(), labels).content_hash()
    changed = images.copy()
    changed[3, 1, 1, 1] ^= 1
    assert ArraySplit(changed, labels).content_hash() != first
    assert ArraySplit(images[::-1].copy(), labels).content_hash() != first
