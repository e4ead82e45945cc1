"""A task of the official REST API becomes a run of ours, and what becomes of the run, in their words.

Theirs refuses nothing: values are clamped, and what was changed stands in `generation_info`. What
cannot be done at all is a task that fails, since clients read failures from /query_result.
"""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic_core import PydanticCustomError

import audio_export
import limits
import tooltips
from api_official_fields import BY_NAME, Values
from events import Progress, StudioError, share_done
from limits import INSTRUMENTAL, LIMITS, MAX_SEED, TEXT_LIMITS, TRACKS, shown
from params import LoraChoice, Request, parse_request, upload_seconds, written_request
from record import Stored
from runs import Runs

ENGINE = "ACE Music Studio"
UNKNOWN = "N/A"
FEW_STEPS = 8  # of a turbo checkpoint, which most clients send whatever the checkpoint
USUAL_TAKES = 2
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
# Some clients know these words.
STAGE_WORDS = {"decoding": "Decoding audio", "finishing": "Preparing audio data"}


def task_of(run_id: str) -> str:
    """Return the id of a run as clients know it: a UUID."""
    return str(uuid.UUID(hex=run_id))


def run_of(task_id: object) -> str:
    """Return the run that a task's id names, "" if it can be none."""
    written = str(task_id).strip().lower().replace("-", "")
    if re.fullmatch("[0-9a-f]{32}", written):
        return written
    return ""


@dataclass(frozen=True)
class Asked:
    """What a client asked for, as far as its answers repeat it; the `tag` of its run."""

    task: str
    prompt: str = ""
    lyrics: str = ""
    notes: tuple[str, ...] = ()  # what was changed
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class Uploads:
    """The files of a task: their paths, "" for none."""

    source: str = ""
    reference: str = ""


# --- a task becomes a request ---------------------------------------------------------------------


def translate(
    values: Values, uploads: Uploads, kind: str, loras: Sequence[LoraChoice] = ()
) -> tuple[Request, Asked]:
    """Return the request of a task for a checkpoint of `kind`, and what there is to say of it.

    Raises StudioError for what cannot be done.
    """
    return Translation(values, uploads, kind, loras).result()


