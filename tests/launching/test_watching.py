"""Which ranks hang."""

import pytest

from distcnn.launching.attempt import Attempt, RankState
from distcnn.launching.ends import RankEnd
from distcnn.launching.growth import Growth
from distcnn.launching.hosts import Host
from distcnn.launching.watching import Limits, find_hanging


def attempt(*ranks: RankState, began: float = 0.0) -> Attempt:
    """An attempt without processes."""
    made = Attempt.__new__(Attempt)
    made.began, made.hosts = began, [Host("a", len(ranks))]
    made.ranks = dict(enumerate(ranks))
    return made


def rank(step: int, moved: float, *, heard: float = 100.0, runs: float = 100.0) -> RankState:
    """A rank that has made its first step."""
    return RankState(heard=heard, runs=runs, moved=moved, step=step, first=0, stepped=1.0)


@pytest.mark.parametrize(
    ("ranks", "now", "expected"),
    [
        ([rank(9, 99), rank(9, 99)], 101, None),
        ([rank(9, 99), rank(9, 99, heard=95)], 100, (1, "nothing was heard of it for 4 s", 95)),
        ([rank(9, 40), rank(9, 41)], 100, None),
        ([rank(9, 39), rank(9, 38)], 100, (None, "made no step for 60 s (--stall)", 39)),
        ([rank(9, 39), rank(8, 38)], 100, (1, "made no step for 60 s (--stall)", 39)),
        ([RankState(), RankState()], 600, None),
        ([RankState(), RankState()], 601, (None, "made no first step for 600 s (--stall)", 0)),
    ],
)
def test_a_rank_that_is_silent_or_makes_no_step_hangs(ranks, now, expected):
    found = find_hanging(attempt(*ranks), Limits(60), now)
    assert (found and (found.rank, found.cause, found.since)) == expected


def test_a_suspended_rank_hangs_after_two_seconds():
    suspended = rank(9, 99, runs=98.5)
    suspended.suspended = True
    ranks = attempt(rank(9, 99), suspended)
    assert find_hanging(ranks, Limits(60), 100.4) is None
    found = find_hanging(ranks, Limits(60), 100.6)
    assert found is not None
    assert (found.rank, found.since) == (1, 98.5)


def test_a_rank_that_has_ended_does_not_hang_and_no_limit_never_ends():
    silent = rank(9, 1, heard=1)
    assert find_hanging(attempt(rank(9, 1, heard=10_000)), Limits(0), 10_001) is None
    silent.end = RankEnd(1, 0)
    assert find_hanging(attempt(rank(9, 99), silent), Limits(60), 100) is None


def test_a_run_grows_once_at_the_end_of_an_epoch():
    growth = Growth(list, 2)
    growth.close()
    assert not growth.is_due(1, started=True)
    growth.found = "3 workers could run instead of 2"
    assert not growth.is_due(1, started=False)
    asked = [growth.is_due(epoch, started=True) for epoch in (1, 1, 2, 2, 3)]
    assert asked == [False, False, True, False, False]
