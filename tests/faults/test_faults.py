"""A short sample of every campaign."""

import os
import random
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.faults.__main__ import SAMPLE
from tests.faults.campaign import Case, run_cases

NEED_ROOT = {"full_disk", "another_user"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, str]:
    """The tables that the sample prints, by the name of the campaign."""
    folder, seed = tmp_path_factory.mktemp("faults"), random.SystemRandom().randrange(10**6)
    command = [sys.executable, "-m", "tests.faults", f"--seed={seed}", f"--folder={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    head, *parts = re.split(r"^# ", done.stdout, flags=re.MULTILINE)
    assert head == f"seed {seed}\n", done.stderr
    return {part.partition("\n")[0]: f"seed {seed}\n# {part}" for part in parts}


@pytest.mark.parametrize("name", list(SAMPLE))
def test_a_sample_of_the_faults_is_survived(name, tables):
    table = tables[name]
    rows = re.findall(r"tried +(\d+)  survived +(\d+)  failed +0\n", table)
    if name in NEED_ROOT and "skipped" in table:
        assert os.geteuid() != 0 or "mount namespace" in table, table
        pytest.skip(table.splitlines()[-1])
    assert len(rows) == len(SAMPLE[name][1]), table
    assert all(tried == survived != "0" for tried, survived in rows), table


def test_a_fault_that_is_not_survived_ends_a_campaign_with_1(tmp_path, capfd):
    cases: dict[str, Case] = {
        "good": lambda campaign: iter([("nothing", None)]),
        "bad": lambda campaign: iter([("a flip", "other pixels"), ("a cut", None)]),
        "broken": lambda campaign: iter([(str(1 / 0), None)]),
    }
    assert run_cases({"good": cases["good"]}, None, 1, tmp_path / "a") == 0
    assert run_cases({"bad": cases["bad"]}, None, 1, tmp_path / "b") == 1
    assert "tried      2  survived      1  failed      1" in (printed := capfd.readouterr().out)
    assert "a flip: other pixels" in printed
    assert run_cases({"broken": cases["broken"]}, None, 1, tmp_path / "c") == 1
