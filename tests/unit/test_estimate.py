"""The seconds that a GPU is asked for: whole, within bounds, more for more work."""

import pytest

import estimate


@pytest.mark.parametrize("duration", [0, 1, 10, 30, 60, 119.5, 240, 600])
@pytest.mark.parametrize("steps", [1, 50, 200])
@pytest.mark.parametrize("takes", [1, 4])
def test_seconds_are_a_whole_number_from_60_to_300(duration, steps, takes):
    seconds = estimate.gpu_seconds(duration, steps, takes, 7.0)
    assert type(seconds) is int
    assert 60 <= seconds <= 300


def test_more_work_asks_for_more():
    base = estimate.gpu_seconds(240, 100, 2, 7.0)
    assert estimate.gpu_seconds(300, 100, 2, 7.0) > base
    assert estimate.gpu_seconds(240, 120, 2, 7.0) > base
    assert estimate.gpu_seconds(240, 100, 3, 7.0) > base
    assert estimate.gpu_seconds(240, 100, 2, 1.0) < base


@pytest.mark.parametrize(("duration", "tflop"), [(30, 3.33), (60, 6.59), (45, 4.96), (120, 13.6), (600, 90.6)])
def test_the_counted_lengths_are_met_and_joined_by_lines(duration, tflop):
    assert estimate.forward_tflop(duration) == pytest.approx(tflop, abs=0.01)
