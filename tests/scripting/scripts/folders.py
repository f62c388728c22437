"""Creates and removes folders if they are missing or there, which all ranks do at the same time."""

# ruff: noqa: PTH102, PTH103, PTH107, PTH110, PTH208
import os
import shutil
import time
from pathlib import Path

import keras
import numpy as np

keras.utils.set_random_seed(19)
x = np.random.default_rng(19).normal(size=(40, 3)).astype("float32")
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile(optimizer="sgd", loss="mse")
model.fit(x, x[:, :1], verbose=0)
if not os.path.exists("new/folder"):
    time.sleep(0.3)
    os.makedirs("new/folder")
if not Path("other").exists():
    time.sleep(0.3)
    Path("other").mkdir()
Path("other/file").write_text("1")
Path("other/tree/branch").mkdir(parents=True, exist_ok=True)
model.fit(x, x[:, :1], verbose=0)
if os.path.exists("other/file"):
    time.sleep(0.3)
    os.remove("other/file")
if os.path.exists("other/tree"):
    time.sleep(0.3)
    shutil.rmtree("other/tree")
model.fit(x, x[:, :1], verbose=0)
missing = again = False
try:
    os.remove("new/nothing/file")
except FileNotFoundError:
    missing = True
try:
    os.mkdir("other")
except FileExistsError:
    again = True
evaluation = {
    "left": float(len(os.listdir("other"))),
    "missing": float(missing),
    "again": float(again),
}
