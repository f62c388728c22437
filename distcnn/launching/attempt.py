"""One attempt: the ranks, started through Horovod's launcher, and what is known of them."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from distcnn.launching.ends import RankEnd
from distcnn.launching.hosts import Host, count_workers
from distcnn.launching.output import RankOutput
from distcnn.launching.reaching import Ssh, interface_to, is_local
from distcnn.runtime.files import parse_json
from distcnn.runtime.launchers import without_launchers
from distcnn.runtime.rank_page import FailureKind
from distcnn.runtime.supervision import SUPERVISED
from distcnn.runtime.sweep import TOKEN_VARIABLE


@dataclass
class RankState:
    """What is known of a rank.

    Attributes:
        heard: When it last reported, in seconds since the epoch; 0 before the first time.
        runs: When it was last known not to be suspended.
        moved: When its step was last seen to change, or when it started.
        step: Global steps done.
        first: The step from which it went on; -1 before it is known.
        epoch: The epoch that it is in.
        joined: When the ranks had found each other; 0 before that.
        restored: When what was saved was restored.
        stepped: When its first step was done.
        suspended: Whether it is suspended (kill -STOP).
        end: How it ended.
    """

    heard: float = 0.0
    runs: float = 0.0
    moved: float = 0.0
    step: int = 0
    first: int = -1
    epoch: int = 0
    joined: float = 0.0
    restored: float = 0.0
    stepped: float = 0.0
    suspended: bool = False
    end: RankEnd | None = None

    def take(self, report: Mapping[str, Any], now: float) -> None:
        """Updates the state from a report of the rank's process."""
        if report["step"] != self.step or not self.moved:
            self.moved = now
        self.heard, self.suspended = now, bool(report.get("suspended"))
        if report.get("suspended") is False:
            self.runs = now
        for name in ("step", "first", "epoch", "joined", "restored", "stepped"):
            setattr(self, name, report[name])


@dataclass
class Attempt:
    """The running ranks of one attempt.

    Attributes:
        hosts: The hosts in use, each with the number of its workers.
        began: When it began, in seconds since the epoch.
        ranks: What is known of each rank.
        threads: Read what the ranks tell and print.
    """

    hosts: Sequence[Host]
    process: subprocess.Popen[bytes]
    orders: int
    output: RankOutput
    began: float = field(default_factory=time.time)
    ranks: dict[int, RankState] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def workers(self) -> int:
        """The number of ranks."""
        return count_workers(self.hosts)

    @property
    def step(self) -> int:
        """The furthest step of any rank."""
        return max((state.step for state in self.ranks.values()), default=0)

    @property
    def first(self) -> int:
        """The step from which the ranks went on; -1 before it is known."""
        return max((state.first for state in self.ranks.values()), default=-1)

    @property
    def epoch(self) -> int:
        """The epoch that the ranks are in."""
        return max((state.epoch for state in self.ranks.values()), default=0)

    @property
    def stepped(self) -> float:
        """When the first step was done, in seconds since the epoch; 0 before that."""
        return min((s.stepped for s in self.ranks.values() if s.stepped), default=0.0)

    @property
    def ends(self) -> list[RankEnd]:
        """How ranks have ended."""
        return [state.end for state in self.ranks.values() if state.end is not None]

    def order(self, order: bytes) -> None:
        """Gives the ranks an order: `t` to save and stop, `k` to kill them."""
        with contextlib.suppress(OSError):  # they have ended
            os.write(self.orders, order)

    def is_over(self) -> bool:
        """Returns whether everything has ended, and all that was printed has been read."""
        if self.process.poll() is None:
            return False
        for thread in self.threads:
            thread.join(5)
        return True

    def close(self) -> None:
        """Lets go of the ranks' launcher, which ends it and them if they are still there."""
        os.close(self.orders)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None and self.process.returncode is not None:
                stream.close()

    def read_events(self, events: IO[bytes]) -> None:
        """Reads what the ranks' launcher tells, in a thread."""

        def read() -> None:
            with events:
                for line in events:
                    with contextlib.suppress(ValueError):  # a line that a kill has cut
                        self._take(parse_json(line))

        self.threads.append(threading.Thread(target=read, daemon=True))
        self.threads[-1].start()

    def copy_output(self) -> None:
        """Copies what the ranks print, in threads."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.threads.append(self.output.copy(self.process.stdout, "stdout"))
        self.threads.append(self.output.copy(self.process.stderr, "stderr"))

    def _take(self, event: Mapping[str, Any]) -> None:
        state = self.ranks[event["rank"]]
        if "step" in event:
            ended = event["event"] == "end"  # it repeats the last report, whose time has passed
            state.take(event if not ended else {**event, "suspended": None}, time.time())
        if event["event"] == "end":
            kind = FailureKind(event.get("kind", 0))
            state.end = RankEnd(event["rank"], event["code"], event["time"], event["cause"], kind)


def start(
    command: Sequence[str], hosts: Sequence[Host], ssh: Ssh, output: RankOutput, token: str
) -> Attempt:
    """Starts the ranks.

    Args:
        command: The command line of a rank.
        hosts: The hosts, each with the number of its workers.
        ssh: How they are reached.
        output: Takes what the ranks print.
        token: What all processes of the run have in common.
    """
    orders, give = os.pipe()
    take, events = os.pipe()
    try:
        process = subprocess.Popen(
            ranks_line(command, hosts, ssh),
            env={
                **ranks_environment(os.environ, hosts),
                SUPERVISED: f"{orders},{events}",
                TOKEN_VARIABLE: token,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone
            pass_fds=(orders, events),
        )
    finally:
        os.close(orders)
        os.close(events)
    attempt = Attempt(hosts, process, give, output)
    attempt.ranks = {rank: RankState() for rank in range(attempt.workers)}
    attempt.read_events(os.fdopen(take, "rb"))
    attempt.copy_output()
    return attempt


def ranks_line(command: Sequence[str], hosts: Sequence[Host], ssh: Ssh) -> list[str]:
    """Returns the command line of the ranks' launcher."""
    line = [sys.executable, "-m", "distcnn.horovodrun", "--gloo", "-np", str(count_workers(hosts))]
    if all(is_local(host.name) for host in hosts):
        return [*line, *command]
    line += ["-H", ",".join(map(str, hosts))]
    line += ["--ssh-port", str(ssh.port)] if ssh.port is not None else []
    line += ["--ssh-identity-file", ssh.key] if ssh.key is not None else []
    nic = ssh.nic or interface_to(hosts)
    line += ["--network-interfaces", nic] if nic is not None else []
    return [*line, *command]


def ranks_environment(environment: Mapping[str, str], hosts: Sequence[Host]) -> dict[str, str]:
    """Returns the environment of the ranks' launcher: their hosts, and no other launcher's."""
    own = without_launchers(environment)
    own |= {k: v for k, v in environment.items() if k.startswith("HOROVOD_")}  # options of Horovod
    if not all(is_local(host.name) for host in hosts):
        own["DISTCNN_HOSTS"] = ",".join(map(str, hosts))
    return own
