"""Takes a script's `tf.data` pipeline apart: what is below its maps, the maps, and the batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from distcnn.runtime.tf_data_internals import (
    MapFunction,
    batch_of,
    count_of,
    input_of,
    is_in_memory,
    is_known,
    map_function_of,
    prefetched,
    stage_of,
)

Change = Callable[[tf.data.Dataset], tf.data.Dataset]
"""A stage of a pipeline, to be applied to another input."""

_COUNTING = ("repeat", "take", "skip")
_FIXED_ORDER = {
    *("map", "batch", "prefetch", "with_options", "cache", *_COUNTING),
    *("from_tensor_slices", "from_tensors", "range"),
}
"""Stages that yield the same elements in the same order whenever they are read."""


class NotDivisibleError(Exception):
    """Says why each worker has to read whole batches of a pipeline."""


@dataclass(frozen=True)
class InputChain:
    """A pipeline whose batches can be divided before its maps.

    Attributes:
        base: Elements that every worker reads.
        maps: What is computed of each element, in order: functions of `Dataset.map`, and numbers
            of elements to prefetch.
        batch_size: Rows of a batch.
        drop_remainder: Whether a last batch with fewer rows is dropped.
        above: What is done with the batches, in order.
        options: The options of the pipeline.
    """

    base: tf.data.Dataset
    maps: list[MapFunction | int]
    batch_size: int
    drop_remainder: bool
    above: list[Change]
    options: tf.data.Options

    @property
    def functions(self) -> list[MapFunction]:
        """The functions of the maps, in order."""
        return [stage for stage in self.maps if isinstance(stage, MapFunction)]


def take_apart(dataset: tf.data.Dataset) -> InputChain:
    """Takes a pipeline apart.

    Raises:
        NotDivisibleError: If its rows cannot be divided before its maps.
    """
    options = dataset.options()
    in_order = options.deterministic is not False
    if not all(type(spec) is tf.TensorSpec for spec in tf.nest.flatten(dataset.element_spec)):
        raise NotDivisibleError("its batches hold other things than tensors")
    above, batched = _above_batch(dataset)
    size, drops, keeps_order = batch_of(batched)
    if not (in_order and keeps_order):
        raise NotDivisibleError("its order is not deterministic")
    base, maps = _maps(input_of(batched), in_order)
    specs = tf.nest.flatten(base.element_spec)
    if not specs or not all(type(spec) is tf.TensorSpec for spec in specs):
        raise NotDivisibleError(f"the elements of {stage_of(base)} are not tensors")
    if not all(spec.shape.is_fully_defined() for spec in specs):
        raise NotDivisibleError(f"the elements of {stage_of(base)} have no fixed shape")
    return InputChain(base, maps, size, drops, above, options)


def _above_batch(dataset: tf.data.Dataset) -> tuple[list[Change], tf.data.Dataset]:
    """Returns the stages after the batches are made, and the stage that makes them."""
    changes: list[Change] = []
    while (stage := stage_of(dataset)) != "batch":
        if stage == "map":
            raise NotDivisibleError(
                f"{_named(dataset)} comes after batch, and may mix the rows of a batch; "
                "map before batch"
            )
        if stage in _COUNTING:
            changes.append(_counting(stage, count_of(dataset)))
        elif stage == "prefetch":
            changes.append(_prefetching(prefetched(dataset)))
        elif stage == "cache":
            if not (is_in_memory(dataset) and _has_fixed_order(dataset)):
                raise NotDivisibleError(
                    "cache comes after batch, and keeps shuffled batches or writes a file"
                )
            changes.append(lambda before: before.cache())
        elif stage != "with_options":
            raise NotDivisibleError(f"{stage} comes after batch, or is in place of it")
        dataset = input_of(dataset)
    return changes[::-1], dataset


def _maps(
    dataset: tf.data.Dataset, in_order: bool
) -> tuple[tf.data.Dataset, list[MapFunction | int]]:
    """Returns the maps that end a data set of single elements, and what is below them.

    A stage that counts elements may change places with a map, which keeps their number.
    """
    base, kept, kept_counts = dataset, 0, 0
    maps: list[MapFunction | int] = []
    counts: list[Change] = []
    while True:
        stage = stage_of(dataset)
        if stage == "map":
            function = map_function_of(dataset)
            obstacle = _obstacle(function, in_order)
            if function is None or obstacle:
                break
            maps.append(function)
            base, kept, kept_counts = input_of(dataset), len(maps), len(counts)
        elif stage in _COUNTING:
            counts.append(_counting(stage, count_of(dataset)))
        elif stage == "prefetch":
            maps.append(prefetched(dataset))
        elif stage != "with_options":
            obstacle = _without_map(dataset)
            break
        dataset = input_of(dataset)
    if not kept:
        raise NotDivisibleError(obstacle)
    for change in reversed(counts[:kept_counts]):
        base = change(base)
    return base, maps[:kept][::-1]


def _obstacle(function: MapFunction | None, in_order: bool) -> str:
    """Returns why a map cannot be computed for some of the elements only; empty if it can."""
    if function is None:
        return "Dataset.map has a function that was not traced"
    name = f"Dataset.map({function.name})"
    if function.stateful:
        advice = ""
        if {"EagerPyFunc", "PyFunc"} & set(function.stateful):
            advice = "; if its result depends on the element only, use tf.numpy_function with "
            advice += "stateful=False"
        elif any("Random" in operation for operation in function.stateful):
            advice = "; tf.random.stateless_uniform and its like can be divided"
        return f"{name} may keep a state ({', '.join(function.stateful)}){advice}"
    if function.deterministic is False or (function.deterministic is None and not in_order):
        return f"{name} is not deterministic"
    return ""


def _without_map(dataset: tf.data.Dataset) -> str:
    """Returns why there is nothing to divide above a stage."""
    stage = stage_of(dataset)
    below = (stage_of(each) for each in _chain(dataset))
    if "map" in below:
        return f"{stage} comes between Dataset.map and batch; map after {stage}"
    return "it has no Dataset.map whose work could be divided"


def _chain(dataset: tf.data.Dataset) -> Iterator[tf.data.Dataset]:
    """Yields the stages of a data set from the last on, as far as each has a single input."""
    while True:
        yield dataset
        try:
            dataset = input_of(dataset)
        except AttributeError:
            return


def _has_fixed_order(dataset: tf.data.Dataset) -> bool:
    """Returns whether what a cache keeps is the same whoever reads it first."""
    stages = list(_chain(dataset))
    return all(is_known(each) and stage_of(each) in _FIXED_ORDER for each in stages) and not any(
        _is_stateful(each) for each in stages
    )


def _is_stateful(dataset: tf.data.Dataset) -> bool:
    if stage_of(dataset) != "map":
        return False
    function = map_function_of(dataset)
    return function is None or bool(function.stateful)


def _named(dataset: tf.data.Dataset) -> str:
    function = map_function_of(dataset)
    return f"Dataset.map({function.name if function else ''})"


def _counting(stage: str, count: int) -> Change:
    def change(before: tf.data.Dataset) -> Any:
        return getattr(before, stage)(count)

    return change


def _prefetching(count: int) -> Change:
    return lambda before: before.prefetch(count)
