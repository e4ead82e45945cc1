"""A cover picture for each song: lights in the colours of its key, placed by its seed, behind its own waveform."""

from __future__ import annotations

import base64
import colorsys
import io
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

BARS = 40
TAG_PIXELS, PAGE_PIXELS = 512, 144
_SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def for_tags(samples: np.ndarray, record: Mapping[str, Any]) -> bytes:
    """Return the picture of a song [..., samples] with the record of one take, as JPEG."""
    return _encoded(samples, record, TAG_PIXELS, "JPEG")


def for_page(samples: np.ndarray, record: Mapping[str, Any]) -> str:
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
