"""Files that must keep their content while a run reads them."""

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from distcnn.errors import DataError
from distcnn.runtime.files import open_regular


class DamagedFileError(DataError):
    """A file does not have the content that it should have.

    Args:
        path: The file.
        damage: What is wrong, as the predicate of a sentence about the file.
        remedy: What to do about it.

    Attributes:
        path: As given.
        damage: As given.
    """

    def __init__(self, path: Path, damage: str, remedy: str) -> None:
        super().__init__(f"{path} {damage}; {remedy}")
        self.path, self.damage = path, damage


class WatchedFile:
    """A verified file, open for random reads from any thread; closed with its last user.

    It is read through a descriptor, not a memory map: where a map of a file that was cut kills the
    process (SIGBUS), a read fails with an error. A file that is replaced or removed is read on as
    it was; one that is written in place is verified again.

    Args:
        path: The file.
        find_damage: Takes a descriptor of the file and returns what is wrong with its content, as
            the predicate of a sentence about the file, or None.
        remedy: What to do about a damaged file, for messages.

    Raises:
        OSError: The file cannot be opened.
        DamagedFileError: It cannot be read, or `find_damage` found something.
    """

    def __init__(self, path: Path, find_damage: Callable[[int], str | None], remedy: str) -> None:
        self.path = path
        self._find_damage = find_damage
        self._remedy = remedy
        with open_regular(path) as file:
            self._descriptor = os.dup(file.fileno())
        # Not at exit, when a reading thread may still be running.
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._lock = threading.Lock()
        self._verified: tuple[int, ...] | None = None
        self.verify()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills a buffer of bytes from an offset on.

        Call `verify` after reading and before using what was read.

        Raises:
            DamagedFileError: The file cannot be read or ends before the buffer is full.
        """
        done = 0
        while done < len(buffer):
            try:
                # A call may return less, such as when more than 2 GiB are wanted.
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                damage = f"cannot be read at byte {offset + done}: {error.strerror}"
                raise DamagedFileError(self.path, damage, self._remedy) from error
            if count == 0:
                damage = f"was cut during the run: it ends before byte {offset + len(buffer)}"
                raise DamagedFileError(self.path, damage, self._remedy)
            done += count

    def read(self, length: int, offset: int) -> bytes:
        """Returns some bytes; otherwise like `read_into`."""
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def verify(self) -> None:
        """Verifies the content if the file was touched since the last time.

        Raises:
            DamagedFileError: The file cannot be read or was changed.
        """
        if self._state() == self._verified:
            return
        with self._lock:
            state = self._state()  # before reading, so that a change meanwhile is noticed
            if state != self._verified:
                try:
                    damage = self._find_damage(self._descriptor)
                except OSError as error:
                    damage = f"cannot be read: {error.strerror}"
                if damage is not None:
                    raise DamagedFileError(self.path, damage, self._remedy)
                self._verified = state

    def _state(self) -> tuple[int, ...]:
        status = os.fstat(self._descriptor)
        # The second time too, as programs that copy files set the first as they please.
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns
