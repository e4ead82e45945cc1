"""A song as a file: encoded, named, tagged with its record and a cover picture; and the record read back.

The tags of an upload are untrusted: little is read of them, and the record is checked for size and
depth.
"""

from __future__ import annotations

import base64
import colorsys
import html
import io
import itertools
import json
import logging
import os
import re
import secrets
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from mutagen import MutagenError
from mutagen.flac import FLAC, Picture
from mutagen.id3 import APIC, ID3, TIT2, TXXX, PictureType
from mutagen.mp3 import MP3
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE
from PIL import Image, ImageDraw

from audio import AudioError, one_second_blocks, rows_of
from events import Problem, is_disk_full
from limits import SAMPLE_RATE

log = logging.getLogger("studio")

MAX_RECORD_BYTES = 256_000
RECORD_TAG = "ACE_STUDIO_RECORD"
FULL = "disk_full"
PART = re.compile(r"\.[0-9a-f]{16}\.part")
_JPEG = "image/jpeg"
_NAME_BYTES = 80
_TAG_BYTES = 1_000_000  # the most that is read of a file while looking for its record
# In how many pieces: a file may be nothing but the heads of empty blocks, four bytes each.
_TAG_READS = 20_000
_RECORD_LEVELS = 16  # how deep a record may be nested

_ENCODINGS: dict[str, dict[str, Any]] = {
    "wav": {"format": "WAV", "subtype": "PCM_24"},
    "flac": {"format": "FLAC", "subtype": "PCM_24"},
    "mp3": {
        "format": "MP3",
        "subtype": "MPEG_LAYER_III",
        "bitrate_mode": "CONSTANT",
        "compression_level": 0.0,
    },
    # quality 8, about 256 kbit/s
    "ogg": {"format": "OGG", "subtype": "VORBIS", "compression_level": 0.2},
}


def write_wav(path: str | Path, samples: np.ndarray) -> None:
    """Write float32 [channels, samples] as a float WAV, every value exactly; raises `AudioError`."""
    save(Path(path), _encoded(samples, {"format": "WAV", "subtype": "FLOAT"}))


def encode(
    samples: np.ndarray, format: str, cancelled: Callable[[], bool] = lambda: False
) -> io.BytesIO:
    """Return [channels, samples] at 48 kHz as a file: "wav" or "flac" (24 bits), "mp3" (320 kbit/s) or "ogg".

    All four keep the number of samples and clip what is beyond full scale. Raises `AudioError`, or
    `CancelledError` if `cancelled()`, asked before each second of the song, is true.
    """
    if not all(np.isfinite(block).all() for block in one_second_blocks(samples)):
        raise AudioError(
            "The song contains samples that are not numbers.",
            "Generate it again with another seed.",
        )
    return _encoded(samples, _ENCODINGS[format], cancelled)


def tag(song: io.BytesIO, title: str, record: Mapping[str, Any], picture: bytes = b"") -> None:
    """Write a title, the record as JSON and a cover picture (JPEG) into the file that `encode` returned.

    The record goes into an ID3 TXXX frame (WAV, MP3) or a Vorbis comment (FLAC, OGG) called
    `RECORD_TAG`. Raises `AudioError` if the record is too long or has NaN or infinity in it, or if
    the file cannot be tagged.
    """
    text = _record_as_text(record)
    title = _one_line(_clean(title))
    song.seek(0)
    tag_class = _tag_class(song.read(4))
    song.seek(0)
    try:
        file = tag_class(song)
        if file.tags is None:
            file.add_tags()
        if isinstance(file, FLAC | OggVorbis):
            _fill_comments(file, title, text, picture)
        elif file.tags is not None:
            _fill_id3(file.tags, title, text, picture)
        song.seek(0)
        file.save(song)
    except MutagenError as error:
        raise AudioError(
            "The file could not be tagged.", "Generate it again in another format."
        ) from error


def _one_line(text: str) -> str:
    """Return `text` without control characters, its words separated by single spaces."""
    without_controls = [" " if unicodedata.category(c) == "Cc" else c for c in text]
    return " ".join("".join(without_controls).split())


def _record_as_text(record: Mapping[str, Any]) -> str:
    """Return the record as JSON; raises `AudioError` if it cannot be stored."""
    try:
        text = _clean(json.dumps(record, ensure_ascii=False, allow_nan=False))
    except ValueError as error:
        raise AudioError(
            "The record has values that are not numbers, so it was not saved in the file."
        ) from error
    if len(text.encode()) > MAX_RECORD_BYTES:
        raise AudioError(
            "The record of this song is too long to be saved in the file.", "Shorten the lyrics."
        )
    return text


