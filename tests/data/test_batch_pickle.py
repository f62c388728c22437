"""Pickles of CIFAR batches: what Python 2 and 3 write is read, everything else refused cheaply."""

import collections
import os
import pickle
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from distcnn.data.batch_pickle import read_batch_pickle
from distcnn.data.cifar_batches import read_python_batch

NAMES = [f"some_image_s_{number:06d}.png".encode() for number in range(1200)]


def sample(count=4):
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (count, 3072), dtype=np.uint8)
    return data, random.integers(0, 100, count).tolist()


class Python2:
    """Writes as cPickle of Python 2 does in protocol 2: byte strings, batches of 1000, a memo."""

    def __init__(self):
        self.puts = 0

    def put(self):
        self.puts += 1
        index = self.puts
        return b"q" + bytes([index]) if index < 256 else b"r" + index.to_bytes(4, "little")

    def string(self, text):
        if len(text) < 256:
            return b"U" + bytes([len(text)]) + text + self.put()
        return b"T" + len(text).to_bytes(4, "little") + text + self.put()

    def integer(self, value):
        return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")

    def sequence(self, values, write):
        content = b"]" + self.put()
        for start in range(0, len(values), 1000):
            content += b"(" + b"".join(map(write, values[start : start + 1000])) + b"e"
        return content

    def array(self, data):
        content = b"cnumpy.core.multiarray\n_reconstruct\n" + self.put()
        content += b"cnumpy\nndarray\n" + self.put() + b"K\x00\x85" + self.put()
        content += self.string(b"b") + b"\x87" + self.put() + b"R" + self.put() + b"(K\x01"
        content += b"".join(map(self.integer, data.shape)) + b"\x86" + self.put()
        content += b"cnumpy\ndtype\n" + self.put() + self.string(b"u1") + b"K\x00K\x01\x87"
        content += self.put() + b"R" + self.put() + b"(K\x03" + self.string(b"|")
        content += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + self.put() + b"b\x89"
        return content + self.string(data.tobytes()) + b"t" + self.put() + b"b"

    def batch(self, label_keys, data, labels):
        content = b"\x80\x02}" + self.put() + b"(" + self.string(b"batch_label")
        content += self.string(b"training batch 1 of 5")
        for key in label_keys:
            content += self.string(key) + self.sequence(labels, self.integer)
        content += self.string(b"data") + self.array(data)
        return content + self.string(b"filenames") + self.sequence(NAMES, self.string) + b"u."


def check(content, label_bytes, data, labels):
    images, read_labels = read_python_batch(content, label_bytes)
    np.testing.assert_array_equal(images.transpose(0, 3, 1, 2).reshape(data.shape), data)
    assert read_labels.tolist() == labels
    assert read_labels.dtype == np.int64


