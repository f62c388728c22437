"""The EXIF orientation of a JPEG file, read by operations of TensorFlow alone."""

from typing import Any

import tensorflow as tf

_HEADER_BYTES = 1 << 18  # an APP1 segment has at most 65,535 bytes
_MOST_SEGMENTS = 64
_MOST_ENTRIES = 512
_APP1, _SCAN, _END = 0xE1, 0xDA, 0xD9
_EXIF = b"Exif\0\0"
_TAG, _SHORT = 0x0112, 3


def jpeg_orientation(contents: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a JPEG file; works inside a graph.

    Args:
        contents: string tensor of shape `()`, the bytes of the file.

    Returns:
        int32 scalar from 1 to 8; 1 if there is none.
    """
    header = tf.strings.substr(contents, 0, _HEADER_BYTES)
    # Zeros make up for what a damaged file ends within.
    numbers = tf.cast(tf.io.decode_raw(header, tf.uint8), tf.int32)
    numbers = tf.concat([numbers, tf.zeros([32], tf.int32)], 0)
    start = _find_exif(header, numbers, tf.strings.length(header))
    return tf.cond(start > 0, lambda: _orientation_at(numbers, start), lambda: tf.constant(1))


def _find_exif(header: tf.Tensor, numbers: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns where the TIFF header of the first EXIF segment begins, or 0."""

    def goes_on(position: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        marker = numbers[position + 1]
        ends = (numbers[position] == 0xFF) & ((marker == _SCAN) | (marker == _END))
        return (position + 4 <= size) & ~ends & (found == 0)

    def step(position: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        marker = numbers[position + 1]
        length = numbers[position + 2] * 256 + numbers[position + 3]
        is_exif = (marker == _APP1) & (tf.strings.substr(header, position + 4, len(_EXIF)) == _EXIF)
        found = tf.where(is_exif, position + 4 + len(_EXIF), found)
        alone = (marker == 0x01) | ((marker >= 0xD0) & (marker <= 0xD8))
        # Bytes between segments are skipped one by one, as libjpeg does.
        between = (numbers[position] != 0xFF) | (marker == 0xFF)
        ahead = tf.where(between, 1, tf.where(alone, 2, 2 + tf.maximum(length, 2)))
        found = tf.where(between | alone, 0, found)
        return tf.minimum(position + ahead, size), found

    _, found = tf.while_loop(
        goes_on, step, (tf.constant(2), tf.constant(0)), maximum_iterations=_MOST_SEGMENTS
    )
    return found


def _orientation_at(numbers: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the first directory of a TIFF header, or 1."""
    little = numbers[start] == ord("I")
    last = tf.size(numbers) - 13

    def number(position: tf.Tensor, width: int) -> tf.Tensor:
        part = numbers[position : position + width]
        part = tf.where(little, tf.reverse(part, [0]), part)
        value = part[0]
        for index in range(1, width):
            value = value * 256 + part[index]
        return value

    directory = start + tf.clip_by_value(number(start + 4, 4), 0, last - start)
    entries = tf.minimum(number(directory, 2), _MOST_ENTRIES)

    def goes_on(index: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
        return (index < entries) & (found == 0) & (directory + 14 + 12 * index <= last)

    def step(index: tf.Tensor, found: tf.Tensor) -> tuple[Any, Any]:
        entry = directory + 2 + 12 * index
        is_tag = number(entry, 2) == _TAG
        value = number(entry + 8, 2)
        valid = (number(entry + 2, 2) == _SHORT) & (value >= 1) & (value <= 8)
        return index + 1, tf.where(is_tag, tf.where(valid, value, 1), found)

    _, found = tf.while_loop(goes_on, step, (tf.constant(0), tf.constant(0)))
    return tf.maximum(found, 1)
