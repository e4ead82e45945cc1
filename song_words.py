"""The keys, tempos and time signatures that the built-in engine knows, and the words that go with them.

The engine cannot choose a tempo or a key itself, so it is given both: the words of the prompt
narrow them down, and the seed chooses. What it knows is in a file beside its checkpoint, which
training/engine_words.py writes.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limits import TIME_SIGNATURES
from model_weights import read_json
from params import SongRequest

FILE = "words.json"
# Semitones above C.
LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
# Scripts that do not separate words by spaces: Han, Hiragana, Thai.
UNSPACED = "\u3040-\u309f\u3400-\u9fff\u0e00-\u0e7f"
KATAKANA = "\u30a1-\u30ff"
SCALES = ("major", "minor")


@dataclass(frozen=True)
class KnownWords:
    """What a checkpoint has learnt; a tempo is (slowest, fastest) in BPM.

    `keys` holds each spelling that it was trained with, `metres` the time signature that it uses
    instead of one that it does not know. `speeds`, `styles` and `scales` give a word of a prompt
    its tempo or its scale, `style_names` the style's own name, and `style_metres` gives that name
    the style's usual time signature; a word that ends in * stands for all words that begin with it.
    """

    keys: tuple[str, ...]
    metres: Mapping[str, str]
    tempo: tuple[int, int]
    usual_tempo: tuple[int, int]
    speeds: Mapping[str, tuple[int, int]]
    styles: Mapping[str, tuple[int, int]]
    scales: Mapping[str, str]
    style_names: Mapping[str, str]
    style_metres: Mapping[str, str]


def read_words(folder: Path) -> KnownWords | None:
    """Return what the checkpoint in `folder` has learnt, None if it has no such file."""
    values = read_json(folder / FILE)
    return None if values is None else known_words(values)


def known_words(values: Mapping[str, Any]) -> KnownWords:
    """Return what the values of such a file say."""
    return KnownWords(
        keys=tuple(values["keys"]),
        metres=values["metres"],
        tempo=tuple(values["tempo"]),
        usual_tempo=tuple(values["usual_tempo"]),
        speeds=_by_word(values["speeds"]),
        styles=_by_word(values["styles"]),
        scales={word: scale for scale, words in values["scales"].items() for word in words},
        style_names={word: row["words"][0] for row in values["styles"] for word in row["words"]},
        style_metres={row["words"][0]: row.get("time_signature", "") for row in values["styles"]},
    )


def _by_word(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    return {word: tuple(row["bpm"]) for row in rows for word in row["words"]}


# --- what a job is given --------------------------------------------------------------------------


def settle(
    request: SongRequest, seed: int, known: KnownWords, *, choose: bool = True
) -> tuple[SongRequest, tuple[str, ...], tuple[str, ...]]:
    """Return `request` in terms that the checkpoint knows, the names of what was chosen, and notes.

    With `choose`, a song generated from words gets a tempo and a key from `seed` if it has none.
    """
    asked = {"key": request.key, "bpm": request.bpm, "time_signature": request.time_signature}
    words = translated(asked, known)
    notes = _note_on_changes(request, words)
    chosen: list[str] = []
    if choose and request.mode == "generate" and not (request.bpm and request.key):
        chance = random.Random(seed)
        # Both are always drawn, so that a key does not depend on whether a tempo was given.
        bpm = choose_tempo(request.prompt, known, chance)
        key = choose_key(request.prompt, known, chance)
        for name, value in (("bpm", bpm), ("key", key)):
            if not words[name]:
                words[name] = value
                chosen.append(name)
        notes += (
            f"The built-in engine needs a tempo and a key: it was given {words['bpm']} BPM and {words['key']}.",
        )
    return request.model_copy(update=words), tuple(chosen), notes


def translated(words: Mapping[str, Any], known: KnownWords) -> dict[str, Any]:
    """Return `words` with key, bpm and time_signature as the checkpoint knows them; empty ones stay empty."""
    changed = dict(words)
    if words.get("key"):
        changed["key"] = spelled(words["key"], known.keys)
    if words.get("bpm"):
        changed["bpm"] = folded(words["bpm"], known.tempo)
    signature = words.get("time_signature")
    if signature:
        changed["time_signature"] = known.metres.get(signature, signature)
    return changed


def _note_on_changes(request: Any, words: Mapping[str, Any]) -> tuple[str, ...]:
    asked = []
    given = []
    if words["key"] != request.key:
        asked.append(request.key)
        given.append(words["key"])
    if words["bpm"] != request.bpm:
        asked.append(f"{request.bpm} BPM")
        given.append(f"{words['bpm']} BPM")
    if words["time_signature"] != request.time_signature:
        asked.append(TIME_SIGNATURES[request.time_signature])
        given.append(TIME_SIGNATURES[words["time_signature"]])
    if not asked:
        return ()
    return (
        f"The built-in engine never learnt {', '.join(asked)}; it was given {', '.join(given)} instead.",
    )


# --- keys and tempos ------------------------------------------------------------------------------


def pitch_class(note: str) -> int:
    """Return the semitones above C of a note like "F#" or "Cb", 0 to 11."""
    return (LETTERS[note[0]] + note.count("#") - note[1:].count("b")) % 12


def spelled(key: str, keys: Iterable[str]) -> str:
    """Return the one of `keys` that sounds like `key`, as "B# minor" is "C minor"; `key` itself if none does."""
    keys = tuple(keys)
    if key in keys:
        return key
    note, _, scale = key.partition(" ")
    for other in keys:
        other_note, _, other_scale = other.partition(" ")
        if other_scale == scale and pitch_class(other_note) == pitch_class(note):
            return other
    return key


def folded(bpm: int, tempo: tuple[int, int]) -> int:
    """Return `bpm` doubled or halved until it lies in `tempo`, which spans at least an octave."""
    slowest, fastest = tempo
    while bpm < slowest:
        bpm *= 2
    while bpm > fastest:
        bpm = round(bpm / 2)
    return bpm


def choose_tempo(prompt: str, known: KnownWords, chance: random.Random) -> int:
    """Draw a tempo in BPM that suits `prompt`: a word of speed decides, else a style, else the usual tempo."""
    tempo = first_named(prompt, known.speeds)
    if tempo is None:
        tempo = first_named(prompt, known.styles)
    if tempo is None:
        tempo = known.usual_tempo
    slowest, fastest = tempo
    return chance.randint(slowest, fastest)


def choose_key(prompt: str, known: KnownWords, chance: random.Random) -> str:
    """Draw a key of the scale that the words of `prompt` suggest; spellings of one key count once."""
    wanted = first_named(prompt, known.scales)
    by_sound: dict[tuple[int, str], str] = {}
    for key in known.keys:
        note, _, scale = key.partition(" ")
        if wanted in (None, scale):
            by_sound.setdefault((pitch_class(note), scale), key)
    return chance.choice(list(by_sound.values()))


# --- words ----------------------------------------------------------------------------------------


def first_named(prompt: str, meanings: Mapping[str, Any]) -> Any | None:
    """Return the meaning of the word that `prompt` names first, None if it names none.

    If several words begin at the same place, the longest counts.
    """
    text = _plain(prompt)
    found_meaning = None
    found_rank = None
    for word, meaning in meanings.items():
        match = re.search(_pattern(word), text)
        if match:
            rank = (match.start(), -len(word))
            if found_rank is None or rank < found_rank:
                found_rank = rank
                found_meaning = meaning
    return found_meaning


def _pattern(word: str) -> str:
    """Return a regular expression for a word that stands alone; a hyphen may replace a space."""
    stem = _plain(word.removesuffix("*"))
    pattern = r"[\s-]+".join(re.escape(part) for part in re.split(r"[\s-]+", stem))
    if re.search(f"[{UNSPACED}]", stem):
        return pattern
    if re.fullmatch(f"[{KATAKANA}]+", stem):
        return f"(?<![{KATAKANA}]){pattern}(?![{KATAKANA}])"
    if word.endswith("*"):
        return rf"(?<!\w){pattern}"
    return rf"(?<!\w){pattern}(?!\w)"


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
