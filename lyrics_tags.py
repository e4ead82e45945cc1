"""Section tags of lyrics: what is one, however it was written, and how ACE-Step reads it.

ACE-Step reads section tags in square brackets, on lines of their own (its guide's "Tutorial.md").
Names in other languages and scripts, and the headings that chat models write, are recognized.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from limits import preset
from plain_text import plain, without_html

# In the order of the file.
# SUNG: sections with words.
# PLAYED: sections that need none.
# INSTRUMENTS: sections by themselves, or before a played one ("Guitar Solo").
# DELIVERY: how something is sung; these tags may stand anywhere and open no section.
# HEADINGS: all that count without square brackets, since "(drop)" and "(break)" are backing vocals.
SUNG, PLAYED, INSTRUMENTS, DELIVERY, HEADINGS = preset("sections").values()
# Our names to those that sections have in other languages.
SECTION_NAMES: dict[str, list[str]] = preset("section_names")
LONGEST_HEADING = 120  # characters

# A tag in square brackets, and what is in them.
TAG = re.compile(r"\[([^\[\]]*)\]")

# "Pre-Chorus" has a hyphen of its own: a modifier follows a hyphen between spaces, a long dash, or
# other marks.
_MODIFIER = re.compile(r"(?: - | ?[–—:|,] ?| x ?\d| ?\().*")
_NUMBERED = re.compile(r"(.*[^\W\d])(?: ?[#.-]? ?(?=\d)| )(\d{1,2}|[ivx]{1,4}|[a-d])")
# Verses that are counted before their name, as in "2절" and "2 куплет".
_NUMBER_FIRST = re.compile(r"(\d{1,2})[.\s]*([^\W\d].*)")
# Brackets of East Asian scripts: as wide as a character, and other shapes.
_WIDE_BRACKETS = str.maketrans("［］﹝﹞", "[][]")
_OPENING = "【〔〖〘〚⟦❲"
_CLOSING = "】〕〗〙〛⟧❳"
_BRACKETED = re.compile(rf"[{_OPENING}][^\]\[{_OPENING}{_CLOSING}]*[{_CLOSING}]")
_ANY_TAG = re.compile(rf"[\[{_OPENING}]([^\]\[{_OPENING}{_CLOSING}]*)[\]{_CLOSING}]")


@dataclass(frozen=True)
class Tag:
    """A section tag: its `name` in the usual spelling, and a `number` ("2") and a `modifier` ("anthemic"), or ""."""

    name: str
    number: str = ""
    modifier: str = ""

    def __str__(self) -> str:
        """Return the tag as ACE-Step reads it, such as "[Verse 2 - whispered]"."""
        words = f"{self.name} {self.number}".strip()
        if self.modifier:
            return f"[{words} - {self.modifier}]"
        return f"[{words}]"


def parse_tag(text: str, sections: Mapping[str, str] | None = None) -> Tag | None:
    """Parse what is inside a tag's brackets, such as "verse 1: soft"; None if it is not a known section.

    `sections` maps the keys of known names to our names; by default ours and those of other languages.
    """
    if sections is None:
        sections = _SECTIONS
    if len(text) > LONGEST_HEADING:
        return None
    text = unicodedata.normalize("NFKC", text)
    name = text
    modifier = ""
    found = _MODIFIER.search(text)
    if found:
        name = text[: found.start()]
        modifier = found[0].lstrip(" -–—:|,(").rstrip(" )")
    words = " ".join(name.replace("_", " ").split()).lower()
    words, number = _without_number(words, sections)
    known = sections.get(section_key(words))
    if known is None:
        return None
    return Tag(known, number.upper(), modifier)


def _without_number(words: str, sections: Mapping[str, str]) -> tuple[str, str]:
    """Return a section's name without the number after or before it, and the number, or ""."""
    number = ""
    numbered = _NUMBERED.fullmatch(words)
    if numbered and section_key(words) not in sections:
        words, number = numbered.groups()
    number_first = _NUMBER_FIRST.fullmatch(words)
    if number_first and section_key(words) not in sections:
        number, words = number_first.groups()
    return words, number


