"""Samples in: what an upload becomes, and what bad files are told."""

import struct
import threading
import tracemalloc
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
import soundfile as sf

import audio
import audio_export
import jobs
from params import parse_request, settle
from tests.files import write_song
from tests.unit.sounds import (
    BAD_FILES,
    LOSSLESS,
    RATE,
    flac_bytes,
    folder_of,
    integers,
    noise,
    save,
    tone,
)
from tests.waiting import until

# The ends of the range, the smallest steps and values that truncation and rounding treat differently.
CORNERS = (
    -(2**23),
    2**23 - 1,
    0,
    1,
    -1,
    2,
    -2,
    127,
    -127,
    128,
    -128,
    255,
    -255,
    2**22 + 1,
    -(2**22) - 1,
)
KINDS = {
    **{
        ("WAV", "PCM_U8"): 0.01,
        ("WAV", "PCM_16"): 1e-4,
        ("WAV", "FLOAT"): 1e-7,
        ("FLAC", "PCM_24"): 1e-6,
    },
    **{
        ("AIFF", "PCM_16"): 1e-4,
        ("MP3", None): 0.05,
        ("OGG", "VORBIS"): 0.05,
        ("OGG", "OPUS"): 0.05,
    },
}


def test_decode_reads_every_kind_of_file(tmp_path):
    source = tone(1.5)
    for (format, subtype), tolerance in KINDS.items():
        path = save(tmp_path / "upload.bin", source, format=format, subtype=subtype)
        samples = audio.decode(path)
        assert (samples.dtype, samples.shape) == (np.float32, (2, 72_000)), (format, subtype)
        assert audio.duration_of(path) == 1.5
        assert np.abs(samples - source)[:, 4800:-4800].max() < tolerance, (format, subtype)


def test_decode_resamples_to_48_khz_in_place_and_in_time(tmp_path):
    for rate in (8_000, 44_100, 192_000):
        frames = (
            round(12.0 * rate) + 17
        )  # several blocks: a seam between two of them would be heard
        path = save(tmp_path / "a.wav", tone(frames / rate, rate), rate, subtype="FLOAT")
        samples = audio.decode(path)
        assert samples.shape == (2, round(frames * RATE / rate)), rate
        assert audio.duration_of(path) == pytest.approx(frames / rate, abs=1e-9)
        expected = tone(samples.shape[1] / RATE)
        assert np.abs(samples - expected)[:, 2400:-2400].max() < 1e-5, rate


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_a_48_khz_source_comes_back_bit_for_bit(tmp_path, format):
    whole = np.random.default_rng(1).integers(-(2**23), 2**23, (2, RATE + 11), dtype=np.int64)
    whole[:, : len(CORNERS)] = CORNERS
    path = tmp_path / "source"
    sf.write(path, (whole.T << 8).astype(np.int32), RATE, format=format, subtype="PCM_24")
    samples = audio.decode(path)
    np.testing.assert_array_equal(samples.astype(np.float64) * 2**23, whole)
    kept = tmp_path / "job.wav"
    audio_export.write_wav(kept, samples)
    for saved in LOSSLESS:
        result = write_song(audio.read_wav(kept), tmp_path / f"result.{saved}", saved)
        np.testing.assert_array_equal(integers(result), whole)


SURROUND = [  # format, channels; those heard left, right, and on both sides; the others are not heard
    ("WAV", 3, (0,), (1,), (2,)),
    ("WAV", 6, (0, 4), (1, 5), (2,)),
    ("FLAC", 7, (0, 5), (1, 6), (2, 4)),
    ("WAV", 8, (0, 4, 6), (1, 5, 7), (2,)),
    ("OGG", 6, (0, 3), (2, 4), (1,)),
    ("WAV", 10, (), (), tuple(range(10))),
]


def test_mono_goes_to_both_sides_exactly_and_surround_is_mixed_down(tmp_path):
    mono = tone(1.0, channels=1)
    samples = audio.decode(save(tmp_path / "a", mono, subtype="FLOAT"))
    np.testing.assert_array_equal(samples, np.repeat(mono, 2, axis=0))
    for format, channels, left, right, both in SURROUND:
        hertz = [400 + 300 * i for i in range(channels)]
        source = np.concatenate([tone(1.0, hertz=h, level=0.9, channels=1) for h in hertz])
        samples = audio.decode(save(tmp_path / "a", source, format=format))
        assert np.abs(samples).max() <= 1.0
        spectrum = np.abs(np.fft.rfft(samples)) / RATE
        heard = [{i for i, h in enumerate(hertz) if side[h] > 0.02} for side in spectrum]
        assert heard == [{*left, *both}, {*right, *both}], (format, channels)


