"""Samples in: an upload decoded to what the studio works on, float32 [2, samples] at 48 kHz, full
scale at 1.0.

Uploads are untrusted: sizes are checked before anything is read, and files are read in blocks.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

import audio_media
from limits import MAX_SOURCE_SECONDS, SAMPLE_RATE

MAX_UPLOAD_BYTES = 500_000_000
LEAST_SECONDS = 1.0
_RATES = (8_000, 192_000)
_LOUDEST = 1000.0  # 60 dB over full scale: larger samples are integers or garbage, read as floats
_MISSING_SECONDS = 0.1  # an MP3 without a length header may be wrong by a few frames of 26 ms
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's count for a FLAC that was streamed; it cannot read one
_BLOCK = 2**18  # samples of all channels read at once


class AudioError(ValueError):
    """A file cannot be used or written: `message` says why, `hint` what to do; `code` is that of its problem."""

    def __init__(self, message: str, hint: str = "", code: str = "audio"):
        super().__init__(message, hint, code)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ForwardFile(sf.SoundFile):
    """A file read once, from start to end: soundfile seeks after every read, which breaks MP3s of variable bit rate."""

    def seekable(self) -> bool:
        return False


def decode(path: str | Path) -> np.ndarray:
    """Read an audio file of any kind that libsndfile knows, as float32 [2, samples] at 48 kHz;
    raises `AudioError`.

    Mono goes to both sides, surround is mixed down, other rates are resampled with soxr's VHQ; at
    48 kHz the samples of a file of up to 24 bits are exact. Memory stays near the size of the
    result, however large the source is. Recordings of phones and browsers need PyAV.
    """
    media = _media(Path(path))
    if media is not None:
        return _decoded_media(Path(path), media)
    with _opened(Path(path)) as file:
        samples = np.zeros((2, round(file.frames * SAMPLE_RATE / file.samplerate)), np.float32)
        filled = 0
        for block in _at_studio_rate(_stereo_blocks(file), file.samplerate):
            block = block[: samples.shape[1] - filled]
            samples[:, filled : filled + len(block)] = block.T
            filled += len(block)
    # The resampler may end one sample early; more is missing only if the file is shorter than its
    # header says.
    if filled < samples.shape[1] - 1:
        return samples[:, :filled]
    return samples


def duration_of(path: str | Path) -> float:
    """Return the length in seconds from a file's header, with the limits and errors of `decode`."""
    media = _media(Path(path))
    if media is not None:
        with _opened_media(Path(path), media) as sound:
            frames = sound.frames()
            _check_header(sound.rate, frames)
            return frames / sound.rate
    with _opened(Path(path)) as file:
        return file.frames / file.samplerate


def read_wav(path: str | Path) -> np.ndarray:
    """Read a file of the job folder as float32 [2, samples], at its own rate; raises `AudioError`."""
    try:
        samples = sf.read(path, dtype="float32", always_2d=True)[0].T
    except (sf.SoundFileError, OSError) as error:
        raise AudioError("A file of this song could not be read back.", "Try again.") from error
    return np.ascontiguousarray(np.broadcast_to(samples, (2, samples.shape[1])))


_USABLE = "Choose a WAV, FLAC, MP3, OGG or AIFF file."
_AGAIN = "Export or download it again."
_EXPORT = "Save its sound as WAV, FLAC, MP3, OGG or AIFF and choose that file."

