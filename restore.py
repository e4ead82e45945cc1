"""From the record in a file back to the fields of a form: which of its settings fit, checked one by one.

A record that comes back is a stranger's. Each value passes the same check as a request's own, by itself, so that one
bad value costs only itself; what is unknown or wrong is counted and never shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from limits import LIMITS
from params import REQUESTS

# Files are no settings, and each tab is a mode of its own.
NOT_SETTINGS = {"mode", "source", "reference", "options"}
# What describes the song itself, whatever is made of it, with the values of a blank form.
SONG = {
    "prompt": "",
    "lyrics": "",
    "instrumental": False,
    "bpm": None,
    "key": "",
    "time_signature": "",
    "language": "unknown",
}


@dataclass(frozen=True)
class Restored:
    """Checked `values` under the names of a form's fields, such as "options.steps"; `left_out` counts the others.

    `reference` tells that the song had a reference audio, which no record holds.
    """

    values: dict[str, Any] = field(default_factory=dict)
    left_out: int = 0
    reference: bool = False


def settings(mode: str, record: Any) -> Restored:
    """Return what of `record` fits the form of `mode`; a take's file gets the seed of this very take."""
    request = _mapping(_mapping(record).get("request"))
    found = {name: value for name, value in request.items() if name != "options"}
    found |= {f"options.{name}": value for name, value in _mapping(request.get("options")).items()}
    checks = _checks(mode)
    values, left_out = {}, 0
    for name, value in found.items():
        try:
            values[name] = checks[name].validate_python(value)
        except (ValidationError, KeyError):
            left_out += 1
    if (chosen := values.get("options.loras")) is not None:
        # No record holds an uploaded file.
        values["options.loras"] = kept = [lora.model_dump() for lora in chosen if lora.source != "upload"]
        left_out += len(chosen) - len(kept)
    reference = "reference" in REQUESTS[mode].model_fields and "reference" in _mapping(_mapping(record).get("audio"))
    return Restored(values | _seeds(record, checks), left_out, reference)


def song(record: Any) -> dict[str, Any]:
    """Return the words and musical facts of a record, blank where it has none: what a take takes along to a tab."""
    values = settings("cover", record).values
    return {name: values.get(name, blank) for name, blank in SONG.items()}


def as_text(value: float | int | None) -> str:
    """Write a number as a visitor would type it, blank where there is none."""
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


# --- helpers ------------------------------------------------------------------------------------------------------


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


@cache
def _checks(mode: str) -> dict[str, TypeAdapter]:
    """Return the check of each setting, such as "options.steps", as the request of `mode` makes it."""
    fields = REQUESTS[mode].model_fields
    options = fields["options"].annotation.model_fields
    settings = {name: info for name, info in fields.items() if name not in NOT_SETTINGS}
    settings |= {f"options.{name}": info for name, info in options.items()}
    return {name: TypeAdapter(Annotated[info.annotation, *info.metadata, None]) for name, info in settings.items()}


def _seeds(record: Any, checks: Mapping[str, TypeAdapter]) -> dict[str, Any]:
    """Return the drawn seeds of the one take that a file's record names; a record of several keeps its own.

    The plan's is that of the first take, of which the file's own take may not know.
    """
    takes, seeds, others = (_mapping(record).get(name) for name in ("takes", "seeds", "variation_seeds"))
    if not isinstance(takes, list) or len(takes) != 1:
        return {}
    try:
        values = {
            "takes": int(LIMITS["takes"].low),
            "seed": checks["seed"].validate_python(_mapping(takes[0]).get("seed")),
        }
    except ValidationError:
        return {}
    plan = _mapping(_mapping(record).get("plan"))
    if plan.get("used") is True and "options.plan_seed" in checks:
        with contextlib.suppress(ValidationError):
            values["options.plan_seed"] = checks["options.plan_seed"].validate_python(plan.get("seed"))
    with contextlib.suppress(ValidationError, AttributeError, IndexError, TypeError, ValueError):
        at = seeds.index(values["seed"])
        values["options.variation_seed"] = checks["options.variation_seed"].validate_python(others[at])
    return values
