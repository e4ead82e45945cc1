"""A job from start to finish: its folder, seeds and uploads; saved takes and their record; the output folder.

The record holds what it takes to make the song again, and what really ran. Each file carries it with its own take. No
object in it has a key "path", "url" or "meta": clients would try to download it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import hashlib
import logging
import math
import os
import platform
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent import futures
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from gradio import processing_utils
from gradio import utils as gradio_utils

import audio
import audio_export
import audio_levels
import bootstrap
import models
from beat import BEAT_SECONDS
from events import Done, Event, Failed, Job, Outcome, Problem, Progress, StudioError, Take, is_disk_full
from limits import LIMITS, MAX_SEED, SAMPLE_RATE, STUDIO_VERSION
from model_weights import Weights, checkpoint_kind, task_support
from params import Request, SongRequest

log = logging.getLogger("studio")

UPLOADS = {"source": "The source", "reference": "The reference audio"}


@contextlib.contextmanager
def job_for(request: Request) -> Iterator[Job]:
    """Yield a job for `request` with seeds and a folder, which is deleted on exit; raises StudioError at shutdown."""
    with job_folder(secrets.token_hex(16)) as folder:
        song = isinstance(request, SongRequest)
        job = Job(
            request=request,
            seeds=_seeds(request.seed, request.takes if song else 1),
            variation_seeds=_seeds(request.options.variation_seed, request.takes) if song else (),
            folder=str(folder),
            audio={name: str(folder / f"{name}.wav") for name in UPLOADS if getattr(request, name, None)},
        )
        job.running.touch()
        if _stopping.is_set():
            raise StudioError("stopping", "The studio is being stopped.", hint="Try again once it is running again.")
        yield job


@contextlib.contextmanager
def job_folder(name: str) -> Iterator[Path]:
    folder = process_folder() / name
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _seeds(first: int, takes: int) -> tuple[int, ...]:
    if first < 0:
        first = secrets.randbelow(MAX_SEED - takes + 2)
    return tuple((first + i) % (MAX_SEED + 1) for i in range(takes))


LOCK = ".lock"
_stopping = threading.Event()
_creating = threading.Lock()
_process: tuple[Path, IO] | None = None


def stop(seconds: float) -> None:
    """Cancel all jobs, refuse new ones, wait up to `seconds` for them to end, and delete this process's folder."""
    _stopping.set()
    if _process is None:
        return
    folder, end = _process[0], time.monotonic() + seconds
    while list(folder.glob("*/")) and time.monotonic() < end:
        for running in folder.glob("*/running"):
            running.unlink(missing_ok=True)
        time.sleep(0.05)
    _delete_folder(folder)


def sweep() -> None:
    """Delete the folders of processes that were killed."""
    for folder in bootstrap.private_folder("jobs").glob("*/"):
        with contextlib.suppress(OSError), folder.with_suffix(LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _delete_folder(folder)


def process_folder() -> Path:
    """Return the folder for this process's jobs; a lock file next to it tells `sweep` that the process is alive."""
    global _process
    with _creating:
        if _process is None or not _process[0].is_dir():
            folder = bootstrap.private_folder("jobs") / secrets.token_hex(8)
            lock = folder.with_suffix(LOCK).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)  # before `sweep` can see the folder
            folder.mkdir(mode=0o700)
            _process = folder, lock
            atexit.register(_delete_folder, folder)
        return _process[0]


def _delete_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(LOCK).unlink(missing_ok=True)


def decode_upload(job: Job, name: str) -> float:
    """Write the upload `name` into the job's folder as float WAV at 48 kHz; returns its length in seconds."""
    try:
        samples = audio.decode(getattr(job.request, name))
    except audio.AudioError as error:
        raise StudioError("bad_audio", f"{UPLOADS[name]}: {error.message}", name, error.hint) from None
    audio_export.write_wav(job.audio[name], samples)
    return samples.shape[1] / SAMPLE_RATE


def source_seconds(job: Job) -> float:
    return audio.duration_of(job.audio["source"]) if "source" in job.audio else 0.0


