"""The supervisor: one attempt after another, until the command is done or nothing helps."""

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType

from distcnn.launching import record
from distcnn.launching.attempt import Attempt, start
from distcnn.launching.command import Launched, holding, keep_command
from distcnn.launching.ends import (
    EXIT_STOPPED,
    Budget,
    Failure,
    find_failure,
    seconds_of,
)
from distcnn.launching.growth import Growth
from distcnn.launching.hosts import (
    DiscoveryError,
    Host,
    choose_workers,
    count_workers,
    host_of_rank,
)
from distcnn.launching.output import RankOutput
from distcnn.launching.pauses import HostPauses, pause_after
from distcnn.launching.reaching import Ssh, reachable
from distcnn.launching.watching import Limits, find_hanging
from distcnn.runtime.signals import REPEAT_SECONDS, SIGNALS

log = logging.getLogger("distcnn")

EXIT_KILLED = 130

_POLL_SECONDS = 0.05
_KILL_SECONDS = 3.0
"""How long the other ranks may go on after one was killed: they may be writing a checkpoint."""

_WAIT_SECONDS = 2.0
"""How often hosts are asked for while there are too few."""


@dataclass(frozen=True)
class Options:
    """How a command is launched.

    Attributes:
        fewest: The fewest workers to go on with.
        most: The most workers; None for all slots.
        restarts: Restarts without progress.
        wait: Seconds to wait for enough hosts.
        limits: When a rank counts as hanging.
        ssh: How hosts are reached.
    """

    fewest: int = 1
    most: int | None = None
    restarts: int = 3
    wait: float = 600.0
    limits: Limits = field(default_factory=Limits)
    ssh: Ssh = field(default_factory=Ssh)


