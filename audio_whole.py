"""What a file of sound really holds, whatever its header says: where its recordings begin and end,
how long they claim to be, and what it is if it is something else.

A header is written before the sound, by programs that crash, stream, cut and join. libsndfile
believes it: it stops where the header says that the sound ends, and at a guess for an MP3 without
one. So it gets each recording of a file through a `Window`, in which the header claims more than
there can be, and reads to the end of the bytes. What it found is compared with what was promised by
whoever reads (audio.py).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import soundfile as sf

Bytes = mmap.mmap | bytes

# A header's size that stands for "until the end": a stream's, or near enough to all ones.
_ENDLESS = 0x7FFFFF00
_RECORDERS_REST = 0.5  # seconds of sound behind what the header covers, to be more than padding


@dataclass(frozen=True)
class Recording:
    """A recording within a file: bytes from `start` to `end`, with `patches` at places from its start.

    `lead` is read before it. `frames` are those it claims to have, None if it does not say; `found`
    and `expected` seconds differ where the bytes end before they should. `skip` and `spare` are the
    samples that an MP3's encoder put before and behind the sound.
    """

    start: int
    end: int
    lead: bytes = b""
    patches: tuple[tuple[int, bytes], ...] = ()
    frames: int | None = None
    found: float = 0.0
    expected: float = 0.0
    skip: int = 0
    spare: int = 0
    patched: bool = False  # whether libsndfile's count of frames means nothing


class Window:
    """A recording as a file for libsndfile."""

    def __init__(self, data: Bytes, recording: Recording):
        self._data = data
        self._recording = recording
        self._lead = recording.lead
        self._size = len(self._lead) + recording.end - recording.start
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._at, self._size)[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        stop = self._size if count < 0 else min(self._at + count, self._size)
        if self._at >= stop:
            return b""
        found = self._lead[self._at : stop]
        if stop > len(self._lead):
            first = max(self._at - len(self._lead), 0)
            found += self._patched(first, stop - len(self._lead))
        self._at = stop
        return found

    def _patched(self, first: int, last: int) -> bytes:
        """Return the recording's bytes from `first` to `last`, counted from its start."""
        start = self._recording.start
        found = self._data[start + first : start + last]
        for place, patch in self._recording.patches:
            if place < last and place + len(patch) > first:
                whole = bytearray(found)
                for at, byte in enumerate(patch, place - first):
                    if 0 <= at < len(whole):
                        whole[at] = byte
                found = bytes(whole)
        return found


class ForwardFile(sf.SoundFile):
    """A file read once, from start to end: soundfile seeks after every read, which breaks MP3s of variable bit rate."""

    def seekable(self) -> bool:
        return False


def recordings(data: Bytes) -> list[Recording]:
    """Return the recordings of a file one after the other; one that is not understood is left as it is."""
    start = behind_tags(data)
    mark = data[start : start + 4]
    whole = Recording(0, len(data))
    if mark == b"fLaC":
        return list(_flacs(data, start))
    if mark in (b"RIFF", b"RIFX", b"RF64"):
        return list(_chained(data, start, _wav)) or [whole]
    if mark == b"FORM":
        return list(_chained(data, start, _aiff)) or [whole]
    if mark == b".snd":
        return list(_chained(data, start, _au)) or [whole]
    if mark == b"OggS":
        return list(_oggs(data, start)) or [whole]
    frame = _mp3_frame(data, start)
    if frame >= 0:
        return [_mp3(data, frame)]
    return [whole]


def behind_tags(data: Bytes, start: int = 0) -> int:
    """Return where the ID3v2 tags end that a file may begin with."""
    while data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        footer = 10 if data[start + 5] & 0x10 else 0
        start += 10 + size + footer
    return start


# --- FLAC and Ogg ---------------------------------------------------------------------------------

_STREAMINFO = b"\0\0\0\x22"  # the first block of metadata and its length, which is always the same


