"""Which hosts can be reached, and through which network interface."""

import contextlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from distcnn.launching.hosts import Host
from distcnn.runtime import sweep
from distcnn.runtime.notice import is_announced

REACH_SECONDS = 5
"""How long a host may take to answer."""


@dataclass(frozen=True)
class Ssh:
    """How hosts are reached.

    Attributes:
        port: Port of sshd on the hosts; None for ssh's own choice.
        key: File of the private key; None for ssh's own choice.
        nic: Network interface between the hosts; None to find it.
        notice: A command that tells whether a host is about to be taken away; such a host counts as
            one that does not answer. None for none.
    """

    port: int | None = None
    key: str | None = None
    nic: str | None = None
    notice: str | None = None

    def command(self, host: str, *remote: str) -> list[str]:
        """Returns the command line that runs a command on a host, and asks for no password."""
        line = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
        line += ["-o", f"ConnectTimeout={REACH_SECONDS - 1}"]
        line += ["-p", str(self.port)] if self.port is not None else []
        line += ["-i", self.key] if self.key is not None else []
        return [*line, host, *remote]


def is_local(name: str) -> bool:
    """Returns whether a host is this one: a socket can be bound to its address."""
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def reachable(hosts: Sequence[Host], ssh: Ssh, token: str | None = None) -> list[Host]:
    """Returns the hosts that answer and will stay, in the same order; this host always answers.

    Args:
        hosts: The hosts.
        ssh: How they are reached.
        token: Kills what is left of this run there; None to kill nothing.
    """
    if not hosts:
        return []
    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = list(pool.map(lambda host: _answers(host.name, ssh, token), hosts))
    return [host for host, answer in zip(hosts, answers, strict=True) if answer]


def _answers(name: str, ssh: Ssh, token: str | None) -> bool:
    if is_local(name):
        if token is not None:
            sweep.sweep(token)
        return ssh.notice is None or not is_announced(ssh.notice)
    program = [sys.executable, "-I", str(Path(sweep.__file__)), token or ""]
    asked = "true" if token is None else shlex.join(program)
    if ssh.notice is not None:
        asked += f" && ! sh -c {shlex.quote(ssh.notice)}"
    try:
        done = subprocess.run(
            ssh.command(name, asked),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=REACH_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def interface_to(hosts: Sequence[Host]) -> str | None:
    """Returns the interface through which this host reaches the others; None if it is unknown.

    By default, Horovod may choose the loopback interface, which every host has.
    """
    program = shutil.which("ip")
    found = None
    for host in hosts:
        with contextlib.suppress(OSError):
            address = socket.gethostbyname(host.name)
            if program is None:
                return None
            line = [program, "-o", "route", "get", address]
            said = subprocess.run(line, capture_output=True, text=True, check=False).stdout
            device = re.search(r" dev (\S+)", said)
            if device is not None and device[1] != "lo":
                found = device[1]
    return found
