"""Comparison with an earlier benchmark."""

import pytest

from distcnn.benchmarking.baseline import environment_differences, regressions
from distcnn.errors import DistcnnError
from tests.benchmarking.samples import comparison, results, row


def steady_row(slower=1.0, half_width=0.001, **changes):
    """A row that is `slower` times as slow, with an interval of the given relative half width."""
    step_ms = 200.0 * slower
    return row(
        step_ms=step_ms,
        step_ms_p50_low=step_ms * (1 - half_width),
        step_ms_p50_high=step_ms * (1 + half_width),
        **changes,
    )


def sample(*rows, noise=0.001, **changes):
    return results(rows=rows, comparisons=(comparison(noise=noise, **changes),))


@pytest.mark.parametrize(
    ("noise", "old_half_width", "new_half_width", "old_noise", "new_noise"),
    [
        (0.05, 0.001, 0.001, 0.001, 0.001),  # the minimum
        (0.11, 0.04, 0.07, 0.001, 0.001),  # the sum of both half widths
        (0.08, 0.001, 0.001, 0.04, 0.001),  # twice the A/A noise of the old comparison
        (0.08, 0.001, 0.001, 0.001, 0.04),  # ... of the new one
    ],
)
def test_only_changes_beyond_the_noise_are_regressions(
    noise, old_half_width, new_half_width, old_noise, new_noise
):
    old = sample(steady_row(half_width=old_half_width), noise=old_noise)
    for loss, expected in ((noise - 0.001, 0), (noise + 0.001, 1)):
        slow = steady_row(1 / (1 - loss), new_half_width)
        messages = regressions(sample(slow, noise=new_noise), old)
        assert len(messages) == expected
    assert messages == [
        "weak scaling, horovod, workers 2, cores per worker 1, global batch 256: measured "
        f"{1000 * 256 / slow.step_ms_p25:,.1f} images/s, {noise + 0.001:.1%} less than the "
        f"baseline's 1,292.9 images/s; expected at least {1292.929 * (1 - noise):,.1f} images/s "
        f"(noise {noise:.1%})"
    ]


def test_only_the_lower_quartile_counts_and_faster_is_no_regression():
    old = sample(steady_row())
    assert regressions(sample(steady_row(0.5)), old) == []
    assert regressions(sample(steady_row(images_per_second=1.0, step_ms_p95=9e9)), old) == []


@pytest.mark.parametrize(("noise", "half_width"), [(0.05, 0.001), (0.09, 0.045)])
def test_a_smaller_ratio_is_a_regression(noise, half_width):
    def with_ratio(ratio, **changes):
        ends = {"ratio_low": ratio * (1 - half_width), "ratio_high": ratio * (1 + half_width)}
        return sample(steady_row(), ratio=ratio, **ends, **changes)

    old = with_ratio(1.5)
    assert regressions(with_ratio(1.5 * (1 - noise + 0.001)), old) == []
    slow = 1.5 * (1 - noise - 0.001)
    (message,) = regressions(with_ratio(slow), old)
    assert message == (
        f"training step, batch 64, float32 plain and float32 distcnn: measured {slow:.3f} times "
        f"as fast as the plain script, {noise + 0.001:.1%} less than the baseline's 1.500 times as "
        f"fast as the plain script; expected at least {1.5 * (1 - noise):.3f} times as fast as "
        f"the plain script (noise {noise:.1%})"
    )
    for change in ({"batch": 65}, {"what": "evaluation"}, {"plain_precision": "mixed_bfloat16"}):
        assert regressions(with_ratio(slow, **change), old) == []


def test_rows_are_matched_by_their_whole_key():
    old = sample(steady_row(), steady_row(workers=1), steady_row(workers=1, cores_per_worker=2))
    slow = steady_row(2.0, workers=1, cores_per_worker=2)
    (message,) = regressions(sample(slow, steady_row(2.0, workers=3)), old)
    assert message.startswith("weak scaling, horovod, workers 1, cores per worker 2, ")
    changes = (
        {"scaling": "strong"},
        {"strategy": "mirrored"},
        {"workers": 3},
        {"cores_per_worker": None},
        {"batch": 64},
    )
    for change in changes:
        with pytest.raises(DistcnnError, match="nothing to compare") as caught:
            regressions(sample(steady_row(**change)), sample(steady_row()))
        assert "(weak scaling, horovod, workers 2, cores per worker 1, global batch 256)" in str(
            caught.value
        )
    with pytest.raises(DistcnnError, match="measured no rows; expected one of the base"):
        regressions(sample(), sample(steady_row()))


def test_differences_in_hardware_and_settings_are_listed():
    old = results()
    assert environment_differences(results(date="2026-11-25", command="again"), old) == []
    new = results(
        precision="mixed_bfloat16",
        fast_path=False,
        environment={**old.environment, "cores": 4, "gpu": "NVIDIA L4", "python": "3.13"},
    )
    assert environment_differences(new, old) == [
        "cores is 4, was 2",
        "gpu is NVIDIA L4, was None",
        "precision is mixed_bfloat16, was float32",
        "fast_path is False, was True",
    ]
