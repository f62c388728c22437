"""The rows of a batch that each replica computes."""

import numpy as np
import pytest
import tensorflow as tf

from distcnn.engine.shard import Shard, computing, current_shard, cut_batch
from distcnn.errors import DataError


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_every_row_counts_once_in_order(rows, replicas):
    batch = {"x": np.arange(rows), "y": np.arange(rows * 2).reshape(rows, 2)}
    counted, weights = [], 0.0
    for replica in range(replicas):
        part, shard = cut_batch(batch, replica, replicas)
        assert len(part["x"]) == len(part["y"]) >= 1
        counted += part["x"][: int(shard.rows)].numpy().tolist()
        weights += float(shard.weight)
    assert counted == list(range(rows))
    assert weights == pytest.approx(1.0, abs=1e-15)


def test_missing_parts_and_scalars_stay_as_they_are():
    part, shard = cut_batch((np.zeros((4, 2)), None, np.float32(3)), 1, 2)
    assert part[0].shape == (2, 2)
    assert part[1] is None
    assert float(part[2]) == 3
    assert (shard.rows, shard.total, shard.may_be_empty) == (2, 4, False)


@pytest.mark.parametrize(
    "batch",
    [
        tf.RaggedTensor.from_row_lengths([1, 2, 3, 4, 5], [2, 0, 3]),
        tf.sparse.from_dense([[0, 1], [2, 0], [0, 3]]),
    ],
    ids=["ragged", "sparse"],
)
def test_ragged_and_sparse_batches_are_cut_by_row(batch):
    def dense(part):
        is_ragged = isinstance(part, tf.RaggedTensor)
        return part.to_tensor(shape=[None, 3]) if is_ragged else tf.sparse.to_dense(part)

    parts = [cut_batch(batch, replica, 2)[0] for replica in range(2)]
    np.testing.assert_array_equal(tf.concat([dense(p) for p in parts], 0), dense(batch))


def test_a_batch_without_rows_is_refused():
    with pytest.raises(DataError, match="whose first axis counts examples"):
        cut_batch((np.float32(1), None), 0, 2)


def test_a_shard_is_current_only_in_its_context():
    shard = Shard(1, 2, may_be_empty=False)
    with computing(shard):
        assert current_shard() is shard
    assert current_shard() is None
