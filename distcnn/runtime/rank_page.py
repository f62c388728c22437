"""What a rank tells the launcher that supervises it: its progress, and how it failed.

The rank writes to a page of memory, at no cost; the process that started it reads the page
(`distcnn.runtime.rank_process`). Without such a launcher, nothing is written.
"""

import functools
import mmap
import os
import struct
import time
from collections.abc import Mapping
from enum import IntEnum

from distcnn.errors import DistcnnError, PeerLostError
from distcnn.runtime import rank_process
from distcnn.runtime.rank_process import FIELDS, LAYOUT, PAGE_VARIABLE
from distcnn.runtime.text import wrapped_data_error


class FailureKind(IntEnum):
    """How a rank failed."""

    UNKNOWN = 0
    """It said nothing: it was killed, or crashed."""
    UNMENDABLE = 1
    """Its command line, configuration or data are wrong, or its loss is not finite."""
    REFUSED = 2
    """The run cannot go on for a reason that may disappear, such as a full disk."""
    PEER_LOST = 3
    """It lost another rank."""
    EXCEPTION = 4
    """An exception of the program, such as the user's own code."""
    SYSTEM = 5
    """An exception of the system, TensorFlow or Horovod."""
    NO_MEMORY = rank_process.NO_MEMORY
    """It ran out of memory."""


def kind_of(error: BaseException) -> FailureKind:
    """Returns how a rank fails that ends with an error."""
    if isinstance(error, PeerLostError):
        return FailureKind.PEER_LOST
    if isinstance(error, DistcnnError):
        return FailureKind.REFUSED if error.mendable else FailureKind.UNMENDABLE
    if isinstance(error, MemoryError):
        return FailureKind.NO_MEMORY
    if wrapped_data_error(str(error)) is not None:
        return FailureKind.UNMENDABLE
    modules = {each.__module__.partition(".")[0] for each in type(error).__mro__}
    if isinstance(error, OSError) or modules & {"tensorflow", "horovod"}:
        return FailureKind.SYSTEM
    return FailureKind.EXCEPTION


_OFFSETS = {
    name: struct.calcsize(LAYOUT.format[: position + 1]) for position, name in enumerate(FIELDS)
}


class RankPage:
    """The page of this rank.

    Args:
        environment: Environment variables, which may name the page.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._map: mmap.mmap | None = None
        number = environment.get(PAGE_VARIABLE, "")
        if number.isdigit():
            try:
                self._map = mmap.mmap(int(number), LAYOUT.size)
            except (OSError, ValueError):  # a process that did not inherit the descriptor
                self._map = None

    def joined(self) -> None:
        """Says that the ranks have found each other."""
        self._set("joined", time.time())

    def restored(self, step: int, epoch: int) -> None:
        """Says at which global step the training begins, after what was saved is restored."""
        self._set("step", step)
        self._set("epoch", epoch)
        self._set("restored", time.time())
        self._set("first", step)

    def stepped(self, step: int, epoch: int) -> None:
        """Says how many global steps are done, and in which epoch."""
        if self._map is None:
            return
        if not self._get("stepped"):
            if self._get("first") < 0:  # nothing was restored
                self._set("first", 0)
                self._set("restored", time.time())
            self._set("stepped", time.time())
        self._set("epoch", epoch)
        self._set("step", step)

    def failed(self, error: BaseException) -> None:
        """Says how this rank fails; the first cause stays."""
        if not self._get("kind"):
            self._set("kind", kind_of(error))

    def _set(self, name: str, value: float) -> None:
        if self._map is not None:
            kind = LAYOUT.format[FIELDS.index(name) + 1]
            struct.pack_into(f"<{kind}", self._map, _OFFSETS[name], value)

    def _get(self, name: str) -> float:
        if self._map is None:
            return 0
        kind = LAYOUT.format[FIELDS.index(name) + 1]
        value: float = struct.unpack_from(f"<{kind}", self._map, _OFFSETS[name])[0]
        return value


@functools.cache
def own_page() -> RankPage:
    """Returns the page of this process."""
    return RankPage(os.environ)