def _fill_id3(tags: ID3, title: str, record: str, picture: bytes) -> None:
    tags.add(TIT2(encoding=3, text=title))
    tags.add(TXXX(encoding=3, desc=RECORD_TAG, text=record))
    if picture:
        tags.add(APIC(mime=_JPEG, type=PictureType.COVER_FRONT, data=picture))


def _fill_comments(file: FLAC | OggVorbis, title: str, record: str, picture: bytes) -> None:
    file["title"] = title
    file[RECORD_TAG] = record
    if not picture:
        return
    cover = Picture()
    cover.mime = _JPEG
    cover.type = PictureType.COVER_FRONT
    cover.data = picture
    if isinstance(file, FLAC):
        file.add_picture(cover)
    else:
        file["metadata_block_picture"] = base64.b64encode(cover.write()).decode()


def file_name(prompt: str, seed: int, format: str, mode: str = "generate") -> str:
    """Return a safe name such as "warm-lofi-piano-seed-7.wav"; other modes add theirs, as in "-cover-seed-7.wav"."""
    words = _slug(prompt)
    if mode != "generate":
        words = f"{words}-{_slug(mode)}".strip("-")
    # With the seed a name is never one that Windows reserves, such as "con" or "nul".
    return f"{words or 'song'}-seed-{seed}.{format}"


def plain_file_name(prompt: str, seed: int, format: str, mode: str = "generate") -> str:
    """Return a `file_name` in ASCII, for folders that accept no other letters."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()
    return file_name(plain, seed, format, mode)


# The hidden files that are being written.
_parts: set[Path] = set()
_naming = threading.Lock()
_stopping = threading.Event()


def stop() -> None:
    """Delete the files that are being written, and let no further one begin: the process is about to end."""
    _stopping.set()
    with _naming:
        for part in _parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def _not_stopping() -> Iterator[None]:
    """Create or rename a file within this, which `stop` waits for; raises CancelledError after it."""
    with _naming:
        if _stopping.is_set():
            raise CancelledError
        yield


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """Yield a hidden file in `folder`, which is deleted on exit; raises AudioError if it cannot be written."""
    part = folder / f".{secrets.token_hex(8)}.part"
    message = "The folder for the song cannot be written to."
    hint = "Check that it exists, that you may write to it, and that the disk has room."
    try:
        with _not_stopping():
            part.touch(exist_ok=False)
            _parts.add(part)
        message = "The file could not be written."
        hint = (
            "The disk may be full: free some space, or choose another output folder, and try again."
        )
        yield part
    except (OSError, MutagenError) as error:
        if is_disk_full(error):
            hint = "Free some space, or choose another output folder, and try again."
            raise AudioError("The disk is full.", hint, FULL) from error
        raise AudioError(message, hint) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        with _naming:
            _parts.discard(part)


def disk_problem(error: Exception) -> Problem | None:
    """Return the problem behind a failure to read or write a file ("disk_full" if the disk is), None for others."""
    if isinstance(error, AudioError):
        return Problem(error.code, error.message, hint=error.hint)
    if is_disk_full(error):
        return Problem(FULL, "The disk is full.", hint="Free some space and try again.")
    if not isinstance(error, OSError):
        return None
    log.error("a file operation failed", exc_info=error)
    return Problem("disk", f"A file could not be read or written: {error.strerror or error}.")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a hidden file in the same folder; it replaces `path` once it is complete, and is deleted after an error."""
    with aside(path.parent) as part:
        yield part
        with _not_stopping():
            os.replace(part, path)


def claim(part: Path, path: Path) -> Path:
    """Rename `part` to the first free of the names "name", "name-2", "name-3" ...; never overwrites a file."""
    candidates = free_names(path)
    while True:
        candidate = next(candidates)
        with _not_stopping():
            try:
                candidate.touch(exist_ok=False)
            except FileExistsError:
                continue  # another song was faster
            try:
                return part.replace(candidate)
            except OSError:
                candidate.unlink()
                raise


def free_names(path: Path) -> Iterator[Path]:
    numbered = (
        path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2)
    )
    for candidate in itertools.chain([path], numbered):
        if not os.path.lexists(candidate):
            yield candidate


def save(path: Path, file: io.BytesIO) -> None:
    """Write a file whole or not at all; raises `AudioError`."""
    with written_aside(path) as part:
        part.write_bytes(file.getbuffer())


def _encoded(
    samples: np.ndarray, encoding: dict, cancelled: Callable[[], bool] = lambda: False
) -> io.BytesIO:
    """Encode [channels, samples] in blocks of a second: one large write of Vorbis crashes libsndfile."""
    # In memory, where it is tagged too: libsndfile does not report a write that fails while it
    # closes a file.
    data = io.BytesIO()
    with sf.SoundFile(data, "w", SAMPLE_RATE, samples.shape[0], **encoding) as file:
        for block in one_second_blocks(samples):
            if cancelled():
                raise CancelledError
            file.write(_rows(block, encoding["subtype"]))
    return data


