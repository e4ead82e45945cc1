"""Samples in and out: decode an upload, measure and scale, encode and tag a song, and name its file.

Inside the studio a song is a float32 array of shape [channels, samples], two channels at 48 kHz, full scale at 1.0. A
48 kHz source of 16 or 24 bits keeps every bit on its way through `decode`, the job folder and `encode` to WAV or FLAC.
Uploads and the tags in them are untrusted: sizes are checked before anything is read, files are read in blocks, and
whatever is wrong becomes an `AudioError`, which is a sentence for the person who chose the file.
"""

from __future__ import annotations

import codecs
import errno
import html
import io
import json
import math
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from mutagen import MutagenError
from mutagen.flac import FLAC
from mutagen.id3 import ID3, TIT2, TXXX
from mutagen.mp3 import MP3
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

SAMPLE_RATE = 48_000
MAX_UPLOAD_BYTES = 500_000_000
MAX_RECORD_BYTES = 256_000
FLOOR_DBFS = -200.0  # what digital silence reads: a number, because JSON has no minus infinity
RECORD_TAG = "ACE_STUDIO_RECORD"

_RATES = (8_000, 192_000)
_SILENCE_DBFS = -60.0
_LOUDEST = 1000.0  # 60 dB over full scale: samples beyond it are integers or garbage, read as floats
_LOUDNESS_SECONDS = 0.4  # the gating block of BS.1770; shorter clips have no loudness
_MISSING_SECONDS = 0.1  # an MP3 without a length header may be wrong by a few frames of 26 ms
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's count for a FLAC that was streamed; it cannot read one
_BLOCK = 2**18  # samples of all channels read at once
_NAME_BYTES = 80
_TAG_BYTES = 1_000_000  # read of a file while looking for its record
_RECORD_LEVELS = 16

# Vorbis quality 8 is about 256 kbit/s; libsndfile's default of 4 is about 128.
_ENCODINGS = {
    "wav": {"format": "WAV", "subtype": "PCM_24"},
    "flac": {"format": "FLAC", "subtype": "PCM_24"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.0},
    "ogg": {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.2},
}


class AudioError(ValueError):
    """A file cannot be used or written: `message` says what is wrong, `hint` what to do; both are sentences."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


# --- reading ------------------------------------------------------------------------------------------------------


class ForwardFile(sf.SoundFile):
    """A file that is read once, from its start to its end.

    soundfile seeks after every read of a seekable file, and a seek costs an MP3 of variable bit rate the frames that
    its next ones refer to: what follows decodes as noise or silence.
    """

    def seekable(self) -> bool:
        """Say no, so that nothing seeks."""
        return False


def decode(
    path: str | Path, *, min_seconds: float = 1.0, max_seconds: float = 600.0, max_bytes: int = MAX_UPLOAD_BYTES
) -> np.ndarray:
    """Read an audio file of any kind that libsndfile knows, as float32 [2, samples] at 48 kHz.

    Mono goes to both sides, surround is mixed down, other rates (8 to 192 kHz) are resampled with soxr's VHQ; at 48 kHz
    the samples of a file of up to 24 bits come through exactly. The limits are inclusive. Memory stays near the size
    of the result, however large the source is.

    Raises:
        AudioError: the file is missing, empty, too large, too short, too long, damaged, not audio, or holds samples
            that are not numbers.
    """
    with _opened(Path(path), min_seconds, max_seconds, max_bytes) as file:
        samples = np.zeros((2, round(file.frames * SAMPLE_RATE / file.samplerate)), np.float32)
        filled = 0
        for block in _at_studio_rate(_stereo_blocks(file), file.samplerate):
            block = block[: samples.shape[1] - filled]
            samples[:, filled : filled + len(block)] = block.T
            filled += len(block)
    # The resampler may end one sample early; more is missing only where the file is shorter than its header says.
    return samples[:, :filled] if filled < samples.shape[1] - 1 else samples


def duration_of(
    path: str | Path, *, min_seconds: float = 1.0, max_seconds: float = 600.0, max_bytes: int = MAX_UPLOAD_BYTES
) -> float:
    """Return the length in seconds that a file's header gives, under the limits and with the errors of `decode`."""
    with _opened(Path(path), min_seconds, max_seconds, max_bytes) as file:
        return file.frames / file.samplerate


