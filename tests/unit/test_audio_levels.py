"""How loud samples are and become: peaks, loudness, silence, noise, gains, fades; and how new audio joins old."""

import itertools
import tracemalloc

import numpy as np
import pytest

import audio_levels
from audio_levels import match_level, splice
from modes import NOISE_FLATNESS
from tests.unit.sounds import RATE, noise, tone


@pytest.mark.parametrize("samples", [noise(RATE, level=0), noise(0)], ids=["a second", "nothing"])
def test_silence_has_finite_levels(samples):
    assert audio_levels.is_silent(samples)
    for level in (
        audio_levels.peak_dbfs(samples),
        audio_levels.rms_dbfs(samples),
        audio_levels.true_peak_dbtp(samples),
    ):
        assert level == audio_levels.FLOOR_DBFS
    assert audio_levels.loudness_lufs(samples) is None
    assert audio_levels.spectral_flatness(samples) == 0.0


def test_silence_is_an_rms_below_minus_60():
    for dbfs, silent in [(-59.5, False), (-60.5, True)]:
        assert (
            audio_levels.is_silent(np.full((2, 3 * RATE), 10 ** (dbfs / 20), np.float32)) is silent
        )


def test_loudness_ignores_the_pauses():
    """EBU Tech 3341, case 3: 10 s at -36, 60 s at -23, 10 s at -36 dBFS read -23.0 LUFS."""
    parts = [
        np.repeat(tone(s, hertz=1000, level=10 ** (d / 20), channels=1), 2, 0)
        for s, d in ((10, -36), (60, -23))
    ]
    assert audio_levels.loudness_lufs(np.concatenate([*parts, parts[0]], axis=1)) == pytest.approx(
        -23.0, abs=0.1
    )


def test_true_peak_sees_between_the_samples():
    """EBU Tech 3341, cases 15 to 17: a sine of a quarter of the rate; its samples miss the peak by up to 3 dB."""
    for phase in [0.0, 45.0]:
        n = np.arange(RATE)
        wave = 0.5 * np.sin(2 * np.pi * n / 4 + np.radians(phase)) * np.sin(np.pi * n / RATE) ** 2
        samples = np.stack([np.zeros(RATE), wave]).astype(np.float32)
        assert audio_levels.true_peak_dbtp(samples) == pytest.approx(-6.02, abs=0.1)
    # A pulse half way between two samples, at whole seconds, where blocks have their borders.
    for at in (0.5, 1.0, 10.0, 30.0):
        n = np.arange(31 * RATE) - at * RATE + 0.5
        pulse = np.where(np.abs(n) < 100, np.sinc(0.8 * n) * np.cos(np.pi * n / 200) ** 2, 0)
        samples = np.stack([pulse, -pulse]).astype(np.float32)
        assert audio_levels.peak_dbfs(samples) < -2
        assert audio_levels.true_peak_dbtp(samples) == pytest.approx(0.0, abs=0.1), at


def test_flatness_tells_noise_from_tones():
    assert (
        audio_levels.spectral_flatness(noise(3 * RATE))
        > NOISE_FLATNESS
        > 0.01
        > audio_levels.spectral_flatness(tone(3.0))
    )
    chord = sum(tone(3.0, hertz=hertz, level=0.1) for hertz in (220, 277, 330, 440, 880))
    assert audio_levels.spectral_flatness(chord + noise(3 * RATE, level=0.004)) < NOISE_FLATNESS
    mostly_quiet = np.concatenate([noise(RATE), np.zeros((2, 5 * RATE), np.float32)], axis=1)
    assert audio_levels.spectral_flatness(mostly_quiet) > 0.5
    assert 0 <= audio_levels.spectral_flatness(noise(100)) <= 1


