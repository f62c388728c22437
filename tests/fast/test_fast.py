"""The fast form computes the same as the plain model, on the same variables."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from distcnn.distribute.base import Backend
from distcnn.distribute.layers import decorrelate_seeds
from distcnn.fast import chain as chain_module
from distcnn.fast import fast_model
from distcnn.fast.chain import Chain
from distcnn.fast.operations import keep_mask, normalise_batch
from distcnn.models.article import article
from distcnn.optim.fused_updates import fuse_updates

IMAGES = np.random.default_rng(3).random((32, 12, 12, 3), dtype=np.float32)
LABELS = np.eye(4, dtype=np.float32)[np.arange(32) % 4]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    keras.utils.set_random_seed(5)
    yield
    keras.config.set_dtype_policy("float32")


def smooth(activation: str = "tanh", dropout: float = 0.0) -> keras.Model:
    """The article's order of layers, with a smooth activation."""
    stages: list[Any] = [keras.Input((12, 12, 3))]
    for width, pool in ((8, False), (16, True)):
        stages += [layers.Conv2D(width, 3, padding="same"), layers.Activation(activation)]
        if pool:
            stages.append(layers.MaxPooling2D(2))
        stages += [layers.Dropout(dropout), layers.BatchNormalization(momentum=0.9)]
    stages += [layers.Flatten(), layers.Dropout(dropout)]
    stages += [layers.Dense(12), layers.Activation(activation), layers.Dropout(dropout)]
    stages += [layers.BatchNormalization(momentum=0.9)]
    stages += [layers.Dense(4, dtype="float32"), layers.Activation("softmax", dtype="float32")]
    return keras.Sequential(stages)


def branched() -> keras.Model:
    """Functional model: residual branch, shared layer, activations in layers, unusual padding."""
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="valid", activation="relu", use_bias=False)(inputs)
    shared = layers.Conv2D(8, 3, padding="same", dilation_rate=2, activation="tanh")
    x = layers.BatchNormalization(scale=False)(x)
    y = layers.ReLU()(layers.BatchNormalization(center=False)(shared(shared(x))))
    x = layers.BatchNormalization()(layers.Add()([x, y]))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, use_bias=False)(layers.ReLU(6.0)(x)))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(layers.LeakyReLU()(x))
    x = keras.ops.concatenate([layers.GlobalAveragePooling2D()(x), layers.Flatten()(x)], axis=-1)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def known() -> keras.Model:
    """A well-known network with many branches."""
    net = keras.applications.MobileNetV3Small
    return net((32, 32, 3), weights=None, classes=4, include_preprocessing=False, dropout_rate=0)


def nested() -> keras.Model:
    """A Sequential model inside a functional one, with frozen normalisation."""
    frozen = layers.BatchNormalization()
    frozen.trainable = False
    inner = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(6, 3, kernel_regularizer="l2", bias_regularizer="l1"),
            layers.ReLU(),
            frozen,
            layers.MaxPooling2D(),
        ]
    )
    inputs = keras.Input((12, 12, 3))
    flat = layers.Flatten()(inner(inputs))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(flat))


class Outcome:
    """Results of one training step and one inference pass of a model."""

    def __init__(self, model: keras.Model, computing: keras.Model) -> None:
        before = [variable.numpy() for variable in model.variables]
        images = tf.image.resize(IMAGES, model.input_shape[1:3])

        @tf.function
        def step() -> Any:
            with tf.GradientTape() as tape:
                outputs = computing(images, training=True)
                losses = keras.losses.categorical_crossentropy(LABELS, tf.cast(outputs, tf.float32))
                loss = tf.add_n([tf.reduce_mean(losses), *computing.losses])
            return outputs, loss, tape.gradient(loss, model.trainable_variables)

        self.outputs, self.loss, self.gradients = step()
        self.statistics = [v.numpy() for v in model.non_trainable_variables]
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
        self.inference = computing(images, training=False)

    def distance(self, other: "Outcome") -> dict[str, float]:
        """Returns the largest difference of each kind, relative to the largest value."""
        pairs = {
            "outputs": [(self.outputs, other.outputs)],
            "loss": [(self.loss, other.loss)],
            "gradients": list(zip(self.gradients, other.gradients, strict=True)),
            "statistics": list(zip(self.statistics, other.statistics, strict=True)),
            "inference": [(self.inference, other.inference)],
        }
        return {name: max(difference(a, b) for a, b in both) for name, both in pairs.items()}


