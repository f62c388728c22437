"""Plans what to decode of each image of a batch, from the first bytes of the files."""

import functools
from collections.abc import Iterable
from dataclasses import astuple

import numpy as np
import tensorflow as tf

from distcnn.data.framing import MIRRORED_BELOW, Frame, Shape
from distcnn.data.image_header import jpeg_orientation, read_header
from distcnn.data.resize import FEW_PIXELS

MAX_PIXELS = 178_956_970
"""Pixels of the largest image that is decoded: Pillow's own limit, here for every format."""

RATIOS = (1, 2, 4, 8)
"""The fractions, 1 / ratio, at which a JPEG file can be decoded."""

HEADER_WIDTH = 4
"""Numbers of a header, those of `ImageHeader`."""

# Columns of a plan.
METHOD, WINDOW, ORIENTATION, CONTENT, SIZE = 0, slice(1, 5), 5, slice(6, 8), slice(8, 10)
PLAN_WIDTH = 10
"""Numbers of a plan: 0 to decode the whole file, or 1 + the position of the ratio in `RATIOS`; the
window of the decoded pixels (top, left, height, width); the EXIF orientation; the size to which the
window is resized; and the size of the whole image. Windows and sizes are those of stored pixels,
before they are turned upright. An image that is to be mirrored has another orientation instead."""

FIRST_TRANSPOSED = 5
"""The least EXIF orientation that exchanges height and width."""

MIRRORED = 2
"""The EXIF orientation of what is mirrored horizontally; 1 is upright."""

_COLUMNS_REVERSED, _ROWS_REVERSED = (2, 3, 6, 7), (3, 4, 7, 8)

_ONCE_MORE_MIRRORED = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7])
"""The EXIF orientation of what is mirrored after it was turned upright, by its orientation."""


def read_headers(contents: tf.Tensor) -> tf.Tensor:
    """Reads the headers of files; works inside a graph.

    Args:
        contents: string tensor of shape `(batch,)`, the bytes of the files.

    Returns:
        int32 tensor of shape `(batch, HEADER_WIDTH)`.
    """
    headers = tf.numpy_function(headers_of, [contents], tf.int32, stateful=False)
    return tf.ensure_shape(headers, (contents.shape[0], HEADER_WIDTH))


def headers_of(contents: Iterable[bytes]) -> np.ndarray:
    """Returns the headers of files, int32 `(n, HEADER_WIDTH)`."""
    headers = [astuple(read_header(file)) for file in contents]
    return np.array(headers, np.int32).reshape(-1, HEADER_WIDTH)


def plan_batch(
    headers: tf.Tensor, frame: Frame, image_shape: Shape, draws: tf.Tensor | None = None
) -> tf.Tensor:
    """Plans a batch; works inside a graph.

    Args:
        headers: What `read_headers` returned, int32 `(batch, HEADER_WIDTH)`.
        frame: Chooses the part of each image.
        image_shape: `(height, width, channels)` of the model's input.
        draws: Random numbers for `frame`, float32 `(batch, any)`.

    Returns:
        int32 tensor of shape `(batch, PLAN_WIDTH)`.
    """
    if draws is None:
        draws = tf.zeros([tf.shape(headers)[0], 0])
    planned = functools.partial(_plan, frame=frame, image_shape=image_shape)
    plan = tf.numpy_function(planned, [headers, draws], tf.int32, stateful=False)
    return tf.ensure_shape(plan, (headers.shape[0], PLAN_WIDTH))


def is_plain_crop(plan: tf.Tensor, image_shape: Shape) -> tf.Tensor:
    """Returns which images need only be cut, resized and perhaps mirrored, bool `(batch,)`.

    They are JPEG files, decoded at full size, stored upright, and windows of few pixels.

    Args:
        plan: What `plan_batch` returned for a frame that neither pads nor filters.
        image_shape: `(height, width, channels)` of the model's input.
    """
    few = (
        tf.reduce_prod(plan[:, WINDOW][:, 2:], axis=1)
        <= FEW_PIXELS * image_shape[0] * image_shape[1]
    )
    return few & (plan[:, METHOD] == 1) & (plan[:, ORIENTATION] <= MIRRORED)


