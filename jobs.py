"""One piece of GPU work from its folder to its files: seeds, uploads, progress; takes, tags, the record, old songs.

The record holds enough to make the song again and what really ran; the same record, for one take, is written into each
file. No object in it has a key "path", "url" or "meta": clients would try to download it.

Of the output folder only files that the studio made there are ever deleted: those whose tags hold a record, and whose
name is the one that this record gives them. A song that was renamed or moved is the visitor's own.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
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
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from gradio import processing_utils
from gradio import utils as gradio_utils

import artwork
import audio
import bootstrap
import export
import levels
import models
from events import Done, Failed, Job, Outcome, Problem, Progress, StudioError, Take, is_disk_full
from limits import LIMITS, MAX_SEED, SAMPLE_RATE, STUDIO_VERSION
from params import Request, SongRequest
from weights import Weights, checkpoint_kind, task_support

UPLOADS = {"source": "The source", "reference": "The reference audio"}


@contextlib.contextmanager
def job_for(request: Request) -> Iterator[Job]:
    """Give the request a folder of its own, seeds, and the uploads it names; the folder goes with the block."""
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
            raise StudioError("stopping", "The studio is being stopped.", hint="Try again when it is back.")
        yield job


@contextlib.contextmanager
def job_folder(name: str) -> Iterator[Path]:
    """Make the folder of the job `name`; it goes with the block."""
    folder = job_place(name)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def job_place(name: str) -> Path:
    """Return where this process has, or would have, the folder `name`."""
    return _process_folder() / name


# --- the folder of this process -----------------------------------------------------------------------------------

LOCK = ".lock"
_stopping = threading.Event()
_making = threading.Lock()
_process: tuple[Path, IO] | None = None


def stop(seconds: float) -> None:
    """Cancel all jobs, let none begin, wait up to `seconds` for their ends, and remove the folder of this process."""
    _stopping.set()
    if _process is None:
        return
    end = time.monotonic() + seconds
    while (left := list(_process[0].glob("*/running"))) or list(_process[0].glob("*/")):
        for running in left:
            running.unlink(missing_ok=True)
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    _leave(_process[0], os.getpid())
    export.discard_parts()


def sweep() -> None:
    """Remove the folders of processes that ended without doing so."""
    root = bootstrap.private_folder("jobs")
    with _locked(root / LOCK):
        for folder in root.glob("*/"):
            with contextlib.suppress(OSError), _locked(folder.with_suffix(LOCK), wait=False):
                shutil.rmtree(folder, ignore_errors=True)
                folder.with_suffix(LOCK).unlink(missing_ok=True)


def _process_folder() -> Path:
    """Return the folder that this process keeps its jobs in; a lock beside it tells `sweep` that it is alive."""
    global _process
    with _making:
        if _process is None or not _process[0].is_dir():
            root = bootstrap.private_folder("jobs")
            with _locked(root / LOCK):
                folder = root / secrets.token_hex(8)
                lock = folder.with_suffix(LOCK).open("w")
                fcntl.flock(lock, fcntl.LOCK_EX)
                folder.mkdir(mode=0o700)
            _process = folder, lock
            atexit.register(_leave, folder, os.getpid())
        return _process[0]


def _leave(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock at `path`; raises BlockingIOError where another process has it and this one does not `wait`."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


# --- what a job needs ---------------------------------------------------------------------------------------------


def decode_upload(job: Job, name: str, upload: str) -> float:
    """Write the upload as float WAV at 48 kHz into the job's folder; returns its seconds."""
    try:
        samples = audio.decode(upload)
    except audio.AudioError as error:
        raise StudioError("bad_audio", f"{UPLOADS[name]}: {error.message}", name, error.hint) from None
    export.write_wav(job.audio[name], samples)
    return samples.shape[1] / SAMPLE_RATE


def source_seconds(job: Job) -> float:
    """Return the length of the job's source in seconds, 0 where it has none."""
    return audio.duration_of(job.audio["source"]) if "source" in job.audio else 0.0


class Clock:
    """Stamps progress with the seconds gone and, from the pace within the stage, the seconds left in it."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._started = self._stage_started = now()
        self._stage, self._first = "", 0

    def stamp(self, event: Progress) -> Progress:
        """Return `event` with both; seconds left that it brings along stay."""
        now = self._now()
        if event.stage != self._stage:
            self._stage, self._stage_started, self._first = event.stage, now, event.step
        done, left = event.step - self._first, event.left
        if left is None and done > 0 and event.steps:
            left = round((now - self._stage_started) / done * (event.steps - event.step), 1)
        return replace(event, elapsed=round(now - self._started, 1), left=left)


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add to `seconds` how long a stage takes that reaches its end."""
    started = time.monotonic()
    yield
    seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - started, 3)


