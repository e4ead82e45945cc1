"""A file is read to its end, whatever its header says, and a header that promises more is told."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import audio
import audio_waveform
from tests.unit.sounds import ID3, RATE, mp3_of, music, noise, patched, save, tone

SECONDS = 4.0
Bytes = Callable[[Path], bytes]


def written(folder: Path, samples: np.ndarray, kind: str, subtype: str | None = None) -> bytes:
    return save(folder / "whole", samples, format=kind, subtype=subtype).read_bytes()


def wav(folder: Path, seconds: float = SECONDS) -> bytes:
    return written(folder, music(seconds), "WAV", "PCM_16")


def flac(folder: Path) -> bytes:
    return written(folder, music(SECONDS), "FLAC")


def bare_mp3(folder: Path, quiet: float = 0.0) -> bytes:
    data, first = mp3_of(folder / "whole", music(SECONDS, quiet))
    return data[first:]


def claimed(data: bytes, frames: int) -> bytes:
    """Return an MP3 whose header claims `frames`."""
    return patched(data, (data.index(b"Xing") + 8, struct.pack(">I", frames)))


def flac_of(data: bytes, frames: int) -> bytes:
    return patched(data, (22, struct.pack(">I", frames)))


def aiff(folder: Path) -> bytes:
    return written(folder, music(SECONDS), "AIFF", "PCM_16")


def sizes_of_aiff(data: bytes, frames: int, form: int, sound: int) -> bytes:
    return patched(
        data,
        (4, struct.pack(">I", form)),
        (data.index(b"COMM") + 10, struct.pack(">I", frames)),
        (data.index(b"SSND") + 4, struct.pack(">I", sound)),
    )


def rf64(folder: Path, sound: int) -> bytes:
    """Return a file of the kind for more than 4 GB, which says in a chunk of its own how long it is."""
    data = wav(folder)
    sizes = struct.pack("<QQQI", len(data), sound, 0, 0)
    head = b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<I", 28) + sizes
    rest = patched(data[12:], (data.index(b"data") - 12 + 4, b"\xff" * 4))
    return head + rest


# Each holds `SECONDS` of sound or twice as much, and its header says something else.
READ: dict[str, tuple[Bytes, float]] = {
    "an MP3 without a header": (bare_mp3, SECONDS),
    "an MP3 that begins with silence": (lambda t: bare_mp3(t, 2.0), SECONDS),
    "an MP3 behind a tag": (lambda t: ID3 + bare_mp3(t), SECONDS),
    "an MP3 behind rubbish": (lambda t: bytes(3_000) + b"\xff" + bare_mp3(t), SECONDS),
    "an MP3 that claims a half": (
        lambda t: claimed(mp3_of(t / "whole", music(SECONDS))[0], 80),
        SECONDS,
    ),
    "joined MP3s": (lambda t: 2 * mp3_of(t / "whole", music(SECONDS))[0], 2 * SECONDS),
    "joined MP3s with tags": (
        lambda t: 2 * (ID3 + mp3_of(t / "whole", music(SECONDS))[0] + b"TAG" + bytes(125)),
        2 * SECONDS,
    ),
    "a WAV of a recorder that lost power": (
        lambda t: patched(wav(t), (4, bytes(4)), (40, bytes(4))),
        SECONDS,
    ),
    "a WAV that covers its first second": (
        lambda t: patched(wav(t), (40, struct.pack("<I", RATE * 4))),
        SECONDS,
    ),
    "a streamed WAV": (lambda t: patched(wav(t), (4, b"\xff" * 4), (40, b"\xff" * 4)), SECONDS),
    "joined WAVs": (lambda t: 2 * wav(t), 2 * SECONDS),
    "an RF64 without sizes": (lambda t: rf64(t, 0), SECONDS),
    "an RF64 that covers its first second": (lambda t: rf64(t, RATE * 4), SECONDS),
    "a FLAC of unknown length": (lambda t: flac_of(flac(t), 0), SECONDS),
    "a FLAC that claims a half": (lambda t: flac_of(flac(t), RATE * 2), SECONDS),
    "a FLAC before a tag": (lambda t: flac(t) + b"TAG" + b"x" * 125, SECONDS),
    "joined FLACs": (lambda t: 2 * flac(t), 2 * SECONDS),
    "joined FLACs with tags": (lambda t: 2 * (ID3 + flac(t)), 2 * SECONDS),
    "an AIFF without sizes": (lambda t: sizes_of_aiff(aiff(t), 0, 0, 0), SECONDS),
    "an AIFF that counts a half": (
        lambda t: patched(aiff(t), (aiff(t).index(b"COMM") + 10, struct.pack(">I", RATE * 2))),
        SECONDS,
    ),
    "joined AIFFs": (lambda t: 2 * aiff(t), 2 * SECONDS),
    "an AU without a size": (
        lambda t: patched(written(t, music(SECONDS), "AU", "PCM_16"), (8, bytes(4))),
        SECONDS,
    ),
    "joined AUs": (lambda t: 2 * written(t, music(SECONDS), "AU", "PCM_16"), 2 * SECONDS),
    "chained Vorbis": (lambda t: 2 * written(t, music(SECONDS), "OGG", "VORBIS"), 2 * SECONDS),
    "chained Opus": (lambda t: 2 * written(t, music(SECONDS), "OGG", "OPUS"), 2 * SECONDS),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_to_its_end(tmp_path: Path, name: str) -> None:
    make, seconds = READ[name]
    path = tmp_path / "upload.bin"
    path.write_bytes(make(tmp_path))
    samples = audio.decode(path)
    assert samples.shape[1] / RATE == pytest.approx(seconds, abs=0.1)
    assert audio.duration_of(path) == pytest.approx(samples.shape[1] / RATE, abs=1 / RATE)
    # The last second is the music's own: a tone, or bursts of noise with it.
    assert np.sqrt(np.mean(samples[:, -RATE:] ** 2)) > 0.05
    assert audio_waveform.peaks(path)["seconds"] == audio.duration_of(path)


def test_joined_files_of_other_rates_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "joined"
    first = save(tmp_path / "a", tone(2.0, 44_100), 44_100).read_bytes()
    path.write_bytes(first + save(tmp_path / "b", tone(3.0, hertz=880.0)).read_bytes())
    samples = audio.decode(path)
    assert samples.shape == (2, 5 * RATE)
    for start, hertz in ((0, 440), (2, 880)):
        heard = np.abs(np.fft.rfft(samples[0, start * RATE : (start + 2) * RATE]))
        assert heard.argmax() == 2 * hertz


@pytest.mark.parametrize("encoding", ["WAV", "AIFF", "AU", "FLAC", "MP3"])
def test_a_file_that_is_cut_says_where_it_ends_before_anything_is_made(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "cut"
    whole = written(tmp_path, music(SECONDS), encoding)
    path.write_bytes(whole[: len(whole) // 2])
    for read in (audio.duration_of, audio.decode):
        with pytest.raises(audio.AudioError, match="damaged"):
            read(path)
    assert audio_waveform.peaks(path)["seconds"] == 0.0


def test_what_comes_behind_the_sound_is_no_sound(tmp_path: Path) -> None:
    whole = wav(tmp_path)
    notes = b"LIST" + struct.pack("<I", 300_000) + bytes(300_000)
    for name, data in {
        "a chunk": whole + notes,
        "padding": whole + bytes(2_000_000),
        "a tag": whole + b"TAG" + b"x" * 125,
        "nothing, said so": patched(whole, (4, struct.pack("<I", len(whole) - 8))),
    }.items():
        path = tmp_path / "upload"
        path.write_bytes(data)
        assert audio.duration_of(path) == SECONDS, name
    empty = save(tmp_path / "empty.wav", np.zeros((2, 0), np.float32)).read_bytes()
    path.write_bytes(empty + notes)
    with pytest.raises(audio.AudioError, match="no sound"):
        audio.duration_of(path)


def test_an_mp3_with_a_true_header_loses_only_what_its_encoder_added(tmp_path: Path) -> None:
    samples = music(SECONDS)
    path = tmp_path / "whole.mp3"
    mp3_of(path, samples)
    assert audio.decode(path).shape == samples.shape


# Marks as they are written by the programs that make such files.
ADTS = b"".join(b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(9) for _ in range(20))
FOREIGN = {
    "an AAC file": ADTS,
    "an AAC file behind a tag": ID3 + ADTS,
    "an M4A file": b"\0\0\0\x20ftypM4A " + bytes(4000),
    "an M4B audiobook": b"\0\0\0\x20ftypM4B " + bytes(4000),
    "a 3GP file": b"\0\0\0\x20ftyp3gp4" + bytes(4000),
    "an MP4 file": b"\0\0\0\x20ftypmp42" + bytes(400) + b"hdlr" + bytes(8) + b"soun" + bytes(400),
    "a video file (MP4)": b"\0\0\0\x20ftypmp42" + bytes(2_000_000) + b"hdlr" + bytes(8) + b"vide",
    "a video file (MOV)": b"\0\0\0\x14ftypqt  " + bytes(40) + b"hdlr" + bytes(8) + b"vide",
    "an audio file in WebM": b"\x1aE\xdf\xa3\x9fB\x82\x84webm" + bytes(90) + b"A_OPUS" + bytes(400),
    "a video file (WebM)": b"\x1aE\xdf\xa3\x9fB\x82\x84webm" + bytes(90) + b"V_VP9A_OPUS",
    "an audio file in Matroska, MKA": b"\x1aE\xdf\xa3\x9fB\x82\x88matroska" + bytes(90) + b"A_AAC",
    "an Ogg FLAC file": b"OggS\0\2" + bytes(20) + b"\1\x33\x7fFLAC\1\0" + bytes(300),
    "a Speex file": b"OggS\0\2" + bytes(20) + b"\1\x50Speex   1.2" + bytes(300),
    "a WavPack file": b"wvpk" + bytes(300),
    "an AMR voice recording": b"#!AMR\n" + bytes(300),
    "a web page": b"\xef\xbb\xbf\r\n<!DOCTYPE html><html>" + b" " * 300,
    "a picture (PNG)": b"\x89PNG\r\n\x1a\n" + bytes(300),
    "a MIDI file": b"MThd\0\0\0\6" + bytes(300),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "upload.mp3"
    path.write_bytes(FOREIGN[name])
    with pytest.raises(audio.AudioError) as caught:
        audio.duration_of(path)
    assert f"This is {name.removesuffix(' behind a tag')}" in caught.value.message
    assert "Save its sound as WAV" in caught.value.hint


def test_music_is_not_taken_for_a_file_of_another_kind(tmp_path: Path) -> None:
    for seed in range(4):
        for kind in ("WAV", "MP3", "FLAC", "OGG"):
            samples = noise(RATE + 50 * seed, seed=seed)
            assert audio.duration_of(save(tmp_path / "a", samples, format=kind)) >= 1


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(2.0))
    assert audio.duration_of(path) == 2.0
    path.write_bytes(b"la la la\n" * 100)
    with pytest.raises(audio.AudioError, match="text file"):
        audio.duration_of(path)
    assert audio.duration_of(save(path, tone(3.0))) == 3.0
