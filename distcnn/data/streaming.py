"""Images that are decoded whenever they are read, and checked only then."""

import logging
import math
import threading
from typing import Any, Literal, Self

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.data.decode import failure_reason
from distcnn.data.decode_plan import HEADER_WIDTH, headers_of
from distcnn.data.encoded import EncodedSplit, usable_cores
from distcnn.data.framing import WHOLE, Frame, Framing, Shape
from distcnn.data.image_file import shown_path
from distcnn.data.split import Split
from distcnn.data.undecodable import UndecodableImageError
from distcnn.runtime.text import printable

_MOST_BAD = 0.5

_FIRST_BYTES = 4096
"""Of a file that is replaced by another one of the same size, so many bytes tell it."""

_logger = logging.getLogger("distcnn")


class _SharedState:
    """What the parts of a streamed split share: headers, kept files, and the bad images so far.

    The header of an image that has not been read yet is all zeros. Next to each header is a hash of
    the file that it was read from, as a file may change while a run goes on.
    """

    def __init__(self, images: int, *, keep: bool) -> None:
        self.headers = np.zeros((images, HEADER_WIDTH), np.int32)
        self.hashes = np.zeros(images, np.int64)
        self.kept: dict[int, bytes] | None = {} if keep else None
        self.bad: dict[int, str] = {}
        self.lock = threading.Lock()


