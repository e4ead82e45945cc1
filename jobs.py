"""A job until it reaches the models: its folder, seeds and uploads; and progress with times.

Each process keeps its jobs in a folder of its own, which a lock marks as in use. Every job has a
folder inside it, and is cancelled once the file `running` in that is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import secrets
import shutil
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import audio
import audio_export
import beat
import bootstrap
from events import SHARES, Event, Progress, Shares, StudioError, share_done
from gpu_job import Job, SongJob
from limits import MAX_SEED, SAMPLE_RATE, is_folder_name
from model_weights import Weights
from models import Models
from params import AlignRequest, DescribeRequest, Request, Settings, SongRequest, model_of
from record import UploadEntry
from song_length import Automatic

UPLOADS = {"source": "The source", "reference": "The reference audio"}


@contextlib.contextmanager
def job_for(
    request: Request, settings: Settings | None = None, automatic: Automatic | None = None
) -> Iterator[Job]:
    """Yield a job for `request` with seeds and a folder, which is deleted on exit; raises StudioError at shutdown."""
    songs = getattr(request, "songs", 1)
    seeds = _seeds(request.seed, songs)
    with job_folder(secrets.token_hex(16)) as folder:
        uploads = [name for name in UPLOADS if getattr(request, name, None)]
        audio_files = {name: str(folder / f"{name}.wav") for name in uploads}
        if isinstance(request, SongRequest):
            if settings is None:
                raise ValueError("a song needs its settings")
            job: Job = SongJob(
                request=request,
                seeds=seeds,
                variation_seeds=_seeds(request.options.variation_seed, songs),
                folder=str(folder),
                audio=audio_files,
                settings=settings,
                automatic=automatic,
            )
        else:
            job = Job(
                request=request,
                seeds=seeds,
                variation_seeds=(),
                folder=str(folder),
                audio=audio_files,
            )
        job.running.touch()
        if _stopping.is_set():
            raise StudioError(
                "stopping",
                "The studio is being stopped.",
                hint="Try again once it is running again.",
            )
        yield job


@contextlib.contextmanager
def job_folder(name: str) -> Iterator[Path]:
    """Create the folder `name` among this process's jobs, and delete it on exit."""
    folder = process_folder() / name
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _seeds(first: int, takes: int) -> tuple[int, ...]:
    """Return a seed for each take: `first` and those after it; a negative `first` is drawn."""
    if first < 0:
        first = secrets.randbelow(MAX_SEED - takes + 2)
    return tuple((first + take) % (MAX_SEED + 1) for take in range(takes))


LOCK = ".lock"
_stopping = threading.Event()
_creating = threading.Lock()
_process: tuple[Path, IO] | None = None


def stop(seconds: float) -> None:
    """Cancel all jobs, refuse new ones, wait up to `seconds` for them to end, and delete this process's folder."""
    _stopping.set()
    if _process is None:
        return
    folder, _ = _process
    end = time.monotonic() + seconds
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
    """Return the folder of this process's jobs; a lock file beside it tells `sweep` that the process is alive."""
    global _process
    with _creating:
        if _process is None or not _process[0].is_dir():
            folder = bootstrap.private_folder("jobs") / secrets.token_hex(8)
            lock = folder.with_suffix(LOCK).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)  # before `sweep` can see the folder
            folder.mkdir(mode=0o700)
            _process = (folder, lock)
            atexit.register(_delete_folder, folder)
        return _process[0]


def _delete_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(LOCK).unlink(missing_ok=True)


def decode_upload(job: Job, name: str) -> Generator[Progress, None, float]:
    """Write the upload `name` into the job's folder as float WAV at 48 kHz; return its length in seconds.

    Yields progress at every beat: a long file of many channels takes a minute, which can be cancelled.
    """
    events, _ = beat.in_thread(_decoding(job, name), "decode", job.cancelled)
    seconds = 0.0
    for event in events:
        if event is beat.QUIET:
            yield Progress("preparing")
        else:
            seconds = event
    return seconds


def _decoding(job: Job, name: str) -> Generator[float]:
    try:
        samples = audio.decode(getattr(job.request, name), job.cancelled)
    except audio.AudioError as error:
        raise StudioError(
            "bad_audio", f"{UPLOADS[name]}: {error.message}", name, error.hint
        ) from None
    audio_export.write_wav(job.audio[name], samples)
    yield samples.shape[1] / SAMPLE_RATE


def source_seconds(job: Job) -> float:
    if "source" in job.audio:
        return audio.duration_of(job.audio["source"])
    return 0.0


def song_model(job: Job, loaded: Models) -> Weights | None:
    """Return the song model that `job` uses, None if it uses none."""
    if isinstance(job.request, SongRequest | DescribeRequest | AlignRequest):
        return loaded.find(model_of(job.request))
    return None


def with_times(events: Iterator[Event], shares: Shares = SHARES) -> Iterator[Event]:
    """Yield `events`; progress gets the seconds since the start and, at the pace so far, those left in its stage.

    It also gets how much of the run is done, which never falls: a stage may come twice. The outline
    of a song stays until there is another.
    """
    started = time.monotonic()
    stage = Stage("", started, 0)
    done = 0.0
    outline: tuple[int, ...] = ()
    for event in events:
        if isinstance(event, Progress):
            now = time.monotonic()
            if event.stage != stage.name:
                stage = Stage(event.stage, now, event.step)
            done = max(done, share_done(event, shares))
            outline = event.outline or outline
            event = replace(
                event,
                elapsed=round(now - started, 1),
                left=_left(event, stage, now),
                share=done,
                outline=outline,
            )
        yield event


@dataclass(frozen=True)
class Stage:
    """A stage of a run, and the time (monotonic) and step at which it began."""

    name: str
    started: float
    first_step: int


def _left(event: Progress, stage: Stage, now: float) -> float | None:
    """Return the event's own estimate, else the seconds left in its stage at the pace so far; None if unknown."""
    done = event.step - stage.first_step
    if event.left is not None or done <= 0 or not event.steps:
        return event.left
    return round((now - stage.started) / done * (event.steps - event.step), 1)


def request_entry(job: Job) -> dict[str, Any]:
    """Return what the record holds of the request: every parameter but the files."""
    entry = job.request.model_dump(mode="json", exclude=set(UPLOADS))
    if isinstance(job.request, SongRequest):
        # An uploaded LoRA has the source "upload" in the job, so that no path is published.
        loras = [{"source": lora.source, "weight": lora.weight} for lora in job.loras]
        entry["options"]["loras"] = loras
        model = entry["options"]["model"]
        if is_folder_name(model):  # records travel
            entry["options"]["model"] = Path(model).name
    return entry


def upload_entries(job: Job) -> dict[str, UploadEntry]:
    """Return what the record holds of each upload."""
    entries = {}
    for name in job.audio:
        path = Path(getattr(job.request, name))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries[name] = UploadEntry(name=path.name, sha256=digest)
    return entries
