"""What the loss of a model that its owner has compiled takes as labels."""

from typing import Any

import keras
import pytest

from distcnn.config import AugmentConfig, Config, DataConfig, ModelConfig
from distcnn.errors import UsageError
from distcnn.models.compiled import is_compiled_by_owner, label_format


def compiled(loss: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile("sgd", loss)
    return model


class SparseOwn(keras.losses.Loss):
    """A user's own loss that takes indices."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)


def own_loss(labels: Any, outputs: Any) -> Any:
    return keras.ops.mean(keras.ops.square(labels - outputs), axis=-1)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("sparse_categorical_crossentropy", "index"),
        (keras.losses.sparse_categorical_crossentropy, "index"),
        (keras.losses.SparseCategoricalCrossentropy(), "index"),
        (SparseOwn(), "index"),
        ("mse", "one_hot"),
        (own_loss, "one_hot"),
        (keras.losses.CategoricalFocalCrossentropy(), "one_hot"),
        (None, "one_hot"),
    ],
)
def test_the_name_of_the_loss_says_what_it_takes(loss, expected):
    assert label_format(compiled(loss), Config()) == expected


def test_the_configuration_overrides_the_name():
    config = Config(model=ModelConfig(labels="index"))
    assert label_format(compiled(own_loss), config) == "index"


@pytest.mark.parametrize("key", ["mixup", "cutmix", "label_smoothing"])
def test_mixed_labels_have_no_index(key):
    mixing: dict[str, Any] = {key: 0.2}
    config = Config(data=DataConfig(augment=AugmentConfig(**mixing)))
    assert label_format(compiled("mse"), config) == "one_hot"
    with pytest.raises(UsageError, match=f"data.augment.{key} mixes the labels"):
        label_format(compiled("sparse_categorical_crossentropy"), config)


def test_a_model_that_was_not_compiled_has_no_owner_s_loss():
    assert not is_compiled_by_owner(keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]))
    assert is_compiled_by_owner(compiled("mse"))
