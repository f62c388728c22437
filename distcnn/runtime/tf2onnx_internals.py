"""The one place that uses what is not public of tf2onnx, to mend two faults of its version 1.17."""

import functools
import warnings
from typing import Any


@functools.cache
def mend_tf2onnx() -> None:
    """Lets tf2onnx work with NumPy 2, and optimise models that add a number to a convolution."""
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it asks NumPy for `object`
        from keras.src.export.tf2onnx_lib import patch_tf2onnx

        patch_tf2onnx()  # what Keras' own export does
    original = TransposeOptimizer._add_handler

    def add_handler(self: Any, transposition: Any, node: Any) -> Any:
        """Takes a number for what it is, rather than for a bias, which has a dimension."""
        constant = node.inputs[1]
        if constant.is_const() and constant.get_tensor_value(as_list=False).ndim == 0:
            return self._handle_node_having_branches(transposition, node)
        return original(self, transposition, node)

    TransposeOptimizer._add_handler = add_handler
