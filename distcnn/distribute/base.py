"""What a backend is: how replicas of the model share a step, and processes share values.

A *replica* is one copy of the model on one device; a *process* holds one or more of them. What
differs between backends is behind this class, and nowhere else.
"""

import abc
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from distcnn.errors import DistcnnError, PeerLostError


class ChiefError(DistcnnError):
    """What only rank 0 does went wrong; every rank learns of it."""

    on_every_rank = True


class Backend(abc.ABC):
    """One way to train on several devices; this base is the way of a single one.

    Attributes:
        name: Name of the strategy in the configuration.
        rank: Number of this process.
        size: Number of processes.
        local_replicas: Replicas in this process.
    """

    name: str
    rank: int = 0
    size: int = 1
    local_replicas: int = 1

    @property
    def replicas(self) -> int:
        """Replicas of the whole run."""
        return self.size * self.local_replicas

    @property
    def is_chief(self) -> bool:
        """Whether this process alone prints and writes."""
        return self.rank == 0

    @property
    def local_replica_ids(self) -> range:
        """Numbers of this process's replicas."""
        first = self.rank * self.local_replicas
        return range(first, first + self.local_replicas)

    @property
    def transport(self) -> str:
        """What carries gradients from replica to replica."""
        return "TensorFlow" if self.replicas > 1 else "nothing"

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context in which the model and its optimizer are built."""
        return contextlib.nullcontext()

    def disable_reduction(self, optimizer: Any) -> None:  # noqa: B027 (most have nothing to do)
        """Prepares an optimizer for gradients that are reduced already."""

    def iterate(self, dataset: tf.data.Dataset) -> Any:
        """Returns an iterator over a data set, whose elements are for each own replica in turn."""
        return iter(dataset)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Calls a function once in each own replica; works inside a `tf.function`.

        Args:
            function: What a replica does; returns a tensor.
            *arguments: What `next` of `iterate` gave, or plain tensors.

        Returns:
            What each own replica returned.
        """
        return [function(*arguments)]

    def replica_id(self) -> Any:
        """Returns, inside `run`, the number of the replica among all: an int or int32 scalar."""
        return self.rank

    def reduce_sum(self, tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        """Adds up tensors over all replicas, inside `run`; differentiable.

        Args:
            tensors: The same number of tensors, of the same shapes and types, in every replica.
            compressible: How many of the first tensors may travel compressed, if the configuration
                says so.

        Returns:
            The sums, the same in every replica.
        """
        return list(tensors)

    @abc.abstractmethod
    def sum(self, values: np.ndarray) -> np.ndarray:
        """Adds up an array over all processes, between steps.

        Args:
            values: float64 array of any shape, the same shape in every process.

        Returns:
            float64 array of that shape.
        """

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Collects an array from every process: float64 of shape `(size, *values.shape)`."""
        rows = np.zeros((self.size, *values.shape))
        rows[self.rank] = values
        return self.sum(rows)

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """Returns the chief's array (float64) in every process."""
        return self.sum(values if self.is_chief else np.zeros(values.shape))

    def broadcast_object(self, content: Any) -> Any:
        """Returns what the chief passes, a value that JSON can hold, in every process."""
        if self.size == 1:
            return content
        text = np.frombuffer(json.dumps(content).encode() if self.is_chief else b"", np.uint8)
        length = int(self.broadcast(np.array([float(len(text))]))[0])
        padded = text.astype(np.float64) if self.is_chief else np.zeros(length)
        return json.loads(self.broadcast(padded).astype(np.uint8).tobytes())

    def run_on_chief(self, function: Callable[[], Any]) -> Any:
        """Calls a function in the chief alone, while the others wait.

        Args:
            function: Returns a value that JSON can hold.

        Returns:
            What it returned, in every process.

        Raises:
            DistcnnError: In every process, if it raised one.
        """
        if self.size == 1:
            return function()
        outcome: dict[str, Any] = {}
        if self.is_chief:
            try:
                outcome = {"result": function()}
            except DistcnnError as error:
                outcome = {"error": str(error), "code": error.exit_code}
        outcome = self.broadcast_object(outcome)
        if "error" in outcome:
            failure = ChiefError(outcome["error"])
            failure.exit_code = outcome["code"]
            raise failure
        return outcome["result"]

    def barrier(self) -> None:
        """Waits until every process is here."""
        self.sum(np.zeros(1))

    def close(self) -> None:  # noqa: B027 (most have nothing to do)
        """Takes leave of the other processes, so that none takes the end of this one for a loss."""

    def local_values(self, variable: Any) -> list[np.ndarray]:
        """Returns a variable's value in each own replica."""
        return [np.asarray(variable)]

    def lost_peer(self, error: BaseException) -> str | None:
        """Returns which process is gone, if that is all that an error says, else None."""
        return None


@contextlib.contextmanager
def reporting_lost_peers(backend: Backend) -> Iterator[None]:
    """Turns the errors by which a backend notices a lost process into `PeerLostError`."""
    try:
        yield
    except Exception as error:
        peer = backend.lost_peer(error)
        if peer is None:
            raise
        raise PeerLostError(
            f"the connection to {peer} was lost, which has the cause in its own output, unless it "
            "was killed (kill -9, out of memory)"
        ) from error
