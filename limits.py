"""The limits of every field, the words it may hold, and the check of its value.

Sliders, validators, help texts and documents read `LIMITS` and `TEXT_LIMITS`. A check returns the
value as the model reads it, or raises a sentence that names the field and the allowed range.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from plain_text import plain, plain_number


def preset(name: str) -> Any:
    """Return the contents of presets/`name`.json."""
    path = Path(__file__).with_name("presets") / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


STUDIO_VERSION = "0.1.0"
SAMPLE_RATE = 48_000
CODES_PER_SECOND = 5  # audio codes of a second of music, of which a plan consists
MAX_SEED = 2**32 - 1
MAX_SOURCE_SECONDS = 600
AUTOMATIC_SECONDS = 240.0  # the longest song that a planner may choose to make
# GPU time for such a song on ZeroGPU: the daily quota of a visitor without an account.
AUTOMATIC_GPU_SECONDS = 120
LEAST_REGION_SECONDS = 0.5
MOST_REGIONS = 16
MOST_LORAS = 50
# Of a name that a caller makes up and the studio keeps: a session, an upload.
MOST_NAME_LETTERS = 100
MAX_TEXT_TOKENS = 256  # the song model's budget for the rendered prompt with its song details
MAX_LYRIC_TOKENS = 2_048  # and for the rendered lyrics
MORE_LIKE_THIS = 0.25  # the variation of "More like this"
INSTRUMENTAL = "[Instrumental]"

# BPM, durations, time signatures, keys and languages are ACE-Step 1.5's (acestep/constants.py
# upstream).
TIME_SIGNATURES = {"2": "2/4", "3": "3/4", "4": "4/4", "6": "6/8"}
KEYS = tuple(
    f"{letter}{sign} {scale}"
    for scale in ("major", "minor")
    for letter in "ABCDEFG"
    for sign in ("", "#", "b")
)
LANGUAGES: dict[str, str] = preset("languages")
TRACKS = (
    "vocals",
    "backing_vocals",
    "drums",
    "bass",
    "guitar",
    "keyboard",
    "percussion",
    "strings",
    "synth",
    "fx",
    "brass",
    "woodwinds",
)
ACTIONS = {
    "repaint": "Replace a section",
    "morph": "Morph into something else",
    "layer": "Add a layer",
    "extract": "Extract a track",
    "complete": "Add a band",
}
REPAINT_MODES = {
    "conservative": "Conservative: stay close to the source",
    "balanced": "Balanced",
    "aggressive": "Aggressive: start from scratch",
}
# what a cover takes from its source
DETAILS = {"codes": "Melody and rhythm", "sound": "The sound itself"}
# what a songwriter does with lines of lyrics
REWRITES = {"rewrite": "Rewrite", "rhyme": "Rhyme", "shorter": "Shorter"}
MOST_REWRITTEN = 16  # lines at a time
# what the score of a take is put together from
SCORE_PARTS = {
    "lyrics": "Lyrics can be followed",
    "recognition": "The planner recognizes the words",
    "tempo": "Tempo",
    "silence": "Long silences",
    "clipping": "Clipping",
    "noise": "Noise",
    "ending": "Abrupt end",
}
FORMATS = {
    "wav": "WAV, 24 bit",
    "flac": "FLAC, 24 bit",
    "mp3": "MP3, 320 kbit/s",
    "ogg": "OGG Vorbis",
}
SAMPLERS = {"ode": "Straight (ODE)", "sde": "With fresh noise (SDE)"}
MEMORY_PLANS = {
    "auto": "Fastest that fits",
    "resident": "Everything at once",
    "swap": "One model at a time",
    "offload": "One part of a model at a time",
    "fp8": "One part at a time, 8 bits",
    "fast8": "Computed in 8 bits: faster, less exact",
}
# The official checkpoints by what they were trained for, and the engine that comes with the studio.
MODELS = {"sft": "Best", "turbo": "Fast", "base": "Stems", "preview": "Built-in"}
MOST_MODEL_LETTERS = 500
QUALITY_STEPS = {"draft": 20, "standard": 50, "best": 80}
# The same for the built-in engine (docs/preview-engine.md).
BUILT_IN_STEPS = {"draft": 4, "standard": 8, "best": 16}
# The sections that the songwriter is asked for, by their name on the page.
STRUCTURES: dict[str, str] = preset("structures")


def shown(value: object, most: int = 40) -> str:
    """Quote a value for a message: text is cut to `most` characters, control characters become spaces."""
    if isinstance(value, bool | int | float):
        return str(value)
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    if len(text) > most:
        return f'"{text[:most]}..."'
    return f'"{text}"'


def samples_in(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def size_text(size: int) -> str:
    if size >= 10**8:
        return f"{size / 10**9:.1f} GB"
    return f"{size / 10**6:.1f} MB"


@dataclass(frozen=True)
class Limit:
    """The range of a number, and the step of its slider; with `default` None the field may stay empty."""

    label: str
    low: float
    high: float
    default: float | None
    step: float = 1
    unit: str = ""
    integer: bool = False

    def parse(self, value: object) -> float | int | None:
        """Return the number `value`, or None if the field may stay empty; raises a `field_error` out of range."""
        if value is None and self.default is None:
            return None
        return self.parse_given(value)

    def parse_given(self, value: object) -> float | int:
        """Return the number `value`, which may not be None; raises a `field_error` out of range."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            # NaN is in no range, so that int() does not raise.
            in_range = self.low <= value <= self.high
            if in_range and not self.integer:
                return float(value)
            if in_range and value == int(value):
                return int(value)
        whole = "a whole number " if self.integer else ""
        unit = f" {self.unit}" if self.unit else ""
        raise field_error(
            f"{self.label} must be {whole}from {self.low:g} to {self.high:.12g}{unit}, not {shown(value)}."
        )

    def parse_or_none(self, value: object) -> float | int | None:
        """Return the number `value`, or None, which stands for itself whatever the default is."""
        if value is None:
            return None
        return self.parse(value)


