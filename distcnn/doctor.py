"""The command `python -m distcnn.doctor`: checks whether training works on this machine."""

import dataclasses
import os
from collections.abc import Sequence

from rich.console import Console

from distcnn.cli.checks import (
    Finding,
    check_cluster,
    check_hardware,
    check_horovod,
    check_reduction,
    check_storage,
    check_versions,
)
from distcnn.cli.commandline import Parser, run_command, write_json
from distcnn.cli.startup import import_tensorflow

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def main(arguments: Sequence[str]) -> int:
    """Runs the checks and prints each finding with its fix.

    Args:
        arguments: The command line, without the program.

    Returns:
        The exit code: 1 if training would not work, else 0.
    """
    parser = Parser("distcnn.doctor", "Checks whether training would work on this machine.")
    parser.add_argument("--json", help="File to write the findings to.")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Skip the checks of ports, and those that start processes to reduce.",
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
    if not any(finding.level == "error" for finding in findings):
        import_tensorflow()
        for check in (check_hardware, check_horovod):
            for finding in check():
                report(finding)
    for finding in (*check_cluster(os.environ, ports=not options.quick), *check_storage()):
        report(finding)
    if not options.quick and not any(finding.level == "error" for finding in findings):
        has_horovod = any(f.subject == "horovod" and f.level == "ok" for f in findings)
        for strategy in ("horovod", "multi_worker") if has_horovod else ("multi_worker",):
            for finding in check_reduction(strategy):
                report(finding)
    write_json(options.json, [dataclasses.asdict(finding) for finding in findings])
    return int(any(finding.level == "error" for finding in findings))


if __name__ == "__main__":
    run_command(main)