@pytest.mark.parametrize(
    ("label_bytes", "keys"), [(1, [b"labels"]), (2, [b"fine_labels", b"coarse_labels"])]
)
@pytest.mark.parametrize("count", [4, 1100])
def test_reads_the_official_layouts(label_bytes, keys, count):
    data, labels = sample(count)
    content = Python2().batch(keys, data, labels)
    # NumPy itself agrees that this is the pickle of such a batch.
    batch = pickle.loads(
        content.replace(b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"),
        encoding="bytes",
    )
    assert batch[b"filenames"] == NAMES
    np.testing.assert_array_equal(batch[b"data"], data)
    check(content, label_bytes, data, labels)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("text_keys", [False, True])
@pytest.mark.parametrize("numpy_1", [False, True])
@pytest.mark.parametrize("change", [np.array, np.asfortranarray])
def test_reads_what_python_3_writes(protocol, text_keys, numpy_1, change):
    data, labels = sample(1100)
    batch: dict[Any, Any] = {
        b"batch_label": b"x",
        b"labels": labels,
        b"data": change(data),
        b"filenames": NAMES,
    }
    if text_keys:
        names = [name.decode() for name in NAMES]
        batch = {key.decode(): value for key, value in batch.items()} | {"filenames": names}
    content = pickle.dumps(batch, protocol=protocol)
    if numpy_1:  # with the lengths of the names and the frame, which are not checked
        content = content.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
        content = content.replace(b"\x13numpy._core.numeric", b"\x12numpy.core.numeric")
        content = content.replace(b"cnumpy._core.", b"cnumpy.core.")
        assert b"numpy.core." in content
    check(content, 1, data, labels)


def test_reads_shared_and_large_numbers():
    assert read_batch_pickle(pickle.dumps({b"a": [-1, 70_000, 2**40, -(2**63)]}, 2)) == {
        b"a": [-1, 70_000, 2**40, -(2**63)]
    }
    names = ["x"]
    shared = read_batch_pickle(pickle.dumps({"a": names, "b": names}, 4))
    assert shared[b"a"] is shared[b"b"]


def array(
    dtype=b"u1", state=b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", shape=None
):
    """A batch with hostile parts and 16 bytes of pixels."""
    return (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01" + (shape or b"K\x01K\x10\x86") + b"cnumpy\ndtype\nU"
        + bytes([len(dtype)]) + dtype + b"K\x00K\x01\x87R" + state + b"b\x89U\x10"
        + b"A" * 16 + b"tbs."
    )  # fmt: skip


OBJECT_STATE = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft"
HUGE = b"J\xff\xff\xff\x7f"

HOSTILE = {
    "object type": (array(b"O8"), r"has the type O8; expected u1"),
    "object flags": (array(state=OBJECT_STATE), "type with fields, flags or a byte order"),
    "fields": (
        array(state=OBJECT_STATE.replace(b"|NNN", b"|NU\x01aU\x01b")),
        "type with fields, flags",
    ),
    "state of no tuple": (array(state=b"K\x03"), "damaged at byte"),
    "huge shape": (array(shape=HUGE + HUGE + b"\x86"), r"outside 0 to 153600000"),
    "large product": (array(shape=b"J\x00\x00\x10\x00M\xff\xff\x86"), r"more than 153600000 bytes"),
    "negative shape": (array(shape=b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"), "outside 0 to"),
    "other count": (array(shape=b"K\x01K\x11\x86"), r"is \(1, 17\), but has 16 bytes"),
    "shape of text": (array(shape=b"U\x01aU\x01b\x86"), "outside 0 to"),
    "no shape": (array(shape=b"N"), "no valid shape"),
    "system": (b"\x80\x02cos\nsystem\nU\x04true\x85R.", r"refers to os\.system, which no batch"),
    "builtins": (pickle.dumps({b"data": bytearray}, 4), r"refers to builtins\.bytearray"),
    "ordered": (pickle.dumps(collections.OrderedDict(), 2), r"collections\.OrderedDict"),
    "call of ndarray": (b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.", "calls numpy.ndarray"),
    "objects": (pickle.dumps({b"data": np.array([None])}, 2), "type O8; expected u1"),
    "int64": (pickle.dumps({b"data": np.arange(3)}, 4), "type i8; expected u1"),
    "long string": (b"\x80\x02}T\xff\xff\xff\x7f.", "ends too early: 2147483647 bytes"),
    "negative string": (b"\x80\x02}T\xff\xff\xff\xff.", "ends too early: 4294967295 bytes"),
    "huge bytes": (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "ends too early"),
    "huge bytearray": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x00.", "ends too early"),
    "huge integer": (b"\x80\x02\x8b\xff\xff\xff\x7f.", "the instruction LONG4"),
    "wide integer": (b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".", "a number of 255 bytes"),
    "deep lists": (b"\x80\x02" + b"]" * 900_000 + b".", "more than 64 lists and dictionaries"),
    "nested lists": (b"\x80\x02" + b"]" * 40 + b"a" * 39 + b".", "appends list to a list"),
    "deep tuples": (b"\x80\x02)" + b"\x85" * 900_000 + b".", "nested too deeply"),
    "deep marks": (b"\x80\x02" + b"(" * 900_000 + b".", "nested too deeply"),
    "many objects": (b"\x80\x02(" + b")" * 900_000 + b"t.", "more than 100000 entries in a row"),
    "many numbers": (b"\x80\x02(" + b"K\x01" * 900_000 + b"t.", "more than 100000 entries"),
    "no end": (b"\x80\x02]" + b"Na" * 900_000, "appends NoneType to a list"),
    "long program": (b"\x80\x02]" + b"K\x00a" * 900_000, "more than"),
    "memo bomb": (
        b"\x80\x02U\x01a\x85q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(50)) + b".",
        "nested too deeply",
    ),
    "large memo": (b"\x80\x04N" + b"\x94" * 900_000, "refers to more than 300000 objects"),
    "missing memo": (b"\x80\x02j\xff\xff\xff\xff.", "damaged at byte"),
    "encoded again": (
        b"\x80\x02(c_codecs\nencode\nq\x00X\x00\x00\x01\x00" + b"a" * 65536
        + b"q\x01X\x06\x00\x00\x00latin1q\x020" + b"h\x00h\x01h\x02\x86R" * 90_000,
        "the instruction POP",
    ),
    "other encoding": (b"\x80\x02c_codecs\nencode\nU\x01aU\x03zip\x86R.", "else than Latin-1"),
    "list as key": (b"\x80\x02}]]s.", "a list as a key"),
    "odd entries": (b"\x80\x02}(U\x01au.", "sets entries of a dict"),
    "no dictionary": (b"\x80\x02K\x01.", "holds a int; expected a dictionary"),
    "too much": (b"\x80\x02}}.", "expected a dictionary"),
    "beyond a mark": (b"\x80\x02}(s.", "damaged at byte"),
    "protocol 0": (pickle.dumps({b"data": [1]}, 0), "protocol 2 to 5"),
    "protocol 1": (pickle.dumps({b"data": [1]}, 1), "protocol 2 to 5"),
    "protocol 9": (b"\x80\x09}.", "protocol 2 to 5"),
    "empty": (b"", "protocol 2 to 5"),
    "start": (b"\x80", "protocol 2 to 5"),
    "cut": (b"\x80\x02}", "damaged at byte"),
    "cut number": (b"\x80\x02K", "ends too early"),
    "cut name": (b"\x80\x02U", "damaged at byte"),
    "unknown": (b"\x80\x02\xff.", "the instruction 0xff"),
    "persistent": (b"\x80\x02U\x01aQ.", "the instruction BINPERSID"),
    "control characters": (b"\x80\x02ca\x1b[2J\x00\nb\n.", r"refers to a\\x1b\[2J\\x00\.b,"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_refuses_everything_else(kind):
    content, message = HOSTILE[kind]
    start = time.thread_time()
    with pytest.raises(ValueError, match=f"^the pickle was rejected: .*{message}") as caught:
        read_python_batch(content, 1)
    assert time.thread_time() - start < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_refuses_cheaply(tmp_path):
    """All of them in one process that may take 64 MiB more than it has at the start."""
    code = (
        "import pickle, resource, sys\n"
        "from distcnn.data.cifar_batches import read_python_batch\n"
        "contents = pickle.load(open(sys.argv[1], 'rb'))\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + (64 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "for content in contents:\n"
        "    try: read_python_batch(content, 1)\n"
        "    except ValueError: print('refused')\n"
    )
    (tmp_path / "contents").write_bytes(pickle.dumps([content for content, _ in HOSTILE.values()]))
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "contents")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("refused") == len(HOSTILE)


def test_every_cut_and_every_changed_byte_is_a_value_error():
    data, labels = sample(2)
    for protocol in (2, 3, 4, 5):
        batch = {b"labels": labels, b"data": data[:, :16], "filenames": ["x", "y"]}
        content = pickle.dumps(batch, protocol=protocol)
        changed = [content[:length] for length in range(len(content))]
        for position in range(len(content)):
            changed += [
                content[:position] + bytes([value]) + content[position + 1 :]
                for value in (0, 1, 40, 46, 75, 84, 98, 104, 117, 128, 255)
            ]
        for candidate in changed:
            try:
                found = read_batch_pickle(candidate)
                if b"data" in found and hasattr(found[b"data"], "load"):
                    found[b"data"].load()
            except ValueError as error:
                assert not re.search(r"\n", str(error))  # noqa: PT017 - it may also succeed


def test_nothing_runs(tmp_path):
    class Command:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    for protocol in range(6):
        with pytest.raises(ValueError, match="rejected"):
            read_python_batch(pickle.dumps({b"data": Command()}, protocol), 1)
    assert not (tmp_path / "owned").exists()


def test_is_not_slower_than_pickle():
    data, _ = sample(10_000)
    content = Python2().batch([b"labels"], data, [7] * 10_000)

    def seconds(read):
        times = []
        for _ in range(3):
            start = time.thread_time()
            read()
            times.append(time.thread_time() - start)
        return min(times)

    def by_pickle():
        pixels = pickle.loads(content, encoding="bytes")[b"data"].reshape(-1, 3, 32, 32)
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))

    assert seconds(lambda: read_python_batch(content, 1)) < 2 * seconds(by_pickle) + 0.05
