"""A task of the official REST API becomes a request of ours.

The official API refuses nothing, so values are brought into range, and the answer's
`generation_info` says what was changed. A task that cannot be done at all fails, because clients read
failures from /query_result.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import PydanticCustomError

import limits
from api_official_fields import BY_NAME, Values
from events import StudioError
from limits import LIMITS, MAX_SEED, TEXT_LIMITS, TRACKS, shown
from params import LoraChoice, Request, parse_request, upload_seconds, written_request
from status import SongModelStatus

TURBO_STEPS = 8  # most clients send as many for every checkpoint
USUAL_TAKES = 2
LEAST_EXTENSION = 0.01  # s outside the source, from which on a repaint is an extension
SAME_SECONDS = 0.001  # s; two times that differ by less are the same
NO_LYRICS = ("", "[inst]", "[instrumental]")
NO_KEY = ("", "n/a", "auto", "none", "unknown")
NO_LANGUAGE = ("", "auto", "none", "unknown")
FORMATS = {"wav32": "wav", "opus": "ogg", "aac": "mp3"}
USUAL_TRACKS = ("drums", "bass", "keyboard")
TASKS = {
    "text2music": "generate",
    "cover": "cover",
    "cover-nofsq": "cover",
    "repaint": "edit",
    "lego": "edit",
    "extract": "edit",
    "complete": "edit",
}


@dataclass(frozen=True)
class Asked:
    """What the answers about a task repeat of it: the `tag` of its run."""

    task: str
    prompt: str = ""
    lyrics: str = ""
    notes: tuple[str, ...] = ()  # what was changed
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class TaskUploads:
    """The files of a task: their paths, "" for none."""

    source: str = ""
    reference: str = ""


TASKS_WITH_TRACKS = ("lego", "extract", "complete")


def chosen_model(
    asked: str, models: Sequence[SongModelStatus], task: str = ""
) -> SongModelStatus | None:
    """Return the song model whose kind a caller's name for it tells, None for the studio's own.

    A `task` with tracks takes the one that was trained for them if none is named; the studio's own is
    returned where it is named instead.
    """
    needs_tracks = task.lower() in TASKS_WITH_TRACKS
    wanted = asked.lower()
    if needs_tracks and not asked:
        wanted = "base"
    here = [model for model in models if model.state != "missing" and model.kind in wanted]
    for model in here:
        if not model.own:
            return model
    if here and needs_tracks and asked:
        return here[0]
    return None


def translate(
    values: Values,
    uploads: TaskUploads,
    kind: str,
    loras: Sequence[LoraChoice] = (),
    model: str = "",
) -> tuple[Request, Asked]:
    """Return the request of a task for the song `model`, a checkpoint of `kind`, and what its answers repeat.

    Raises StudioError if the task cannot be done.
    """
    return Translation(values, uploads, kind, loras, model).result()


class Translation:
    """Turns one task into a request; `notes` say what was changed on the way."""

    def __init__(
        self,
        values: Values,
        uploads: TaskUploads,
        kind: str,
        loras: Sequence[LoraChoice],
        model: str = "",
    ):
        self.values = values
        self.model = model
        self.uploads = uploads
        self.kind = kind
        self.loras = loras
        self.notes: list[str] = []
        self.task = values.read("task_type").lower() or "text2music"
        self.seconds = 0.0  # of the source

    def result(self) -> tuple[Request, Asked]:
        request = self._request()
        asked = Asked(
            self.task,
            prompt=str(getattr(request, "prompt", "")),
            lyrics=str(getattr(request, "lyrics", "")),
            notes=tuple(self.notes),
        )
        return request, asked

    def _request(self) -> Request:
        values = self.values
        if values.read("extract_codes_only"):
            raise StudioError("unsupported", "This studio returns no audio codes.")
        if values.read("analysis_only") or values.read("full_analysis_only"):
            self.task = "analysis"
            return parse_request("describe", {"source": self._source()})
        if self.task not in TASKS:
            known = ", ".join(TASKS)
            message = f"There is no task {shown(self.task)} here. The tasks are {known}."
            raise StudioError("unsupported", message)
        if values.read("audio_code_string"):
            self.notes.append("Audio codes are not accepted, so they were ignored.")
        if self.task == "text2music":
            return self._text2music()
        self.seconds = upload_seconds(self._source())
        if self.task.startswith("cover"):
            return self._cover()
        if self.task == "repaint":
            return self._repaint()
        return self._with_tracks()

    def _source(self) -> str:
        if not self.uploads.source:
            message = f"The task {self.task} needs audio: upload src_audio, or name src_audio_path."
            raise StudioError("invalid", message)
        return self.uploads.source

    def _text2music(self) -> Request:
        song = self._song() | {"duration": self._duration()}
        if self.uploads.reference:
            song["reference"] = self.uploads.reference
        if self.uploads.source:
            self.notes.append("text2music uses no source, so the source was ignored.")
        song["options"] |= self._plan()
        idea = self.values.read("sample_query")
        if idea or self.values.read("sample_mode"):
            return self._written(song, idea or song["prompt"] or self._any_idea())
        if self.values.read("use_format"):
            return self._polished(song)
        return parse_request("generate", self._with_prompt(song))

    def _any_idea(self) -> str:
        """Return the prompt of one of the page's examples, for a task without an idea or a prompt."""
        example = random.choice(list(limits.preset("examples")["generate"].values()))
        prompt = example["prompt"]
        self.notes.append(f"There was no idea, so one of the page's examples was used: {prompt}")
        return prompt

    def _written(self, song: dict[str, Any], idea: str) -> Request:
        """Return the request of a song that the planner writes from an idea, around what else was sent."""
        words: dict[str, Any] = {"idea": idea[: TEXT_LIMITS["idea"]], "instrumental": False}
        if self.values.sent("lyrics"):
            words["instrumental"] = song["instrumental"]
        if self.values.sent("vocal_language"):
            words["language"] = song["language"]
        kept = _filled(song)
        kept.pop("prompt", None)
        kept.pop("instrumental")
        return written_request(parse_request("inspire", words), kept)

    def _polished(self, song: dict[str, Any]) -> Request:
        """Return the request of a song whose words the planner rewrites first."""
        song = self._with_prompt(song)
        names = ("prompt", "lyrics", "instrumental", "bpm", "key", "time_signature", "duration")
        words = {name: song[name] for name in names}
        return written_request(parse_request("polish", words), _filled(song))

    def _cover(self) -> Request:
        song = self._song() | {"source": self.uploads.source}
        if self.uploads.reference:
            song["reference"] = self.uploads.reference
        song["strength"] = self._clamp("audio_cover_strength", "strength")
        song["options"]["noise_strength"] = self._clamp("cover_noise_strength", "noise_strength")
        if self.task == "cover-nofsq":
            song["options"]["detail"] = "sound"
        return parse_request("cover", self._with_prompt(song))

    def _repaint(self) -> Request:
        start, end = self._region()
        before = max(-start, 0.0)
        after = max(end - self.seconds, 0.0)
        if before >= LEAST_EXTENSION or after >= LEAST_EXTENSION:
            return self._extended(before, after, self.seconds - max(start, 0.0))
        least = limits.LEAST_REGION_SECONDS
        start = min(start, max(self.seconds - least, 0.0))
        end = min(max(end, start + least), self.seconds)
        song = self._song() | {"source": self.uploads.source}
        if start < SAME_SECONDS and self.seconds - end < SAME_SECONDS:
            self.notes.append("The region is the whole song, so a song of its length was made.")
            return parse_request("cover", self._with_prompt(song) | {"strength": 0})
        song |= {"action": "repaint", "start": start, "end": self._end(end)}
        song["options"]["repaint_mode"] = self._choice("repaint_mode", limits.REPAINT_MODES)
        song["options"]["repaint_strength"] = self._clamp("repaint_strength", "repaint_strength")
        return parse_request("edit", song)

    def _extended(self, before: float, after: float, overlap: float) -> Request:
        """Return an extension; `overlap` is how many seconds at the source's end the task replaces."""
        room = limits.MAX_SOURCE_SECONDS - self.seconds
        most = min(LIMITS["before"].high, room)
        before = self._at_most(most, "repainting_start", before)
        most = min(LIMITS["after"].high, max(room - before, 0.0))
        after = self._at_most(most, "repainting_end", after)
        if before + after < LEAST_EXTENSION:
            raise StudioError("invalid", "The source is as long as a song can be.")
        song = self._song() | {"source": self.uploads.source, "before": before, "after": after}
        if LIMITS["overlap"].low <= overlap < self.seconds:
            song["options"]["overlap"] = min(overlap, LIMITS["overlap"].high)
        return parse_request("extend", self._with_prompt(song))

    def _with_tracks(self) -> Request:
        song = self._song() | {"source": self.uploads.source}
        if self.task == "lego":
            prompts = [song["prompt"], self.values.read("global_caption")]
            song["prompt"] = self._cut("prompt", ", ".join(filter(None, prompts)))
            least = limits.LEAST_REGION_SECONDS
            start, end = self._region()
            start = min(max(start, 0.0), max(self.seconds - least, 0.0))
            end = max(min(end, self.seconds), start + least)
            song |= {"action": "layer", "start": start, "end": self._end(end)}
        else:
            song["action"] = self.task
        song["tracks"] = self._tracks()
        return parse_request("edit", song)

    def _tracks(self) -> list[str]:
        """Return the tracks of a task, otherwise the one in its instruction; raises StudioError if one is needed."""
        named = [self.values.read("track_name"), *self.values.read("track_classes")]
        tracks = [track for track in map(_track_in, named) if track]
        instructed = _track_in(self.values.read("instruction"))
        if not tracks and instructed:
            tracks = [instructed]
        if tracks and self.task == "complete":
            return list(dict.fromkeys(tracks))
        if tracks:
            return tracks[:1]
        if self.task == "complete":
            usual = ", ".join(USUAL_TRACKS)
            self.notes.append(f"No tracks were named, so these were used: {usual}.")
            return list(USUAL_TRACKS)
        wanted = f"track_name must be one of {', '.join(TRACKS)}"
        raise StudioError("invalid", f"{wanted}, not {shown(named[0])}.")

    # --- what every song has ---

    def words_to_polish(self) -> dict[str, Any]:
        """Return the words and details of a song for /format_input."""
        return self._words() | {"duration": self._duration()}

    def _words(self) -> dict[str, Any]:
        values = self.values
        lyrics = values.read("lyrics")
        bpm = values.read("bpm")
        is_instrumental = lyrics.lower() in NO_LYRICS
        return {
            "prompt": self._cut("prompt", values.read("prompt")),
            "lyrics": "" if is_instrumental else self._cut("lyrics", lyrics),
            "instrumental": is_instrumental,
            "bpm": self._clamp("bpm", "bpm") if bpm and bpm > 0 else None,
            "key": self._key(),
            "time_signature": self._parsed("time_signature", limits.parse_time_signature),
            "language": self._language(),
        }

    def _song(self) -> dict[str, Any]:
        song = self._words()
        song["takes"] = self._takes()
        song["seed"] = self._seed(song["takes"])
        song["options"] = self._options()
        steps = self.values.read("inference_steps")
        if self.kind == "turbo" or steps > TURBO_STEPS:
            song["options"]["steps"] = self._clamp("inference_steps", "steps")
            return song
        song["quality"] = "draft"
        if self.values.sent("inference_steps"):
            self.notes.append(
                f"{steps} steps suit turbo checkpoints only, so the quality draft was used."
            )
        return song

    def _options(self) -> dict[str, Any]:
        values = self.values
        options: dict[str, Any] = {"format": self._format()}
        if values.sent("guidance_scale"):
            options["guidance"] = self._clamp("guidance_scale", "guidance")
        if values.sent("shift"):
            options["shift"] = self._clamp("shift", "shift")
        options["sampler"] = self._choice("infer_method", ("ode", "sde"))
        # Their interval counts from the end of the run.
        start = 1 - self._clamp("cfg_interval_end", "cfg_start")
        end = 1 - self._clamp("cfg_interval_start", "cfg_end")
        if start <= end:
            options |= {"cfg_start": start, "cfg_end": end}
        else:
            self.notes.append("The guidance interval ends before it starts, so it was ignored.")
        if self.model:
            options["model"] = self.model
        if self.loras:
            options["loras"] = [each.model_dump() for each in self.loras]
        return options

    def _plan(self) -> dict[str, Any]:
        values = self.values
        if not values.read("thinking"):
            return {"plan": False}
        plan: dict[str, Any] = {"plan": True}
        for theirs, ours in (("lm_temperature", "plan_temperature"), ("lm_cfg_scale", "plan_cfg")):
            if values.sent(theirs):
                plan[ours] = self._clamp(theirs, ours)
        if values.sent("use_cot_caption"):
            plan["rewrite"] = values.read("use_cot_caption")
        exclude = values.read("lm_negative_prompt")
        if exclude and exclude != BY_NAME["lm_negative_prompt"].default:
            plan["exclude"] = exclude[: TEXT_LIMITS["exclude"]]
        return plan

    def _with_prompt(self, song: dict[str, Any]) -> dict[str, Any]:
        if song["prompt"] or not song["instrumental"]:
            return song
        self.notes.append('There was no prompt, so "music" was used.')
        return song | {"prompt": "music"}

    def _duration(self) -> float | None:
        asked = self.values.read("audio_duration")
        if asked is None or asked <= 0:
            return None
        return self._clamp("audio_duration", "duration")

    def _takes(self) -> int:
        asked = self.values.read("batch_size")
        if asked is None:
            return USUAL_TAKES
        return int(self._clamp("batch_size", "takes"))

    def _seed(self, takes: int) -> int:
        """Return the seed of the first take, -1 for a random one."""
        values = self.values
        first = values.read("seed").split(",")[0]
        seed = Values({"bpm": first}).read("bpm")  # read as leniently as any whole number
        if seed is None and first:
            self.notes.append(f"The seed {shown(first)} is not a number, so a random one was used.")
        if seed is None or seed < 0:
            return -1
        if values.read("use_random_seed"):
            self.notes.append("A random seed was used; send use_random_seed false to keep yours.")
            return -1
        return min(seed % (MAX_SEED + 1), MAX_SEED - takes + 1)

    def _language(self) -> str:
        if not self.values.sent("vocal_language"):
            return "unknown"
        code = self.values.read("vocal_language").lower()
        if code in limits.LANGUAGES:
            return code
        if code not in NO_LANGUAGE:
            self.notes.append(f"The language {shown(code)} is not known, so it was ignored.")
        return "unknown"

    def _choice(self, name: str, known: Collection[str]) -> str:
        """Return the word in a field if it is one of `known`, otherwise the field's default."""
        asked = self.values.read(name).lower()
        if asked in known:
            return asked
        default = str(BY_NAME[name].default)
        self.notes.append(f"{name} {shown(asked)} became {default}.")
        return default

    def _key(self) -> str:
        if self.values.read("key_scale").lower() in NO_KEY:
            return ""
        return self._parsed("key_scale", limits.parse_key)

    def _format(self) -> str:
        asked = self.values.read("audio_format").lower().lstrip(".")
        found = FORMATS.get(asked, asked)
        if found not in limits.FORMATS:
            found = "mp3"
        if found != asked:
            self.notes.append(f"The format {shown(asked)} became {found}.")
        return found

    def _region(self) -> tuple[float, float]:
        """Return start and end in seconds; they may lie outside the source."""
        start = self.values.read("repainting_start")
        end = self.values.read("repainting_end")
        if end is None or end <= 0:
            end = self.seconds
        return start, end

    def _end(self, end: float) -> float:
        """Return the end of a region as our requests have it, where 0 is the end of the file."""
        if end >= self.seconds:
            return 0.0
        return end

    def _parsed(self, name: str, parse: Any) -> str:
        asked = self.values.read(name)
        try:
            return parse(asked)
        except PydanticCustomError:
            self.notes.append(f"{name} {shown(asked)} is not known, so it was ignored.")
            return ""

    def _cut(self, name: str, words: str) -> str:
        most = TEXT_LIMITS[name]
        if len(words) <= most:
            return words
        self.notes.append(f"{name} was cut to {most:,} characters.")
        return words[:most]

    def _clamp(self, theirs: str, ours: str) -> float:
        """Return the value of a field that is never empty, within the limits of our field `ours`."""
        limit = LIMITS[ours]
        asked = self.values.read(theirs)
        found = min(max(asked, limit.low), limit.high)
        if found != asked:
            self.notes.append(f"{theirs} {asked:g} became {found:g}.")
        if limit.integer:
            return int(found)
        return float(found)

    def _at_most(self, most: float, theirs: str, seconds: float) -> float:
        if seconds <= most:
            return seconds
        self.notes.append(f"{theirs} was too far outside, so {most:g} seconds were added.")
        return most


def _filled(song: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a song that say something."""
    return {name: value for name, value in song.items() if value not in ("", None, "unknown")}


def _track_in(words: str) -> str:
    """Return the track that a name or a sentence names, "" if there is none."""
    plain = re.sub(r"[\s_-]+", "_", words.strip().lower())
    if plain in TRACKS:
        return plain
    names = sorted(TRACKS, key=len, reverse=True)  # backing_vocals before vocals
    found = re.search(rf"(?<![a-z])({'|'.join(names)})(?![a-z])", plain)
    return found[1] if found else ""
