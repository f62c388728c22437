"""The hosts that an attempt may use: those that are listed, not left out, and answer."""

import logging
import time
from collections.abc import Callable, Sequence

from distcnn.launching.hosts import DiscoveryError, Host, choose_workers, count_workers
from distcnn.launching.pauses import HostPauses
from distcnn.launching.reaching import Ssh, reachable

log = logging.getLogger("distcnn")


class HostPool:
    """Chooses the hosts of each attempt.

    Args:
        listed: Returns the hosts of the run as they are now.
        ssh: How they are reached.
        fewest: The fewest workers to go on with.
        most: The most workers; None for all slots.
        token: What all processes of the run have in common.

    Attributes:
        pauses: The failures of each host.
        fewest: The fewest workers to go on with.
        most: The most workers; None for all slots.
    """

    def __init__(
        self,
        listed: Callable[[], Sequence[Host]],
        ssh: Ssh,
        fewest: int,
        most: int | None,
        token: str,
    ) -> None:
        self.pauses = HostPauses()
        self.fewest = fewest
        self.most = most
        self._listed = listed
        self._ssh = ssh
        self._token = token
        self._used: dict[str, Host] = {}
        self._warned = ""

    def next_hosts(self) -> list[Host]:
        """Returns the workers that could run now, and kills what is left of the run there."""
        listed = self._list()
        usable = self.pauses.usable(listed, time.monotonic())
        if count_workers(usable) < self.fewest:
            usable = listed  # a host that fails is better than none
        others = [host for name, host in self._used.items() if host not in usable]
        reachable(others, self._ssh, self._token)
        chosen = choose_workers(reachable(usable, self._ssh, self._token), self.most)
        return chosen if count_workers(chosen) >= self.fewest else []

    def use(self, hosts: Sequence[Host]) -> None:
        """Notes the hosts of an attempt."""
        self._used |= {host.name: host for host in hosts}

    def more_hosts(self, in_use: Sequence[Host]) -> list[Host]:
        """Returns the workers that could run if those in use were stopped, if they are more.

        Args:
            in_use: The hosts in use, which are not asked.
        """
        names = {host.name for host in in_use}
        usable = self.pauses.usable(self._list(), time.monotonic())
        if count_workers(choose_workers(usable, self.most)) <= count_workers(in_use):
            return []
        there = [host for host in usable if host.name in names]
        new = reachable([host for host in usable if host.name not in names], self._ssh)
        chosen = choose_workers([*there, *new], self.most)
        return chosen if count_workers(chosen) > count_workers(in_use) else []

    def sweep(self) -> None:
        """Kills what is left of the run on every host that was used."""
        reachable(list(self._used.values()), self._ssh, self._token)

    def _list(self) -> list[Host]:
        try:
            return list(self._listed())
        except DiscoveryError as error:
            if str(error) != self._warned:
                self._warned = str(error)
                log.warning("warning: %s", error)
            return []
