"""The one place that uses attributes of `tf.data` which are not part of its public interface.

A data set is a chain of stages, each of which knows its input and its own arguments.
`tests/runtime/test_tf_data_internals.py` checks each of them, and names what a new version breaks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.data.util import structure
from tensorflow.python.framework import op_def_registry

_STAGES = {
    "_BatchDataset": "batch",
    "_ParallelBatchDataset": "batch",
    "_MapDataset": "map",
    "_ParallelMapDataset": "map",
    "_PrefetchDataset": "prefetch",
    "_RepeatDataset": "repeat",
    "_TakeDataset": "take",
    "_SkipDataset": "skip",
    "_OptionsDataset": "with_options",
    "CacheDataset": "cache",
    "_TensorSliceDataset": "from_tensor_slices",
    "_TensorDataset": "from_tensors",
    "_RangeDataset": "range",
}

_HARMLESS = {
    *("Assert", "CheckNumerics", "StatelessRandomGetAlg"),
    *("If", "While", "Case", "StatefulPartitionedCall"),  # their functions are searched, too
    *("ReadVariableOp", "ResourceGather", "LookupTableFindV2"),
}
"""Operations that TensorFlow counts as stateful, but which neither draw nor change anything."""


@dataclass(frozen=True)
class MapFunction:
    """The traced function of a `Dataset.map`.

    Attributes:
        name: The name of the Python function.
        stateful: Its operations that keep or change a state, or draw random numbers.
        num_parallel_calls: How many elements are computed at the same time; None for one.
        synchronous: Whether TensorFlow may not parallelise it by itself.
        deterministic: Whether the elements keep their order, or None if the options decide.
    """

    name: str
    stateful: list[str]
    num_parallel_calls: int | None
    synchronous: bool
    deterministic: bool | None
    _function: Any
    _input: Any
    _output: Any

    def __call__(self, element: Any) -> Any:
        """Returns what the function makes of an element, without tracing it again."""
        outputs = self._function(*structure.to_tensor_list(self._input, element))
        return structure.from_compatible_tensor_list(self._output, outputs)


def stage_of(dataset: tf.data.Dataset) -> str:
    """Returns what the last stage of a data set is called: its method of `Dataset`, if known."""
    name = type(dataset).__name__
    words = re.sub(r"^_|(Parallel)|Dataset(V\d)?$", "", name)
    return _STAGES.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", words).lower() or name


def is_known(dataset: tf.data.Dataset) -> bool:
    """Returns whether this module knows the arguments of the last stage of a data set."""
    return type(dataset).__name__ in _STAGES


def input_of(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns what the last stage of a data set reads; known stages other than sources have it."""
    return dataset._input_dataset


def batch_of(dataset: tf.data.Dataset) -> tuple[int, bool, bool]:
    """Returns a batch's size, whether a smaller last one is dropped, and whether order is kept."""
    in_order = getattr(dataset, "_deterministic", "true") != "false"
    return int(dataset._batch_size), bool(dataset._drop_remainder), in_order


def count_of(dataset: tf.data.Dataset) -> int:
    """Returns the count of a repeat, take or skip; -1 for no end."""
    return int(dataset._count)


def prefetched(dataset: tf.data.Dataset) -> int:
    """Returns how many elements a prefetch reads ahead; -1 for automatic."""
    return int(dataset._buffer_size)


def is_in_memory(dataset: tf.data.Dataset) -> bool:
    """Returns whether a cache is in memory rather than in a file."""
    return dataset._filename.numpy() == b""


def map_function_of(dataset: tf.data.Dataset) -> MapFunction | None:
    """Returns the function of a map; None if it is not a traced function."""
    wrapper = dataset._map_func
    function = wrapper.function
    if not isinstance(function, tf.types.experimental.ConcreteFunction):
        return None
    calls = getattr(dataset, "_num_parallel_calls", None)
    kept = {"true": True, "false": False}.get(getattr(dataset, "_deterministic", "true"))
    return MapFunction(
        name=getattr(wrapper._func, "__name__", type(wrapper._func).__name__),
        stateful=sorted(set(_stateful(function))),
        num_parallel_calls=None if calls is None else int(calls),
        synchronous=bool(getattr(dataset, "_force_synchronous", False)),
        deterministic=kept,
        _function=function,
        _input=dataset._input_dataset.element_spec,
        _output=wrapper.output_structure,
    )


def _stateful(function: Any) -> Iterator[str]:
    """Yields the types of the stateful operations of a function and of those that it calls."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    for node in nodes:
        definition = op_def_registry.get(node.op)
        is_function = definition is None and node.op in {
            each.signature.name for each in graph.library.function
        }
        if node.op in _HARMLESS or is_function:
            continue
        if definition is None or definition.is_stateful:
            yield node.op