def _rows(block: np.ndarray, subtype: str) -> np.ndarray:
    """Return a block [channels, samples] as libsndfile takes it for `subtype`."""
    if subtype == "FLOAT":
        return rows_of(block)
    rows = rows_of(np.clip(block, -1, 1))
    if subtype != "PCM_24":
        return rows
    # As the upper bytes of int32: libsndfile truncates floats for WAV.
    return np.minimum(np.rint(rows * 2.0**23), 2**23 - 1).astype(np.int32) << 8


def _clean(text: str) -> str:
    """Return `text` with question marks for halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def _slug(text: str) -> str:
    """Return the words of a text, in any script, in lower case and joined by hyphens, without HTML tags."""
    text = re.sub(r"</?[a-zA-Z][^<>]*>", " ", html.unescape(text[:2000]))
    slug = ""
    for character in unicodedata.normalize("NFKC", re.sub("['’]", "", text)).lower():
        if _is_invisible(character):
            continue
        in_word = slug[-1:] not in ("", "-")
        slug += character if _belongs_to_word(character, in_word) else "-"
    return _shortened(re.sub("-+", "-", slug).strip("-"))


def _is_invisible(character: str) -> bool:
    """Tell whether a character is a joiner, a direction mark or the like, invisible within a word."""
    name = unicodedata.name(character, "")
    return unicodedata.category(character) == "Cf" or name.startswith("VARIATION SELECTOR")


def _belongs_to_word(character: str, in_word: bool) -> bool:
    category = unicodedata.category(character)
    if category in ("Mn", "Mc"):  # accents and vowel signs belong to the letter before them
        return in_word
    return category[0] in "LN"


def _shortened(slug: str) -> str:
    """Return as many whole words as fit into a name, or the start of a single long one."""
    data = slug.encode()
    if len(data) <= _NAME_BYTES:
        return slug
    words, hyphen, _ = data[: _NAME_BYTES + 1].rpartition(b"-")
    if not hyphen:
        words = data[:_NAME_BYTES]
    return words.decode("utf-8", "ignore").strip("-")


def read_record(path: str | Path) -> dict | None:
    """Return the record in a file's tags, or None if there is none that is acceptable JSON.

    It is untrusted: nothing is certain but that it nests lists and dicts of valid text and finite
    numbers.
    """
    try:
        text = _record_text(Path(path))
        if text is None or len(text.encode()) > MAX_RECORD_BYTES:
            return None
        record = json.loads(text)
        if not isinstance(record, dict) or not _nested(record, _RECORD_LEVELS):
            return None
        # refuses NaN, 1e999 and lone surrogates
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
        return record
    except Exception:  # parsers fail in many ways on a hostile file, which then has no record
        return None


def _tag_class(mark: bytes) -> type[WAVE | FLAC | OggVorbis | MP3]:
    """Return the class that reads and writes the tags of a file with the first four bytes `mark`."""
    if mark == b"RIFF":
        return WAVE
    if mark == b"fLaC":
        return FLAC
    if mark == b"OggS":
        return OggVorbis
    return MP3


class _Limited(io.FileIO):
    """A file that seems to end once `_TAG_BYTES` were read, or it was read `_TAG_READS` times.

    So endless tags cost little memory and time.
    """

    bytes_left = _TAG_BYTES
    reads_left = _TAG_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            return b""
        if size is None or size < 0:
            size = self.bytes_left
        data = super().read(min(size, self.bytes_left)) or b""
        self.bytes_left -= len(data)
        return data


def _record_text(path: Path) -> str | None:
    """Return the text of a file's record tag, None if it has none."""
    with path.open("rb") as file:
        tag_class = _tag_class(file.read(4))
    with _Limited(path) as file:
        if tag_class in (FLAC, OggVorbis):
            values = tag_class(file).get(RECORD_TAG)
            return values[0] if values else None
        # Frames are left packed: mutagen would inflate a compressed one to any size.
        options = {"known_frames": {}, "translate": False, "load_v1": False}
        if tag_class is WAVE:
            tags = WAVE(file, **options).tags
        else:
            tags = ID3(file, **options)
    if tags is None:
        return None
    for frame in tags.unknown_frames:
        if frame.startswith(b"TXXX") and frame[8:10] == b"\0\0":  # neither compressed nor encrypted
            encoding = ("latin-1", "utf-16", "utf-16-be", "utf-8")[frame[10]]
            name, _, text = frame[11:].decode(encoding).partition("\0")
            if name == RECORD_TAG:
                return text.lstrip("\ufeff").rstrip("\0")
    return None


