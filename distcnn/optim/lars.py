"""LARS, an optimizer for large batches that Keras does not have."""

from typing import Any

import keras
from keras import ops
from typing_extensions import override

from distcnn.runtime.keras_internals import variable_index


@keras.saving.register_keras_serializable("distcnn")
class Lars(keras.optimizers.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017, algorithm 1).

    For a kernel w with gradient g, weight decay b and trust coefficient t, the momentum v becomes
    `m v + rate * t |w| / (|g| + b |w|) * (g + b w)`, and w becomes `w - v`. Biases and
    normalisation weights are updated by plain SGD with momentum, as is usual.

    Args:
        learning_rate: Learning rate or schedule.
        momentum: m, 0 <= m < 1.
        weight_decay: b, or None.
        trust: t.
        name: Name of the optimizer.
        **kwargs: Arguments of `keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.9,
        weight_decay: float | None = None,
        trust: float = 0.001,
        name: str = "lars",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        self.decay = weight_decay or 0.0
        self.trust = trust

    @override
    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    @override
    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        if len(variable.shape) > 1:
            weight_norm, gradient_norm = _norm(variable), _norm(gradient)
            adapted = self.trust * weight_norm / (gradient_norm + self.decay * weight_norm)
            usable = ops.logical_and(weight_norm > 0, gradient_norm > 0)
            rate = rate * ops.where(usable, adapted, 1.0)
            gradient = gradient + self.decay * variable
        momentum = self._momentums[variable_index(self, variable)]
        self.assign(momentum, self.momentum * momentum + rate * gradient)
        self.assign_sub(variable, momentum)

    @override
    def get_config(self) -> dict[str, Any]:
        settings = {"momentum": self.momentum, "weight_decay": self.decay, "trust": self.trust}
        return {**super().get_config(), **settings}


def _norm(values: Any) -> Any:
    return ops.sqrt(ops.sum(ops.square(values)))
