"""The tempo, key and time signature that a prompt names: "90 bpm", "in D minor", "en ré mineur".

They count where the fields are open, and a hint says where they contradict the fields. Words are
read, not parts of words, and nothing outside the allowed range: a feel, such as "double time", is
no tempo.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from limits import LIMITS, TIME_SIGNATURES
from params import SongWords

# The request's fields that a prompt may name.
FIELDS = ("bpm", "key", "time_signature")


class Tempo(NamedTuple):
    """A tempo from `slowest` to `fastest` BPM, written in a prompt from `start` to `end`."""

    slowest: int
    fastest: int
    start: int
    end: int

    @property
    def bpm(self) -> int:
        return (self.slowest + self.fastest) // 2


class Mention(NamedTuple):
    """A key or time signature as a request has it, written in a prompt from `start` to `end`."""

    value: str
    start: int
    end: int


AnySong = TypeVar("AnySong", bound=SongWords)


def completed(request: AnySong) -> tuple[AnySong, dict[str, Any]]:
    """Return `request` with what its prompt names and its fields leave open, and these fields."""
    found = {}
    for name, value in named(request.prompt).items():
        if not getattr(request, name):
            found[name] = value
    return request.model_copy(update=found), found


def named(prompt: str) -> dict[str, Any]:
    """Return what `prompt` names by a request's fields; of several tempos or keys, the first."""
    found: dict[str, Any] = {}
    for tempo in tempos(prompt)[:1]:
        found["bpm"] = tempo.bpm
    for key in keys(prompt)[:1]:
        found["key"] = key.value
    for signature in time_signatures(prompt)[:1]:
        found["time_signature"] = signature.value
    return found


def tempos(prompt: str) -> list[Tempo]:
    """Return the tempos in `prompt`, in their order."""
    low = LIMITS["bpm"].low
    high = LIMITS["bpm"].high
    found = []
    for match in _TEMPO.finditer(_readable(prompt)):
        numbers = [_whole(text) for text in match.groups() if text]
        slowest = min(numbers)
        fastest = max(numbers)
        if low <= slowest and fastest <= high:
            found.append(Tempo(slowest, fastest, match.start(), match.end()))
    return found


def keys(prompt: str) -> list[Mention]:
    """Return the keys in `prompt` as the model spells them, in their order."""
    text = _readable(prompt)
    found: list[Mention] = []
    for reader in _KEY_READERS:
        found += reader(text)
    return sorted(found, key=lambda key: key.start)


def time_signatures(prompt: str) -> list[Mention]:
    found = []
    for match in _TIME_SIGNATURE.finditer(_readable(prompt)):
        for beats, name in TIME_SIGNATURES.items():
            if name == match[0]:
                found.append(Mention(beats, match.start(), match.end()))
    return found


def _readable(prompt: str) -> str:
    """Return `prompt` with plain letters for full-width ones, as long as before."""
    full_width = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
    return prompt.translate(full_width)


# --- tempo ----------------------------------------------------------------------------------------

_NUMBER = r"(\d{2,3}(?:[.,]\d{1,2})?)"
_NUMBERS = rf"{_NUMBER}(?:\s*(?:-|–|—|~|〜|to|bis|à|до)\s*{_NUMBER})?"
_UNITS = (
    r"bpm",
    r"b\.p\.m\.?",
    r"beats?\s+(?:per|a)\s+min(?:ute)?",
    r"beats?/min",
    r"Schlägen?\s+pro\s+Minute",
    r"(?:battements|pulsations)\s+(?:par|à\s+la)\s+minute",
    r"(?:pulsaciones|pulsos|batidas)\s+por\s+minuto",
    r"battiti\s+al\s+minuto",
    r"удар\w*\s+в\s+минуту",
    r"拍\s*(?:/|每)\s*分",
)
_NAMES = (
    r"(?<![\w-])(?:bpm|tempo|темп)\s*(?:of|is|at|von|de|di)?\s*[:=]?",
    r"テンポ\s*[:=]?",
    r"템포\s*[:=]?",
    r"[♩♪]\s*=",
    r"(?:每分钟|每分鐘|毎分|분당)",
)
# What follows a number that is not a tempo: "tempo 90s", "tempo 12/8".
_NO_TEMPO = r"(?![a-zà-ÿа-я\d'’%/]|[.,]\d|-[a-z])"
_TEMPO = re.compile(
    rf"(?<![\d.,/$€£]){_NUMBERS}[\s-]*(?:{'|'.join(_UNITS)})(?![a-zà-ÿ])|(?:{'|'.join(_NAMES)})\s*{_NUMBERS}"
    rf"(?:拍|(?:\s*비트)|{_NO_TEMPO})",
    re.IGNORECASE,
)