class StreamedSplit(Split):
    """Encoded images that are decoded at each `fetch`.

    An image that cannot be decoded either stops the run, or is replaced by the next good one of the
    split. Which images are read depends on the indices and the random numbers only, not on what was
    read before, so that every number of workers sees the same batches.

    Args:
        encoded: The images; `image_shape` is set.
        on_error: What to do with a bad image: fail and name it, or skip it.
        keep: Whether to keep the files in memory once they are read.
    """

    image_shape: Shape

    def __init__(
        self, encoded: EncodedSplit, on_error: Literal["fail", "skip"], *, keep: bool
    ) -> None:
        assert encoded.image_shape is not None
        self.labels = encoded.labels
        self.image_shape = encoded.image_shape
        self._encoded = encoded
        self._on_error = on_error
        self._shared = _SharedState(len(encoded), keep=keep)
        self._set_rows(np.arange(len(encoded), dtype=np.int64))

    @property
    def bad(self) -> list[str]:
        """Descriptions of the bad images that were read so far, as `path (reason)`."""
        return [self._shared.bad[row] for row in sorted(self._shared.bad)]

    @override
    def gather(self, indices: tf.Tensor) -> tf.Tensor:
        return self.fetch(indices)[0]

    @override
    def crops(self, indices: tf.Tensor, frame: Frame, draws: tf.Tensor) -> tf.Tensor:
        return self.fetch(indices, frame, draws)[0]

    @override
    @tf.autograph.experimental.do_not_convert
    def fetch(
        self, indices: tf.Tensor, frame: Frame | None = None, draws: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if draws is None:
            draws = tf.zeros([tf.shape(indices)[0], 0])

        def all_at_once(indices: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return self._decode(indices, frame, draws), indices

        def one_by_one(indices: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            images, used = tf.numpy_function(
                self._one_by_one(frame), [indices, draws], (tf.uint8, tf.int64), stateful=False
            )
            images = tf.ensure_shape(images, (indices.shape[0], *self.image_shape))
            return images, tf.ensure_shape(used, indices.shape)

        # A graph cannot catch an error, a data set can: the second is read if the first is empty.
        wanted = tf.data.Dataset.from_tensors((indices, draws))
        fast = wanted.map(all_at_once).ignore_errors()
        return fast.concatenate(wanted.map(one_by_one)).take(1).get_single_element()

    def _decode(self, indices: tf.Tensor, frame: Frame | None, draws: tf.Tensor) -> tf.Tensor:
        contents, headers = self._read(tf.gather(self._rows, indices))
        return self._encoded.decode(contents, frame, draws, headers)

    def _decode_afresh(
        self, indices: tf.Tensor, frame: Frame | None, draws: tf.Tensor
    ) -> tf.Tensor:
        """Decodes images by the headers of the files as they are now, in case they have changed."""
        return self._encoded.decode(self._read(tf.gather(self._rows, indices))[0], frame, draws)

    def _read(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads files, from memory if all of them were kept, and their headers.

        These are read once, unless a file is another one than before: to hand the files to Python
        takes longer than to plan the batch.
        """
        kinds = (tf.string, tf.int32)
        keeps = self._shared.kept is not None
        if keeps:
            files, headers, known = tf.numpy_function(
                self._look_up, [rows], (*kinds, tf.bool), stateful=True
            )
        else:
            files = self._encoded.read(rows)
            headers, known = tf.numpy_function(
                self._known_headers, [rows, _hashes(files)], (tf.int32, tf.bool), stateful=True
            )

        def read() -> tuple[tf.Tensor, ...]:
            found = self._encoded.read(rows) if keeps else files
            arguments = [rows, found, _hashes(found)]
            return tuple(tf.numpy_function(self._keep, arguments, kinds, stateful=True))

        contents, headers = tf.cond(known, lambda: (files, headers), read)
        headers = tf.ensure_shape(headers, (rows.shape[0], HEADER_WIDTH))
        return tf.ensure_shape(contents, rows.shape), headers

    def _look_up(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.bool_]:
        """Returns the kept files, their headers, and whether all are known; no files if not."""
        headers, kept = self._shared.headers[rows], self._shared.kept
        known = headers.any(axis=1).all()
        files = [kept[row] for row in rows.tolist()] if known and kept is not None else []
        return np.array(files, dtype=object), headers, known

    def _known_headers(self, rows: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.bool_]:
        """Returns the headers of files, and whether all of them are known."""
        headers = self._shared.headers[rows]
        return headers, headers.any(axis=1).all() & (self._shared.hashes[rows] == hashes).all()

    def _keep(
        self, rows: np.ndarray, files: np.ndarray, hashes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        headers = headers_of(files)
        if self._shared.kept is not None:
            self._shared.kept.update(zip(rows.tolist(), files.tolist(), strict=True))
        self._shared.hashes[rows] = hashes
        self._shared.headers[rows] = headers  # last, as a known header says that a file is kept
        return files, headers

    def _one_by_one(self, frame: Frame | None) -> Any:
        """Returns a function that reads a batch in which an image is bad."""
        decode = tf.function(
            lambda indices, draws: self._decode_afresh(indices, frame, draws),
            input_signature=[tf.TensorSpec([1], tf.int64), tf.TensorSpec([1, None], tf.float32)],
            autograph=False,
        )

        def read(indices: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            images = np.empty((len(indices), *self.image_shape), np.uint8)
            used = np.empty(len(indices), np.int64)
            for position, index in enumerate(indices.tolist()):
                for candidate in range(index, index + len(self)):
                    used[position] = candidate % len(self)
                    numbers = draws[position : position + 1]
                    try:
                        images[position] = decode(used[position : position + 1], numbers)[0]
                        break
                    except tf.errors.OpError as error:
                        self._report(int(used[position]), error)
            return images, used

        return read

    def _report(self, index: int, error: tf.errors.OpError) -> None:
        """Records a bad image, or stops the run.

        Raises:
            tf.errors.OpError: It is not the image that is bad.
            UndecodableImageError: Bad images are not to be skipped, or too many are bad.
        """
        if "DamagedFileError" in error.message:
            raise error
        row = int(self._rows_array[index])
        location = self._encoded.describe(row)
        reason = failure_reason(error).removeprefix(f"{shown_path(location)}: ")
        text = f"{printable(location)} ({printable(reason)})"
        if self._on_error == "fail":
            raise UndecodableImageError(
                f"{text} cannot be decoded; repair or remove it, or pass --data.on_error skip"
            )
        with self._shared.lock:
            is_new = row not in self._shared.bad
            self._shared.bad[row] = text
            count = len(self._shared.bad)
        if is_new:
            _logger.warning("warning: %s cannot be decoded; the next good image replaces it", text)
        if count > _MOST_BAD * len(self._encoded):
            raise UndecodableImageError(
                f"{count} of {len(self._encoded)} images cannot be decoded, the "
                f"last is {text}; check the disk, or repair them"
            )

    @override
    def parallel_batches(self, batch_size: int) -> int:
        """Returns enough for two images per core.

        Images of a batch are decoded in parallel too, which TensorFlow's own choice does not know;
        it also falls to one batch whenever the consumer pauses.
        """
        cores = usable_cores()
        return math.ceil(2 * cores / min(batch_size, cores))

    @override
    def unreadable(self) -> np.ndarray:
        return np.flatnonzero(np.isin(self._rows_array, list(self._shared.bad)))

    @override
    def content_hash(self) -> str:
        return self._encoded.subset(self._rows_array).content_hash()

    @override
    def subset(self, indices: np.ndarray) -> Self:
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.labels = self.labels[indices]
        part._set_rows(self._rows_array[indices])
        return part

    @override
    def resized(self, image_shape: Shape, framing: Framing = WHOLE) -> Self:
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part.image_shape = image_shape
        part._encoded = self._encoded.resized(image_shape, framing)
        return part

    def _set_rows(self, rows: np.ndarray) -> None:
        self._rows_array = rows
        with tf.device("CPU:0"):
            self._rows = tf.constant(rows)  # captured by graphs by reference


def _hashes(files: tf.Tensor) -> tf.Tensor:
    """Returns numbers that tell files apart whose headers differ, int64 `(n,)`."""
    beginnings = tf.strings.substr(files, 0, _FIRST_BYTES)
    sizes = tf.strings.as_string(tf.strings.length(files))
    joined = tf.strings.join([sizes, beginnings], " ")
    return tf.strings.to_hash_bucket_fast(joined, 2**63 - 1)
