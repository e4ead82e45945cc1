"""Samples in: an upload decoded to what the studio works on, float32 [2, samples] at 48 kHz, full
scale at 1.0.

Uploads are untrusted: sizes are checked before anything is read, and files are read in blocks.
"""

from __future__ import annotations

import codecs
import math
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

import audio_kinds
import audio_media
import audio_whole
from audio_whole import ForwardFile, Recording, Window
from limits import MAX_SOURCE_SECONDS, SAMPLE_RATE

MAX_UPLOAD_BYTES = 500_000_000
LEAST_SECONDS = 1.0
_LOWEST_RATE = 8_000
_HIGHEST_RATE = 192_000
_LOUDEST = 1000.0  # 60 dB over full scale: larger samples are integers or garbage, read as floats
_MISSING_SECONDS = 0.1  # an MP3 without a length header may be wrong by a few frames of 26 ms
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's count for a FLAC that was streamed; it cannot read one
_BLOCK = 2**18  # samples of all channels read at once
# Of all channels: the longest file in stereo at the highest rate. Silence in many channels is small as a FLAC.
_MOST_SAMPLES = int(MAX_SOURCE_SECONDS * _HIGHEST_RATE * 2)
# Files that wait for their check. Each holds a thread that would serve a page.
MOST_WAITING = 8
_MOST_KNOWN = 256  # files whose lengths are remembered

# What to do about a file that cannot be used.
_USABLE = "Choose a WAV, FLAC, MP3, OGG or AIFF file."
_AGAIN = "Export or download it again."
_EXPORT = "Save its sound as WAV, FLAC, MP3, OGG or AIFF and choose that file."

# What audio files begin with: one that does, and cannot be read, is damaged.
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


class AudioError(ValueError):
    """A file cannot be used or written: `message` says why, `hint` what to do; `code` is that of its problem."""

    def __init__(self, message: str, hint: str = "", code: str = "audio"):
        super().__init__(message, hint, code)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


def decode(path: str | Path, stopped: Callable[[], bool] = lambda: False) -> np.ndarray:
    """Read an audio file of any kind that libsndfile knows, as float32 [2, samples] at 48 kHz;
    raises `AudioError`, and CancelledError between two blocks once `stopped()`.

    Mono goes to both sides, surround is mixed down, other rates are resampled with soxr's VHQ; at
    48 kHz the samples of a file of up to 24 bits are exact. Recordings that were joined to one file
    follow each other. Memory stays near the size of the result, however large the source is.
    Recordings of phones and browsers need PyAV.
    """
    lengths = _lengths(Path(path))
    total = sum(length.at_studio_rate for length in lengths)
    samples = np.zeros((2, total), np.float32)
    filled = 0
    for blocks, length in zip(_read(Path(path), lengths), lengths, strict=True):
        end = filled + length.at_studio_rate
        for block in _at_studio_rate(blocks, length.rate):
            if stopped():
                raise CancelledError
            block = block[: end - filled]
            samples[:, filled : filled + len(block)] = block.T
            filled += len(block)
    # The resampler may end one sample early.
    if filled < total - len(lengths):
        return samples[:, :filled]
    return samples


def duration_of(path: str | Path) -> float:
    """Return the length in seconds of what `decode` reads, with its limits and errors.

    An unchanged file is read once, and one file at a time: it is refused if too many wait already.
    """
    lengths = _lengths(Path(path), MOST_WAITING)
    return sum(length.frames / length.rate for length in lengths)


def blocks_of(path: str | Path) -> Iterator[np.ndarray]:
    """Yield a file at its own rate as float32 blocks [samples, 2]; raises `AudioError`."""
    lengths = _lengths(Path(path))
    for blocks in _read(Path(path), lengths):
        yield from blocks


def frames_of(path: str | Path) -> int:
    """Return the samples of each side that `blocks_of` yields."""
    return sum(length.frames for length in _lengths(Path(path)))