def read_wav(path: str | Path) -> np.ndarray:
    """Read a file of the job folder as float32 [2, samples], at its own rate; raises `AudioError`."""
    try:
        samples = sf.read(path, dtype="float32", always_2d=True)[0].T
    except (sf.SoundFileError, OSError) as error:
        raise AudioError("A file of this song could not be read back.", "Try again.") from error
    return np.ascontiguousarray(np.broadcast_to(samples, (2, samples.shape[1])))


def write_wav(path: str | Path, samples: np.ndarray) -> None:
    """Write float32 [channels, samples] as a float WAV, every value as it is; raises `AudioError`."""
    with _aside(Path(path)) as part:
        _write(part, samples, {"format": "WAV", "subtype": "FLOAT"})


# --- measuring ----------------------------------------------------------------------------------------------------


def peak_dbfs(samples: np.ndarray) -> float:
    """Return the largest sample of [channels, samples] in dBFS, at least `FLOOR_DBFS`."""
    return _decibels(_peak(samples))


def rms_dbfs(samples: np.ndarray) -> float:
    """Return the root mean square of [channels, samples] over all channels in dBFS, at least `FLOOR_DBFS`."""
    energy = sum(float(np.square(block, dtype=np.float64).sum()) for block in _seconds(samples))
    return _decibels(math.sqrt(energy / max(samples.size, 1)))


def is_silent(samples: np.ndarray) -> bool:
    """Whether [channels, samples] have an RMS below -60 dBFS."""
    return rms_dbfs(samples) < _SILENCE_DBFS


def true_peak_dbtp(samples: np.ndarray) -> float:
    """Return the peak of the waveform between the samples of [channels, samples], in dBTP (ITU-R BS.1770-5, annex 2).

    The signal is oversampled four times as one stream, in blocks of a second, so that no peak hides at a border.
    """
    channels = samples.shape[0]
    stream = soxr.ResampleStream(SAMPLE_RATE, 4 * SAMPLE_RATE, channels, "float32", "HQ")
    peak = _peak(samples)  # the resampler's low-pass may take a little off a click
    for block in _seconds(samples):
        peak = max(peak, _peak(stream.resample_chunk(_rows(block))))
    return _decibels(max(peak, _peak(stream.resample_chunk(np.zeros((0, channels), np.float32), last=True))))


def loudness_lufs(samples: np.ndarray) -> float | None:
    """Return the integrated loudness of [channels, samples] in LUFS (ITU-R BS.1770-4, gated).

    None where there is none: under 0.4 s, or nothing above the absolute gate of -70 LUFS.
    """
    if samples.shape[1] < _LOUDNESS_SECONDS * SAMPLE_RATE:
        return None
    import pyloudnorm

    with np.errstate(all="ignore"):
        lufs = float(pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(samples.T))
    return lufs if math.isfinite(lufs) else None


def spectral_flatness(samples: np.ndarray, window: int = 2048) -> float:
    """Return how much [channels, samples] resemble noise: near 0 for tones, about 0.56 for white noise.

    It is the geometric over the arithmetic mean of the power spectrum (Johnston 1988) in Hann windows without overlap,
    averaged over the windows that are not silent; 0 when all are. White noise stays under 1 because the spectrum of a
    single window is rough: its expected value is exp(-0.577).
    """
    channels, length = samples.shape
    hann = np.hanning(window).astype(np.float32)
    total, count = 0.0, 0
    step = 128 * window
    for at in range(0, length, step):
        block = samples[:, at : at + step]
        block = np.pad(block, ((0, 0), (0, -block.shape[1] % window))).reshape(channels, -1, window)
        block = block[:, np.sqrt(np.mean(np.square(block), axis=(0, 2))) > 10 ** (_SILENCE_DBFS / 20)]
        power = np.mean(np.abs(np.fft.rfft(block * hann)[..., 1:]) ** 2, axis=0) + 1e-20
        total += float((np.exp(np.log(power).mean(axis=-1)) / power.mean(axis=-1)).sum())
        count += len(power)
    return total / count if count else 0.0


# --- levels and fades ---------------------------------------------------------------------------------------------


def scale_to_peak(samples: np.ndarray, dbfs: float = -1.0) -> np.ndarray:
    """Return [channels, samples] with their peak at `dbfs`; unchanged where the peak is under -60 dBFS."""
    peak = peak_dbfs(samples)
    return samples if peak < _SILENCE_DBFS else _with_gain(samples, dbfs - peak)


