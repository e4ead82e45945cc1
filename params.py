"""What a request may say: one request type a mode, its limits, its validation, and the vocabulary of a run.

Every limit stands once, in `LIMITS`; sliders, validators, help texts and documents read it from there. A wrong value
becomes a `Problem`: a sentence that names the field and the allowed range. What a run says while it works (`Progress`,
`Draft`, `Done`, `Failed`) is plain picklable data, because it crosses the border between the GPU worker and the page.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

STUDIO_VERSION = "0.1.0"
SAMPLE_RATE = 48_000
MAX_SEED = 2**32 - 1
MAX_SOURCE_SECONDS = 600
LEAST_REGION_SECONDS = 0.5
MOST_LORAS = 50
MORE_LIKE_THIS = 0.25
"""The variation of one more song like a given one: its own noise stays the greater part."""
INSTRUMENTAL = "[Instrumental]"

# ACE-Step 1.5 constants: BPM, duration, time signatures, keys, languages (acestep/constants.py upstream).
TIME_SIGNATURES = {"2": "2/4", "3": "3/4", "4": "4/4", "6": "6/8"}
KEY_NOTES = tuple(f"{letter}{accidental}" for letter in "ABCDEFG" for accidental in ("", "#", "b"))
KEYS = tuple(f"{note} {scale}" for scale in ("major", "minor") for note in KEY_NOTES)
LANGUAGES = {
    "unknown": "Let the model decide",
    **{"en": "English", "zh": "Chinese", "ja": "Japanese", "es": "Spanish", "de": "German", "fr": "French"},
    **{"pt": "Portuguese", "ru": "Russian", "it": "Italian", "nl": "Dutch", "pl": "Polish", "tr": "Turkish"},
    **{"vi": "Vietnamese", "cs": "Czech", "fa": "Persian", "id": "Indonesian", "ko": "Korean", "uk": "Ukrainian"},
    **{"hu": "Hungarian", "ar": "Arabic", "sv": "Swedish", "ro": "Romanian", "el": "Greek", "az": "Azerbaijani"},
    **{"bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "da": "Danish", "fi": "Finnish", "he": "Hebrew"},
    **{"hi": "Hindi", "hr": "Croatian", "ht": "Haitian Creole", "is": "Icelandic", "la": "Latin"},
    **{"lt": "Lithuanian", "ms": "Malay", "ne": "Nepali", "no": "Norwegian", "pa": "Punjabi", "sa": "Sanskrit"},
    **{"sk": "Slovak", "sr": "Serbian", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai"},
    **{"tl": "Tagalog", "ur": "Urdu", "yue": "Cantonese"},
}
TRACKS = (
    *("vocals", "backing_vocals", "drums", "bass", "guitar", "keyboard"),
    *("percussion", "strings", "synth", "fx", "brass", "woodwinds"),
)
ACTIONS = {
    "repaint": "Repaint a region",
    "morph": "Morph into something else",
    "layer": "Add a layer",
    "extract": "Extract a track",
    "complete": "Complete with tracks",
}
REPAINT_MODES = {
    "conservative": "Conservative: stay close to the old",
    "balanced": "Balanced",
    "aggressive": "Aggressive: start afresh",
}
FORMATS = {"wav": "WAV, 24 bit", "flac": "FLAC, 24 bit", "mp3": "MP3, 320 kbit/s", "ogg": "OGG Vorbis"}
SAMPLERS = {"ode": "Straight (ODE)", "sde": "With fresh noise (SDE)"}
MEMORY_PLANS = {
    "auto": "The fastest that fits",
    "resident": "Everything at once",
    "swap": "One model at a time",
    "offload": "One part of a model at a time",
    "fp8": "One part at a time, 8 bits",
}
QUALITY_STEPS = {"draft": 20, "standard": 50, "best": 80}
STRUCTURES = {
    "Verse-Chorus": "[Verse 1], [Chorus], [Verse 2], [Chorus], [Bridge], [Chorus], [Outro]",
    "Pop with pre-chorus": (
        "[Verse 1], [Pre-Chorus], [Chorus], [Verse 2], [Pre-Chorus], [Chorus], [Bridge], [Final Chorus]"
    ),
    "Ballad": "[Intro], [Verse 1], [Verse 2], [Chorus], [Verse 3], [Chorus], [Bridge], [Chorus], [Outro]",
    "Rock": "[Intro], [Verse 1], [Chorus], [Verse 2], [Chorus], [Guitar Solo], [Bridge], [Chorus], [Outro]",
    "Rap": "[Intro], [Verse 1] with 16 lines, [Hook], [Verse 2] with 16 lines, [Hook], [Outro]",
    "Electronic drop": "[Intro], [Verse], [Build], [Drop], [Breakdown], [Verse 2], [Build], [Drop], [Outro]",
    "Folk strophes": "[Verse 1], [Verse 2], [Verse 3], [Verse 4], the last line of each the same",
    "Blues": "[Verse 1], [Verse 2], [Guitar Solo], [Verse 3], [Outro], the first line of each verse sung twice",
    "Short (jingle)": "[Verse], [Chorus]",
}
"""Presets of lyrics: what the page shows, and what the writer is asked for."""


@dataclass(frozen=True)
class Limit:
    """The range of a number: `low` to `high` in `unit`, with the page's `step`; `default` None means "not given"."""

    label: str
    low: float
    high: float
    default: float | None
    step: float = 1
    unit: str = ""
    integer: bool = False

    def sentence(self, value: object) -> str:
        """Say what is allowed here and what came instead."""
        whole = "a whole number " if self.integer else ""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.label} must be {whole}from {self.low:g} to {self._high()}{unit}, not {shown(value)}."

    def _high(self) -> str:
        return str(int(self.high)) if self.integer else f"{self.high:g}"


