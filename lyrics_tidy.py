"""Lyrics tidied into ACE-Step's form: a chat model's reply, and what word processors and web pages add.

Only headings that are known sections are rewritten; every other bracket stays. What surrounds a
reply's lyrics (a greeting, code fences, a title, an offer to change them) is removed only if it is
clearly not part of them.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace

from lyrics_tags import (
    HEADINGS,
    LONGEST_HEADING,
    TAG,
    Tag,
    as_read,
    heading_of,
    parse_heading,
    parse_tag,
)

# --- a chat model's reply -------------------------------------------------------------------------

_RULE = re.compile(r"[-*_=]{3,}")
_FENCE = re.compile(r"```\w*")
_TITLE = re.compile(r"#{1,6} .+|\*\*[^*]+\*\*|(?i:[*_ ]*(?:song )?title[*_ ]*[:：]).*")
_GREETING = re.compile(
    r"(?i)(?:sure|certainly|of course|absolutely|okay|ok|great|here(?:['’]s| is| are)|below (?:is|are)|"
    r"i(?:['’]ve| have) (?:written|created|crafted))\b.*"
)
_FAREWELL = re.compile(
    r"(?i)(?:let me know|feel free|i hope (?:you|this|these)|hope (?:you|this|these)|would you like|if you(?:['’]d)? "
    r"(?:would )?(?:like|want|need)|(?:please )?note(?: that)?\b|this song|these lyrics).*"
)
_SPEAKS_OF_LYRICS = re.compile(
    r"(?i)\b(?:lyrics?|songs?|let me know|feel free|adjust\w*|chang\w+|version)\b"
)


def tidy_lyrics(text: str) -> str:
    """Tidy all lines, and remove what surrounds the lyrics: code fences, rules, a title, greeting and farewell."""
    lines = _unfenced([tidy_line(line) for line in text.split("\n")])
    kept = "\n".join(line for line in lines if not _RULE.fullmatch(line)).strip()
    lines = _without_farewell(_without_greeting(kept.split("\n")))
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip()


def tidy_draft(text: str) -> str:
    """Tidy the lines of a reply that are complete; the last one is still being written."""
    *complete, unfinished = text.split("\n")
    return "\n".join((*map(tidy_line, complete), unfinished)).lstrip("\n")


@functools.lru_cache(maxsize=512)
def tidy_line(line: str) -> str:
    """Write a known section heading as ACE-Step reads it ("**Verse 1:**" as "[Verse 1]"); remove extra spaces."""
    tag = parse_heading(line)
    if tag:
        return str(tag)
    return re.sub("[ \t\u00a0]+", " ", line).strip()


def _unfenced(lines: list[str]) -> list[str]:
    """Return what is between the code fences if all sections are there; without a closing fence the reply was cut."""
    fences = [index for index, line in enumerate(lines) if _FENCE.fullmatch(line)]
    if not fences or len(fences) > 2:
        return lines
    first = fences[0]
    last = fences[1] if len(fences) == 2 else len(lines)
    inside = lines[first + 1 : last]
    outside = [*lines[:first], *lines[last + 1 :]]
    if not any(inside) or any(map(parse_heading, outside)):
        return [line for line in lines if not _FENCE.fullmatch(line)]
    return inside


def _without_greeting(lines: list[str]) -> list[str]:
    """Return `lines` without those before the first heading, if they are only a greeting or a title."""
    start = next((index for index, line in enumerate(lines) if parse_heading(line)), None)
    if start is None:
        if _is_greeting(lines[0]):
            return lines[1:]
        return lines
    before = [line for line in lines[:start] if line]
    if all(_is_greeting(line) or _TITLE.fullmatch(line) for line in before):
        return lines[start:]
    return lines


def _is_greeting(line: str) -> bool:
    if not _GREETING.fullmatch(line):
        return False
    return line.endswith(":") or bool(_SPEAKS_OF_LYRICS.search(line))


def _without_farewell(lines: list[str]) -> list[str]:
    """Return `lines` without their last paragraph if it is a farewell."""
    last_gap = max((index for index, line in enumerate(lines) if not line), default=0)
    if not last_gap:
        return lines
    paragraph = lines[last_gap + 1 :]
    if _FAREWELL.fullmatch(paragraph[0]) and _SPEAKS_OF_LYRICS.search(" ".join(paragraph)):
        return lines[:last_gap]
    return lines


# --- what word processors and web pages add -------------------------------------------------------

# As word processors make lists, with Symbol's bullets among them.
BULLET = re.compile(r"\s*(?:[•◦▪▫‣⁃∙●○■□\uf0b7\uf0a7]\s*|[-+*]\s+)")
_TIMES = r"\(?(?:[x×]\s?([2-9])|([2-9])\s?[x×])\)?"
_COUNTED_HEADING = re.compile(rf"([^\W\d][\w -]*?):?\s+{_TIMES}:?", re.IGNORECASE)
_TIMES_IN_BRACKETS = re.compile(r"\((?:[x×]\s?([2-9])|([2-9])\s?[x×])\)", re.IGNORECASE)


def mended(lyrics: str) -> str:
    """Return lyrics as the model sings them best, without what word processors and web pages add.

    Bullets and spaces at the ends go, a heading becomes a tag ("CHORUS (x2)" is "[Chorus - x2]"),
    and a sung line with "(x2)" after it is written twice.
    """
    lines: list[str] = []
    for line in as_read(lyrics).split("\n"):
        text = tidy_line(BULLET.sub("", line, count=1) if BULLET.match(line) else line)
        heading = counted_heading(text)
        if heading:
            lines.append(str(heading))
            continue
        sung, times = repeated(text)
        lines += [sung] * times
    return "\n".join(lines).strip()


def with_fixed_tags(lyrics: str) -> str:
    """Return lyrics with every section tag as ACE-Step reads it, on a line of its own.

    "(verse 2)", "**Bridge**", "CHORUS x2" and a lone "Chorus" become tags; what is sung stays.
    """
    lines: list[str] = []
    for line in as_read(lyrics).split("\n"):
        tag, sung = _tag_and_words(line.strip())
        if tag is None:
            lines.append(line)
            continue
        lines.append(str(tag))
        if sung:
            lines.append(sung)
    return "\n".join(lines)


def _tag_and_words(text: str) -> tuple[Tag | None, str]:
    """Return the section that a line opens, and what is sung in the same line."""
    heading = heading_of(text) or counted_heading(text)
    if heading:
        return heading, ""
    lone = parse_tag(text)
    if lone and lone.name in HEADINGS and not lone.modifier and text[:1].isupper():
        return lone, ""
    start = TAG.match(text)
    tag = parse_tag(start[1]) if start else None
    if start is None or tag is None:
        return None, ""
    return tag, text[start.end() :].strip(" :-–—\t")


def is_mendable(lyrics: str) -> bool:
    """Tell whether there is a bullet, a heading without brackets, or a "(x2)" in lyrics."""
    return any(_is_mendable_line(line.strip()) for line in as_read(lyrics).split("\n"))


def _is_mendable_line(text: str) -> bool:
    if not TAG.fullmatch(text) and parse_heading(text):
        return True
    return bool(BULLET.match(text) or counted_heading(text) or repeated(text)[1] > 1)


def repeated(line: str) -> tuple[str, int]:
    """Return a sung line without the "(x2)" after it, and how often it is sung."""
    start = line.rfind("(")
    if start <= 0:
        return line, 1
    found = _TIMES_IN_BRACKETS.fullmatch(line, start)
    sung = line[:start].strip()
    if found is None or not sung or TAG.fullmatch(sung):
        return line, 1
    return sung, int(found[1] or found[2])


def counted_heading(line: str) -> Tag | None:
    """Parse a heading that says how often it comes, such as "CHORUS (x2)"; None if it is not one."""
    if len(line) > LONGEST_HEADING:
        return None
    found = _COUNTED_HEADING.fullmatch(line)
    if found is None:
        return None
    tag = parse_tag(found[1])
    if tag is None or tag.name not in HEADINGS:
        return None
    return replace(tag, modifier=f"x{found[2] or found[3]}")
