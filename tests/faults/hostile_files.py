"""Files that somebody made to harm whoever opens them."""

import functools
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
from PIL import Image

ESCAPE = "\x1b[31mred\x1b]0;title\x07"


def png(width: int, height: int) -> bytes:
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
    return png(8, 8)[:33] + chunk + struct.pack(">I", zlib.crc32(b"zTXt" + text)) + png(8, 8)[33:]


def _saved(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, kind, **options)
    return buffer.getvalue()


def _wide_gif() -> bytes:
    content = bytearray(_saved("GIF"))
    content[6:10] = b"\xff\xff\xff\xff"
    return bytes(content)


def sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


IMAGES: dict[str, Callable[[Path], Any]] = {
    "a PNG of 60000 x 60000": lambda p: p.write_bytes(png(60_000, 60_000)),
    "a PNG of 2^31 - 1 squared": lambda p: p.write_bytes(png(2**31 - 1, 2**31 - 1)),
    "a PNG of 13000 x 13000 with little data": lambda p: p.write_bytes(png(13_000, 13_000)),
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
    "a sparse file of 10 GB": functools.partial(sparse, size=10**10),
}
"""What writes a hostile image."""


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


class Program:
    """What a pickle runs when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


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
        p, meta=_npy_of("1", "|O", pickle.dumps(Program(), protocol=2))
    ),
    "a pickle": lambda p: p.write_bytes(pickle.dumps(Program())),
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
    "a pickle": lambda p: p.write_bytes(pickle.dumps(Program())),
    "a FIFO": os.mkfifo,
    "a link to /dev/zero": lambda p: p.symlink_to("/dev/zero"),
}
"""What writes a hostile model."""
