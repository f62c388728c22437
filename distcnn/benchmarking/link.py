"""Hosts that a link of limited speed joins, as network namespaces of this machine.

A worker in a namespace reaches the others only through its own virtual cable, whose speed a token
bucket filter limits in each direction (tc-tbf(8)). So the network of a cluster can be measured on
one machine. The workers still share its memory and, if there are too few, its cores.
"""

import contextlib
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from distcnn.distribute.launching import Process, tf_config
from distcnn.errors import UsageError

_RATE = re.compile(r"\d+(\.\d+)?[kmg]bit")
_SYSTEM_PATHS = ("/usr/sbin", "/sbin")
_BURST_AND_LATENCY = ("burst", "512kb", "latency", "100ms")
_PORT = 42_700


@dataclass(frozen=True)
class Link:
    """Hosts on this machine, each of which sends at a limited speed.

    Attributes:
        rate: The speed of each host's cable in each direction, such as "1gbit".
        name: Prefix of the names of the network namespaces.
    """

    rate: str
    name: str

    def place(
        self, workers: int, command: Sequence[str], environment: Mapping[str, str]
    ) -> list[Process]:
        """Returns one process per host, found through `TF_CONFIG`.

        Args:
            workers: Number of hosts, at most that of the link.
            command: The command line.
            environment: The environment.
        """
        addresses = [f"{_address(rank)}:{_PORT}" for rank in range(workers)]
        placed = tf_config(workers, command, environment, addresses)
        return [
            ([*_INSIDE, self._host(rank), *line], own) for rank, (line, own) in enumerate(placed)
        ]

    def _host(self, rank: int) -> str:
        return f"{self.name}-{rank}"

    def _plug_in(self, rank: int, switch: str) -> None:
        host, port = self._host(rank), f"port{rank}"
        _run("ip", "netns", "add", host)
        cable = ("type", "veth", "peer", "name", port, "netns", switch)
        _run("ip", "-n", host, "link", "add", "eth0", *cable)
        _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
        _run("ip", "-n", host, "addr", "add", f"{_address(rank)}/16", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", host, "link", "set", device, "up")
        limit = ("root", "tbf", "rate", self.rate, *_BURST_AND_LATENCY)
        _run("tc", "-n", host, "qdisc", "add", "dev", "eth0", *limit)


_INSIDE = ("ip", "netns", "exec")


@contextlib.contextmanager
def linked_hosts(rate: str, count: int) -> Iterator[Link]:
    """Creates hosts for the context.

    Args:
        rate: The speed of each host's cable in each direction, in the units of `tc`: kbit, mbit or
            gbit.
        count: Number of hosts.

    Raises:
        UsageError: If the rate is not one, or this process may not create network namespaces.
    """
    if not _RATE.fullmatch(rate):
        raise UsageError(f"link is {rate!r}; expected a speed such as 1gbit or 100mbit")
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool, path=_search_path()) is None]
    if missing:
        raise UsageError(
            f"link needs {' and '.join(missing)}, which are not installed; install the package "
            "iproute2 (Debian, Ubuntu) or iproute-tc (Fedora)"
        )
    link = Link(rate, f"distcnn-{secrets.token_hex(3)}")
    switch = f"{link.name}-switch"
    created = [switch, *(f"{link.name}-{rank}" for rank in range(count))]
    try:
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for rank in range(count):
            link._plug_in(rank, switch)
        yield link
    finally:
        for name in created:
            with contextlib.suppress(UsageError):
                _run("ip", "netns", "del", name)


def _address(rank: int) -> str:
    return f"10.78.{rank // 250}.{rank % 250 + 1}"


def _search_path() -> str:
    """Returns where to look for programs; `tc` is not on the path of every user."""
    return os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_PATHS])


def _run(*command: str) -> None:
    """Runs a command of iproute2.

    Raises:
        UsageError: If it fails.
    """
    environment = {**os.environ, "PATH": _search_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(
            f"link needs the right to create network namespaces, but {' '.join(command)} failed: "
            f"{reason}; run the benchmark as root, in a container with --privileged"
        )
