"""Advice on lyrics that the song model would stumble over. It never blocks, and never raises on any text.

ACE-Step reads section tags on lines of their own, sings best at 6 to 10 syllables a line, and takes
2,048 tokens of lyrics (its guide's "Tutorial.md"; ACE-Step-1.5 #1153: unknown tags and double spaces
make it skip lines).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from limits import MAX_LYRIC_TOKENS, shown
from lyrics_letters import is_ideograph, syllables
from lyrics_tags import HEADINGS, SUNG, TAG, Tag, as_read, heading_of, is_delivery, parse_tag
from lyrics_tidy import BULLET, counted_heading, repeated

MOST_SYLLABLES = 15  # half as much again as the 10 that are sung best
# fast rap reaches four, but no song is sung from its first second to its last
MOST_WORDS_A_SECOND = 3.0
MOST_ADVICE = 50
IDEOGRAPHS_A_WORD = 1.5  # three Chinese or Japanese characters count as two words

_DOUBLE_SPACE = re.compile("[ \u00a0]{2}")


@dataclass(frozen=True)
class Advice:
    """One thing to look at: `line` counts from 1, 0 means the whole text."""

    line: int
    message: str


def lint(
    lyrics: str,
    *,
    seconds: float | None = None,
    language: str = "unknown",
    tokens: int | None = None,
) -> list[Advice]:
    """Return up to 50 pieces of advice on `lyrics`: first on the whole text, then line by line.

    `seconds` is the length of the song and `tokens` that of the lyrics in the song model's own
    tokens; None leaves them out. `language` is a code of `limits.LANGUAGES`.
    """
    lines = as_read(lyrics or "").split("\n")
    on_lines = sorted(_on_lines(lines, language), key=lambda advice: advice.line)
    found = [*_on_whole(lines, seconds, tokens), *on_lines]
    if len(found) <= MOST_ADVICE:
        return found
    first_left_out = found[MOST_ADVICE - 1]
    left_out = len(found) - MOST_ADVICE + 1
    last = Advice(first_left_out.line, f"And {left_out} more from here on.")
    return [*found[: MOST_ADVICE - 1], last]


def _on_whole(lines: list[str], seconds: float | None, tokens: int | None) -> Iterator[Advice]:
    """Yield advice on the length of the text."""
    if tokens is not None and tokens > MAX_LYRIC_TOKENS:
        message = (
            f"The lyrics have {tokens:,} tokens; the model reads the first {MAX_LYRIC_TOKENS:,}."
        )
        yield Advice(0, message)
    if seconds is None or not 0 < seconds < math.inf:
        return
    words = round(sum(_words(line) for line in lines if not heading_of(line.strip())))
    fit = int(seconds * MOST_WORDS_A_SECOND)
    if words > fit:
        message = (
            f"{words:,} words are more than {seconds:g} seconds can hold (about {fit:,}): the model would rush or skip "
            "lines. Make the song longer or the lyrics shorter."
        )
        yield Advice(0, message)


def _words(line: str) -> float:
    """Count words; three Chinese or Japanese characters count as two."""
    text = TAG.sub(" ", line)
    ideographs = sum(map(is_ideograph, text))
    without_ideographs = "".join(" " if is_ideograph(letter) else letter for letter in text)
    words = [word for word in without_ideographs.split() if any(map(str.isalnum, word))]
    return len(words) + ideographs / IDEOGRAPHS_A_WORD


def _on_lines(lines: list[str], language: str) -> Iterator[Advice]:
    """Yield advice on single lines, and on sections without words where they begin."""
    first_uses: dict[Tag, int] = {}  # the line in which each section was first seen
    empty: tuple[int, Tag] | None = None  # the section that has had no words yet, and its line
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if _DOUBLE_SPACE.search(line):
            yield Advice(number, "Two spaces in a row make the model skip words; leave one.")
        tag = heading_of(line)
        if tag is None:
            if any(map(str.isalnum, TAG.sub("", line))):
                empty = None
            yield from _on_sung_line(number, line, language)
            continue
        if not TAG.fullmatch(line):
            yield Advice(number, f"{shown(line)} would be sung; write the section as {tag}.")
        if empty is not None and empty[1] == tag:
            yield Advice(number, f"{tag} appears twice in a row; keep one.")
        else:
            yield from _on_empty_section(empty)
            if tag.number and tag in first_uses:
                message = (
                    f"{tag} is in line {first_uses[tag]} already; give this one another number."
                )
                yield Advice(number, message)
        first_uses.setdefault(tag, number)
        empty = (number, tag)
    yield from _on_empty_section(empty)


def _on_empty_section(section: tuple[int, Tag] | None) -> Iterator[Advice]:
    if section is None:
        return
    number, tag = section
    if tag.name in SUNG:
        yield Advice(number, f"{tag} has no lines; write some, or remove it.")


def _on_sung_line(number: int, line: str, language: str) -> Iterator[Advice]:
    """Yield advice on a line that opens no section."""
    message = _stray_heading(line)
    if message:
        yield Advice(number, message)
    if BULLET.match(line):
        yield Advice(number, "A bullet makes the model stumble; remove it.")
    count = syllables(TAG.sub(" ", line), language)
    if count is not None and count > MOST_SYLLABLES:
        message = f"About {count} syllables in one line; 6 to 10 are sung best. Break it in two."
        yield Advice(number, message)


def _stray_heading(line: str) -> str:
    """Return what is wrong with the tags and headings in a line that opens no section, or ""."""
    tags = TAG.findall(line)
    is_only_tags = bool(tags) and not TAG.sub("", line).strip()
    if is_only_tags and len(tags) > 1:
        return "Several tags in one line; keep one and put the rest behind a dash: [Chorus - anthemic]."
    if is_only_tags and not is_delivery(tags[0]):
        return (
            f"The model does not know {shown(line)}; use tags such as [Verse], [Chorus], [Bridge]."
        )
    if any(parse_tag(text) for text in tags):
        return "A section tag needs a line of its own."
    if line.count("[") != line.count("]"):
        return "A square bracket has no partner; the model may sing the tag."
    tag = parse_tag(line)
    if tag and tag.name in HEADINGS and not tag.modifier and line[0].isupper():
        return f"{shown(line)} would be sung; write the section as {tag}."
    heading = counted_heading(line)
    if heading is not None:
        return f"{shown(line)} would be sung; write the section as {heading}."
    if not tags and repeated(line)[1] > 1:
        return "A repeat count would be sung; write the line out that many times."
    return ""