def test_scale_to_peak():
    for level in (0.01, 4.0):
        samples = tone(1.0, level=level)
        assert audio_levels.peak_dbfs(samples) == pytest.approx(20 * np.log10(level), abs=0.01)
        scaled = audio_levels.scale_to_peak(samples, -6.0)
        assert scaled.dtype == np.float32
        assert audio_levels.peak_dbfs(scaled) == pytest.approx(-6.0, abs=1e-3)
    quiet = tone(1.0, level=1e-5)
    np.testing.assert_array_equal(audio_levels.scale_to_peak(quiet, -6.0), quiet)


def test_one_gain_reaches_the_loudness_where_the_peaks_allow_it():
    for level in (0.02, 0.9):
        samples = tone(3.0, hertz=300, level=level)
        scaled, reduction = audio_levels.scale_to_loudness(samples, -23.0)
        assert scaled.dtype == np.float32 and reduction == 0
        assert audio_levels.loudness_lufs(scaled) == pytest.approx(-23.0, abs=0.05)
        np.testing.assert_allclose(scaled, samples * (scaled[0, 100] / samples[0, 100]), rtol=1e-5)
    for samples in (
        noise(RATE, level=0),
        tone(3.0, level=6e-4),
        tone(0.3),
        noise(0),
    ):  # silence and short clips
        same, reduction = audio_levels.scale_to_loudness(samples, -14.0)
        np.testing.assert_array_equal(same, samples)
        assert reduction == 0


def drums(seconds=6.0, hits=2.0, level=0.9):
    """Return hits of a decaying tone over a quiet bed: peaks 20 dB and more above the loudness."""
    samples = tone(seconds, hertz=220, level=0.03)
    length = RATE // 20
    hit = (
        level * np.exp(-np.arange(length) / 300) * np.sin(2 * np.pi * 90 * np.arange(length) / RATE)
    )
    for at in range(0, samples.shape[1] - length, round(RATE / hits)):
        samples[:, at : at + length] += hit.astype(np.float32)
    return samples


@pytest.mark.parametrize("lufs", [-14.0, -11.0])
def test_a_limiter_reaches_the_loudness_where_peaks_are_in_the_way(lufs):
    samples = drums()
    plain = audio_levels.loudness_lufs(samples) - audio_levels.true_peak_dbtp(samples) - 1
    assert plain < lufs - 2, "one gain would do, so nothing is limited here"
    scaled, reduction = audio_levels.scale_to_loudness(samples, lufs)
    assert audio_levels.loudness_lufs(scaled) == pytest.approx(lufs, abs=0.3)
    assert audio_levels.true_peak_dbtp(scaled) <= -1 + 1e-4
    assert reduction > 2


def test_a_limiter_turns_down_the_peak_alone_and_is_down_before_it_comes():
    at = 70_000
    samples = np.full((2, 3 * RATE), 0.25, np.float32)
    samples[:, at : at + 2] = 0.9  # the true peak lies between the two
    needed = audio_levels.true_peak_dbtp(samples) + 6
    limited, reduction = audio_levels.limit_peaks(samples, -6.0)
    assert audio_levels.true_peak_dbtp(limited) <= -6 + 1e-4
    assert reduction == pytest.approx(needed, abs=0.05)
    gain = limited[0] / samples[0]
    far = round(2 * audio_levels.HOLD_SECONDS * RATE)
    np.testing.assert_allclose(gain[: at - far], 1, atol=1e-3)
    np.testing.assert_allclose(gain[at + far :], 1, atol=1e-3)
    # The average of a step over w samples rises by at most its height / w from one sample to the next.
    steepest = (1 - gain.min()) / (audio_levels.HOLD_SECONDS * RATE / 2)
    assert np.abs(np.diff(gain)).max() <= 1.01 * steepest


def test_what_is_as_loud_as_it_can_be_is_left_there():
    """White noise crushed to a square wave cannot be louder than its ceiling."""
    samples = np.sign(noise(2 * RATE)).astype(np.float32)
    scaled, _ = audio_levels.scale_to_loudness(samples, -6.0, ceiling_dbtp=-12.0)
    assert np.isfinite(scaled).all()
    assert audio_levels.true_peak_dbtp(scaled) <= -12 + 1e-4


