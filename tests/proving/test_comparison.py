"""What counts as a difference, and what the verdict makes of it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from distcnn.proving.comparison import Comparison, verdict
from distcnn.proving.record import Record


def compared(one: Mapping[str, Any], several: Mapping[str, Any], steps: int = 5) -> Comparison:
    def record(arrays: Mapping[str, Any]) -> Record:
        return Record({n: np.array(v, np.float64) for n, v in arrays.items()}, steps, False)

    return Comparison(record(one), record(several), "float64")


@pytest.mark.parametrize(
    ("name", "one", "several", "difference"),
    [
        ("weight w", [4.0, 1.0], [4.0, 1.5], 0.125),
        ("weight w", [0.0], [1e-12], 1e-11),  # a step of Adam from a gradient of rounding errors
        ("optimizer w", [0.0], [1e-12], 1e-6),
        ("metric m", 2.0, 3.0, 0.5),
        ("weight w", [1.0, 2.0], [1.0, math.nan], math.inf),
        ("weight w", [math.nan], [math.nan], math.inf),
        ("weight w", [math.inf], [math.inf], math.inf),
        ("weight w", [1.0, 2.0], [1.0], math.inf),
        ("weight w", [], [], 0.0),
    ],
)
def test_the_difference(name, one, several, difference):
    found = compared({name: one}, {name: several}).differences
    assert found == {name: pytest.approx(difference)}


def test_what_only_one_side_has_differs():
    found = compared({"weight a": 1.0, "weight b": 1.0}, {"weight a": 1.0, "weight c": 1.0})
    assert found.differing == ["weight b", "weight c"]


def test_nothing_is_proven_by_numbers_that_are_not_finite():
    same = compared({"weight a": math.nan}, {"weight a": math.nan})
    findings = list(verdict(same, None, workers=2))
    assert [finding.level for finding in findings] == ["warning", "error"]
    assert "is not finite" in findings[0].text


def test_the_verdict_counts_the_steps_that_were_trained():
    (finding,) = verdict(compared({"metric m": 1.0}, {"metric m": 1.0}, steps=2), None, workers=3)
    assert finding.text == "2 steps in float64 on 1 and on 3 workers: largest difference 0.0e+00"


@pytest.mark.parametrize(
    ("weight", "told"), [(2.0, ["weight w", "metric m"]), (1.0, ["optimizer v", "metric m"])]
)
def test_the_optimizer_is_listed_only_if_no_weight_differs(weight, told):
    one = {"weight w": 1.0, "optimizer v": 1.0, "metric m": 1.0}
    several = {"weight w": weight, "optimizer v": 2.0, "metric m": 2.0}
    *listed, last = verdict(compared(one, several), None, workers=2)
    assert [finding.subject for finding in listed] == told
    assert f"first {told[0]}" in last.text


def test_the_verdict_tells_what_synchronised_batch_normalisation_leaves():
    own = compared({"weight a": 1.0, "weight b": 1.0}, {"weight a": 2.0, "weight b": 3.0})
    synchronised = compared({"weight a": 1.0, "weight b": 1.0}, {"weight a": 1.0, "weight b": 3.0})
    last = list(verdict(own, synchronised, workers=2))[-1]
    assert last.level == "error"
    assert "2 of 2 differ, first weight a" in last.text
    assert "with synchronised batch normalisation 1, first weight b" in last.text


def test_a_record_survives_its_file(tmp_path):
    kept = Record({"weight a": np.arange(3.0), "metric loss": np.array([1.0])}, 4, True)
    kept.save(tmp_path / "a.npz")
    found = Record.load(tmp_path / "a.npz")
    assert (found.steps, found.normalises) == (4, True)
    assert list(found.arrays) == list(kept.arrays)
    assert all(np.array_equal(found.arrays[name], kept.arrays[name]) for name in kept.arrays)