def _nested(value: object, levels: int) -> bool:
    """Tell whether lists and dicts within `value` are at most `levels` deep."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return True
    return levels > 0 and all(_nested(item, levels - 1) for item in value)


# --- the cover picture ----------------------------------------------------------------------------

BARS = 40
TAG_PIXELS = 512
PAGE_PIXELS = 144


def picture_for_tags(samples: np.ndarray, seed: int, key: str) -> bytes:
    """Return the cover picture of a take [..., samples], drawn from its seed and key ("" if unknown), as JPEG."""
    return _picture(samples, seed, key, TAG_PIXELS, "JPEG")


def picture_for_page(samples: np.ndarray, seed: int, key: str) -> str:
    """Return the same picture, small, as a data URL; any waveform of the song will do."""
    picture = _picture(samples, seed, key, PAGE_PIXELS, "WEBP")
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def _picture(samples: np.ndarray, seed: int, key: str, pixels: int, kind: str) -> bytes:
    random = np.random.default_rng(seed)
    hue = _hue(key) if key else random.uniform()
    image = _coloured(random, hue, key.endswith("minor"), pixels)
    bars = _bars(_heights(samples), ring=bool(random.integers(2)))
    mask = _drawn_bars(bars, pixels)
    image.paste((255, 255, 255), mask=mask)
    data = io.BytesIO()
    image.save(data, kind, quality=85)
    return data.getvalue()


def _coloured(random: np.random.Generator, hue: float, dark: bool, pixels: int) -> Image.Image:
    """Return a background of `hue` with three lights of neighbouring hues."""
    places = np.arange(pixels, dtype=np.float32) / pixels
    # One plane for each of red, green and blue.
    picture = np.ones((3, pixels, pixels), np.float32)
    picture *= _plane(_colour(hue, 0.75, 0.25 if dark else 0.35))
    for turn in random.uniform((-0.12, 0.04, 0.1), (-0.04, 0.12, 0.3)):
        left, top = random.uniform(-0.1, 1.1, 2)
        width = random.uniform(0.3, 0.6)
        # A round bell is the product of one across and one down.
        across = np.exp(-(((places - left) / width) ** 2))
        down = np.exp(-(((places - top) / width) ** 2))
        light = np.outer(down, across)
        picture += light * (_plane(_colour(hue + turn, 0.62, 0.92)) - picture)
    levels = (255 * picture).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


def _plane(colour: np.ndarray) -> np.ndarray:
    """Return a colour [3] in the shape [3, 1, 1], to be spread over a picture."""
    return colour.astype(np.float32)[:, None, None]


def _drawn_bars(bars: np.ndarray, pixels: int) -> Image.Image:
    """Return a mask with `bars` as thick lines with round ends."""
    finer = 4  # each pixel is the mean of so many squared, for smooth edges
    size = finer * pixels
    radius = pixels // BARS
    mask = Image.new("L", (size, size))
    draw = ImageDraw.Draw(mask)
    for line in bars * size:
        draw.line(line.ravel().tolist(), fill=255, width=2 * radius)
        for x, y in line:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    mask = mask.reduce(finer)
    return mask.point(lambda value: value * 0.9)


def _heights(samples: np.ndarray) -> np.ndarray:
    """Return the peaks of `BARS` equal parts of the song, the highest at 1."""
    samples = np.atleast_2d(samples)
    edges = np.linspace(0, samples.shape[-1], BARS + 1).astype(int)
    heights = []
    for start, end in itertools.pairwise(edges):
        part = samples[..., start:end].astype(np.float32)
        heights.append(np.abs(part).max(initial=0))
    return np.array(heights) / max(*heights, 1e-6)


def _bars(heights: np.ndarray, ring: bool) -> np.ndarray:
    """Return lines [BARS, 2 ends, x and y] on a picture of size 1: outwards from a circle, or side by side."""
    if ring:
        angles = 2 * np.pi * np.arange(BARS) / BARS - np.pi / 2
        outwards = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        inner = 0.17 * outwards
        outer = (0.2 + 0.2 * heights)[:, None] * outwards
        return 0.5 + np.stack([inner, outer], axis=1)
    across = np.linspace(-0.36, 0.36, BARS)
    up = 0.3 * heights
    lower = np.stack([across, -up], axis=1)
    upper = np.stack([across, up], axis=1)
    return 0.5 + np.stack([lower, upper], axis=1)


def _hue(key: str) -> float:
    """Return a key's position on the circle of fifths, from 0 to 1; a minor key lies next to its relative major."""
    fifths = "FCGDAEB".index(key[0]) - 1
    if key[1] == "#":
        fifths += 7
    elif key[1] == "b":
        fifths -= 7
    if key.endswith("minor"):
        return (fifths - 3) % 12 / 12 + 1 / 24
    return fifths % 12 / 12


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))
