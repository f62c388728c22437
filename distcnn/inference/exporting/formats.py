"""The formats that a classifier is exported to, by name."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from distcnn.config.recipe import nearest
from distcnn.errors import UsageError
from distcnn.runtime.extras import require_extra

LEAST_AGREEMENT = {"float32": 0.999, "float16": 0.99, "int8": 0.95}
"""The precisions of an export, and the fraction of the images to which it must give the class that
the Keras model gives them."""


@dataclass(frozen=True)
class Format:
    """A file format and the library that runs it.

    Attributes:
        module: The module that has its functions `write`, `load` and `runtime`.
        suffix: End of the file's name; empty for a folder.
        extra: The extra of this package that installs what it needs.
        packages: Modules of the packages that it needs.
        for_int8: Those that int8 needs besides.
        decodes: Whether it can decode image files.
    """

    module: str
    suffix: str = ""
    extra: str = ""
    packages: tuple[str, ...] = ()
    for_int8: tuple[str, ...] = ()
    decodes: bool = False


_ROOM = "distcnn.inference.exporting"

FORMATS: dict[str, Format] = {
    "savedmodel": Format(f"{_ROOM}.savedmodel_format", decodes=True),
    "onnx": Format(f"{_ROOM}.onnx_format", ".onnx", "onnx", ("onnx", "tf2onnx", "onnxruntime")),
    "litert": Format(f"{_ROOM}.litert_format", ".tflite"),
    "openvino": Format(f"{_ROOM}.openvino_format", ".xml", "openvino", ("openvino",), ("nncf",)),
}
"""The formats by name."""


def chosen(flag: str, text: str, known: Collection[str]) -> list[str]:
    """Returns the names of a list with commas, each once.

    Args:
        flag: The flag that the list is given by, for the message.
        text: The list.
        known: The names that it may hold.

    Raises:
        UsageError: If a name is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(
                f"{flag} is {text!r}; expected one or more of {','.join(known)}"
                f"{nearest(name, known)}"
            )
    return names


def require_packages(names: Sequence[str], precisions: Sequence[str], *, bytes_in: bool) -> None:
    """Checks that what the formats need is installed.

    Raises:
        UsageError: If a package is missing, or if a format cannot decode image files.
    """
    for name in names:
        entry = FORMATS[name]
        if bytes_in and not entry.decodes:
            able = ",".join(key for key, each in FORMATS.items() if each.decodes)
            raise UsageError(
                f"--bytes_in with --format {name}: {name} has no operations that decode image "
                f"files; expected --format {able}; run the others without --bytes_in"
            )
        needed = entry.packages + (entry.for_int8 if "int8" in precisions else ())
        require_extra(f"--format {name}", entry.extra, needed)
