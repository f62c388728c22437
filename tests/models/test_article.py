"""The article's network."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from distcnn.models.article import article


def test_article_is_the_published_network():
    model = article((32, 32, 3), 10)
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert (model.count_params(), trainable) == (2_264_458, 2_263_114)
    kinds = [type(layer).__name__ for layer in model.layers]
    convolution = ["Conv2D", "Activation", "Dropout", "BatchNormalization"]
    pooled = ["Conv2D", "Activation", "MaxPooling2D", "Dropout", "BatchNormalization"]
    dense = ["Dense", "Activation", "Dropout", "BatchNormalization"]
    stages = [convolution, pooled, pooled, convolution, ["Flatten", "Dropout"], dense, dense]
    assert kinds == [*itertools.chain(*stages), "Dense", "Activation"]
    norms = [layer.kernel_constraint for layer in model.layers if type(layer) is keras.layers.Dense]
    assert [getattr(norm, "max_value", None) for norm in norms] == [3, 3, None]


def test_the_head_is_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = article((32, 32, 3), 10)
    finally:
        keras.config.set_dtype_policy(before)
    assert model(np.zeros((1, 32, 32, 3), np.float32)).dtype == tf.float32
    assert model.layers[0].compute_dtype == "bfloat16"
    assert {w.dtype for w in model.weights} == {"float32"}
