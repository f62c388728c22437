"""The command `python -m distcnn.doctor`: checks whether training would work on this machine."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from distcnn.cli.checks import (
    check_cluster,
    check_hardware,
    check_reduction,
    check_storage,
    check_versions,
)
from distcnn.cli.command import run_command, write_json
from distcnn.cli.parser import Parser, parse_config
from distcnn.cli.startup import import_tensorflow
from distcnn.distribute.strategies import STRATEGIES
from distcnn.errors import UsageError
from distcnn.proving.proof import prove_lockstep
from distcnn.proving.subjects import RunSubject, ScriptSubject, Subject
from distcnn.runtime.finding import Finding

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


class _Report:
    """Prints findings as they come, and keeps them."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)

    def add(self, findings: Iterable[Finding]) -> list[Finding]:
        """Prints findings, and returns them."""
        added = []
        for finding in findings:
            added.append(finding)
            self._console.print(f"{finding.level:8}", style=_STYLES[finding.level], end="")
            self._console.print(f"{finding.subject:27} {finding.text}")
            if finding.fix:
                self._console.print(f"{'':36}-> {finding.fix}")
        self.findings += added
        return added

    @property
    def failed(self) -> bool:
        """Whether a finding is an error."""
        return any(finding.level == "error" for finding in self.findings)


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Returns:
        The exit code: 1 if training would not work, else 0.
    """
    own, lockstep = _split(arguments)
    parser = Parser("distcnn.doctor", "Checks whether training would work on this machine.")
    parser.add_argument("--json", help="JSON file for the findings.")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Skip the check of the port, and the test reductions between two processes.",
    )
    parser.add_argument(
        "--lockstep",
        metavar="N SCRIPT.py|FLAG",
        help="Last flag: compare the first steps of a Keras script, or of a run with the flags of "
        "distcnn.train, on 1 and on N workers instead.",
    )
    options = parser.parse_args(own)
    report = _Report()
    if lockstep:
        workers, given = _workers_of(lockstep)
        subject = _subject_of(given, workers)
        if subject is None:
            return 0
        report.add(prove_lockstep(workers, subject))
    else:
        _examine(report, quick=options.quick)
    write_json(options.json, [dataclasses.asdict(finding) for finding in report.findings])
    return int(report.failed)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits off what follows `--lockstep`, which may hold a script's own flags."""
    if "--lockstep" not in arguments:
        return list(arguments), []
    place = list(arguments).index("--lockstep")
    return list(arguments[:place]), list(arguments[place:])


def _workers_of(lockstep: Sequence[str]) -> tuple[int, list[str]]:
    """Returns the number of workers and what follows it.

    Raises:
        UsageError: If one is missing or wrong.
    """
    _, *given = lockstep
    if len(given) < 2 or not given[0].isdigit() or int(given[0]) < 2:
        raise UsageError(
            f"--lockstep is {' '.join(given) or 'empty'}; expected the number of workers, at least "
            "2, and a script or the flags of a run: --lockstep 2 script.py, or --lockstep 2 "
            "--recipe quickstart"
        )
    return int(given[0]), given[1:]


def _subject_of(given: Sequence[str], workers: int) -> Subject | None:
    """Returns the script or the run to prove; None if the run's configuration was only printed.

    Raises:
        UsageError: If the script does not exist, or a flag of the run is wrong.
    """
    if given[0].startswith("-"):
        config = parse_config("distcnn.doctor", "Proves that a run is in lockstep.", given)
        return None if config is None else RunSubject(config, workers)
    if not Path(given[0]).is_file():
        raise UsageError(
            f"script is {given[0]}; expected the path of a Python file, or a flag of distcnn.train"
        )
    return ScriptSubject(given)


def _examine(report: _Report, *, quick: bool) -> None:
    """Checks this machine."""
    report.add(check_versions())
    usable = []
    if not report.failed:
        import_tensorflow()
        report.add(check_hardware())
        for name, strategy in STRATEGIES.items():
            findings = report.add(strategy.check())
            if strategy.joins_processes and all(f.level == "ok" for f in findings):
                usable.append(name)
    report.add(check_cluster(os.environ, ports=not quick))
    report.add(check_storage())
    if not quick and not report.failed:
        for name in usable:
            report.add(check_reduction(name))


if __name__ == "__main__":
    run_command(main)
