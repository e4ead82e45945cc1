"""What the page draws of a recording."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import soundfile

import audio_waveform

RATE = 8_000


def drawn(path: Path, samples: np.ndarray, **encoding: str) -> np.ndarray:
    """Write samples [samples] or [samples, channels] and return their picture as int [columns, 2]."""
    soundfile.write(path, samples, RATE, **encoding)
    data = base64.b64decode(audio_waveform.peaks(path)["peaks"])
    return np.frombuffer(data, np.int8).reshape(-1, 2).astype(int)


def burst(level: float = 1.0) -> np.ndarray:
    """Return eight seconds of silence with a tone from 2 to 4."""
    samples = np.zeros(8 * RATE)
    samples[2 * RATE : 4 * RATE] = level * np.sin(np.arange(2 * RATE) * 0.7)
    return samples


@pytest.mark.parametrize("ending", ["wav", "mp3"])
def test_what_is_loud_is_drawn_where_it_is(tmp_path: Path, ending: str):
    path = tmp_path / f"burst.{ending}"
    columns = drawn(path, burst())
    assert audio_waveform.peaks(path)["seconds"] == pytest.approx(8, abs=0.1)
    quarter, margin = len(columns) // 4, 20  # coded files smear and shift a little
    loud = columns[quarter + margin : 2 * quarter - margin]
    assert loud[:, 1].min() > 60 and loud[:, 0].max() < -60
    assert np.abs(columns[: quarter - margin]).max() <= 2
    assert np.abs(columns[2 * quarter + margin :]).max() <= 2


def test_a_sound_in_any_channel_and_a_click_of_one_sample_are_seen(tmp_path: Path):
    surround = np.zeros((RATE * 2, 6))
    surround[:, 4] = 0.5 * np.sin(np.arange(len(surround)))
    assert drawn(tmp_path / "surround.wav", surround)[:, 1].max() == 127
    click = np.zeros(RATE * 60)
    click[RATE * 30] = -0.8
    columns = drawn(tmp_path / "click.wav", click)
    assert columns[len(columns) // 2, 0] == -127 and np.count_nonzero(columns) == 1


def test_a_quiet_recording_fills_the_picture_but_noise_and_silence_do_not(tmp_path: Path):
    assert drawn(tmp_path / "quiet.wav", burst(0.02), subtype="FLOAT").max() == 127
    assert drawn(tmp_path / "noise.wav", burst(0.0005), subtype="FLOAT").max() <= 7
    silence = drawn(tmp_path / "silence.wav", np.zeros(RATE * 2))
    assert len(silence) == audio_waveform.COLUMNS and not silence.any()


def test_what_cannot_be_read_has_no_waveform(tmp_path: Path):
    broken = burst()
    broken[:3] = np.nan, np.inf, -np.inf
    assert drawn(tmp_path / "broken.wav", broken, subtype="FLOAT").size == 0
    (tmp_path / "words.wav").write_bytes(b"just some words")
    for name in ("words.wav", "missing.wav"):
        assert audio_waveform.peaks(tmp_path / name) == {"seconds": 0.0, "peaks": ""}


def test_a_closer_look_has_more_columns_and_onsets_where_it_gets_louder(tmp_path: Path):
    samples = np.zeros(RATE * 90)
    for second in (0.5, 1.25, 2.02):
        samples[round(second * RATE) :][:800] = 0.5 * np.sin(np.arange(800) * 0.7)
    assert len(drawn(tmp_path / "beats.wav", samples)) == audio_waveform.COLUMNS
    found = audio_waveform.peaks(tmp_path / "beats.wav", audio_waveform.CLOSE_COLUMNS)
    assert len(base64.b64decode(found["peaks"])) == 2 * 90 * audio_waveform.CLOSE_COLUMNS
    onsets = np.frombuffer(
        base64.b64decode(audio_waveform.onsets(tmp_path / "beats.wav", 90)), np.uint8
    )
    assert len(onsets) == 90 * audio_waveform.ONSETS
    assert [round(at / audio_waveform.ONSETS, 2) for at in np.flatnonzero(onsets > 200)] == [
        0.5,
        1.24,
        2.02,
    ]