def test_fade_out_ends_in_silence_and_touches_only_the_end():
    samples = np.ones((2, 2 * RATE), np.float32)
    faded = audio_levels.fade_out(samples, 0.5)
    np.testing.assert_array_equal(faded[:, : -RATE // 2], samples[:, : -RATE // 2])
    ramp = faded[0, -RATE // 2 :]
    assert (np.diff(ramp) <= 0).all()
    assert ramp[0] > 0.999 and ramp[-1] == 0.0
    assert samples.min() == 1.0
    assert audio_levels.fade_out(samples, 0.0)[0, -1] == 1.0
    assert audio_levels.fade_out(samples, 9.0).shape == samples.shape


@pytest.mark.slow
def test_five_minutes_are_measured_in_bounded_memory():
    samples = noise(300 * RATE)
    tracemalloc.start()
    measured = (
        audio_levels.true_peak_dbtp(samples),
        audio_levels.rms_dbfs(samples),
        audio_levels.peak_dbfs(samples),
    )
    flatness = audio_levels.spectral_flatness(samples)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    loudness = audio_levels.loudness_lufs(samples)
    assert tracemalloc.get_traced_memory()[1] < 4 * samples.nbytes
    tracemalloc.stop()
    assert np.isfinite([*measured, loudness, flatness]).all()


# --- splices ------------------------------------------------------------------------------------------------------


def test_old_samples_stay_outside_the_region_and_its_fades_which_are_linear():
    old, new = noise(5000), noise(5000, seed=2)
    for (start, end), fade in itertools.product(
        [(1000, 2000), (0, 2000), (1000, 5000), (30, 4980)], (0, 1, 100)
    ):
        joined = splice(old, new, start, end, fade)
        assert np.array_equal(joined[:, : max(start - fade, 0)], old[:, : max(start - fade, 0)])
        assert np.array_equal(joined[:, end + fade :], old[:, end + fade :])
        assert np.array_equal(joined[:, start:end], new[:, start:end])
    joined = splice(np.zeros((2, 12), np.float32), np.ones((2, 12), np.float32), 5, 7, 3)
    assert joined[0] == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    joined = splice(np.zeros((2, 6), np.float32), np.ones((2, 6), np.float32), 1, 4, 3)
    assert joined[0] == pytest.approx([0.75, 1, 1, 1, 0.75, 0.5])


def test_the_level_comes_within_3_db_of_the_surroundings_or_is_left_alone():
    for inside, around in [(0.5, 0.01), (0.01, 0.2), (0.1, 0.1)]:
        old, new = noise(4 * RATE, around), noise(4 * RATE, inside, seed=2)
        matched = match_level(new, old, RATE, 2 * RATE)[:, RATE : 2 * RATE]
        assert abs(20 * np.log10(matched.std() / around)) < 3.1
    new = noise(4 * RATE, seed=2)
    for old in (
        noise(4 * RATE, 0.12),
        np.zeros_like(new),
    ):  # a level that fits, and silence, which asks for none
        assert np.array_equal(match_level(new, old, RATE, 2 * RATE), new)


def test_the_new_part_never_goes_over_full_scale_and_a_peak_that_is_not_used_does_not_count():
    spiky = noise(4 * RATE, 0.01)
    spiky[:, RATE + 10] = 0.9
    matched = match_level(spiky, noise(4 * RATE, 0.5), RATE, 2 * RATE)
    assert np.abs(matched[:, RATE : 2 * RATE]).max() <= 1.0
    used = slice(RATE - 100, 2 * RATE + 100)
    assert (
        np.abs(
            match_level(noise(4 * RATE, 3.0), noise(4 * RATE, 0.5), RATE, 2 * RATE, 100)[:, used]
        ).max()
        <= 1.0
    )
    far = noise(4 * RATE)
    far[:, 3 * RATE] = 5.0
    assert np.array_equal(
        match_level(far, noise(4 * RATE, seed=2), RATE, 2 * RATE)[:, :RATE], far[:, :RATE]
    )