def _whole(number: str) -> int:
    return int(float(number.replace(",", ".")) + 0.5)


# --- key ------------------------------------------------------------------------------------------

# A reader finds the keys that one way of writing them has in a text.
KeyReader = Callable[[str], Iterator[Mention]]

# Words after which a note that may be another word is a note: "in a minor, slow", "en la menor".
_BEFORE = re.compile(r"\b(?:in|en|em|key\s+of|di|de)\s+$", re.IGNORECASE)
_AFTER = re.compile(
    r"\s*(?:$|[^\w\s]|\d|(?:and|with|at|for|on|y|e|ed|et|a|à|con|com|avec|para|per|por|pour|mit|und)\b)",
    re.IGNORECASE,
)
_SENTENCE_START = re.compile(r"(?:^|[.!?\n])\s*$")

_LETTERS = re.compile(
    r"(?<![\w#♯♭'’])([A-Ga-g])(\s?[#♯♭]|b|[\s-]?(?i:sharp|flat))?"
    r"(?:[\s-]+((?i:major|minor))|\s+((?i:maj|min)))(?!\w)"
)


def _in_letters(text: str) -> Iterator[Mention]:
    """English: "D minor", "F# Major", "B flat minor"."""
    for match in _LETTERS.finditer(text):
        letter, accidental, scale, short_scale = match.groups("")
        if short_scale and letter.islower():
            continue
        if letter in "aA" and not accidental and not _is_note_a(text, match):
            continue
        sign = _sign(accidental, sharps=("#", "♯", "sharp"), flats=("b", "♭", "flat"))
        yield _key(letter.upper(), sign, scale or short_scale, match)


def _is_note_a(text: str, match: re.Match[str]) -> bool:
    """Tell whether A is a note, not an article: "a minor detail" is not a key."""
    ends = _AFTER.match(text, match.end()) is not None
    before = text[: match.start()]
    if match[0][0] == "a":
        return ends and _BEFORE.search(before) is not None
    return ends or not _SENTENCE_START.search(before)


_CHORDS = re.compile(
    r"(?<!\w)(?i:key\s*(?:of|is|:|=)\s*|tonart\s*:?\s*)([A-G])([#b♯♭]?)(m(?:in)?|maj)?"
    r"(?![\w#♯♭]|[\s-]*(?i:major|minor|maj|min|sharp|flat|dur|moll)\b)"
    r"|(?<!\w)(?i:in)\s+([A-G])([#b♯♭]?)(m)(?![\w#♯♭])"
)


def _as_chords(text: str) -> Iterator[Mention]:
    """A chord's symbol where a key is announced: "key of Am", "in F#m"."""
    for match in _CHORDS.finditer(text):
        letter, accidental, scale = match.groups("")[:3]
        if not letter:
            letter, accidental, scale = match.groups("")[3:]
        sign = _sign(accidental, sharps=("#", "♯"), flats=("b", "♭"))
        full_scale = "minor" if scale in ("m", "min") else "major"
        yield _key(letter, sign, full_scale, match)


_GERMAN = re.compile(
    r"(?<!\w)([a-h])(is|es|s)?(?:\s+|-)?(d[uú]r|moll?)(?!\w)",
    re.IGNORECASE,
)


def _in_german(text: str) -> Iterator[Mention]:
    """German and its neighbours: "d-Moll", "Es-Dur"; H is B, and B is B flat."""
    for match in _GERMAN.finditer(text):
        letter = match[1].lower()
        ending = (match[2] or "").lower()
        scale = match[3].lower()
        if ending == "s" and letter not in "ae":
            continue
        sign = {"is": "#", "": ""}.get(ending, "b")
        if letter == "b":
            sign = "b"
        full_scale = "minor" if scale.startswith("mol") else "major"
        yield _key("B" if letter == "h" else letter.upper(), sign, full_scale, match)