def test_an_mp3_of_variable_bit_rate_decodes_like_one_whole_read(tmp_path):
    path = (
        tmp_path / "variable.mp3"
    )  # a seek between two blocks would break the music at each border
    time = np.arange(30 * RATE) / RATE
    bursts = 0.8 * np.sin(2 * np.pi * 891 * time) * ((time % 4) > 2)
    sf.write(path, np.stack([bursts, bursts], axis=1), RATE, format="MP3", subtype="MPEG_LAYER_III")
    whole, _ = sf.read(path, dtype="float32")
    assert np.array_equal(audio.decode(path), whole.T)


def test_a_bad_file_gets_a_sentence(tmp_path):
    for name, (filename, make, said) in BAD_FILES.items():
        path = tmp_path / filename
        path.write_bytes(make(tmp_path))
        with pytest.raises(audio.AudioError) as caught:
            audio.decode(path)
        error = caught.value
        assert said in error.message, name
        assert (
            error.message[0].isupper() and error.message.endswith(".") and error.hint.endswith(".")
        )
        assert not any(
            code_name in str(error) for code_name in ("Error", "sndfile", "_", str(tmp_path))
        )
        if name in ("empty", "text", "mp4", "noise", "half a header", "too short", "fast rate"):
            with pytest.raises(audio.AudioError, match=said):
                audio.duration_of(path)
    for path in (tmp_path, tmp_path / "nowhere.wav"):
        with pytest.raises(audio.AudioError, match=r"not a file|not found"):
            audio.decode(path)


