"""Hosts: how they are given, chosen and left out."""

import sys
from pathlib import Path

import pytest

from distcnn.errors import UsageError
from distcnn.launching.hosts import (
    DiscoveryError,
    Host,
    choose_workers,
    discover_hosts,
    host_of_rank,
    parse_hosts,
    read_hostfile,
)
from distcnn.launching.pauses import MOST_SECONDS, HostPauses, pause_after
from distcnn.launching.pool import HostPool
from distcnn.launching.reaching import Ssh, is_local, reachable

A, B = Host("a", 2), Host("b", 1)


def test_hosts_are_read_in_every_form(tmp_path):
    assert parse_hosts("a:2,b") == [A, B]
    file = tmp_path / "hosts"
    file.write_text("# ours\na slots=2\n\nb  # the small one\nnode-c:4\n")
    assert read_hostfile(file) == [A, B, Host("node-c", 4)]
    script = tmp_path / "discover.py"
    script.write_text("print('a:2'); print(); print('b')")
    assert discover_hosts(f"{sys.executable} {script}") == [A, B]
    script.write_text("")
    assert discover_hosts(f"{sys.executable} {script}") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:x", "the host is a:x; expected host or host:slots"),
        ("a:0", "the host is a:0; expected host or host:slots"),
        ("", "no hosts were given"),
        ("a:1,a:2", "the host a is given twice"),
    ],
)
def test_what_is_no_host_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_hosts(text)


def test_a_file_or_script_that_fails_is_named(tmp_path):
    with pytest.raises(UsageError, match="the host file none cannot be read"):
        read_hostfile(Path("none"))
    for script, message in (
        ("none", "the discovery script none cannot be run"),
        ("false", "the discovery script false exits with 1"),
        ("echo a b", "the discovery script echo a b printed something else"),
    ):
        with pytest.raises(DiscoveryError, match=message):
            discover_hosts(script)


def test_workers_fill_the_hosts_in_order():
    assert choose_workers([A, B], None) == [A, B]
    assert choose_workers([A, B], 1) == [Host("a", 1)]
    assert choose_workers([B, A], 2) == [B, Host("a", 1)]
    assert choose_workers([A, B], None, shards=4) == [A]
    assert choose_workers([A, B], None, shards=6) == [A, B]
    assert choose_workers([B, A], None, shards=1) == [B]
    assert choose_workers([], None, shards=4) == []
    assert [host_of_rank([A, B], rank) for rank in range(3)] == ["a", "a", "b"]


def test_as_many_workers_are_used_as_divide_the_virtual_workers(caplog):
    here = Host("localhost", 3)
    pool = HostPool(lambda: [here], Ssh(), 1, None, "token", lambda: 4)
    for _ in range(2):
        assert pool.next_hosts() == [Host("localhost", 2)]
    assert [record.message for record in caplog.records] == [
        "warning: 2 of 3 slots are used, since the number of workers must divide that of the "
        "virtual workers, 4"
    ]
    assert pool.more_hosts([Host("localhost", 2)]) == []
    assert pool.more_hosts([Host("localhost", 1)]) == [Host("localhost", 2)]


def test_this_host_answers_and_one_that_does_not_exist_does_not():
    assert is_local("localhost")
    assert not is_local("no-such-host.invalid")
    here, none = Host("127.0.0.1", 1), Host("no-such-host.invalid", 1)
    assert reachable([none, here], Ssh()) == [here]
    line = Ssh(2222, "key").command("a", "true")
    assert line[-6:] == ["-p", "2222", "-i", "key", "a", "true"]


def test_a_host_that_will_be_taken_away_counts_as_one_that_does_not_answer(tmp_path, monkeypatch):
    here, there = Host("127.0.0.1", 1), Host("no-such-host.invalid", 1)
    sign = tmp_path / "sign"
    program = tmp_path / "ssh"  # the host is the argument before the last
    program.write_text('#!/bin/bash\nexec bash -c "${!#}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    ssh = Ssh(notice=f"test -e {sign} && echo 'it will'")
    for token in (None, "token"):
        assert reachable([here, there], ssh, token) == [here, there]
    sign.touch()
    for token in (None, "token"):
        assert reachable([here, there], ssh, token) == []


def test_a_host_that_fails_again_is_left_out_for_longer_each_time():
    pauses = HostPauses()
    assert pauses.failed("a", 0) == 0
    assert pauses.usable([A, B], 0) == [A, B]
    waits = [pauses.failed("a", 0) for _ in range(9)]
    assert waits[:3] == [10, 20, 40]
    assert waits == sorted(waits)
    assert waits[-1] == MOST_SECONDS
    assert pauses.usable([A, B], MOST_SECONDS - 1) == [B]
    assert pauses.usable([A, B], MOST_SECONDS) == [A, B]
    pauses.worked("a")
    assert pauses.usable([A, B], 0) == [A, B]
    assert pauses.failed("a", 0) == 0


def test_pauses_between_attempts_grow():
    waits = [pause_after(failures) for failures in range(1, 12)]
    assert waits[:4] == [0, 1, 2, 4]
    assert waits == sorted(waits)
    assert waits[-1] == 60
