"""Guard rails: checks that the backend reduces, and that all replicas hold the same state."""

import functools
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.errors import DistcnnError

log = logging.getLogger("distcnn")

_CHUNK_ELEMENTS = 2**22


class ReplicaMismatchError(DistcnnError):
    """Replicas that should hold the same values do not; every rank detects it."""

    on_every_rank = True


def verify_reduction(backend: Backend) -> None:
    """Reduces values that differ on every replica, the way a step does, and checks the sums.

    Raises:
        ReplicaMismatchError: If a sum is wrong in this process, or another process reports one.
    """
    replicas = backend.replicas

    @tf.function(autograph=False)
    def reduce() -> list[tf.Tensor]:
        def in_replica() -> tf.Tensor:
            number = tf.cast(backend.replica_id(), tf.float32) + 1.0
            values = [tf.fill([3], number), tf.fill([2, 2], number * number)]
            return tf.concat([tf.reshape(v, [-1]) for v in backend.reduce_sum(values)], 0)

        return backend.run(in_replica)

    sum_of_numbers = replicas * (replicas + 1) / 2
    sum_of_squares = replicas * (replicas + 1) * (2 * replicas + 1) / 6
    expected = np.array([sum_of_numbers] * 3 + [sum_of_squares] * 4)
    received = [np.asarray(values) for values in reduce()]
    sum_of_processes = backend.sum(np.array([backend.rank + 1.0]))[0]
    failures = sum(not np.allclose(values, expected) for values in received)
    failures += sum_of_processes != backend.size * (backend.size + 1) / 2
    if backend.sum(np.array([float(failures)]))[0] or failures:
        raise ReplicaMismatchError(
            f"all-reduce check failed for strategy {backend.name}: summing over {replicas} "
            f"replicas gave {received[0].tolist()}, expected {expected.tolist()}; the replicas "
            "would drift apart, so run python -m distcnn.doctor to find the cause"
        )


def average_across_replicas(backend: Backend, variables: Sequence[Any]) -> None:
    """Averages, over all replicas, variables that each replica updates locally.

    The moving statistics of batch normalisation are such variables. Values that are the same on all
    replicas stay bit-identical.

    Args:
        backend: Reduces over the replicas.
        variables: Float variables.
    """
    if backend.replicas == 1 or not variables:
        return
    own = [backend.local_values(variable) for variable in variables]
    flat = np.stack(
        [
            np.concatenate([values[replica].ravel() for values in own]).astype(np.float64)
            for replica in range(backend.local_replicas)
        ]
    )
    first = backend.broadcast(flat[0])
    mean = first + backend.sum((flat - first).sum(axis=0)) / backend.replicas
    _assign(variables, mean)


def broadcast_variables(backend: Backend, variables: Sequence[Any], source: int = 0) -> None:
    """Copies the values of one rank, by default the chief's, to every replica."""
    if backend.replicas == 1:
        return
    for chunk in _chunks(variables):
        flat = np.concatenate(
            [backend.local_values(v)[0].ravel().astype(np.float64) for v in chunk]
        )
        _assign(chunk, backend.broadcast(flat, source))


def require_identical_state(
    backend: Backend, groups: Mapping[str, Sequence[Any]], step: int
) -> None:
    """Compares a hash of every variable between all replicas.

    Args:
        backend: Gathers the hashes.
        groups: Variables by the name of their group.
        step: Global step, for the message.

    Raises:
        ReplicaMismatchError: Names the first variable that differs, and the replicas.
    """
    if backend.replicas == 1:
        return
    names = [
        f"{group} {getattr(variable, 'path', getattr(variable, 'name', index))}"
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    ]
    rows = _digests(backend, [v for variables in groups.values() for v in variables])
    differs = (rows != rows[0]).any(axis=0)
    if not differs.any():
        return
    first = int(np.flatnonzero(differs)[0])
    differing = np.flatnonzero(rows[:, first] != rows[0, first]).tolist()
    kind = "ranks" if backend.local_replicas == 1 else "replicas"
    raise ReplicaMismatchError(
        f"after step {step}, {kind} 0 and {', '.join(map(str, differing))} hold different values "
        f"of {names[first]} (and {int(differs.sum()) - 1} more of {len(names)} variables); the run "
        "stopped, and its last checkpoint is from before. Look for something that only some ranks "
        "do: a callback, random numbers drawn outside Keras, other data"
    )


def is_identical_everywhere(backend: Backend, variables: Sequence[Any]) -> bool:
    """Returns whether every variable is bit-identical on all replicas."""
    rows = _digests(backend, variables)
    return bool((rows == rows[0]).all())


def require_identical_settings(backend: Backend, contents: Mapping[str, Any]) -> None:
    """Compares the settings of the run between all processes.

    Raises:
        ReplicaMismatchError: Names the first setting that differs, and the ranks.
    """
    if backend.size == 1:
        return
    own = np.array([_digest(np.frombuffer(str(v).encode(), np.uint8)) for v in contents.values()])
    rows = backend.gather(own)
    for column, (name, value) in enumerate(contents.items()):
        differing = np.flatnonzero(rows[:, column] != rows[0, column]).tolist()
        if differing:
            raise ReplicaMismatchError(
                f"ranks 0 and {', '.join(map(str, differing))} differ in {name} (rank "
                f"{backend.rank} has {value}); start every rank with the same command, code "
                "and data"
            )


def warn_of_unlike_sets(backend: Backend) -> None:
    """Warns once, on rank 0, if sets of strings may have another order on each rank.

    Called in all processes together.
    """
    if backend.size == 1:
        return
    hashes = backend.gather(np.array([float(hash("distcnn") % 2**52)]))
    if backend.is_chief and (hashes != hashes[0]).any():
        _warn_of_hash_seeds()


@functools.cache
def _warn_of_hash_seeds() -> None:
    log.warning(
        "warning: sets of strings have another order on each rank, as Python hashes them with a "
        "random seed; code that iterates over a set may do something else on each rank; start "
        "every rank with PYTHONHASHSEED=0"
    )


def _chunks(variables: Sequence[Any]) -> Iterator[list[Any]]:
    """Divides variables into chunks that need little memory as float64."""
    chunk: list[Any] = []
    for variable in variables:
        chunk.append(variable)
        if sum(int(np.prod(v.shape)) for v in chunk) >= _CHUNK_ELEMENTS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _digests(backend: Backend, variables: Sequence[Any]) -> np.ndarray:
    """Returns a digest of every variable on every replica, of shape `(replicas, variables)`."""
    columns = [[_digest(value) for value in backend.local_values(v)] for v in variables]
    count = max((len(column) for column in columns), default=1)
    # A variable that the replicas of a process share counts once for each of them.
    own = np.array([column * (count // len(column)) for column in columns]).T
    return backend.gather(own).reshape(-1, len(columns))


def _digest(values: np.ndarray) -> float:
    """Returns 52 bits of a hash, which a float64 holds exactly."""
    digest = hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=8).digest()
    return float(int.from_bytes(digest, "big") >> 12)


def _assign(variables: Sequence[Any], flat: np.ndarray) -> None:
    start = 0
    for variable in variables:
        shape = tuple(variable.shape)
        count = int(np.prod(shape))
        values = flat[start : start + count].reshape(shape)
        variable.assign(
            values.astype(np.dtype(str(getattr(variable.dtype, "name", variable.dtype))))
        )
        start += count
