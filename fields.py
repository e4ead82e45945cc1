"""The checks of a request's fields: each returns the value as the model reads it, or a sentence for a person.

A sentence names the field and the allowed range; `params.parse_request` turns it into a `Problem`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from limits import LIMITS, MAX_SOURCE_SECONDS, MOST_LORAS, TEXT_LABELS, TEXT_LIMITS, TIME_SIGNATURES, TRACKS, shown


def wrong(sentence: str) -> PydanticCustomError:
    """Return the error that carries a sentence about the value of a field."""
    return wrong_at("", sentence)


def wrong_at(field: str, sentence: str) -> PydanticCustomError:
    """Return the error of a whole model that carries a sentence and the path of the field it belongs to."""
    return PydanticCustomError("wrong", "{sentence}", {"sentence": sentence, "field": field})


def number(name: str) -> Any:
    """Return the type of a number within `LIMITS[name]`; None is allowed where the limit has no default."""
    limit = LIMITS[name]

    def check(value: object) -> float | int | None:
        if value is None and limit.default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(limit.sentence(value))
        # Before int(), which raises for NaN; and by comparing, because a huge int fits no float.
        if not limit.low <= value <= limit.high:
            raise wrong(limit.sentence(value))
        if limit.integer and value != int(value):
            raise wrong(limit.sentence(value))
        return int(value) if limit.integer else float(value)

    kind = int if limit.integer else float
    return Annotated[kind | None if limit.default is None else kind, BeforeValidator(check)]


def text(name: str, wanted: str = "") -> Any:
    """Return the type of a text within `TEXT_LIMITS[name]`; `wanted` tells what one that must not be empty is for."""
    label, most = TEXT_LABELS[name], TEXT_LIMITS[name]

    def check(value: object) -> str:
        if value is not None and not isinstance(value, str):
            raise wrong(f"{label} must be text, not {shown(value)}.")
        value = value or ""
        if len(value) > most:
            raise wrong(f"{label} may have up to {most:,} characters; this has {len(value):,}.")
        kept = "".join(c for c in value if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs")).strip()
        if wanted and not kept:
            raise wrong(f"{label} must have from 1 to {most:,} characters: {wanted}.")
        return kept

    return Annotated[str, BeforeValidator(check)]


def choice(label: str, choices: Mapping[str, Any]) -> Any:
    """Return the type of a word that is one of the keys of `choices`, in small letters."""

    def check(value: object) -> str:
        if isinstance(value, str) and value.strip().lower() in choices:
            return value.strip().lower()
        listed = ", ".join(choices) if len(choices) <= 12 else f"one of the {len(choices)} listed codes"
        raise wrong(f"{label} must be {'one of ' if len(choices) <= 12 else ''}{listed}, not {shown(value)}.")

    return Annotated[str, BeforeValidator(check)]


def parse_key(value: object) -> str:
    """Return a key as the model reads it, such as "F# minor"; "Am", "Bb", "c Major" and "E♭ min" are understood.

    Raises PydanticCustomError where it is no key of the 42 (7 letters, natural, sharp or flat, major or minor).
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    written = str(value).strip().replace("♯", "#").replace("♭", "b")
    found = re.fullmatch(r"([A-Ga-g])([#b]?)\s*(major|maj|minor|min|M|m)?", written) or re.fullmatch(
        r"(?i:([A-G])([#b]?)\s*(major|maj|minor|min))", written
    )
    if not isinstance(value, str) or not found:
        raise wrong(f'Key must be a note from A to G with major or minor, like "F# minor", not {shown(value)}.')
    letter, accidental, scale = found.groups()
    minor = bool(scale) and (scale == "m" or scale.lower().startswith("min"))
    return f"{letter.upper()}{accidental.lower()} {'minor' if minor else 'major'}"


def parse_time_signature(value: object) -> str:
    """Return "2", "3", "4" or "6" (2/4, 3/4, 4/4, 6/8), or "" where none is given; "4/4" and 4 are understood."""
    if value is None or value == "":
        return ""
    written = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    by_name = {name: beats for beats, name in TIME_SIGNATURES.items()}
    written = by_name.get(written, written)
    if written in TIME_SIGNATURES and not isinstance(value, bool):
        return written
    raise wrong(f"Time signature must be 2, 3, 4 or 6 (2/4, 3/4, 4/4, 6/8), not {shown(value)}.")


def source_path(value: object) -> str:
    """Return the path of a source; what is in the file is checked when it is read (audio.py)."""
    if isinstance(value, str) and value:
        return value
    raise wrong(f"Source must be an audio file of 1 to {MAX_SOURCE_SECONDS} seconds; none was given.")


def track_names(value: object) -> tuple[str, ...]:
    """Return names of `TRACKS`, each once, from a list or a single name; spaces count as underscores."""
    if value is None:
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise wrong(f"Tracks must be a list of names, not {shown(value)}.")
    cleaned = tuple(dict.fromkeys(name.strip().lower().replace(" ", "_") for name in names))
    for name in cleaned:
        if name not in TRACKS:
            raise wrong(f"Tracks must be among {', '.join(TRACKS)}, not {shown(name)}.")
    return cleaned


def flag(label: str) -> Any:
    """Return the type of a switch: true or false, and nothing that only counts as one."""

    def check(value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise wrong(f"{label} must be true or false, not {shown(value)}.")

    return Annotated[bool, BeforeValidator(check)]


class Strict(BaseModel):
    """Values that do not change any more; a name that is none of theirs is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraChoice(Strict):
    """A LoRA and how much it acts; `source` is "org/repo", "org/repo:file" or an uploaded file."""

    source: str
    weight: float


def lora_choices(value: object) -> tuple[LoraChoice, ...]:
    """Return up to `MOST_LORAS` LoRAs in their order, from objects with source and weight or from sources alone."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise wrong(f"LoRAs must be a list of objects with source and weight, not {shown(value)}.")
    if len(value) > MOST_LORAS:
        raise wrong(f"LoRAs must be from 0 to {MOST_LORAS}, not {len(value)}.")
    return tuple(_lora(place, item) for place, item in enumerate(value, 1))


def _lora(place: int, item: object) -> LoraChoice:
    if isinstance(item, LoraChoice):
        return item
    item = {"source": item} if isinstance(item, str) else item
    if not isinstance(item, Mapping) or not isinstance(item.get("source"), str) or not item["source"].strip():
        raise wrong(
            f'LoRA {place} must name its source: "org/repo", "org/repo:file" or an uploaded file.',
        )
    if unknown := sorted(map(str, item.keys() - {"source", "weight"})):
        raise wrong(f"{shown(unknown[0])} of LoRA {place} is not known here. Known: source, weight.")
    weight, limit = item.get("weight", LIMITS["lora_weight"].default), LIMITS["lora_weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not limit.low <= weight <= limit.high:
        raise wrong(f"The weight of LoRA {place} must be from {limit.low:g} to {limit.high:g}, not {shown(weight)}.")
    return LoraChoice(source=item["source"].strip(), weight=float(weight))
