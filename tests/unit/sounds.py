"""Sounds and files for the tests of audio: tones, noise, and everything that is not audio."""

import numpy as np
import soundfile as sf

from limits import SAMPLE_RATE as RATE

FORMATS = ("wav", "flac", "mp3", "ogg")
LOSSLESS = ("wav", "flac")


def tone(seconds, rate=RATE, hertz=440.0, level=0.5, channels=2):
    """Return a sine, float32 [channels, samples]; each channel is an octave above the one before."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([level * np.sin(2 * np.pi * hertz * 2**i * t) for i in range(channels)]).astype(
        np.float32
    )


def noise(samples, level=0.1, seed=0):
    """Return white noise, float32 [2, samples]."""
    return (level * np.random.default_rng(seed).standard_normal((2, samples))).astype(np.float32)


def save(path, samples, rate=RATE, format="WAV", subtype=None):
    """Write [channels, samples] in blocks of one second (one large Vorbis write ends the process)."""
    with sf.SoundFile(path, "w", rate, samples.shape[0], format=format, subtype=subtype) as file:
        for at in range(0, samples.shape[1], rate):
            file.write(np.ascontiguousarray(samples[:, at : at + rate].T))
    return path


def integers(path):
    """Return the samples of a file as 24-bit integers, [channels, samples]."""
    return sf.read(path, dtype="int32", always_2d=True)[0].T >> 8


def folder_of(path):
    """Return the names of what a folder holds, sorted."""
    return sorted(entry.name for entry in path.iterdir())


def wav_bytes(tmp_path, samples, subtype="PCM_16", rate=RATE):
    """Return what a WAV file of these samples holds."""
    return save(tmp_path / "whole.wav", samples, rate, subtype=subtype).read_bytes()


def flac_bytes(tmp_path, seconds=2.0):
    """Return what a FLAC file of noise holds."""
    return save(tmp_path / "whole.flac", noise(round(seconds * RATE)), format="FLAC").read_bytes()


def mp3_bytes(tmp_path):
    return save(tmp_path / "whole.mp3", noise(4 * RATE), format="MP3").read_bytes()


def half(data):
    return data[: len(data) // 2]


def broken(data):
    """Return the data with 2 kB in the middle replaced."""
    return half(data) + np.random.default_rng(5).bytes(2000) + data[len(data) // 2 + 2000 :]


# Files that cannot be used: the name, a function that makes the bytes in a folder, and words from the message.
BAD_FILES = {
    "empty": ("a.wav", lambda t: b"", "is empty"),
    "text": ("a.wav", lambda t: "Verse 1: the café\n".encode() * 500, "text file"),
    "text in a headerless format": ("a.vox", lambda t: b"hello world\n" * 50_000, "text file"),
    "noise": ("a.wav", lambda t: np.random.default_rng(0).bytes(200_000), "not an audio file"),
    "mp4": ("a.mp4", lambda t: b"\0\0\0\x20ftypisom" + bytes(4000), "This is an MP4 file"),
    "m4a": ("a.m4a", lambda t: b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(4000), "This is an M4A file"),
    "half a header": ("a.wav", lambda t: wav_bytes(t, tone(2.0))[:20], "damaged"),
    "header alone": ("a.wav", lambda t: wav_bytes(t, tone(2.0))[:44], "no sound"),
    "half a flac": ("a.flac", lambda t: half(flac_bytes(t)), "damaged"),
    "flac with a hole": ("a.flac", lambda t: broken(flac_bytes(t)), "damaged"),
    "half an mp3": ("a.mp3", lambda t: half(mp3_bytes(t)), "ends"),
    "too short": ("a.wav", lambda t: wav_bytes(t, tone(0.5)), "0.5 seconds"),
    "fast rate": ("a.wav", lambda t: wav_bytes(t, tone(1.0, 384_000), rate=384_000), "384 kHz"),
}

# Uploads that are not audio: the bytes, and the start of the message.
NO_AUDIO = {
    "empty": (b"", "The file is empty."),
    "text": (b"la la la\n" * 100, "This is a text file, not audio."),
    "video": (b"\0\0\0\x20ftypisom" + bytes(2000), "This is an MP4 file"),
    "corrupt": (b"RIFF\x24\0\0\0WAVEfmt \x10" + b"\xff" * 400, "The file is damaged"),
}


# --- files whose headers are wrong ----------------------------------------------------------------


def music(seconds, quiet=0.0):
    """Return a tone, and bursts of noise after `quiet` seconds, with which an MP3's bit rate varies."""
    samples = tone(seconds, level=0.2)
    time = np.arange(samples.shape[1]) / RATE
    bursts = noise(samples.shape[1], level=0.3) * ((time % 10 < 3) & (time >= quiet))
    return (samples + bursts).astype(np.float32)


def mp3_of(path, samples):
    """Return an MP3 of variable bit rate, and how long its first frame is, which says how long the whole is."""
    settings = {"compression_level": 0.3, "bitrate_mode": "VARIABLE"}
    with sf.SoundFile(path, "w", RATE, 2, format="MP3", **settings) as file:
        file.write(samples.T)
    data = path.read_bytes()
    kbit = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[data[2] >> 4]
    return data, 144 * kbit * 1000 // RATE + (data[2] >> 1 & 1)


def patched(data, *changes):
    """Return the data with (place, bytes) put in."""
    data = bytearray(data)
    for place, change in changes:
        data[place : place + len(change)] = change
    return bytes(data)


ID3 = b"ID3\x03\0\0\0\0\x0f\x76" + bytes(15 * 128 + 0x76)