_SYLLABLES = {
    "C": ("do", "dó", "ut", "до"),
    "D": ("re", "ré", "ре"),
    "E": ("mi", "ми"),
    "F": ("fa", "fá", "фа"),
    "G": ("sol", "соль"),
    "A": ("la", "lá", "ля"),
    "B": ("si", "си"),
}
_NOTE_OF_SYLLABLE = {name: note for note, names in _SYLLABLES.items() for name in names}
_SHARPS = ("#", "♯", "dièse", "diese", "diesis", "sostenido", "sustenido", "диез")
_FLATS = ("♭", "bémol", "bemol", "bemolle", "бемоль")
_MINORS = ("mineur", "minör", "menor", "minore", "минор")
_MAJORS = ("majeur", "majör", "mayor", "maior", "maggiore", "мажор")
# They also mean "the greater part" or "my smallest", after syllables that are words.
_COMPARING = ("menor", "minore", "mayor", "maior", "maggiore")
_WORDS_TOO = ("do", "mi", "sol", "la", "si")
_SOLFEGE = re.compile(
    rf"(?<!\w)({'|'.join(sorted(_NOTE_OF_SYLLABLE, key=len, reverse=True))})"
    rf"(?:[\s-]*({'|'.join(sorted((*_SHARPS, *_FLATS), key=len, reverse=True))}))?"
    rf"[\s-]+({'|'.join((*_MINORS, *_MAJORS))})(?:[еау]|ом)?(?!\w)",
    re.IGNORECASE,
)


def _in_solfege(text: str) -> Iterator[Mention]:
    """Romance languages and Russian: "ré mineur", "en la menor", "си-бемоль мажор"."""
    for match in _SOLFEGE.finditer(text):
        syllable = match[1].lower()
        accidental = (match[2] or "").lower()
        scale = match[3].lower()
        if syllable in _WORDS_TOO and scale in _COMPARING and not accidental:
            announced = _BEFORE.search(text[: match.start()])
            if not announced or not _AFTER.match(text, match.end()):
                continue
        sign = _sign(accidental, sharps=_SHARPS, flats=_FLATS)
        full_scale = "minor" if scale in _MINORS else "major"
        yield _key(_NOTE_OF_SYLLABLE[syllable], sign, full_scale, match)


_EASTERN_NOTES = dict(zip("ハニホヘトイロ다라마바사가나", "CDEFGAB" * 2, strict=True))
_EASTERN_MINORS = ("小调", "小調", "短調", "단조", "마이너", "マイナー")
_EASTERN_MAJORS = ("大调", "大調", "長調", "장조", "메이저", "メジャー")
_EASTERN_SHARPS = ("升", "嬰", "올림", "#", "♯")
_EASTERN_FLATS = ("降", "変", "變", "내림", "b", "♭")
_EASTERN = re.compile(
    r"(?<![A-Za-z가-힣ァ-ヶ])(升|降|嬰|変|變|올림|내림)?\s*"
    rf"([A-G{''.join(_EASTERN_NOTES)}])([#♯♭b]?)\s*({'|'.join((*_EASTERN_MINORS, *_EASTERN_MAJORS))})"
)


def _in_eastern_scripts(text: str) -> Iterator[Mention]:
    """Chinese, Japanese, Korean: "降B大调", "嬰ヘ短調", "라단조"."""
    for match in _EASTERN.finditer(text):
        before, note, after, scale = match.groups("")
        sign = _sign(before or after, sharps=_EASTERN_SHARPS, flats=_EASTERN_FLATS)
        full_scale = "minor" if scale in _EASTERN_MINORS else "major"
        yield _key(_EASTERN_NOTES.get(note, note), sign, full_scale, match)


_KEY_READERS: Sequence[KeyReader] = (
    _in_letters,
    _as_chords,
    _in_german,
    _in_solfege,
    _in_eastern_scripts,
)


def _sign(accidental: str, *, sharps: Sequence[str], flats: Sequence[str]) -> str:
    """Return "#", "b" or "" for an accidental as it is written."""
    word = accidental.strip(" -").lower()
    if word in sharps:
        return "#"
    if word in flats:
        return "b"
    return ""


def _key(note: str, sign: str, scale: str, match: re.Match[str]) -> Mention:
    full_scale = "minor" if scale.lower().startswith("min") else "major"
    return Mention(f"{note}{sign} {full_scale}", match.start(), match.end())


# --- time signature -------------------------------------------------------------------------------

_TIME_SIGNATURE = re.compile(r"(?<![\d/.])[2346]/[48](?![\d/]|\s+of\b)")
