"""Models from factories: what is accepted, and what is refused before anything is written."""

import pytest

from distcnn.errors import DistcnnError
from distcnn.training.trainer import Trainer
from tests.runs import small_config


def test_a_factory_may_choose_its_own_input_and_return_logits(tmp_path):
    trainer = Trainer(
        small_config(
            tmp_path / "run",
            data__name="digits",
            data__augment__flip=False,
            data__augment__crop=0,
            model__factory="tests.tiny:fixed_input",
            optimizer__lr=0.01,
            train__epochs=6,
        )
    )
    assert trainer.setup.dataset.train.image_shape == (8, 8, 1)
    assert trainer.setup.interface.logits
    summary = trainer.fit()
    assert summary is not None
    assert summary["test_accuracy"] > 0.8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__factory": "tests.tiny:tinny"}, "did you mean tiny?"),
        ({"model__factory": "tests.none:tiny"}, "there is no module 'tests.none'"),
        ({"model__factory": "tests.tiny:not_a_model"}, "returned a str; expected a keras.Model"),
        ({"model__factory": "tests.tiny:wrong_width"}, "expected (None, 10)"),
        ({"model__factory": "tests.tiny:Subclassed"}, "return it as keras.Model(inputs, model"),
        ({"model__factory": "tests.tiny:named_output"}, "returns a dictionary with digit;"),
        ({"model__factory": "tests.tiny:preprocessed"}, "of KerasHub with a preprocessor, which"),
        ({"model__factory": "tests.tiny:unsaved"}, "a model that Keras cannot save"),
        ({"logging__profile": "3,99", "logging__tensorboard": True}, "the run has 14 steps"),
        ({"model__args": {"drop": 1}}, "did you mean dropout?"),
        ({"train__callbacks": ["tests.tiny:Sen"]}, "did you mean Seen?"),
        ({"train__batch_size": 4000}, "larger than the 207 training images"),
    ],
)
def test_bad_models_and_sizes_leave_nothing_behind(tmp_path, overrides, message):
    with pytest.raises(DistcnnError) as error:
        Trainer(small_config(tmp_path / "run", **overrides)).fit()
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_model_that_keras_will_not_load_is_announced(tmp_path, caplog):
    Trainer(small_config(tmp_path / "run", model__factory="tests.tiny:with_lambda"))
    assert "refuses to load" in caplog.text
