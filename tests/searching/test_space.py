"""Reading what a search varies."""

import pytest

from distcnn.errors import UsageError
from distcnn.searching.space import Choice, Range, read_space


def read(folder, text):
    file = folder / "space.yaml"
    file.write_text(text)
    return read_space(file)


def test_keys_may_be_dotted_or_nested(tmp_path):
    text = """
    optimizer.lr: {low: 0.001, high: 0.1, log: true}
    train: {epochs: {low: 2, high: 8, step: 2}}
    optimizer: {name: [adam, sgd]}
    model.args.dropout: [0.0, 0.2]
    """
    assert read(tmp_path, text) == {
        "optimizer.lr": Range(0.001, 0.1, log=True),
        "train.epochs": Range(2, 8, step=2),
        "optimizer.name": Choice(("adam", "sgd")),
        "model.args.dropout": Choice((0.0, 0.2)),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no keys"),
        ("optimizer.lrr: [1]", "optimizer.lrr is no key that can be varied; did you mean optim"),
        ("out: [a, b]", "out is no key that can be varied"),
        ("optimizer.lr: 0.1", r"optimizer.lr is 0.1; expected a list of values, or \{low: A"),
        ("optimizer.lr: []", "expected a list of values"),
        ("optimizer.lr: {low: 1}", "expected a list of values"),
        ("optimizer.lr: {low: 1, high: 2, base: 3}", "expected a list of values"),
        ("optimizer.lr: {low: 1, high: .inf}", "expected a list of values"),
        ("optimizer.lr: {low: 1, high: 2, log: maybe}", "expected a list of values"),
        ("optimizer.lr: {low: x, high: 2}", "expected a list of values"),
        ("optimizer.lr: {low: 2, high: 1}", "low 2 is greater than high 1"),
        ("optimizer.lr: {low: 0, high: 1, log: true}", "log: true needs it to be positive"),
        ("optimizer.lr: {low: 1, high: 2, log: true, step: 1}", "exclude each other"),
        ("optimizer.lr: {low: 1, high: 2, step: -1}", "step is -1"),
    ],
)
def test_what_is_wrong_is_named(text, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text)


class Asked:
    """Notes what a range asks a trial of Optuna for."""

    def suggest_int(self, name, low, high, *, step, log):
        return ("int", low, high, step, log)

    def suggest_float(self, name, low, high, *, step, log):
        return ("float", low, high, step, log)


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        (Range(2, 8), ("int", 2, 8, 1, False)),
        (Range(2, 8, step=3), ("int", 2, 8, 3, False)),
        (Range(1, 64, log=True), ("int", 1, 64, 1, True)),
        (Range(0, 1, step=0.25), ("float", 0, 1, 0.25, False)),
        (Range(0, 10, step=2.5), ("float", 0, 10, 2.5, False)),
        (Range(0.0, 1), ("float", 0.0, 1, None, False)),
    ],
)
def test_a_range_is_of_whole_numbers_if_bounds_and_step_are(values, asked):
    assert values.suggest(Asked(), "key") == asked