LIMITS = {
    "duration": Limit("Length", 10, 600, 60, 1, "seconds"),
    "bpm": Limit("BPM", 30, 300, None, 1, "beats a minute", integer=True),
    "takes": Limit("Takes", 1, 4, 1, 1, integer=True),
    "seed": Limit("Seed", -1, MAX_SEED, -1, 1, "(-1 draws one)", integer=True),
    "steps": Limit("Steps", 1, 200, None, 1, integer=True),
    "guidance": Limit("Guidance", 1, 15, None, 0.5),
    "shift": Limit("Shift", 1, 5, None, 0.1),
    "cfg_start": Limit("Guidance starts at", 0, 1, 0, 0.05),
    "cfg_end": Limit("Guidance ends at", 0, 1, 1, 0.05),
    "loudness": Limit("Loudness", -30, -6, None, 0.5, "LUFS"),
    "fade_out": Limit("Fade-out", 0, 30, 0, 0.5, "seconds"),
    "strength": Limit("Strength", 0, 1, 0.8, 0.05),
    "noise_strength": Limit("Noise strength", 0, 1, 0, 0.05),
    "before": Limit("Seconds before", 0, 300, 0, 1, "seconds"),
    "after": Limit("Seconds after", 0, 300, 30, 1, "seconds"),
    "overlap": Limit("Overlap", 0.1, 10, 2, 0.1, "seconds"),
    "start": Limit("Start", 0, MAX_SOURCE_SECONDS, 0, 0.1, "seconds"),
    "end": Limit("End", 0, MAX_SOURCE_SECONDS, 0, 0.1, "seconds"),
    "repaint_strength": Limit("Repaint strength", 0, 1, 0.5, 0.05),
    "n_min": Limit("Morph starts at", 0, 1, 0, 0.05),
    "n_max": Limit("Morph ends at", 0, 1, 1, 0.05),
    "n_avg": Limit("Morph averages", 1, 8, 1, 1, integer=True),
    "lora_weight": Limit("Weight of a LoRA", 0, 2, 1, 0.05),
    "variation": Limit("Variation", 0, 1, 0, 0.05),
    "variation_seed": Limit("Variation seed", -1, MAX_SEED, -1, 1, "(-1 draws one)", integer=True),
    "plan_seed": Limit("Plan seed", -1, MAX_SEED, -1, 1, "(-1 takes the first take's)", integer=True),
    "plan_temperature": Limit("Plan temperature", 0, 2, 0.85, 0.05, "(0 always takes the likeliest)"),
    "plan_cfg": Limit("Plan guidance", 1, 5, 2, 0.1),
    "temperature": Limit("Temperature", 0, 2, 0.8, 0.05, "(0 always takes the likeliest word)"),
    "top_p": Limit("Top-p", 0.05, 1, 0.9, 0.05),
    "max_tokens": Limit("Max length", 16, 2_048, 1_024, 16, "tokens", integer=True),
}
TEXT_LIMITS = {
    **{"prompt": 2_000, "lyrics": 10_000, "source_prompt": 2_000, "source_lyrics": 10_000},
    **{"brief": 2_000, "structure": 500, "tone": 200, "idea": 2_000},
}
TEXT_LABELS = {
    "prompt": "Prompt",
    "lyrics": "Lyrics",
    "source_prompt": "Prompt of the source",
    "source_lyrics": "Lyrics of the source",
    "brief": "Brief",
    "structure": "Structure",
    "tone": "Tone",
    "idea": "Idea",
}


