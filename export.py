"""A song as a file: encoded, tagged with its record and a cover picture, named; and the record read back.

The tags of a file that somebody chose are untrusted: little is read, and what it holds is checked for size and depth.
"""

from __future__ import annotations

import base64
import colorsys
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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import pairwise
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

from audio import AudioError
from events import is_disk_full
from levels import rows_of, seconds_of
from limits import SAMPLE_RATE

MAX_RECORD_BYTES = 256_000
RECORD_TAG = "ACE_STUDIO_RECORD"
JPEG = "image/jpeg"
FULL = "disk_full"
PART = re.compile(r"\.[0-9a-f]{16}\.part")
_parts: set[Path] = set()
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


def write_wav(path: str | Path, samples: np.ndarray) -> None:
    """Write float32 [channels, samples] as a float WAV, every value as it is; raises `AudioError`."""
    with written_aside(Path(path)) as part:
        _write(part, samples, {"format": "WAV", "subtype": "FLOAT"})


# --- writing ------------------------------------------------------------------------------------------------------


def encode(samples: np.ndarray, path: str | Path, format: str, cancelled: Callable[[], bool] = lambda: False) -> Path:
    """Write [channels, samples] at 48 kHz as "wav" or "flac" (24 bits), "mp3" (320 kbit/s) or "ogg"; return the path.

    All four keep the count of samples. Samples beyond full scale are clipped, never wrapped. The file appears whole or
    not at all. `cancelled` is asked before each second of the song.

    Raises:
        AudioError: the format is unknown, a sample is not a number, or the file could not be written.
        CancelledError: `cancelled()` was true.
    """
    if format not in _ENCODINGS:
        raise AudioError("A song can be saved as wav, flac, mp3 or ogg.", "Choose one of these formats.")
    if not all(np.isfinite(block).all() for block in seconds_of(samples)):
        raise AudioError("The song holds samples that are not numbers.", "Make it again with another seed.")
    with written_aside(Path(path)) as part:
        _write(part, samples, _ENCODINGS[format], cancelled)
    return Path(path)


def write_tags(path: str | Path, title: str, record: dict, picture: bytes = b"") -> None:
    """Write a title, the record as JSON and a cover picture (JPEG) into a file that `encode` made, not its samples.

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
    with written_aside(Path(path)) as part:
        shutil.copyfile(path, part)
        file = _tag_reader(part)(part)
        if file.tags is None:
            file.add_tags()
        if isinstance(file.tags, ID3):
            file.tags.add(TIT2(encoding=3, text=title))
            file.tags.add(TXXX(encoding=3, desc=RECORD_TAG, text=text))
            if picture:
                file.tags.add(APIC(mime=JPEG, type=PictureType.COVER_FRONT, data=picture))
        else:
            file["title"] = title
            file[RECORD_TAG] = text
            if picture:
                _add_picture(file, picture)
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


# --- writing: helpers ---------------------------------------------------------------------------------------------


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """Give a hidden file in `folder`, which is gone at the end; raises AudioError where it cannot be written."""
    part = folder / f".{secrets.token_hex(8)}.part"
    try:
        part.touch(exist_ok=False)
    except OSError as error:
        hint = "Check that it exists, that it may be written to, and that the disk has room."
        raise _unwritten("The folder for the song cannot be written to.", hint, error) from error
    _parts.add(part)
    try:
        yield part
    except (OSError, sf.SoundFileError, AssertionError, MutagenError) as error:  # soundfile asserts a whole write
        hint = "The disk may be full: free some space, or choose another output folder, and try again."
        raise _unwritten("The file could not be written.", hint, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        _parts.discard(part)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a hidden file in the same folder, which takes the place of `path` once it is whole and is gone otherwise."""
    with aside(path.parent) as part:
        yield part
        os.replace(part, path)


def claim(part: Path, path: Path) -> Path:
    """Give the file `part` the first free of the names "name", "name-2", "name-3" ..., never one that is taken."""
    for candidate in free_names(path):
        with suppress(FileExistsError):
            try:
                os.link(part, candidate)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                candidate.touch(exist_ok=False)
                os.replace(part, candidate)
            return candidate
    raise AudioError(f"There are too many files called {path.name} in the output folder.", code="disk")


def free_names(path: Path) -> Iterator[Path]:
    """Yield `path`, then "name-2", "name-3" and so on, those that are free now."""
    for number in range(1, 100_000):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not os.path.lexists(candidate):
            yield candidate


def discard_parts() -> None:
    """Remove what is being written in this process, because it is about to end."""
    for part in list(_parts):
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _add_picture(file: FLAC | OggVorbis, data: bytes) -> None:
    picture = Picture()
    picture.mime, picture.type, picture.data = JPEG, PictureType.COVER_FRONT, data
    if isinstance(file, FLAC):
        file.add_picture(picture)
    else:
        file["metadata_block_picture"] = base64.b64encode(picture.write()).decode()


def _unwritten(message: str, hint: str, error: Exception) -> AudioError:
    if is_disk_full(error):
        return AudioError("The disk is full.", "Free some space, or choose another output folder, and try again.", FULL)
    return AudioError(message, hint)


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


