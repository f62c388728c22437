"""From the user's model to an equal one that takes less time, on the very same variables."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras

from distcnn.fast.chain import Chain, stages_of

_Layers = Collection[keras.layers.Layer]


def fast_model(model: keras.Model, left_alone: _Layers = ()) -> keras.Model:
    """Returns a model that computes what `model` does, in fewer passes over memory.

    Chains of Keras' own convolutions, dense layers, activations, max pooling, dropout and batch
    normalisation become one layer each; all other layers are called as they are. The result is for
    computing only: the model to save, summarise and export is the user's.

    Args:
        model: Built Sequential or functional model; nested ones are rewritten too. Any other model
            cannot be seen into, and is returned itself.
        left_alone: Layers to call as they are, such as those that reduce over replicas.

    Returns:
        A functional model whose variables are those of `model`.
    """
    return _rewritten(model, left_alone, {})


def _rewritten(
    model: keras.Model, left_alone: _Layers, done: dict[int, keras.Model]
) -> keras.Model:
    functional = type(keras.Model(model.inputs, model.outputs)) if model.inputs else None
    if type(model) not in (keras.Sequential, functional):
        return model
    if id(model) not in done:
        done[id(model)] = _Rewriting(model, left_alone, done).run()
    return done[id(model)]


class _Rewriting:
    """The walk through the graph of one model."""

    def __init__(
        self, model: keras.Model, left_alone: _Layers, done: dict[int, keras.Model]
    ) -> None:
        self._graph = model if model.__class__ is not keras.Sequential else model._functional
        self._left_alone = left_alone
        self._done = done
        self._nodes = list(_in_order(self._graph))
        uses = [id(tensor) for node in self._nodes for tensor in node.input_tensors]
        self._uses = Counter([*uses, *map(id, self._graph.outputs)])

    def run(self) -> keras.Model:
        graph = self._graph
        inputs = keras.tree.map_structure(_same_input, graph._inputs_struct)
        tensors = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
        skipped: set[int] = set()
        for node in self._nodes:
            if id(node) in skipped:
                continue
            chain = self._chain_from(node)
            skipped.update(map(id, chain))
            operation = self._operation(node, chain)
            arguments, keywords = node.arguments.fill_in(tensors)
            outputs = keras.tree.flatten(operation(*arguments, **keywords))
            last = chain[-1] if chain else node
            tensors.update(zip(map(id, last.outputs), outputs, strict=True))
        outputs = keras.tree.map_structure(lambda t: tensors[id(t)], graph._outputs_struct)
        return keras.Model(inputs, outputs, name=graph.name)

    def _operation(self, node: Any, chain: list[Any]) -> Callable[..., Any]:
        if chain:
            return Chain([each.operation for each in chain])
        if isinstance(node.operation, keras.Model):
            return _rewritten(node.operation, self._left_alone, self._done)
        return node.operation

    def _chain_from(self, node: Any) -> list[Any]:
        """Returns the nodes that begin here and follow each other with no other use between."""
        chain: list[Any] = []
        following: Any = node
        while following is not None and self._fits(following, chain):
            chain.append(following)
            following = self._only_consumer(following)
        return chain

    def _fits(self, node: Any, chain: list[Any]) -> bool:
        layer = node.operation
        if not isinstance(layer, keras.layers.Layer) or layer in self._left_alone:
            return False
        # What a call says of `training`, Keras replaces by what the model is called with.
        options = {k: v for k, v in node.arguments.kwargs.items() if k != "training"}
        if len(node.input_tensors) != 1 or len(node.arguments.args) != 1 or any(options.values()):
            return False
        same_type = not chain or chain[0].operation.compute_dtype == layer.compute_dtype
        return same_type and stages_of(layer) is not None

    def _only_consumer(self, node: Any) -> Any:
        (output,) = node.outputs
        if self._uses[id(output)] != 1:
            return None
        consumers = [n for n in self._nodes if any(t is output for t in n.input_tensors)]
        return consumers[0] if consumers else None


def _in_order(graph: keras.Model) -> Iterator[Any]:
    """Yields the calls that make up a functional model, each after those that it needs."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def _same_input(tensor: Any) -> Any:
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)