def scale_to_loudness(samples: np.ndarray, lufs: float, ceiling_dbtp: float = -1.0) -> np.ndarray:
    """Return [channels, samples] with one gain, at `lufs` or as near as a true peak of `ceiling_dbtp` allows.

    Nothing is clipped or compressed: where the peak would pass the ceiling, the song stays quieter than asked. Silence
    (`is_silent`) and clips under 0.4 s come back unchanged.
    """
    measured = None if is_silent(samples) else loudness_lufs(samples)
    if measured is None:
        return samples
    return _with_gain(samples, min(lufs - measured, ceiling_dbtp - true_peak_dbtp(samples)))


def fade_out(samples: np.ndarray, seconds: float) -> np.ndarray:
    """Return a copy of [channels, samples] whose last `seconds` follow half a cosine down to exactly 0."""
    faded = samples.astype(np.float32)
    length = min(round(seconds * SAMPLE_RATE), samples.shape[1])
    if length > 0:
        faded[:, -length:] *= (0.5 + 0.5 * np.cos(np.linspace(0, np.pi, length))).astype(np.float32)
    return faded


# --- writing ------------------------------------------------------------------------------------------------------


def encode(samples: np.ndarray, path: str | Path, format: str) -> Path:
    """Write [channels, samples] at 48 kHz as "wav" or "flac" (24 bits), "mp3" (320 kbit/s) or "ogg"; return the path.

    All four keep the count of samples. Samples beyond full scale are clipped, never wrapped. The file appears whole or
    not at all.

    Raises:
        AudioError: the format is unknown, a sample is not a number, or the file could not be written.
    """
    if format not in _ENCODINGS:
        raise AudioError("A song can be saved as wav, flac, mp3 or ogg.", "Choose one of these formats.")
    if not all(np.isfinite(block).all() for block in _seconds(samples)):
        raise AudioError("The song holds samples that are not numbers.", "Make it again with another seed.")
    with _aside(Path(path)) as part:
        _write(part, samples, _ENCODINGS[format])
    return Path(path)


def write_tags(path: str | Path, title: str, record: dict) -> None:
    """Write a title and the record, as JSON, into a file that `encode` made; its samples stay as they are.

    The record goes into an ID3 TXXX frame (WAV, MP3) or a Vorbis comment (FLAC, OGG) called `RECORD_TAG`.

    Raises:
        AudioError: the record is over `MAX_RECORD_BYTES` or holds NaN or infinity, or the file could not be written;
            the file is then as it was.
    """
    try:
        text = _clean(json.dumps(record, ensure_ascii=False, allow_nan=False))
    except ValueError as error:
        raise AudioError("The record holds values that are not numbers, so it was not saved in the file.") from error
    if len(text.encode()) > MAX_RECORD_BYTES:
        raise AudioError("The record of this song is too long to be saved in the file.", "Shorten the lyrics.")
    title = " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in _clean(title)).split())
    with _aside(Path(path)) as part:
        shutil.copyfile(path, part)
        file = _tag_reader(part)(part)
        if file.tags is None:
            file.add_tags()
        if isinstance(file.tags, ID3):
            file.tags.add(TIT2(encoding=3, text=title))
            file.tags.add(TXXX(encoding=3, desc=RECORD_TAG, text=text))
        else:
            file["title"] = title
            file[RECORD_TAG] = text
        file.save()


def read_record(path: str | Path) -> dict | None:
    """Return the record that a file's tags carry, or None where there is none that can be trusted to be JSON.

    The content is a stranger's: it is a dict of finite numbers, valid text, lists and dicts, at most 16 levels deep and
    `MAX_RECORD_BYTES` long, and nothing else is known about it.
    """
    try:
        text = _record_text(Path(path))
        if text is None or len(text.encode()) > MAX_RECORD_BYTES:
            return None
        record = json.loads(text)
        if not isinstance(record, dict) or not _nested(record, _RECORD_LEVELS):
            return None
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()  # refuses NaN, 1e999 and lone surrogates
        return record
    except Exception:  # parsers fail in many ways on a hostile file; each of them means that it carries no record
        return None


