"""Which ends of an attempt another one can mend."""

import pytest

from distcnn.distribute.base import ChiefError
from distcnn.errors import DataError, DistcnnError, PeerLostError, UsageError
from distcnn.launching.ends import Budget, Failure, RankEnd, find_failure, seconds_of
from distcnn.runtime.rank_page import FailureKind, RankPage, kind_of
from distcnn.training.callbacks.non_finite import NotFiniteError

UNKNOWN, UNMENDABLE = FailureKind.UNKNOWN, FailureKind.UNMENDABLE
REFUSED, LOST = FailureKind.REFUSED, FailureKind.PEER_LOST
EXCEPTION, SYSTEM = FailureKind.EXCEPTION, FailureKind.SYSTEM


def find(*ends: tuple[int, FailureKind], made_steps: bool = True, is_first: bool = False):
    """Returns the failure of ranks that have ended in this order, each with a code and a kind."""
    listed = [
        RankEnd(rank, code, float(rank), f"error: cause {rank}", kind)
        for rank, (code, kind) in enumerate(ends)
    ]
    return find_failure(listed[::-1], workers=2, made_steps=made_steps, is_first=is_first)


@pytest.mark.parametrize(
    ("ends", "rank", "mendable"),
    [
        ([(137, UNKNOWN), (1, LOST)], 0, True),
        ([(1, LOST), (137, UNKNOWN)], 1, True),  # the loss was noticed first
        ([(255, UNKNOWN), (143, UNKNOWN)], 0, True),
        ([(75, UNKNOWN), (75, UNKNOWN)], None, True),
        ([(2, UNMENDABLE), (2, UNMENDABLE)], 0, False),
        ([(1, UNMENDABLE), (143, UNKNOWN)], 0, False),
        ([(1, EXCEPTION), (1, EXCEPTION)], 0, False),  # in every rank
        ([(1, EXCEPTION), (1, LOST)], 0, True),
        ([(1, REFUSED), (1, REFUSED)], 0, True),  # such as a full disk
        ([(1, SYSTEM), (1, SYSTEM)], 0, True),
        ([(139, UNKNOWN), (1, LOST)], 0, True),
        ([(2, UNKNOWN), (143, UNKNOWN)], 0, False),
        ([(137, FailureKind.NO_MEMORY), (1, LOST)], 0, True),
    ],
)
def test_the_rank_to_blame_and_whether_another_attempt_helps(ends, rank, mendable):
    failure = find(*ends)
    assert (failure.rank, failure.mendable) == (rank, mendable)


def test_an_exception_before_the_first_step_is_a_bug():
    assert not find((1, EXCEPTION), (143, UNKNOWN), made_steps=False).mendable
    assert not find((1, REFUSED), (1, REFUSED), made_steps=False, is_first=True).mendable
    assert find((1, REFUSED), (1, REFUSED), made_steps=False, is_first=False).mendable
    assert find((1, SYSTEM), (1, LOST), made_steps=False, is_first=True).mendable
    assert find((137, UNKNOWN), (1, LOST), made_steps=False, is_first=True).mendable
    for code in (1, 127):  # a package, or Python itself, is not installed on a host
        assert not find((code, UNKNOWN), (1, LOST), made_steps=False, is_first=True).mendable
        assert find((code, UNKNOWN), (1, LOST), made_steps=False, is_first=False).mendable


def test_a_rank_without_a_cause_is_described_by_its_last_line():
    end = RankEnd(1, 1, 0.0, "", EXCEPTION)
    failure = find_failure(
        [end], workers=1, made_steps=True, is_first=False, last_line=lambda rank: f"line of {rank}"
    )
    assert failure.cause == "line of 1"
    none = find_failure(
        [], workers=1, made_steps=False, is_first=True, last_line=lambda r: "error: ssh"
    )
    assert (none.cause, none.mendable) == ("ssh", False)


def test_restarts_without_a_new_step_are_counted():
    killed, budget = Failure(1, "killed"), Budget(2)
    assert [budget.spend(killed, step) for step in (10, 20, 30, 30, 25)][:3] == [None] * 3
    assert budget.used > 2
    assert "2 restarts brought no new step" in str(budget.spend(killed, 30))
    assert Budget(3).spend(Failure(0, "usage", mendable=False), 10) is not None
    assert Budget(0).spend(killed, 10) is not None


def test_the_same_failure_at_the_same_step_is_not_tried_a_third_time():
    bug, budget = Failure(1, "no cats", repeatable=True), Budget(9)
    assert budget.spend(bug, 10) is None
    assert budget.spend(bug, 12) is None
    assert "in the same way at step 12 twice" in str(budget.spend(bug, 12))
    budget = Budget(9)
    for number, why in ((1, None), (2, "in the same way at step 12 twice")):
        bug = Failure(1, f"<Cat at 0x{number}f> is {number} s late", repeatable=True)
        assert (why or "None") in str(budget.spend(bug, 12))
    killed = Failure(1, "killed")
    budget = Budget(9)
    assert [budget.spend(killed, 12) for _ in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("code", "kind", "cause"),
    [
        (137, FailureKind.NO_MEMORY, "it ran out of memory, and the system killed it"),
        (1, FailureKind.NO_MEMORY, "it ran out of memory (cause 0)"),
        (137, UNKNOWN, "ended by SIGKILL (kill -9)"),
        (134, UNKNOWN, "ended by SIGABRT: cause 0"),
    ],
)
def test_a_rank_that_the_system_ended_says_why(code, kind, cause):
    failure = find((code, kind), (1, LOST))
    assert failure.cause.startswith(cause)
    assert failure.repeatable == (cause != "ended by SIGKILL (kill -9)")


def test_the_phases_of_a_restart_add_up():
    times = {"fault": 10.0, "detected": 10.5, "stopped": 11.0}
    times |= {"joined": 17.0, "restored": 18.0, "stepped": 20.0}
    seconds = seconds_of(times)
    assert seconds == {
        "detect": 0.5,
        "stop": 0.5,
        "start": 6.0,
        "restore": 1.0,
        "first_step": 2.0,
        "total": 10.0,
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UsageError("x"), UNMENDABLE),
        (DataError("x"), UNMENDABLE),
        (NotFiniteError("x"), UNMENDABLE),
        (DistcnnError("x"), REFUSED),
        (ChiefError("x"), REFUSED),
        (PeerLostError("x"), LOST),
        (OSError("x"), SYSTEM),
        (MemoryError(), FailureKind.NO_MEMORY),
        (RuntimeError("Traceback ...\nDamagedFileError: x.png is no image"), UNMENDABLE),
        (ValueError("x"), EXCEPTION),
    ],
)
def test_errors_are_told_apart(error, kind):
    assert kind_of(error) is kind


def test_a_rank_without_a_page_writes_nothing():
    for environment in ({}, {"DISTCNN_RANK_PAGE": "999"}, {"DISTCNN_RANK_PAGE": "x"}):
        page = RankPage(environment)
        page.joined()
        page.restored(3, 1)
        page.stepped(4, 1)
        page.failed(ValueError())
