"""The fields of a task of ACE-Step's official REST API, as data, and how leniently they are read.

Clients send strings for numbers and true for "yes", spell a field in several ways, put some of them
into an object of their own, and expect that nothing is refused: what cannot be read counts as not
sent. `FIELDS` says for each field what it becomes in a request of ours; api_official_tasks.py does
that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

IGNORED = "ignored"
YES = ("1", "true", "yes", "y", "on")
MOST_ITEMS = 100  # of a list


@dataclass(frozen=True)
class Field:
    """A field of theirs: its name and aliases, its kind and their default, and what it becomes here."""

    name: str
    aliases: tuple[str, ...]
    kind: str  # a key of KINDS
    default: Any
    ours: str


# fmt: off
FIELDS = (
    Field("prompt", ("caption",), "text", "", "prompt"),
    Field("global_caption", (), "text", "", "added to the prompt of lego"),
    Field("lyrics", (), "text", "", "lyrics; empty or [inst] is an instrumental"),
    Field("thinking", (), "flag", False, "options.plan"),
    Field("sample_mode", ("sampleMode",), "flag", False, "the planner writes the song's words first"),
    Field("sample_query", ("sampleQuery", "description", "desc"), "text", "", "the idea of that"),
    Field("use_format", ("useFormat",), "flag", False, "the planner polishes the words first"),
    Field("model", ("model_name", "modelName", "dit_model", "ditModel"), "text", "", IGNORED),
    Field("bpm", (), "whole", None, "bpm"),
    Field("key_scale", ("keyscale", "keyScale", "key"), "text", "", "key"),
    Field("time_signature", ("timesignature", "timeSignature"), "text", "", "time_signature"),
    Field("vocal_language", ("vocalLanguage", "language"), "text", "en", "language"),
    Field("audio_duration", ("duration", "audioDuration", "target_duration", "targetDuration"),
          "number", None, "duration"),
    Field("inference_steps", ("inferenceSteps",), "whole", 8, "options.steps, or quality draft"),
    Field("guidance_scale", ("guidanceScale",), "number", 7.0, "options.guidance"),
    Field("use_random_seed", ("useRandomSeed",), "flag", True, "seed -1"),
    Field("seed", (), "text", "-1", "seed"),
    Field("batch_size", (), "whole", None, "takes; not sent means 2"),
    Field("reference_audio_path",
          ("ref_audio_path", "referenceAudioPath", "refAudioPath"), "text", "", "reference"),
    Field("src_audio_path",
          ("ctx_audio_path", "sourceAudioPath", "srcAudioPath", "ctxAudioPath"),
          "text", "", "source"),
    Field("task_type", ("taskType",), "text", "text2music", "the endpoint, and the action of edit"),
    Field("repainting_start", (), "number", 0.0, "start, or before"),
    Field("repainting_end", (), "number", None, "end, or after"),
    Field("repaint_mode", (), "text", "balanced", "options.repaint_mode"),
    Field("repaint_strength", (), "number", 0.5, "options.repaint_strength"),
    Field("audio_cover_strength", ("audioCoverStrength", "cover_strength", "coverStrength"),
          "number", 1.0, "strength"),
    Field("cover_noise_strength", ("coverNoiseStrength",), "number", 0.0, "options.noise_strength"),
    Field("track_name", ("trackName",), "text", "", "tracks"),
    Field("track_classes", ("trackClasses", "instruments"), "list", (), "tracks"),
    Field("instruction", (), "text", "", "tracks, if nothing else names one"),
    Field("audio_code_string", ("audioCodeString", "audio_codes"), "list", (), IGNORED),
    Field("infer_method", ("inferMethod",), "text", "ode", "options.sampler"),
    Field("shift", (), "number", None, "options.shift"),
    Field("cfg_interval_start", (), "number", 0.0, "options.cfg_end"),
    Field("cfg_interval_end", (), "number", 1.0, "options.cfg_start"),
    Field("use_cot_caption", ("cot_caption", "cot-caption"), "flag", True,
          "options.rewrite, if sent with thinking"),
    Field("lm_temperature", (), "number", 0.85, "options.plan_temperature"),
    Field("lm_cfg_scale", (), "number", 2.5, "options.plan_cfg"),
    Field("lm_negative_prompt", (), "text", "NO USER INPUT", "options.exclude"),
    Field("audio_format", (), "text", "mp3", "options.format"),
    Field("analysis_only", ("analysisOnly",), "flag", False, "the planner describes the source"),
    Field("full_analysis_only", ("fullAnalysisOnly",), "flag", False, "the same"),
    Field("extract_codes_only", ("extractCodesOnly",), "flag", False, "a failed task that says so"),
)
# fmt: on
BY_NAME = {field.name: field for field in FIELDS}
# Objects in a body that may hold fields as well, the first one that has a field wins.
METADATA = ("metas", "meta", "metadata", "user_metadata", "userMetadata")


class Values:
    """The fields of one body, each read by its kind."""

    def __init__(self, body: Mapping[str, Any]):
        nested = [as_object(body.get("param_obj"))]
        nested += [as_object(body.get(name)) for name in METADATA]
        found = (each for each in nested[1:] if each)
        self._places = [body, nested[0], next(found, {})]

    def sent_value(self, name: str) -> Any:
        """Return what was sent for a field under any of its names, None if nothing was."""
        field = BY_NAME[name]
        for place in self._places:
            for each in (field.name, *field.aliases):
                if place.get(each) is not None:
                    return place[each]
        return None

    def read(self, name: str) -> Any:
        """Return the value of a field, its default if it was not sent or cannot be read."""
        field = BY_NAME[name]
        value = self.sent_value(name)
        if value is None:
            return field.default
        read = KINDS[field.kind](value)
        if read is None:
            return field.default
        return read

    def sent(self, name: str) -> bool:
        """Tell whether a field was sent, and can be read."""
        value = self.sent_value(name)
        return value is not None and KINDS[BY_NAME[name].kind](value) is not None


def as_object(value: Any) -> Mapping[str, Any]:
    """Return an object, or the one in a JSON text; empty for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    if isinstance(value, Mapping):
        return value
    return {}


def text(value: Any) -> str | None:
    """Return a text without what no text can hold, or a number as text."""
    if isinstance(value, str):
        return value.encode("utf-8", "ignore").decode("utf-8").strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _digits(value)
    return None


def _digits(value: int | float) -> str | None:
    try:
        return str(value)
    except ValueError:  # a whole number of more digits than Python writes
        return None


def number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = value.strip()
        if len(value) > 40:
            return None
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if math.isfinite(found):
        return found
    return None


def whole(value: Any) -> int | None:
    found = number(value)
    if found is None:
        return None
    return int(found)


def flag(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value.strip().lower() in YES
    if isinstance(value, int | float):
        return value == 1
    return None


def items(value: Any) -> tuple[str, ...] | None:
    """Return a list of texts, from a list, a JSON text of one, words between commas, or one word."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        return None
    found = [text(each) for each in value[:MOST_ITEMS]]
    return tuple(each for each in found if each)


KINDS: dict[str, Callable[[Any], Any]] = {
    "text": text,
    "number": number,
    "whole": whole,
    "flag": flag,
    "list": items,
}
