"""The forward and backward pass, compiled by XLA such that gradients travel while it goes on."""

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.engine.buckets import in_buckets
from distcnn.engine.graph_pieces import GraphPieces, IndivisibleError, Outside, computed

log = logging.getLogger("distcnn")


class CompiledPass:
    """A forward and backward pass that XLA compiles: in pieces, if there are several replicas.

    Each bucket of gradients is a piece of its own, so that it can be reduced while the next one is
    computed. Where the pass itself reduces something, such as batch statistics, one piece ends, and
    another one begins with the result.

    Args:
        function: Computes outputs, the loss and the gradients of a batch and its weight.
        backend: Reduces over the replicas.
        in_buckets: Whether the gradients are reduced while the pass goes on.
    """

    def __init__(self, function: Callable[..., Any], backend: Backend, *, in_buckets: bool) -> None:
        self._function = function
        self._backend = backend
        self._bucket_bytes = backend.bucket_bytes if in_buckets and backend.replicas > 1 else 0
        self._programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, data: Any, weight: tf.Tensor) -> Any:
        """Computes a shard, inside a step.

        Args:
            data: Nested tensors and None.
            weight: The second argument of the function.

        Returns:
            What the function returns.
        """
        structure = (data, weight)
        leaves = tf.nest.flatten(structure, expand_composites=True)
        tensors = [leaf for leaf in leaves if tf.is_tensor(leaf)]
        specs = tuple(tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors)
        if specs not in self._programs:

            def function(*given: tf.Tensor) -> Any:
                rest = iter(given)
                filled = [next(rest) if tf.is_tensor(leaf) else leaf for leaf in leaves]
                packed = tf.nest.pack_sequence_as(structure, filled, expand_composites=True)
                return self._function(*packed)

            program, is_general = self._compile(function, specs)
            if not is_general:
                return program(*tensors)
            self._programs[specs] = program
        return self._programs[specs](*tensors)

    def _compile(
        self, function: Callable[..., Any], specs: Sequence[tf.TensorSpec]
    ) -> tuple[Callable[..., Any], bool]:
        """Returns a function's program, and whether it computes other shards, too.

        It does not if it takes anything from the step around it, which may belong to its shard.
        """
        stand_ins: list[str] = []
        compiled = tf.function(function, jit_compile=True, autograph=False)
        with self._backend.standing_in(functools.partial(_stand_in, stand_ins)):
            traced = compiled.get_concrete_function(*specs)
        found = traced.structured_outputs[2]
        gradients = [computed(found[i]) for i in range(len(found)) if tf.is_tensor(found[i])]
        buckets = in_buckets(gradients, self._bucket_bytes)
        is_general = all(hasattr(captured, "numpy") for captured in traced.captured_inputs)
        if len(buckets) == 1 and not stand_ins:
            return traced, is_general
        try:
            pieces = self._pieces(traced, stand_ins, [[gradients[i] for i in b] for b in buckets])
        except IndivisibleError as error:
            log.warning("warning: XLA is off for this step: %s", error)
            return function, is_general
        return pieces, is_general

    def _pieces(
        self, traced: Any, stand_ins: Sequence[str], due: Sequence[Sequence[tf.Tensor]]
    ) -> GraphPieces:
        """Cuts a pass at the buckets, and at reductions inside it."""
        outside: dict[str, Outside] = dict.fromkeys(stand_ins, self._backend.reduce_sum)
        for gradient in itertools.chain(*due):
            if self._travels_narrow(gradient):  # the reduction has to see the cast
                outside[gradient.op.name] = functools.partial(_cast, gradient.dtype)
        return GraphPieces(traced, due, outside)

    def _travels_narrow(self, gradient: tf.Tensor) -> bool:
        """Returns whether a gradient was cast from 16 bits, and travels in as many."""
        if not self._bucket_bytes or gradient.op.type != "Cast":
            return False
        replicas = self._backend.replicas
        wire = self._backend.wire_type(gradient, compressible=True, replicas=replicas)
        return wire.size == 2


def _stand_in(names: list[str], tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Puts an operation in place of a reduction, which takes and gives tensors of the same types.

    Args:
        names: Gets the name of the operation.
        tensors: What the reduction takes.
    """

    @tf.custom_gradient
    def exchange(*own: tf.Tensor) -> Any:
        given = tf.raw_ops.IdentityN(input=own)
        names.append(given[0].op.name)
        return given, lambda *upstream: _stand_in(names, upstream)

    return list(exchange(*tensors))


def _cast(dtype: tf.DType, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return [tf.cast(tensor, dtype) for tensor in tensors]