def orientations(contents: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientations of JPEG files, int32 `(batch,)`; works inside a graph."""

    def find(contents: np.ndarray) -> np.ndarray:
        return np.array([jpeg_orientation(file) for file in contents], np.int32)

    found = tf.numpy_function(find, [contents], tf.int32, stateful=False)
    return tf.ensure_shape(found, contents.shape)


def _plan(headers: np.ndarray, draws: np.ndarray, frame: Frame, image_shape: Shape) -> np.ndarray:
    is_jpeg, height, width, orientation = headers.astype(np.int64).T
    known = np.stack([height, width], axis=1)
    stored = np.maximum(known, 1)
    transposed = orientation[:, np.newaxis] >= FIRST_TRANSPOSED
    upright = np.where(transposed, stored[:, ::-1], stored)
    boxes = frame.boxes(upright, image_shape, draws)
    content = frame.contents(upright, image_shape)
    boxes = _to_stored(boxes, upright, orientation)
    content = np.where(transposed, content[:, ::-1], content)
    # Too large an image is decoded by what refuses it.
    by_window = (is_jpeg == 1) & (known.prod(axis=1) <= MAX_PIXELS)
    step = np.where(by_window, _reduction(boxes, content), 0) if frame.reduced else by_window * 0
    ratio = np.array(RATIOS)[step]
    plan = np.empty((len(headers), PLAN_WIDTH), np.int32)
    plan[:, METHOD] = np.where(by_window, 1 + step, 0)
    plan[:, WINDOW] = _reduced(boxes, stored, ratio[:, np.newaxis])
    plan[:, ORIENTATION] = orientation
    if frame.mirrors:
        mirrored = draws[:, -1] < MIRRORED_BELOW
        plan[mirrored, ORIENTATION] = _ONCE_MORE_MIRRORED[orientation[mirrored]]
    plan[:, CONTENT] = content
    plan[:, SIZE] = known
    return plan


def _to_stored(boxes: np.ndarray, upright: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Returns the boxes in stored pixels, given those in the upright image."""
    corner, sides = boxes[:, :2].copy(), boxes[:, 2:]
    for axis, turned in ((0, _ROWS_REVERSED), (1, _COLUMNS_REVERSED)):
        opposite = upright[:, axis] - corner[:, axis] - sides[:, axis]
        corner[:, axis] = np.where(np.isin(orientation, turned), opposite, corner[:, axis])
    transposed = orientation[:, np.newaxis] >= FIRST_TRANSPOSED
    corner = np.where(transposed, corner[:, ::-1], corner)
    sides = np.where(transposed, sides[:, ::-1], sides)
    return np.concatenate([corner, sides], axis=1)


def _reduction(boxes: np.ndarray, content: np.ndarray) -> np.ndarray:
    """Returns the position in `RATIOS` of the smallest size that need not be enlarged."""
    factor = (boxes[:, 2:] // content).min(axis=1)
    return np.searchsorted(RATIOS, np.maximum(factor, 1), side="right") - 1


def _reduced(boxes: np.ndarray, size: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Returns the boxes in the pixels of an image that is decoded at 1 / ratio."""
    limits = -(-size // ratio)
    corner = np.minimum(np.rint(boxes[:, :2] / ratio).astype(np.int64), limits - 1)
    sides = np.maximum(np.rint(boxes[:, 2:] / ratio).astype(np.int64), 1)
    return np.concatenate([corner, np.minimum(sides, limits - corner)], axis=1)


def turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns an image as its EXIF orientation asks for.

    Args:
        image: Tensor of shape `(height, width, channels)`.
        orientation: int32 scalar, from 1 to 8.
    """

    def turned() -> tf.Tensor:
        upright = tf.cond(
            orientation >= FIRST_TRANSPOSED, lambda: _transposed(image), lambda: image
        )
        for axis, values in ((0, _ROWS_REVERSED), (1, _COLUMNS_REVERSED)):
            is_turned = tf.reduce_any(orientation == tf.constant(values))
            upright = _reversed_if(is_turned, upright, axis)
        return upright

    return tf.cond(orientation == 1, lambda: image, turned)


def _transposed(image: tf.Tensor) -> tf.Tensor:
    # By indices: of tf.transpose, TensorFlow says in every run that oneDNN lacks uint8.
    height, width, channels = tf.unstack(tf.shape(image))
    pixels = tf.range(width)[:, tf.newaxis] + tf.range(height) * width
    return tf.gather(tf.reshape(image, [-1, channels]), pixels)


def _reversed_if(condition: tf.Tensor, image: tf.Tensor, axis: int) -> tf.Tensor:
    return tf.cond(condition, lambda: tf.reverse(image, [axis]), lambda: image)