def test_samples_far_beyond_full_scale_are_refused_and_a_loud_file_keeps_its_shape(tmp_path):
    hot = audio.decode(save(tmp_path / "a.wav", tone(1.0, level=2.5), subtype="FLOAT"))
    assert np.abs(hot).max() == pytest.approx(2.5, rel=1e-3)
    for value, rate in ((np.nan, RATE), (-np.inf, RATE), (1e20, 44_100)):
        samples = tone(2.0, rate)
        samples[1, 60_000] = value
        path = save(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
        with pytest.raises(audio.AudioError, match="not numbers"):
            audio.decode(path)


def test_the_limits_of_length_and_size_are_inclusive(tmp_path, monkeypatch):
    path = save(tmp_path / "a.wav", tone(2.0), subtype="PCM_16")
    size = path.stat().st_size
    for name, at, beyond, said in (
        ("LEAST_SECONDS", 2.0, 2.01, "short"),
        ("MAX_SOURCE_SECONDS", 2.0, 1.99, "long"),
        ("MAX_UPLOAD_BYTES", size, size - 1, "too large"),
    ):
        monkeypatch.setattr(audio, name, at)
        assert audio.decode(path).shape == (2, 2 * RATE)
        for read in (audio.decode, audio.duration_of):
            with monkeypatch.context() as patch, pytest.raises(audio.AudioError, match=said):
                patch.setattr(audio, name, beyond)
                read(path)


def test_a_long_file_is_refused_by_its_header_and_so_is_a_header_that_lies(tmp_path):
    # Ten minutes and one second of silence is a small FLAC; nothing of it is decoded.
    path = save(tmp_path / "long.flac", np.zeros((1, 601 * 8000), np.float32), 8000, format="FLAC")
    tracemalloc.start()
    with pytest.raises(audio.AudioError, match="10 minutes"):
        audio.decode(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    data = bytearray(flac_bytes(tmp_path))
    for frames, said in (
        (3 * RATE, "damaged"),
        (601 * RATE, "10 minutes"),
    ):
        data[22:26] = struct.pack(">I", frames)
        path.write_bytes(data)
        with pytest.raises(audio.AudioError, match=said):
            audio.decode(path)


@pytest.mark.slow
def test_four_minutes_at_96_khz_need_little_more_than_the_result(tmp_path):
    path = tmp_path / "long.flac"
    with sf.SoundFile(path, "w", 96_000, 2, format="FLAC", subtype="PCM_16") as file:
        block = np.zeros((960_000, 2), np.int16)
        block[::2] = 1000
        for _ in range(24):
            file.write(block)
    tracemalloc.start()
    samples = audio.decode(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples.shape == (2, 240 * RATE)
    # The file at once would be 92 MB in whole numbers and 184 in floats.
    assert peak < samples.nbytes + 60_000_000


def test_the_job_file_keeps_every_float(tmp_path):
    samples = noise(5000, level=3.0)
    audio_export.write_wav(tmp_path / "take.wav", samples)
    back = audio.read_wav(tmp_path / "take.wav")
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, samples)
    assert folder_of(tmp_path) == ["take.wav"]
    (tmp_path / "take.wav").write_bytes(b"RIFF")
    with pytest.raises(audio.AudioError):
        audio.read_wav(tmp_path / "take.wav")


def test_decoding_stops_between_two_blocks(tmp_path):
    path = save(tmp_path / "a.wav", tone(30.0))
    asked = []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) == 2

    with pytest.raises(CancelledError):
        audio.decode(path, stopped)
    assert len(asked) == 2


def test_many_channels_at_a_high_rate_are_read_in_little_memory(tmp_path):
    path = tmp_path / "wide.flac"
    silence = np.zeros((192_000, 8), np.int16)
    with sf.SoundFile(path, "w", 192_000, 8, subtype="PCM_16", format="FLAC") as file:
        for _ in range(20):
            file.write(silence)
    tracemalloc.start()
    try:
        samples = audio.decode(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert samples.shape == (2, 20 * RATE)
    # The result, and a few blocks of 1 MB; all channels at once would be 123 MB.
    assert peak < samples.nbytes + 10e6


def silence_in(path, channels, seconds):
    block = np.zeros((192_000, channels), np.int16)
    with sf.SoundFile(path, "w", 192_000, channels, subtype="PCM_16", format="FLAC") as file:
        for _ in range(seconds):
            file.write(block)


def test_many_channels_at_a_high_rate_may_not_be_as_long(tmp_path, monkeypatch):
    """A FLAC of 1 MB may hold ten minutes of silence in eight channels, a billion samples."""
    monkeypatch.setattr(audio, "_MOST_SAMPLES", 192_000 * 2 * 10)
    path = tmp_path / "wide.flac"
    silence_in(path, 8, 3)
    with pytest.raises(audio.AudioError, match="8 channels at 192 kHz it may be 2 seconds"):
        audio.duration_of(path)
    silence_in(path, 8, 2)
    assert audio.duration_of(path) == 2
    silence_in(path, 2, 10)
    assert audio.duration_of(path) == 10


def test_joined_recordings_are_read_until_they_are_too_long(tmp_path, monkeypatch):
    """A hundred of them, each within the limit, would take minutes."""
    monkeypatch.setattr(audio, "MAX_SOURCE_SECONDS", 3)
    measured = []
    measure = audio._measure

    def count(data, recording):
        measured.append(recording)
        return measure(data, recording)

    monkeypatch.setattr(audio, "_measure", count)
    path = tmp_path / "joined.flac"
    silence_in(path, 2, 2)
    path.write_bytes(path.read_bytes() * 5)
    with pytest.raises(audio.AudioError, match="too long"):
        audio.duration_of(path)
    assert len(measured) == 2


def test_one_file_is_checked_at_a_time_and_few_wait(tmp_path, monkeypatch):
    """However many callers: each check takes a core for seconds, and each that waits a thread of the page."""
    monkeypatch.setattr(audio, "MOST_WAITING", 3)
    go_on = threading.Event()
    measured = []

    def measure(path):
        measured.append(path)
        go_on.wait(300)
        return (audio._Length(48_000, 48_000),)

    monkeypatch.setattr(audio, "_measured", measure)
    paths = [tmp_path / f"{number}.wav" for number in range(4)]
    for path in paths:
        path.write_bytes(b"RIFF")
    with ThreadPoolExecutor(3) as callers:
        checks = [callers.submit(audio.duration_of, path) for path in (paths[0], *paths[:2])]
        try:
            until(lambda: audio._checks._waiting == 3)
            assert len(measured) == 1
            with pytest.raises(audio.AudioError, match="checking other files"):
                audio.duration_of(paths[2])
        finally:
            go_on.set()
        assert [check.result(300) for check in checks] == [1, 1, 1]
    assert len(measured) == 2  # the first file once for both callers
    assert audio.duration_of(paths[2]) == 1


def test_the_decoding_of_an_upload_beats_and_can_be_stopped(monkeypatch):
    begun = threading.Event()
    ended = threading.Event()

    def decode(path, stopped):
        begun.set()
        until(stopped)
        ended.set()
        raise CancelledError

    monkeypatch.setattr(audio, "decode", decode)
    request = parse_request("cover", {"prompt": "x", "source": "/uploads/a.wav"})
    with jobs.job_for(request, settle(request, "sft")) as job:
        events = jobs.decode_upload(job, "source")
        assert next(events).stage == "preparing" and begun.is_set()
        events.close()
        job.running.unlink()
        assert ended.wait(300)