def _seeds(first: int, takes: int) -> tuple[int, ...]:
    """Return a seed a take: `first` + i, where -1 draws the first here, in the main process."""
    if first < 0:
        first = secrets.randbelow(MAX_SEED - takes + 2)
    return tuple((first + i) % (MAX_SEED + 1) for i in range(takes))


# --- what comes of a job -----------------------------------------------------------------------------------------

WORKER = "here"
"""The id of this process as a worker, where nothing else makes the songs."""
HEARTBEAT_SECONDS = 0.4
"""The longest time between two events, so that closing a run takes effect."""
PACKAGES = ("torch", "diffusers", "transformers", "gradio", "huggingface_hub", "soundfile")


@dataclass(frozen=True)
class Saved:
    """A take in the output folder, its copy in Gradio's cache, and its entry in the record."""

    path: Path
    copy: str
    entry: dict[str, Any]


def finish(
    request: SongRequest, job: Job, outcome: Outcome, output: Path, weights: Weights
) -> Iterator[Progress | Done | Failed]:
    """Measure, encode and tag the good takes into `output`; ends with `Done`, or `Failed` if no take could be saved.

    Takes are saved side by side. Closing the generator stops that: nothing is written afterwards.
    The paths in `Done` are copies in Gradio's cache: the output folder itself is never served.
    """
    started = time.monotonic()
    record = _record(request, job, outcome, weights)
    at_once = takes_at_once(len(outcome.takes), request.song_seconds(source_seconds(job)))
    closed = threading.Event()
    threads = futures.ThreadPoolExecutor(at_once, "take")

    def check() -> None:
        if closed.is_set():
            raise futures.CancelledError

    def save(take: Take) -> futures.Future[Saved | Problem]:
        return threads.submit(_save, request, take, record, output, check)

    try:
        saving = [save(take) for take in outcome.takes]
        yield from _finishing(saving)
        # Takes that are written together may fill a disk that has room for some of them: retry one by one.
        for number, take in enumerate(outcome.takes if at_once > 1 else ()):
            if not take.problem and _is_full(saving[number].result()):
                saving[number] = save(take)
                yield from _finishing(saving)
    finally:
        closed.set()
        threads.shutdown(cancel_futures=True)
    results = [each.result() for each in saving]
    saved = [each for each in results if isinstance(each, Saved)]
    problems = [each for each in results if isinstance(each, Problem)]
    record["takes"] = [each.entry for each in saved]
    for number, (take, problem) in enumerate(zip(outcome.takes, results, strict=True), 1):
        if isinstance(problem, Problem):
            record["errors"].append({"take": number, "seed": take.seed, "message": problem.text()})
    if saved and any(map(_is_full, problems)):
        record["notes"].append(f"The disk is full: {len(saved)} of {len(results)} takes could be saved.")
    prune([each.path for each in saved])
    record["seconds"]["finishing"] = round(time.monotonic() - started, 3)
    if saved:
        yield Done(tuple(each.copy for each in saved), record)
    else:
        yield Failed(problems[0])


def takes_at_once(takes: int, seconds: float) -> int:
    """Return how many takes of `seconds` are saved at once: one a core, together no longer than the longest song."""
    return max(min(takes, core_count(), int(LIMITS["duration"].high / seconds)), 1)


def core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _finishing(saving: list[futures.Future]) -> Iterator[Progress]:
    """Yield progress at least every `HEARTBEAT_SECONDS` until all takes are done."""
    while True:
        left = [each for each in saving if not each.done()]
        yield Progress("finishing", min(len(saving) - len(left) + 1, len(saving)), len(saving))
        if not left:
            return
        futures.wait(left, HEARTBEAT_SECONDS, futures.FIRST_COMPLETED)


def disk_problem(error: audio.AudioError | OSError) -> Problem:
    """Return what a failure to read or write a file means for a person; "disk_full" where room is missing."""
    if isinstance(error, audio.AudioError):
        return Problem(error.code, error.message, hint=error.hint)
    if is_disk_full(error):
        return Problem(export.FULL, "The disk is full.", hint="Free some space and try again.")
    return Problem("disk", f"A file could not be read or written: {error.strerror or error}.")


