"""Hosts that fail again and again are left out, for longer each time."""

from collections.abc import Sequence

from distcnn.launching.hosts import Host

FIRST_SECONDS = 10.0
MOST_SECONDS = 600.0
TOLERATED = 1
"""Failures in a row after which a host is used again at once."""
STEADY_SECONDS = 60.0
"""A host that trained this long before it failed does not count as failing again and again."""


class HostPauses:
    """The failures of each host, and until when it is left out."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def failed(self, name: str, now: float, trained: float = 0.0) -> float:
        """Notes that a host was the first to fail.

        Args:
            name: The host.
            now: The time in seconds.
            trained: For how many seconds it had trained.

        Returns:
            For how many seconds it is left out.
        """
        before = self._failures.get(name, 0) if trained < STEADY_SECONDS else 0
        count = self._failures[name] = before + 1
        if count <= TOLERATED:
            return 0.0
        seconds = float(min(FIRST_SECONDS * 2.0 ** (count - TOLERATED - 1), MOST_SECONDS))
        self._until[name] = now + seconds
        return seconds

    def worked(self, name: str) -> None:
        """Notes that a host made steps and was not the first to fail."""
        self._failures.pop(name, None)
        self._until.pop(name, None)

    def usable(self, hosts: Sequence[Host], now: float) -> list[Host]:
        """Returns the hosts that are not left out, in the same order."""
        return [host for host in hosts if self._until.get(host.name, now) <= now]


def pause_after(failures: int) -> float:
    """Returns the seconds between attempts, by the number of failures without progress."""
    return 0.0 if failures <= 1 else min(2.0 ** (failures - 2), 60.0)
