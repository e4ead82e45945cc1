"""What the letters of lyrics tell: how many syllables a line has, and which language it may be."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from lyrics_tags import TAG

# --- syllables ------------------------------------------------------------------------------------

_ASIDE = re.compile(r"\([^()]*\)|（[^（）]*）")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SMALL_KANA = frozenset("ぁぃぅぇぉゃゅょゎァィゥェォャュョヮー・")
_CYRILLIC_VOWELS = frozenset("аеёиоуыэюяіїєў")
_VOWELS = re.compile("[aeiouyæøœı]+")
_SILENT_E = re.compile("[^aeiouy]e[ds]?$")
_SOUNDED_E = re.compile("(?:[^aeiouy]le|[td]ed|[sxz]es|[cs]hes|[cg]es)$")
_SILENT_E_LANGUAGES = ("en", "fr", "unknown")


def syllables(line: str, language: str = "unknown") -> int | None:
    """Estimate the syllables of a sung line; None if any of it is in a script whose syllables we cannot count.

    A Latin word counts its groups of vowels and a Cyrillic one its vowels; a Chinese or Japanese
    character and a Korean block count one. Words in parentheses are backing vocals and do not count
    unless they are the whole line. static/words.js counts alike, for the margin of the page.
    """
    without_asides = _ASIDE.sub(" ", line)
    text = line
    if any(map(str.isalpha, without_asides)):
        text = without_asides
    if any(character.isalpha() and not _script(character) for character in set(text)):
        return None
    count = 0
    for character in text:
        if _script(character) == "cjk" and character not in _SMALL_KANA:
            count += 1
    for word in _WORD.findall(text):
        count += _word_syllables(word, language)
    return count


def _word_syllables(word: str, language: str) -> int:
    """Count what is not CJK in a word; digits are read out one by one."""
    letters = [character for character in word.lower() if _script(character) != "cjk"]
    count = sum(letter.isdecimal() or letter in _CYRILLIC_VOWELS for letter in letters)
    decomposed = unicodedata.normalize("NFD", "".join(letters))  # so that accents are gone below
    latin = "".join(
        letter for letter in decomposed if letter.isalpha() and _script(letter) == "latin"
    )
    if not latin:
        return count
    groups = len(_VOWELS.findall(latin))
    if groups > 1 and language in _SILENT_E_LANGUAGES and _ends_in_silent_e(latin):
        groups -= 1
    return count + max(groups, 1)


def _ends_in_silent_e(word: str) -> bool:
    """Tell whether the last e is not heard: "love" and "loved" have one syllable, "table", "wanted" and "roses" two."""
    return bool(_SILENT_E.search(word)) and not _SOUNDED_E.search(word)


def _script(character: str) -> str:
    """Return "latin", "cyrillic" or "cjk" for a letter whose syllables we can count, else ""."""
    point = ord(character)
    if point < 0x370 or 0x1E00 <= point <= 0x1EFF:
        return "latin"
    if 0x400 <= point <= 0x52F:
        return "cyrillic"
    if is_ideograph(character) or "\uac00" <= character <= "\ud7a3":
        return "cjk"
    return ""


def is_ideograph(character: str) -> bool:
    """Tell whether it is a kana or a Chinese character."""
    is_kana = "\u3041" <= character <= "\u30ff"
    is_common = "\u3400" <= character <= "\u9fff"
    return is_kana or is_common or character >= "\U00020000"


# --- the language ---------------------------------------------------------------------------------

# Scripts that name their language.
_LANGUAGE_OF_SCRIPT = {
    "HANGUL": "ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "HEBREW": "he",
    "THAI": "th",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "GURMUKHI": "pa",
    "GREEK": "el",
}
# Other languages of the same script, and letters that only they have.
_SAME_SCRIPT = {"ru": ("uk", "sr"), "ar": ("ur", "fa")}
_LETTERS_OF = {
    "uk": frozenset("іїєґ"),
    "sr": frozenset("ђјљњћџ"),
    "ur": frozenset("ٹڈڑںےھ"),
    "fa": frozenset("پچژگ"),
}
LEAST_SHARE = 1 / 3  # of the letters: songs in many languages borrow lines of English


def written_language(lyrics: str) -> str:
    """Return the code of the language that the script of the letters names, or "unknown".

    Latin letters name none; another script decides if at least a third of the letters are of it. Kana
    among ideographs make them Japanese; letters that Ukrainian, Serbian, Urdu or Persian has and its
    neighbour has not make it that language. Section tags do not count.
    """
    letters = [character for character in TAG.sub("", lyrics).lower() if character.isalpha()]
    named = [_LANGUAGE_OF_SCRIPT.get(_script_name(letter)) for letter in letters]
    counts = Counter(language for language in named if language is not None)
    if not counts:
        return "unknown"
    if counts["ja"]:
        counts["ja"] += counts.pop("zh", 0)
    language, count = counts.most_common(1)[0]
    if count < LEAST_SHARE * len(letters):
        return "unknown"
    for other in _SAME_SCRIPT.get(language, ()):
        if not _LETTERS_OF[other].isdisjoint(letters):
            return other
    return language


def _script_name(character: str) -> str:
    """Return the first word of a letter's Unicode name, which is its script's."""
    return unicodedata.name(character, "").partition(" ")[0]