def output_folder() -> Path:
    """Return the folder for finished songs (ACE_STUDIO_OUTPUT), made where missing and checked by writing to it.

    Raises StudioError where it cannot be written to.
    """
    folder = songs_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise StudioError(
            export.FULL if is_disk_full(error) else "disk",
            f"The output folder {folder} cannot be written to: {error.strerror or error}.",
            hint="Free some space or name another folder in ACE_STUDIO_OUTPUT.",
        ) from None
    return folder


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape the sound."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def what_ran(weights: Weights, device: models.Device) -> dict[str, Any]:
    """Return what a record says of the machine that did the work, which may be another one than this."""
    return {
        "model": {"id": weights.model_id, "revision": weights.revision, "engine": weights.engine},
        "device": device.kind,
        "versions": versions(),
        "worker": WORKER,
    }


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(
    loaded: models.Models, job: Job, weights: Weights, seconds: dict[str, float], facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the record of a job that is no song: what was asked, what ran, and `facts`, which came of it."""
    return {
        "studio": STUDIO_VERSION,
        "mode": job.request.mode,
        "request": job.request.model_dump(mode="json", exclude={"mode", "source"}),
        "seed": job.seeds[0],
        **what_ran(weights, loaded.device()),
        "seconds": seconds,
        **facts,
    }


def _record(request: SongRequest, job: Job, outcome: Outcome, weights: Weights) -> dict[str, Any]:
    facts = dict(outcome.facts)
    uploads = {name: Path(getattr(request, name)) for name in job.audio}
    asked = request.model_dump(mode="json", exclude={"mode", "source", "reference"})
    # An uploaded file is "upload" here: its path is nobody's business.
    asked["options"]["loras"] = [{"source": lora.source, "weight": lora.weight} for lora in job.loras]
    return {
        "studio": STUDIO_VERSION,
        "mode": request.mode,
        "request": asked,
        "audio": {name: {"name": path.name, "sha256": sha256(path)} for name, path in uploads.items()},
        "seeds": list(job.seeds),
        "variation_seeds": list(job.variation_seeds) if request.options.variation else [],
        "plan": None,
        "loras": [],
        "seconds": facts.pop("seconds"),
        **facts,
        "notes": [*outcome.notes, *_level_notes(request), *_task_notes(request, checkpoint_kind(weights))],
        "errors": [],
        "takes": [],
    }


def _task_notes(request: SongRequest, kind: str) -> list[str]:
    task = getattr(request, "action", request.mode)
    if task_support(kind)[task] == "official":
        return []
    return [f"{task.capitalize()} is experimental with this checkpoint: it was made for the base checkpoint."]


def _level_notes(request: SongRequest) -> list[str]:
    """Say what loudness and fade-out cost in a mode that otherwise leaves the source's samples alone."""
    keeps = request.mode == "extend" or getattr(request, "action", "") in ("repaint", "layer")
    options = request.options
    if keeps and (options.loudness is not None or options.fade_out):
        return ["Loudness and fade-out change the whole file, so the source's samples are not the same any more."]
    return []


def _measure(request: SongRequest, take: Take) -> tuple[dict[str, Any], Any]:
    """Return a take's facts and its samples [2, n] after fade-out and loudness."""
    samples = levels.fade_out(audio.read_wav(take.file), request.options.fade_out)
    warnings = list(take.warnings)
    if request.options.loudness is not None:
        samples = levels.scale_to_loudness(samples, request.options.loudness)
        reached = levels.loudness_lufs(samples)
        if reached is not None and abs(reached - request.options.loudness) > 0.5:
            warnings.append(
                f"The loudness is {reached:.1f} LUFS instead of {request.options.loudness:g}: louder would clip."
            )
    loudness = levels.loudness_lufs(samples)
    facts = {
        "seed": take.seed,
        "duration": round(samples.shape[-1] / SAMPLE_RATE, 6),
        "peak_dbfs": round(levels.peak_dbfs(samples), 2),
        "loudness_lufs": None if loudness is None else round(loudness, 2),
        "warnings": warnings,
    }
    return facts, samples


def _save(
    request: SongRequest, take: Take, record: dict[str, Any], output: Path, check: Callable[[], None]
) -> Saved | Problem:
    """Save a take under a name that nothing else has; a failure, or an exception from `check`, leaves no file."""
    if take.problem:
        return take.problem
    kind = request.options.format
    name = export.file_name(request.prompt, take.seed, kind, request.mode)
    try:
        facts, samples = _measure(request, take)
        output.mkdir(parents=True, exist_ok=True)  # it may have been removed since the song began
        with export.aside(output) as part:
            export.encode(samples, part, kind, check)
            title = next(export.free_names(output / name)).stem
            tags = {**record, "takes": [facts]}
            export.write_tags(part, title, tags, artwork.for_tags(samples, tags))
            path = export.claim(part, output / name)
        try:
            copy = processing_utils.save_file_to_cache(path, cache_dir=gradio_utils.get_upload_folder())
        except OSError as error:
            if is_disk_full(error):
                path.unlink()  # another take may fit in its place
            raise
        return Saved(path, copy, {**facts, "name": path.name, "sha256": sha256(path)})
    except (audio.AudioError, OSError) as error:
        return disk_problem(error)


def _is_full(result: Saved | Problem) -> bool:
    return isinstance(result, Problem) and result.code == export.FULL


# --- the output folder ----------------------------------------------------------------------------------------------

log = logging.getLogger("studio")

KEEP_DAYS, KEEP_GB = "ACE_STUDIO_KEEP_DAYS", "ACE_STUDIO_KEEP_GB"
# (days, gigabytes): on a machine of one's own, and on a Space, which is everybody's.
AT_HOME, ON_A_SPACE = (30.0, 20.0), (1.0, 2.0)
NO_LIMIT = "off"
# A part grows block by block; one that did not for so long is nobody's.
ABANDONED_SECONDS = 60
NAME = re.compile(r"(.+-seed-\d+)(?:-\d+)?\.(wav|flac|mp3|ogg)")


@dataclass(frozen=True)
class Keep:
    """How many `days` a finished song stays, and how many `gb` (10^9 bytes) all of them have; infinite: no limit."""

    days: float
    gb: float


def songs_folder() -> Path:
    """Return the folder for finished songs (ACE_STUDIO_OUTPUT), which may not be there yet."""
    return Path(os.environ.get("ACE_STUDIO_OUTPUT") or Path(__file__).with_name("outputs")).expanduser().resolve()


def keep() -> Keep:
    """Return what ACE_STUDIO_KEEP_DAYS and ACE_STUDIO_KEEP_GB say; "off" is no limit, nonsense is the default."""
    days, gb = ON_A_SPACE if os.environ.get("SPACE_ID") else AT_HOME
    return Keep(_limit(KEEP_DAYS, days), _limit(KEEP_GB, gb))


def prune(made: Collection[Path] = (), now: float | None = None) -> list[Path]:
    """Delete songs that are too old, then the oldest while all are too large; returns what went.

    The files just `made` stay. It never raises: a file that cannot be deleted stays, and the log says so.
    """
    sweep_songs(now)
    limits, gone = keep(), []
    songs = sorted(_songs(songs_folder()), key=lambda song: song[1].st_mtime)
    oldest = (time.time() if now is None else now) - limits.days * 86_400

    def enough(size: int, next_mtime: float) -> bool:
        return next_mtime >= oldest and size <= limits.gb * 1e9

    size = sum(facts.st_size for _, facts in songs)
    if not songs or enough(size, songs[0][1].st_mtime):
        return []  # without a look into the files
    songs = [song for song in songs if _is_ours(song[0])]
    size = sum(facts.st_size for _, facts in songs)
    for path, facts in songs:
        if enough(size, facts.st_mtime):
            break
        if path in made:
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the old song %s cannot be deleted: %s", path, error)
            continue
        size -= facts.st_size
        gone.append(path)
    if gone:
        log.info("deleted %d old songs from the output folder", len(gone))
    return gone


def sweep_songs(now: float | None = None) -> None:
    """Delete what a studio that was killed left half-written: empty songs, and parts that nobody writes any more."""
    oldest = (time.time() if now is None else now) - ABANDONED_SECONDS
    with contextlib.suppress(OSError):
        for entry in os.scandir(songs_folder()):
            facts = entry.stat(follow_symlinks=False)
            half = export.PART.fullmatch(entry.name) or (NAME.fullmatch(entry.name) and not facts.st_size)
            if half and facts.st_mtime < oldest and entry.is_file(follow_symlinks=False):
                os.unlink(entry)


def _limit(variable: str, default: float) -> float:
    text = os.environ.get(variable, "").strip().lower()
    if not text:
        return default
    if text == NO_LIMIT:
        return math.inf
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 < value < math.inf:
        return value
    log.warning('%s must be a number above 0 or "%s", not "%s"; it is %g now', variable, NO_LIMIT, text[:40], default)
    return default


def _songs(place: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the files that are called like songs of the studio; links are not followed."""
    found = []
    try:
        for entry in os.scandir(place):
            if NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                found.append((place / entry.name, entry.stat(follow_symlinks=False)))
    except OSError:
        pass  # no folder yet, or a file that went meanwhile
    return found


def _is_ours(path: Path) -> bool:
    """Tell whether the record in a file's tags gives it the name that it has."""
    stem, kind = NAME.fullmatch(path.name).groups()
    record = export.read_record(path) or {}
    try:
        prompt, seed = record["request"]["prompt"], record["takes"][0]["seed"]
        return export.file_name(prompt, seed, kind, record["mode"]) == f"{stem}.{kind}"
    except (KeyError, IndexError, TypeError, AttributeError):
        return False
