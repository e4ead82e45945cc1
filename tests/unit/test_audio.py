"""Samples in and out: what an upload becomes, what a saved file holds, and what bad files are told."""

import json
import os
import struct
import tracemalloc

import mutagen
import numpy as np
import pytest
import soundfile as sf
from mutagen.flac import FLAC, Picture
from mutagen.id3 import APIC, ID3, TIT2, TXXX
from mutagen.mp3 import MP3
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

import audio
import export
import levels
from limits import SAMPLE_RATE

RATE = SAMPLE_RATE
FORMATS = ("wav", "flac", "mp3", "ogg")
LOSSLESS = ("wav", "flac")
# The ends of the range, the smallest steps and values that truncation and rounding treat differently.
CORNERS_24 = (-(2**23), 2**23 - 1, 0, 1, -1, 2, -2, 127, -127, 128, -128, 255, -255, 2**22 + 1, -(2**22) - 1)


def tone(seconds, rate=RATE, hertz=440.0, level=0.5, channels=2):
    """Return a sine, float32 [channels, samples]; each channel is an octave above the one before."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([level * np.sin(2 * np.pi * hertz * 2**i * t) for i in range(channels)]).astype(np.float32)


def noise(samples, level=0.1, seed=0):
    """Return white noise, float32 [2, samples]."""
    return (level * np.random.default_rng(seed).standard_normal((2, samples))).astype(np.float32)


def save(path, samples, rate=RATE, format="WAV", subtype=None):
    """Write [channels, samples] in blocks of one second (one large Vorbis write ends the process)."""
    with sf.SoundFile(path, "w", rate, samples.shape[0], format=format, subtype=subtype) as file:
        for at in range(0, samples.shape[1], rate):
            file.write(np.ascontiguousarray(samples[:, at : at + rate].T))
    return path


def pcm(bits, samples=RATE + 11, seed=1):
    """Return random integers of a width, [2, samples], that start with the corners of the range."""
    whole = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (2, samples), dtype=np.int64)
    corners = np.array(CORNERS_24) >> (24 - bits)
    whole[:, : len(corners)] = corners
    return whole


def integers(path):
    """Return the samples of a file as 24-bit integers, [channels, samples]."""
    return sf.read(path, dtype="int32", always_2d=True)[0].T >> 8


def dominant(samples, rate=RATE):
    """Return the strongest frequency in Hz of one channel."""
    return np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples)


def folder_of(path):
    return sorted(entry.name for entry in path.iterdir())


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 0.01),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("WAVEX", "PCM_24", 1e-6),
        ("FLAC", "PCM_16", 1e-4),
        ("FLAC", "PCM_24", 1e-6),
        ("AIFF", "PCM_16", 1e-4),
        ("MP3", None, 0.05),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.05),
    ],
)
def test_decode_reads_every_kind_of_file(tmp_path, format, subtype, tolerance):
    source = tone(1.5)
    path = save(tmp_path / "upload.bin", source, format=format, subtype=subtype)
    samples = audio.decode(path)
    assert samples.dtype == np.float32
    assert samples.shape == (2, 72_000)
    assert audio.duration_of(path) == 1.5
    inner = slice(4800, -4800)
    assert np.abs(samples - source)[:, inner].max() < tolerance


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 88_200, 96_000, 192_000])
def test_decode_resamples_to_48_khz_in_place_and_in_time(tmp_path, rate):
    frames = round(1.3 * rate) + 17
    path = save(tmp_path / "a.wav", tone(frames / rate, rate), rate, subtype="FLOAT")
    samples = audio.decode(path)
    assert samples.shape == (2, round(frames * RATE / rate))
    assert audio.duration_of(path) == pytest.approx(frames / rate, abs=1e-9)
    expected = tone(samples.shape[1] / RATE)
    assert np.abs(samples - expected)[:, 2400:-2400].max() < 1e-5


def test_decode_joins_its_blocks_without_a_seam(tmp_path):
    path = save(tmp_path / "a.wav", tone(12.0, 44_100), 44_100, subtype="FLOAT")
    assert np.abs(audio.decode(path) - tone(12.0))[:, 2400:-2400].max() < 1e-5


@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize("format", ["WAV", "FLAC", "AIFF"])
@pytest.mark.parametrize("saved", LOSSLESS)
def test_a_48_khz_source_comes_back_bit_for_bit(tmp_path, bits, format, saved):
    whole = pcm(bits)
    path = tmp_path / "source"
    sf.write(path, (whole.T << (32 - bits)).astype(np.int32), RATE, format=format, subtype=f"PCM_{bits}")
    samples = audio.decode(path)
    np.testing.assert_array_equal(samples.astype(np.float64) * 2 ** (bits - 1), whole)
    kept = tmp_path / "job.wav"
    export.write_wav(kept, samples)
    result = export.encode(audio.read_wav(kept), tmp_path / f"result.{saved}", saved)
    np.testing.assert_array_equal(integers(result), whole << (24 - bits))


def test_mono_goes_to_both_sides_exactly(tmp_path):
    whole = pcm(24)[:1]
    path = tmp_path / "mono.wav"
    sf.write(path, (whole.T << 8).astype(np.int32), RATE, subtype="PCM_24")
    samples = audio.decode(path)
    np.testing.assert_array_equal(samples.astype(np.float64) * 2**23, np.repeat(whole, 2, axis=0))


@pytest.mark.parametrize(
    ("format", "channels", "left", "right", "both", "unheard"),
    [
        ("WAV", 3, (0,), (1,), (2,), ()),
        ("WAV", 4, (0, 2), (1, 3), (), ()),
        ("FLAC", 5, (0, 3), (1, 4), (2,), ()),
        ("WAV", 6, (0, 4), (1, 5), (2,), (3,)),
        ("FLAC", 7, (0, 5), (1, 6), (2, 4), (3,)),
        ("WAV", 8, (0, 4, 6), (1, 5, 7), (2,), (3,)),
        ("OGG", 3, (0,), (2,), (1,), ()),
        ("OGG", 6, (0, 3), (2, 4), (1,), (5,)),
        ("WAV", 10, (), (), tuple(range(10)), ()),
    ],
)
def test_surround_is_mixed_down_to_its_sides(tmp_path, format, channels, left, right, both, unheard):
    hertz = [400 + 300 * i for i in range(channels)]
    source = np.concatenate([tone(1.0, hertz=h, level=0.9, channels=1) for h in hertz])
    samples = audio.decode(save(tmp_path / "a", source, format=format))
    assert np.abs(samples).max() <= 1.0
    spectrum = np.abs(np.fft.rfft(samples)) / RATE
    heard = [{i for i, h in enumerate(hertz) if side[h] > 0.02} for side in spectrum]
    assert heard == [{*left, *both}, {*right, *both}]
    assert not set(unheard) & (heard[0] | heard[1])


def test_a_float_file_above_full_scale_keeps_its_shape(tmp_path):
    path = save(tmp_path / "hot.wav", tone(1.0, level=2.5), subtype="FLOAT")
    assert np.abs(audio.decode(path)).max() == pytest.approx(2.5, rel=1e-3)


# --- files that cannot be used ------------------------------------------------------------------------------------

MP4 = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(4000)


def wav_bytes(tmp_path, samples, subtype="PCM_16", rate=RATE):
    return save(tmp_path / "whole.wav", samples, rate, subtype=subtype).read_bytes()


def flac_bytes(tmp_path, seconds=2.0):
    return save(tmp_path / "whole.flac", noise(round(seconds * RATE)), format="FLAC").read_bytes()


def broken(data):
    """Return the data with 2 kB in the middle replaced."""
    middle = len(data) // 2
    return data[:middle] + np.random.default_rng(5).bytes(2000) + data[middle + 2000 :]


BAD_FILES = {
    "empty": ("a.wav", lambda t: b"", "is empty"),
    "text": ("a.wav", lambda t: "Verse 1: the café\n".encode() * 500, "text file"),
    "text named mp3": ("a.mp3", lambda t: b"[Verse]\nhello world\n" * 5000, "text file"),
    "text in a headerless format": ("a.vox", lambda t: b"hello world\n" * 50_000, "text file"),
    "noise in a headerless format": ("a.gsm", lambda t: np.random.default_rng(0).bytes(200_000), "not an audio file"),
    "raw samples": ("a.raw", lambda t: np.random.default_rng(0).bytes(200_000), "not an audio file"),
    "noise": ("a.wav", lambda t: np.random.default_rng(0).bytes(200_000), "not an audio file"),
    "mp4": ("a.mp4", lambda t: MP4, "video"),
    "mp4 named mp3": ("a.mp3", lambda t: MP4, "video"),
    "webm": ("a.webm", lambda t: b"\x1aE\xdf\xa3" + bytes(4000), "video"),
    "avi": ("a.wav", lambda t: b"RIFF\x10\x27\0\0AVI LIST" + bytes(4000), "video"),
    "m4a": ("a.m4a", lambda t: b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(4000), "M4A"),
    "zip": ("a.zip", lambda t: b"PK\3\4" + bytes(4000), "ZIP"),
    "half a header": ("a.wav", lambda t: wav_bytes(t, tone(2.0))[:20], "damaged"),
    "header alone": ("a.wav", lambda t: wav_bytes(t, tone(2.0))[:44], "no sound"),
    "half a flac": ("a.flac", lambda t: (d := flac_bytes(t))[: len(d) // 2], "damaged"),
    "flac with a hole": ("a.flac", lambda t: broken(flac_bytes(t)), "damaged"),
    "half an mp3": (
        "a.mp3",
        lambda t: (d := save(t / "w", noise(4 * RATE), format="MP3").read_bytes())[: len(d) // 2],
        "ends",
    ),
    "too short": ("a.wav", lambda t: wav_bytes(t, tone(0.5)), "0.5 seconds"),
    "slow rate": ("a.wav", lambda t: wav_bytes(t, tone(2.0, 4000), rate=4000), "4 kHz"),
    "fast rate": ("a.wav", lambda t: wav_bytes(t, tone(1.0, 384_000), rate=384_000), "384 kHz"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gets_a_sentence(tmp_path, name):
    filename, make, said = BAD_FILES[name]
    path = tmp_path / filename
    path.write_bytes(make(tmp_path))
    with pytest.raises(audio.AudioError) as caught:
        audio.decode(path)
    error = caught.value
    assert said in error.message
    assert error.message[0].isupper()
    assert error.message.endswith(".")
    assert error.hint.endswith(".")
    assert str(error) == f"{error.message} {error.hint}"
    for code_name in ("Error", "sndfile", "_", str(tmp_path)):
        assert code_name not in str(error)


@pytest.mark.parametrize("name", ["empty", "text", "mp4", "noise", "half a header", "too short", "fast rate"])
def test_the_duration_of_a_bad_file_gets_the_same_sentence(tmp_path, name):
    filename, make, said = BAD_FILES[name]
    path = tmp_path / filename
    path.write_bytes(make(tmp_path))
    with pytest.raises(audio.AudioError, match=said):
        audio.duration_of(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20])
@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_samples_that_are_no_sound_are_refused(tmp_path, value, rate):
    samples = tone(2.0, rate)
    samples[1, 60_000] = value
    path = save(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    with pytest.raises(audio.AudioError, match="not numbers"):
        audio.decode(path)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_path_without_a_file_is_refused(tmp_path, kind):
    path = tmp_path if kind == "folder" else tmp_path / "nowhere.wav"
    with pytest.raises(audio.AudioError, match=r"not a file|not found"):
        audio.decode(path)


def test_the_limits_of_length_and_size_are_inclusive(tmp_path):
    path = save(tmp_path / "a.wav", tone(2.0), subtype="PCM_16")
    size = path.stat().st_size
    assert audio.decode(path, min_seconds=2.0, max_seconds=2.0, max_bytes=size).shape == (2, 2 * RATE)
    for read in (audio.decode, audio.duration_of):
        with pytest.raises(audio.AudioError, match="short"):
            read(path, min_seconds=2.01)
        with pytest.raises(audio.AudioError, match="long"):
            read(path, max_seconds=1.99)
        with pytest.raises(audio.AudioError, match="too large"):
            read(path, max_bytes=size - 1)


def test_the_size_limit_is_checked_before_the_file_is_read(tmp_path):
    path = tmp_path / "huge.wav"
    with path.open("wb") as file:
        file.truncate(audio.MAX_UPLOAD_BYTES + 1)
    with pytest.raises(audio.AudioError, match=f"{audio.MAX_UPLOAD_BYTES // 1_000_000} MB"):
        audio.decode(path)


def test_a_long_file_is_refused_by_its_header(tmp_path):
    """Ten minutes and one second of silence is a small FLAC; nothing of it is decoded."""
    path = save(tmp_path / "long.flac", np.zeros((1, 601 * 8000), np.float32), 8000, format="FLAC")
    tracemalloc.start()
    with pytest.raises(audio.AudioError, match="10 minutes"):
        audio.decode(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("frames", "said"), [(0, "does not say how long"), (3 * RATE, "damaged"), (601 * RATE, "10 minutes")]
)
def test_a_header_that_lies_about_its_length_is_refused(tmp_path, frames, said):
    data = bytearray(flac_bytes(tmp_path))
    data[22:26] = struct.pack(">I", frames)
    path = tmp_path / "liar.flac"
    path.write_bytes(data)
    with pytest.raises(audio.AudioError, match=said):
        audio.decode(path)


@pytest.mark.slow
def test_ten_minutes_at_96_khz_need_little_more_than_the_result(tmp_path):
    path = tmp_path / "long.flac"
    with sf.SoundFile(path, "w", 96_000, 2, format="FLAC", subtype="PCM_16") as file:
        block = np.zeros((960_000, 2), np.int16)
        block[::2] = 1000
        for _ in range(60):
            file.write(block)
    tracemalloc.start()
    samples = audio.decode(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples.shape == (2, 600 * RATE)
    assert peak < samples.nbytes + 60_000_000


# --- the job folder -----------------------------------------------------------------------------------------------


def test_the_job_file_keeps_every_float(tmp_path):
    samples = noise(5000, level=3.0)
    export.write_wav(tmp_path / "take.wav", samples)
    back = audio.read_wav(tmp_path / "take.wav")
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, samples)
    assert folder_of(tmp_path) == ["take.wav"]


def test_a_broken_job_file_is_an_audio_error(tmp_path):
    (tmp_path / "take.wav").write_bytes(b"RIFF")
    with pytest.raises(audio.AudioError):
        audio.read_wav(tmp_path / "take.wav")


# --- measuring ----------------------------------------------------------------------------------------------------


def test_levels_of_a_sine():
    samples = tone(1.0, hertz=1000, level=0.5)
    assert levels.peak_dbfs(samples) == pytest.approx(-6.02, abs=0.01)
    assert levels.rms_dbfs(samples) == pytest.approx(-9.03, abs=0.01)
    assert not levels.is_silent(samples)


@pytest.mark.parametrize("samples", [noise(RATE, level=0), noise(0)], ids=["a second", "nothing"])
def test_silence_has_finite_levels(samples):
    assert levels.is_silent(samples)
    for level in (levels.peak_dbfs(samples), levels.rms_dbfs(samples), levels.true_peak_dbtp(samples)):
        assert level == levels.FLOOR_DBFS
    assert levels.loudness_lufs(samples) is None
    assert levels.spectral_flatness(samples) == 0.0


@pytest.mark.parametrize(("dbfs", "silent"), [(-59.5, False), (-60.5, True)])
def test_silence_is_an_rms_below_minus_60(dbfs, silent):
    assert levels.is_silent(np.full((2, 3 * RATE), 10 ** (dbfs / 20), np.float32)) is silent


def test_loudness_of_the_reference_tone():
    """EBU Tech 3341, case 1: a stereo sine of 1 kHz at -23 dBFS reads -23.0 LUFS within 0.1."""
    samples = np.repeat(tone(20.0, hertz=1000, level=10 ** (-23 / 20), channels=1), 2, axis=0)
    assert levels.loudness_lufs(samples) == pytest.approx(-23.0, abs=0.1)


def test_loudness_ignores_the_pauses():
    """EBU Tech 3341, case 3: 10 s at -36, 60 s at -23, 10 s at -36 dBFS read -23.0 LUFS."""
    parts = [np.repeat(tone(s, hertz=1000, level=10 ** (d / 20), channels=1), 2, 0) for s, d in ((10, -36), (60, -23))]
    assert levels.loudness_lufs(np.concatenate([*parts, parts[0]], axis=1)) == pytest.approx(-23.0, abs=0.1)


@pytest.mark.parametrize(("samples", "measured"), [(19_199, False), (19_200, True)])
def test_loudness_needs_four_tenths_of_a_second(samples, measured):
    assert (levels.loudness_lufs(noise(samples)) is not None) is measured


@pytest.mark.parametrize("phase", [0.0, 45.0, 67.5])
def test_true_peak_sees_between_the_samples(phase):
    """EBU Tech 3341, cases 15 to 17: a sine of a quarter of the rate; its samples miss the peak by up to 3 dB."""
    n = np.arange(RATE)
    wave = 0.5 * np.sin(2 * np.pi * n / 4 + np.radians(phase)) * np.sin(np.pi * n / RATE) ** 2
    samples = np.stack([np.zeros(RATE), wave]).astype(np.float32)
    assert levels.true_peak_dbtp(samples) == pytest.approx(-6.02, abs=0.1)


@pytest.mark.parametrize("at", [0.5, 1.0, 5.0, 10.0, 20.0, 30.0])
def test_true_peak_is_right_wherever_the_peak_falls(at):
    """A pulse half way between two samples, put at whole seconds, where borders of blocks are likely."""
    n = np.arange(31 * RATE) - at * RATE + 0.5
    pulse = np.where(np.abs(n) < 100, np.sinc(0.8 * n) * np.cos(np.pi * n / 200) ** 2, 0)
    samples = np.stack([pulse, -pulse]).astype(np.float32)
    assert levels.peak_dbfs(samples) < -2
    assert levels.true_peak_dbtp(samples) == pytest.approx(0.0, abs=0.1)


def test_true_peak_is_never_below_the_sample_peak():
    clicks = np.zeros((2, RATE), np.float32)
    clicks[0, [0, 24_000, -1]] = 0.9
    assert levels.true_peak_dbtp(clicks) >= levels.peak_dbfs(clicks)


def test_flatness_tells_noise_from_tones():
    assert levels.spectral_flatness(noise(3 * RATE)) > 0.5
    assert levels.spectral_flatness(tone(3.0)) < 0.01
    mostly_quiet = np.concatenate([noise(RATE), np.zeros((2, 5 * RATE), np.float32)], axis=1)
    assert levels.spectral_flatness(mostly_quiet) > 0.5
    assert 0 <= levels.spectral_flatness(noise(100)) <= 1


# --- levels and fades ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.01, 0.5, 4.0])
@pytest.mark.parametrize("dbfs", [-1.0, -6.0])
def test_scale_to_peak(level, dbfs):
    samples = tone(1.0, level=level)
    scaled = levels.scale_to_peak(samples, dbfs)
    assert scaled.dtype == np.float32
    assert levels.peak_dbfs(scaled) == pytest.approx(dbfs, abs=1e-3)
    assert levels.peak_dbfs(samples) == pytest.approx(20 * np.log10(level), abs=0.01)


@pytest.mark.parametrize("level", [0.0, 1e-5])
def test_scale_to_peak_leaves_silence_alone(level):
    samples = tone(1.0, level=level)
    np.testing.assert_array_equal(levels.scale_to_peak(samples), samples)


@pytest.mark.parametrize("lufs", [-14.0, -23.0])
@pytest.mark.parametrize("level", [0.02, 0.9])
def test_scale_to_loudness_reaches_the_target(lufs, level):
    scaled = levels.scale_to_loudness(tone(3.0, hertz=300, level=level), lufs)
    assert scaled.dtype == np.float32
    assert levels.loudness_lufs(scaled) == pytest.approx(lufs, abs=0.05)


@pytest.mark.parametrize("ceiling", [-1.0, -3.0])
def test_scale_to_loudness_keeps_peaks_under_the_ceiling_without_clipping(ceiling):
    samples = noise(3 * RATE, level=0.02)
    samples[:, 70_000:70_002] = 0.7  # the true peak lies between the two
    scaled = levels.scale_to_loudness(samples, -10.0, ceiling)
    assert levels.true_peak_dbtp(scaled) == pytest.approx(ceiling, abs=0.01)
    gain = scaled[0, 70_000] / samples[0, 70_000]
    np.testing.assert_allclose(scaled, samples * gain, rtol=1e-5)


@pytest.mark.parametrize(
    "samples",
    [np.zeros((2, RATE), np.float32), tone(3.0, level=6e-4), tone(0.3), noise(0)],
    ids=["silence", "hiss", "short", "nothing"],
)
def test_scale_to_loudness_leaves_silence_and_short_clips_alone(samples):
    np.testing.assert_array_equal(levels.scale_to_loudness(samples, -14.0), samples)


def test_fade_out_ends_in_silence_and_touches_only_the_end():
    samples = np.ones((2, 2 * RATE), np.float32)
    faded = levels.fade_out(samples, 0.5)
    np.testing.assert_array_equal(faded[:, : -RATE // 2], samples[:, : -RATE // 2])
    ramp = faded[0, -RATE // 2 :]
    assert (np.diff(ramp) <= 0).all()
    assert ramp[0] > 0.999
    assert ramp[-1] == 0.0
    assert samples.min() == 1.0


@pytest.mark.parametrize(("seconds", "last"), [(0.0, 1.0), (9.0, 0.0)])
def test_fade_out_of_nothing_and_of_everything(seconds, last):
    faded = levels.fade_out(np.ones((2, RATE), np.float32), seconds)
    assert faded.shape == (2, RATE)
    assert faded[0, -1] == last


@pytest.mark.slow
def test_ten_minutes_are_measured_in_bounded_memory():
    samples = noise(600 * RATE)
    tracemalloc.start()
    measured = (levels.true_peak_dbtp(samples), levels.rms_dbfs(samples), levels.peak_dbfs(samples))
    flatness = levels.spectral_flatness(samples)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    loudness = levels.loudness_lufs(samples)
    assert tracemalloc.get_traced_memory()[1] < 4 * samples.nbytes
    tracemalloc.stop()
    assert np.isfinite([*measured, loudness, flatness]).all()


# --- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("samples", [1, 19_200, 592_560])
def test_encode_keeps_the_count_of_samples(tmp_path, format, samples):
    path = export.encode(noise(samples), tmp_path / f"a.{format}", format)
    info = sf.info(path)
    assert (info.frames, info.samplerate, info.channels) == (samples, RATE, 2)
    assert folder_of(tmp_path) == [f"a.{format}"]


@pytest.mark.parametrize(
    ("format", "kind"), [("wav", "PCM_24"), ("flac", "PCM_24"), ("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS")]
)
def test_encode_writes_the_promised_kind(tmp_path, format, kind):
    path = export.encode(tone(2.0), str(tmp_path / "a.bin"), format)
    info = sf.info(path)
    assert info.subtype == kind
    assert info.format == format.upper()
    if format == "mp3":
        stream = MP3(path).info
        assert stream.bitrate == 320_000
        assert stream.bitrate_mode == mutagen.mp3.BitrateMode.CBR


@pytest.mark.parametrize("format", FORMATS)
def test_encode_keeps_the_sound_and_its_sides(tmp_path, format):
    source = tone(3.0)
    back = sf.read(export.encode(source, tmp_path / "a", format), dtype="float32")[0].T
    assert np.abs(back - source)[:, 4800:-4800].max() < 0.01
    assert [dominant(side) for side in back] == pytest.approx([440, 880], abs=1)


@pytest.mark.parametrize("format", LOSSLESS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_encode_rounds_to_the_nearest_step(tmp_path, format, dtype):
    steps = np.array([[0.0, 0.4, 0.6, -0.4, -0.6, 1000.4, -1000.6, 2.0**22 + 0.5 - 2**-1]], dtype)
    path = export.encode(np.repeat(steps / 2**23, 2, axis=0).astype(dtype), tmp_path / "a", format)
    np.testing.assert_array_equal(integers(path)[0], [0, 0, 1, 0, -1, 1000, -1001, 2**22])


@pytest.mark.parametrize("format", FORMATS)
def test_samples_beyond_full_scale_are_clipped_not_wrapped(tmp_path, format):
    source = tone(1.0, hertz=100, level=1.5)
    back = sf.read(export.encode(source, tmp_path / "a", format), dtype="float32")[0].T
    inner = (slice(None), slice(4800, -4800))
    assert np.abs(back - np.clip(source, -1, 1))[inner].max() < 0.15


@pytest.mark.parametrize("format", LOSSLESS)
def test_full_scale_ends_at_the_outermost_steps(tmp_path, format):
    source = np.array([[1.0, -1.0, 7.0, -7.0]] * 2, np.float32)
    path = export.encode(source, tmp_path / "a", format)
    np.testing.assert_array_equal(integers(path)[1], [2**23 - 1, -(2**23)] * 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_encode_refuses_what_is_not_a_number(tmp_path, value):
    samples = tone(1.0)
    samples[0, 5] = value
    with pytest.raises(audio.AudioError, match="not numbers"):
        export.encode(samples, tmp_path / "a.wav", "wav")
    assert folder_of(tmp_path) == []


@pytest.mark.parametrize("format", ["m4a", "", "WAV "])
def test_encode_refuses_other_formats(tmp_path, format):
    with pytest.raises(audio.AudioError, match="wav, flac, mp3 or ogg"):
        export.encode(tone(1.0), tmp_path / "a", format)


@pytest.mark.parametrize("where", ["nowhere/a.wav", "file/a.wav"])
def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path, where):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(audio.AudioError, match="folder") as caught:
        export.encode(tone(1.0), tmp_path / where, "wav")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file size limits are a POSIX feature")
@pytest.mark.parametrize("task", [*FORMATS, "job", "tags"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, task):
    """A limit on the size of files fails a write in the middle, as a full disk does."""
    import resource

    before = export.encode(noise(RATE), tmp_path / "a.bin", "wav").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(audio.AudioError, match="could not be written") as caught:
            if task == "job":
                export.write_wav(tmp_path / "a.bin", noise(10 * RATE))
            elif task == "tags":
                export.write_tags(tmp_path / "a.bin", "title", {"mode": "generate"})
            else:
                export.encode(noise(10 * RATE), tmp_path / "a.bin", task)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "disk" in caught.value.hint
    assert folder_of(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file size limits are a POSIX feature")
@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_is_full_at_the_last_byte_leaves_nothing_behind(tmp_path, format):
    """Encoders write their last part while the file is closed."""
    import resource

    samples = tone(2.0)
    size = export.encode(samples, tmp_path / "a", format).stat().st_size
    (tmp_path / "a").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 20, limits[1]))
    try:
        with pytest.raises(audio.AudioError, match="could not be written"):
            export.encode(samples, tmp_path / "a", format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder_of(tmp_path) == []


def test_encode_replaces_an_older_file(tmp_path):
    path = tmp_path / "a.wav"
    export.encode(noise(RATE), path, "wav")
    export.encode(noise(2 * RATE), path, "wav")
    assert sf.info(path).frames == 2 * RATE


@pytest.mark.slow
@pytest.mark.parametrize("format", ["wav", "flac", "ogg"])  # the MP3 encoder takes half a minute
def test_ten_minutes_can_be_written(tmp_path, format):
    samples = np.tile(noise(60 * RATE), 10)
    tracemalloc.start()
    path = export.encode(samples, tmp_path / "a", format)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()
    assert sf.info(path).frames == 600 * RATE


# --- tags ---------------------------------------------------------------------------------------------------------

RECORD = {
    "mode": "generate",
    "request": {
        "prompt": 'warm "lo-fi" / piano; a\x00b \\ 雨の夜 🎹 <b>',
        "lyrics": "[Verse]\nline\r\n" * 10,
        "bpm": None,
    },
    "takes": [{"seed": 7, "loudness_lufs": -14.25, "warnings": []}],
}


def big_record(size=60_000):
    """Return a record of at least `size` bytes as JSON, in several scripts."""
    line = "La la la, 夜の雨が降る, съешь ещё этих булок\n"
    return {**RECORD, "lyrics": line * (size // len(line.encode()) + 1)}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "record", [{}, RECORD, big_record(), big_record(200_000)], ids=["empty", "small", "60k", "200k"]
)
def test_tags_bring_the_record_back_and_leave_the_samples(tmp_path, format, record):
    path = export.encode(noise(3 * RATE), tmp_path / f"a.{format}", format)
    before = sf.read(path, dtype="int32")[0]
    assert export.read_record(path) is None
    export.write_tags(path, "Warm / lo-fi 夜", record)
    assert export.read_record(path) == record
    np.testing.assert_array_equal(sf.read(path, dtype="int32")[0], before)
    assert audio.decode(path).shape == (2, 3 * RATE)
    assert folder_of(tmp_path) == [f"a.{format}"]


@pytest.mark.parametrize("format", FORMATS)
def test_players_find_the_title(tmp_path, format):
    path = export.encode(noise(RATE), tmp_path / f"a.{format}", format)
    export.write_tags(path, "Rain\x00 on\n tin 夜", RECORD)
    tags = mutagen.File(path).tags
    title = tags["TIT2"].text[0] if format in ("wav", "mp3") else tags["title"][0]
    assert title == "Rain on tin 夜"


@pytest.mark.parametrize("format", FORMATS)
def test_tags_can_be_written_again(tmp_path, format):
    path = export.encode(noise(RATE), tmp_path / f"a.{format}", format)
    before = sf.read(path, dtype="int32")[0]
    export.write_tags(path, "first", big_record())
    export.write_tags(path, "second", RECORD)
    assert export.read_record(path) == RECORD
    np.testing.assert_array_equal(sf.read(path, dtype="int32")[0], before)


@pytest.mark.parametrize(("version", "encoding"), [(3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (4, 3)])
def test_a_record_survives_other_tag_editors(tmp_path, version, encoding):
    """They rewrite ID3 as version 2.3 or in UTF-16, and add frames of their own."""
    path = export.encode(noise(RATE), tmp_path / "a.mp3", "mp3")
    tags = ID3()
    tags.add(TIT2(encoding=encoding, text="x" * 300))
    tags.add(APIC(encoding=0, mime="image/png", type=3, desc="", data=bytes(200_000)))
    tags.add(TXXX(encoding=0, desc="OTHER", text="{}"))
    tags.add(TXXX(encoding=encoding, desc=export.RECORD_TAG, text=json.dumps(RECORD)))
    tags.save(path, v2_version=version)
    assert export.read_record(path) == RECORD


def test_lone_surrogates_do_not_stop_the_tags(tmp_path):
    path = export.encode(noise(RATE), tmp_path / "a.flac", "flac")
    export.write_tags(path, "a\ud800b", {"prompt": "x\udfff"})
    assert export.read_record(path) == {"prompt": "x?"}


@pytest.mark.parametrize(
    "record", [{"peak": float("nan")}, {"text": "x" * export.MAX_RECORD_BYTES}], ids=["nan", "size"]
)
def test_a_record_that_could_not_be_read_back_is_refused(tmp_path, record):
    path = export.encode(noise(RATE), tmp_path / "a.wav", "wav")
    before = path.read_bytes()
    with pytest.raises(audio.AudioError):
        export.write_tags(path, "title", record)
    assert path.read_bytes() == before


def test_tags_need_a_file_that_can_hold_them(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF" + bytes(50))
    for name in ("a.wav", "missing.wav"):
        with pytest.raises(audio.AudioError):
            export.write_tags(tmp_path / name, "title", RECORD)
    assert folder_of(tmp_path) == ["a.wav"]


def plant(tmp_path, format, text):
    """Write a file whose record tag holds any text, with mutagen alone."""
    path = save(tmp_path / f"a.{format}", noise(RATE), format=format.upper())
    if format in ("wav", "mp3"):
        file = (WAVE if format == "wav" else MP3)(path)
        file.add_tags()
        file.tags.add(TXXX(encoding=3, desc=export.RECORD_TAG, text=text))
    else:
        file = (FLAC if format == "flac" else OggVorbis)(path)
        file[export.RECORD_TAG] = text
    file.save()
    return path


HOSTILE = {
    "no json": "<script>alert(1)</script>",
    "nothing": "",
    "array": "[1, 2]",
    "text": '"hello"',
    "null": "null",
    "nan": '{"a": NaN}',
    "infinity": '{"a": [-Infinity]}',
    "overflow": '{"a": 1e999}',
    "huge integer": '{"a": ' + "9" * 10_000 + "}",
    "surrogate": '{"a": "\\ud800"}',
    "deep": '{"a":' * 100 + "1" + "}" * 100,
    "very deep": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "large": json.dumps({"a": "x" * export.MAX_RECORD_BYTES}),
    "large in bytes": json.dumps({"a": "夜" * (export.MAX_RECORD_BYTES // 2)}, ensure_ascii=False),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_is_no_record(tmp_path, format, name):
    assert export.read_record(plant(tmp_path, format, HOSTILE[name])) is None


@pytest.mark.parametrize("format", FORMATS)
def test_a_planted_record_is_read(tmp_path, format):
    """The check of the hostile ones: the same way of writing, with nothing wrong."""
    assert export.read_record(plant(tmp_path, format, '{"a": [1.5]}')) == {"a": [1.5]}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_carries_no_record(tmp_path, name):
    filename, make, _ = BAD_FILES[name]
    (tmp_path / filename).write_bytes(make(tmp_path))
    assert export.read_record(tmp_path / filename) is None


@pytest.mark.parametrize("format", FORMATS)
def test_broken_tags_carry_no_record(tmp_path, format):
    path = export.encode(noise(RATE), tmp_path / f"a.{format}", format)
    export.write_tags(path, "title", big_record())
    data = path.read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(40):
        at, length = int(rng.integers(0, len(data))), int(rng.integers(1, 400))
        path.write_bytes(data[:at] + rng.bytes(length) + data[at + length :])
        found = export.read_record(path)
        assert found is None or isinstance(found, dict)
        path.write_bytes(data[:at])
        found = export.read_record(path)
        assert found is None or isinstance(found, dict)


def test_a_missing_file_and_a_folder_carry_no_record(tmp_path):
    assert export.read_record(tmp_path / "nowhere.wav") is None
    assert export.read_record(tmp_path) is None


def test_a_compressed_frame_is_not_unpacked(tmp_path):
    """300 kB that would unpack to 300 MB are passed over; the record behind them is found."""
    import zlib

    def syncsafe(value):
        return bytes((value >> shift) & 0x7F for shift in (21, 14, 7, 0))

    packed = syncsafe(300_000_000 % 2**28) + zlib.compress(b"\3x\0" + bytes(300_000_000), 9)
    plain = b"\3" + export.RECORD_TAG.encode() + b'\0{"a": 1}'
    frames = b"TXXX" + syncsafe(len(packed)) + b"\0\x09" + packed + b"TXXX" + syncsafe(len(plain)) + b"\0\0" + plain
    path = tmp_path / "bomb.mp3"
    path.write_bytes(b"ID3\4\0\0" + syncsafe(len(frames)) + frames + bytes(1000))
    tracemalloc.start()
    assert export.read_record(path) == {"a": 1}
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.slow
def test_endless_tags_are_given_up(tmp_path):
    """30 MB of metadata blocks and of pictures: nothing of that size is kept in memory."""
    head = flac_bytes(tmp_path)[:42]
    path = tmp_path / "a.flac"
    picture = Picture()
    picture.data = bytes(1_000_000)
    block = picture.write()
    for body in (b"\x01\0\0\0" * 7_500_000, (b"\x06" + len(block).to_bytes(3, "big") + block) * 30):
        path.write_bytes(head + body)
        tracemalloc.start()
        assert export.read_record(path) is None
        assert tracemalloc.get_traced_memory()[1] < 200_000_000
        tracemalloc.stop()


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [
        ("warm lofi piano", "warm-lofi-piano"),
        ("  Warm, LO-FI piano!!  ", "warm-lo-fi-piano"),
        ("don't stop", "dont-stop"),
        ("<b>loud</b> <script src=x>", "loud"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\Windows\\system32", "c-windows-system32"),
        ("a\x00b\x1b[31m\nc\u202egpj", "a-b-31m-cgpj"),
        ("rock & roll &lt;3", "rock-roll-3"),
        ("🎹 piano 🎶", "piano"),
        ("雨の夜 ピアノ", "雨の夜-ピアノ"),
        ("Café Ångström", "café-ångström"),
        ("Cafe\u0301", "café"),
        ("हिन्दी गीत", "हिन्दी-गीत"),
        ("ＦＵＬＬ ｗｉｄｔｈ ②", "full-width-2"),
        ("葛\U000e0100城 क्\u200dष", "葛城-क्ष"),
        ("a \u0301b", "a-b"),
        ("-rf --help", "rf-help"),
        ("120 BPM", "120-bpm"),
        ("", "song"),
        ("🎹🎶", "song"),
        ("...", "song"),
        ("\u0301\ufe0f", "song"),
    ],
)
def test_a_file_is_named_after_its_prompt(prompt, slug):
    assert export.file_name(prompt, 7, "wav") == f"{slug}-seed-7.wav"


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_name_ends_with_seed_and_format(format):
    assert export.file_name("piano", 4294967295, format).endswith(f"piano-seed-4294967295.{format}")


def test_a_file_name_tells_the_mode():
    assert export.file_name("warm piano", 7, "flac", "cover") == "warm-piano-cover-seed-7.flac"
    assert export.file_name("", 7, "flac", "cover") == "cover-seed-7.flac"


@pytest.mark.parametrize(
    "prompt",
    ["a" * 100_000, "word " * 1000, "夜" * 60, "夜" * 5000, "ab夜" * 500, "z" + "\u0301" * 5000],
    ids=["one word", "words", "60 ideographs", "5000 ideographs", "mixed", "accents"],
)
def test_a_long_prompt_makes_a_short_name_that_a_file_system_takes(tmp_path, prompt):
    name = export.file_name(prompt, 2**32 - 1, "flac", "generate")
    assert 20 < len(name.encode()) <= 110
    assert "--" not in name
    (tmp_path / name).write_bytes(b"")
    assert folder_of(tmp_path)[0].encode() != b""


def test_a_long_name_ends_with_a_whole_word():
    name = export.file_name("orchestral melancholic nocturnes " * 20, 7, "wav")
    assert name.removesuffix("-seed-7.wav").split("-")[-1] in ("orchestral", "melancholic", "nocturnes")


@pytest.mark.parametrize("prompt", ["con", "NUL", "aux.wav", "com1", "LPT9", "prn."])
def test_names_that_windows_keeps_for_itself_are_not_used(prompt):
    stem = export.file_name(prompt, 7, "wav").split(".")[0]
    assert stem.upper() not in {"CON", "NUL", "AUX", "PRN", "COM1", "LPT9"}
    assert not stem.endswith((".", " "))


@pytest.mark.parametrize("mode", ["../x", "", "<b>"])
def test_a_strange_mode_cannot_leave_the_folder(mode):
    name = export.file_name("piano", 7, "wav", mode)
    assert not set(name) & set('/\\<>:"|?*\0')


def test_importing_audio_does_not_load_scipy():
    import subprocess
    import sys

    code = "import sys, audio, levels; sys.exit('pyloudnorm' in sys.modules or 'scipy' in sys.modules)"
    root = os.path.dirname(os.path.abspath(audio.__file__))
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_an_mp3_of_variable_bit_rate_decodes_like_one_whole_read(tmp_path):
    """A seek between two blocks would break the music at each border."""
    path = tmp_path / "variable.mp3"
    time = np.arange(30 * 48_000) / 48_000
    bursts = 0.8 * np.sin(2 * np.pi * 891 * time) * ((time % 4) > 2)
    sf.write(path, np.stack([bursts, bursts], axis=1), 48_000, format="MP3", subtype="MPEG_LAYER_III")
    whole, _ = sf.read(path, dtype="float32")
    assert np.array_equal(audio.decode(path), whole.T)
