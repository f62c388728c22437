"""The output of the ranks: each to a file of its own, and that of rank 0 to the terminal too."""

import contextlib
import re
import threading
from collections import deque
from pathlib import Path
from typing import IO

_PREFIX = re.compile(rb"^\[(\d+)\]<(stdout|stderr)>:")
_PARTS = re.compile(rb"[^\r\n]*(?:\r\n|[\r\n])")
_OWN = re.compile(rb"^(?:Process \d+ exit with|Terminating remaining workers|horovodrun: )")
"""What Horovod's launcher says about ends, which the supervisor says better."""

KEPT_LINES = 20
"""The last lines of each rank that are kept for the end of a run that fails."""


class RankOutput:
    """Divides what the ranks' launcher prints by rank.

    Args:
        folder: Where the files `rank-N.log` and `launcher.log` are; created if it is missing.
        shown: Where the output of rank 0 goes, by the name of its stream.
    """

    def __init__(self, folder: Path, shown: dict[str, IO[bytes]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._shown = shown
        self._files: dict[str, IO[bytes]] = {}
        self._last: dict[int, deque[str]] = {}
        self._lock = threading.Lock()
        self._own_last = ""

    def begin(self, attempt: int, workers: int) -> None:
        """Begins an attempt: its lines follow those of the one before."""
        self._last = {rank: deque(maxlen=KEPT_LINES) for rank in range(workers)}
        self._own_last = ""
        for rank in range(workers):
            self._write(f"rank-{rank}", f"--- attempt {attempt}\n".encode())

    def copy(self, source: IO[bytes], stream: str) -> threading.Thread:
        """Copies a stream of the ranks' launcher until it ends, in a thread."""

        def read() -> None:
            rest = b""
            while chunk := source.read1(65536):  # type: ignore[attr-defined]
                parts = _PARTS.findall(rest + chunk)
                rest = (rest + chunk)[sum(map(len, parts)) :]
                for part in parts:
                    self._take(part, stream)
            if rest:
                self._take(rest, stream)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def last_lines(self, rank: int) -> list[str]:
        """Returns the last lines of a rank in this attempt."""
        return list(self._last.get(rank, ()))

    def last_line(self, rank: int | None) -> str:
        """Returns the last line of a rank, or for None of the ranks' launcher itself."""
        lines = [self._own_last] if rank is None else self.last_lines(rank)
        return lines[-1].strip() if lines else ""

    def close(self) -> None:
        """Closes the files."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files = {}

    def _take(self, part: bytes, stream: str) -> None:
        found = _PREFIX.match(part)
        text = part[found.end() :] if found else part
        with self._lock:
            if found is None:
                self._write("launcher", text)
                line = text.decode(errors="replace").strip()
                if line and not _OWN.match(text):
                    self._own_last = line
                    self._show(text, stream)
                return
            rank = int(found[1])
            self._write(f"rank-{rank}", text)
            line = text.decode(errors="replace").rstrip()
            if line:
                self._last.setdefault(rank, deque(maxlen=KEPT_LINES)).append(line)
            if rank == 0:
                self._show(text, found[2].decode())

    def _show(self, text: bytes, stream: str) -> None:
        target = self._shown[stream]
        try:
            target.write(text)
            target.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more; the files have it

    def _write(self, name: str, text: bytes) -> None:
        """Adds a text to a file; a full disk loses it, but does not stop the run."""
        with contextlib.suppress(OSError):
            if name not in self._files:
                self._files[name] = (self.folder / f"{name}.log").open("ab", buffering=0)
            self._files[name].write(text)
