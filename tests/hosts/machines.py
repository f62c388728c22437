"""Two hosts, as network namespaces with addresses and sshd of their own."""

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from distcnn.runtime.files import locked
from tests.hosts.conftest import SEARCH
from tests.launching.processes import is_on

ADDRESSES = {"distcnn-a": "10.77.0.1", "distcnn-b": "10.77.0.2"}
PORT = "2222"


def run(*command: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, "PATH": SEARCH})


class Machines:
    """The two hosts.

    Args:
        folder: Where keys and configurations are kept.

    Attributes:
        key: The private key that lets into both.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self.key = folder / "user"

    def start_sshd(self, name: str, missing: Sequence[Path] = ()) -> None:
        """Starts the sshd of a host, after stopping the one before.

        Args:
            name: The host.
            missing: Folders that are empty there.
        """
        self.stop_sshd(name)
        server = ["exec", "/usr/sbin/sshd", "-D", "-f", str(self._folder / f"{name}.conf")]
        hide = [shlex.join(["mount", "-t", "tmpfs", "none", str(each)]) for each in missing]
        line = " && ".join([*hide, shlex.join(server)])  # `ip` gives it mounts of its own
        self._servers[name] = subprocess.Popen(
            ["ip", "netns", "exec", name, "/bin/sh", "-c", line],
            env={**os.environ, "PATH": SEARCH},
        )

    def stop_sshd(self, name: str) -> None:
        """Stops the sshd of a host; its sessions go on."""
        if name in self._servers:
            self._servers[name].terminate()
            self._servers.pop(name).wait()

    def servers(self, name: str) -> list[psutil.Process]:
        """Returns the sshd of a host and its sessions."""
        found = [p for p in psutil.process_iter(["name"]) if p.info["name"].startswith("sshd")]
        return [process for process in found if is_on(process, name)]

    def set_link(self, state: str) -> None:
        """Pulls the cable between the hosts (`down`), or plugs it in again (`up`)."""
        run("ip", "-n", "distcnn-b", "link", "set", "eth0", state)

    def make(self) -> None:
        """Makes the hosts, joined by a cable."""
        folder, (first, second) = self._folder, ADDRESSES
        for key in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
        (folder / "authorized").chmod(0o600)
        Path("/run/sshd").mkdir(exist_ok=True)
        for name in ADDRESSES:
            run("ip", "netns", "add", name)
        cable = ("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0")
        run("ip", *cable, "netns", second)
        for name, address in ADDRESSES.items():
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                run("ip", "-n", name, "link", "set", device, "up")
            (folder / f"{name}.conf").write_text(
                f"Port {PORT}\nListenAddress {address}\nHostKey {folder}/host\nPidFile none\n"
                f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
                "PasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            )
            self.start_sshd(name)
        time.sleep(1)

    def remove(self) -> None:
        """Removes the hosts, and what this host knows of them."""
        for name, address in ADDRESSES.items():
            self.stop_sshd(name)
            subprocess.run(["ip", "netns", "del", name], check=False, env={"PATH": SEARCH})
            known = ["ssh-keygen", "-R", f"[{address}]:{PORT}"]
            subprocess.run(known, check=False, capture_output=True)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[Machines]:
    """Makes two hosts for a context; another process that wants them waits."""
    machines = Machines(folder)
    with locked(Path("/run/distcnn-two-hosts.lock")):
        for name in ADDRESSES:  # of a process that was killed
            if Path("/run/netns", name).exists():
                run("ip", "netns", "del", name)
        try:
            machines.make()
            yield machines
        finally:
            machines.remove()