# --- problems -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing that went wrong, for a person: `code` for programs, `field` where it belongs, `message`, `hint`."""

    code: str
    message: str
    field: str = ""
    hint: str = ""

    def text(self) -> str:
        """Return the message and, where there is one, the hint."""
        return f"{self.message} {self.hint}".strip()


class StudioError(Exception):
    """Carries a `Problem` up to the border where it becomes a value."""

    def __init__(self, code: str, message: str, field: str = "", hint: str = ""):
        super().__init__(code, message, field, hint)
        self.problem = Problem(code, message, field, hint)

    def __str__(self) -> str:
        return self.problem.text()


class InvalidRequest(StudioError):
    """Some fields hold what they may not; `problems` has one entry for each."""

    def __init__(self, problems: tuple[Problem, ...]):
        first = problems[0]
        super().__init__(first.code, first.message, first.field, first.hint)
        self.problems = problems

    def __reduce__(self):
        return InvalidRequest, (self.problems,)


# --- what a run says ----------------------------------------------------------------------------------------------

Stage = Literal[
    *("waiting", "downloading", "loading", "preparing", "writing", "planning"),
    *("reading", "steps", "decoding", "finishing", "aligning"),
]


@dataclass(frozen=True)
class Progress:
    """Where a run is: `step` of `steps` within `stage`; `elapsed` and `left` in seconds (None: not known yet).

    `note` says something once that the visitor should know, such as why the model is loaded again.
    """

    stage: Stage
    step: int = 0
    steps: int = 0
    elapsed: float = 0.0
    left: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Draft:
    """The lyrics so far: `text`, the number of `tokens` drawn, and why it ended: "" not yet, "stop" or "length".

    "stop" is the model's own end; at "length" the lyrics were cut after `max_tokens`.
    """

    text: str
    tokens: int
    end: Literal["", "stop", "length"] = ""


@dataclass(frozen=True)
class Done:
    """A finished run: paths of the audio files, one per good take, and the record; words alone have no files."""

    files: tuple[str, ...]
    record: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """A run that ended without a song."""

    problem: Problem


Event = Progress | Draft | Done | Failed


# --- field checks -------------------------------------------------------------------------------------------------


def shown(value: object, most: int = 40) -> str:
    """Quote a wrong value briefly: numbers as they are, text cut to `most` characters, control characters dropped."""
    if isinstance(value, bool | int | float):
        return str(value)
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return f'"{text[:most]}..."' if len(text) > most else f'"{text}"'


def _fail(kind: str, sentence: str) -> PydanticCustomError:
    return PydanticCustomError(kind, "{sentence}", {"sentence": sentence})


def _number(name: str):
    limit = LIMITS[name]

    def check(value: object) -> float | int | None:
        if value is None and limit.default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _fail("number", limit.sentence(value))
        # Before int(), which raises for NaN; and by comparing, because a huge int fits no float.
        if not limit.low <= value <= limit.high:
            raise _fail("range", limit.sentence(value))
        if limit.integer and value != int(value):
            raise _fail("integer", limit.sentence(value))
        return int(value) if limit.integer else float(value)

    kind = int if limit.integer else float
    return Annotated[kind | None if limit.default is None else kind, BeforeValidator(check)]