class Translation:
    """One task on its way; `notes` say what was changed."""

    def __init__(self, values: Values, uploads: Uploads, kind: str, loras: Sequence[LoraChoice]):
        self.values = values
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
            raise StudioError("unsupported", "This studio hands out no audio codes.")
        if values.read("analysis_only") or values.read("full_analysis_only"):
            self.task = "analysis"
            return parse_request("describe", {"source": self._source()})
        if self.task not in TASKS:
            known = ", ".join(TASKS)
            message = f"There is no task {shown(self.task)} here. The tasks are {known}."
            raise StudioError("unsupported", message)
        if values.read("audio_code_string"):
            self.notes.append("Audio codes are not taken, so they were ignored.")
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
            self.notes.append("text2music has no source, so that was ignored.")
        song["options"] |= self._plan()
        idea = self.values.read("sample_query")
        if idea or self.values.read("sample_mode"):
            return self._written(song, idea or song["prompt"] or self._any_idea())
        if self.values.read("use_format"):
            return self._polished(song)
        return parse_request("generate", self._with_prompt(song))

    def _any_idea(self) -> str:
        """Return the prompt of one of the page's examples, for a song of which nothing was said."""
        example = random.choice(list(limits.preset("examples")["generate"].values()))
        self.notes.append(
            f"There was no idea, so it was an example of the page: {example['prompt']}"
        )
        return example["prompt"]

    def _written(self, song: dict[str, Any], idea: str) -> Request:
        """Return a song that is written from an idea; what was sent besides stays."""
        words = {"idea": idea[: TEXT_LIMITS["idea"]], "instrumental": song["instrumental"]}
        if not self.values.sent("lyrics"):
            words["instrumental"] = False
        if self.values.sent("vocal_language"):
            words["language"] = song["language"]
        given = {name: value for name, value in song.items() if value not in ("", None, "unknown")}
        given.pop("prompt", None)
        given.pop("instrumental")
        return written_request(parse_request("inspire", words), given)

    def _polished(self, song: dict[str, Any]) -> Request:
        song = self._with_prompt(song)
        names = ("prompt", "lyrics", "instrumental", "bpm", "key", "time_signature", "duration")
        words = {name: song[name] for name in names}
        given = {name: value for name, value in song.items() if value not in ("", None, "unknown")}
        return written_request(parse_request("polish", words), given)

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
        if before >= 0.01 or after >= 0.01:
            return self._extended(before, after, self.seconds - max(start, 0.0))
        least = limits.LEAST_REGION_SECONDS
        start = min(start, max(self.seconds - least, 0.0))
        end = min(max(end, start + least), self.seconds)
        song = self._song() | {"source": self.uploads.source}
        if start < 0.001 and self.seconds - end < 0.001:
            self.notes.append("The region is the whole song, so a song of its length was made.")
            return parse_request("cover", self._with_prompt(song) | {"strength": 0})
        song |= {"action": "repaint", "start": start, "end": self._end(end)}
        song["options"]["repaint_mode"] = self._choice("repaint_mode", limits.REPAINT_MODES)
        song["options"]["repaint_strength"] = self._clamp("repaint_strength", "repaint_strength")
        return parse_request("edit", song)

    def _extended(self, before: float, after: float, overlap: float) -> Request:
        """Return an extension; `overlap` is how much of the source's end was to be made anew."""
        room = limits.MAX_SOURCE_SECONDS - self.seconds
        before = self._clamped("repainting_start", before, min(LIMITS["before"].high, room))
        after = self._clamped(
            "repainting_end", after, min(LIMITS["after"].high, max(room - before, 0.0))
        )
        if before + after < 0.01:
            raise StudioError("invalid", "The source is as long as a song can be.")
        song = self._song() | {"source": self.uploads.source, "before": before, "after": after}
        if LIMITS["overlap"].low <= overlap < self.seconds:
            song["options"]["overlap"] = min(overlap, LIMITS["overlap"].high)
        return parse_request("extend", self._with_prompt(song))

    def _with_tracks(self) -> Request:
        song = self._song() | {"source": self.uploads.source}
        if self.task == "lego":
            more = self.values.read("global_caption")
            song["prompt"] = self._cut("prompt", ", ".join(filter(None, (song["prompt"], more))))
            start, end = self._region()
            start = min(max(start, 0.0), max(self.seconds - limits.LEAST_REGION_SECONDS, 0.0))
            end = max(min(end, self.seconds), start + limits.LEAST_REGION_SECONDS)
            song |= {"action": "layer", "start": start, "end": self._end(end)}
        else:
            song["action"] = self.task
        song["tracks"] = self._tracks()
        return parse_request("edit", song)

    def _tracks(self) -> list[str]:
        """Return the tracks that a task names, if need be in its instruction; raises StudioError."""
        named = [self.values.read("track_name"), *self.values.read("track_classes")]
        found = [name for name in map(_track_in, named) if name]
        instructed = _track_in(self.values.read("instruction"))
        if not found and instructed:
            found = [instructed]
        if self.task == "complete":
            if not found:
                self.notes.append(
                    f"No tracks were named, so these were: {', '.join(USUAL_TRACKS)}."
                )
            return list(dict.fromkeys(found)) or list(USUAL_TRACKS)
        if not found:
            wanted = f"track_name must be one of {', '.join(TRACKS)}"
            raise StudioError("invalid", f"{wanted}, not {shown(named[0])}.")
        return found[:1]

    # --- what every song has ---

    def words(self) -> dict[str, Any]:
        """Return the words and details of a song that /format_input polishes."""
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
        if self.kind == "turbo" or steps > FEW_STEPS:
            song["options"]["steps"] = self._clamp("inference_steps", "steps")
            return song
        song["quality"] = "draft"
        if self.values.sent("inference_steps"):
            self.notes.append(
                f"{steps} steps are for turbo checkpoints; those of the quality draft were used."
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
        # Theirs count from the end of the run.
        start = 1 - self._clamp("cfg_interval_end", "cfg_start")
        end = 1 - self._clamp("cfg_interval_start", "cfg_end")
        if start <= end:
            options |= {"cfg_start": start, "cfg_end": end}
        else:
            self.notes.append("The interval of guidance ends before it starts, so it was ignored.")
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
        self.notes.append('There was no prompt, so it was "music".')
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
        """Return the seed of the first take, -1 to draw it."""
        values = self.values
        first = values.read("seed").split(",")[0]
        seed = Values({"bpm": first}).read("bpm")  # read as leniently as any whole number
        if seed is None and first:
            self.notes.append(f"The seed {shown(first)} is no number, so one was drawn.")
        if seed is None or seed < 0:
            return -1
        if values.read("use_random_seed"):
            self.notes.append("The seed was drawn; use_random_seed false keeps one.")
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
        """Return which of the `known` words a field has, else the one it has by default."""
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
        """Return an end within the source as ours has it: 0 is the end of the file."""
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
        """Return the value of a field, which has one, within the limits of `ours`."""
        limit = LIMITS[ours]
        asked = self.values.read(theirs)
        found = min(max(asked, limit.low), limit.high)
        if found != asked:
            self.notes.append(f"{theirs} {asked:g} became {found:g}.")
        if limit.integer:
            return int(found)
        return float(found)

    def _clamped(self, theirs: str, asked: float, most: float) -> float:
        if asked <= most:
            return asked
        self.notes.append(f"{theirs} was too far outside: {most:g} seconds were added.")
        return most


def _track_in(words: str) -> str:
    """Return the name of a track in a name or a sentence, "" if there is none."""
    plain = re.sub(r"[\s_-]+", "_", words.strip().lower())
    if plain in TRACKS:
        return plain
    names = sorted(TRACKS, key=len, reverse=True)  # backing_vocals before vocals
    found = re.search(rf"(?<![a-z])({'|'.join(names)})(?![a-z])", plain)
    return found[1] if found else ""


# --- what becomes of it ---------------------------------------------------------------------------


def item_of(runs: Runs, task_id: str) -> dict[str, Any]:
    """Return a task as /query_result tells it; a task that nobody knows is one that waits, without a result."""
    try:
        facts = runs.facts(run_of(task_id))
    except StudioError:
        return {"task_id": task_id, "status": 0, "result": "[]", "progress_text": ""}
    run = runs.find(facts["run"])
    asked = run.tag if run and isinstance(run.tag, Asked) else Asked(facts["mode"], created=0)
    if facts["state"] in ("waiting", "running"):
        return _unfinished(task_id, facts, asked)
    entries = _entries(runs, facts, asked) if facts["state"] == "finished" else []
    if entries:
        return _item(task_id, 1, entries, "succeeded")
    problem = facts["problem"] or {"message": "The song was not kept.", "hint": ""}
    return _failed(task_id, f"{problem['message']} {problem['hint']}".strip(), asked)


def _item(
    task_id: str, status: int, entries: list[dict[str, Any]], text: str, error: str | None = None
) -> dict[str, Any]:
    item = {"task_id": task_id, "status": status, "result": json.dumps(entries)}
    item["progress_text"] = text
    item["error"] = error
    return item


def _entry(status: int, created: int, progress: float, stage: str) -> dict[str, Any]:
    return {
        "file": "",
        "wave": "",
        "status": status,
        "create_time": created,
        "env": "development",
        "progress": progress,
        "stage": stage,
    }


def _unfinished(task_id: str, facts: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    if facts["state"] == "waiting":
        text = tooltips.waiting_sentence(facts["place"], facts["starts_in"])
        return _item(task_id, 0, [_entry(0, asked.created, 0.0, "queued")], text)
    progress = Progress(**(facts["progress"] or {"stage": "preparing"}))
    words = STAGE_WORDS.get(progress.stage, tooltips.STAGES[progress.stage])
    text = words
    if progress.steps and progress.stage in tooltips.COUNTED:
        text = f"{words} {progress.step}/{progress.steps}"
    share = share_done(progress)
    return _item(task_id, 0, [_entry(0, asked.created, share, words)], text)


def _failed(task_id: str, text: str, asked: Asked) -> dict[str, Any]:
    entry = _entry(2, asked.created, 0.0, "failed") | {"error": text}
    return _item(task_id, 2, [entry], text, text)


def _entries(runs: Runs, facts: Mapping[str, Any], asked: Asked) -> list[dict[str, Any]]:
    record = facts["record"]
    if record is None:  # of an earlier process, or long ago: the files know
        return _entries_of_files(runs, facts, asked)
    if record.get("sketch") is not None:
        return [_analysis(record["sketch"])]
    seeds = [take["seed"] for take in record["takes"]]
    return [
        _take_entry(facts["run"], number, take, record, seeds, asked)
        for number, take in enumerate(record["takes"], 1)
    ]


def _entries_of_files(runs: Runs, facts: Mapping[str, Any], asked: Asked) -> list[dict[str, Any]]:
    found: list[tuple[int, Path, Mapping[str, Any]]] = []
    for number in range(1, len(facts["takes"]) + 1):
        try:
            path = runs.take(facts["run"], number)
        except StudioError:
            continue
        found.append((number, path, audio_export.read_record(path) or {}))
    entries = []
    seeds = [Stored.from_record(record).seed for _, _, record in found]
    for number, path, record in found:
        takes = record.get("takes")
        take = takes[0] if isinstance(takes, list) and takes else {}
        entries.append(
            _take_entry(facts["run"], number, {**take, "name": path.name}, record, seeds, asked)
        )
    return entries


def _take_entry(
    run_id: str,
    number: int,
    take: Mapping[str, Any],
    record: Mapping[str, Any],
    seeds: Sequence[Any],
    asked: Asked,
) -> dict[str, Any]:
    stored = Stored.from_record(record)
    request = stored.request
    lyrics = request.get("lyrics") or ""
    if request.get("instrumental") or not lyrics:
        lyrics = INSTRUMENTAL
    prompt = request.get("prompt") or ""
    metas = {
        "bpm": stored.song_detail("bpm") or UNKNOWN,
        "duration": take.get("duration", UNKNOWN),
        "genres": UNKNOWN,
        "keyscale": stored.key or UNKNOWN,
        "timesignature": stored.song_detail("time_signature") or UNKNOWN,
        "prompt": prompt,
        "lyrics": lyrics,
    }
    url = audio_url(run_id, number, Path(str(take.get("name", ""))).suffix)
    entry = _entry(1, asked.created, 1.0, "succeeded")
    return entry | {
        "file": url,
        "url": url,
        "prompt": prompt,
        "lyrics": lyrics,
        "metas": metas,
        "generation_info": _info(record, take, asked),
        "seed_value": ",".join(str(seed) for seed in seeds),
        "lm_model": str(stored.plan.get("model") or ""),
        "dit_model": _model_in(record),
    }


def _model_in(record: Mapping[str, Any]) -> str:
    model = record.get("model")
    if isinstance(model, Mapping):
        return str(model.get("id", ""))
    return ""


def _info(record: Mapping[str, Any], take: Mapping[str, Any], asked: Asked) -> str:
    """Return what ran, and what was changed of what was asked for."""
    sampling = record.get("sampling")
    lines = [f"{ENGINE}, {_model_in(record)}"]
    if isinstance(sampling, Mapping):
        named = ("steps", "guidance", "shift", "sampler")
        lines.append(", ".join(f"{name} {sampling.get(name)}" for name in named))
    notes = record.get("notes")
    warnings = take.get("warnings")
    for more in (asked.notes, notes, warnings):
        if isinstance(more, list | tuple):
            lines += [str(note) for note in more]
    return "\n".join(lines)


def audio_url(run_id: str, number: int, suffix: str) -> str:
    """Return where a take is served, a URL that ends as its file does.

    Its path is none of ours. It looks like one of a temporary folder, where some programs expect
    what a server makes, and refuse anything else.
    """
    return f"/v1/audio?path={quote(f'/tmp/acestep/{run_id}/{number}{suffix}', safe='')}"


def _analysis(sketch: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "bpm": sketch["bpm"],
        "keyscale": sketch["key"],
        "timesignature": sketch["time_signature"],
        "duration": sketch["duration"],
        "language": sketch["language"],
        "genre": UNKNOWN,
        "prompt": sketch["prompt"],
        "lyrics": sketch["lyrics"],
    }
    metas = {**found, "genres": UNKNOWN, "caption": sketch["prompt"]}
    more = {"metas": metas, "audio_codes": "", "audio_paths": []}
    status = {"status_message": "Full Hardware Analysis Success", "status": 1, "stage": "succeeded"}
    return {**status, "progress": 1.0, **found, **more}