def _flacs(data: Bytes, start: int) -> Iterator[Recording]:
    """Yield the FLAC streams from `start` on; each claims as many samples as it can."""
    while start >= 0:
        following = data.find(b"fLaC" + _STREAMINFO, start + 4)
        end = len(data) if following < 0 else following
        info = data[start + 8 : start + 42]
        if len(info) < 18:
            yield Recording(start, end)
            return
        frames = int.from_bytes(info[13:18], "big") & (2**36 - 1)
        most = (int.from_bytes(info[13:18], "big") | (2**36 - 1)).to_bytes(5, "big")
        yield Recording(start, end, patches=((21, most),), frames=frames or None, patched=True)
        start = following


def _oggs(data: Bytes, start: int) -> Iterator[Recording]:
    """Yield the links of a chained Ogg stream, each of which begins with pages that say so."""
    first = start
    at = start
    begins = True
    while data[at : at + 4] == b"OggS" and len(data) >= at + 27:
        beginning = bool(data[at + 5] & 2)
        if beginning and not begins:
            yield Recording(first, at)
            first = at
        begins = beginning
        segments = data[at + 26]
        at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
    yield Recording(first, len(data))


# --- WAV, AIFF, AU --------------------------------------------------------------------------------


_Found = tuple[Recording, int | None]  # and where the next one begins


def _chained(
    data: Bytes, start: int, read: Callable[[Bytes, int], _Found | None]
) -> Iterator[Recording]:
    """Yield the recordings that `read` finds, each from where the last one ends."""
    following: int | None = start
    while following is not None:
        found = read(data, following)
        if found is None:
            return
        recording, following = found
        yield recording


@dataclass(frozen=True)
class _Span:
    """The sound of a recording: the bytes that its header claims, and those that it has."""

    first: int
    claimed: int
    size: int
    following: int | None  # where the next recording begins

    @property
    def is_as_claimed(self) -> bool:
        return self.claimed == self.size

    def shortage(self, bytes_a_second: float) -> tuple[float, float]:
        """Return found and expected seconds if the bytes end too early, else zeros."""
        if self.claimed >= _ENDLESS or self.claimed <= self.size or not bytes_a_second:
            return 0.0, 0.0
        return self.size / bytes_a_second, self.claimed / bytes_a_second


def _span(
    data: Bytes, first: int, claimed: int, marks: tuple[bytes, ...], order: str, rate: float
) -> _Span:
    """Measure a chunk of sound from `first` on, whose header claims so many bytes.

    Behind it come other chunks, whose sizes are read in `order`, or a recording that begins with
    one of `marks`. Anything else is sound that the header does not cover yet, as a recorder leaves
    it that lost power; `rate` are its bytes a second.
    """
    room = len(data) - first
    if claimed > room or claimed >= _ENDLESS:
        return _Span(first, claimed, room, None)
    at = first + claimed + claimed % 2
    if claimed == 0 and not _is_chunk(data, at, order):
        return _Span(first, claimed, room, None)
    while at + 8 <= len(data):
        if data[at : at + 4] in marks:
            return _Span(first, claimed, claimed, at)
        if not _is_chunk(data, at, order):
            break
        at += 8 + _number(data, at + 4, order)
        at += at % 2
    rest = len(data) - at
    if (
        at == first + claimed + claimed % 2
        and rest > rate * _RECORDERS_REST
        and any(data[at : at + 65536])
    ):
        return _Span(first, claimed, room, None)
    return _Span(first, claimed, claimed, None)


def _is_chunk(data: Bytes, at: int, order: str) -> bool:
    """Tell whether a chunk with a readable name and a size that fits begins here, or the file ends."""
    if at >= len(data) - 7:
        return True
    name = data[at : at + 4]
    named = all(0x20 <= byte < 0x7F for byte in name)
    return named and at + 8 + _number(data, at + 4, order) <= len(data) + 1


def _number(data: Bytes, at: int, order: str) -> int:
    return struct.unpack(f"{order}I", data[at : at + 4])[0]


