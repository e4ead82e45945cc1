"""How long a song should be if nobody says so: from its lyrics, or from the style that its prompt
names.

A planner decides the length by itself; this is for songs without one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from limits import INSTRUMENTAL, LIMITS, preset
from lyrics_lint import parse_heading, syllables
from params import GenerateRequest

LENGTHS = preset("lengths")
BUILT_IN_SECONDS = 60.0  # of an instrumental piece by the built-in engine
USUAL_BPM = 100
# 6/8 is counted in quarters, as BPM is.
BEATS_PER_BAR = {"": 4, "2": 2, "3": 3, "4": 4, "6": 3}
BARS_OF_A_LINE = 2
BARS_OF_A_SHORT_LINE = 1
SHORT_LINE_SYLLABLES = 4
SYLLABLES_A_SECOND = 4.0  # nobody sings faster for long
BARS_OF_AN_INSTRUMENTAL_PART = 4
# Before the first line and after the last one, where the lyrics have no such part.
BARS_OF_AN_INTRO = 2
BARS_OF_AN_OUTRO = 4


@dataclass(frozen=True)
class Length:
    """A length in seconds, and what it was taken from."""

    seconds: float
    source: Literal["planner", "lyrics", "style"]


@dataclass(frozen=True)
class Automatic:
    """What a song of automatic length may become: up to `longest` seconds by its planner, else `guess`."""

    longest: float
    guess: Length


def guess(request: GenerateRequest, built_in: bool = False) -> Length:
    """Return the length that suits the request's lyrics; without lyrics, its style.

    `built_in` tells that the built-in engine plays.
    """
    lyrics = request.sung_lyrics()
    if lyrics != INSTRUMENTAL:
        return Length(_allowed(_sung_seconds(lyrics, request)), "lyrics")
    if built_in:
        return Length(BUILT_IN_SECONDS, "style")
    return Length(_allowed(_style_seconds(request.prompt)), "style")


def _allowed(seconds: float) -> float:
    limit = LIMITS["duration"]
    return float(min(max(round(seconds), limit.low), limit.high))


def _sung_seconds(lyrics: str, request: GenerateRequest) -> float:
    bar = BEATS_PER_BAR[request.time_signature] * 60 / (request.bpm or USUAL_BPM)
    parts = _parts(lyrics)
    seconds = 0.0
    if parts[0]:
        seconds += BARS_OF_AN_INTRO * bar
    for lines in parts:
        if not lines:
            seconds += BARS_OF_AN_INSTRUMENTAL_PART * bar
        for line in lines:
            seconds += _line_seconds(line, bar, request.language)
    if parts[-1]:
        seconds += BARS_OF_AN_OUTRO * bar
    return seconds


def _parts(lyrics: str) -> list[list[str]]:
    """Return the sung lines under each section tag, and those before the first one."""
    parts: list[list[str]] = [[]]
    for line in lyrics.splitlines():
        text = line.strip()
        if parse_heading(text) is not None:
            parts.append([])
        elif text:
            parts[-1].append(text)
    if len(parts) > 1 and not parts[0]:
        return parts[1:]
    return parts


def _line_seconds(line: str, bar: float, language: str) -> float:
    count = syllables(line, language)
    if count is None:
        return BARS_OF_A_LINE * bar
    bars = BARS_OF_A_LINE
    if count <= SHORT_LINE_SYLLABLES:
        bars = BARS_OF_A_SHORT_LINE
    return max(bars * bar, count / SYLLABLES_A_SECOND)


def _style_seconds(prompt: str) -> float:
    words = prompt.casefold()
    for style, seconds in LENGTHS["styles"].items():
        if re.search(rf"(?<!\w){re.escape(style)}(?!\w)", words):
            return float(seconds)
    return float(LENGTHS["usual"])
