"""The networks of `keras.applications`, with a new head, and what they need done to the pixels.

`ResNet50` and so on are attributes of this module: functions of `(input_shape, num_classes)`. Every
network takes pixels of the range that distcnn finds out by itself (`data.pixels auto`); those that
were trained on BGR pixels less ImageNet's mean (Caffe), or on normalised ones (PyTorch), get that
as layers of their own, so that it is saved with the model.
"""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from distcnn.errors import DistcnnError, UsageError
from distcnn.models.catalog import APPLICATIONS
from distcnn.runtime.files import locked

_CAFFE = re.compile(r"ResNet\d+|VGG\d+")
_TORCH = re.compile(r"DenseNet\d+")

_MEAN_BGR = (103.939, 116.779, 123.68)
_MEAN_RGB = (0.485, 0.456, 0.406)
_DEVIATION_RGB = (0.229, 0.224, 0.225)


def __getattr__(name: str) -> Callable[..., keras.Model]:
    if name not in APPLICATIONS:
        raise AttributeError(name)
    return functools.partial(build_application, name)


def build_application(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    weights: str | None = None,
    dropout: float = 0.2,
    classifier_activation: str = "softmax",
    **arguments: Any,
) -> keras.Model:
    """Builds a network of `keras.applications` with a head of its own.

    Args:
        name: Its name there.
        input_shape: `(height, width, channels)`; a grey image is given to the network three times.
        num_classes: Number of classes.
        weights: Those of the network without its head: "imagenet", or a file of them as Keras
            downloads it; None to start with random ones.
        dropout: Dropout before the last layer.
        classifier_activation: Activation of the outputs.
        **arguments: Further arguments of the network.

    Returns:
        A functional model with a float32 output of shape `(batch, num_classes)`.

    Raises:
        UsageError: If the network does not take such images, or the arguments.
        DistcnnError: If the weights cannot be had, or belong to another network.
    """
    height, width, channels = input_shape
    network = _network(name, (height, width, 3), weights, arguments)
    inputs = keras.Input(input_shape)
    x = keras.layers.Concatenate()([inputs] * 3) if channels == 1 else inputs
    if _CAFFE.fullmatch(name):
        offset = [-mean for mean in _MEAN_BGR]
        x = keras.layers.Rescaling(1.0, offset=offset, dtype="float32")(x[..., ::-1])
    elif _TORCH.fullmatch(name):
        pairs = list(zip(_MEAN_RGB, _DEVIATION_RGB, strict=True))
        scale = [1 / (255 * deviation) for _, deviation in pairs]
        offset = [-mean / deviation for mean, deviation in pairs]
        x = keras.layers.Rescaling(scale, offset=offset, dtype="float32")(x)
    x = keras.layers.Dropout(dropout)(network(x))
    last = keras.layers.Dense(
        num_classes,
        activation=classifier_activation,
        dtype="float32",
        # As `distcnn.models.initial.take_weights` does.
        kernel_initializer="glorot_uniform" if weights is None else "zeros",
    )
    return keras.Model(inputs, last(x), name=name.lower())


def _network(
    name: str, shape: tuple[int, int, int], weights: str | None, arguments: dict[str, Any]
) -> keras.Model:
    own = {"include_top": False, "input_shape": shape, "pooling": "avg"}
    make = functools.partial(getattr(keras.applications, name), **own, **arguments)
    try:
        if weights == "imagenet":
            return _downloaded(name, make)
        network = make(weights=None)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"model.name is {name}, which cannot be built for images of {shape[0]} x {shape[1]}: "
            f"{reason}; see --data.image_size and --model.args"
        ) from None
    if weights is not None:
        _load(name, network, Path(weights))
    return network


def _downloaded(name: str, make: Callable[..., keras.Model]) -> keras.Model:
    """Builds the network with weights that one process of a host downloads; Keras verifies them."""
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".distcnn-download"):
        try:
            return make(weights="imagenet")
        except Exception as error:  # Keras raises this very class when a download fails
            address = re.search(r"URL fetch failure on (\S+?):? ", f"{error} ")
            if address is None:
                raise
            file = address[1].rpartition("/")[2]
            raise DistcnnError(
                f"the weights of {name} cannot be downloaded from {address[1]}; bring the file "
                f"{file} and put it into {folder}, or give it as --model.weights FILE"
            ) from None


def _load(name: str, network: keras.Model, file: Path) -> None:
    if not file.is_file():
        raise UsageError(
            f"model.weights is {file}, which does not exist; expected none, imagenet or a file of "
            f"the weights of {name} without its head, such as Keras downloads"
        )
    try:
        network.load_weights(str(file))
    except Exception as error:  # of any kind, as the file may be anything
        reason = " ".join(str(error).split())[:200]
        raise DistcnnError(
            f"model.weights is {file}, which does not hold the weights of {name} without its head: "
            f"{reason}"
        ) from None
