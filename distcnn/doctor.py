"""The command `python -m distcnn.doctor`: checks whether training would work on this machine."""

import dataclasses
import os
from collections.abc import Sequence

from rich.console import Console

from distcnn.cli.checks import (
    check_cluster,
    check_hardware,
    check_reduction,
    check_storage,
    check_versions,
)
from distcnn.cli.command import run_command, write_json
from distcnn.cli.parser import Parser
from distcnn.cli.startup import import_tensorflow
from distcnn.distribute.strategies import STRATEGIES
from distcnn.runtime.finding import Finding

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Returns:
        The exit code: 1 if training would not work, else 0.
    """
    parser = Parser("distcnn.doctor", "Checks whether training would work on this machine.")
    parser.add_argument("--json", help="JSON file for the findings.")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Skip the check of the port, and the test reductions between two processes.",
    )
    options = parser.parse_args(list(arguments))

    findings: list[Finding] = []
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)

    def report(finding: Finding) -> None:
        findings.append(finding)
        console.print(f"{finding.level:8}", style=_STYLES[finding.level], end="")
        console.print(f"{finding.subject:28}{finding.text}")
        if finding.fix:
            console.print(f"{'':36}-> {finding.fix}")

    for finding in check_versions():
        report(finding)
    usable = []
    if not any(finding.level == "error" for finding in findings):
        import_tensorflow()
        for finding in check_hardware():
            report(finding)
        for name, strategy in STRATEGIES.items():
            findings_of_strategy = list(strategy.check())
            for finding in findings_of_strategy:
                report(finding)
            if strategy.joins_processes and all(f.level == "ok" for f in findings_of_strategy):
                usable.append(name)
    for finding in (*check_cluster(os.environ, ports=not options.quick), *check_storage()):
        report(finding)
    if not options.quick and not any(finding.level == "error" for finding in findings):
        for name in usable:
            for finding in check_reduction(name):
                report(finding)
    write_json(options.json, [dataclasses.asdict(finding) for finding in findings])
    return int(any(finding.level == "error" for finding in findings))


if __name__ == "__main__":
    run_command(main)
