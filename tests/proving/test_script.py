"""The proof of scripts that are, and are not, in lockstep."""

import pytest

from distcnn.doctor import main
from distcnn.errors import DistcnnError, UsageError

SCRIPT = """
import keras, numpy as np, sys
keras.config.set_dtype_policy("mixed_bfloat16")
rng = np.random.default_rng(0)
x, y = rng.normal(size=(40, 4)), np.ones((40, 1))
layers = [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.5)]
if "normalise" in sys.argv:
    layers.append(keras.layers.BatchNormalization())
loss = "mse"
if "--couple" in sys.argv:
    loss = lambda y_true, y_pred: keras.ops.square(keras.ops.sum(y_pred - y_true))
model = keras.Sequential([*layers, keras.layers.Dense(1, dtype="float32")])
model.compile("adam", loss)
model.fit(x, y, batch_size=9, epochs=100)
raise SystemExit("the script goes no further than its first fit")
"""


@pytest.mark.parametrize(
    ("arguments", "code", "verdict"),
    [
        ([], 0, "ok      lockstep                    5 steps in float64 on 1 and on 2 workers"),
        (["normalise"], 0, "since batch normalisation uses each worker's own rows"),
        (["--couple"], 1, "mixes the rows of a batch or sums over them"),
    ],
)
def test_the_verdict(arguments, code, verdict, tmp_path, capsys):
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    assert main(["--json", "found.json", "--lockstep", "2", str(script), *arguments]) == code
    assert verdict in capsys.readouterr().out


def test_wrong_use_is_refused(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("x = 1")
    for given in (["2"], ["1", str(script)], ["two", str(script)], ["2", "missing.py"]):
        with pytest.raises(UsageError):
            main(["--lockstep", *given])
    with pytest.raises(DistcnnError, match="it ended without calling fit"):
        main(["--lockstep", "2", str(script)])
