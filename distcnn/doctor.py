"""The command `python -m distcnn.doctor`: whether training would work here, and how to mend it."""

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
    """Examines this machine.

    Args:
        arguments: The command line, without the program.

    Returns:
        1 if training would not work, else 0.
    """
    parser = Parser("distcnn.doctor", "Says whether training would work here.")
    parser.add_argument("--json", help="File for the findings.")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Leave out the ports, and the processes that reduce for real.",
    )
    options = parser.parse_args(list(arguments))

    findings: list[Finding] = []
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)

    def show(found: Finding) -> None:
        findings.append(found)
        console.print(f"{found.level:8}", style=_STYLES[found.level], end="")
        console.print(f"{found.subject:28}{found.text}")
        if found.fix:
            console.print(f"{'':36}-> {found.fix}")

    for found in check_versions():
        show(found)
    usable = []
    if not any(found.level == "error" for found in findings):
        import_tensorflow()
        for found in check_hardware():
            show(found)
        for name, strategy in STRATEGIES.items():
            found_of_strategy = list(strategy.check())
            for found in found_of_strategy:
                show(found)
            if strategy.joins_processes and all(f.level == "ok" for f in found_of_strategy):
                usable.append(name)
    for found in (*check_cluster(os.environ, ports=not options.quick), *check_storage()):
        show(found)
    if not options.quick and not any(found.level == "error" for found in findings):
        for name in usable:
            for found in check_reduction(name):
                show(found)
    write_json(options.json, [dataclasses.asdict(found) for found in findings])
    return int(any(found.level == "error" for found in findings))


if __name__ == "__main__":
    run_command(main)
