"""What the built-in engine was told in training: which keys, tempos and metres it knows, and which
words go with them.

The engine cannot choose a tempo or a key itself, so it is given them: the words of the prompt
narrow both down, and the seed chooses. What it knows stands in a file beside its checkpoint, which
training/engine_words.py writes.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from events import Job
from limits import TIME_SIGNATURES
from model_weights import read_json

FILE = "words.json"
# Semitones over C.
LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
# Scripts in which words are not set apart by spaces: Han, Hiragana, Thai.
UNSPACED = "\u3040-\u309f\u3400-\u9fff\u0e00-\u0e7f"
KATAKANA = "\u30a1-\u30ff"
SCALES = ("major", "minor")


@dataclass(frozen=True)
class KnownWords:
    """What a checkpoint has learnt; a tempo is (slowest, fastest) in BPM.

    `keys` holds each spelling that it was told, `metres` what it takes a time signature for.
    `speeds`, `styles` and `scales` give a word of a prompt its tempo or its scale; a word that ends
    in * stands for all that begin so.
    """

    keys: tuple[str, ...]
    metres: Mapping[str, str]
    tempo: tuple[int, int]
    usual_tempo: tuple[int, int]
    speeds: Mapping[str, tuple[int, int]]
    styles: Mapping[str, tuple[int, int]]
    scales: Mapping[str, str]


def read_words(folder: Path) -> KnownWords | None:
    """Return what the checkpoint in `folder` has learnt, None if no file says it."""
    told = read_json(folder / FILE)
    if told is None:
        return None
    return KnownWords(
        keys=tuple(told["keys"]),
        metres=told["metres"],
        tempo=tuple(told["tempo"]),
        usual_tempo=tuple(told["usual_tempo"]),
        speeds=_by_word(told["speeds"]),
        styles=_by_word(told["styles"]),
        scales={word: scale for scale, words in told["scales"].items() for word in words},
    )


def _by_word(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    return {word: tuple(row["bpm"]) for row in rows for word in row["words"]}


# --- what a job is given --------------------------------------------------------------------------


def settle(job: Job, known: KnownWords, *, choose: bool = True) -> tuple[Job, tuple[str, ...]]:
    """Return `job` in terms that the checkpoint knows, and notes on what was changed or chosen.

    `choose` lets a song from words have a tempo and a key, if it has none.
    """
    asked = job.request
    words = translated(
        {"key": asked.key, "bpm": asked.bpm, "time_signature": asked.time_signature}, known
    )
    notes = _note_on_changes(asked, words)
    if choose and asked.mode == "generate" and not (asked.bpm and asked.key):
        chance = random.Random(job.seeds[0])
        # Both are drawn always, so that a key does not depend on whether a tempo was given.
        bpm = choose_tempo(asked.prompt, known, chance)
        key = choose_key(asked.prompt, known, chance)
        words["bpm"] = words["bpm"] or bpm
        words["key"] = words["key"] or key
        notes += (
            f"The built-in engine needs a tempo and a key: it was given {words['bpm']} BPM and {words['key']}.",
        )
    return replace(job, request=asked.model_copy(update=words)), notes


def translated(words: Mapping[str, Any], known: KnownWords) -> dict[str, Any]:
    """Return `words` with their key, bpm and time_signature as the checkpoint knows them; what is empty stays so."""
    changed = dict(words)
    if words.get("key"):
        changed["key"] = spelled(words["key"], known.keys)
    if words.get("bpm"):
        changed["bpm"] = folded(words["bpm"], known.tempo)
    if words.get("time_signature"):
        changed["time_signature"] = known.metres.get(
            words["time_signature"], words["time_signature"]
        )
    return changed


def _note_on_changes(asked: Any, words: Mapping[str, Any]) -> tuple[str, ...]:
    pairs = []
    if words["key"] != asked.key:
        pairs.append((asked.key, words["key"]))
    if words["bpm"] != asked.bpm:
        pairs.append((f"{asked.bpm} BPM", f"{words['bpm']} BPM"))
    if words["time_signature"] != asked.time_signature:
        pairs.append(
            (TIME_SIGNATURES[asked.time_signature], TIME_SIGNATURES[words["time_signature"]])
        )
    if not pairs:
        return ()
    unknown = ", ".join(old for old, _ in pairs)
    given = ", ".join(new for _, new in pairs)
    return (f"The built-in engine never learnt {unknown}; it was given {given} instead.",)


# --- keys and tempos ------------------------------------------------------------------------------


def pitch_class(note: str) -> int:
    """Return the semitones over C of a note like "F#" or "Cb", 0 to 11."""
    return (LETTERS[note[0]] + note.count("#") - note[1:].count("b")) % 12


def spelled(key: str, keys: Iterable[str]) -> str:
    """Return the one of `keys` that sounds like `key` ("B# minor" is "C minor"); a key among them stays as it is."""
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
    """Draw a tempo that suits the words of `prompt`: one of speed decides, else a style, else what is usual."""
    span = (
        first_named(prompt, known.speeds) or first_named(prompt, known.styles) or known.usual_tempo
    )
    return chance.randint(*span)


def choose_key(prompt: str, known: KnownWords, chance: random.Random) -> str:
    """Draw a key, of the scale that the words of `prompt` suggest; all that sound different are equally likely."""
    wanted = first_named(prompt, known.scales)
    sounding: dict[tuple[int, str], str] = {}
    for key in known.keys:
        note, _, scale = key.partition(" ")
        if wanted in (None, scale):
            sounding.setdefault((pitch_class(note), scale), key)
    return chance.choice(list(sounding.values()))


# --- words ----------------------------------------------------------------------------------------


def first_named(prompt: str, meanings: Mapping[str, Any]) -> Any | None:
    """Return the meaning of the word that `prompt` names first, of several there the longest; None if it names none."""
    text = _plain(prompt)
    best = None
    for word, meaning in meanings.items():
        found = re.search(_pattern(word), text)
        if found:
            rank = (found.start(), -len(word))
            if best is None or rank < best[0]:
                best = rank, meaning
    if best is None:
        return None
    return best[1]


def _pattern(word: str) -> str:
    """Return the regular expression of a word that stands alone; a hyphen may stand for a space."""
    stem = _plain(word.removesuffix("*"))
    inside = r"[\s-]+".join(re.escape(part) for part in re.split(r"[\s-]+", stem))
    if re.search(f"[{UNSPACED}]", stem):
        return inside
    if re.fullmatch(f"[{KATAKANA}]+", stem):
        return f"(?<![{KATAKANA}]){inside}(?![{KATAKANA}])"
    after = "" if word.endswith("*") else r"(?!\w)"
    return rf"(?<!\w){inside}{after}"


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