def parse_heading(line: str) -> Tag | None:
    """Parse a line that is only a heading, in any of the ways chat models write one; None if it is not one.

    Examples: "[verse 1]", "**Verse 1:**", "### Chorus", "(Chorus)", "Bridge:", "[Chorus]:",
    "**[Outro]**", "Verse 2".
    """
    text = line.strip()
    unmarked = text.strip("*_#:： \t")
    tag = None
    if unmarked[:1] in ("[", "【") and unmarked[-1:] in ("]", "】"):
        inner = unmarked[1:-1]
        if set(inner) & set("[]【】"):
            return None
        return parse_tag(inner.strip("*_: \t"))
    if unmarked[:1] in ("(", "（") and unmarked[-1:] in (")", "）"):
        tag = parse_tag(unmarked[1:-1])
    elif unmarked != text or unmarked[-1:].isdecimal():
        tag = parse_tag(unmarked)
    # A comma continues a sung line, as in "*Chorus, oh chorus*"; only square brackets make it a
    # modifier.
    if tag and tag.name in HEADINGS and "," not in unmarked:
        return tag
    return None


def heading_of(line: str) -> Tag | None:
    """Return the section that a line opens, as a tag in square brackets or as another heading."""
    found = TAG.fullmatch(line)
    if found:
        return parse_tag(found[1])
    return parse_heading(line)


def is_delivery(text: str) -> bool:
    """Tell whether what is inside a tag's brackets says how something is sung, such as "whispered"."""
    return section_key(text) in _DELIVERY_KEYS


def as_read(lyrics: str) -> str:
    """Return lyrics as the model reads them, whatever they were copied from.

    Line breaks are "\\n"; invisible characters and a web page's marks are gone; a tag in brackets or
    words of another script, such as "【主歌】", is in the model's own.
    """
    lines = plain(without_html(plain(lyrics))).split("\n")
    return "\n".join(map(_with_our_tags, lines))


def _with_our_tags(line: str) -> str:
    """Return `line` with square brackets and English words in place of other scripts' tags."""
    line = line.translate(_WIDE_BRACKETS)
    stripped = line.strip()
    if _BRACKETED.fullmatch(stripped):
        line = f"[{stripped[1:-1].strip()}]"
    return _ANY_TAG.sub(_our_tag, line)


def _our_tag(found: re.Match[str]) -> str:
    """Return a known section's tag as ACE-Step reads it; leave others, and those that it reads already."""
    original = found[0]
    tag = parse_tag(found[1])
    if tag is None:
        return original
    is_wide = unicodedata.normalize("NFKC", original) != original
    if original.startswith("[") and not is_wide and parse_tag(found[1], _OUR_SECTIONS):
        return original
    return str(tag)


def section_key(name: str) -> str:
    """Return a section's name without case, spaces and hyphens, under which it is looked up."""
    return re.sub(r"[\s_-]+", "", name.lower())


_DELIVERY_KEYS = frozenset(map(section_key, DELIVERY))
_NAMES = (
    *SUNG,
    *PLAYED,
    *INSTRUMENTS,
    *(f"{instrument} {part}" for instrument in INSTRUMENTS for part in PLAYED),
)
_OUR_SECTIONS = {section_key(name): name for name in _NAMES} | {"inst": "Instrumental"}
_FOREIGN_SECTIONS = {
    section_key(unicodedata.normalize("NFKC", name)): ours
    for ours, names in SECTION_NAMES.items()
    for name in names
}
_SECTIONS = _FOREIGN_SECTIONS | _OUR_SECTIONS


# --- the title ----------------------------------------------------------------------------------------------------

# The first line of one of these is what people call a song by.
_REFRAINS = ("Chorus", "Refrain", "Hook")


def title(lyrics: str) -> str:
    """Return the title of a song with these lyrics: the first line of its refrain, or of the song."""
    first = ""
    in_refrain = False
    for line in lyrics.splitlines():
        text = line.strip()
        tag = parse_heading(text)
        if tag:
            in_refrain = tag.name in _REFRAINS
        elif text and not TAG.fullmatch(text):
            words = text.rstrip(" ,.;:-–—")
            if in_refrain:
                return words
            first = first or words
    return first
