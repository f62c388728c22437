"""The command `python -m distcnn.launch`: starts a run's workers, and again when some are lost."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distcnn.cli.command import require_at_least_one, run_command
from distcnn.cli.parser import Parser
from distcnn.errors import UsageError
from distcnn.launching.attempt import ranks_line
from distcnn.launching.command import COMMANDS, Launched, parse_command, with_folder
from distcnn.launching.hosts import (
    Host,
    choose_workers,
    discover_hosts,
    parse_hosts,
    read_hostfile,
)
from distcnn.launching.output import RankOutput
from distcnn.launching.pool import HostPool
from distcnn.launching.reaching import Ssh
from distcnn.launching.supervisor import Options, Supervisor
from distcnn.launching.watching import Limits
from distcnn.runtime.nvidia import count_nvidia_gpus

_SWITCHES = ("--dry-run", "--debug", "-h", "--help")


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Returns:
        The exit code: 0 when the command is done, 75 when a signal stopped it after saving, else
        that of the rank that failed first.
    """
    own, words = split_launched(arguments)
    options = _parser().parse_args(own)
    parsed = parse_command(words)
    if {"-h", "--help", "--print-config"} & set(parsed.own):
        os.execv(sys.executable, [sys.executable, "-m", f"distcnn.{words[0]}", *words[1:]])
    command = with_folder(parsed)
    listed = _listed(options)
    settings = _settings(options, command.notice())
    if options.dry_run:
        hosts = choose_workers(listed(), settings.most, command.shards())
        print(shlex.join(ranks_line(command.line(), hosts, settings.ssh)))
        return 0
    return _launch(command, listed, settings, options.output)


def _launch(
    command: Launched, listed: Callable[[], list[Host]], settings: Options, folder: str | None
) -> int:
    shown = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    output = RankOutput(command.folder if folder is None else Path(folder), shown)
    try:
        pool = HostPool(
            listed, settings.ssh, settings.fewest, settings.most, command.token, command.shards
        )
        return Supervisor(command, pool, settings, output).run()
    finally:
        output.close()


def _parser() -> Parser:
    parser = Parser(
        "distcnn.launch",
        "Starts the workers of COMMAND (train ..., run SCRIPT.py ... or benchmark ...), and starts "
        "them again from the newest checkpoint when some are lost.",
    )
    where = "expected at most one of --workers, -H, --hostfile and --discover"
    parser.add_argument(
        "--workers", type=int, help=f"Workers on this host (default: a GPU each, else 1); {where}."
    )
    parser.add_argument("-H", "--hosts", metavar="HOST:SLOTS,...", help="Hosts and their workers.")
    parser.add_argument(
        "--hostfile", help="File with lines `host slots=4` or `host:4`; read again at each start."
    )
    parser.add_argument(
        "--discover",
        metavar="SCRIPT",
        help="Command that prints the hosts that can be used now, `host:slots` or `host` a line.",
    )
    parser.add_argument("--min", type=int, default=1, help="The fewest workers to go on with.")
    parser.add_argument(
        "--max", type=int, default=None, help="The most workers. Default: all slots."
    )
    parser.add_argument(
        "--restarts", type=int, default=3, help="Restarts without a new step that end the run."
    )
    parser.add_argument(
        "--stall",
        type=float,
        default=600.0,
        help="Seconds without a step after which a run hangs, ten times as many before its first "
        "step; 0: never.",
    )
    parser.add_argument(
        "--wait", type=float, default=600.0, help="Seconds to wait for the fewest workers."
    )
    parser.add_argument(
        "--output", help="Folder for the output of each rank. Default: launch in the run directory."
    )
    parser.add_argument("--ssh-port", type=int, help="Port of sshd on the hosts.")
    parser.add_argument("--ssh-key", help="Private key for the hosts.")
    parser.add_argument("--nic", help="Network interface between the hosts.")
    parser.add_argument(
        "--dry-run", action="store_true", help="Print the first command without running it."
    )
    return parser


def split_launched(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into our own flags and the command to launch."""
    place = 0
    while place < len(arguments) and arguments[place] not in COMMANDS:
        is_flag = arguments[place].startswith("-")
        if not is_flag:
            break  # what should be a command
        takes_next = "=" not in arguments[place] and arguments[place] not in _SWITCHES
        place += 1 + takes_next
    return list(arguments[:place]), list(arguments[place:])


def _listed(options: Any) -> Callable[[], list[Host]]:
    """Returns a function that returns the hosts as they are now.

    Raises:
        UsageError: If they are given in two ways, or are none.
    """
    ways = ("workers", "hosts", "hostfile", "discover")
    given = [name for name in ways if options[name] is not None]
    if len(given) > 1:
        flags = " and ".join("-H" if name == "hosts" else f"--{name}" for name in given)
        raise UsageError(f"the hosts are given by {flags}; expected one of them")
    if options.hosts is not None:
        hosts = parse_hosts(options.hosts)
        return lambda: hosts
    if options.hostfile is not None:
        file = Path(options.hostfile)
        read_hostfile(file)
        return lambda: read_hostfile(file)
    if options.discover is not None:
        return lambda: discover_hosts(options.discover)
    workers = count_nvidia_gpus() or 1 if options.workers is None else options.workers
    if workers < 1:
        raise UsageError(f"workers is {workers}; expected at least 1")
    return lambda: [Host("localhost", workers)]


def _settings(options: Any, notice: str | None) -> Options:
    require_at_least_one(options, "min")
    if options.max is not None and options.max < options.min:
        raise UsageError(f"max is {options.max}; expected at least min, {options.min}")
    for name in ("restarts", "stall", "wait"):
        if options[name] < 0:
            raise UsageError(f"{name} is {options[name]}; expected at least 0")
    return Options(
        fewest=options.min,
        most=options.max,
        restarts=options.restarts,
        wait=options.wait,
        limits=Limits(options.stall),
        ssh=Ssh(options.ssh_port, options.ssh_key, options.nic, notice),
    )


if __name__ == "__main__":
    run_command(main)
