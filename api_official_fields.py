"""The fields of a task of ACE-Step's official REST API, as data, and how leniently they are read.

Clients send numbers as text and flags as words, have several names for a field, put some fields into
an object inside the body, and expect no refusal: a value that cannot be read counts as not sent.
`FIELDS` says what each field becomes in our request; api_official_tasks.py builds the request.
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
MOST_NUMBER_CHARACTERS = 40


@dataclass(frozen=True)
class Field:
    """A field of a task: its names, the kind of its value, the official default, and what it becomes here."""

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
    Field("model", ("model_name", "modelName", "dit_model", "ditModel"), "text", "", "options.model"),
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
# Objects in a body that may hold fields too; the first one that is not empty counts.
METADATA = ("metas", "meta", "metadata", "user_metadata", "userMetadata")


class Values:
    """The fields of one body, each read by its kind."""

    def __init__(self, body: Mapping[str, Any]):
        metadata: Mapping[str, Any] = {}
        for name in METADATA:
            metadata = metadata or as_object(body.get(name))
        # In the order in which a field is looked for.
        self._objects = [body, as_object(body.get("param_obj")), metadata]

    def sent_value(self, name: str) -> Any:
        """Return what was sent for a field under any of its names, None if nothing was."""
        field = BY_NAME[name]
        for values in self._objects:
            for spelling in (field.name, *field.aliases):
                if values.get(spelling) is not None:
                    return values[spelling]
        return None

    def read(self, name: str) -> Any:
        """Return the value of a field, or its default if nothing readable was sent."""
        value = self._readable(name)
        if value is None:
            return BY_NAME[name].default
        return value

    def sent(self, name: str) -> bool:
        """Return whether a field was sent with a value that can be read."""
        return self._readable(name) is not None

    def _readable(self, name: str) -> Any:
        """Return the value that was sent for a field, by its kind; None if there is none that can be read."""
        value = self.sent_value(name)
        if value is None:
            return None
        return KINDS[BY_NAME[name].kind](value)


def as_object(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is an object, or the object in a JSON text; otherwise an empty one."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    if isinstance(value, Mapping):
        return value
    return {}


def text(value: Any) -> str | None:
    """Return a text without lone surrogates, or a number as text; None for anything else."""
    if isinstance(value, str):
        return value.encode("utf-8", "ignore").decode("utf-8").strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _digits(value)
    return None


def _digits(value: int | float) -> str | None:
    try:
        return str(value)
    except ValueError:  # an integer with more digits than Python converts
        return None


def number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = value.strip()
        if len(value) > MOST_NUMBER_CHARACTERS:
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
    """Return the texts in a list, in the JSON text of a list, or between commas; None for anything else."""
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
