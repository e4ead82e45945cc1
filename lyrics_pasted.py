"""What comes along when lyrics are pasted from a song sheet or a player: chords, and the times of an LRC file.

The song model would sing them. Nothing is removed unasked; the page offers it.
"""

from __future__ import annotations

import re

_NOTE = r"[A-G][#b♯♭]?"
_CHORD = rf"{_NOTE}(?:maj|min|dim|aug|sus|add|m|M|°|ø|\+)*\d{{0,2}}(?:(?:sus|add|b|#)\d{{1,2}})*(?:/{_NOTE})?"
_CHORD_ALONE = re.compile(_CHORD)
_CHORD_INSIDE = re.compile(rf"\[{_CHORD}\]")
_BARS = re.compile(r"[|:\-–/()x\d.]*")  # what stands between the chords of a line
_TIME = re.compile(r"[\[<]\d{1,3}:\d{2}(?:[.:]\d{1,3})?[\]>]\s?")
_LRC_HEADER = re.compile(r"\[(?:ar|ti|al|au|by|re|ve|length|offset|la):[^\]\n]*\]")


def has_chords(lyrics: str) -> bool:
    return without_chords(lyrics) != lyrics


def has_times(lyrics: str) -> bool:
    return _TIME.search(lyrics) is not None


def without_chords(lyrics: str) -> str:
    """Return lyrics without lines of chords, and without chords in brackets inside a line."""
    kept = [_without_inner_chords(line) for line in lyrics.split("\n") if not _is_of_chords(line)]
    return "\n".join(kept)


def without_times(lyrics: str) -> str:
    """Return lyrics without the times and the headers of an LRC file."""
    kept = []
    for line in lyrics.split("\n"):
        if not _LRC_HEADER.fullmatch(line.strip()):
            kept.append(_TIME.sub("", line))
    return "\n".join(kept).strip("\n")


def _is_of_chords(line: str) -> bool:
    """Tell whether a line holds chords alone; a lone letter is none."""
    words = line.split()
    chords = [word for word in words if _CHORD_ALONE.fullmatch(word.strip("[]|"))]
    others = [word for word in words if word not in chords and not _BARS.fullmatch(word)]
    if others or not chords:
        return False
    return len(chords) > 1 or len(chords[0].strip("[]|")) > 1


def _without_inner_chords(line: str) -> str:
    """Return a line without [Am]; a tag that is alone on its line, such as [A], stays."""
    if _CHORD_INSIDE.fullmatch(line.strip()) or not _CHORD_INSIDE.search(line):
        return line
    return re.sub(r" {2,}", " ", _CHORD_INSIDE.sub("", line)).strip()
