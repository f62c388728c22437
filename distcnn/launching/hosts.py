"""The hosts of a run: how they are given, and which of them are chosen."""

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distcnn.errors import DistcnnError, UsageError

DISCOVERY_SECONDS = 30
"""How long a discovery script may take."""


class DiscoveryError(DistcnnError):
    """A discovery script failed, or printed something else than hosts."""


@dataclass(frozen=True)
class Host:
    """A host, and how many workers it can hold."""

    name: str
    slots: int

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


def parse_hosts(text: str) -> list[Host]:
    """Parses hosts as Horovod takes them.

    Args:
        text: `host:slots,host`, where slots are 1 if they are left out.

    Raises:
        UsageError: If an entry is something else, a host is listed twice, or there is none.
    """
    hosts = [_parse(entry, "the host") for entry in text.split(",") if entry.strip()]
    return _require_distinct(hosts, "expected -H host1:slots,host2:slots or --hostfile FILE")


def read_hostfile(path: Path) -> list[Host]:
    """Reads a file with lines `host slots=4`, `host:4` or `host`, and comments after `#`.

    Raises:
        UsageError: If it cannot be read, a line is something else, or there is no host.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"the host file {path} cannot be read; expected a readable file") from None
    entries = [re.sub(r"\s+slots=", ":", line.partition("#")[0].strip()) for line in lines]
    hosts = [_parse(entry, f"a host in {path}") for entry in entries if entry]
    return _require_distinct(hosts, f"expected lines `host slots=4` in {path}")


def discover_hosts(script: str) -> list[Host]:
    """Runs a discovery script in Horovod's format: it prints `host:slots` or `host`, one a line.

    Args:
        script: A command line.

    Returns:
        The hosts; none if it prints none.

    Raises:
        DiscoveryError: If it fails, takes too long or prints something else.
    """
    try:
        done = subprocess.run(
            shlex.split(script),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DISCOVERY_SECONDS,
            check=False,
        )
    except (OSError, ValueError) as error:
        raise DiscoveryError(f"the discovery script {script} cannot be run: {error}") from None
    except subprocess.TimeoutExpired:
        raise DiscoveryError(
            f"the discovery script {script} took more than {DISCOVERY_SECONDS} s"
        ) from None
    if done.returncode:
        reason = " ".join(done.stderr.split())[-200:] or "it printed no reason"
        raise DiscoveryError(
            f"the discovery script {script} exits with {done.returncode}: {reason}"
        )
    try:
        found = [
            _parse(line.strip(), "a host") for line in done.stdout.splitlines() if line.strip()
        ]
    except UsageError as error:
        raise DiscoveryError(
            f"the discovery script {script} printed something else: {error}"
        ) from None
    return list({host.name: host for host in found}.values())


def choose_workers(
    hosts: Sequence[Host], most: int | None, shards: int | None = None
) -> list[Host]:
    """Returns the hosts in use, each with the number of its workers.

    Args:
        hosts: Hosts that can be used, the preferred ones first.
        most: The most workers; None for as many as there are slots.
        shards: What the number of workers must divide, if there are virtual workers.
    """
    slots = count_workers(hosts)
    left = slots if most is None else min(slots, most)
    if shards:
        left = max((n for n in range(1, left + 1) if shards % n == 0), default=0)
    chosen = []
    for host in hosts:
        workers = min(host.slots, left)
        if workers > 0:
            chosen.append(Host(host.name, workers))
            left -= workers
    return chosen


def count_workers(hosts: Sequence[Host]) -> int:
    """Returns the number of slots of hosts."""
    return sum(host.slots for host in hosts)


def host_of_rank(hosts: Sequence[Host], rank: int) -> str:
    """Returns the host of a rank: Horovod fills the hosts in their order."""
    names = [host.name for host in hosts for _ in range(host.slots)]
    return names[rank]


def _parse(entry: str, what: str) -> Host:
    match = re.fullmatch(r"\s*([^:=,\s]+)(?::([1-9]\d*))?\s*", entry)
    if match is None:
        raise UsageError(f"{what} is {entry.strip()}; expected host or host:slots")
    return Host(match[1], int(match[2] or 1))


def _require_distinct(hosts: list[Host], expected: str) -> list[Host]:
    if not hosts:
        raise UsageError(f"no hosts were given; {expected}")
    names = [host.name for host in hosts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"the host {name} is given twice; expected it once, with all its slots"
            )
    return hosts
