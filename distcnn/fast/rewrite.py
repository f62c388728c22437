"""Rewrites the user's model into its fast form, which shares its variables."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import keras
from typing_extensions import override

from distcnn.fast.chain import Chain, Synchronised, stages_of
from distcnn.runtime.keras_internals import calls_in_order, functional_graph, output_structure


def fast_model(model: keras.Model, synchronised: Synchronised | None = None) -> keras.Model:
    """Returns a model that computes the same as `model` in fewer passes over memory.

    Each chain of Keras' own convolutions, dense layers, activations, max pooling, dropout and batch
    normalisation becomes one layer; all other layers are called unchanged. The fast form is for
    computing only: save, summarise and export the user's model, which is not modified.

    Args:
        model: Built Sequential or functional model; nested ones are rewritten too. Any other model
            has no graph to rewrite, and is returned unchanged.
        synchronised: The layers that normalise over all replicas, or None.

    Returns:
        A model with the variables of `model`.
    """
    return _rewritten(model, synchronised, {})


def _rewritten(
    model: keras.Model, synchronised: Synchronised | None, done: dict[int, Any]
) -> keras.Model:
    graph = functional_graph(model)
    if graph is None:
        return model
    if id(model) not in done:
        done[id(model)] = FastModel(graph, _Program(graph, synchronised, done).calls())
    return done[id(model)]


@dataclass(frozen=True)
class _Call:
    """One call of an operation in the rewritten model."""

    operation: Any
    arguments: Any
    outputs: list[Any]


class FastModel(keras.Model):
    """A functional model with chains of its layers replaced.

    Args:
        graph: The functional model.
        calls: The calls that replace those of its layers, in order.
    """

    def __init__(self, graph: keras.Model, calls: list[_Call]) -> None:
        super().__init__(name=graph.name, autocast=False)
        self._graph_inputs = [id(tensor) for tensor in graph.inputs]
        self._structure = keras.tree.map_structure(id, output_structure(graph))
        self._calls = tuple(calls)
        self.parts = [c.operation for c in calls if isinstance(c.operation, keras.layers.Layer)]
        self.built = True

    @override
    def call(self, inputs: Any, training: bool = False, mask: Any = None) -> Any:
        values = dict(zip(self._graph_inputs, keras.tree.flatten(inputs), strict=True))
        for each in self._calls:
            arguments, keywords = each.arguments.fill_in(values)
            if isinstance(each.operation, Chain):  # its layers have no other keyword arguments
                keywords = {"training": training}
            elif "training" in keywords:  # replaced as in Keras' functional models
                keywords["training"] = training
            outputs = keras.tree.flatten(each.operation(*arguments, **keywords))
            values.update(zip(map(id, each.outputs), outputs, strict=True))
        return keras.tree.map_structure(values.__getitem__, self._structure)


class _Program:
    """Splits the graph of one model into chains and single calls."""

    def __init__(
        self, graph: keras.Model, synchronised: Synchronised | None, done: dict[int, Any]
    ) -> None:
        self._synchronised = synchronised
        self._done = done
        self._nodes = list(calls_in_order(graph))
        uses = [id(tensor) for node in self._nodes for tensor in node.input_tensors]
        self._uses = Counter([*uses, *map(id, graph.outputs)])
        self._reader = {id(t): node for node in self._nodes for t in node.input_tensors}

    def calls(self) -> list[_Call]:
        calls = []
        chained: set[int] = set()
        for node in self._nodes:
            if id(node) in chained:
                continue
            chain = self._chain_from(node)
            chained.update(map(id, chain))
            if chain:
                operation: Any = Chain([each.operation for each in chain], self._synchronised)
            elif isinstance(node.operation, keras.Model):
                operation = _rewritten(node.operation, self._synchronised, self._done)
            else:
                operation = node.operation
            calls.append(_Call(operation, node.arguments, (chain or [node])[-1].outputs))
        return calls

    def _chain_from(self, node: Any) -> list[Any]:
        """Returns the longest chain from this node whose intermediate tensors have no other use."""
        chain: list[Any] = []
        following: Any = node
        while following is not None and self._fits(following, chain):
            chain.append(following)
            output = id(following.outputs[0])
            following = self._reader.get(output) if self._uses[output] == 1 else None
        return chain

    def _fits(self, node: Any, chain: list[Any]) -> bool:
        layer = node.operation
        if not isinstance(layer, keras.layers.Layer):
            return False
        options = {k: v for k, v in node.arguments.kwargs.items() if k != "training"}
        if len(node.input_tensors) != 1 or len(node.arguments.args) != 1 or any(options.values()):
            return False
        same_type = not chain or chain[0].operation.compute_dtype == layer.compute_dtype
        return same_type and stages_of(layer) is not None
