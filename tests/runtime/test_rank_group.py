"""How the launcher's ranks are started, stopped and reported."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from distcnn.runtime import rank_group, rank_process
from distcnn.runtime.rank_group import RankGroup
from distcnn.runtime.rank_page import FailureKind
from distcnn.runtime.supervision import Supervision
from tests.launching.launched import still_running

SAVES = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped by SIGTERM'))\n"
    "print('begun', flush=True)\n"
    "time.sleep(60)\n"
)
"""A rank that ends on SIGTERM, with code 1."""


def forward(source: Any, target: Any, prefix: str, index: int, timestamp: bool) -> None:
    with source:
        for line in source:
            target.write(f"[{index}]<{prefix}>:{line.decode()}")


def shell(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def test_a_ranks_output_and_exit_code_are_passed_on():
    group, out, err = RankGroup(forward), io.StringIO(), io.StringIO()
    code = "import sys; print('a'); print('error: full', file=sys.stderr); sys.exit(3)"
    assert group.execute(shell(code), stdout=out, stderr=err, index=2) == 3
    assert out.getvalue() == "[2]<stdout>:a\n"
    assert err.getvalue() == "[2]<stderr>:error: full\n"
    assert group.execute(shell("import os; os.kill(os.getpid(), 9)"), stdout=out, index=1) == 137


def test_an_event_stops_a_rank():
    group, out, err = RankGroup(forward), io.StringIO(), io.StringIO()
    event = threading.Event()
    threading.Timer(1, event.set).start()
    began = time.monotonic()
    assert group.execute(shell(SAVES), stdout=out, stderr=err, events=[event]) == 1
    assert time.monotonic() - began < 15
    assert err.getvalue() == "[0]<stderr>:stopped by SIGTERM\n"


def test_after_a_failure_the_others_are_given_less_time():
    group, event = RankGroup(forward), threading.Event()
    assert group._order([event]) == b""
    event.set()
    assert group._order([event]) == b"t"
    group._endings[1] = rank_group._Ending(io.StringIO(), code=75)
    assert group._order([event]) == b"t"
    group._endings[1].code = 1
    assert group._order([event]) == b"f"
    group.signals.append("SIGTERM")
    assert group._order([event]) == b"t"
    group.signals.append("SIGTERM")
    assert group._order([event]) == b"k"


def test_a_second_signal_kills_a_rank_that_would_rather_save():
    group, out = RankGroup(forward), io.StringIO()
    ignoring = SAVES.replace("sys.exit('stopped by SIGTERM')", "None")

    def signal_twice() -> None:
        group.signals += ["SIGINT", "SIGINT"]
        event.set()

    event = threading.Event()
    threading.Timer(1, signal_twice).start()
    began = time.monotonic()
    assert group.execute(shell(ignoring), stdout=out, stderr=out, events=[event]) == 137
    assert time.monotonic() - began < 15
    assert "stopped by a second signal (SIGINT, SIGINT) before" in str(group.last_line())


@pytest.mark.parametrize(
    ("endings", "line"),
    [
        ([(1, 1.0, ""), (1, 2.0, "error: no")], "rank 1 reports error: no"),
        ([(75, 2.0, "stopped by SIGTERM"), (75, 1.0, "")], "rank 0 reports stopped by SIGTERM"),
        ([(75, 1.0, "stopped by SIGTERM"), (75, 1.5, "")], "rank 0 reports stopped by SIGTERM"),
        ([(75, 1.0, "stopped by SIGTERM"), (75, 3.0, "")], None),
        ([(1, 1.0, "error: no"), (143, 1.5, "")], None),
        ([(1, 1.0, "error: first"), (1, 2.0, "error: second")], None),
        ([(3, 1.0, ""), (3, 2.0, "")], None),
        (
            [(1, 2.0, "error: the connection to rank 1 was lost"), (137, 1.0, "")],
            "rank 1 was ended by SIGKILL, as Linux does when memory runs short",
        ),
        ([(134, 1.0, ""), (1, 2.0, "error: lost")], "rank 0 was ended by SIGABRT"),
    ],
)
def test_the_last_line_is_that_of_the_rank_that_knows_the_cause(endings, line):
    group = RankGroup(forward)
    for rank, (code, ended, cause) in enumerate(endings):
        ending = rank_group._Ending(io.StringIO(), cause, code, ended)
        group._endings[rank] = ending
    assert group.last_line() == line
    group.signals.append("SIGTERM")
    if line is None and not endings[0][2]:
        assert str(group.last_line()).startswith("stopped by SIGTERM")


def test_a_signal_that_arrives_twice_at_once_counts_once():
    previous = {number: signal.getsignal(number) for number in rank_group.SIGNALS}
    try:
        group = RankGroup(forward)
        event = group.listen()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert event.is_set()
        assert group.signals == ["SIGTERM"]
        time.sleep(rank_group.REPEAT_SECONDS * 1.5)
        os.kill(os.getpid(), signal.SIGINT)
        assert group.signals == ["SIGTERM", "SIGINT"]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_rank_ends_with_its_launcher_even_if_that_is_killed(stubborn, tmp_path):
    """It may save first; if it does not end by itself, it is killed."""
    file = tmp_path / "rank.py"
    end = "" if stubborn else "print('x' * 100000); open('saved', 'w'); sys.exit(75)"
    file.write_text(
        "import os, signal, sys, time\n"
        "def stop(*_):\n"
        f"    {end or 'pass'}\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "open('pid', 'w').write(str(os.getpid()))\n"
        "for _ in range(600): time.sleep(0.1)\n"
    )
    program = tmp_path / "rank_process.py"
    text = Path(rank_process.__file__).read_text()
    program.write_text(text.replace("ORPHAN_SECONDS = 7", "ORPHAN_SECONDS = 2"))
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import subprocess, sys, time\n"
            "p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            "time.sleep(60)",
            *(sys.executable, "-I", str(program), f"{sys.executable} {file}"),
        ],
        cwd=tmp_path,
    )
    rank = started(tmp_path / "pid")
    launcher.kill()
    launcher.wait()
    psutil.wait_procs([rank], timeout=10)
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE
    assert (tmp_path / "saved").exists() != stubborn


def test_a_rank_dies_with_what_guards_it(tmp_path):
    program = str(Path(rank_process.__file__))
    waits = f"import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    guard = subprocess.Popen(
        [sys.executable, "-I", program, shell(waits)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    rank = started(tmp_path / "pid")
    guard.kill()
    guard.communicate()
    assert not still_running([rank], 5)


def test_a_rank_on_another_host_ends_when_its_launcher_is_silent(tmp_path):
    program = tmp_path / "rank_process.py"
    text = (
        Path(rank_process.__file__)
        .read_text()
        .replace("SILENCE_SECONDS = 30", "SILENCE_SECONDS = 2")
    )
    program.write_text(text)
    waits = f"import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    command = f"cd {tmp_path} ; exec {shell(waits)}"
    guard = subprocess.Popen(
        [sys.executable, "-I", str(program), command, "remote"], stdin=subprocess.PIPE
    )
    assert guard.stdin is not None
    rank = started(tmp_path / "pid")
    for _ in range(6):  # it speaks for longer than it may be silent
        guard.stdin.write(b".")
        guard.stdin.flush()
        time.sleep(0.5)
    assert rank.is_running()
    assert guard.wait(6) == 128 + signal.SIGTERM
    guard.stdin.close()
    assert not rank.is_running()


def test_a_supervised_rank_reports_its_page_and_whether_it_is_suspended():
    told: list[dict[str, Any]] = []
    supervision = cast(Supervision, SimpleNamespace(tell=lambda **event: told.append(event)))
    group, out, err = RankGroup(forward, supervision), io.StringIO(), io.StringIO()
    code = (
        "import os, signal, sys, time\n"
        "from distcnn.runtime.rank_page import own_page\n"
        "page = own_page()\n"
        "page.joined(); page.restored(7, 1); page.stepped(8, 1)\n"
        "sys.stderr.write('half'); sys.stderr.flush()\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "page.failed(ValueError()); sys.exit('a line')"
    )
    threading.Timer(4, wake).start()
    assert group.execute(shell(code), stdout=out, stderr=err, index=3) == 1
    *reports, end = told
    assert any(report["suspended"] for report in reports if "suspended" in report)
    assert {report["rank"] for report in told} == {3}
    assert (end["event"], end["code"], end["kind"]) == ("end", 1, FailureKind.EXCEPTION)
    assert (end["step"], end["first"], end["epoch"]) == (8, 7, 1)
    assert 0 < end["joined"] <= end["restored"] <= end["stepped"] <= end["time"]
    said = re.sub(r"\[3\]<stderr>:|\n", "", err.getvalue())
    assert said == "halfa line"


def wake() -> None:
    """Lets the suspended ranks of this process go on."""
    for process in psutil.Process().children(recursive=True):
        if process.status() == psutil.STATUS_STOPPED:
            process.resume()


def started(file: Path) -> psutil.Process:
    """Returns the process that writes its number into a file."""
    deadline = time.monotonic() + 20
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return psutil.Process(int(file.read_text()))


@pytest.mark.parametrize(("kills", "kind"), [("[0, 0]", 0), ("[0, 1]", 6)])
def test_a_kill_for_lack_of_memory_is_told_from_another(kills, kind):
    program = (
        "import itertools\nfrom distcnn.runtime import rank_process\n"
        f"first, *rest = {kills}\n"
        "counts = itertools.chain([first], itertools.repeat(rest[0]))\n"
        "rank_process._memory_kills = lambda: next(counts)\n"
        "rank_process.run('kill -9 $$', 'report')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()  # its input stays open, so that it is not stopped
    process.communicate()
    last = json.loads(said.splitlines()[-1].removeprefix(rank_process.MARK))
    assert (last["code"], last["kind"]) == (137, kind)