def difference(ours: Any, theirs: Any) -> float:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize("build", [smooth, branched, nested])
def test_outputs_gradients_and_statistics_equal_the_plain_models(
    build: Callable[[], keras.Model],
) -> None:
    model = build()
    fast = fast_model(model)
    assert {id(v) for v in fast.variables} == {id(v) for v in model.variables}
    assert {id(v) for v in fast.trainable_variables} == {id(v) for v in model.trainable_variables}
    found = Outcome(model, fast).distance(Outcome(model, model))
    assert max(found.values()) < 2e-5, found


@pytest.mark.parametrize("build", [lambda: article((12, 12, 3), 4, dropout=0.0), known])
def test_the_article_and_a_known_network_agree_too(build: Callable[[], keras.Model]) -> None:
    """Except for the few units at the edge of a relu, where rounding decides."""
    model = build()
    plain, fast = Outcome(model, model), Outcome(model, fast_model(model))
    assert difference(fast.outputs, plain.outputs) < 1e-4
    ours, theirs = (tf.concat([tf.reshape(g, [-1]) for g in o.gradients], 0) for o in (fast, plain))
    assert tf.norm(ours - theirs) < 0.05 * tf.norm(theirs)


def test_in_half_precision_it_is_as_near_to_float32_as_the_plain_model() -> None:
    exact_model = smooth()
    exact = Outcome(exact_model, exact_model)
    for policy in ("mixed_bfloat16", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        model = smooth()
        model.set_weights(exact_model.get_weights())
        plain = Outcome(model, model).distance(exact)
        fast = Outcome(model, fast_model(model)).distance(exact)
        for name, value in fast.items():
            assert value < 1.5 * plain[name] + 2e-3, (policy, name, value, plain[name])


def test_chains_are_as_long_as_they_can_be() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    fast = fast_model(article((32, 32, 3), 10))
    chains = [part for part in fast.parts if isinstance(part, Chain)]
    assert [len(part.chained) for part in chains] == [18, 9, 2]  # Flatten and the float32 head
    kinds = [stage.kind.name for stage in chains[0]._stages[:10]]
    assert kinds[5:9] == ["LINEAR", "MAX_POOL", "BIAS", "RELU"]


def test_unsupported_layers_are_called_unchanged() -> None:
    class Doubling(layers.Dense):
        def call(self, inputs: Any, training: Any = None) -> Any:
            return 2 * super().call(inputs)

    class Own(keras.Model):
        pass

    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, activity_regularizer="l2")(inputs)
    x = Doubling(4)(layers.Flatten()(x))
    norm = layers.BatchNormalization(renorm=True)
    model = keras.Model(inputs, layers.Softmax()(norm(x)))
    fast = fast_model(model)
    assert not [part for part in fast.parts if isinstance(part, Chain)]
    assert max(Outcome(model, fast).distance(Outcome(model, model)).values()) < 1e-6
    subclass = Own(model.inputs, model.outputs)
    assert fast_model(subclass) is subclass


def test_custom_activations_and_dtypes() -> None:
    """An activation that changes the dtype, and layers entirely in half precision."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, activation=lambda x: tf.nn.tanh(tf.cast(x, tf.float32)))(inputs)
    x = layers.Dense(4, dtype="bfloat16")(layers.Conv2D(4, 3)(x))
    x = layers.BatchNormalization(dtype="bfloat16")(x)
    x = layers.Dense(4, dtype="float32")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Softmax(dtype="float32")(x))
    fast = fast_model(model)
    assert [len(part.chained) for part in fast.parts if isinstance(part, Chain)] == [2, 1]
    assert difference(fast(IMAGES), model(IMAGES)) < 0.02
    assert Outcome(model, fast).loss < 10


def test_the_users_model_is_not_modified() -> None:
    model = smooth()
    before = model.to_json()
    fast_model(model)(IMAGES, training=True)
    assert model.to_json() == before
    assert model.layers[0].output is not None  # raises for a layer called twice


class _FixedMask:
    """Replaces the random mask, and records the masks it returned."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.masks: list[np.ndarray] = []

    def __call__(self, _seed: Any, rate: float, like: tf.Tensor) -> tf.Tensor:
        mask = (self.random.random(like.shape) >= rate).astype(np.float32)
        self.masks.append(mask)
        return tf.constant(mask)