LIMITS = {
    "duration": Limit("Length", 10, 600, 60, 1, "seconds"),
    "bpm": Limit("BPM", 30, 300, None, 1, "beats per minute", integer=True),
    "takes": Limit("Takes", 1, 4, 1, integer=True),
    "best_of": Limit("Best of", 1, 8, None, integer=True),
    "seed": Limit("Seed", -1, MAX_SEED, -1, 1, "(-1 picks one at random)", integer=True),
    "steps": Limit("Steps", 1, 200, None, integer=True),
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
    "n_avg": Limit("Morph averages", 1, 8, 1, integer=True),
    "lora_weight": Limit("Weight of a LoRA", 0, 2, 1, 0.05),
    "variation": Limit("Variation", 0, 1, 0, 0.05),
    "variation_seed": Limit(
        "Variation seed", -1, MAX_SEED, -1, 1, "(-1 picks one at random)", integer=True
    ),
    "plan_seed": Limit(
        "Plan seed", -1, MAX_SEED, -1, 1, "(-1 uses the first take's)", integer=True
    ),
    "plan_temperature": Limit(
        "Plan temperature", 0, 2, 0.85, 0.05, "(0 always picks the likeliest)"
    ),
    "plan_cfg": Limit("Plan guidance", 1, 5, 2, 0.1),
    "plan_strength": Limit("Plan strength", 0, 1, 1, 0.05),
    "temperature": Limit("Temperature", 0, 2, 0.8, 0.05, "(0 always picks the likeliest word)"),
    "top_p": Limit("Top-p", 0.05, 1, 0.9, 0.05),
    "max_tokens": Limit("Max length", 16, 2_048, 1_024, 16, "tokens", integer=True),
}
# The most characters of each text.
TEXT_LIMITS = {
    "prompt": 2_000,
    "lyrics": 10_000,
    "source_prompt": 2_000,
    "source_lyrics": 10_000,
    "brief": 2_000,
    "structure": 500,
    "tone": 200,
    "idea": 2_000,
    "exclude": 500,
}
MOST_WAITING = 32  # runs in the queue
MOST_WAITING_OF_A_PAGE = 3
# From one network address: a program's, or those of all pages behind one router, as many as eight
# pages may have. Leaves room for others.
MOST_WAITING_OF_AN_ADDRESS = 24
# Minutes of work that one owner may have waiting.
MOST_MINUTES = 600
MOST_MINUTES_ON_A_SPACE = 60
# How many times that everybody at one network address may have waiting together: enough for a class,
# whose songs take a few minutes each.
OWNERS_OF_AN_ADDRESS = 2
# The longest text that the browser keeps across reloads, too long ones included: the visitor may
# still shorten them.
KEPT_TEXT = 4 * max(TEXT_LIMITS.values())


