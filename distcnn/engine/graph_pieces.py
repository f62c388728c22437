"""Divides a traced computation into pieces, so that XLA gives early results before the last ones.

A function that XLA compiles gives all of its results when it ends. Of a training step, the network
needs the gradients of the last layers while those of the first are still being computed; and
reductions inside the step, which XLA cannot compile, divide what it can.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

_OF_SHAPES = frozenset({"Shape", "ShapeN", "Size", "Rank"})
"""Operations that need only the shapes of tensors."""

_ON_SHAPES = frozenset(
    {
        *("Add", "AddV2", "BroadcastArgs", "BroadcastGradientArgs", "Cast", "ConcatV2", "Equal"),
        *("ExpandDims", "Fill", "FloorDiv", "FloorMod", "GatherV2", "Identity", "Maximum"),
        *("Minimum", "Mul", "Pack", "Prod", "Range", "Reshape", "SelectV2", "Slice", "Squeeze"),
        *("StridedSlice", "Sub", "Tile"),
    }
)
"""Operations that compute shapes from shapes."""

Outside = Callable[[Sequence[tf.Tensor]], Sequence[tf.Tensor]]
"""Computes the outputs of an operation from its inputs."""


class IndivisibleError(ValueError):
    """A computation cannot be divided where it would have to be."""


@dataclass
class Piece:
    """A part of a computation.

    Attributes:
        compiled: Whether XLA compiles it.
        operations: Its operations, in the order of the graph.
        takes: The tensors that it needs from outside.
        gives: The tensors of its own that are needed outside.
    """

    compiled: bool
    operations: list[tf.Operation]
    takes: list[tf.Tensor] = field(default_factory=list)
    gives: list[tf.Tensor] = field(default_factory=list)


class GraphPieces:
    """A traced function, cut where results are due and around what XLA cannot compile.

    Args:
        traced: A concrete function.
        due: Groups of tensors of its graph, in the order in which they shall be ready.
        outside: What to call in place of operations that XLA shall not compile, by name: it takes
            the operation's inputs and returns its outputs.

    Attributes:
        pieces: The pieces, in an order in which they can be computed.

    Raises:
        IndivisibleError: If something would pass from one piece to another that cannot.
    """

    def __init__(
        self,
        traced: Any,
        due: Sequence[Sequence[tf.Tensor]],
        outside: Mapping[str, Outside],
    ) -> None:
        self._traced = traced
        self._outside = outside
        self._reads = list(_reads_of_constants(traced))
        apart = {op.name for op in self._reads}
        self._operations = [
            op
            for op in traced.graph.get_operations()
            if op.type != "Placeholder" and op.name not in apart
        ]
        self._repeated = _computed_from_shapes(self._operations)
        self.pieces = self._divide(self._places(due))
        self._functions = self._make_functions()

    def __call__(self, *arguments: tf.Tensor) -> Any:
        """Computes the function piece by piece, inside a `tf.function`.

        Args:
            *arguments: Tensors, as the traced function takes them.

        Returns:
            What the traced function returns.
        """
        given = (*arguments, *self._traced.captured_inputs)
        values = {t.name: v for t, v in zip(self._traced.inputs, given, strict=True)}
        for op in self._reads:
            values[op.outputs[0].name] = tf.raw_ops.ReadVariableOp(
                resource=values[op.inputs[0].name], dtype=op.outputs[0].dtype
            )
        for piece, function in zip(self.pieces, self._functions, strict=True):
            results = function(*(values[tensor.name] for tensor in piece.takes))
            for tensor, result in zip(piece.gives, results, strict=True):
                result.set_shape(tensor.shape)
                values[tensor.name] = result
        leaves = [
            values[computed(leaf).name] if tf.is_tensor(leaf) else leaf for leaf in self._leaves()
        ]
        structure = self._traced.structured_outputs
        return tf.nest.pack_sequence_as(structure, leaves, expand_composites=True)

    def _leaves(self) -> list[Any]:
        found: list[Any]
        found = tf.nest.flatten(self._traced.structured_outputs, expand_composites=True)
        return found

    def _places(self, due: Sequence[Sequence[tf.Tensor]]) -> dict[str, tuple[int, int]]:
        """Returns by operation where its piece comes; none needs what comes later.

        The first number counts how often what an operation needs changes between compiled (even)
        and other operations (odd), the second is the first group of results that needs it.
        """
        groups = _first_needed(due)
        places: dict[str, tuple[int, int]] = {}
        for op in self._operations:
            before = [places[other.name] for other in _needs(op) if other.name in places]
            level = max((level for level, _ in before), default=0)
            if level % 2 != (op.name in self._outside):
                level += 1
            group = max((group for _, group in before), default=0)
            places[op.name] = (level, groups.get(op.name, group))
        return places

    def _divide(self, places: dict[str, tuple[int, int]]) -> list[Piece]:
        order = sorted(set(places.values()))
        number = {place: index for index, place in enumerate(order)}
        segments = self._segments({name: number[place] for name, place in places.items()})
        members: dict[int, list[tf.Operation]] = {}
        for op in self._operations:
            members.setdefault(segments[number[places[op.name]]], []).append(op)
        pieces = [self._piece(operations) for _, operations in sorted(members.items())]
        gives = {computed(leaf).name for leaf in self._leaves() if tf.is_tensor(leaf)}
        owned = [[t for op in piece.operations for t in op.outputs] for piece in pieces]
        for piece in pieces:
            self._complete(piece)
            gives.update(tensor.name for tensor in piece.takes)
        for piece, tensors in zip(pieces, owned, strict=True):
            piece.gives = [tensor for tensor in tensors if tensor.name in gives]
        return [piece for piece in pieces if piece.gives or _changes_state(piece)]

    def _piece(self, operations: list[tf.Operation]) -> Piece:
        outside = [op.name in self._outside for op in operations]
        if any(outside) and not all(outside):
            raise IndivisibleError(
                "it reduces something between a loop and its gradient, which XLA compiles together"
            )
        return Piece(not any(outside), operations)

    def _segments(self, numbers: dict[str, int]) -> list[int]:
        """Returns for each place the piece that it is a part of.

        Places between which something passes that no compiled function can return are one piece.
        """
        count = max(numbers.values(), default=0) + 1
        joined: set[int] = set()
        for op in self._operations:
            for tensor in op.inputs:
                if tensor.dtype == tf.variant and tensor.op.name in numbers:
                    joined.update(range(numbers[tensor.op.name], numbers[op.name]))
        segments = [0]
        for place in range(count - 1):
            segments.append(segments[-1] + (place not in joined))
        return segments

    def _complete(self, piece: Piece) -> None:
        """Adds what a piece computes again, and finds what it takes."""
        own = {op.name for op in piece.operations}
        taken: dict[str, tf.Tensor] = {}
        todo = list(piece.operations)
        while todo:
            for tensor in todo.pop().inputs:
                if tensor.op.name in own:
                    continue
                if piece.compiled and tensor.op.name in self._repeated:
                    own.add(tensor.op.name)
                    todo.append(tensor.op)
                else:
                    taken[tensor.name] = tensor
        piece.operations = [op for op in self._operations if op.name in own]
        piece.takes = list(taken.values())

    def _make_functions(self) -> list[Callable[..., Any]]:
        definition = self._traced.graph.as_graph_def()
        nodes = {node.name: node for node in definition.node}
        return [
            _compiled(piece, nodes, definition) if piece.compiled else self._called(piece)
            for piece in self.pieces
        ]

    def _called(self, piece: Piece) -> Callable[..., list[tf.Tensor]]:
        """Returns a function that computes what stays outside."""

        def compute(*taken: tf.Tensor) -> list[tf.Tensor]:
            values = {t.name: value for t, value in zip(piece.takes, taken, strict=True)}
            for op in piece.operations:
                results = self._outside[op.name]([values[t.name] for t in op.inputs])
                values |= {t.name: value for t, value in zip(op.outputs, results, strict=True)}
            return [values[tensor.name] for tensor in piece.gives]

        return compute


def computed(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor of a graph that a function's result is the same as."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _compiled(piece: Piece, nodes: dict[str, Any], definition: Any) -> Callable[..., Any]:
    """Returns a function that XLA compiles, which computes a piece from what it takes."""
    part = tf.compat.v1.GraphDef(versions=definition.versions, library=definition.library)
    own = {op.name for op in piece.operations}
    for op in piece.operations:
        node = part.node.add()
        node.CopyFrom(nodes[op.name])
        node.attr.pop("_class", None)  # may name operations of other pieces
        kept = [name for name in node.input if not name.startswith("^") or name[1:] in own]
        del node.input[:]
        node.input.extend(kept)

    def compute(*taken: tf.Tensor) -> list[tf.Tensor]:
        names = [tensor.name for tensor in piece.gives]
        mapped = {t.name: value for t, value in zip(piece.takes, taken, strict=True)}
        results: list[tf.Tensor]
        results = tf.graph_util.import_graph_def(part, mapped, return_elements=names, name="piece")
        return results

    return tf.function(compute, jit_compile=True, autograph=False)


def _reads_of_constants(traced: Any) -> Iterator[tf.Operation]:
    """Yields the reads of variables that the function does not change.

    They are read outside, for all pieces: compiled code would return a copy.
    """
    for tensor in traced.inputs:
        users = tensor.consumers()
        if tensor.dtype == tf.resource and all(op.type == "ReadVariableOp" for op in users):
            yield from users


def _computed_from_shapes(operations: Sequence[tf.Operation]) -> set[str]:
    """Returns what each piece computes itself, since XLA must know the shapes as it compiles."""
    found: set[str] = set()
    for op in operations:
        on_shapes = op.type in _ON_SHAPES and all(t.op.name in found for t in op.inputs)
        if op.type == "Const" or op.type in _OF_SHAPES or on_shapes:
            found.add(op.name)
    return found


def _first_needed(due: Sequence[Sequence[tf.Tensor]]) -> dict[str, int]:
    """Returns by operation the first group of tensors that needs it."""
    groups: dict[str, int] = {}
    for number, tensors in enumerate(due):
        todo = [tensor.op for tensor in tensors]
        while todo:
            op = todo.pop()
            if op.name not in groups:
                groups[op.name] = number
                todo += _needs(op)
    return groups


def _needs(op: tf.Operation) -> list[tf.Operation]:
    return [tensor.op for tensor in op.inputs] + list(op.control_inputs)


def _changes_state(piece: Piece) -> bool:
    return any(op.op_def.is_stateful for op in piece.operations)