class _Masked(layers.Layer):
    """Dropout by its definition, with given masks."""

    def __init__(self, rate: float, masks: Iterator[Any]) -> None:
        super().__init__()
        self.rate, self.masks = rate, masks

    def call(self, inputs: Any, training: bool = False) -> Any:
        return inputs * next(self.masks) / (1 - self.rate) if training else inputs


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_dropout_equals_its_definition(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the following normalisation absorbs its scale."""
    fixed = _FixedMask()
    monkeypatch.setattr(chain_module, "keep_mask", fixed)
    model = smooth(activation, dropout=0.4)
    fast = Outcome(model, fast_model(model))
    masks = iter(fixed.masks)

    def plain(layer: keras.layers.Layer) -> keras.layers.Layer:
        dropout = isinstance(layer, layers.Dropout)
        return _Masked(layer.rate, masks) if dropout else layer.from_config(layer.get_config())

    image = keras.Input((12, 12, 3))
    x = image
    for layer in model.layers:
        x = plain(layer)(x)
    by_definition = keras.Model(image, x)
    by_definition.set_weights([w for w in model.get_weights() if w.dtype == np.float32])
    expected = Outcome(by_definition, by_definition)
    fast.statistics = [s for s in fast.statistics if s.dtype == np.float32]
    found = fast.distance(expected)
    assert max(found.values()) < 2e-5, found


def masks_of(rate: float, draws: int, shape: tuple[int, ...]) -> np.ndarray:
    like = tf.zeros(shape)

    @tf.function
    def draw(number: tf.Tensor) -> tf.Tensor:
        return keep_mask(tf.stack([tf.constant(7, tf.int64), number]), rate, like)

    return np.stack([draw(tf.constant(n, tf.int64)).numpy() for n in range(draws)])


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.2, 0.5, 0.9])
def test_dropout_keeps_the_right_fraction(rate: float) -> None:
    masks = masks_of(rate, 400, (64, 5, 5, 3))  # 4,800 elements; channels not a multiple of 4
    assert set(np.unique(masks)) <= {0.0, 1.0}
    kept = masks.mean(axis=(1, 2, 3, 4))
    assert kept.mean() == pytest.approx(1 - rate, abs=4 * np.sqrt(0.25 / masks.size) + 2e-4)
    # Within 1 / 256 in every draw, apart from the scatter of 4,800 elements.
    assert np.abs(kept - (1 - rate)).max() < 1 / 256 + 5 * np.sqrt(rate * (1 - rate) / 4800)


def test_dropouts_elements_are_independent() -> None:
    masks = masks_of(0.2, 300, (16, 4, 4, 8)).reshape(300, -1)
    count = masks.size
    variance = masks.var()
    assert variance == pytest.approx(0.2 * 0.8, rel=0.01)
    centred = masks - masks.mean()
    for lag in (1, 2, 3, 4, 8, 64, 128, 129):  # within a word, a channel, a row, an image
        product = (centred[:, lag:] * centred[:, :-lag]).mean() / variance
        assert abs(product) < 5 / np.sqrt(count), lag
    between = (centred[1:] * centred[:-1]).mean() / variance
    assert abs(between) < 5 / np.sqrt(count)
    each = masks.mean(axis=0)  # no element is favoured
    assert np.abs(each - 0.8).max() < 5 * np.sqrt(0.16 / 300)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_decisions_from_one_random_word_are_independent(rate: float) -> None:
    words = 2**18
    mask = masks_of(rate, 1, (words, 16)).reshape(4, words, 4)
    lanes = mask.transpose(0, 2, 1).reshape(16, words)  # the decisions of one word form a column
    lanes = (lanes - lanes.mean()) / lanes.std()
    bound = 5.5 / np.sqrt(words)
    pairs = list(itertools.combinations(range(16), 2))
    products = np.stack([lanes[a] * lanes[b] for a, b in pairs])
    assert np.abs(products.mean(axis=1)).max() < bound
    for lane in range(16):
        others = [index for index, pair in enumerate(pairs) if lane not in pair]
        assert np.abs(products[others] @ lanes[lane] / words).max() < bound
    of_four = products @ products.T / words
    for (row, first), (column, second) in itertools.combinations(enumerate(pairs), 2):
        if not set(first) & set(second):
            assert abs(of_four[row, column]) < bound, (first, second)


def test_dropout_preserves_the_mean_and_scales_the_variance() -> None:
    model = keras.Sequential([keras.Input((12, 12, 3)), layers.Dropout(0.25)])
    fast = fast_model(model)
    images = tf.ones((2000, 12, 12, 3))
    outputs = fast(images, training=True).numpy()
    assert outputs.mean() == pytest.approx(1, abs=5e-3)
    assert outputs.var() == pytest.approx(0.25 / 0.75, rel=0.02)
    assert np.array_equal(fast(images, training=False), images)


def test_dropout_is_seeded_and_differs_by_draw_and_by_replica() -> None:
    class Second(Backend):
        rank, size = 1, 2

        def sum(self, values: np.ndarray) -> np.ndarray:
            return values

    def drawn(*, second: bool = False) -> list[np.ndarray]:
        keras.utils.set_random_seed(9)
        model = keras.Sequential([keras.Input((8, 8, 4)), layers.Dropout(0.5)])
        if second:
            decorrelate_seeds(model, Second())
        fast = fast_model(model)
        return [fast(tf.ones((4, 8, 8, 4)), training=True).numpy() for _ in range(2)]

    first, again = drawn()
    assert np.array_equal(first, drawn()[0])
    assert (first != again).mean() == pytest.approx(0.5, abs=0.1)
    assert (first != drawn(second=True)[0]).mean() == pytest.approx(0.5, abs=0.1)


def test_statistics_are_float32_in_half_precision() -> None:
    inputs = tf.cast(tf.random.stateless_normal((64, 8, 8, 4), [1, 2]) + 100.0, tf.bfloat16)
    exact = np.asarray(tf.cast(inputs, tf.float64)).reshape(-1, 4)
    outputs, mean, variance = normalise_batch(inputs, tf.ones(4), tf.zeros(4), 1e-3)
    assert (outputs.dtype, mean.dtype, variance.dtype) == (tf.bfloat16, tf.float32, tf.float32)
    assert np.allclose(mean, exact.mean(0), rtol=1e-5)
    assert np.allclose(variance, exact.var(0), rtol=1e-3)


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {"learning_rate": 0.01, "global_clipnorm": 0.5}),
    ("AdamW", {"learning_rate": 0.01, "weight_decay": 0.1}),
    ("SGD", {"learning_rate": 0.1}),
    ("SGD", {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
]


def test_variables_of_other_types_are_updated_by_keras() -> None:
    optimizer = keras.optimizers.SGD(0.5)
    fuse_updates(optimizer)
    variable = keras.Variable(np.ones(4), dtype="float64")
    optimizer.apply([tf.fill([4], tf.constant(0.2, tf.float64))], [variable])
    assert np.allclose(variable, 0.9)


def apply_sines(optimizer: Any, variables: list[keras.Variable], number: tf.Tensor) -> None:
    gradients = [tf.sin(tf.cast(number, v.dtype) + v.value) for v in variables]
    optimizer.apply(gradients, variables)


@pytest.mark.parametrize(("name", "settings"), OPTIMIZERS)
def test_fused_updates_are_keras_updates(name: str, settings: dict[str, Any]) -> None:
    weights = []
    for fused in (False, True):
        keras.utils.set_random_seed(1)
        constraint = keras.constraints.MaxNorm(0.5)
        variables = [
            keras.Variable(np.random.default_rng(0).normal(size=(7, 5)).astype("float32")),
            keras.Variable(np.ones(3, "float32"), constraint=constraint),
        ]
        optimizer = getattr(keras.optimizers, name)(**settings)
        if fused:
            fuse_updates(optimizer)
        optimizer.build(variables)

        step = tf.function(functools.partial(apply_sines, optimizer, variables))
        for number in range(20):
            step(tf.constant(float(number)))
        weights.append([v.numpy() for v in [*variables, *optimizer.variables]])
    for plain, fused in zip(*weights, strict=True):
        assert np.allclose(plain, fused, rtol=2e-5, atol=1e-6)
