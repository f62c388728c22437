"""The models that have an equivalent in PyTorch, in plain PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

KERAS_EPSILON = 1e-3
"""What Keras' BatchNormalization adds to the variance by default; PyTorch's default is 1e-5."""


class Article(nn.Module):
    """The article's network; see `distcnn.models.article`.

    Attributes:
        limited: The dense layers whose kernels have a maximum norm of 3 for each unit.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int, dropout: float) -> None:
        super().__init__()
        height, width, channels = image_shape
        stages: list[nn.Module] = []
        for filters, pool in ((32, False), (64, True), (64, True), (128, False)):
            stages += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
            stages += [nn.MaxPool2d(2)] if pool else []
            stages += [nn.Dropout(dropout), _norm(nn.BatchNorm2d, filters)]
            channels = filters
        self.convolutions = nn.Sequential(*stages)
        features = channels * (height // 4) * (width // 4)
        stages = [nn.Flatten(), nn.Dropout(dropout)]
        for units in (256, 128):
            stages += [nn.Linear(features, units), nn.ReLU(inplace=True), nn.Dropout(dropout)]
            stages.append(_norm(nn.BatchNorm1d, units))
            features = units
        self.dense = nn.Sequential(*stages)
        self.limited = [layer for layer in self.dense if isinstance(layer, nn.Linear)]
        self.head = nn.Linear(features, classes)

    def forward(self, images: Any) -> Any:
        """Returns float32 logits of shape `(batch, classes)` of images in NCHW."""
        return _in_float32(self.head, self.dense(self.convolutions(images)))


class Compact(nn.Module):
    """The small residual network; see `distcnn.models.compact`."""

    limited = ()

    def __init__(self, image_shape: tuple[int, int, int], classes: int, dropout: float) -> None:
        super().__init__()
        widths = (32, 64, 128, 256)
        stages: list[nn.Module] = [
            nn.Conv2d(image_shape[2], widths[0], 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            _norm(nn.BatchNorm2d, widths[0], momentum=0.1),
            nn.ReLU(inplace=True),
        ]
        for stage in range(1, len(widths)):
            stages += [nn.MaxPool2d(2)] if stage > 1 else []
            stages.append(self._convolved(widths[stage - 1], widths[stage]))
        self.body = nn.Sequential(*stages)
        self.last = self._convolved(widths[-1], widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    @staticmethod
    def _convolved(channels: int, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            _norm(nn.BatchNorm2d, width, momentum=0.1),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Any) -> Any:
        """Returns float32 logits of shape `(batch, classes)` of images in NCHW."""
        x = self.body(images)
        return _in_float32(self.head, (x + self.last(x)).amax((2, 3)))


class _Bottleneck(nn.Module):
    """Three convolutions with a shortcut; the first one has the stride, as in Keras."""

    def __init__(self, channels: int, width: int, stride: int, *, projected: bool) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_convolved(channels, width, 1, stride),
            nn.ReLU(inplace=True),
            *_convolved(width, width, 3),
            nn.ReLU(inplace=True),
            *_convolved(width, 4 * width, 1),
        )
        shortcut = _convolved(channels, 4 * width, 1, stride) if projected else [nn.Identity()]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Any) -> Any:
        return functional.relu(self.branch(x) + self.shortcut(x), inplace=True)


class ResNet50(nn.Module):
    """The ResNet-50 of `keras.applications`: convolutions with bias, strides in the first one."""

    limited = ()

    def __init__(self, image_shape: tuple[int, int, int], classes: int, dropout: float) -> None:
        super().__init__()
        stages: list[nn.Module] = [
            *_convolved(image_shape[2], 64, 7, 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        ]
        channels = 64
        for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for block in range(blocks):
                stages.append(
                    _Bottleneck(channels, width, 1 if block else stride, projected=not block)
                )
                channels = 4 * width
        self.body = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Any) -> Any:
        """Returns float32 logits of shape `(batch, classes)` of images in NCHW."""
        return self.head(self.body(images).mean((2, 3))).float()


MODELS: dict[str, Callable[[tuple[int, int, int], int, float], Any]] = {
    "article": Article,
    "compact": Compact,
    "resnet50": ResNet50,
}
"""The models by the name of their Keras equivalent: from image shape (height, width, channels),
number of classes and rate of dropout."""


def _norm(kind: Callable[..., Any], channels: int, momentum: float = 0.01) -> Any:
    return kind(channels, eps=KERAS_EPSILON, momentum=momentum)


def _convolved(channels: int, width: int, size: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, size, stride, padding=size // 2)
    return [convolution, nn.BatchNorm2d(width, eps=1.001e-5, momentum=0.01)]


def _in_float32(layer: Any, features: Any) -> Any:
    with torch.autocast(features.device.type, enabled=False):
        return layer(features.float())
