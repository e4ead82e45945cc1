"""Runs of ours as the official REST API tells of tasks: their state, their takes, and what was changed."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import audio_export
import tooltips
from api_official_tasks import Asked
from events import Progress, StudioError, share_done
from limits import INSTRUMENTAL
from record import Stored
from runs import Runs

ENGINE = "ACE Music Studio"
UNKNOWN = "N/A"
# The states of a task, as numbers.
UNFINISHED = 0
SUCCEEDED = 1
FAILED = 2
# What some clients wait for in the text of a stage.
STAGE_WORDS = {"decoding": "Decoding audio", "finishing": "Preparing audio data"}


def task_of(run_id: str) -> str:
    """Return the id of a run as clients know it: a UUID."""
    return str(uuid.UUID(hex=run_id))


def run_of(task_id: object) -> str:
    """Return the id of a task's run, "" if `task_id` cannot be that of a task."""
    written = str(task_id).strip().lower().replace("-", "")
    if re.fullmatch("[0-9a-f]{32}", written):
        return written
    return ""


def item_of(runs: Runs, task_id: str) -> dict[str, Any]:
    """Return the state of a task for /query_result; an unknown task looks like one that waits."""
    try:
        facts = runs.facts(run_of(task_id))
    except StudioError:
        return {"task_id": task_id, "status": UNFINISHED, "result": "[]", "progress_text": ""}
    asked = Asked(facts["mode"], created=0)
    run = runs.find(facts["run"])
    if run and isinstance(run.tag, Asked):
        asked = run.tag
    if facts["state"] in ("waiting", "running"):
        return _unfinished(task_id, facts, asked)
    if facts["state"] == "finished":
        entries = _entries(runs, facts, asked)
        if entries:
            return _item(task_id, SUCCEEDED, entries, "succeeded")
    problem = facts["problem"] or {"message": "The song was not kept.", "hint": ""}
    return _failed(task_id, f"{problem['message']} {problem['hint']}".strip(), asked)


def _item(
    task_id: str, status: int, entries: list[dict[str, Any]], text: str, error: str | None = None
) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "status": status,
        "result": json.dumps(entries),
        "progress_text": text,
        "error": error,
    }


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
        entry = _entry(UNFINISHED, asked.created, 0.0, "queued")
        return _item(task_id, UNFINISHED, [entry], text)
    progress = Progress(**(facts["progress"] or {"stage": "preparing"}))
    words = STAGE_WORDS.get(progress.stage, tooltips.STAGES[progress.stage])
    text = words
    if progress.steps and progress.stage in tooltips.COUNTED:
        text = f"{words} {progress.step}/{progress.steps}"
    entry = _entry(UNFINISHED, asked.created, share_done(progress), words)
    return _item(task_id, UNFINISHED, [entry], text)


def _failed(task_id: str, text: str, asked: Asked) -> dict[str, Any]:
    entry = _entry(FAILED, asked.created, 0.0, "failed") | {"error": text}
    return _item(task_id, FAILED, [entry], text, error=text)


def _entries(runs: Runs, facts: Mapping[str, Any], asked: Asked) -> list[dict[str, Any]]:
    record = facts["record"]
    if record is None:  # the run is old, or of an earlier process; its files have their records
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
        takes = Stored.from_record(record).takes
        take = takes[0] if takes else {}
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
    entry = _entry(SUCCEEDED, asked.created, 1.0, "succeeded")
    return entry | {
        "file": url,
        "url": url,
        "prompt": prompt,
        "lyrics": lyrics,
        "metas": metas,
        "generation_info": _info(stored, take, asked),
        "seed_value": ",".join(str(seed) for seed in seeds),
        "lm_model": str(stored.plan.get("model") or ""),
        "dit_model": str(stored.model or ""),
    }


def _info(stored: Stored, take: Mapping[str, Any], asked: Asked) -> str:
    """Return what ran, and the notes on what was changed, a line each."""
    lines = [f"{ENGINE}, {stored.model or ''}"]
    if stored.sampling:
        named = ("steps", "guidance", "shift", "sampler")
        lines.append(", ".join(f"{name} {stored.sampling.get(name)}" for name in named))
    for more in (asked.notes, stored.notes, take.get("warnings")):
        if isinstance(more, list | tuple):
            lines += [str(note) for note in more]
    return "\n".join(lines)


def audio_url(run_id: str, number: int, suffix: str) -> str:
    """Return the URL that serves a take; it ends as the take's file does.

    The path in it does not exist. It looks like one in a temporary folder, because some programs
    refuse any other place for what a server makes.
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
    return {
        "status_message": "Full Hardware Analysis Success",  # as the official server says it
        "status": SUCCEEDED,
        "stage": "succeeded",
        "progress": 1.0,
        **found,
        "metas": {**found, "genres": UNKNOWN, "caption": sketch["prompt"]},
        "audio_codes": "",
        "audio_paths": [],
    }
