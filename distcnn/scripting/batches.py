"""Compares the batches of the ranks, so that other data on other ranks stops the run.

Every rank reads the whole pipeline of a script and takes its rows of each batch by position. That
is only right if all ranks read the same batches, so a hash of the whole batch is compared in the
first steps and now and then. A pipeline that makes only the rows of its own replicas brings a hash
with each batch (`input_rows`).
"""

import re
from typing import Any

import keras
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.distribute.consistency import ReplicaMismatchError
from distcnn.engine.shard import Rider, WorkerRows

FIRST_STEPS = 8
"""The first steps of a run, all of which are checked."""

INTERVAL = 64
"""After the first steps, one of so many is checked."""

MARK = "distcnn: the ranks read different batches"
"""Begins the error of a failed comparison, by which it is recognised."""

PIECES = 4
"""Numbers that a hash consists of, each of which float32 holds exactly."""


class BatchComparison:
    """Checks inside the step that all processes compute the same batch.

    Args:
        backend: Exchanges the hashes.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        with tf.device("CPU:0"):
            self._steps = tf.Variable(0, dtype=tf.int64, trainable=False)

    def rider(self, batch: Any) -> Rider | None:
        """Returns the comparison of a batch, to be made with the next reduction of the step."""
        backend = self._backend
        if backend.size == 1:
            return None
        step = self._steps.assign_add(1)
        if isinstance(batch, WorkerRows):
            pieces = batch.digest
        else:
            due = (step <= FIRST_STEPS) | (step % INTERVAL == 0)
            pieces = tf.cond(due, lambda: pieces_of(content_hash(batch)), lambda: tf.zeros(PIECES))
        mine = tf.one_hot(backend.rank, backend.size) / backend.local_replicas
        return Rider(mine[:, None] * pieces, lambda rows: _require_equal(rows, step))


def _require_equal(rows: tf.Tensor, step: tf.Tensor) -> None:
    """Ends the run on every rank if the hashes, one row for each process, differ."""
    differs = tf.reduce_any(rows != rows[:1], axis=1)
    ranks = tf.strings.reduce_join(tf.strings.as_string(tf.where(differs)[:, 0]), separator=" ")
    message = tf.strings.join([MARK, ": step ", tf.strings.as_string(step), " ranks ", ranks])
    tf.debugging.Assert(~tf.reduce_any(differs), [message])


def content_hash(batch: Any) -> tf.Tensor:
    """Returns a hash of the contents of nested tensors, as int64."""
    total = tf.constant(0, tf.int64)
    for number, part in enumerate(keras.tree.flatten(batch)):
        if part is None:
            continue
        values = _bits(tf.convert_to_tensor(getattr(part, "values", part)))
        # Odd factors: no change of a single value leaves the sum as it was.
        factors = tf.range(tf.size(values, tf.int64), dtype=tf.int64) * 2 + 1
        mixed = (values + number + 1) * factors * 0x5851F42D4C957F2D
        mixed = tf.bitwise.bitwise_xor(
            mixed, tf.bitwise.right_shift(mixed, tf.constant(29, tf.int64))
        )
        total = total * 31 + tf.reduce_sum(mixed)
    return total


def pieces_of(total: tf.Tensor) -> tf.Tensor:
    """Returns an int64 as four numbers of 16 bits, in float32."""
    bits = tf.bitwise.right_shift(total, tf.constant([0, 16, 32, 48], tf.int64))
    return tf.cast(tf.bitwise.bitwise_and(bits, tf.constant(0xFFFF, tf.int64)), tf.float32)


def _bits(values: tf.Tensor) -> tf.Tensor:
    flat = tf.reshape(values, [-1])
    if flat.dtype == tf.string:
        return tf.strings.to_hash_bucket_fast(flat, 2**31 - 1)
    integers = {1: tf.uint8, 2: tf.uint16, 4: tf.int32, 8: tf.int64}
    if flat.dtype.is_floating:
        flat = tf.bitcast(flat, integers[flat.dtype.size])
    return tf.cast(flat, tf.int64)


def as_mismatch(error: tf.errors.InvalidArgumentError) -> Exception:
    """Returns the error of a failed comparison of batches, or the error itself."""
    found = re.search(re.escape(MARK) + r": step (\d+) ranks ([\d ]+)", error.message)
    if found is None:
        return error
    ranks = ", ".join(found[2].split())
    return ReplicaMismatchError(
        f"at step {found[1]}, rank {ranks} read another batch than rank 0; a script's pipeline "
        "must give the same batches on every rank. Look for random numbers without a seed, a "
        "stateful operation in Dataset.map with parallel calls (--precision.deterministic true "
        "runs it in order), files listed in another order, or code that depends on the rank"
    )
