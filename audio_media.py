"""Recordings as phones and browsers make them, M4A, AAC, MP4, WebM and Opus: read with PyAV, if that is installed.

libsndfile knows none of them. The page decodes them in the browser (static/media.js); this is for
programs. Files are untrusted: only these containers and these codecs are opened, and the caller
bounds what it takes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

NAMES = "M4A, AAC, MP4, WebM and Opus"
# The offset of a mark and the mark, what a file that has it is called, and FFmpeg's name of its container.
MARKS = (
    (4, b"ftypM4A", "an M4A file", "mov"),
    (4, b"ftypqt", "a MOV file", "mov"),
    (4, b"ftyp", "an MP4 file", "mov"),
    (0, b"\x1aE\xdf\xa3", "a WebM or MKV file", "matroska"),
    (0, b"\xff\xf1", "an AAC file", "aac"),
    (0, b"\xff\xf9", "an AAC file", "aac"),
)
CODECS = ("aac", "alac", "mp3", "mp3float", "opus", "libopus", "vorbis", "flac", "pcm_s16le")


class Unreadable(ValueError):
    """PyAV cannot read the sound of a file; the message completes "The file ..."."""


@dataclass(frozen=True)
class Media:
    """What a file seems to be, from its first bytes."""

    name: str  # with its article, such as "an M4A file"
    container: str


def media_of(head: bytes) -> Media | None:
    """Return what a file that begins with `head` is, None if it is none of these kinds."""
    for offset, mark, name, container in MARKS:
        if head.startswith(mark, offset):
            return Media(name, container)
    return None


@functools.cache
def can_read() -> bool:
    """Tell whether PyAV is installed."""
    return find_spec("av") is not None


@dataclass(frozen=True)
class Sound:
    """The first audio stream of a file: its rate in Hz, and how many channels it has."""

    rate: int
    channels: int
    _file: Any
    _stream: Any

    def frames(self) -> int:
        """Return its length in samples, from its packets: a recording of a browser has none in its header."""
        import av

        end = 0.0
        try:
            for packet in self._file.demux(self._stream):
                if packet.pts is not None:
                    end = max(end, float((packet.pts + packet.duration) * packet.time_base))
        except av.error.FFmpegError as error:
            raise Unreadable("is damaged and cannot be read to its end") from error
        return round(end * self.rate)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield its samples as float32 [samples, channels], in the order of WAV's channels."""
        import av

        to_float = av.AudioResampler(format="fltp")
        try:
            for frame in self._file.decode(self._stream):
                if frame.sample_rate != self.rate or len(frame.layout.channels) != self.channels:
                    raise Unreadable("changes its sample rate or channels halfway")
                for converted in to_float.resample(frame):
                    yield np.ascontiguousarray(converted.to_ndarray().T)
        except av.error.FFmpegError as error:
            raise Unreadable("is damaged and cannot be read to its end") from error


@contextlib.contextmanager
def opened(path: Path, media: Media) -> Iterator[Sound]:
    """Open a file of the kind `media` for one reading; raises Unreadable."""
    import av

    try:
        file = av.open(str(path), format=media.container, metadata_errors="ignore")
    except (av.error.FFmpegError, OSError) as error:
        raise Unreadable("is damaged: its header cannot be read") from error
    with file:
        if not file.streams.audio:
            raise Unreadable("contains no sound")
        stream = file.streams.audio[0]
        codec = stream.codec_context
        if not codec.sample_rate:
            raise Unreadable("contains no sound")
        if codec.name not in CODECS:
            raise Unreadable(f"has sound in a format that cannot be read here ({codec.name})")
        yield Sound(codec.sample_rate, codec.channels, file, stream)