def file_name(prompt: str, seed: int, format: str, mode: str = "generate") -> str:
    """Return a safe name such as "warm-lofi-piano-seed-7.wav"; other modes add theirs, as in "-cover-seed-7.wav".

    Letters and digits of every script stay, in lower case; all else becomes a hyphen, HTML tags go. The prompt's part
    is at most 80 bytes in UTF-8, cut at a word where possible. The seed keeps the name clear of "con", "nul" and others
    that Windows reserves.
    """
    mode = _slug(mode)
    parts = [_slug(prompt), mode if mode != "generate" else "", f"seed-{seed}"]
    if not any(parts[:2]):
        parts[0] = "song"
    return "-".join(part for part in parts if part) + f".{format}"


# --- reading: helpers ---------------------------------------------------------------------------------------------

_USABLE = "Choose a WAV, FLAC, MP3, OGG or AIFF file."
_AGAIN = "Export or download it again."
_EXPORT = "Save its sound as WAV, FLAC, MP3, OGG or AIFF and choose that file."

# Where a file of another kind has its mark; libsndfile reads none of these, but takes some of them for noise.
_FOREIGN = (
    (4, b"ftypM4A", "an M4A file"),
    (4, b"ftyp", "a video file (MP4 or MOV)"),
    (4, b"moov", "a video file (MOV)"),
    (0, b"\x1aE\xdf\xa3", "a video file (MKV or WebM)"),
    (8, b"AVI ", "a video file (AVI)"),
    (0, b"FLV\x01", "a video file (FLV)"),
    (0, b"\0\0\x01\xba", "a video file (MPEG)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a Windows Media file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
)
_AUDIO_MARKS = (b"RIFF", b"RF64", b"riff", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd")

# Order of channels by their number, in WAV, FLAC and AIFF, and in Vorbis (Vorbis I, 4.3.9; libsndfile keeps its order):
# left, right, centre, l and r surround, b back centre, x low frequencies.
_LAYOUTS = {3: "LRC", 4: "LRlr", 5: "LRClr", 6: "LRCxlr", 7: "LRCxblr", 8: "LRCxlrlr"}
_VORBIS_LAYOUTS = {3: "LCR", 4: "LRlr", 5: "LCRlr", 6: "LCRlrx", 7: "LCRlrbx", 8: "LCRlrlrx"}
# Gains to left and right, ITU-R BS.775-4, table 2; low frequencies are left out, as there.
_HALF = math.sqrt(0.5)
_GAINS = {"L": (1, 0), "R": (0, 1), "C": (_HALF, _HALF), "l": (_HALF, 0), "r": (0, _HALF), "b": (0.5, 0.5), "x": (0, 0)}


@contextmanager
def _opened(path: Path, min_seconds: float, max_seconds: float, max_bytes: int) -> Iterator[sf.SoundFile]:
    """Open a file after every check that needs no decoding; what fails while it is read is an `AudioError` too."""
    head = _head(path, max_bytes)
    for offset, mark, kind in _FOREIGN:
        if head.startswith(mark, offset):
            raise AudioError(f"This is {kind}, which cannot be read as audio.", _EXPORT)
    try:
        file = ForwardFile(path)
    except (sf.SoundFileError, OSError, TypeError) as error:  # TypeError: headerless, by the end of its name
        raise _unreadable(head) from error
    with file:
        _check_header(file, head, min_seconds, max_seconds)
        try:
            yield file
        except (sf.SoundFileError, OSError) as error:
            raise AudioError("The file is damaged and cannot be read to its end.", _AGAIN) from error


def _head(path: Path, max_bytes: int) -> bytes:
    """Return the first bytes of a regular file that is neither empty nor too large."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise AudioError("This is not a file.", _USABLE)
        if size == 0:
            raise AudioError("The file is empty.", _USABLE)
        if size > max_bytes:
            limit = f"{max_bytes / 1e6:.3g} MB"
            raise AudioError(f"The file is too large: it may have up to {limit}.", "Save it as FLAC or MP3, or cut it.")
        with path.open("rb") as file:
            return file.read(4096)
    except FileNotFoundError as error:
        raise AudioError("The file was not found.", "Choose it again.") from error
    except OSError as error:
        raise AudioError("The file could not be opened.", "Choose it again.") from error


def _unreadable(head: bytes) -> AudioError:
    """Say why libsndfile does not know a file that starts with these bytes."""
    if head.startswith(_AUDIO_MARKS):
        return AudioError("The file is damaged: its header cannot be read.", _AGAIN)
    with suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # a letter cut at the end is no error to it
        if all(c.isprintable() or c.isspace() for c in text.removeprefix("\ufeff")):
            return AudioError("This is a text file, not audio.", _USABLE)
    return AudioError("This is not an audio file that can be read.", _USABLE)


def _check_header(file: sf.SoundFile, head: bytes, min_seconds: float, max_seconds: float) -> None:
    if file.format == "RAW":  # libsndfile guesses a headerless format from the end of the name and reads anything
        raise _unreadable(head)
    rate, frames = file.samplerate, file.frames
    if not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError(f"The sample rate is {rate / 1000:g} kHz; it may be 8 to 192 kHz.", "Resample the file.")
    if frames <= 0:
        raise AudioError("The file holds no sound.", _USABLE)
    if frames == _UNKNOWN_FRAMES:
        raise AudioError("The file does not say how long it is.", "Save it again as WAV, FLAC or MP3.")
    if frames < min_seconds * rate:
        hint = f"Choose one of at least {_spoken(min_seconds)}."
        raise AudioError(f"The file is too short: {frames / rate:.3g} seconds.", hint)
    if frames > max_seconds * rate:
        raise AudioError(f"The file is too long: it may have up to {_spoken(max_seconds)}.", "Cut out a part of it.")


def _spoken(seconds: float) -> str:
    amount, unit = (seconds / 60, "minute") if seconds >= 60 else (seconds, "second")
    return f"{amount:.3g} {unit}{'' if amount == 1 else 's'}"


def _stereo_blocks(file: sf.SoundFile) -> Iterator[np.ndarray]:
    """Yield the file as float32 blocks [samples, 2]."""
    layouts = _VORBIS_LAYOUTS if file.format == "OGG" else _LAYOUTS
    # More than eight channels have no known places: all of them go to both sides.
    gains = np.array([_GAINS[place] for place in layouts.get(file.channels, "C" * file.channels)], np.float32)
    gains /= gains.sum(axis=0)  # so that full scale in every channel cannot pass full scale
    done = 0
    while len(block := file.read(max(_BLOCK // file.channels, 1), dtype="float32", always_2d=True)):
        done += len(block)
        if not _peak(block) <= _LOUDEST:  # also false for NaN
            raise AudioError("The file holds samples that are not numbers or far beyond full scale.", _AGAIN)
        yield block if file.channels == 2 else np.repeat(block, 2, axis=1) if file.channels == 1 else block @ gains
    if file.frames - done > _MISSING_SECONDS * file.samplerate:
        said, found = file.frames / file.samplerate, done / file.samplerate
        message = f"The file is damaged: it ends after {found:.1f} of {said:.1f} seconds."
        raise AudioError(message, _AGAIN)


def _at_studio_rate(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Resample blocks [samples, 2] as one stream."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 2, "float32", "VHQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros((0, 2), np.float32), last=True)


# --- samples: helpers ---------------------------------------------------------------------------------------------


def _seconds(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Yield [channels, samples] in blocks of one second."""
    return (samples[:, at : at + SAMPLE_RATE] for at in range(0, samples.shape[1], SAMPLE_RATE))


def _rows(block: np.ndarray) -> np.ndarray:
    """Return [channels, samples] as the float32 [samples, channels] that soxr and libsndfile take."""
    return np.ascontiguousarray(block.T, dtype=np.float32)


def _peak(samples: np.ndarray) -> float:
    """Return the largest absolute value; NaN where there is one."""
    return max(float(samples.max(initial=0)), -float(samples.min(initial=0)))


def _decibels(level: float) -> float:
    return max(20 * math.log10(level), FLOOR_DBFS) if level > 0 else FLOOR_DBFS


def _with_gain(samples: np.ndarray, decibels: float) -> np.ndarray:
    return samples.astype(np.float32) * np.float32(10 ** (decibels / 20))


# --- writing: helpers ---------------------------------------------------------------------------------------------


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Give a hidden file in the same folder, which takes the place of `path` once it is whole and is gone otherwise."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.touch(exist_ok=False)
    except OSError as error:
        hint = "Check that it exists, that it may be written to, and that the disk has room."
        raise AudioError("The folder for the song cannot be written to.", hint) from error
    try:
        yield part
        os.replace(part, path)
    except (OSError, sf.SoundFileError, AssertionError, MutagenError) as error:  # soundfile asserts a whole write
        hint = "The disk may be full: free some space, or choose another output folder, and try again."
        raise AudioError("The file could not be written.", hint) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


class _Remembering(io.FileIO):
    """A file that remembers a failed write: libsndfile does not report one that happens while it closes a file."""

    failure: OSError | None = None

    def write(self, data: bytes, /) -> int:
        written = 0
        try:
            written = super().write(data)
        except OSError as error:
            self.failure = error
        if written < len(data):
            self.failure = self.failure or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written


def _write(path: Path, samples: np.ndarray, encoding: dict) -> None:
    """Write [channels, samples] in blocks of a second: one large write of Vorbis ends the process (libsndfile)."""
    exact = encoding["subtype"] == "FLOAT"
    prepare = _rows if exact else _as_24_bits if encoding["subtype"] == "PCM_24" else lambda b: _rows(np.clip(b, -1, 1))
    with _Remembering(path, "w+") as target:
        with sf.SoundFile(target, "w", SAMPLE_RATE, samples.shape[0], **encoding) as file:
            for block in _seconds(samples):
                file.write(prepare(block))
        if target.failure:
            raise target.failure


def _as_24_bits(block: np.ndarray) -> np.ndarray:
    """Return [channels, samples] rounded to 24 bits, as the upper bytes of int32 [samples, channels].

    Done here because libsndfile cuts floats down for WAV and rounds them for FLAC.
    """
    whole = np.clip(np.rint(block.T * 2.0**23), -(2**23), 2**23 - 1)
    return np.ascontiguousarray(whole.astype(np.int32) << 8)


def _tag_reader(path: Path) -> type[WAVE | FLAC | OggVorbis | MP3]:
    """Return mutagen's class for a file, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(12)
    marks = {b"RIFF": WAVE, b"fLaC": FLAC, b"OggS": OggVorbis}
    return marks.get(head[:4], MP3)


class _Sparing(io.FileIO):
    """A file that ends after `_TAG_BYTES` were read of it, so that tags without end cost little memory and time."""

    left = _TAG_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(self.left if size is None or size < 0 else min(size, self.left)) or b""
        self.left -= len(data)
        return data


def _record_text(path: Path) -> str | None:
    """Return the text of the record tag, or None."""
    kind = _tag_reader(path)
    with _Sparing(path) as file:
        if kind in (FLAC, OggVorbis):
            return (kind(file).get(RECORD_TAG) or [None])[0]
        # Frames are left packed: mutagen would inflate a compressed one to any size.
        options = {"known_frames": {}, "translate": False, "load_v1": False}
        tags = WAVE(file, **options).tags if kind is WAVE else ID3(file, **options)
    for frame in tags.unknown_frames if tags is not None else ():
        if frame.startswith(b"TXXX") and frame[8:10] == b"\0\0":  # neither compressed nor encrypted
            name, _, text = frame[11:].decode(("latin-1", "utf-16", "utf-16-be", "utf-8")[frame[10]]).partition("\0")
            if name == RECORD_TAG:
                return text.lstrip("\ufeff").rstrip("\0")
    return None


def _nested(value: object, levels: int) -> bool:
    """Whether lists and dicts within `value` are at most `levels` deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is None or (levels > 0 and all(_nested(each, levels - 1) for each in inner))


def _clean(text: str) -> str:
    """Return text that UTF-8 can hold: halves of surrogate pairs become question marks."""
    return text.encode("utf-8", "replace").decode()


def _slug(text: str) -> str:
    """Return the words of a text in lower case, joined by hyphens, at most `_NAME_BYTES` long in UTF-8."""
    text = re.sub(r"</?[a-zA-Z][^<>]*>", " ", html.unescape(text[:2000]))
    kept: list[str] = []
    for c in unicodedata.normalize("NFKC", re.sub("['’]", "", text)).lower():
        kind = unicodedata.category(c)
        if kind == "Cf" or unicodedata.name(c, "").startswith("VARIATION SELECTOR"):
            continue  # joiners, direction marks: unseen within a word
        # Accents and vowel signs belong to the letter before them.
        if kind[0] in "LN" or (kind in ("Mn", "Mc") and kept and kept[-1] != "-"):
            kept.append(c)
        elif kept and kept[-1] != "-":
            kept.append("-")
    slug = "".join(kept).strip("-")
    if len(slug.encode()) > _NAME_BYTES:
        words, hyphen, _ = slug.encode()[: _NAME_BYTES + 1].rpartition(b"-")
        slug = (words if hyphen else slug.encode()[:_NAME_BYTES]).decode("utf-8", "ignore").strip("-")
    return slug
