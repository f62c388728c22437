"""Decides which TCP connections come from the processes of the own run.

Horovod's client sends no secret. On the own host, Linux tells which user opened a connection; from
other hosts, only the address is known.
"""

import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

Address = tuple[str, int]
"""IPv4 address and port of one end of a connection."""

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"
_RESOLVE_SECONDS = 2
"""Names are resolved at most this often: a host may get its name after the store has started."""


def owner_of(end: Address, other: Address) -> int | None:
    """Returns the user ID of a connection's end on this host.

    A connection that its process has closed already belongs to nobody: Linux then lists it as
    root's.

    Args:
        end: The end whose owner is asked for.
        other: The opposite end.

    Returns:
        The user ID, or None if no process of this network namespace holds that end open.
    """
    for table, prefix in zip(_TABLES, ("", "0000000000000000FFFF0000"), strict=True):
        sought = f" {prefix}{_hexadecimal(end)} {prefix}{_hexadecimal(other)} "
        try:
            text = table.read_text()
        except OSError:
            continue
        for line in text.splitlines():
            if sought in line:
                fields = line.split()
                state, uid, inode = fields[3], fields[7], fields[9]
                if state == _ESTABLISHED and inode != "0":
                    return int(uid)
    return None


def _hexadecimal(end: Address) -> str:
    """Returns an end as the kernel's tables print it."""
    number = int.from_bytes(socket.inet_aton(end[0]), sys.byteorder)
    return f"{number:08X}:{end[1]:04X}"


class PeerGuard:
    """Admits the connections of one run.

    A peer on this host must belong to the own user or to root. A peer on another host must have an
    address of one of the run's hosts. If a host's name stands for no address in the network that
    the store listens in, its address there is unknown, and that network is admitted.

    Args:
        address: IPv4 address that the store listens on.
        hosts: Host of each rank.
    """

    def __init__(self, address: str, hosts: Sequence[str]) -> None:
        self._address = address
        self._hosts = tuple(dict.fromkeys(hosts))
        self._users = {os.getuid(), os.geteuid(), 0}
        self._lock = threading.Lock()
        self._known: list[ipaddress.IPv4Network] = []
        self._resolved_at = float("-inf")

    def refusal(self, peer: Address, own: Address) -> str | None:
        """Returns why a connection is refused, or None if it is admitted."""
        if self._is_local(peer[0]):
            if not any(table.exists() for table in _TABLES):
                return None  # not Linux
            uid = owner_of(peer, own)
            if uid in self._users:
                return None
            owner = "no running process" if uid is None else f"the user with ID {uid}"
            return f"the connection belongs to {owner}, not to user {os.geteuid()}"
        address = ipaddress.IPv4Address(peer[0])
        if any(address in network for network in self._admitted(address)):
            return None
        return f"{peer[0]} is no address of the run's hosts {', '.join(self._hosts)}"

    @staticmethod
    def _is_local(address: str) -> bool:
        return address.startswith("127.") or any(
            address == str(interface.ip) for interface in _interfaces()
        )

    def _admitted(self, address: ipaddress.IPv4Address) -> list[ipaddress.IPv4Network]:
        """Returns the networks of the other hosts, resolved again for an unknown address."""
        with self._lock:
            unknown = not any(address in network for network in self._known)
            if unknown and time.monotonic() - self._resolved_at > _RESOLVE_SECONDS:
                self._known = list(self._resolve())
                self._resolved_at = time.monotonic()
            return self._known

    def _resolve(self) -> Iterator[ipaddress.IPv4Network]:
        own = {str(interface.ip): interface.network for interface in _interfaces()}
        network = own.get(self._address)
        for host in self._hosts:
            try:
                found = {entry[4][0] for entry in socket.getaddrinfo(host, None, socket.AF_INET)}
            except OSError:
                found = set()
            addresses = [ipaddress.IPv4Address(text) for text in found]
            if any(a.is_loopback or str(a) in own for a in addresses):
                continue  # this host
            yield from (ipaddress.IPv4Network(a) for a in addresses)
            if network is not None and not any(a in network for a in addresses):
                yield network


def _interfaces() -> Iterator[ipaddress.IPv4Interface]:
    """Yields the IPv4 addresses of this host, with their networks."""
    import psutil

    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family == socket.AF_INET:
                yield ipaddress.IPv4Interface(f"{entry.address}/{entry.netmask or 32}")
