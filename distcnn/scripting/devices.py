"""Settings of devices, with which many scripts begin: the run has already chosen its devices."""

import logging
from typing import Any

from distcnn.runtime.keras_hooks import DEVICE_SETTINGS, FunctionMaker, Hooks

log = logging.getLogger("distcnn")

INSTEAD = {
    "set_memory_growth": "set TF_FORCE_GPU_ALLOW_GROWTH=true instead",
    "set_visible_devices": "set CUDA_VISIBLE_DEVICES instead",
    "set_intra_op_parallelism_threads": "give --precision.threads instead",
    "set_inter_op_parallelism_threads": "set TF_NUM_INTEROP_THREADS instead",
}
"""What has the same effect as a function that comes too late."""


def install_device_hooks(hooks: Hooks) -> None:
    """Makes settings that come after TensorFlow has started a warning instead of an error."""
    for point in DEVICE_SETTINGS:
        hooks.replace(point, _tolerated(point.name))


def _tolerated(name: str) -> FunctionMaker:
    def make(original: Any) -> Any:
        def setting(*arguments: Any, **keywords: Any) -> Any:
            try:
                return original(*arguments, **keywords)
            except RuntimeError as error:
                if "cannot be modified after" not in str(error):
                    raise
                instead = INSTEAD.get(name, "remove it from the script")
                log.warning(
                    "%s has no effect, since the run has chosen its devices; %s", name, instead
                )
            return None

        return setting

    return make