# Offset and mark of other kinds of files, none of which libsndfile reads, though it takes some of
# them for noise.
_FOREIGN = (
    (4, b"moov", "a video file (MOV)"),
    (8, b"AVI ", "a video file (AVI)"),
    (0, b"FLV\x01", "a video file (FLV)"),
    (0, b"\0\0\x01\xba", "a video file (MPEG)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a Windows Media file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
)
_AUDIO_MARKS = (b"RIFF", b"RF64", b"riff", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd")

# Channels by their number, in WAV, FLAC and AIFF, and in Vorbis (Vorbis I, 4.3.9; libsndfile keeps
# its order): left, right, centre, l and r surround, b back centre, x low frequencies.
_LAYOUTS = {2: "LR", 3: "LRC", 4: "LRlr", 5: "LRClr", 6: "LRCxlr", 7: "LRCxblr", 8: "LRCxlrlr"}
_VORBIS_LAYOUTS = {
    2: "LR",
    3: "LCR",
    4: "LRlr",
    5: "LCRlr",
    6: "LCRlrx",
    7: "LCRlrbx",
    8: "LCRlrlrx",
}
# Gains to left and right, ITU-R BS.775-4, table 2; low frequencies are left out, as there.
_HALF = math.sqrt(0.5)
_GAINS = {
    "L": (1, 0),
    "R": (0, 1),
    "C": (_HALF, _HALF),
    "l": (_HALF, 0),
    "r": (0, _HALF),
    "b": (0.5, 0.5),
    "x": (0, 0),
}


@contextmanager
def _opened(path: Path) -> Iterator[sf.SoundFile]:
    """Open a file after every check that needs no decoding; failures while it is read become `AudioError` too."""
    head = _head(path)
    for offset, mark, kind in _FOREIGN:
        if head.startswith(mark, offset):
            raise AudioError(f"This is {kind}, which cannot be read as audio.", _EXPORT)
    try:
        file = ForwardFile(path)
    # TypeError: headerless, by the end of its name
    except (sf.SoundFileError, OSError, TypeError) as error:
        raise _unreadable(head) from error
    with file:
        # libsndfile guesses a headerless format from the end of the name and reads anything
        if file.format == "RAW":
            raise _unreadable(head)
        _check_header(file.samplerate, file.frames)
        try:
            yield file
        except (sf.SoundFileError, OSError) as error:
            raise AudioError(
                "The file is damaged and cannot be read to its end.", _AGAIN
            ) from error


def _media(path: Path) -> audio_media.Media | None:
    return audio_media.media_of(_head(path))


@contextmanager
def _opened_media(path: Path, media: audio_media.Media) -> Iterator[audio_media.Sound]:
    if not audio_media.can_read():
        message = f"This is {media.name}. {audio_media.NAMES} are read here only with PyAV, which is not installed."
        raise AudioError(message, _EXPORT)
    try:
        with audio_media.opened(path, media) as sound:
            yield sound
    except audio_media.Unreadable as error:
        raise AudioError(f"This is {media.name}, but it {error}.", _EXPORT) from error


def _decoded_media(path: Path, media: audio_media.Media) -> np.ndarray:
    """Return a recording of a phone or a browser as `decode` does; what it says of its length is not relied on."""
    parts = []
    with _opened_media(path, media) as sound:
        done = 0

        def blocks() -> Iterator[np.ndarray]:
            nonlocal done
            for block in sound.blocks():
                done += len(block)
                if done > MAX_SOURCE_SECONDS * sound.rate:
                    break
                yield _mixed_down(block, _LAYOUTS)

        _check_header(sound.rate, sound.rate)
        parts = list(_at_studio_rate(blocks(), sound.rate))
        _check_header(sound.rate, done)
    return np.ascontiguousarray(np.concatenate(parts).T)


def _head(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise AudioError("This is not a file.", _USABLE)
        if size == 0:
            raise AudioError("The file is empty.", _USABLE)
        if size > MAX_UPLOAD_BYTES:
            message = f"The file is too large: it may have up to {MAX_UPLOAD_BYTES / 1e6:.3g} MB."
            raise AudioError(message, "Save it as FLAC or MP3, or cut it.")
        with path.open("rb") as file:
            return file.read(4096)
    except OSError as error:
        problem = "could not be opened"
        if isinstance(error, FileNotFoundError):
            problem = "was not found"
        raise AudioError(f"The file {problem}.", "Choose it again.") from error


def _unreadable(head: bytes) -> AudioError:
    if head.startswith(_AUDIO_MARKS):
        return AudioError("The file is damaged: its header cannot be read.", _AGAIN)
    with suppress(UnicodeDecodeError):
        # which accepts a letter cut at the end
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
        if all(c.isprintable() or c.isspace() for c in text.removeprefix("\ufeff")):
            return AudioError("This is a text file, not audio.", _USABLE)
    return AudioError("This is not an audio file that can be read.", _USABLE)


def _check_header(rate: int, frames: int) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError(
            f"The sample rate is {rate / 1000:g} kHz; it may be 8 to 192 kHz.", "Resample the file."
        )
    if frames <= 0:
        raise AudioError("The file contains no sound.", _USABLE)
    if frames == _UNKNOWN_FRAMES:
        raise AudioError(
            "The file does not say how long it is.", "Save it again as WAV, FLAC or MP3."
        )
    if frames < LEAST_SECONDS * rate:
        hint = f"Choose one of at least {LEAST_SECONDS:g} second."
        raise AudioError(f"The file is too short: {frames / rate:.3g} seconds.", hint)
    if frames > MAX_SOURCE_SECONDS * rate:
        message = f"The file is too long: it may have up to {MAX_SOURCE_SECONDS / 60:.3g} minutes."
        raise AudioError(message, "Cut out a part of it.")


def _stereo_blocks(file: sf.SoundFile) -> Iterator[np.ndarray]:
    """Yield the file as float32 blocks [samples, 2], surround mixed down."""
    layouts = _VORBIS_LAYOUTS if file.format == "OGG" else _LAYOUTS
    done = 0
    while len(block := file.read(max(_BLOCK // file.channels, 1), dtype="float32", always_2d=True)):
        done += len(block)
        yield _mixed_down(block, layouts)
    if file.frames - done > _MISSING_SECONDS * file.samplerate:
        found = done / file.samplerate
        expected = file.frames / file.samplerate
        raise AudioError(
            f"The file is damaged: it ends after {found:.1f} of {expected:.1f} seconds.", _AGAIN
        )


def _mixed_down(block: np.ndarray, layouts: Mapping[int, str]) -> np.ndarray:
    """Return a block [samples, channels], whose channels are as `layouts` say, as [samples, 2]."""
    if not peak_of(block) <= _LOUDEST:  # also false for NaN
        raise AudioError(
            "The file contains samples that are not numbers or far beyond full scale.", _AGAIN
        )
    channels = block.shape[1]
    # Mono, and more than eight channels, which have no known positions, go to both sides.
    gains = np.array([_GAINS[place] for place in layouts.get(channels, "C" * channels)], np.float32)
    gains /= gains.sum(axis=0)  # so that full scale in every channel cannot pass full scale
    return block @ gains


def _at_studio_rate(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 2, "float32", "VHQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros((0, 2), np.float32), last=True)


def peak_of(samples: np.ndarray) -> float:
    """Return the largest absolute value; NaN if there is one."""
    return max(float(samples.max(initial=0)), -float(samples.min(initial=0)))


def seconds_of(samples: np.ndarray) -> Iterator[np.ndarray]:
    return (samples[:, at : at + SAMPLE_RATE] for at in range(0, samples.shape[1], SAMPLE_RATE))


def rows_of(block: np.ndarray) -> np.ndarray:
    """Return the float32 [samples, channels] that soxr and libsndfile take."""
    return np.ascontiguousarray(block.T, dtype=np.float32)