def _find_chunks(data: Bytes, at: int, last: bytes, order: str) -> dict[bytes, int]:
    """Return where the chunks up to `last` have their sizes, by name; empty if that is not there."""
    found: dict[bytes, int] = {}
    while at + 8 <= len(data):
        name = data[at : at + 4]
        found[name] = at + 4
        if name == last:
            return found
        size = _number(data, at + 4, order)
        at += 8 + size + size % 2
    return {}


def _wav(data: Bytes, start: int) -> _Found | None:
    mark = data[start : start + 4]
    order = ">" if mark == b"RIFX" else "<"
    chunks = _find_chunks(data, start + 12, b"data", order)
    if b"fmt " not in chunks or len(data) < chunks[b"fmt "] + 20:
        return None
    rate = float(_number(data, chunks[b"fmt "] + 12, order))
    claimed = _number(data, chunks[b"data"], order)
    if mark == b"RF64" and b"ds64" in chunks and claimed == 0xFFFFFFFF:
        claimed = struct.unpack("<Q", data[chunks[b"ds64"] + 12 : chunks[b"ds64"] + 20])[0]
    first = chunks[b"data"] + 4
    span = _span(data, first, claimed, (b"RIFF", b"RIFX", b"RF64"), order, rate)
    found, expected = span.shortage(rate)
    end = len(data) if span.following is None else span.following
    if span.is_as_claimed and span.following is None:
        return Recording(start, end), None
    end = first + span.size
    patches = (
        (0, b"RIFF" if mark == b"RF64" else mark),
        (4, struct.pack(f"{order}I", end - start - 8)),
        (chunks[b"data"] - start, struct.pack(f"{order}I", span.size)),
    )
    recording = Recording(start, end, patches=patches, found=found, expected=expected)
    return recording, span.following


def _aiff(data: Bytes, start: int) -> _Found | None:
    chunks = _find_chunks(data, start + 12, b"SSND", ">")
    if b"COMM" not in chunks or len(data) < chunks[b"COMM"] + 26:
        return None
    common = chunks[b"COMM"] + 4
    channels, frames, bits, exponent, mantissa = struct.unpack(">hIhHQ", data[common : common + 18])
    rate = mantissa * 2.0 ** (exponent - 16383 - 63)
    packed = data[start + 8 : start + 12] == b"AIFC"
    if packed and data[common + 18 : common + 22] not in (b"NONE", b"sowt", b"twos"):
        return Recording(start, len(data)), None
    width = channels * -(-bits // 8)
    if width <= 0 or not 0 < rate < 1e7:
        return None
    first = chunks[b"SSND"] + 12  # behind offset and size of blocks
    claimed = max(_number(data, chunks[b"SSND"], ">") - 8, 0)
    span = _span(data, first, claimed, (b"FORM",), ">", rate * width)
    found, expected = span.shortage(rate * width)
    held = span.size // width
    if span.is_as_claimed and span.following is None and frames == held:
        return Recording(start, len(data)), None
    end = first + span.size
    patches = (
        (4, struct.pack(">I", end - start - 8)),
        (common - start + 2, struct.pack(">I", held)),
        (chunks[b"SSND"] - start, struct.pack(">I", span.size + 8)),
    )
    recording = Recording(start, end, patches=patches, found=found, expected=expected)
    return recording, span.following


def _au(data: Bytes, start: int) -> _Found | None:
    if len(data) < start + 24:
        return None
    head, claimed, coding, rate, channels = struct.unpack(">5I", data[start + 4 : start + 24])
    width = {2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8}.get(coding, 1) * channels
    first = start + head
    room = len(data) - first
    following = None
    size = room
    if 0 < claimed <= room:
        size = claimed
        if data[first + claimed : first + claimed + 4] == b".snd":
            following = first + claimed
    found = 0.0
    expected = 0.0
    if room < claimed < _ENDLESS and rate * width:
        found = room / (rate * width)
        expected = claimed / (rate * width)
    patches = ((8, struct.pack(">I", size)),)
    recording = Recording(start, first + size, patches=patches, found=found, expected=expected)
    return recording, following


# --- MP3 ------------------------------------------------------------------------------------------

_KBIT = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# The bytes between the header and an Info frame's mark, by whether the version is 1, and mono.
_SIDE_BYTES = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}
_HERTZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_SEARCHED = 65_536  # bytes of something else before the first frame
_DECODER_DELAY = 529  # samples, of every MP3 decoder (LAME's technical FAQ)


