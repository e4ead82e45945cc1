"""What the waveform of a source is made of, and the region that a new source begins with."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import soundfile

import page_widgets
from limits import LEAST_REGION_SECONDS

RATE = 8_000


def drawn(path: Path) -> np.ndarray:
    """Return the peaks of a file as int [columns, 2]."""
    data = base64.b64decode(page_widgets.peaks(path)["peaks"])
    return np.frombuffer(data, np.int8).reshape(-1, 2).astype(int)


def written(path: Path, samples: np.ndarray, rate: int = RATE, **encoding: str) -> Path:
    """Write samples [samples] or [samples, channels] and return where they are."""
    soundfile.write(path, samples, rate, **encoding)
    return path


def burst(seconds: float = 8, level: float = 1.0) -> np.ndarray:
    """Return silence with a tone in its second quarter."""
    samples = np.zeros(int(seconds * RATE))
    quarter = len(samples) // 4
    samples[quarter : 2 * quarter] = level * np.sin(np.arange(quarter) * 0.7)
    return samples


@pytest.mark.parametrize("ending", ["wav", "mp3"])
def test_what_is_loud_is_drawn_where_it_is(tmp_path: Path, ending: str):
    path = written(tmp_path / f"burst.{ending}", burst())
    assert page_widgets.peaks(path)["seconds"] == pytest.approx(8, abs=0.1)
    columns = drawn(path)
    quarter = len(columns) // 4
    margin = 20  # coded files smear and shift a little
    assert columns[quarter + margin : 2 * quarter - margin, 1].min() > 60
    assert columns[quarter + margin : 2 * quarter - margin, 0].max() < -60
    assert np.abs(columns[: quarter - margin]).max() <= 2
    assert np.abs(columns[2 * quarter + margin :]).max() <= 2


def test_a_sound_in_any_channel_is_seen(tmp_path: Path):
    samples = np.zeros((RATE * 2, 6))
    samples[:, 4] = 0.5 * np.sin(np.arange(len(samples)))
    assert drawn(written(tmp_path / "surround.wav", samples))[:, 1].max() == 127


def test_a_click_of_one_sample_is_not_lost(tmp_path: Path):
    samples = np.zeros(RATE * 60)
    samples[RATE * 30] = -0.8
    columns = drawn(written(tmp_path / "click.wav", samples))
    assert columns[len(columns) // 2, 0] == -127
    assert np.count_nonzero(columns) == 1


def test_a_quiet_recording_fills_the_picture_but_noise_does_not(tmp_path: Path):
    assert drawn(written(tmp_path / "quiet.wav", burst(level=0.02), subtype="FLOAT")).max() == 127
    assert drawn(written(tmp_path / "noise.wav", burst(level=0.0005), subtype="FLOAT")).max() <= 7


def test_silence_is_a_flat_line_and_what_is_no_number_is_drawn_as_something(tmp_path: Path):
    columns = drawn(written(tmp_path / "silence.wav", np.zeros(RATE * 2)))
    assert len(columns) == page_widgets.COLUMNS
    assert not columns.any()
    samples = burst()
    samples[:3] = np.nan, np.inf, -np.inf
    assert drawn(written(tmp_path / "broken.wav", samples, subtype="FLOAT")).max() == 127


def test_what_cannot_be_read_has_no_waveform(tmp_path: Path):
    (tmp_path / "words.wav").write_bytes(b"just some words")
    for name in ("words.wav", "missing.wav"):
        assert page_widgets.peaks(tmp_path / name) == {"seconds": 0.0, "peaks": ""}


def test_a_new_source_begins_with_a_middle_part():
    for seconds in (1.0, 1.04, 12.3456, 600.0):
        start, end = page_widgets.middle(seconds)
        assert 0 < start < end < seconds
        assert end - start >= LEAST_REGION_SECONDS - 1e-9
        assert (start, end) == (round(start, 1), round(end, 1))
    assert page_widgets.middle(60) == (20, 30)
    assert page_widgets.middle(0) == (0, 0)


def test_onsets_are_where_it_gets_louder(tmp_path: Path):
    samples = np.zeros(RATE * 3)
    for second in (0.5, 1.25, 2.02):
        samples[round(second * RATE) :][:800] = 0.5 * np.sin(np.arange(800) * 0.7)
    path = written(tmp_path / "beats.wav", samples)
    onsets = np.frombuffer(base64.b64decode(page_widgets.waveform(path)["onsets"]), np.uint8)
    assert len(onsets) == 3 * page_widgets.ONSETS
    assert [round(at / page_widgets.ONSETS, 2) for at in np.flatnonzero(onsets > 200)] == [0.5, 1.24, 2.02]


def test_a_closer_look_has_more_columns(tmp_path: Path):
    path = written(tmp_path / "long.wav", burst(90))
    data = base64.b64decode(page_widgets.waveform(path)["peaks"])
    assert len(data) == 2 * 90 * page_widgets.CLOSE_COLUMNS
    assert len(drawn(path)) == page_widgets.COLUMNS


@pytest.mark.parametrize(
    ("record", "bpm"),
    [
        ({"request": {"bpm": 96}}, 96),
        ({"request": {"bpm": 96}, "plan": {"used": True, "bpm": 120}}, 120),
        ({"request": {"bpm": None}, "plan": None}, None),
        ({"request": {"bpm": 1e9}, "plan": {"bpm": "fast"}}, None),
        ({"request": [96]}, None),
        (None, None),
    ],
)
def test_the_tempo_of_a_record_is_checked(record: object, bpm: int | None):
    assert page_widgets.tempo(record) == bpm
