"""Gives commands the files that somebody made to harm them.

    python -m tests.faults.hostile [--case NAME] [--points N] [--seed S] [--folder DIR]

Decompression bombs, FIFOs, endless devices, programs in pickles and models, absurd sizes, names
that a terminal obeys. A command must end with one error, in bounded time and memory, without
running anything; a harmless file beside a hostile one must still be used.
"""

import functools
import io
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from PIL import Image

from distcnn.data.tfrecord_writer import write_records
from distcnn.inference import prediction  # noqa: F401 - imported before the forks
from distcnn.predict import main as predict
from distcnn.runtime.files import file_digest
from distcnn.train import main as train
from distcnn.training.trainer import Trainer
from tests.faults.campaign import Campaign, Case, in_fork, main
from tests.faults.commands import Ended, run, why_no_refusal, why_unprintable
from tests.faults.damage import write_images
from tests.runs import flags, small_config

ESCAPE = "\x1b[31mred\x1b]0;title\x07"


def _png(width: int, height: int) -> bytes:
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _text_bomb() -> bytes:
    """A PNG whose text expands to a gigabyte."""
    text = b"key\0\0" + zlib.compress(bytes(1 << 30), 1)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text
    return _png(8, 8)[:33] + chunk + struct.pack(">I", zlib.crc32(b"zTXt" + text)) + _png(8, 8)[33:]


def _saved(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, kind, **options)
    return buffer.getvalue()


def _wide_gif() -> bytes:
    content = bytearray(_saved("GIF"))
    content[6:10] = b"\xff\xff\xff\xff"
    return bytes(content)


def _sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


IMAGES: dict[str, Callable[[Path], Any]] = {
    "a PNG of 60000 x 60000": lambda p: p.write_bytes(_png(60_000, 60_000)),
    "a PNG of 2^31 - 1 squared": lambda p: p.write_bytes(_png(2**31 - 1, 2**31 - 1)),
    "a PNG of 13000 x 13000 with little data": lambda p: p.write_bytes(_png(13_000, 13_000)),
    "a PNG with a text of 1 GiB, cut": lambda p: p.write_bytes(_text_bomb()[:-40]),
    "a GIF of 65535 x 65535": lambda p: p.write_bytes(_wide_gif()),
    "an EPS": lambda p: p.write_bytes(_saved("EPS")),
    "a FIFO": os.mkfifo,
    "a link to /dev/zero": lambda p: p.symlink_to("/dev/zero"),
    "a link to itself": lambda p: p.symlink_to(p),
    "an empty file": lambda p: p.touch(),
    "an SVG that includes a file": lambda p: p.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    ),
    "a sparse file of 10 GB": functools.partial(_sparse, size=10**10),
}
"""What writes a hostile image."""


def _model(folder: Path) -> Path:
    """Trains a small run in a fork, so that TensorFlow does not start here."""
    config = small_config(folder / "run", train__epochs=1)
    assert in_fork(lambda: bool(Trainer(config).fit()), folder / "trained") == 0
    return folder / "run"