def read_wav(path: str | Path) -> np.ndarray:
    """Read a file of the job folder as float32 [2, samples], at its own rate; raises `AudioError`."""
    try:
        samples = sf.read(path, dtype="float32", always_2d=True)[0].T
    except (sf.SoundFileError, OSError) as error:
        raise AudioError("A file of this song could not be read back.", "Try again.") from error
    return np.ascontiguousarray(np.broadcast_to(samples, (2, samples.shape[1])))


@dataclass(frozen=True)
class _Length:
    """What a recording really has: samples of each side, at its rate."""

    frames: int
    rate: int

    @property
    def at_studio_rate(self) -> int:
        return round(self.frames * SAMPLE_RATE / self.rate)


def _lengths(path: Path, most_waiting: int | None = None) -> tuple[_Length, ...]:
    """Return the lengths of a file's recordings, measured to their ends, within the limits.

    Raises `AudioError` also if `most_waiting` files wait for that already.
    """
    head = _head(path)
    stat = path.stat()
    try:
        key = (str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
        found = _checks.result(key, most_waiting)
    except OSError as error:
        raise AudioError("The file could not be opened.", "Choose it again.") from error
    if found is None:
        raise _unreadable(head)
    if isinstance(found, AudioError):
        # a new one, because the remembered one would collect the tracebacks of all who raise it
        raise AudioError(found.message, found.hint, found.code)
    _check_length(sum(length.frames / length.rate for length in found))
    return found


_Found = tuple[_Length, ...] | AudioError | None


class _Checks:
    """Measures one file at a time, however many callers there are, and remembers the latest results."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int, int, int], _Found] = OrderedDict()
        self._waiting = 0
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def result(self, key: tuple[str, int, int, int], most_waiting: int | None) -> _Found:
        """Return what `_measured` finds; `key` is a file's path and what changes with it."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            if most_waiting is not None and self._waiting >= most_waiting:
                raise AudioError("The studio is checking other files.", "Try again in a moment.")
            self._waiting += 1
        try:
            with self._turn:
                return self._measured(key)
        finally:
            with self._lock:
                self._waiting -= 1

    def _measured(self, key: tuple[str, int, int, int]) -> _Found:
        with self._lock:
            if key in self._known:  # by whoever had the turn before
                return self._known[key]
        found = _measured(key[0])
        with self._lock:
            self._known[key] = found
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return found


_checks = _Checks()


def _measured(path: str) -> _Found:
    """Return the lengths of a file's recordings, or what is wrong with it; None if it is not audio."""
    try:
        with _bytes_of(path) as data:
            kind = audio_kinds.foreign(data)
            media = _media_of(data, kind)
            if media is not None:
                return (_measure_media(Path(path), media),)
            if kind:
                message = f"This is {kind}, which cannot be read as audio."
                return AudioError(message, _EXPORT)
            return tuple(_measure_all(data))
    except AudioError as error:
        return error
    except _Unreadable:
        return None


class _Unreadable(Exception):
    """libsndfile does not know what this is."""


@contextmanager
def _bytes_of(path: Path | str) -> Iterator[mmap.mmap]:
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        yield data


@contextmanager
def _opened(data: mmap.mmap, recording: Recording) -> Iterator[ForwardFile]:
    """Open a recording; failures while it is read become `AudioError`s."""
    try:
        file = ForwardFile(Window(data, recording))
    except (sf.SoundFileError, OSError, TypeError) as error:
        raise _Unreadable from error
    with file:
        try:
            yield file
        except (sf.SoundFileError, OSError) as error:
            message = "The file is damaged and cannot be read to its end."
            raise AudioError(message, _AGAIN) from error


def _measure_all(data: mmap.mmap) -> Iterator[_Length]:
    """Yield the lengths of the recordings in a file; raises `AudioError` as soon as they are too long."""
    seconds = 0.0
    for recording in audio_whole.recordings(data):
        length = _measure(data, recording)
        seconds += length.frames / length.rate
        if seconds > MAX_SOURCE_SECONDS:
            raise _too_long()
        yield length


def _measure(data: mmap.mmap, recording: Recording) -> _Length:
    """Read a recording to its end, and compare it with what was promised; raises `AudioError`."""
    with _opened(data, recording) as file:
        rate = file.samplerate
        _check_rate(rate)
        promised = _promised_frames(file, recording)
        frames = _count_frames(file, recording, promised)
    # A recording that continues after its promised end does not end with the encoder's padding.
    if promised is not None and frames - recording.spare <= promised:
        frames = max(frames - recording.spare, 0)
    found = recording.found or frames / rate
    expected = recording.expected
    if promised is not None and not expected:
        expected = promised / rate
    if found > 0 and expected - found > _MISSING_SECONDS:
        message = f"The file is damaged: it ends after {found:.1f} of {expected:.1f} seconds."
        raise AudioError(message, _AGAIN)
    return _Length(frames, rate)


def _promised_frames(file: ForwardFile, recording: Recording) -> int | None:
    """Return how many samples of each side a recording claims to have, None if it does not say."""
    promised = recording.frames if recording.patched else file.frames
    if promised == _UNKNOWN_FRAMES:
        message = "The file does not say how long it is."
        raise AudioError(message, "Save it again as WAV, FLAC or MP3.")
    if promised is not None and promised > MAX_SOURCE_SECONDS * file.samplerate:
        raise _too_long()
    if promised is not None:
        _check_samples(promised, file)
    return promised


def _count_frames(file: ForwardFile, recording: Recording, promised: int | None) -> int:
    """Read a recording to its end; return its samples of each side without those to skip at its start."""
    most = MAX_SOURCE_SECONDS * file.samplerate + recording.spare
    to_read = promised + recording.skip if promised else promised
    frames = -recording.skip
    for block in _stereo_blocks(file, to_read):
        frames += len(block)
        if frames > most:
            raise _too_long()
        _check_samples(frames, file)
    return max(frames, 0)


def _read(path: Path, lengths: Sequence[_Length]) -> Iterator[Iterator[np.ndarray]]:
    """Yield the blocks of each recording, of the measured `lengths`."""
    with _bytes_of(path) as data:
        media = _media_of(data, audio_kinds.foreign(data))
        if media is not None:
            with _opened_media(path, media) as sound:
                yield _cut(_blocks_of_media(sound), 0, lengths[0].frames)
            return
        for recording, length in zip(audio_whole.recordings(data), lengths, strict=True):
            with _opened(data, recording) as file:
                blocks = _stereo_blocks(file, recording.skip + length.frames)
                yield _cut(blocks, recording.skip, length.frames)


# --- recordings of phones and browsers ------------------------------------------------------------


def _media_of(data: mmap.mmap, kind: str) -> audio_media.Media | None:
    """Return which of PyAV's kinds a file is, if any, under the name `kind` where that is known."""
    start = audio_whole.behind_tags(data)
    media = audio_media.media_of(data[start : start + 64])
    if media is None or not kind:
        return media
    return replace(media, name=kind)


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


def _measure_media(path: Path, media: audio_media.Media) -> _Length:
    with _opened_media(path, media) as sound:
        _check_rate(sound.rate)
        frames = 0
        for block in _blocks_of_media(sound):
            frames += len(block)
            if frames > MAX_SOURCE_SECONDS * sound.rate:
                raise _too_long()
        return _Length(frames, sound.rate)


def _blocks_of_media(sound: audio_media.Sound) -> Iterator[np.ndarray]:
    return (_mixed_down(block, _LAYOUTS) for block in sound.blocks())


def _cut(blocks: Iterator[np.ndarray], skip: int, frames: int) -> Iterator[np.ndarray]:
    """Yield the `frames` samples that follow the first `skip`."""
    for block in blocks:
        kept = block[skip : skip + frames]
        skip = max(skip - len(block), 0)
        frames -= len(kept)
        if len(kept):
            yield kept
        if not frames:
            return


def _head(path: Path) -> bytes:
    """Return a file's first bytes; raises `AudioError` for one that is empty, too large or cannot be opened."""
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
    if _is_text(head):
        return AudioError("This is a text file, not audio.", _USABLE)
    return AudioError("This is not an audio file that can be read.", _USABLE)


def _is_text(head: bytes) -> bool:
    """Tell whether a file that begins with `head` is text in UTF-8."""
    # an incremental decoder accepts a letter that is cut at the end
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(head).removeprefix("\ufeff")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def _check_rate(rate: int) -> None:
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        message = f"The sample rate is {rate / 1000:g} kHz; it may be 8 to 192 kHz."
        raise AudioError(message, "Resample the file.")


def _check_samples(frames: int, file: sf.SoundFile) -> None:
    if frames * file.channels > _MOST_SAMPLES:
        seconds = _MOST_SAMPLES / file.samplerate / file.channels
        raise AudioError(
            f"The file is too large: with {file.channels} channels at {file.samplerate / 1000:g} kHz "
            f"it may be {seconds:.0f} seconds long.",
            "Mix it down to stereo, or resample it.",
        )


def _check_length(seconds: float) -> None:
    if seconds <= 0:
        raise AudioError("The file contains no sound.", _USABLE)
    if seconds < LEAST_SECONDS:
        hint = f"Choose one of at least {LEAST_SECONDS:g} second."
        raise AudioError(f"The file is too short: {seconds:.3g} seconds.", hint)
    if seconds > MAX_SOURCE_SECONDS:
        raise _too_long()


def _too_long() -> AudioError:
    message = f"The file is too long: it may have up to {MAX_SOURCE_SECONDS / 60:.3g} minutes."
    return AudioError(message, "Cut out a part of it.")


def _stereo_blocks(file: sf.SoundFile, promised: int | None = None) -> Iterator[np.ndarray]:
    """Yield the file as float32 blocks [samples, 2], surround mixed down.

    Something unreadable after the `promised` samples, such as a tag, is not damage.
    """
    layouts = _VORBIS_LAYOUTS if file.format == "OGG" else _LAYOUTS
    usual = max(_BLOCK // file.channels, 1)
    done = 0
    while True:
        left = (promised or 0) - done
        # a block ends where the promise does, so that the last one can be read whatever follows
        count = min(usual, left) if left > 0 else usual
        try:
            block = file.read(count, "float32", always_2d=True)
        except sf.SoundFileError:
            if promised is None or left > 0:
                raise
            return
        if not len(block):
            return
        done += len(block)
        yield _mixed_down(block, layouts)


def _mixed_down(block: np.ndarray, layouts: Mapping[int, str]) -> np.ndarray:
    """Return a block [samples, channels], whose channels are as `layouts` say, as [samples, 2]."""
    if not peak_of(block) <= _LOUDEST:  # also false for NaN
        message = "The file contains samples that are not numbers, or are far beyond full scale."
        raise AudioError(message, _AGAIN)
    channels = block.shape[1]
    # Mono, and more than eight channels, which have no known positions, go to both sides.
    layout = layouts.get(channels, "C" * channels)
    gains = np.array([_GAINS[position] for position in layout], np.float32)  # [channels, 2]
    gains /= gains.sum(axis=0)  # so that full scale in every channel cannot pass full scale
    return block @ gains


def _at_studio_rate(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Yield blocks [samples, 2] resampled from `rate` to 48 kHz."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 2, "float32", "VHQ")
    for block in _ahead(blocks):
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros((0, 2), np.float32), last=True)


def _ahead(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield `blocks`, and read the next one in a thread meanwhile: many channels take as long as resampling."""
    with ThreadPoolExecutor(1, "decode") as reader:
        coming = reader.submit(next, blocks, None)
        while True:
            block = coming.result()
            if block is None:
                return
            coming = reader.submit(next, blocks, None)
            yield block


def peak_of(samples: np.ndarray) -> float:
    """Return the largest absolute value; NaN if there is one."""
    return max(float(samples.max(initial=0)), -float(samples.min(initial=0)))


def one_second_blocks(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Yield `samples` [2, n] in blocks of one second, the last one shorter."""
    for start in range(0, samples.shape[1], SAMPLE_RATE):
        yield samples[:, start : start + SAMPLE_RATE]


def rows_of(block: np.ndarray) -> np.ndarray:
    """Return the float32 [samples, channels] that soxr and libsndfile take."""
    return np.ascontiguousarray(block.T, dtype=np.float32)