class Supervisor:
    """Runs a command to its end, whatever happens to its workers.

    Args:
        command: The command.
        listed: Returns the hosts of the run as they are now.
        options: How it is launched.
        output: Takes what the ranks print.
    """

    def __init__(
        self,
        command: Launched,
        listed: Callable[[], Sequence[Host]],
        options: Options,
        output: RankOutput,
    ) -> None:
        self._command = command
        self._listed = listed
        self._options = options
        self._output = output
        self._budget = Budget(options.restarts)
        self._pauses = HostPauses()
        self._signals: list[str] = []
        self._attempts = 0
        self._pending: tuple[record.Restart, dict[str, float]] | None = None
        self._workers: int | None = None
        self._used: dict[str, Host] = {}
        self._failed = False

    def run(self) -> int:
        """Runs attempts until one is done, the run is stopped, or nothing helps.

        Returns:
            The exit code of the whole command.
        """
        with _listening(self._signals), holding(self._command):
            keep_command(self._command, finished=False)
            while (hosts := self._wait_for_hosts()) is not None:
                code = self._attempt(hosts)
                if code is not None:
                    self._sweep()
                    return code
            return self._give_up_waiting()

    def _sweep(self) -> None:
        """Kills what is left on any host that was used, if an attempt has failed."""
        if self._failed:
            reachable(list(self._used.values()), self._options.ssh, self._command.token)

    def _attempt(self, hosts: Sequence[Host]) -> int | None:
        """Runs one attempt; returns the exit code, or None if another attempt is to follow."""
        self._attempts += 1
        self._used |= {host.name: host for host in hosts}
        self._output.begin(self._attempts, count_workers(hosts))
        if self._command.fixed_workers:
            self._workers = count_workers(hosts)
        attempt = start(
            self._command.line(), hosts, self._options.ssh, self._output, self._command.token
        )
        try:
            hanging, grown, detected = self._watch(attempt)
        finally:
            attempt.close()
        code = attempt.process.returncode
        if code == 0:
            return self._finish()
        if len(self._signals) > 1:
            return EXIT_KILLED
        if self._signals:
            return self._stopped(code, attempt)
        if grown and code == EXIT_STOPPED:
            now = time.time()
            self._began_restart(attempt, Failure(None, grown), fault=now, detected=now)
            return None
        self._failed = True
        failure = hanging or find_failure(
            attempt.ends,
            workers=attempt.workers,
            made_steps=attempt.step > max(0, attempt.first),
            is_first=self._attempts == 1,
            last_line=self._output.last_line,
        )
        return self._restart_or_fail(attempt, failure, detected)

    def _watch(self, attempt: Attempt) -> tuple[Failure | None, str, float]:
        """Waits until an attempt is over, and stops it where that is necessary.

        Returns:
            The failure of a rank that hangs, or None; for which workers it was asked to stop, or
            nothing; when the fault was detected, in seconds since the epoch.
        """
        growth = Growth(lambda: self._usable(attempt.hosts), attempt.workers)
        hanging: Failure | None = None
        detected, given = 0.0, 0
        killed = False
        while not attempt.is_over():
            now = time.time()
            self._note_first_step(attempt)
            while given < min(2, len(self._signals)):
                given += 1
                attempt.order(b"t" if given == 1 else b"k")
            ended = [end for end in attempt.ends if end.code]
            if hanging is None and not ended and not given:
                hanging = find_hanging(attempt, self._options.limits, now)
                if hanging is not None:
                    detected = now
                    attempt.order(b"k")
                elif growth.is_due(attempt.epoch, started=attempt.stepped > 0):
                    log.info("launch: %s; saving, to go on with more workers", growth.found)
                    attempt.order(b"t")
            if ended and not detected:
                detected = min(end.time for end in ended)
            lost = any(end.code > 128 for end in ended)
            if lost and not killed and not given and now > detected + _KILL_SECONDS:
                killed = True
                attempt.order(b"k")
            time.sleep(_POLL_SECONDS)
        self._note_first_step(attempt)
        growth.close()
        return hanging, growth.found if growth.asked else "", detected or time.time()

    def _finish(self) -> int:
        keep_command(self._command, finished=True)
        restarts = record.read(self._command.folder)
        if self._command.out is not None:
            record.add_to_summary(self._command.out, restarts)
        if restarts:
            known = record.summarise(restarts)
            log.info(
                "launch: done after %d restarts, which took %.1f s and %d steps",
                known["restarts"],
                known["restart_seconds"],
                known["steps_lost"],
            )
        return 0

    def _stopped(self, code: int, attempt: Attempt) -> int:
        if code != EXIT_STOPPED:
            self._show_last_lines(
                find_failure(
                    attempt.ends, workers=attempt.workers, made_steps=True, is_first=False
                ),
                attempt,
            )
        log.info("launch: stopped by %s; run the same command again to continue", self._signals[0])
        return EXIT_STOPPED

    def _restart_or_fail(self, attempt: Attempt, failure: Failure, detected: float) -> int | None:
        host = None if failure.rank is None else host_of_rank(attempt.hosts, failure.rank)
        where = "" if host is None else f"rank {failure.rank} on {host}: "
        why = self._budget.spend(failure, attempt.step)
        if why is not None:
            self._show_last_lines(failure, attempt)
            log.error("error: %s%s (%s)", where, failure.cause, why)
            return failure.code if failure.code != EXIT_STOPPED else 1
        if attempt.step > max(0, attempt.first):
            for each in attempt.hosts:
                if each.name != host:
                    self._pauses.worked(each.name)
        seconds = 0.0 if host is None else self._pauses.failed(host, time.monotonic())
        left_out = ""
        if seconds and len({each.name for each in attempt.hosts}) > 1:
            left_out = f"; {host} is left out for {seconds:g} s"
        log.warning(
            "launch: %s%s; restarting (%d of %d without progress)%s",
            where,
            failure.cause,
            self._budget.used,
            self._budget.allowed,
            left_out,
        )
        fault = self._time_of_fault(attempt, failure, detected)
        self._began_restart(attempt, failure, fault=fault, detected=detected)
        self._sleep(pause_after(self._budget.used))
        return None

    @staticmethod
    def _time_of_fault(attempt: Attempt, failure: Failure, detected: float) -> float:
        """Returns when the rank that failed was last known to work."""
        known = failure.since
        if not known and failure.rank is not None:
            known = attempt.ranks[failure.rank].runs
        return min(known or detected, detected)

    def _began_restart(
        self, attempt: Attempt, failure: Failure, *, fault: float, detected: float
    ) -> None:
        """Notes a restart; it is recorded when the next attempt makes a step, or fails."""
        self._record_pending()
        rank = failure.rank
        restart: record.Restart = {
            "attempt": self._attempts,
            "cause": failure.cause,
            "rank": rank,
            "host": None if rank is None else host_of_rank(attempt.hosts, rank),
            "step": attempt.step,
        }
        times = {"fault": fault, "detected": detected, "stopped": time.time()}
        self._pending = (restart, times)

    def _note_first_step(self, attempt: Attempt) -> None:
        """Records the restart that is over when an attempt has made its first step."""
        if self._pending is None or not attempt.stepped:
            return
        restart, times = self._pending
        chief = attempt.ranks[0]
        times |= {"joined": chief.joined, "restored": chief.restored, "stepped": attempt.stepped}
        restart |= {
            "workers": attempt.workers,
            "resumed_at": attempt.first,
            "steps_lost": max(0, restart["step"] - max(0, attempt.first)),
            "seconds": seconds_of(times),
        }
        log.info("launch: %s", record.describe(restart))
        self._record_pending()

    def _record_pending(self) -> None:
        if self._pending is not None:
            record.append(self._command.folder, self._pending[0])
            self._pending = None

    def _show_last_lines(self, failure: Failure, attempt: Attempt) -> None:
        """Shows the last lines of the rank that failed first; those of rank 0 were shown."""
        self._record_pending()
        lines = [] if not failure.rank else self._output.last_lines(failure.rank)
        if not lines:
            return
        file = self._output.folder / f"rank-{failure.rank}.log"
        log.error("launch: the last lines of rank %s (%s):", failure.rank, file)
        for line in lines:
            log.error("  %s", line)

    def _usable(self, in_use: Sequence[Host] = (), token: str | None = None) -> list[Host]:
        """Returns the workers that could run now, those on hosts in use first.

        Args:
            in_use: Hosts on which the run goes on meanwhile.
            token: Kills what is left of this run on the hosts; None while it goes on.
        """
        try:
            listed = self._listed()
        except DiscoveryError as error:
            log.warning("warning: %s", error)
            return []
        names = [host.name for host in in_use]
        ordered = sorted(
            listed, key=lambda h: names.index(h.name) if h.name in names else len(names)
        )
        usable = self._pauses.usable(ordered, time.monotonic())
        if count_workers(usable) < self._options.fewest:
            usable = ordered  # a host that fails is better than none
        found = reachable(usable, self._options.ssh, token)
        return choose_workers(found, self._workers or self._options.most)

    def _wait_for_hosts(self) -> list[Host] | None:
        """Returns the hosts of the next attempt; None if there were too few for too long."""
        fewest = self._workers or self._options.fewest
        deadline, said = time.monotonic() + self._options.wait, False
        while not self._signals:
            hosts = self._usable(token=self._command.token)
            if count_workers(hosts) >= fewest:
                return hosts
            if time.monotonic() > deadline:
                return None
            if not said:
                said = True
                log.warning(
                    "launch: %d workers could run, expected at least %d; waiting up to %g s",
                    count_workers(hosts),
                    fewest,
                    self._options.wait,
                )
            self._sleep(_WAIT_SECONDS)
        return None

    def _give_up_waiting(self) -> int:
        self._record_pending()
        if self._signals:
            log.info(
                "launch: stopped by %s; run the same command again to continue", self._signals[0]
            )
            return EXIT_STOPPED
        log.error(
            "error: fewer than %d workers could run for %g s; run the same command again to "
            "continue, or lower --min",
            self._workers or self._options.fewest,
            self._options.wait,
        )
        return 1

    def _sleep(self, seconds: float) -> None:
        """Waits, but not on when a signal has asked to stop."""
        deadline = time.monotonic() + seconds
        while not self._signals and time.monotonic() < deadline:
            time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))


class _listening:  # noqa: N801 (used as a function)
    """Notes the signals that ask to stop, during a context."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._last = float("-inf")
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> None:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        before, self._last = self._last, time.monotonic()
        if self._last > before + REPEAT_SECONDS:
            self._names.append(signal.Signals(number).name)
