"""A song's length if nobody chose one: from its lyrics, or from the style that its prompt names.

A planner decides the length by itself; this is for songs without a planner.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from limits import INSTRUMENTAL, LIMITS, preset
from lyrics_letters import syllables
from lyrics_tags import parse_heading
from params import GenerateRequest

LENGTHS = preset("lengths")
BUILT_IN_SECONDS = 60.0  # of an instrumental piece by the built-in engine
USUAL_BPM = 100
# 6/8 is counted in quarters, as BPM is.
BEATS_PER_BAR = {"": 4, "2": 2, "3": 3, "4": 4, "6": 3}
BARS_PER_LINE = 2
BARS_PER_SHORT_LINE = 1
SHORT_LINE_SYLLABLES = 4
SYLLABLES_PER_SECOND = 4.0  # nobody sings faster for long
BARS_PER_INSTRUMENTAL_SECTION = 4
# Added before the first line and after the last one if the lyrics have no such section.
INTRO_BARS = 2
OUTRO_BARS = 4


@dataclass(frozen=True)
class Length:
    """A length in seconds and where it came from."""

    seconds: float
    source: Literal["planner", "lyrics", "style"]


@dataclass(frozen=True)
class Automatic:
    """The length of a song that nobody chose: up to `longest` seconds if planned, else `guess`."""

    longest: float
    guess: Length


@dataclass(frozen=True)
class SungLength:
    """How long lyrics take at a tempo."""

    seconds: float  # with the usual intro and outro
    least: float  # without them
    bpm: int


def sung_length(lyrics: str, bpm: int | None, time_signature: str, language: str) -> SungLength:
    """Return how long `lyrics` take; without a tempo, at the usual one."""
    bpm = bpm or USUAL_BPM
    bar_seconds = BEATS_PER_BAR[time_signature] * 60 / bpm
    sections = _sections(lyrics)
    least = 0.0
    for lines in sections:
        if not lines:
            least += BARS_PER_INSTRUMENTAL_SECTION * bar_seconds
        for line in lines:
            least += _line_seconds(line, bar_seconds, language)
    seconds = least
    if sections[0]:
        seconds += INTRO_BARS * bar_seconds
    if sections[-1]:
        seconds += OUTRO_BARS * bar_seconds
    return SungLength(seconds, least, bpm)


def guess(request: GenerateRequest, built_in: bool = False) -> Length:
    """Return the length that suits the request's lyrics; without lyrics, its style.

    `built_in` says that the built-in engine plays it.
    """
    lyrics = request.sung_lyrics()
    if lyrics != INSTRUMENTAL:
        sung = sung_length(lyrics, request.bpm, request.time_signature, request.language)
        return Length(_allowed(sung.seconds), "lyrics")
    if built_in:
        return Length(BUILT_IN_SECONDS, "style")
    return Length(_allowed(_style_seconds(request.prompt)), "style")


def _allowed(seconds: float) -> float:
    limit = LIMITS["duration"]
    return float(min(max(round(seconds), limit.low), limit.high))


def _sections(lyrics: str) -> list[list[str]]:
    """Return the sung lines under each section tag, and those before the first one."""
    sections: list[list[str]] = [[]]
    for line in lyrics.splitlines():
        text = line.strip()
        if parse_heading(text) is not None:
            sections.append([])
        elif text:
            sections[-1].append(text)
    if len(sections) > 1 and not sections[0]:
        return sections[1:]
    return sections


def _line_seconds(line: str, bar_seconds: float, language: str) -> float:
    count = syllables(line, language)
    if count is None:
        return BARS_PER_LINE * bar_seconds
    bars = BARS_PER_LINE
    if count <= SHORT_LINE_SYLLABLES:
        bars = BARS_PER_SHORT_LINE
    return max(bars * bar_seconds, count / SYLLABLES_PER_SECOND)


def _style_seconds(prompt: str) -> float:
    words = prompt.casefold()
    for style, seconds in LENGTHS["styles"].items():
        if re.search(rf"(?<!\w){re.escape(style)}(?!\w)", words):
            return float(seconds)
    return float(LENGTHS["usual"])