# --- checks of single fields ----------------------------------------------------------------------


def field_error(sentence: str, field: str = "") -> PydanticCustomError:
    """Return an error with a sentence for people; the validator of a whole model has to name the `field`."""
    return PydanticCustomError("wrong", "{sentence}", {"sentence": sentence, "field": field})


def number(name: str) -> BeforeValidator:
    """Return the check of a number within `LIMITS[name]`; a field whose default is None may stay empty."""
    return BeforeValidator(LIMITS[name].parse)


def number_or_none(name: str) -> BeforeValidator:
    """Return the check of a number within `LIMITS[name]`, where None means something other than the default."""
    return BeforeValidator(LIMITS[name].parse_or_none)


def usual(name: str) -> float:
    """Return the default of `LIMITS[name]`, which must have one."""
    default = LIMITS[name].default
    assert default is not None, name
    return float(default)


def usual_count(name: str) -> int:
    """Return the default of `LIMITS[name]`, a whole number, which must have one."""
    return int(usual(name))


def text(name: str, wanted: str = "") -> BeforeValidator:
    """Return the check of a text within `TEXT_LIMITS[name]`.

    With `wanted`, such as "describe the song", the text must not be empty.
    """
    label = name.removeprefix("source_").capitalize()
    most = TEXT_LIMITS[name]
    if name.startswith("source_"):
        label += " of the source"

    def check(value: object) -> str:
        if value is not None and not isinstance(value, str):
            raise field_error(f"{label} must be text, not {shown(value)}.")
        value = value or ""
        if len(value) <= KEPT_TEXT:
            value = plain(value)
        if len(value) > most:
            raise field_error(
                f"{label} may have up to {most:,} characters; this has {len(value):,}."
            )
        kept = "".join(filter(_is_text, value)).strip()
        if wanted and not kept:
            raise field_error(f"{label} is empty: {wanted}, in up to {most:,} characters.")
        return kept

    return BeforeValidator(check)


def _is_text(character: str) -> bool:
    """Tell whether a text may hold `character`: no control characters, no halves of surrogate pairs."""
    return character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")


def choice(label: str, choices: Mapping[str, Any]) -> BeforeValidator:
    """Return the check of a key of `choices`, in upper or lower case."""
    if len(choices) <= 12:
        listed = f"one of {', '.join(choices)}"
    else:
        listed = f"one of the {len(choices)} listed codes"

    def check(value: object) -> str:
        if isinstance(value, str) and value.strip().lower() in choices:
            return value.strip().lower()
        raise field_error(f"{label} must be {listed}, not {shown(value)}.")

    return BeforeValidator(check)


def flag(label: str) -> BeforeValidator:
    """Return the check of true or false; unlike pydantic's bool it takes nothing else, such as 1 or "yes"."""

    def check(value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise field_error(f"{label} must be true or false, not {shown(value)}.")

    return BeforeValidator(check)


def parse_model(value: object) -> str:
    """Return the name of a song model: of `MODELS`, on Hugging Face, or a folder; "" for the one the studio runs.

    Raises PydanticCustomError for anything else. Whether it is on this machine is not looked up.
    """
    if value is None or value == "":
        return ""
    if isinstance(value, str) and len(value) <= MOST_MODEL_LETTERS:
        name = "".join(filter(_is_text, value)).strip()
        if name.lower() in MODELS:
            return name.lower()
        if re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name, re.ASCII) or is_folder_name(name):
            return name
    names = ", ".join(MODELS)
    raise field_error(
        f'Model must be one of {names}, a model on Hugging Face like "org/name", or a folder like '
        f'"/models/name", not {shown(value)}.'
    )


def is_folder_name(text: str) -> bool:
    """Tell whether a name stands for a folder of this machine rather than for a repository."""
    return text.startswith(("/", "./", "../", "~"))