@dataclass(frozen=True)
class _Frame:
    """The header of a frame of MPEG audio, layer III."""

    head: bytes
    size: int  # bytes
    samples: int
    info: int  # where an Info frame has its mark

    @classmethod
    def at(cls, data: Bytes, at: int) -> _Frame | None:
        head = data[at : at + 4]
        if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
            return None
        version = head[1] >> 3 & 3
        rates = _HERTZ.get(version)
        at_rate = head[2] >> 2 & 3
        at_kbit = head[2] >> 4
        if rates is None or at_rate == 3 or at_kbit in (0, 15):
            return None
        newest = version == 3
        samples = 1152 if newest else 576
        kbit = _KBIT[3 if newest else 2][at_kbit]
        size = samples // 8 * kbit * 1000 // rates[at_rate] + (head[2] >> 1 & 1)
        is_mono = head[3] >> 6 == 3
        return cls(head, size, samples, 4 + _SIDE_BYTES[newest, is_mono])


def _mp3_frame(data: Bytes, start: int) -> int:
    """Return where the first two frames in a row begin, -1 if there are none near `start`."""
    at = start
    while 0 <= at < start + _SEARCHED:
        frame = _Frame.at(data, at)
        if frame is not None:
            behind = at + frame.size
            if behind >= len(data) or _Frame.at(data, behind) is not None:
                return at
        at = data.find(b"\xff", at + 1)
    return -1


def _mp3(data: Bytes, start: int) -> Recording:
    """Return the frames of sound from `start` on, behind an Info frame that claims more than fit."""
    frame = _Frame.at(data, start)
    assert frame is not None, start
    claimed = None
    skip = 0
    spare = 0
    for mark in (frame.info, frame.info + 2):  # with a checksum two bytes later
        at = start + mark
        if data[at : at + 4] in (b"Xing", b"Info"):
            flags = struct.unpack(">I", data[at + 4 : at + 8])[0]
            if flags & 1:
                claimed = struct.unpack(">I", data[at + 8 : at + 12])[0]
            coder = at + 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1)
            coder += 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
            gaps = int.from_bytes(data[coder + 21 : coder + 24], "big")
            if len(data) >= coder + 24 and data[coder : coder + 1] != b"\0":
                skip = gaps >> 12
                spare = max((gaps & 0xFFF) - _DECODER_DELAY, 0)
            start += frame.size
            break
    frames = None
    if claimed:
        # What libsndfile hands out begins behind the decoder's delay.
        frames = claimed * frame.samples - _DECODER_DELAY - skip - spare
    most = (len(data) - start) // 24 + 1
    return Recording(
        start,
        len(data),
        lead=_info_frame(frame.head, most),
        frames=frames,
        skip=skip,
        spare=spare,
        patched=True,
    )


def _info_frame(head: bytes, count: int) -> bytes:
    """Return a frame without sound, of the kind of `head`, that claims `count` frames."""
    # The ninth bit rate, no checksum and no padding: room for the mark in every version.
    made = bytes((0xFF, head[1] | 1, head[2] & 0x0C | 0x90, head[3]))
    frame = _Frame.at(made, 0)
    assert frame is not None, head
    body = bytearray(frame.size)
    body[:4] = made
    body[frame.info : frame.info + 12] = b"Xing" + struct.pack(">II", 1, count)
    return bytes(body)
