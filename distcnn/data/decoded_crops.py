"""Parts of images that are already decoded."""

import numpy as np
import tensorflow as tf

from distcnn.data.framing import MIRRORED_BELOW, Frame, Framing, Shape
from distcnn.data.mirroring import mirror
from distcnn.data.resize import resize_image, resize_images


def frame_decoded(images: tf.Tensor, image_shape: Shape, framing: Framing) -> tf.Tensor:
    """Brings images of one size to `image_shape`.

    Args:
        images: uint8 tensor of shape `(batch, height, width, channels)`.
        image_shape: Target `(height, width, channels)`.
        framing: How.

    Returns:
        uint8 tensor of shape `(batch,) + image_shape`.
    """
    size = np.array([images.shape[1:3]], np.int64)
    ((top, left, height, width),) = framing.boxes(size, image_shape, np.zeros((1, 0))).tolist()
    ((rows, columns),) = framing.contents(size, image_shape).tolist()
    part = images[:, top : top + height, left : left + width]
    resized = resize_images(part, (rows, columns, image_shape[2]))
    above, beside = (image_shape[0] - rows) // 2, (image_shape[1] - columns) // 2
    return tf.image.pad_to_bounding_box(resized, above, beside, image_shape[0], image_shape[1])


def crop_decoded(images: tf.Tensor, frame: Frame, draws: tf.Tensor) -> tf.Tensor:
    """Cuts a part of each image and resizes it to the size of the image; works inside a graph.

    Args:
        images: uint8 tensor of shape `(batch, height, width, channels)`.
        frame: Chooses the parts, and which are mirrored.
        draws: Random numbers for `frame`, float32 `(batch, any)`.

    Returns:
        Tensor of the shape and dtype of `images`.
    """
    height, width, channels = images.shape[1:]

    def boxes(draws: np.ndarray) -> np.ndarray:
        sizes = np.full((len(draws), 2), (height, width), np.int64)
        return frame.boxes(sizes, (height, width, channels), draws).astype(np.int32)

    def cut(pair: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, box = pair
        part = tf.slice(image, [box[0], box[1], 0], [box[2], box[3], channels])
        size = (height, width)
        return resize_image(part, size, channels, antialias=frame.antialias, few_pixels=True)

    windows = tf.numpy_function(boxes, [draws], tf.int32, stateful=False)
    windows = tf.ensure_shape(windows, (images.shape[0], 4))
    signature = tf.TensorSpec((height, width, channels), tf.uint8)
    parts = tf.map_fn(cut, (images, windows), fn_output_signature=signature)
    return mirror(parts, draws[:, -1] < MIRRORED_BELOW) if frame.mirrors else parts