def _text(name: str, wanted: str = ""):
    """Check a text; one that must not be empty has `wanted`, which tells what it is for."""
    label, most = TEXT_LABELS[name], TEXT_LIMITS[name]

    def check(value: object) -> str:
        if value is not None and not isinstance(value, str):
            raise _fail("text", f"{label} must be text, not {shown(value)}.")
        value = value or ""
        if len(value) > most:
            raise _fail("length", f"{label} may have up to {most:,} characters; this has {len(value):,}.")
        kept = "".join(c for c in value if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs")).strip()
        if wanted and not kept:
            raise _fail("length", f"{label} must have from 1 to {most:,} characters: {wanted}.")
        return kept

    return Annotated[str, BeforeValidator(check)]


def _choice(label: str, choices: Mapping[str, Any]):
    def check(value: object) -> str:
        if isinstance(value, str) and value.strip().lower() in choices:
            return value.strip().lower()
        listed = ", ".join(choices) if len(choices) <= 12 else f"one of the {len(choices)} listed codes"
        raise _fail("choice", f"{label} must be {'one of ' if len(choices) <= 12 else ''}{listed}, not {shown(value)}.")

    return Annotated[str, BeforeValidator(check)]


def parse_key(value: object) -> str:
    """Return a key as the model reads it, such as "F# minor"; "Am", "Bb", "c Major" and "E♭ min" are understood.

    Raises PydanticCustomError where it is no key of the 42 (7 letters, natural, sharp or flat, major or minor).
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    text = str(value).strip().replace("♯", "#").replace("♭", "b")
    found = re.fullmatch(r"([A-Ga-g])([#b]?)\s*(major|maj|minor|min|M|m)?", text) or re.fullmatch(
        r"(?i:([A-G])([#b]?)\s*(major|maj|minor|min))", text
    )
    if not isinstance(value, str) or not found:
        raise _fail("key", f'Key must be a note from A to G with major or minor, like "F# minor", not {shown(value)}.')
    letter, accidental, scale = found.groups()
    minor = bool(scale) and (scale == "m" or scale.lower().startswith("min"))
    return f"{letter.upper()}{accidental.lower()} {'minor' if minor else 'major'}"


def parse_time_signature(value: object) -> str:
    """Return "2", "3", "4" or "6" (2/4, 3/4, 4/4, 6/8), or "" where none is given; "4/4" and 4 are understood."""
    if value is None or value == "":
        return ""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    by_name = {name: number for number, name in TIME_SIGNATURES.items()}
    text = by_name.get(text, text)
    if text in TIME_SIGNATURES and not isinstance(value, bool):
        return text
    raise _fail("time_signature", f"Time signature must be 2, 3, 4 or 6 (2/4, 3/4, 4/4, 6/8), not {shown(value)}.")


def _source(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise _fail("source", f"Source must be an audio file of 1 to {MAX_SOURCE_SECONDS} seconds; none was given.")


def _tracks(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise _fail("tracks", f"Tracks must be a list of names, not {shown(value)}.")
    cleaned = tuple(dict.fromkeys(name.strip().lower().replace(" ", "_") for name in names))
    for name in cleaned:
        if name not in TRACKS:
            raise _fail("tracks", f"Tracks must be among {', '.join(TRACKS)}, not {shown(name)}.")
    return cleaned


def _flag(label: str):
    def check(value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise _fail("flag", f"{label} must be true or false, not {shown(value)}.")

    return Annotated[bool, BeforeValidator(check)]


# --- requests -----------------------------------------------------------------------------------------------------


class LoraChoice(BaseModel):
    """A LoRA and how much it acts; `source` is a preset's name, "org/repo", "org/repo:file" or an uploaded file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    weight: float


def _loras(value: object) -> tuple[LoraChoice, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise _fail("loras", f"LoRAs must be a list of objects with source and weight, not {shown(value)}.")
    if len(value) > MOST_LORAS:
        raise _fail("loras", f"LoRAs must be from 0 to {MOST_LORAS}, not {len(value)}.")
    return tuple(_lora(number, item) for number, item in enumerate(value, 1))


def _lora(number: int, item: object) -> LoraChoice:
    if isinstance(item, LoraChoice):
        return item
    item = {"source": item} if isinstance(item, str) else item
    if not isinstance(item, Mapping) or not isinstance(item.get("source"), str) or not item["source"].strip():
        raise _fail(
            "loras",
            f'LoRA {number} must name its source: a preset, "org/repo", "org/repo:file" or an uploaded file.',
        )
    if unknown := sorted(map(str, item.keys() - {"source", "weight"})):
        raise _fail("loras", f"{shown(unknown[0])} of LoRA {number} is not known here. Known: source, weight.")
    weight, limit = item.get("weight", LIMITS["lora_weight"].default), LIMITS["lora_weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not limit.low <= weight <= limit.high:
        raise _fail(
            "loras", f"The weight of LoRA {number} must be from {limit.low:g} to {limit.high:g}, not {shown(weight)}."
        )
    return LoraChoice(source=item["source"].strip(), weight=float(weight))


class Options(BaseModel):
    """The advanced settings of a song; None means the checkpoint's own default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: _number("steps") = None
    guidance: _number("guidance") = None
    shift: _number("shift") = None
    sampler: _choice("Sampler", SAMPLERS) = "ode"
    cfg_start: _number("cfg_start") = 0.0
    cfg_end: _number("cfg_end") = 1.0
    format: _choice("Format", FORMATS) = "wav"
    loudness: _number("loudness") = None
    fade_out: _number("fade_out") = 0.0
    variation: _number("variation") = 0.0
    variation_seed: _number("variation_seed") = -1
    timbre_token: _flag("Timbre token") = True
    memory_plan: _choice("Memory plan", MEMORY_PLANS) = "auto"
    loras: Annotated[tuple[LoraChoice, ...], BeforeValidator(_loras)] = ()

    @model_validator(mode="after")
    def _interval(self):
        if self.cfg_start > self.cfg_end:
            raise _fail(
                "cfg_end",
                f"Guidance ends at must not be below Guidance starts at ({self.cfg_start:g}), "
                f"not {self.cfg_end:g}; both are from 0 to 1.",
            )
        return self


class SongWords(BaseModel):
    """A song in words; None, "" and the language "unknown" leave a field open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: _text("prompt") = ""
    lyrics: _text("lyrics") = ""
    instrumental: _flag("Instrumental") = False
    bpm: _number("bpm") = None
    key: Annotated[str, BeforeValidator(parse_key)] = ""
    time_signature: Annotated[str, BeforeValidator(parse_time_signature)] = ""
    language: _choice("Language", LANGUAGES) = "unknown"

    def sung_lyrics(self) -> str:
        """Return the lyrics the model gets: the instrumental switch wins, and no lyrics mean no singing."""
        return INSTRUMENTAL if self.instrumental or not self.lyrics else self.lyrics

    def _needs_words(self) -> None:
        if not self.prompt and (self.instrumental or not self.lyrics):
            what = "the lyrics are switched off by Instrumental" if self.lyrics else "there are no lyrics either"
            raise _fail("prompt", f"Prompt must have from 1 to {TEXT_LIMITS['prompt']:,} characters: {what}.")


class SongRequest(SongWords):
    """What every song endpoint takes (design: the contract)."""

    takes: _number("takes") = 1
    quality: _choice("Quality", QUALITY_STEPS) = "standard"
    seed: _number("seed") = -1
    options: Options = Field(default_factory=Options)

    @model_validator(mode="after")
    def _seeds_fit(self):
        if self.seed + self.takes - 1 > MAX_SEED:
            raise _fail("seed", f"Seed must be from -1 to {MAX_SEED - self.takes + 1} for {self.takes} takes.")
        return self


class GenerateOptions(Options):
    """`plan` lets the planner write metadata and audio codes first, `rewrite` the prompt too, where there is one."""

    plan: _flag("Plan the song first") = True
    plan_seed: _number("plan_seed") = -1
    plan_temperature: _number("plan_temperature") = 0.85
    plan_cfg: _number("plan_cfg") = 2.0
    rewrite: _flag("Let it rewrite my prompt") = False


class GenerateRequest(SongRequest):
    """A song from words: `duration` in seconds, `reference` an optional audio file that lends its timbre."""

    mode: Literal["generate"] = "generate"
    duration: _number("duration") = 60.0
    reference: str | None = None
    options: GenerateOptions = Field(default_factory=GenerateOptions)

    @model_validator(mode="after")
    def _says_something(self):
        self._needs_words()
        return self


class CoverOptions(Options):
    """`noise_strength` 0 starts from noise alone, 1 from the source itself."""

    noise_strength: _number("noise_strength") = 0.0


class CoverRequest(SongRequest):
    """A new version of `source`, as long as it; `strength` is the share of the steps that follow its melody."""

    mode: Literal["cover"] = "cover"
    source: Annotated[str, BeforeValidator(_source)]
    reference: str | None = None
    strength: _number("strength") = 0.8
    options: CoverOptions = Field(default_factory=CoverOptions)

    @model_validator(mode="after")
    def _says_something(self):
        self._needs_words()
        return self


class ExtendOptions(Options):
    """`overlap`: seconds of the source at each new end that are made anew and faded into."""

    overlap: _number("overlap") = 2.0


class ExtendRequest(SongRequest):
    """`source` with `before` and `after` seconds of new music at its ends."""

    mode: Literal["extend"] = "extend"
    source: Annotated[str, BeforeValidator(_source)]
    before: _number("before") = 0.0
    after: _number("after") = 30.0
    options: ExtendOptions = Field(default_factory=ExtendOptions)

    @model_validator(mode="after")
    def _adds_something(self):
        self._needs_words()
        if not _samples(self.before) + _samples(self.after):
            raise _fail("after", "Seconds before and Seconds after, each from 0 to 300, must not both be 0.")
        return self


class EditOptions(Options):
    """Repaint: `repaint_mode`, `repaint_strength`. Morph: `n_min`, `n_max`, `n_avg`. Layer: `mix` adds the source."""

    repaint_mode: _choice("Repaint mode", REPAINT_MODES) = "balanced"
    repaint_strength: _number("repaint_strength") = 0.5
    n_min: _number("n_min") = 0.0
    n_max: _number("n_max") = 1.0
    n_avg: _number("n_avg") = 1
    mix: _flag("Mix") = False

    @model_validator(mode="after")
    def _morph_interval(self):
        if self.n_min >= self.n_max:
            raise _fail(
                "n_max",
                f"Morph ends at must be from 0 to 1 and above Morph starts at ({self.n_min:g}), not {self.n_max:g}.",
            )
        return self


# An option that another action would ignore is refused rather than dropped.
ACTION_OPTIONS = {
    "repaint": {"repaint_mode", "repaint_strength"},
    "morph": {"n_min", "n_max", "n_avg"},
    "layer": {"mix"},
    "extract": set(),
    "complete": set(),
}


class EditRequest(SongRequest):
    """A change to `source` that keeps its length; `end` 0 means the end of the file."""

    mode: Literal["edit"] = "edit"
    source: Annotated[str, BeforeValidator(_source)]
    action: _choice("Action", ACTIONS) = "repaint"
    start: _number("start") = 0.0
    end: _number("end") = 0.0
    source_prompt: _text("source_prompt") = ""
    source_lyrics: _text("source_lyrics") = ""
    tracks: Annotated[tuple[str, ...], BeforeValidator(_tracks)] = ()
    options: EditOptions = Field(default_factory=EditOptions)

    @model_validator(mode="after")
    def _fits_its_action(self):
        self._check_tracks()
        self._check_region()
        specific = set().union(*ACTION_OPTIONS.values()) - ACTION_OPTIONS[self.action]
        for name in sorted(specific & self.options.model_fields_set):
            owner = next(action for action, names in ACTION_OPTIONS.items() if name in names)
            raise _fail(f"options.{name}", f"{shown(name)} belongs to the action {owner}, not to {self.action}.")
        return self

    def _check_tracks(self) -> None:
        count = len(self.tracks)
        wanted = {"layer": "exactly one track", "extract": "exactly one track", "complete": "one or more tracks"}
        if self.action not in wanted and count:
            raise _fail("tracks", f"Tracks are for layer, extract and complete, not for {self.action}.")
        if (self.action in ("layer", "extract") and count != 1) or (self.action == "complete" and not count):
            known = ", ".join(TRACKS)
            raise _fail("tracks", f"Tracks must name {wanted[self.action]} for {self.action}, not {count}: {known}.")

    def _check_region(self) -> None:
        if self.action not in ("repaint", "layer"):
            if self.start or self.end:
                field = "start" if self.start else "end"
                raise _fail(
                    field, f"Start and End choose a region for repaint and layer; {self.action} takes the whole file."
                )
            return
        if self.end and _samples(self.end) - _samples(self.start) < _samples(LEAST_REGION_SECONDS):
            raise _fail(
                "end",
                f"End must be at least {LEAST_REGION_SECONDS:g} seconds after Start ({self.start:g}) or 0, "
                f"which means the end of the file, not {self.end:g}.",
            )


class LyricsOptions(BaseModel):
    """How the next word is chosen, and how many tokens there may be; `temperature` 0 always takes the likeliest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: _number("temperature") = 0.8
    top_p: _number("top_p") = 0.9
    max_tokens: _number("max_tokens") = 1_024


class LyricsRequest(BaseModel):
    """Lyrics from a brief: `structure` is the name of a preset or free text, "" leaves it to the writer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["lyrics"] = "lyrics"
    # A missing brief gets the sentence of an empty one.
    brief: _text("brief", wanted="say what the song is about") = Field(default="", validate_default=True)
    structure: _text("structure") = ""
    language: _choice("Language", LANGUAGES) = "en"
    tone: _text("tone") = ""
    seed: _number("seed") = -1
    options: LyricsOptions = Field(default_factory=LyricsOptions)


class InspireRequest(BaseModel):
    """Prompt, lyrics and metadata from a plain `idea`, which may be empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["inspire"] = "inspire"
    idea: _text("idea") = ""
    instrumental: _flag("Instrumental") = False
    language: _choice("Language", LANGUAGES) = "unknown"
    seed: _number("seed") = -1


class PolishRequest(SongWords):
    """The same song in the words that the song model knows; given fields stay."""

    mode: Literal["polish"] = "polish"
    duration: _number("duration") = 60.0
    seed: _number("seed") = -1

    @model_validator(mode="after")
    def _says_something(self):
        self._needs_words()
        return self


class DescribeRequest(BaseModel):
    """What the recording `source` sounds like, in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["describe"] = "describe"
    source: Annotated[str, BeforeValidator(_source)]
    seed: _number("seed") = -1


class AlignRequest(SongWords):
    """When each line of `lyrics` is sung in the finished song `source`; the rest is what its record says of it.

    `steps` is how many it was made in, None the checkpoint's usual number; `planned` whether its plan was used.
    """

    mode: Literal["align"] = "align"
    source: Annotated[str, BeforeValidator(_source)]
    steps: _number("steps") = None
    planned: _flag("Planned") = False
    seed: _number("seed") = -1

    @model_validator(mode="after")
    def _is_sung(self):
        if self.sung_lyrics() == INSTRUMENTAL:
            most = TEXT_LIMITS["lyrics"]
            raise _fail("lyrics", f"Lyrics must have from 1 to {most:,} characters: without them nothing is sung.")
        return self


Request = SongRequest | LyricsRequest | InspireRequest | PolishRequest | DescribeRequest | AlignRequest
SONG_REQUESTS: dict[str, type[SongRequest]] = {
    "generate": GenerateRequest,
    "cover": CoverRequest,
    "extend": ExtendRequest,
    "edit": EditRequest,
}
REQUESTS: dict[str, type[Request]] = {
    **SONG_REQUESTS,
    "lyrics": LyricsRequest,
    "inspire": InspireRequest,
    "polish": PolishRequest,
    "describe": DescribeRequest,
    "align": AlignRequest,
}


def check_source(request: Request, seconds: float) -> None:
    """Check what depends on the source's length in seconds; raises InvalidRequest with the field and the range.

    Times are compared as samples: a length that a client computed, or that was resampled, may be off by a fraction.
    """
    length, total = f"{seconds:.6g}", _samples(seconds)
    if isinstance(request, ExtendRequest):
        room = MAX_SOURCE_SECONDS - seconds
        if _samples(request.before) + total + _samples(request.after) > _samples(MAX_SOURCE_SECONDS):
            field = "after" if request.after >= request.before else "before"
            message = (
                f"Seconds before and after together must be from 0 to {max(room, 0):.6g} for a source of {length} "
                f"seconds (a song lasts up to {MAX_SOURCE_SECONDS}), not {request.before + request.after:g}."
            )
            raise InvalidRequest((Problem("invalid", message, field),))
    if isinstance(request, EditRequest) and request.action in ("repaint", "layer"):
        start, end = _samples(request.start), _samples(request.end) or total
        problem = None
        if start > total - _samples(LEAST_REGION_SECONDS):
            latest = max(seconds - LEAST_REGION_SECONDS, 0)
            problem = "start", f"Start must be from 0 to {latest:.6g} seconds in this source, not {request.start:g}."
        elif end > total:
            problem = "end", f"End must be from 0 to {length} seconds, the length of this source, not {request.end:g}."
        elif request.action == "repaint" and start == 0 and end == total:
            problem = (
                "end",
                f"Start and End must leave some of the source (0 to {length} seconds) as it is; to change all of it, "
                "use Cover or Morph.",
            )
        if problem:
            raise InvalidRequest((Problem("invalid", problem[1], problem[0]),))


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def parse_request(mode: str, values: Mapping[str, Any]) -> Request:
    """Build the request of `mode`; raises InvalidRequest with one sentence for each wrong field."""
    values = dict(values)
    if "options" in REQUESTS[mode].model_fields:
        options = values.get("options")
        if options is None:
            values["options"] = {}
        elif not isinstance(options, Mapping | REQUESTS[mode].model_fields["options"].annotation):
            raise InvalidRequest((Problem("invalid", f"Options must be an object, not {shown(options)}.", "options"),))
    try:
        return REQUESTS[mode].model_validate(values)
    except ValidationError as error:
        raise InvalidRequest(tuple(_problem(mode, item) for item in error.errors())) from None


def _problem(mode: str, item: dict[str, Any]) -> Problem:
    place = [str(part) for part in item["loc"]]
    kind, request = item["type"], REQUESTS[mode]
    # Errors of a whole model name the field they belong to in their type.
    if not place or (place == ["options"] and kind != "extra_forbidden"):
        place = [*place, *kind.split(".")]
    name = ".".join(place)
    if kind == "missing":
        return Problem("invalid", _source_missing(name), name)
    if kind == "extra_forbidden":
        inside = place[0] == "options" and len(place) > 1
        names = (request.model_fields["options"].annotation if inside else request).model_fields
        known = ", ".join(sorted(names.keys() - {"mode"}))
        return Problem("invalid", f"{shown(name)} is not known here. Known: {known}.", name)
    if "sentence" in item.get("ctx", {}):
        return Problem("invalid", item["ctx"]["sentence"], name)
    return Problem("invalid", f"{name} is not understood: {item['msg']}.", name)


def _source_missing(name: str) -> str:
    if name == "source":
        return f"Source must be an audio file of 1 to {MAX_SOURCE_SECONDS} seconds; none was given."
    return f"{name} is missing."


# --- what the checkpoint makes of it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """The numbers of one run after the checkpoint's defaults; the SFT's are 50 `steps`, `guidance` 7, `shift` 1."""

    steps: int
    guidance: float
    shift: float


def sampling_settings(request: SongRequest, turbo: bool) -> tuple[Sampling, list[str]]:
    """Resolve quality and options for a checkpoint; returns the numbers and sentences on what could not be followed.

    A turbo checkpoint has guidance distilled into its weights and an 8-step schedule of shift 3 (upstream's table).
    """
    options, notes = request.options, []
    if not turbo:
        steps = options.steps or QUALITY_STEPS[request.quality]
        guidance = 7.0 if options.guidance is None else options.guidance
        return Sampling(steps, guidance, 1.0 if options.shift is None else options.shift), notes
    if options.guidance is not None and options.guidance > 1:
        notes.append("Guidance was left out: this turbo checkpoint has it built in.")
    if options.steps is None and request.quality != "standard":
        notes.append("A turbo checkpoint makes every quality in 8 steps; Steps under Advanced changes that.")
    return Sampling(options.steps or 8, 1.0, 3.0 if options.shift is None else options.shift), notes
