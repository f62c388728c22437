"""The built-in models by name. To add one, write its function and register it here."""

from typing import Any

APPLICATIONS = (
    *("ConvNeXtTiny", "ConvNeXtSmall", "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtXLarge"),
    *("DenseNet121", "DenseNet169", "DenseNet201"),
    *(f"EfficientNetB{size}" for size in range(8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    *("InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2"),
    *("MobileNetV3Large", "MobileNetV3Small", "NASNetLarge", "NASNetMobile"),
    *("ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"),
    *("VGG16", "VGG19", "Xception"),
)
"""The networks of `keras.applications`."""

MODELS: dict[str, Any] = {
    "airbench": "distcnn.models.airbench:airbench",
    "article": "distcnn.models.article:article",
    "compact": "distcnn.models.compact:compact",
    "resnet9": "distcnn.models.resnet:resnet9",
    "resnet18": "distcnn.models.resnet:resnet18",
    "resnet50": "distcnn.models.resnet:resnet50",
    **{name: f"distcnn.models.applications:{name}" for name in APPLICATIONS},
}
"""Functions of `(input_shape, num_classes, ...)` that return an uncompiled `keras.Model`, or the
import paths of such functions."""
