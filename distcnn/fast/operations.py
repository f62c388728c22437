"""Operations of the fast path: pure tensor functions, each equal to Keras' plain form.

They make as few passes over large tensors as possible; on a CPU, those passes cost the most after
the convolutions.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import tensorflow as tf

_LEVELS = 256

_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)
"""Odd numbers with irregular bit patterns."""


def keep_mask(seed: tf.Tensor, rate: float, like: tf.Tensor) -> tf.Tensor:
    """Draws a dropout mask from 8 random bits per element.

    The fraction kept is a multiple of 1 / 256, drawn in each call from the two nearest to
    `1 - rate`, so that its mean is exact.

    Args:
        seed: Integer tensor of shape `(2,)`.
        rate: Fraction to drop, in (0, 1).
        like: Tensor with the shape and dtype of the mask.

    Returns:
        Tensor of ones (kept) and zeros (dropped).
    """
    size = tf.size(like)
    per_word = 4 * len(_MULTIPLIERS)
    # The first word chooses between the two fractions; each of the others covers 16 elements.
    words = tf.random.stateless_uniform(
        [(size + per_word - 1) // per_word + 1], seed, None, None, tf.uint32
    )
    fraction = tf.cast(_shifted(words[0], 8), tf.float32) * 2.0**-24
    kept_levels = tf.cast(tf.floor(_LEVELS * (1 - rate) + fraction), tf.int32)
    draws = tf.reshape(tf.bitcast(_spread(words[1:]), tf.uint8), [-1])
    if (like.shape[1:].num_elements() or 1) % per_word:
        draws = draws[:size]
    # Compared with kept_levels - 1, because 256 is not a uint8; at least 1 in 256 is always kept.
    most = tf.cast(tf.maximum(kept_levels - 1, 0), tf.uint8)
    return tf.cast(tf.reshape(draws, tf.shape(like)) <= most, like.dtype)


def _spread(words: tf.Tensor) -> tf.Tensor:
    """Expands each word to four, by multiplicative hashing (Knuth, volume 3, section 6.4).

    Drawing random words is the most expensive part of dropout. 16 decisions carry at most 16 bits
    of information, half a word, so one word is enough for them if its bits are spread well. The low
    bits of a product depend only on the low bits of the word, so higher bits are mixed in, with a
    shift that is not a multiple of a byte.

    Args:
        words: uint32 tensor of shape `(count,)`.

    Returns:
        uint32 tensor of shape `(4, count)`.
    """
    products = words * tf.constant(_MULTIPLIERS, tf.uint32)[:, None]
    return tf.bitwise.bitwise_xor(products, _shifted(products, 13))


def _shifted(words: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(words, tf.constant(bits, tf.uint32))


def convolve_depthwise(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int],
) -> tf.Tensor:
    """Convolves each channel with filters of its own.

    The gradient of the inputs is a convolution by the mirrored kernel, of the upstream gradient
    with zeros between and around its pixels. That is faster than TensorFlow's gradient, several
    times so for strides above 1. The gradient of a kernel is computed up to three columns at a
    time, since oneDNN's is four to nine times slower for a kernel of more columns.

    Args:
        inputs: Tensor of shape `(batch, height, width, channels)`.
        kernel: Tensor of shape `(rows, columns, channels, multiplier)`.
        strides: Equal steps down and to the right.
        padding: "SAME" or "VALID".
        dilation: Distance of the kernel's rows and columns; 1 if the strides are not.

    Returns:
        Tensor of shape `(batch, new_height, new_width, channels * multiplier)`.
    """
    steps = [1, *strides, 1]
    sizes = inputs.shape[1:3]
    if set(dilation) != {1} or kernel.shape[3] != 1 or None in sizes:
        return tf.nn.depthwise_conv2d(inputs, kernel, steps, padding, dilations=dilation)
    pairs = list(zip(sizes, kernel.shape[:2], strict=True))
    first = [k - 1 - _padded_before(size, k, strides[0], padding) for size, k in pairs]
    full = [size + k - 1 for size, k in pairs]
    symmetric = strides[0] == 1 and all(
        2 * at == k - 1 for at, (_, k) in zip(first, pairs, strict=True)
    )

    @tf.custom_gradient
    def convolved(x: tf.Tensor, weights: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            mirrored = tf.reverse(weights, [0, 1])
            if symmetric:
                to_inputs = tf.nn.depthwise_conv2d(upstream, mirrored, steps, "SAME")
            else:
                spread = _between_zeros(upstream, first, full, strides[0])
                to_inputs = tf.nn.depthwise_conv2d(spread, mirrored, [1, 1, 1, 1], "VALID")
            to_weights = _kernel_gradient(x, upstream, weights.shape, strides[0], padding)
            return tf.ensure_shape(to_inputs, x.shape), to_weights

        return tf.nn.depthwise_conv2d(x, weights, steps, padding), gradient

    return convolved(inputs, kernel)


_MOST_COLUMNS = 3


def _kernel_gradient(
    inputs: tf.Tensor, upstream: tf.Tensor, shape: tf.TensorShape, stride: int, padding: str
) -> tf.Tensor:
    """Returns the gradient of a depthwise kernel, of `shape`."""
    rows, columns, channels, _ = shape

    def gradient(part: tf.Tensor, width: int, padding: str) -> tf.Tensor:
        return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=part,
            filter_sizes=[rows, width, channels, 1],
            out_backprop=upstream,
            strides=[1, stride, stride, 1],
            padding=padding,
        )

    if columns <= _MOST_COLUMNS:
        return gradient(inputs, columns, padding)
    around = []
    for new, size, pixels in zip(
        upstream.shape[1:3], (rows, columns), inputs.shape[1:3], strict=True
    ):
        before = _padded_before(pixels, size, stride, padding)
        around.append([before, max(0, (new - 1) * stride + size - pixels - before)])
    padded = tf.pad(inputs, [[0, 0], *around, [0, 0]])
    used = (upstream.shape[2] - 1) * stride
    firsts = range(0, columns, _MOST_COLUMNS)
    widths = [min(_MOST_COLUMNS, columns - first) for first in firsts]
    parts = [
        gradient(padded[:, :, first : first + used + width], width, "VALID")
        for first, width in zip(firsts, widths, strict=True)
    ]
    return tf.concat(parts, axis=1)


def _between_zeros(
    images: tf.Tensor, first: Sequence[int], size: Sequence[int], stride: int
) -> tf.Tensor:
    """Returns images with zeros between their pixels and around them.

    Padding with rank 2 is fast, so zeros are added behind each pixel, around each row, behind each
    row, and around each image.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`.
        first: Row and column of the first pixel among the zeros.
        size: Rows and columns of the result.
        stride: Distance between two pixels.
    """
    height, width, channels = images.shape[1:]
    row = size[1] * channels
    x = _padded(tf.reshape(images, [-1, channels]), 0, stride * channels)
    x = _padded(tf.reshape(x, [-1, width * stride * channels]), first[1] * channels, row)
    x = _padded(x, 0, stride * row)
    x = _padded(tf.reshape(x, [-1, height * stride * row]), first[0] * row, size[0] * row)
    return tf.reshape(x, [-1, *size, channels])


def _padded(rows: tf.Tensor, before: int, size: int) -> tf.Tensor:
    """Pads or cuts each row of a matrix to a size, with zeros before it."""
    behind = size - before - rows.shape[1]
    if not before and not behind:
        return rows
    return tf.pad(
        rows[:, : size - before] if behind < 0 else rows, [[0, 0], [before, max(0, behind)]]
    )


def _padded_before(pixels: int, size: int, stride: int, padding: str) -> int:
    """Returns how many zeros a convolution adds above, or on the left."""
    if padding == "VALID":
        return 0
    return max((-(-pixels // stride) - 1) * stride + size - pixels, 0) // 2


@tf.custom_gradient
def masked_relu(inputs: tf.Tensor, mask: tf.Tensor) -> Any:
    """Returns `relu(inputs) * mask` for a mask of ones and zeros.

    The gradient needs only the outputs, which are positive exactly where the input is positive and
    the mask is one. Neither the inputs nor the mask are kept in memory.
    """
    outputs = tf.nn.relu(inputs) * mask
    outputs = tf.ensure_shape(outputs, inputs.shape)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.raw_ops.ReluGrad(gradients=upstream, features=outputs), None

    return outputs, gradient


def normalise_batch(
    inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalises a batch in training, in one operation (Ioffe and Szegedy 2015, algorithm 1).

    Args:
        inputs: Tensor of rank 2 or 4, channels last; float16, bfloat16 or float32.
        gamma: float32 scale of shape `(channels,)`.
        beta: float32 offset of shape `(channels,)`.
        epsilon: Added to the variance.

    Returns:
        Outputs with the dtype of the inputs; mean and population variance, always float32, of shape
        `(channels,)`.
    """
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=_as_images(inputs),
        scale=gamma,
        offset=beta,
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=epsilon,
        is_training=True,
    )
    # The operation divides by count - 1, but Keras' moving variance is the population variance.
    count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
    population = variance * (tf.maximum(count - 1, 1) / count)
    return tf.reshape(outputs, tf.shape(inputs)), mean, population


def normalise_across(
    inputs: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    epsilon: float,
    origin: tf.Tensor,
    replicas: "Replicas",
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalises a batch in training over the images of all replicas.

    The replicas sum their statistics and all normalise by the result; the backward pass sums the
    gradients in the same way. The statistics are taken relative to an origin that all replicas
    share, which limits cancellation where the variance is small compared with the mean.

    Args:
        inputs: See `normalise_batch`.
        gamma: See `normalise_batch`.
        beta: See `normalise_batch`.
        epsilon: Added to the variance.
        origin: float32 tensor of shape `(channels,)`, close to the mean, equal on all replicas.
        replicas: Sums tensors over the replicas.

    Returns:
        The same as `normalise_batch`, with the statistics of all replicas.
    """
    counts = replicas.counts
    size = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32) * counts
    _, own_mean, own_variance = normalise_batch(inputs, gamma, beta, epsilon)
    shift = own_mean - origin
    first, second = size * shift, size * (own_variance + tf.square(shift))
    channels = inputs.shape[-1]
    total = replicas.add_up(tf.concat([first, second, tf.reshape(size, [1])], 0))
    first, second, images = tf.split(tf.stop_gradient(total), [channels, channels, 1])
    mean = first / images
    variance = tf.maximum(second / images - tf.square(mean), 0.0)
    mean += origin

    @tf.custom_gradient
    def normalised(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> Any:
        outputs = normalise_by(x, scale, offset, mean, variance, epsilon)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            direct, to_scale, to_offset, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=_as_images(upstream),
                x=_as_images(x),
                scale=scale,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=tf.zeros([0]),
                epsilon=epsilon,
                is_training=False,
            )
            both = replicas.add_up(tf.concat([to_scale, to_offset], 0))
            all_scale, all_offset = tf.split(both, 2)
            # The gradient through mean and variance: the derivative of the paper's algorithm 1.
            factor = -scale * tf.math.rsqrt(variance + epsilon) / images * counts
            by_statistics = normalise_by(
                x, factor * all_scale, factor * all_offset, mean, variance, epsilon
            )
            return tf.reshape(direct, tf.shape(x)) + by_statistics, to_scale, to_offset

        return outputs, gradient

    return normalised(inputs, gamma, beta), mean, variance


class Replicas(Protocol):
    """Communication between the replicas, as needed to normalise over all of them."""

    @property
    def counts(self) -> tf.Tensor:
        """1.0 if this replica's images count, 0.0 if they only fill an empty shard."""

    def add_up(self, sums: tf.Tensor) -> tf.Tensor:
        """Returns the sum of a tensor over all replicas."""


def normalise_by(
    inputs: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
) -> tf.Tensor:
    """Normalises a batch by given statistics, in one operation.

    Args:
        inputs: See `normalise_batch`.
        gamma: float32 scale of shape `(channels,)`.
        beta: float32 offset of shape `(channels,)`.
        mean: float32 mean of shape `(channels,)`.
        variance: float32 variance of shape `(channels,)`.
        epsilon: Added to the variance.

    Returns:
        Outputs with the dtype of the inputs.
    """
    outputs = tf.raw_ops.FusedBatchNormV3(
        x=_as_images(inputs),
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=False,
    )[0]
    return tf.reshape(outputs, tf.shape(inputs))


def _as_images(inputs: tf.Tensor) -> tf.Tensor:
    return inputs if inputs.shape.rank == 4 else inputs[:, None, None, :]
