"""The supervisor: one attempt after another, until the command is done or nothing helps."""

import contextlib
import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType

from distcnn.launching.attempt import Attempt, start
from distcnn.launching.command import Launched, holding, keep_command
from distcnn.launching.ends import EXIT_STOPPED, Budget, Failure, find_failure
from distcnn.launching.growth import Growth
from distcnn.launching.hosts import Host, count_workers, host_of_rank
from distcnn.launching.output import RankOutput
from distcnn.launching.pauses import pause_after
from distcnn.launching.pool import HostPool
from distcnn.launching.reaching import Ssh
from distcnn.launching.record import RestartLog
from distcnn.launching.space import why_not_writable
from distcnn.launching.watching import Limits, Watch
from distcnn.runtime.signals import REPEAT_SECONDS, SIGNALS

log = logging.getLogger("distcnn")

EXIT_KILLED = 130

WAIT_SECONDS = 600.0
"""How long a run that has made steps waits for enough hosts."""

START_WAIT_SECONDS = 20.0
"""How long it waits for hosts that do not answer before its first step, and for a full disk: long
enough for what ends by itself, and no longer, as somebody has to mend it."""

_ASK_SECONDS = 2.0
"""How often hosts are asked for while there are too few."""

_SPACE_SECONDS = 0.5


@dataclass(frozen=True)
class Options:
    """How a command is launched.

    Attributes:
        fewest: The fewest workers to go on with.
        most: The most workers; None for all slots.
        restarts: Restarts without progress.
        wait: Seconds to wait for enough hosts, or for space on a disk; None for `WAIT_SECONDS` or
            `START_WAIT_SECONDS`.
        limits: When a rank counts as hanging.
        ssh: How hosts are reached.
    """

    fewest: int = 1
    most: int | None = None
    restarts: int = 3
    wait: float | None = None
    limits: Limits = field(default_factory=Limits)
    ssh: Ssh = field(default_factory=Ssh)


