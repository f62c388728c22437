"""How fine-tuning counts layers, and what it freezes."""

import keras
import pytest
from keras import layers

from distcnn.config import ModelConfig
from distcnn.models.building import build_model
from distcnn.models.depth import Freezing, layers_by_depth, rate_factors
from tests.tiny import tiny


def names(model: keras.Model) -> list[list[str]]:
    return [[layer.name for layer in group] for group in layers_by_depth(model)]


def test_a_normalisation_counts_with_its_layer_and_a_block_is_one():
    inputs = keras.Input((8, 8, 3))
    x = layers.Normalization(name="constants")(inputs)
    x = layers.Conv2D(4, 3, name="stem")(x)
    x = layers.BatchNormalization(name="stem_norm")(x)
    shortcut = layers.Conv2D(4, 1, name="stage1_block1_shortcut")(x)
    x = layers.Conv2D(4, 3, padding="same", name="stage1_block1_1")(x)
    x = layers.Add()([x, shortcut])
    x = layers.Conv2D(4, 1, name="stage1_block10_1")(x)
    base = keras.Sequential([keras.Input((6, 6, 4)), layers.Dense(4, name="inner")])
    x = layers.Flatten()(base(x))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    first, second, *rest = names(model)
    assert first == ["stem", "stem_norm"]
    assert sorted(second) == ["stage1_block1_1", "stage1_block1_shortcut"]
    assert rest == [["stage1_block10_1"], ["inner"], ["head"]]


@pytest.mark.parametrize(
    ("name", "args", "count"),
    [
        ("MobileNetV2", {"alpha": 0.35}, 20),  # stem, 17 blocks, the last convolution, head
        ("ResNet50", {}, 18),  # stem, 16 blocks, head
        ("resnet18", {}, 10),  # stem, 8 blocks, head
    ],
)
def test_networks_have_their_known_number_of_blocks(name, args, count):
    model = build_model(ModelConfig(name=name, args=args), (32, 32, 3), 5)
    groups = layers_by_depth(model)
    assert len(groups) == count
    assert [type(layer) for layer in groups[-1]] == [layers.Dense]
    learned = {id(v) for group in groups for layer in group for v in layer.trainable_variables}
    assert learned == {id(v) for v in model.trainable_variables}
    factors = rate_factors(model, 0.5)
    assert factors[-1] == 1
    assert factors[0] == 0.5 ** (count - 1)


def test_layers_frozen_at_the_beginning_stay_so_and_the_others_are_released():
    model = tiny((8, 8, 3), 3, norms=2)  # convolution, norm, dense, norm, dense
    convolution, norm, dense, second_norm, head = (layer for layer in model.layers if layer.weights)
    convolution.trainable = False
    freezing = Freezing(model)

    def trained() -> list[bool]:
        return [layer.trainable for layer in (convolution, norm, dense, second_norm, head)]

    freezing.train_last(1)
    assert trained() == [False, False, False, False, True]
    freezing.train_last(2, freeze_batchnorm=True)
    assert trained() == [False, False, True, False, True]
    freezing.train_last(None)
    assert trained() == [False, True, True, True, True]
    freezing.train_last(1)
    freezing.release()
    assert trained() == [False, True, True, True, True]
