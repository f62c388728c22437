"""The hosts that an attempt may use: those that are listed, not left out, and answer."""

import logging
import time
from collections.abc import Callable, Sequence

from distcnn.launching.hosts import DiscoveryError, Host, choose_workers, count_workers
from distcnn.launching.pauses import HostPauses
from distcnn.launching.reaching import Ssh, reachable, unreachable

log = logging.getLogger("distcnn")


class HostPool:
    """Chooses the hosts of each attempt.

    Args:
        listed: Returns the hosts of the run as they are now.
        ssh: How they are reached.
        fewest: The fewest workers to go on with.
        most: The most workers; None for all slots.
        token: What all processes of the run have in common.
        shards: Returns what the number of workers must divide; None if it may be any.

    Attributes:
        pauses: The failures of each host.
        fewest: The fewest workers to go on with.
        most: The most workers; None for all slots.
        obstacles: Why hosts could not be used when they were last asked, in words.
    """

    def __init__(
        self,
        listed: Callable[[], Sequence[Host]],
        ssh: Ssh,
        fewest: int,
        most: int | None,
        token: str,
        shards: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.pauses = HostPauses()
        self.fewest = fewest
        self.most = most
        self._listed = listed
        self._ssh = ssh
        self._token = token
        self._shards = shards
        self.obstacles = ""
        self._used: dict[str, Host] = {}
        self._warned: dict[str, str] = {}

    def next_hosts(self) -> list[Host]:
        """Returns the workers that could run now, and kills what is left of the run there."""
        listed = self._list()
        usable = self.pauses.usable(listed, time.monotonic())
        if count_workers(usable) < self.fewest:
            usable = listed  # a host that fails is better than none
        names = {host.name for host in usable}
        others = [host for name, host in self._used.items() if name not in names]
        silent = unreachable([*usable, *others], self._ssh, self._token)
        reasons = [f"{host.name}: {silent[host.name]}" for host in usable if host.name in silent]
        self.obstacles = "; ".join(reasons) or self._warned.get("discovery", "")
        chosen = self._choose([host for host in usable if host.name not in silent])
        if count_workers(chosen) < self.fewest:
            return []
        self._warn("silent", f"no answer from {'; '.join(reasons)}" if reasons else "")
        return chosen

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
        if count_workers(self._choose(usable)) <= count_workers(in_use):
            return []
        there = [host for host in usable if host.name in names]
        new = reachable([host for host in usable if host.name not in names], self._ssh)
        chosen = self._choose([*there, *new])
        return chosen if count_workers(chosen) > count_workers(in_use) else []

    def sweep(self) -> None:
        """Kills what is left of the run on every host that was used."""
        unreachable(list(self._used.values()), self._ssh, self._token)

    def _choose(self, hosts: Sequence[Host]) -> list[Host]:
        shards = self._shards()
        chosen = choose_workers(hosts, self.most, shards)
        if count_workers(chosen) < count_workers(choose_workers(hosts, self.most)):
            self._warn(
                "shards",
                f"{count_workers(chosen)} of {count_workers(hosts)} slots are used, since the "
                f"number of workers must divide that of the virtual workers, {shards}",
            )
        return chosen

    def _list(self) -> list[Host]:
        listed: list[Host] = []
        problem = ""
        try:
            listed = list(self._listed())
        except DiscoveryError as error:
            problem = str(error)
        self._warn("discovery", problem)
        return listed

    def _warn(self, topic: str, text: str) -> None:
        """Warns of something, once until something else is to be said about it."""
        if text and text != self._warned.get(topic):
            log.warning("warning: %s", text)
        self._warned[topic] = text