def with_times(events: Iterator[Event]) -> Iterator[Event]:
    """Yield `events`; add to progress the seconds since the start and, at the pace so far, those left in its stage."""
    started = stage_started = time.monotonic()
    stage, first = "", 0
    for event in events:
        if isinstance(event, Progress):
            now = time.monotonic()
            if event.stage != stage:
                stage, stage_started, first = event.stage, now, event.step
            left, done = event.left, event.step - first
            if left is None and done > 0 and event.steps:
                left = round((now - stage_started) / done * (event.steps - event.step), 1)
            event = replace(event, elapsed=round(now - started, 1), left=left)
        yield event


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - started, 3)


# --- saving takes ------------------------------------------------------------------------------------------------

WORKER = "here"  # the worker's id if songs are made in this process


def finish(job: Job, outcome: Outcome, output: Path, weights: Weights) -> Iterator[Progress | Done | Failed]:
    """Measure, encode and tag the good takes into `output` in parallel; ends with `Done`, or `Failed` without any.

    `Done` has paths in Gradio's cache: the output folder is never served. Closing the generator ends the writing.
    """
    started, request, takes = time.monotonic(), job.request, outcome.takes
    record = _record(job, outcome, weights)
    at_once = takes_at_once(len(takes), request.song_seconds(source_seconds(job)))
    closed = threading.Event()
    threads = futures.ThreadPoolExecutor(at_once, "take")
    save = functools.partial(threads.submit, _save, request, record, output, closed.is_set)
    try:
        saving = [save(take) for take in takes]
        yield from _until_done(saving)
        # Takes written in parallel may fill a disk that has room for some of them: retry one by one.
        for number, take in enumerate(takes if at_once > 1 else ()):
            if _is_full(saving[number].result()):
                saving[number] = save(take)
                yield from _until_done(saving)
    finally:
        closed.set()
        threads.shutdown(cancel_futures=True)
    results = [each.result() for each in saving]
    saved = [each for each in results if not isinstance(each, Problem)]
    record["takes"] = [entry for _, entry in saved]
    record["errors"] = [
        {"take": number, "seed": take.seed, "message": result.text()}
        for number, (take, result) in enumerate(zip(takes, results, strict=True), 1)
        if isinstance(result, Problem)
    ]
    if saved and any(map(_is_full, results)):
        record["notes"].append(f"The disk is full: {len(saved)} of {len(results)} takes could be saved.")
    prune([output / entry["name"] for _, entry in saved])
    record["seconds"]["finishing"] = round(time.monotonic() - started, 3)
    yield Done(tuple(copy for copy, _ in saved), record) if saved else Failed(results[0])


def takes_at_once(takes: int, seconds: float) -> int:
    """Return how many takes of `seconds` to save at once: one per core, in total no longer than the longest song."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(takes, cores, int(LIMITS["duration"].high / seconds)), 1)


def _until_done(saving: list[futures.Future]) -> Iterator[Progress]:
    left = {each for each in saving if not each.done()}
    while left:
        yield Progress("finishing", len(saving) - len(left) + 1, len(saving))
        left = futures.wait(left, BEAT_SECONDS, futures.FIRST_COMPLETED).not_done


def _save(
    request: SongRequest, record: dict[str, Any], output: Path, cancelled: Callable[[], bool], take: Take
) -> tuple[str, dict[str, Any]] | Problem:
    """Save a take under a free name; return the path of its copy in Gradio's cache, and its entry in the record.

    A take that cannot be copied is deleted. Raises CancelledError.
    """
    if take.problem:
        return take.problem
    kind = request.options.format
    name = audio_export.file_name(request.prompt, take.seed, kind, request.mode)
    try:
        facts, samples = _measure(request, take)
        output.mkdir(parents=True, exist_ok=True)  # it may have been deleted since the song began
        with audio_export.aside(output) as part:
            audio_export.encode(samples, part, kind, cancelled)
            title = next(audio_export.free_names(output / name)).stem
            tags = {**record, "takes": [facts]}
            audio_export.write_tags(part, title, tags, audio_export.picture_for_tags(samples, tags))
            path = audio_export.claim(part, output / name)
        try:
            copy = processing_utils.save_file_to_cache(path, cache_dir=gradio_utils.get_upload_folder())
            return copy, {**facts, "name": path.name, "sha256": sha256(path)}
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()  # the page could not get it, and on a full disk another take may fit in its place
            raise
    except (audio.AudioError, OSError) as error:
        return disk_problem(error)


def _is_full(result: Any) -> bool:
    return isinstance(result, Problem) and result.code == audio_export.FULL


def _measure(request: SongRequest, take: Take) -> tuple[dict[str, Any], Any]:
    """Return a take's facts and its samples [2, n] after fade-out and loudness."""
    target, warnings = request.options.loudness, list(take.warnings)
    samples = audio_levels.fade_out(audio.read_wav(take.file), request.options.fade_out)
    if target is not None:
        samples = audio_levels.scale_to_loudness(samples, target)
    loudness = audio_levels.loudness_lufs(samples)
    if target is not None and loudness is not None and abs(loudness - target) > 0.5:
        warnings.append(f"The loudness is {loudness:.1f} LUFS instead of {target:g}: louder would clip.")
    return {
        "seed": take.seed,
        "duration": round(samples.shape[-1] / SAMPLE_RATE, 6),
        "peak_dbfs": round(audio_levels.peak_dbfs(samples), 2),
        "loudness_lufs": None if loudness is None else round(loudness, 2),
        "warnings": warnings,
    }, samples