def parse_key(value: object) -> str:
    """Return a key as the model reads it, such as "F# minor", "" for none.

    Accepts "Am", "Bb", "c Major" and "E♭ min". Raises PydanticCustomError unless it is one of the
    42 keys (7 letters, natural, sharp or flat, major or minor).
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    written = unicodedata.normalize("NFKC", plain(str(value))).strip()
    written = written.replace("♯", "#").replace("♭", "b")
    # Only a lone M or m tells major from minor by its case.
    found = re.fullmatch(r"((?i:[A-G]))([#bB]?)\s*(M|m|(?i:major|maj|minor|min))?", written)
    if not isinstance(value, str) or not found:
        raise field_error(
            f'Key must be a note from A to G with major or minor, like "F# minor", not {shown(value)}.'
        )
    letter, accidental, scale = found.groups("")
    is_minor = scale == "m" or scale.lower().startswith("min")
    full_scale = "minor" if is_minor else "major"
    return f"{letter.upper()}{accidental.lower()} {full_scale}"


def parse_time_signature(value: object) -> str:
    """Return "2", "3", "4" or "6" (2/4, 3/4, 4/4, 6/8), "" for none; accepts "4/4" and 4 too."""
    if value is None or value == "":
        return ""
    written = plain_number(str(value)).removesuffix(".0")
    for beats, name in TIME_SIGNATURES.items():
        if written in (beats, name):
            return beats
    raise field_error(
        f"Time signature must be 2, 3, 4 or 6 (2/4, 3/4, 4/4, 6/8), not {shown(value)}."
    )


def parse_regions(value: object) -> tuple[tuple[float, float], ...]:
    """Return regions (start, end) in seconds, in the order of their starts, from a list of pairs.

    Raises PydanticCustomError unless each lasts long enough, lies within the longest source, and
    ends before the next.
    """
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise field_error(f"Regions must be a list of [start, end] in seconds, not {shown(value)}.")
    if len(value) > MOST_REGIONS:
        raise field_error(
            f"The number of regions must be from 0 to {MOST_REGIONS}, not {len(value)}."
        )
    regions = sorted(_region(place, pair) for place, pair in enumerate(value, 1))
    for (start, end), (next_start, next_end) in itertools.pairwise(regions):
        if next_start < end:
            raise field_error(
                f"Regions must not overlap, as {start:g} to {end:g} and {next_start:g} to {next_end:g} seconds do."
            )
    return tuple(regions)


def _region(place: int, pair: object) -> tuple[float, float]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise field_error(f"Region {place} must be [start, end] in seconds, not {shown(pair)}.")
    start = replace(LIMITS["start"], label=f"The start of region {place}").parse_given(pair[0])
    end = replace(LIMITS["end"], label=f"The end of region {place}").parse_given(pair[1])
    if samples_in(end) - samples_in(start) < samples_in(LEAST_REGION_SECONDS):
        least = f"at least {LEAST_REGION_SECONDS:g} seconds after its start ({start:g})"
        raise field_error(f"The end of region {place} must be {least}, not {end:g}.")
    return start, end


def parse_lines(value: object) -> tuple[int, int]:
    """Return the numbers of the first and the last line of a passage, from a list of both."""
    match value:
        case [int() as first, int() as last]:
            return first, last
    raise field_error(
        f"Lines must be the numbers of the first and the last line, such as [3, 4], not {shown(value)}."
    )


def track_names(value: object) -> tuple[str, ...]:
    """Return names of `TRACKS` without repeats, from a list or a single name; spaces count as underscores."""
    return _names("Tracks", TRACKS, value)


def score_parts(value: object) -> tuple[str, ...]:
    """Return names of `SCORE_PARTS` without repeats, in their order, from a list or a single name; None is all."""
    if value is None:
        return tuple(SCORE_PARTS)
    chosen = _names("Score", SCORE_PARTS, value)
    return tuple(part for part in SCORE_PARTS if part in chosen)


def _names(label: str, known: Collection[str], value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise field_error(f"{label} must be a list of names, not {shown(value)}.")
    cleaned = tuple(dict.fromkeys(name.strip().lower().replace(" ", "_") for name in names))
    for name in cleaned:
        if name not in known:
            raise field_error(f"{label} must be among {', '.join(known)}, not {shown(name)}.")
    return cleaned
