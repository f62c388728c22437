"""Keras' Adam and SGD, each update in one pass over memory, by TensorFlow's fused operations."""

from typing import Any, Protocol

import keras
import tensorflow as tf


class _Updates(Protocol):
    iterations: Any

    def _get_variable_index(self, variable: Any) -> int: ...


def _apply_adam(optimizer: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
    """Updates a variable by Adam (Kingma and Ba 2015, the last lines of section 2)."""
    index = optimizer._get_variable_index(variable)
    step = tf.cast(optimizer.iterations.value + 1, tf.float32)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=optimizer._momentums[index].value.handle,
        v=optimizer._velocities[index].value.handle,
        beta1_power=tf.pow(optimizer.beta_1, step),
        beta2_power=tf.pow(optimizer.beta_2, step),
        lr=tf.cast(learning_rate, tf.float32),
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        epsilon=optimizer.epsilon,
        grad=tf.cast(gradient, tf.float32),
    )


class Adam(keras.optimizers.Adam):
    """Keras' Adam: the same variables and the same updates."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """See `keras.optimizers.Optimizer.update_step`."""
        _apply_adam(self, gradient, variable, learning_rate)


class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW: the same variables and the same updates."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """See `keras.optimizers.Optimizer.update_step`."""
        _apply_adam(self, gradient, variable, learning_rate)


class SGD(keras.optimizers.SGD):
    """Keras' SGD: the same variables and the same updates."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """See `keras.optimizers.Optimizer.update_step`."""
        gradient = tf.cast(gradient, tf.float32)
        rate = tf.cast(learning_rate, tf.float32)
        if not self.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=rate,
            grad=gradient,
            momentum=self.momentum,
            use_nesterov=self.nesterov,
        )
