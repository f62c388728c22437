import subprocess
import sys

import keras
import numpy as np
import pytest

PLAIN_KERAS = """
import sys
sys.modules["distcnn"] = None  # importing it now fails
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
data = np.load("images.npz")
np.savez("results.npz", outputs=model.predict(data["images"], verbose=0),
         scores=model.evaluate(data["images"], data["labels"], verbose=0))
before = model.get_weights()
model.fit(data["images"], data["labels"], verbose=0)
assert any((a != b).any() for a, b in zip(before, model.get_weights()))
assert not [name for name in sys.modules if name.startswith("distcnn.")]
"""


def test_plain_keras_loads_evaluates_and_trains_the_model(finished):
    """In a process that cannot import distcnn."""
    images, digits = finished.images()
    labels = keras.utils.to_categorical(digits, 10)
    np.savez("images.npz", images=images, labels=labels)
    command = [sys.executable, "-c", PLAIN_KERAS, str(finished.file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = np.load("results.npz")
    model = finished.model()
    np.testing.assert_allclose(results["outputs"], model.predict(images, verbose=0), atol=1e-6)
    scores = model.evaluate(images, labels, verbose=0)
    assert results["scores"].tolist() == pytest.approx(scores, rel=1e-5)
