"""The interface of a backend: reductions between replicas, and values passed between processes.

A *replica* is one copy of the model on one device; a *process* holds one or more replicas. Every
difference between backends is hidden behind this class.
"""

import abc
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from distcnn.errors import DistcnnError, PeerLostError
from distcnn.runtime.files import parse_json

_Sum = Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]


class ChiefError(DistcnnError):
    """Work that only rank 0 does has failed; raised on every rank."""

    on_every_rank = True


class Backend(abc.ABC):
    """One way to train on several devices; the defaults of this base class suit a single device.

    Attributes:
        name: Name of the strategy in the configuration.
        rank: Rank of this process.
        size: Number of processes.
        local_replicas: Number of replicas in this process.
        adds_up_metrics: Whether the variables of a metric, read outside `run`, are already added
            up over the replicas.
        bucket_bytes: Bytes of gradients that are reduced at once while the backward pass goes on;
            0 if all are reduced together, after it.
        sends_factors: Whether a gradient that is the product of few rows may travel as these.
    """

    name: str
    rank: int = 0
    size: int = 1
    local_replicas: int = 1
    adds_up_metrics: bool = False
    bucket_bytes: int = 0
    sends_factors: bool = False
    _stand_in: _Sum | None = None

    @property
    def replicas(self) -> int:
        """Number of replicas in the whole run."""
        return self.size * self.local_replicas

    @property
    def is_chief(self) -> bool:
        """Whether this is rank 0, the only process that prints and writes."""
        return self.rank == 0

    @property
    def local_replica_ids(self) -> range:
        """Ids of this process's replicas."""
        first = self.rank * self.local_replicas
        return range(first, first + self.local_replicas)

    def wire_type(self, tensor: tf.Tensor, *, compressible: bool, replicas: int) -> tf.DType:
        """Returns the type in which a tensor travels between replicas.

        Args:
            tensor: The tensor.
            compressible: Whether it is a gradient, which may be compressed.
            replicas: Number of replicas of the run.
        """
        return tensor.dtype

    @property
    def transport(self) -> str:
        """What carries gradients between replicas."""
        return "TensorFlow" if self.replicas > 1 else "nothing"

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which the model and its optimizer are built."""
        return contextlib.nullcontext()

    def disable_reduction(self, optimizer: Any) -> None:  # noqa: B027 (most need no action)
        """Prepares an optimizer for gradients that are already reduced."""

    def iterate(self, dataset: tf.data.Dataset) -> Any:
        """Returns an iterator whose elements go to this process's replicas in turn."""
        return iter(dataset)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Calls a function once on each replica of this process; works inside a `tf.function`.

        Args:
            function: The work of one replica; returns a tensor.
            *arguments: An element of `iterate`'s iterator, or plain tensors.

        Returns:
            The result of each replica of this process.
        """
        return [function(*arguments)]

    def replica_id(self) -> Any:
        """Returns, inside `run`, the replica's id in the whole run: an int or int32 scalar."""
        return self.rank

    def reduce_sum(self, tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        """Sums tensors over all replicas, inside `run`; differentiable.

        Args:
            tensors: The same number of tensors, of the same shapes and types, on every replica.
            compressible: How many of the first tensors may be sent compressed, if the configuration
                asks for it.

        Returns:
            The sums, the same on every replica.
        """
        return list(tensors)

    def sum_in_pass(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Sums tensors over all replicas amid a model's forward pass, inside `run`; differentiable.

        Args:
            tensors: As for `reduce_sum`.

        Returns:
            The sums, or what `standing_in` puts in their place.
        """
        return (self._stand_in or self.reduce_sum)(tensors)

    @contextlib.contextmanager
    def standing_in(self, stand_in: _Sum) -> Iterator[None]:
        """Makes `sum_in_pass` call another function in the context."""
        before, self._stand_in = self._stand_in, stand_in
        try:
            yield
        finally:
            self._stand_in = before

    def combine(
        self,
        tensors: Sequence[Sequence[tf.Tensor]],
        add: Callable[[Sequence[Sequence[tf.Tensor]]], tf.Tensor],
    ) -> list[tf.Tensor]:
        """Adds tensors of all replicas in an order of the caller's, inside `run`.

        They travel as they are, so that the result does not depend on the transport.

        Args:
            tensors: The same number of groups on every replica, each of the same number of vectors
                of one type and static length.
            add: Takes such a group of every replica, in order, and returns a vector of that length,
                whose elements depend only on those at the same place. It may be given a part of
                each vector.

        Returns:
            What `add` returns for each group, the same on every replica.
        """
        return [add([group]) for group in tensors]

    def gather_rows(self, tensors: Sequence[tf.Tensor], *, equal: bool = False) -> list[tf.Tensor]:
        """Joins tensors of all replicas along their first axis, inside `run`, by replica.

        Args:
            tensors: The same number of tensors on every replica, of the same types, and of the same
                shapes but for the first axis.
            equal: Whether the shapes are static, and the first axis is the same, too.

        Returns:
            The joined tensors, the same on every replica.
        """
        return list(tensors)

    @abc.abstractmethod
    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sums an array over all processes, between steps.

        Args:
            values: float64 array of any shape, the same shape in every process.

        Returns:
            float64 array of that shape.
        """

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Gathers an array from every process: float64 of shape `(size, *values.shape)`."""
        rows = np.zeros((self.size, *values.shape))
        rows[self.rank] = values
        return self.sum(rows)

    def broadcast(self, values: np.ndarray, source: int = 0) -> np.ndarray:
        """Returns the array (float64) of one rank, by default the chief's, in every process."""
        # -0.0 leaves every number as it is in a sum, 0.0 changes the sign of a zero.
        return self.sum(values if self.rank == source else np.full(values.shape, -0.0))

    def broadcast_object(self, content: Any, source: int = 0) -> Any:
        """Returns the value of one rank, which JSON can represent, in every process."""
        if self.size == 1:
            return content
        is_source = self.rank == source
        text = np.frombuffer(json.dumps(content).encode() if is_source else b"", np.uint8)
        length = int(self.broadcast(np.array([float(len(text))]), source)[0])
        padded = text.astype(np.float64) if is_source else np.zeros(length)
        return parse_json(self.broadcast(padded, source).astype(np.uint8).tobytes())

    def run_on_chief(self, function: Callable[[], Any]) -> Any:
        """Calls a function on the chief alone, while the other processes wait.

        Args:
            function: Returns a value that JSON can represent.

        Returns:
            The function's result, in every process.

        Raises:
            DistcnnError: In every process, if the function raised one.
        """
        if self.size == 1:
            return function()
        outcome: dict[str, Any] = {}
        if self.is_chief:
            try:
                outcome = {"result": function()}
            except DistcnnError as error:
                outcome = {
                    "error": str(error),
                    "code": error.exit_code,
                    "mendable": error.mendable,
                }
        outcome = self.broadcast_object(outcome)
        if "error" in outcome:
            failure = ChiefError(outcome["error"])
            failure.exit_code = outcome["code"]
            failure.mendable = outcome["mendable"]
            raise failure
        return outcome["result"]

    def any_process(self, condition: bool) -> bool:
        """Returns whether a condition holds in any process, in all of them."""
        return bool(self.sum(np.array([float(condition)]))[0])

    def barrier(self) -> None:
        """Waits until every process has arrived."""
        self.sum(np.zeros(1))

    def close(self) -> None:  # noqa: B027 (most need no action)
        """Disconnects from the other processes, so that they do not take an exit for a crash."""

    def local_values(self, variable: Any) -> list[np.ndarray]:
        """Returns a variable's value on each replica of this process."""
        return [np.asarray(variable)]

    def lost_peer(self, error: BaseException) -> str | None:
        """Returns the lost process if the error only reports a lost connection, else None."""
        return None


@contextlib.contextmanager
def reporting_lost_peers(backend: Backend) -> Iterator[None]:
    """Raises `PeerLostError` in place of the errors by which a backend notices a lost process."""
    try:
        yield
    except Exception as error:
        peer = backend.lost_peer(error)
        if peer is None:
            raise
        raise PeerLostError(
            f"the connection to {peer} was lost; its own output shows the cause, unless it was "
            "killed (kill -9, out of memory)"
        ) from error
