"""A budget of time, and the lines that a long measurement prints."""

import math

from distcnn.benchmarking.progress import Budget, Follower, Heartbeat, rounds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def measure(wanted: int, seconds: float, each: float) -> tuple[int, list[str]]:
    """Returns how many rounds of `each` seconds were measured, and the lines."""
    clock, done = Clock(), 0
    lines: list[str] = []
    for _ in rounds("timing", wanted, Budget(seconds, clock), lines.append):
        clock.now += each
        done += 1
    return done, lines


def test_rounds_are_cut_to_the_budget_but_one_is_always_measured():
    assert measure(5, 100, 1) == (5, [])
    assert measure(5, 100, 30)[0] == 3
    assert measure(5, 1, 30) == (1, ["timing: 1 of 5 rounds fit into the budget"])
    assert measure(5, 0, 30)[0] == 1
    assert measure(1, 0, 30) == (1, [])
    assert measure(5, math.inf, 1) == (5, [])


def test_lines_of_progress_tell_the_rounds_and_the_time_left():
    done, lines = measure(8, 100, 6)
    assert done == 8
    assert lines == [
        "timing: round 2 of 8, 36 s left",
        "timing: round 4 of 8, 24 s left",
        "timing: round 6 of 8, 12 s left",
    ]
    # The estimate is of the rounds that fit into the budget.
    assert measure(100, 50, 10)[1][0] == "timing: round 1 of 5, 40 s left"


def test_a_part_of_a_budget_starts_now():
    clock = Clock()
    budget = Budget(100, clock)
    clock.now = 40.0
    part = budget.part(0.5)
    assert (part.seconds, part.left, part.start) == (30.0, 30.0, 40.0)
    clock.now = 200.0
    assert budget.part(0.5).seconds == 0.0
    assert Budget(100, clock, start=150.0).left == 50.0


def test_silence_repeats_the_last_line():
    clock = Clock()
    lines: list[str] = []
    heartbeat = Heartbeat(lines.append, clock)
    heartbeat.beat()
    heartbeat.line("compiling")
    for clock.now in (10.0, 31.0, 40.0, 62.0):
        heartbeat.beat()
    assert lines == ["compiling", "compiling ... 31 s", "compiling ... 62 s"]


def test_the_lines_of_a_worker_are_found_in_its_output(tmp_path):
    file = tmp_path / "output.txt"
    lines: list[str] = []
    follower = Follower(file, Heartbeat(lines.append))
    file.write_text("a warning\nprogress: tra")
    follower.read()
    assert lines == []
    file.write_text("a warning\nprogress: tracing\n[1,0]<stderr>:progress: timing\n")
    follower.read()
    follower.read()
    assert lines == ["tracing", "timing"]