def images(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Classifies a folder with a hostile and a good image."""
    model = _model(campaign.folder)
    for name in campaign.sample(list(IMAGES)):
        folder = campaign.folder / "images"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "good.png").write_bytes(_png(8, 8))
        path = folder / f"bad {ESCAPE.replace('/', '')}.png"
        IMAGES[name](path)
        ended = run(predict, str(model), str(folder), folder=campaign.folder)
        reason = why_no_refusal(ended, "bad ")
        if reason is None:
            ended = run(predict, str(model), str(folder), "--on_error=skip", folder=campaign.folder)
            if ended.code != 0 or "good.png" not in ended.output:
                reason = f"the good image was not classified: {ended.errors[-300:]}"
            reason = reason or why_unprintable(ended)
        yield name, reason


RECIPES: dict[str, Callable[[Path], Any]] = {
    "nested 100,000 deep": lambda p: p.write_text("[" * 100_000),
    "nested 40 deep": lambda p: p.write_text("a: " + "{b: " * 40 + "1" + "}" * 40),
    "a billion laughs": lambda p: p.write_text(
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{n}: &{n} [{', '.join(['*' + p_] * 9)}]\n"
            for p_, n in zip("abcdefgh", "bcdefghi", strict=True)
        )
    ),
    "a Python object": lambda p: p.write_text("a: !!python/object/apply:os.system ['touch owned']"),
    "an absurd integer": lambda p: p.write_text("train: {epochs: " + "9" * 10_000 + "}"),
    "an absurd timestamp": lambda p: p.write_text("train: {epochs: 9999-99-99}"),
    "20 MB": lambda p: p.write_text("a: b\n" * 4_000_000),
    "a key that a terminal obeys": lambda p: p.write_text('"\\e[31mred\\e]0;x\\a": 1'),
    "a FIFO": os.mkfifo,
    "a link to /dev/zero": lambda p: p.symlink_to("/dev/zero"),
    "a folder": lambda p: p.mkdir(),
    "not UTF-8": lambda p: p.write_bytes(b"\xff\xfe" * 50),
    "a merge key": lambda p: p.write_text("a: &x {b: 1}\n<<: *x"),
}
"""What writes a hostile recipe."""


def recipes(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Trains by a hostile recipe."""
    for number, name in enumerate(campaign.sample(list(RECIPES))):
        path = campaign.folder / f"recipe-{number}.yaml"
        RECIPES[name](path)
        os.chdir(campaign.folder)
        ended = run(train, f"--recipe={path}", folder=campaign.folder)
        yield name, why_no_refusal(ended, path.name) or _why_owned(campaign)


class _Program:
    """What a pickle runs when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def _why_owned(campaign: Campaign) -> str | None:
    return "it ran what the file said" if (campaign.folder / "owned").exists() else None


def _npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def _npy(header: str, content: bytes = b"") -> bytes:
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def _npy_of(shape: str, kind: str = "<f4", content: bytes = b"") -> bytes:
    return _npy(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape},), }}", content)


META = _npy_of("2", "|u1", b"{}")

CHECKPOINTS: dict[str, Callable[[Path], Any]] = {
    "a pickled object": lambda p: _npz(
        p, meta=_npy_of("1", "|O", pickle.dumps(_Program(), protocol=2))
    ),
    "a pickle": lambda p: p.write_bytes(pickle.dumps(_Program())),
    "an array of 4 TB": lambda p: _npz(p, meta=META, a=_npy_of(str(10**12))),
    "an array of 2^70 numbers": lambda p: _npz(p, meta=META, a=_npy_of(str(2**70))),
    "a negative shape": lambda p: _npz(p, meta=META, a=_npy_of("-5")),
    "a deep header": lambda p: _npz(p, meta=META, a=_npy("(" * 110)),
    "a member of 4 GiB": lambda p: _npz(p, meta=META, a=_npy_of(str(2**28)) + bytes(2**30)),
    "deep metadata": lambda p: _npz(p, meta=_npy_of("100000", "|u1", b"[" * 100_000)),
    "metadata that is a list": lambda p: _npz(p, meta=_npy_of("2", "|u1", b"[]")),
    "metadata of other types": lambda p: _npz(
        p, meta=_npy_of("34", "|u1", b'{"step": "x", "best_step": [null]}')
    ),
    "no arrays": lambda p: _npz(p, meta=_npy_of("17", "|u1", b'{"best_step": -1}')),
    "a FIFO": os.mkfifo,
    "a link to /dev/zero": lambda p: p.symlink_to("/dev/zero"),
}
"""What writes a hostile checkpoint."""


def checkpoints(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Starts from a hostile checkpoint with a correct checksum."""
    for number, name in enumerate(campaign.sample([*CHECKPOINTS, "a checksum from /dev/zero"])):
        path = campaign.folder / f"step-{number:08d}.npz"
        checksum = path.with_name(f"{path.name}.sha256")
        if name in CHECKPOINTS:
            CHECKPOINTS[name](path)
            digest = file_digest(path) if path.is_file() else "0" * 64
            checksum.write_text(f"{digest}  {path.name}\n")
        else:
            path.touch()
            checksum.symlink_to("/dev/zero")
        os.chdir(campaign.folder)
        out = campaign.folder / f"run-{number}"
        config = small_config(out, checkpoint__resume=str(path))
        ended = run(train, *flags(config), folder=campaign.folder)
        yield name, why_no_refusal(ended, path.name) or _why_owned(campaign)


def _keras_file(path: Path, model: dict[str, Any] | str, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        text = model if isinstance(model, str) else json.dumps(model)
        archive.writestr("config.json", text)
        archive.writestr("metadata.json", json.dumps({"keras_version": keras.__version__}))
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_h5", ".h5"), content)


def _object(module: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": None}


def _sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    image = _object("keras.layers", "InputLayer", {"batch_shape": [None, 8, 8, 3], "name": "i"})
    flat = _object("keras.layers", "Flatten", {"name": "f"})
    return _object("keras", "Sequential", {"name": "s", "layers": [image, flat, *layers]})


def _hdf5(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.create_dataset("0", shape, "f4", chunks=(1,) * len(shape))
        group.create_dataset("1", (4,), "f4")
    return buffer.getvalue()


def _dense(units: int = 4, **others: Any) -> dict[str, Any]:
    return _object("keras.layers", "Dense", {"name": "d", "units": units, **others})


LAMBDA = {
    "class_name": "__lambda__",
    "config": {"code": "4wEAAAAAAAAAAAAAAAEAAAABAAAAQwAAAHMEAAAAZAFTACkC", "defaults": None},
}

MODELS: dict[str, Callable[[Path], Any]] = {
    "a lambda": lambda p: _keras_file(
        p, _sequential(_object("keras.layers", "Lambda", {"name": "l", "function": LAMBDA}))
    ),
    "os.system as a layer": lambda p: _keras_file(
        p, _sequential(_object("os", "system", {"command": "touch owned"}))
    ),
    "subprocess as an activation": lambda p: _keras_file(
        p,
        _sequential(
            _dense(activation=_object("subprocess", "check_output", {"args": ["touch", "owned"]}))
        ),
    ),
    "weights of 4 TB": lambda p: _keras_file(
        p, _sequential(_dense()), model__weights_h5=_hdf5((10**6, 10**6))
    ),
    "a layer of 2^40 units": lambda p: _keras_file(p, _sequential(_dense(2**40))),
    "members outside": lambda p: _keras_file(
        p, _sequential(_dense()), **{"../../owned": b"x", "..__owned": b"x", "/tmp/owned": b"x"}
    ),
    "a member of 4 GiB": lambda p: _keras_file(
        p, _sequential(_dense()), **{"model.weights.h5": bytes(1 << 30)}
    ),
    "a deep configuration": lambda p: _keras_file(p, "[" * 100_000),
    "a list": lambda p: _keras_file(p, "[]"),
    "deep metadata": lambda p: _keras_file(
        p, _sequential(_dense()), **{"distcnn.json": b"[" * 100_000}
    ),
    "a name that a terminal obeys": lambda p: _keras_file(
        p, _sequential(_object("keras.layers", ESCAPE, {}))
    ),
    "a pickle": lambda p: p.write_bytes(pickle.dumps(_Program())),
    "a FIFO": os.mkfifo,
    "a link to /dev/zero": lambda p: p.symlink_to("/dev/zero"),
}
"""What writes a hostile model."""


def models(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Classifies an image by a hostile model."""
    (campaign.folder / "good.png").write_bytes(_png(8, 8))
    for number, name in enumerate(campaign.sample(list(MODELS))):
        path = campaign.folder / f"model-{number}.keras"
        MODELS[name](path)
        os.chdir(campaign.folder)
        ended = run(predict, str(path), "good.png", folder=campaign.folder)
        yield name, why_no_refusal(ended, path.name) or _why_owned(campaign)


def _begin(folder: Path) -> None:
    """Writes record shards, and CIFAR batches."""
    from distcnn.config import DataConfig
    from distcnn.data.folder import open_folder

    images = write_images(folder / "images")
    write_records(open_folder(DataConfig(name="folder", dir=str(images))), folder / "records", 1)


DATA: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "an index that is a FIFO": ("tfrecord", "index.json", os.mkfifo),
    "an index from /dev/zero": ("tfrecord", "index.json", lambda p: p.symlink_to("/dev/zero")),
    "a deep index": ("tfrecord", "index.json", lambda p: p.write_text("[" * 10**6)),
    "a shard that is a FIFO": ("tfrecord", "test-00000-of-00001.tfrecord", os.mkfifo),
    "a shard from /dev/zero": (
        "tfrecord",
        "test-00000-of-00001.tfrecord",
        lambda p: p.symlink_to("/dev/zero"),
    ),
    "offsets that are a FIFO": ("tfrecord", "train.index.npz", os.mkfifo),
    "a batch with a program": (
        "cifar10",
        "data_batch_3",
        lambda p: p.write_bytes(pickle.dumps(_Program(), protocol=2)),
    ),
    "a batch that is a FIFO": ("cifar10", "data_batch_3", os.mkfifo),
    "a batch from /dev/zero": ("cifar10", "data_batch_3", lambda p: p.symlink_to("/dev/zero")),
    "a sparse batch of 1 TB": (
        "cifar10",
        "data_batch_3",
        functools.partial(_sparse, size=10**12),
    ),
    "an archive from /dev/zero": (
        "archive",
        "cifar-10-python.tar.gz",
        lambda p: p.symlink_to("/dev/zero"),
    ),
    "a class that a terminal obeys": (
        "folder",
        f"train/{ESCAPE}",
        lambda p: p.mkdir(),
    ),
    "an image that is a FIFO": ("folder", "train/cat/x.png", os.mkfifo),
    "a folder that contains itself": ("folder", "train/cat/x", lambda p: p.symlink_to(p.parent)),
}
"""The data set, the file that is replaced, and what writes a hostile one."""


def data(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Trains on hostile images."""
    assert in_fork(lambda: _begin(campaign.folder), campaign.folder / "begun") == 0
    batch = {b"data": np.zeros((10_000, 3072), np.uint8), b"labels": [0] * 10_000}
    batches = campaign.folder / "batches" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (batches / name).write_bytes(pickle.dumps(batch, protocol=2))
    archive = campaign.folder / "archive"
    archive.mkdir()
    places = {
        "tfrecord": campaign.folder / "records",
        "cifar10": batches,
        "archive": archive,
        "folder": campaign.folder / "images",
    }
    os.chdir(campaign.folder)
    for number, name in enumerate(campaign.sample(list(DATA))):
        kind, file, write = DATA[name]
        path = places[kind] / file
        kept = campaign.folder / "kept"
        if path.exists():
            path.rename(kept)
        write(path)
        out = campaign.folder / f"run-{number}"
        data_name = "cifar10" if kind == "archive" else kind
        overrides = {"data__name": data_name, "data__dir": str(places[kind])}
        config = small_config(out, **overrides, data__augment__crop=0)
        ended = run(train, *flags(config), folder=campaign.folder)
        yield name, why_no_refusal(ended) or _why_owned(campaign)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if kept.exists():
            kept.rename(path)


RUN_FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "config.yaml is a FIFO": ("config.yaml", os.mkfifo),
    "environment.json is a FIFO": ("environment.json", os.mkfifo),
    "environment.json is deep": ("environment.json", lambda p: p.write_text("[" * 10**6)),
    "metrics.jsonl is a FIFO": ("metrics.jsonl", os.mkfifo),
    "metrics.jsonl is a folder": ("metrics.jsonl", lambda p: p.mkdir()),
    "checkpoints is a file": ("checkpoints", lambda p: p.touch()),
    ".lock is a folder": (".lock", lambda p: p.mkdir()),
    "summary.json is a FIFO": ("summary.json", os.mkfifo),
    "model.keras is a folder": ("model.keras", lambda p: p.mkdir()),
}
"""The file of an unfinished run that is replaced, and what writes a hostile one."""


def run_directory(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Continues a run in whose directory a file was replaced."""
    begun = campaign.folder / "begun"

    def command(out: Path) -> Ended:
        return run(train, *flags(small_config(out)), folder=campaign.folder)

    assert command(begun).code == 0
    for name in ("summary.json", "model.keras"):
        (begun / name).unlink()
    for number, name in enumerate(campaign.sample(list(RUN_FILES))):
        out = campaign.folder / f"run-{number}"
        # The configuration names its run directory, which may differ.
        shutil.copytree(begun, out)
        path = out / RUN_FILES[name][0]
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        RUN_FILES[name][1](path)
        yield name, why_no_refusal(command(out), out.name)


CASES: dict[str, Case] = {
    "images": images,
    "recipes": recipes,
    "checkpoints": checkpoints,
    "models": models,
    "data": data,
    "run_directory": run_directory,
}

if __name__ == "__main__":
    sys.exit(main(__doc__, CASES))
