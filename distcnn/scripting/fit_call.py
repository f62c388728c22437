"""A `fit` call of a script that is saved or resumed, and places in it."""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from distcnn.scripting.callback_state import Digests


@dataclass
class Position:
    """A place in a `fit` call.

    Attributes:
        epoch: The epoch, as Keras counts it; -1 before the first.
        executions: Executions done in it.
        ended: Whether it has ended, its callbacks included.
        cut: Whether a callback ended it before its last batch.
        finished: Whether the call has ended.
    """

    epoch: int = -1
    executions: int = 0
    ended: bool = False
    cut: bool = False
    finished: bool = False


@dataclass
class FitCall:
    """A `fit` call in progress.

    Attributes:
        number: Its number in the process, counted from 0.
        model: The model.
        only_arrays: Whether reading its data changes nothing but its own order.
        stored: The arrays of the checkpoint to go on from, or none.
        serial: Number of the newest checkpoint.
        target: The place of that checkpoint; None if nothing is to be skipped any more.
        description: The rest of that checkpoint.
        position: The place now.
        steps: Steps of the call so far.
        callbacks: Keras' list of callbacks, once it exists.
        known: Hashes of the callbacks' attributes when the call began.
        random_state: Random states when the call began.
        train_function: Keras' own function, while another one stands in for it.
        logs: What the last step returned.
    """

    number: int
    model: keras.Model
    only_arrays: bool
    stored: dict[str, np.ndarray]
    serial: int
    target: Position | None = None
    description: dict[str, Any] = field(default_factory=dict)
    position: Position = field(default_factory=Position)
    steps: int = 0
    callbacks: Any = None
    known: Digests = field(default_factory=list)
    random_state: dict[str, Any] = field(default_factory=dict)
    train_function: Any = None
    logs: Any = None

    @property
    def is_skipped(self) -> bool:
        """Whether the whole call is skipped."""
        return self.target is not None and self.target.finished

    @property
    def of_the_script(self) -> list[keras.callbacks.Callback]:
        """The callbacks whose state is saved: all but those that a session adds by itself."""
        return [
            callback
            for callback in self.callbacks.callbacks
            if hasattr(callback, "state_dict")
            or not type(callback).__module__.startswith("distcnn.")
        ]


def name_of(call: FitCall) -> str:
    """Returns what messages name a call."""
    return f"fit call {call.number + 1}"


def describe(call: FitCall) -> str:
    """Returns the place of the checkpoint from which a call goes on."""
    target = call.target
    assert target is not None
    if target.finished:
        return f"{name_of(call)} is finished"
    epoch = target.epoch + 1
    where = "at its end" if target.ended else f"after execution {target.executions}"
    return f"{name_of(call)} in epoch {epoch}, {where}"
