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

_TAKEN_AWAY = "a notice says that it will be taken away"


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
    """Returns the hosts that `unreachable` does not, in the same order."""
    silent = unreachable(hosts, ssh, token)
    return [host for host in hosts if host.name not in silent]


def unreachable(hosts: Sequence[Host], ssh: Ssh, token: str | None = None) -> dict[str, str]:
    """Returns the names of the hosts that do not answer or will not stay, and why.

    This host always answers.

    Args:
        hosts: The hosts.
        ssh: How they are reached.
        token: Kills what is left of this run there; None to kill nothing.
    """
    if not hosts:
        return {}
    with ThreadPoolExecutor(len(hosts)) as pool:
        reasons = list(pool.map(lambda host: _why_silent(host.name, ssh, token), hosts))
    return {host.name: why for host, why in zip(hosts, reasons, strict=True) if why}


def _why_silent(name: str, ssh: Ssh, token: str | None) -> str:
    """Returns why a host does not answer; nothing if it does."""
    if is_local(name):
        if token is not None:
            sweep.sweep(token)
        gone = ssh.notice is not None and is_announced(ssh.notice)
        return _TAKEN_AWAY if gone else ""
    program = [sys.executable, "-I", str(Path(sweep.__file__)), token or ""]
    asked = "true" if token is None else shlex.join(program)
    if ssh.notice is not None:
        asked += f" && ! sh -c {shlex.quote(ssh.notice)}"
    try:
        done = subprocess.run(
            ssh.command(name, asked),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=REACH_SECONDS,
            check=False,
        )
    except OSError as error:
        return f"ssh cannot be run: {error}"
    except subprocess.TimeoutExpired:
        return f"it gave no answer within {REACH_SECONDS} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    silent = f"ssh ended with {done.returncode}" if ssh.notice is None else _TAKEN_AWAY
    return lines[-1].strip() if lines else silent


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
