"""Turns a chat model's reply into lyrics as ACE-Step reads them: while it comes, and for good at its end.

Only headings that are known sections are rewritten; every other bracket stays. What frames the lyrics (a greeting, code
fences, a title, an offer to change them) goes only where it clearly is a frame.
"""

from __future__ import annotations

import re

from lint import parse_heading


class Tidy:
    """Brings a reply into ACE-Step's form while it comes: whole lines at once, the reply's frame at the end."""

    def __init__(self):
        self._lines: list[str] = []
        self._open = ""

    def add(self, piece: str) -> str:
        """Take the next piece and return the text so far."""
        *done, self._open = (self._open + piece).split("\n")
        self._lines += map(tidy_line, done)
        return "\n".join((*self._lines, self._open)).lstrip("\n")

    def end(self) -> str:
        """Return the whole text."""
        return tidy_lyrics("\n".join((*self._lines, self._open)))


def tidy_line(line: str) -> str:
    """Write a known section heading as ACE-Step reads it ("**Verse 1:**" as "[Verse 1]"); of others take extra spaces.

    Brackets that are no known section stay as they are.
    """
    tag = parse_heading(line)
    return str(tag) if tag else re.sub("[ \t\u00a0]+", " ", line).strip()


def tidy_lyrics(text: str) -> str:
    """Tidy all lines, and take away the frame: code fences, rules, a title, the chat around the lyrics."""
    lines = _unfenced([tidy_line(line) for line in text.split("\n")])
    lines = [line for line in lines if not _RULE.fullmatch(line)]
    lines = _without_farewell(_without_greeting(lines))
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip()


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
_ABOUT_THE_LYRICS = re.compile(r"(?i)\b(?:lyrics?|songs?|let me know|feel free|adjust\w*|chang\w+|version)\b")


def _unfenced(lines: list[str]) -> list[str]:
    """Return what stands between the code fences where all sections do; an opening one alone was cut off."""
    fences = [place for place, line in enumerate(lines) if _FENCE.fullmatch(line)]
    if not fences or len(fences) > 2:
        return lines
    first, last = fences[0], fences[1] if len(fences) == 2 else len(lines)
    outside = [*lines[:first], *lines[last + 1 :]]
    inside = lines[first + 1 : last]
    if not any(inside) or any(map(parse_heading, outside)):
        return [line for line in lines if not _FENCE.fullmatch(line)]
    return inside


def _without_greeting(lines: list[str]) -> list[str]:
    start = next((place for place, line in enumerate(lines) if parse_heading(line)), None)
    if start is None:
        first = next((place for place, line in enumerate(lines) if line), None)
        return lines[first + 1 :] if first is not None and _is_greeting(lines[first]) else lines
    frame = [line for line in lines[:start] if line]
    return lines[start:] if all(_is_greeting(line) or _TITLE.fullmatch(line) for line in frame) else lines


def _is_greeting(line: str) -> bool:
    return bool(_GREETING.fullmatch(line)) and bool(line.endswith(":") or _ABOUT_THE_LYRICS.search(line))


def _without_farewell(lines: list[str]) -> list[str]:
    """Take away a last paragraph that speaks about the lyrics."""
    kept = "\n".join(lines).rstrip().split("\n")
    start = max((place for place, line in enumerate(kept) if not line), default=0)
    if start and _FAREWELL.fullmatch(kept[start + 1]) and _ABOUT_THE_LYRICS.search(" ".join(kept[start + 1 :])):
        return kept[:start]
    return kept
