"""Python runs this at the start of every process that the tests start, to import Keras faster.

Keras imports scikit-learn for its wrappers and Matplotlib to plot images. distcnn uses neither of
these features, and importing both takes a third of the processor time of `import tensorflow`. Any
other module imports them as usual, so that only processes that need neither save the time. Garbage
collection waits until the import ends, since it finds nothing.
"""

import gc
import sys

LAST_OF_KERAS = "keras.src.wrappers"
"""What Keras imports last."""


class FasterKeras:
    """Finds no module itself, but hides two packages from Keras."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == "tensorflow":
            gc.disable()
        elif name == LAST_OF_KERAS:
            gc.enable()
        elif name in ("sklearn", "matplotlib") and _importer().startswith("keras.src."):
            raise ModuleNotFoundError(f"{name} is hidden from Keras in the tests", name=name)


def _importer() -> str:
    """Returns the name of the module whose import statement is being executed."""
    frame = sys._getframe(2)
    while frame.f_back is not None and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))


sys.meta_path.insert(0, FasterKeras())