class Supervisor:
    """Runs a command to its end, whatever happens to its workers.

    Args:
        command: The command.
        pool: The hosts.
        options: How it is launched.
        output: Takes what the ranks print.
    """

    def __init__(
        self, command: Launched, pool: HostPool, options: Options, output: RankOutput
    ) -> None:
        self._command = command
        self._pool = pool
        self._options = options
        self._output = output
        self._budget = Budget(options.restarts)
        self._restarts = RestartLog(command.folder)
        self._signals: list[str] = []
        self._attempts = 0
        self._waited = 0.0
        self._begun = False

    def run(self) -> int:
        """Runs attempts until one is done, the run is stopped, or nothing helps.

        Returns:
            The exit code of the whole command.

        Raises:
            UsageError: Another launcher uses the directory.
        """
        with _Listening(self._signals), holding(self._command):
            keep_command(self._command, finished=False)
            while hosts := self._wait_for_hosts():
                code = self._attempt(hosts)
                if code is not None:
                    break
            else:
                code = self._give_up_waiting()
            self._restarts.flush()
            return code

    def _attempt(self, hosts: Sequence[Host]) -> int | None:
        """Runs one attempt; returns the exit code, or None if another attempt is to follow."""
        self._attempts += 1
        self._output.begin(self._attempts, count_workers(hosts))
        self._pool.use(hosts)
        if self._command.fixed_workers:
            self._pool.fewest = self._pool.most = count_workers(hosts)
        was_done = self._command.has_summary()
        token = self._command.token
        attempt = start(self._command.line(), hosts, self._options.ssh, self._output, token)
        growth = Growth(lambda: self._pool.more_hosts(hosts), attempt.workers)
        watch = Watch(attempt, self._options.limits, growth, self._signals)
        try:
            watch.wait(lambda: self._restarts.reached(attempt))
        finally:
            attempt.close()
            self._begun = self._begun or attempt.step > 0
        code = attempt.process.returncode
        if code == 0:
            return self._finish()
        if self._signals:
            return self._stopped(code, attempt)
        if watch.grown and code == EXIT_STOPPED:
            now = time.time()
            self._restarts.begin(self._attempts, attempt, Failure(None, watch.grown), now, now)
            return None
        failure = watch.hanging or self._failure_of(attempt)
        if self._command.has_summary() and not was_done:
            log.warning("warning: the run had ended when it failed: %s", failure.cause)
            return self._finish()
        return self._restart_or_fail(attempt, failure, watch.detected or time.time())

    def _failure_of(self, attempt: Attempt) -> Failure:
        code, ends = attempt.process.returncode, attempt.ends
        if code < 0 and not any(end.code for end in ends):
            return Failure(None, f"the launcher of the ranks was ended by signal {-code}")
        return find_failure(
            ends,
            workers=attempt.workers,
            made_steps=attempt.step > max(0, attempt.first),
            is_first=self._attempts == 1,
            last_line=self._output.last_line,
        )

    def _finish(self) -> int:
        with contextlib.suppress(OSError):  # what the run wrote is whole
            keep_command(self._command, finished=True)
        known = self._restarts.add_to_summary(self._command.out)
        if known["restarts"]:
            log.info(
                "launch: done after %d restarts, which took %.1f s and %d steps",
                known["restarts"],
                known["restart_seconds"],
                known["steps_lost"],
            )
            self._pool.sweep()
        return 0

    def _stopped(self, code: int, attempt: Attempt) -> int:
        if len(self._signals) > 1:
            return EXIT_KILLED
        if code != EXIT_STOPPED:
            self._pool.sweep()
        if 0 < code < 128 and code != EXIT_STOPPED:
            failure = self._failure_of(attempt)
            self._show_last_lines(failure)
            log.error("error: %s (when asked to stop by %s)", failure.cause, self._signals[0])
            return failure.code
        log.info("launch: stopped by %s; run the same command again to continue", self._signals[0])
        return EXIT_STOPPED

    def _restart_or_fail(self, attempt: Attempt, failure: Failure, detected: float) -> int | None:
        host = None if failure.rank is None else host_of_rank(attempt.hosts, failure.rank)
        where = "" if host is None else f"rank {failure.rank} on {host}: "
        why = self._budget.spend(failure, attempt.step)
        if why is not None:
            self._show_last_lines(failure)
            self._pool.sweep()
            log.error("error: %s%s (%s)", where, failure.cause, why)
            return failure.code if failure.code != EXIT_STOPPED else 1
        is_full = why_not_writable(self._command.folder)  # which is the fault of no host
        left_out = self._judge_hosts(attempt, None if is_full else host)
        log.warning(
            "launch: %s%s; restarting (%d of %d without progress)%s",
            where,
            failure.cause,
            self._budget.used,
            self._budget.allowed,
            left_out,
        )
        fault = failure.since
        if not fault and failure.rank is not None:
            fault = attempt.ranks[failure.rank].runs
        fault = min(fault or detected, detected)
        self._restarts.begin(self._attempts, attempt, failure, fault, detected)
        self._sleep(pause_after(self._budget.used))
        return self._wait_for_space()

    def _judge_hosts(self, attempt: Attempt, failed: str | None) -> str:
        """Notes which hosts worked, and which one failed; returns whether it is left out."""
        names = {host.name for host in attempt.hosts}
        if attempt.step > max(0, attempt.first):
            for name in names - {failed}:
                self._pool.pauses.worked(name)
        if failed is None:
            return ""
        trained = time.time() - attempt.stepped if attempt.stepped else 0.0
        seconds = self._pool.pauses.failed(failed, time.monotonic(), trained)
        return f"; {failed} is left out for {seconds:g} s" if seconds and len(names) > 1 else ""

    def _show_last_lines(self, failure: Failure) -> None:
        """Shows the last lines of the rank that failed first; those of rank 0 were shown."""
        lines = self._output.last_lines(failure.rank) if failure.rank else []
        if not lines:
            return
        file = self._output.folder / f"rank-{failure.rank}.log"
        log.error("launch: the last lines of rank %s (%s):", failure.rank, file)
        for line in lines:
            log.error("  %s", line)

    def _wait_for_hosts(self) -> list[Host]:
        """Returns the hosts of the next attempt; none if there were too few for too long."""
        began, said = time.monotonic(), False
        while not self._signals:
            hosts = self._pool.next_hosts()
            # New hosts may be listed at any time; those that are listed and do not answer are more
            # likely to be given wrongly, if they never did.
            at_start = not self._begun and self._pool.obstacles
            self._waited = self._patience(START_WAIT_SECONDS if at_start else WAIT_SECONDS)
            if hosts or time.monotonic() > began + self._waited:
                return hosts
            if not said:
                said = True
                why = f" ({self._pool.obstacles})" if self._pool.obstacles else ""
                log.warning(
                    "launch: fewer than %d workers could run%s; waiting up to %g s",
                    self._pool.fewest,
                    why,
                    self._waited,
                )
            self._sleep(_ASK_SECONDS)
        return []

    def _wait_for_space(self) -> int | None:
        """Waits until the run directory can be written; returns the exit code if it cannot be."""
        began, said = time.monotonic(), False
        while (why := why_not_writable(self._command.folder)) and not self._signals:
            seconds = self._patience(START_WAIT_SECONDS)
            if time.monotonic() > began + seconds:
                self._pool.sweep()
                log.error("error: %s; free some space and run the same command again", why)
                return 1
            if not said:
                said = True
                log.warning("launch: %s; waiting up to %g s", why, seconds)
            self._sleep(_SPACE_SECONDS)
        return None

    def _patience(self, usual: float) -> float:
        return usual if self._options.wait is None else self._options.wait

    def _give_up_waiting(self) -> int:
        if self._signals:
            log.info(
                "launch: stopped by %s; run the same command again to continue", self._signals[0]
            )
            return EXIT_STOPPED
        log.error(
            "error: fewer than %d workers could run for %g s%s; run the same command again to "
            "continue, or lower --min",
            self._pool.fewest,
            self._waited,
            f": {self._pool.obstacles}" if self._pool.obstacles else "",
        )
        return 1

    def _sleep(self, seconds: float) -> None:
        """Waits, but not on when a signal has asked to stop."""
        deadline = time.monotonic() + seconds
        while not self._signals and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(0.1, left))


class _Listening:
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
