"""The convolutions and products that a training step cannot do without."""

import keras
import pytest

from distcnn.benchmarking.floor import operations_of
from distcnn.models.article import article


def test_the_article_has_its_convolutions_and_products():
    operations = operations_of(article((32, 32, 3), 10), 4)
    kinds = [one.kind for one in operations]
    assert kinds.count("Conv2D") == kinds.count("Conv2DBackpropFilter") == 4
    assert kinds.count("Conv2DBackpropInput") == 3  # the images need no gradient
    assert kinds.count("MatMul") == 9
    assert len(kinds) == 20
    forward = [one.flops for one in operations if one.kind == "Conv2D"]
    sizes = ((3, 32, 32), (32, 64, 32), (64, 64, 16), (64, 128, 8))
    assert forward == [2 * 4 * side**2 * 9 * a * b for a, b, side in sizes]
    products = sum(one.flops for one in operations if one.kind == "MatMul")
    assert products == 3 * 2 * 4 * (8192 * 256 + 256 * 128 + 128 * 10)
    for one in operations:
        assert one.create()().dtype == "float32"


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_have_the_precision_and_the_attributes_of_the_layers(stride):
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(6, 3, strides=stride, padding="same", dtype="mixed_bfloat16")(inputs)
    x = keras.layers.DepthwiseConv2D(3, dtype="mixed_bfloat16")(x)
    outputs = keras.layers.Dense(3, dtype="float32")(keras.layers.Flatten()(x))
    operations = operations_of(keras.Model(inputs, outputs), 2)
    by_kind = {one.kind: one for one in operations}
    assert set(by_kind) == {
        *("Conv2D", "Conv2DBackpropFilter", "MatMul", "DepthwiseConv2dNative"),
        *("DepthwiseConv2dNativeBackpropInput", "DepthwiseConv2dNativeBackpropFilter"),
    }
    assert by_kind["Conv2D"].create()().shape == (2, 8 // stride, 8 // stride, 6)
    assert by_kind["Conv2D"].create()().dtype == "bfloat16"
    assert by_kind["Conv2DBackpropFilter"].create()().shape == (3, 3, 4, 6)
    side = 8 // stride - 2
    assert by_kind["DepthwiseConv2dNative"].flops == 2 * 2 * side**2 * 9 * 6
    assert by_kind["DepthwiseConv2dNativeBackpropInput"].flops == 2 * 2 * side**2 * 9 * 6
    assert by_kind["MatMul"].create()().dtype == "float32"
