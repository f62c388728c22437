"""The section `model`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from distcnn.config.sections.bounds import require_import_path


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Classifier."""

    name: str = "article"
    """Built-in model. article: the CIFAR-10 CNN with 2,264,458 parameters. compact: a residual CNN
    with about a million, for short runs. airbench: the wide CNN of CIFAR-10 speed records, with two
    million. resnet9, resnet18, resnet50: residual networks, for images of 32 pixels or larger ones.
    ResNet50, MobileNetV3Small, ...: the network of keras.applications of that name, with a head for
    the classes and what it needs done to the pixels."""
    weights: str = "none"
    """Pretrained weights of a network of keras.applications, without its head. none: random ones.
    imagenet: downloaded once per host. FILE: such a file that you bring."""
    factory: str | None = None
    """Your own model, as package.module:function; replaces model.name. The function is called with
    model.args, and with `input_shape` and `num_classes` if it accepts them; it returns a
    keras.Model."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the model function, as a mapping."""
    whitening: bool = False
    """Set the first convolution to filters that whiten the patches of the training images, and
    freeze it (Jordan 2024); it must have no bias."""
    output: Literal["auto", "probabilities", "logits"] = "auto"
    """What the model outputs. auto: probabilities if the rows of its output for a few images sum to
    1, else logits."""
    labels: Literal["auto", "one_hot", "index"] = "auto"
    """What the loss of a model that you have compiled takes as labels. auto: the index of the class
    for losses whose name begins with sparse, else one-hot rows."""

    def __post_init__(self) -> None:
        """Validates the form of the factory."""
        require_import_path("model.factory", self.factory)