def disk_problem(error: Exception) -> Problem | None:
    """Return the problem behind a failure to read or write a file ("disk_full" if the disk is), None for others."""
    if isinstance(error, audio.AudioError):
        return Problem(error.code, error.message, hint=error.hint)
    if is_disk_full(error):
        return Problem(audio_export.FULL, "The disk is full.", hint="Free some space and try again.")
    if not isinstance(error, OSError):
        return None
    log.error("a file operation failed", exc_info=error)
    return Problem("disk", f"A file could not be read or written: {error.strerror or error}.")


def versions() -> dict[str, str]:
    packages = ("torch", "diffusers", "transformers", "gradio", "huggingface_hub", "soundfile")  # may change the sound
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def runtime_facts(weights: Weights, device: models.Device) -> dict[str, Any]:
    """Return the record's entries on model, device, versions and worker; call it on the machine that does the work."""
    return {
        "model": {"id": weights.model_id, "revision": weights.revision, "engine": weights.engine},
        "device": device.kind,
        "versions": versions(),
        "worker": WORKER,
    }


def record_of(
    loaded: models.Models, job: Job, weights: Weights, seconds: dict[str, float], facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the record of a job other than a song; `facts` is its result."""
    return {
        "studio": STUDIO_VERSION,
        "mode": job.request.mode,
        "request": job.request.model_dump(mode="json", exclude={"source"}),
        "seed": job.seeds[0],
        **runtime_facts(weights, loaded.device()),
        "seconds": seconds,
        **facts,
    }


def _record(job: Job, outcome: Outcome, weights: Weights) -> dict[str, Any]:
    request = job.request
    uploads = {name: Path(getattr(request, name)) for name in job.audio}
    options, task, notes = request.options, getattr(request, "action", request.mode), list(outcome.notes)
    if task in ("extend", "repaint", "layer") and (options.loudness is not None or options.fade_out):
        notes.append("Loudness and fade-out change the whole file, including the samples of the source.")
    if task_support(checkpoint_kind(weights))[task] != "official":
        notes.append(f"{task.capitalize()} is experimental with this checkpoint: use a base checkpoint for it.")
    asked = request.model_dump(mode="json", exclude={"source", "reference"})
    # Uploads have the source "upload" here, so that no path is published.
    asked["options"]["loras"] = [{"source": lora.source, "weight": lora.weight} for lora in job.loras]
    return {
        "studio": STUDIO_VERSION,
        "mode": request.mode,
        "request": asked,
        "audio": {name: {"name": path.name, "sha256": sha256(path)} for name, path in uploads.items()},
        "seeds": list(job.seeds),
        "variation_seeds": list(job.variation_seeds) if options.variation else [],
        "plan": None,
        "loras": [],
        **outcome.record,
        "notes": notes,
        "errors": [],  # filled in with the takes once these are saved
        "takes": [],
    }


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the output folder ----------------------------------------------------------------------------------------------

KEEP_DAYS, KEEP_GB = "ACE_STUDIO_KEEP_DAYS", "ACE_STUDIO_KEEP_GB"
AT_HOME, ON_A_SPACE = (30.0, 20.0), (1.0, 2.0)  # days and gigabytes; everyone shares a Space
ABANDONED_SECONDS = 60  # since a part file last grew
SONG_NAME = re.compile(r"(.+-seed-\d+)(?:-\d+)?\.(wav|flac|mp3|ogg)")


def songs_folder() -> Path:
    return Path(os.environ.get("ACE_STUDIO_OUTPUT") or Path(__file__).with_name("outputs")).expanduser().resolve()


def output_folder() -> Path:
    """Return the folder for finished songs, created if missing; raises StudioError if it cannot be written to."""
    folder = songs_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise StudioError(
            audio_export.FULL if is_disk_full(error) else "disk",
            f"The output folder {folder} cannot be written to: {error.strerror or error}.",
            hint="Free some space or name another folder in ACE_STUDIO_OUTPUT.",
        ) from None
    return folder


def retention() -> tuple[float, float]:
    """Return for how many days, and up to how many gigabytes (10^9 bytes) in all, songs are kept; inf for "off"."""
    days, gb = ON_A_SPACE if os.environ.get("SPACE_ID") else AT_HOME
    return _limit(KEEP_DAYS, days), _limit(KEEP_GB, gb)


def prune(made: Collection[Path] = ()) -> None:
    """Delete songs that are too old, then the oldest until the rest fits, but none of those just `made`."""
    sweep_songs()
    days, gb = retention()
    oldest, most = time.time() - days * 86_400, gb * 1e9
    songs = sorted((song for song in _files() if SONG_NAME.fullmatch(song[0].name)), key=lambda song: song[1].st_mtime)

    def are_too_many() -> bool:
        return bool(songs) and (songs[0][1].st_mtime < oldest or sum(facts.st_size for _, facts in songs) > most)

    if are_too_many():
        songs = [song for song in songs if _is_ours(song[0])]  # reads their tags
    while are_too_many():
        path, _ = songs.pop(0)
        if path in made:
            continue
        try:
            path.unlink(missing_ok=True)
            log.info("deleted an old song from the output folder")
        except OSError as error:
            log.warning("the old song %s cannot be deleted: %s", path, error)


def sweep_songs() -> None:
    """Delete what a killed studio left half-written: empty songs and abandoned part files."""
    oldest = time.time() - ABANDONED_SECONDS
    for path, facts in _files():
        half = audio_export.PART.fullmatch(path.name) or (SONG_NAME.fullmatch(path.name) and not facts.st_size)
        if half and facts.st_mtime < oldest:
            with contextlib.suppress(OSError):
                path.unlink()


def _limit(variable: str, default: float) -> float:
    text = os.environ.get(variable, "").strip().lower() or str(default)
    if text == "off":
        return math.inf
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    log.warning('%s must be above 0 or "off", not "%s"; using %g', variable, text[:40], default)
    return default


def _files() -> Iterator[tuple[Path, os.stat_result]]:
    with contextlib.suppress(OSError):  # no folder yet, or a file that was just deleted
        for entry in os.scandir(songs_folder()):
            if entry.is_file(follow_symlinks=False):
                yield Path(entry), entry.stat(follow_symlinks=False)


def _is_ours(path: Path) -> bool:
    """Whether the record in a file's tags matches its name: the studio deletes no other songs."""
    stem, kind = SONG_NAME.fullmatch(path.name).groups()
    record = audio_export.read_record(path) or {}
    try:
        prompt, seed = record["request"]["prompt"], record["takes"][0]["seed"]
        return audio_export.file_name(prompt, seed, kind, record["mode"]) == f"{stem}.{kind}"
    except (KeyError, IndexError, TypeError, AttributeError):
        return False
