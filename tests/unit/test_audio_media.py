"""Recordings of phones and browsers: read with PyAV as they sound, and refused with a sentence without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import audio
import audio_media
from tests.files import write_media
from tests.unit.sounds import tone

SECONDS = 3.0
KINDS = {"m4a": "aac", "mp4": "aac", "mov": "alac", "aac": "aac", "webm": "libopus", "mkv": "flac"}
HEADS = {
    "an M4A file": b"\0\0\0\x20ftypM4A \0\0\0\0",
    "an MP4 file": b"\0\0\0\x20ftypisom",
    "a WebM or MKV file": b"\x1aE\xdf\xa3",
    "an AAC file": b"\xff\xf1\x50\x80",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_sounds_as_it_was_recorded(tmp_path: Path, kind: str):
    pytest.importorskip("av", reason="PyAV is not installed (requirements-media.txt)")
    source = tone(SECONDS)
    path = write_media(source, tmp_path / f"voice.{kind}", KINDS[kind])
    found = audio.decode(path)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    # An encoder may add a little silence at either end.
    assert found.shape[1] / audio.SAMPLE_RATE == pytest.approx(SECONDS, abs=0.1)
    assert audio.duration_of(path) == pytest.approx(found.shape[1] / audio.SAMPLE_RATE, abs=0.1)
    spectra = [np.abs(np.fft.rfft(each[0, 4_800:100_800])) for each in (source, found)]
    assert np.corrcoef(*spectra)[0, 1] > 0.99


def test_a_recording_that_is_damaged_too_short_or_silent_gets_a_sentence(tmp_path: Path):
    pytest.importorskip("av", reason="PyAV is not installed (requirements-media.txt)")
    short = write_media(tone(0.5), tmp_path / "short.m4a", "aac")
    with pytest.raises(audio.AudioError, match="too short"):
        audio.duration_of(short)
    for name, head in HEADS.items():
        path = tmp_path / "a.bin"
        path.write_bytes(head + bytes(4_000))
        with pytest.raises(audio.AudioError, match=f"This is {name}, but it"):
            audio.decode(path)


@pytest.mark.parametrize("name", HEADS)
def test_without_pyav_a_sentence_names_the_formats(tmp_path: Path, monkeypatch: Any, name: str):
    monkeypatch.setattr(audio_media, "can_read", lambda: False)
    path = tmp_path / "voice.bin"
    path.write_bytes(HEADS[name] + bytes(4_000))
    for read in (audio.decode, audio.duration_of):
        with pytest.raises(audio.AudioError) as refused:
            read(path)
        assert f"This is {name}. M4A, AAC, MP4, WebM and Opus are read here only with PyAV" in str(
            refused.value
        )
        assert "Save its sound as WAV" in refused.value.hint
