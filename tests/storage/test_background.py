"""One write at a time, in a thread, whose error is raised later."""

import signal
import threading
import time

import pytest

from distcnn.storage.background import BackgroundWriter

SECONDS = 20
"""Long enough for whatever must happen."""


def test_the_caller_goes_on_and_the_next_write_waits_for_the_one_before():
    writer, go_on, done = BackgroundWriter(), threading.Event(), []

    def slow():
        assert go_on.wait(SECONDS)
        time.sleep(0.1)
        done.append("first")

    writer.start(slow)
    assert done == []
    go_on.set()
    writer.start(lambda: done.append("second"))
    assert done[:1] == ["first"]
    writer.wait()
    assert done == ["first", "second"]


def test_an_error_is_raised_once_by_the_next_start_or_wait():
    writer, done = BackgroundWriter(), []

    def fail():
        raise OSError("the disk is full")

    writer.start(fail)
    with pytest.raises(OSError, match="the disk is full"):
        writer.start(lambda: done.append("never"))
    writer.wait()
    assert done == []
    writer.start(fail)
    with pytest.raises(OSError, match="the disk is full"):
        writer.wait()
    writer.wait()


def test_a_signal_ends_the_wait_and_not_the_write():
    writer, go_on, done = BackgroundWriter(), threading.Event(), []

    def slow():
        assert go_on.wait(SECONDS)
        done.append("written")

    def interrupt(number, frame):
        raise KeyboardInterrupt

    writer.start(slow)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            writer.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert done == []
    go_on.set()
    writer.wait()
    assert done == ["written"]