def _write(path: Path, samples: np.ndarray, encoding: dict, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Write [channels, samples] in blocks of a second: one large write of Vorbis ends the process (libsndfile)."""
    exact = encoding["subtype"] == "FLOAT"
    prepare = (
        rows_of if exact else _as_24_bits if encoding["subtype"] == "PCM_24" else lambda b: rows_of(np.clip(b, -1, 1))
    )
    with _Remembering(path, "w+") as target:
        try:
            with sf.SoundFile(target, "w", SAMPLE_RATE, samples.shape[0], **encoding) as file:
                for block in seconds_of(samples):
                    if cancelled():
                        raise CancelledError
                    file.write(prepare(block))
        except (sf.SoundFileError, AssertionError) as error:
            raise target.failure or error from None
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


# --- the cover picture ----------------------------------------------------------------------------------------------

BARS = 40
TAG_PIXELS, PAGE_PIXELS = 512, 144
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def picture_for_tags(samples: np.ndarray, record: Mapping[str, Any]) -> bytes:
    """Return the picture of a song [..., samples] with the record of one take, as JPEG."""
    return _encoded(samples, record, TAG_PIXELS, "JPEG")


def picture_for_page(samples: np.ndarray, record: Mapping[str, Any]) -> str:
    """Return the same picture, small, as an address that holds it; any waveform of the song will do."""
    return f"data:image/webp;base64,{base64.b64encode(_encoded(samples, record, PAGE_PIXELS, 'WEBP')).decode()}"


def _encoded(samples: np.ndarray, record: Mapping[str, Any], pixels: int, kind: str) -> bytes:
    key = (record.get("plan") or {}).get("key") or record.get("request", {}).get("key") or ""
    seed = int(record["takes"][0]["seed"])
    data = io.BytesIO()
    _draw(_heights(samples), seed, key, pixels).save(data, kind, quality=85)
    return data.getvalue()


def _heights(samples: np.ndarray) -> np.ndarray:
    """Return how high each bar is, from 0 to 1."""
    samples = np.atleast_2d(samples)
    edges = np.linspace(0, samples.shape[-1], BARS + 1).astype(int)
    bars = [np.abs(samples[..., a:b].astype(np.float32)).max(initial=0) for a, b in pairwise(edges)]
    return np.array(bars) / max(*bars, 1e-6)


def _draw(heights: np.ndarray, seed: int, key: str, pixels: int) -> Image.Image:
    random = np.random.default_rng(seed)
    hue = _hue(key) if key else random.uniform()
    deep = 0.25 if key.endswith("minor") else 0.35
    y, x = np.mgrid[0:pixels, 0:pixels] / pixels
    picture = np.full((pixels, pixels, 3), _colour(hue, 0.75, deep))
    for turn in random.uniform((-0.12, 0.04, 0.1), (-0.04, 0.12, 0.3)):
        (left, top), width = random.uniform(-0.1, 1.1, 2), random.uniform(0.3, 0.6)
        light = np.exp(-((x - left) ** 2 + (y - top) ** 2) / width**2)[..., None]
        picture += light * (_colour(hue + turn, 0.62, 0.92) - picture)
    image = Image.fromarray((255 * picture).astype(np.uint8))
    # Drawn larger, so that its edges are smooth.
    mask = Image.new("L", (4 * pixels, 4 * pixels))
    lines = _ring(heights) if random.integers(2) else _row(heights)
    for line in lines:
        _bar(ImageDraw.Draw(mask), np.array(line) * 4 * pixels, pixels // BARS)
    mask = mask.resize(image.size, Image.Resampling.LANCZOS).point(lambda value: value * 0.9)
    image.paste((255, 255, 255), mask=mask)
    return image


def _row(heights: np.ndarray) -> list[tuple[float, ...]]:
    """Return the bars as lines (x, y, x, y) side by side across the picture, whose sides have the length 1."""
    places = np.linspace(0.14, 0.86, BARS)
    return [(x, 0.5 - 0.3 * height, x, 0.5 + 0.3 * height) for x, height in zip(places, heights, strict=True)]


def _ring(heights: np.ndarray) -> list[tuple[float, ...]]:
    """Return the bars as lines that lead outwards from a circle."""
    lines = []
    for at, height in enumerate(heights):
        x, y = (f(2 * math.pi * at / BARS - math.pi / 2) for f in (math.cos, math.sin))
        inner, outer = 0.17, 0.2 + 0.2 * height
        lines.append((0.5 + inner * x, 0.5 + inner * y, 0.5 + outer * x, 0.5 + outer * y))
    return lines


def _bar(draw: ImageDraw.ImageDraw, line: np.ndarray, radius: int) -> None:
    """Draw a line with round ends."""
    draw.line(line.tolist(), fill=255, width=2 * radius)
    for x, y in line.reshape(2, 2):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _hue(key: str) -> float:
    """Return the place of a key on the circle of fifths, from 0 to 1; a minor key lies beside its relative major."""
    tonic = _SEMITONES[key[0]] + key.count("#") - key[1:].split()[0:1].count("b") + 3 * key.endswith("minor")
    return 7 * tonic % 12 / 12 + key.endswith("minor") / 24


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))
