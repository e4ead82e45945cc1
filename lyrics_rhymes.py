"""Words that rhyme with a word, by the pronouncing dictionary, those that lyrics use most first."""

from __future__ import annotations

import functools

from lyrics_form import dictionary_file, pronunciations, rhyme_sound, words_of
from lyrics_small import WORDS

MOST_RHYMES = 24
ENOUGH_RHYMES = 5  # so many usual words need no rare ones beside them
MOST_RARE = 8
LONGEST_RHYME = 12  # letters of a rare word


def is_available() -> bool:
    return dictionary_file() is not None


def rhymes_with(word: str) -> list[str]:
    """Return up to 24 words that rhyme with an English word; [] for one that the dictionary lacks."""
    words = words_of(word)
    if not words:
        return []
    word = words[-1]
    alike = _by_sound().get(rhyme_sound(word), [])
    usual = _usual_words()
    found = sorted((other for other in alike if other in usual), key=usual.__getitem__)
    if len(found) < ENOUGH_RHYMES:
        rare = [other for other in alike if other not in usual and _is_plain(other)]
        found += sorted(rare, key=len)[:MOST_RARE]
    return [other for other in found if other != word][:MOST_RHYMES]


def _is_plain(word: str) -> bool:
    return word.isalpha() and 2 < len(word) <= LONGEST_RHYME


@functools.cache
def _usual_words() -> dict[str, int]:
    """Return the places of plain words by how often lyrics use them."""
    words = WORDS.read_text(encoding="utf-8").split()
    return {word: place for place, word in enumerate(words)}


@functools.cache
def _by_sound() -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = {}
    for word in pronunciations():
        sound = rhyme_sound(word)
        if sound:
            found.setdefault(sound, []).append(word)
    return found
