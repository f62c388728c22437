"""Launches runs that no restart can mend: each must end soon, with the cause as its last line.

    python -m tests.faults.unmendable [--case NAME] [--hosts] [--folder DIR]

With --hosts, as root, those on two hosts that are made for it, too.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import PIL.Image

from distcnn.launching.record import read
from tests.faults.disks import Disk, mounted
from tests.hosts.conftest import SEARCH
from tests.hosts.machines import ADDRESSES, PORT, Machines, two_hosts
from tests.launching.launched import LaunchedRun
from tests.launching.processes import everything_of
from tests.runs import small_run

FIRST, SECOND = ADDRESSES

_AFTER_SECONDS = 30.0
_MOST_SECONDS = 120.0
_SCRIPT = "import keras\nkeras.Input((2,))\nraise ValueError('there are no cats')\n"


@dataclass(frozen=True)
class Case:
    """A run that cannot succeed.

    Attributes:
        cause: A pattern that the last line has.
        code: The exit code.
        own: Flags of the launcher.
        overrides: Values of the training run.
        command: The command, if it is another one.
        prepare: Makes what the run finds; gets the folder, returns the run directory.
        meanwhile: Called while the run goes on.
        restarts: The most restarts: 0 if the cause shows at once that none helps.
        missing: Folders that the second host does not have.
        on_hosts: Whether it takes two hosts.
        environment: Further environment variables.
    """

    cause: str
    code: int = 1
    own: Sequence[str] = ("--workers", "2")
    overrides: Mapping[str, Any] = field(default_factory=dict)
    command: Sequence[str] = ()
    prepare: Callable[[Path], Path] = lambda folder: folder / "run"
    meanwhile: Callable[[LaunchedRun], None] = lambda run: None
    restarts: int = 0
    missing: Sequence[Path] = ()
    on_hosts: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def _script(folder: Path) -> Path:
    (folder / "script.py").write_text(_SCRIPT)
    return folder / "run"


def _images(folder: Path, damaged: bytes | None) -> Path:
    generator = np.random.default_rng(1)
    for number in range(64):
        path = folder / "images/train" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    if damaged is not None:
        path.write_bytes(path.read_bytes()[:60] + damaged)
    return folder / "run"


def _of_images(folder: str = "images") -> dict[str, Any]:
    return {
        "data__name": "folder",
        "data__dir": folder,
        "data__image_size": 32,
        "train__global_batch_size": 8,
    }


def _other_checkpoint(folder: Path) -> Path:
    small_run(folder / "other", train__epochs=1)
    return folder / "run"


def _broken_package(folder: Path) -> Path:
    (folder / "broken/keras").mkdir(parents=True)
    (folder / "broken/keras/__init__.py").write_text("import package_that_nobody_has\n")
    return folder / "run"


def _fill_disk(run: LaunchedRun) -> None:
    run.wait_for_step(20)
    Disk(run.out.parent).fill()


def _callback(name: str) -> dict[str, Any]:
    return {"train__callbacks": [f"tests.faults.breaking:{name}"]}


_AT_BOTH = ("-H", ",".join(f"{address}:1" for address in ADDRESSES.values()), "--min", "2")

CASES: dict[str, Case] = {
    "wrong value": Case(
        "train.epochs is 'x'; expected int", 2, command=("train", "--train.epochs=x")
    ),
    "unknown flag": Case("--train.epoch", 2, command=("train", "--train.epoch", "3")),
    "no such model": Case("tests.nothing", 2, overrides={"model__factory": "tests.nothing:cats"}),
    "no such images": Case("/nowhere does not exist", overrides=_of_images("/nowhere")),
    "damaged image": Case(
        r"cannot be decoded|damaged|is not a",
        overrides=_of_images(),
        prepare=lambda folder: _images(folder, b"cats"),
    ),
    "not-a-number loss": Case(
        "the loss of step 7 is not finite",
        overrides={"model__factory": "tests.tiny:exploding", "model__args": {"at": 7}},
    ),
    "bug in a script": Case(
        "ValueError: there are no cats", command=("run", "script.py"), prepare=_script
    ),
    "no such script": Case("nothing.py", 2, command=("run", "nothing.py")),
    "bug in every rank": Case("KeyError: 'cats'", overrides=_callback("RaisesEverywhere")),
    "bug in one rank": Case("has no cats", overrides=_callback("Raises"), restarts=1),
    "crash of one rank": Case("SIGSEGV", overrides=_callback("Crashes"), restarts=1),
    "error of TensorFlow": Case("shape", overrides=_callback("FailsInTensorFlow"), restarts=1),
    "out of memory": Case("out of memory", overrides=_callback("Exhausts"), restarts=1),
    "forbidden directory": Case("/proc/nobody", prepare=lambda folder: Path("/proc/nobody")),
    "directory of another run": Case(
        "finished run", prepare=lambda folder: _other_checkpoint(folder).with_name("other")
    ),
    "checkpoint of another model": Case(
        "another model",
        overrides={"checkpoint__resume": "other", "data__synthetic_examples": 230},
        prepare=_other_checkpoint,
    ),
    "package is missing": Case(
        "No module named 'package_that_nobody_has'",
        prepare=_broken_package,
        environment={"PYTHONPATH": "broken"},
    ),
    "too few slots": Case("min is 3; expected at most 2", 2, own=("--workers=2", "--min=3")),
    "no discovery": Case("the discovery script false exits with 1", own=("--discover", "false")),
    "disk full for good": Case(
        "No space left|is full",
        prepare=lambda folder: folder / "disk" / "run",
        meanwhile=_fill_disk,
        restarts=1,
    ),
    "no such host": Case("Could not resolve hostname", own=("-H", "no-such-host.invalid:1")),
    "no answer": Case(
        "No route to host|timed out|no answer", own=("-H", "10.77.0.9:1"), on_hosts=True
    ),
    "no sshd": Case(
        "Connection refused",
        own=("-H", f"{ADDRESSES[SECOND]}:1", "--ssh-port", "2"),
        on_hosts=True,
    ),
    "wrong ssh key": Case(
        "Permission denied",
        own=(*_AT_BOTH, "--ssh-port", PORT, "--ssh-key", "/dev/null"),
        on_hosts=True,
    ),
    "no Python on a host": Case(
        "not found|No such file", own=_AT_BOTH, missing=[Path(sys.prefix)], on_hosts=True
    ),
    "package missing on a host": Case(
        "No module named 'keras|no attribute",
        own=_AT_BOTH,
        missing=[Path(keras.__file__).parent],
        on_hosts=True,
    ),
    "no such network interface": Case("nope0", own=(*_AT_BOTH, "--nic", "nope0"), on_hosts=True),
}


def try_case(name: str, case: Case, folder: Path, machines: Machines | None) -> str | None:
    """Launches a run that cannot succeed, and prints how it ended.

    Returns:
        What is wrong with that, or None.
    """
    folder.mkdir(parents=True)
    own, prefix, environment = list(case.own), [], dict(case.environment)
    if "PYTHONPATH" in environment:
        paths = [str(folder / environment["PYTHONPATH"]), os.environ["PYTHONPATH"]]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    if machines is not None and case.on_hosts:
        machines.start_sshd(SECOND, case.missing)
        time.sleep(1)
        prefix, environment["PATH"] = ["ip", "netns", "exec", FIRST], SEARCH
        own += [] if "--ssh-port" in own else ["--ssh-port", PORT, "--ssh-key", str(machines.key)]
    with _folder(name, folder), contextlib.chdir(folder):
        out = case.prepare(folder)
        log = folder / "launcher.txt"
        began = time.time()
        with LaunchedRun(
            out, own, case.command, environment, prefix, log=log, **case.overrides
        ) as run:
            with contextlib.suppress(AssertionError):
                case.meanwhile(run)
            fault = time.time()
            try:
                code: int | None = run.wait(_MOST_SECONDS)
            except subprocess.TimeoutExpired:
                code = None
        ended = time.time()
        left = everything_of(out)
        restarts = [restart for restart in read(out / "launch") if "time" in restart]
    fault = restarts[0]["time"] if restarts else fault
    after = ended - (fault if restarts or "disk" in name else began)
    last = ([line for line in log.read_text().splitlines() if line.strip()] or [""])[-1]
    print(
        f"{name:28} {code!s:>4} {after:6.1f} s {len(restarts)} restarts  {last[:200]}", flush=True
    )
    wrong = _wrong(case, code, last, after, len(restarts))
    wrong += [f"left running: {left}"] if left else []
    return f"{name}: {'; '.join(wrong)}" if wrong else None


def _wrong(case: Case, code: int | None, last: str, after: float, restarts: int) -> list[str]:
    """Returns what is wrong with how a run ended."""
    wrong = []
    if code != case.code:
        wrong.append(f"exit code {code}, expected {case.code}")
    if re.search(case.cause, last) is None:
        wrong.append(f"the last line lacks {case.cause!r}")
    if after > _AFTER_SECONDS:
        wrong.append(f"it took {after:.1f} s")
    if restarts > case.restarts:
        wrong.append(f"{restarts} restarts")
    return wrong


@contextlib.contextmanager
def _folder(name: str, folder: Path) -> Iterator[None]:
    with mounted(folder / "disk", 16) if "disk" in name else contextlib.nullcontext():
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries the cases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=tuple(CASES), action="append", help="Default: all.")
    parser.add_argument("--hosts", action="store_true")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="distcnn-unmendable-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / ".cache")
    failed = []
    with contextlib.ExitStack() as stack:
        machines = None
        if options.hosts:
            keys = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            machines = stack.enter_context(two_hosts(keys))
        for name in options.case or CASES:
            if CASES[name].on_hosts and machines is None:
                print(f"{name:28} skipped: it takes --hosts")
                continue
            problem = try_case(name, CASES[name], folder / name.replace(" ", "-"), machines)
            failed += [problem] if problem else []
    for line in failed:
        print(line)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
