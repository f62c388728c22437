"""Updates of Keras' Adam, AdamW and SGD as single TensorFlow operations, in one memory pass."""

from typing import Any

import keras
import tensorflow as tf

from distcnn.runtime.keras_internals import adam_moments, variable_index


def fuse_updates(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes Adam, AdamW or SGD update each float32 variable in a single operation.

    Class, variables and updates stay those of Keras, so a model saved with the optimizer loads
    without distcnn.

    Args:
        optimizer: Optimizer without AMSGrad. Other optimizers than these three are not modified.
    """
    updates = {
        keras.optimizers.Adam: _adam,
        keras.optimizers.AdamW: _adam,
        keras.optimizers.SGD: _sgd,
    }
    fused, plain = updates.get(type(optimizer)), optimizer.update_step
    if fused is None:
        return

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        if variable.dtype == tf.float32 and not isinstance(gradient, tf.IndexedSlices):
            fused(optimizer, gradient, variable, learning_rate)
        else:
            plain(gradient, variable, learning_rate)

    optimizer.update_step = update_step


def _adam(optimizer: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
    """Updates a variable by Adam (Kingma and Ba 2015, the form at the end of section 2)."""
    momentum, velocity = adam_moments(optimizer, variable)
    step = tf.cast(optimizer.iterations.value + 1, tf.float32)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=momentum.value.handle,
        v=velocity.value.handle,
        beta1_power=tf.pow(optimizer.beta_1, step),
        beta2_power=tf.pow(optimizer.beta_2, step),
        lr=tf.cast(learning_rate, tf.float32),
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        epsilon=optimizer.epsilon,
        grad=tf.cast(gradient, tf.float32),
    )


def _sgd(optimizer: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
    """Updates a variable by SGD with classical or Nesterov momentum (Sutskever et al. 2013)."""
    gradient = tf.cast(gradient, tf.float32)
    rate = tf.cast(learning_rate, tf.float32)
    if not optimizer.momentum:
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
        return
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=variable.handle,
        accum=optimizer.momentums[variable_index(optimizer, variable)].value.handle,
        lr=rate,
        grad=gradient,
        momentum=optimizer.momentum,
        use_nesterov=optimizer.nesterov,
    )
