"""What asks a run to stop: the signals of the configuration, and the notice of a host."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distcnn.runtime import notice
from distcnn.runtime.membership import Cluster
from distcnn.runtime.signals import REPEAT_SECONDS, StopRequest, stop_request


@contextlib.contextmanager
def own_interrupt() -> Iterator[None]:
    """Lets Ctrl-C raise KeyboardInterrupt, which a job in the background of a shell ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("chosen", "other"), [("SIGUSR1", "SIGUSR2"), ("SIGUSR2", "SIGUSR1")])
def test_the_signal_of_the_configuration_stops_and_the_other_one_stays_the_users(chosen, other):
    received: list[int] = []
    before = signal.signal(signal.Signals[other], lambda number, _: received.append(number))
    try:
        request = StopRequest(chosen)
        with request.listening():
            os.kill(os.getpid(), signal.Signals[other])
            assert (request.name, received) == (None, [signal.Signals[other]])
            os.kill(os.getpid(), signal.Signals[chosen])
            assert request.name == chosen
    finally:
        signal.signal(signal.Signals[other], before)


def test_a_notice_stops_and_the_signal_after_it_is_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(notice, "EVERY_SECONDS", 0.05)
    sign = tmp_path / "sign"
    request = StopRequest("SIGUSR1", f"test -e {sign}")
    with own_interrupt(), request.listening():
        time.sleep(0.2)
        assert request.name is None
        sign.touch()
        deadline = time.monotonic() + 10
        while request.name is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        assert "will be taken away" in request.name
        time.sleep(REPEAT_SECONDS + 0.1)
        with pytest.raises(KeyboardInterrupt):  # a second one gets Python's own handler
            signal.raise_signal(signal.SIGINT)


def test_one_process_of_a_host_asks():
    second = Cluster(rank=1, size=2, local_rank=1, local_size=2)
    assert stop_request("SIGUSR1", "true", Cluster())._notice == "true"
    assert stop_request("SIGUSR1", "true", second)._notice is None


def test_a_command_that_does_not_answer_is_no_notice(monkeypatch, tmp_path):
    monkeypatch.setattr(notice, "_PATIENCE_SECONDS", 0.1)
    assert notice.is_announced("exit 0")
    assert not notice.is_announced("exit 1")
    assert not notice.is_announced("sleep 5")
    assert not notice.is_announced(str(Path(tmp_path, "missing")))


def test_in_another_thread_a_notice_stops_and_signals_stay_the_users(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(notice, "EVERY_SECONDS", 0.05)
    request = StopRequest("SIGUSR1", f"test -e {tmp_path}")
    before = signal.getsignal(signal.SIGTERM)

    def run() -> None:
        with request.listening():
            deadline = time.monotonic() + 10
            while request.name is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert signal.getsignal(signal.SIGTERM) is before

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()
    assert request.name is not None
    assert "ends this run without saving" in caplog.text
