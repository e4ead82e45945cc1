"""What a crossfade may touch, and how loud the new part becomes."""

import itertools

import numpy as np
import pytest

from levels import match_level, splice

RATE = 48_000


def noise(seconds, level, seed=1):
    return (np.random.default_rng(seed).standard_normal((2, round(seconds * RATE))) * level).astype(np.float32)


def test_old_samples_stay_outside_the_region_and_its_fades():
    old, new = noise(5000 / RATE, 0.1), noise(5000 / RATE, 0.1, seed=2)
    for (start, end), fade in itertools.product([(1000, 2000), (0, 2000), (1000, 5000), (30, 4980)], (0, 1, 100)):
        joined = splice(old, new, start, end, fade)
        assert np.array_equal(joined[:, : max(start - fade, 0)], old[:, : max(start - fade, 0)])
        assert np.array_equal(joined[:, end + fade :], old[:, end + fade :])
        assert np.array_equal(joined[:, start:end], new[:, start:end])


def test_the_fade_is_linear_and_upstreams():
    joined = splice(np.zeros((2, 12), np.float32), np.ones((2, 12), np.float32), 5, 7, 3)
    assert joined[0] == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0, 0])


def test_the_level_comes_within_3_db_of_the_surroundings():
    for inside, around in [(0.5, 0.01), (0.01, 0.2), (0.1, 0.1)]:
        old, new = noise(4, around), noise(4, inside, seed=2)
        matched = match_level(new, old, RATE, 2 * RATE)[:, RATE : 2 * RATE]
        assert abs(20 * np.log10(matched.std() / around)) < 3.1


def test_a_level_that_fits_is_left_alone():
    new = noise(4, 0.1, seed=2)
    assert np.array_equal(match_level(new, noise(4, 0.12), RATE, 2 * RATE), new)


def test_the_new_part_never_goes_over_full_scale():
    spiky = noise(4, 0.01)
    spiky[:, RATE + 10] = 0.9
    matched = match_level(spiky, noise(4, 0.5), RATE, 2 * RATE)
    assert np.abs(matched[:, RATE : 2 * RATE]).max() <= 1.0
    used = slice(RATE - 100, 2 * RATE + 100)
    assert np.abs(match_level(noise(4, 3.0), noise(4, 0.5), RATE, 2 * RATE, 100)[:, used]).max() <= 1.0


def test_a_peak_that_is_not_used_does_not_count():
    far = noise(4, 0.1)
    far[:, 3 * RATE] = 5.0
    matched = match_level(far, noise(4, 0.1, seed=2), RATE, 2 * RATE)
    assert np.array_equal(matched[:, :RATE], far[:, :RATE])


def test_silent_surroundings_change_nothing():
    new = noise(4, 0.1)
    assert np.array_equal(match_level(new, np.zeros_like(new), RATE, 2 * RATE), new)
