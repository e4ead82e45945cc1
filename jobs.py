"""One piece of GPU work: its folder, its seeds, the uploads that it reads, and the clock of its progress."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import audio
import export
from events import Progress, StudioError
from limits import MAX_SEED, SAMPLE_RATE
from lora_sources import LoraSpec
from params import Request, SongRequest

UPLOADS = {"source": "The source", "reference": "The reference audio"}


@dataclass(frozen=True)
class Job:
    """One picklable piece of GPU work: the request, a seed a take, and the folder that it reads from and writes to.

    `audio` maps a field ("reference") to a float WAV in `folder`. The job counts as cancelled once `folder/running` is
    gone, which a ZeroGPU worker in another process sees as well. `loras` act in their order.
    """

    request: Any
    seeds: tuple[int, ...]
    variation_seeds: tuple[int, ...]
    folder: str
    audio: dict[str, str] = field(default_factory=dict)
    loras: tuple[LoraSpec, ...] = ()

    @property
    def running(self) -> Path:
        """The file that stands as long as the job is wanted."""
        return Path(self.folder, "running")

    def cancelled(self) -> bool:
        """Tell whether nobody waits for the job any more."""
        return not self.running.exists()


@contextlib.contextmanager
def job_for(request: Request) -> Iterator[Job]:
    """Give the request a folder of its own, seeds, and the uploads it names; the folder goes with the block."""
    folder = Path(tempfile.gettempdir(), "ace-music-studio", secrets.token_hex(16))
    folder.mkdir(parents=True)
    try:
        song = isinstance(request, SongRequest)
        job = Job(
            request=request,
            seeds=_seeds(request.seed, request.takes if song else 1),
            variation_seeds=_seeds(request.options.variation_seed, request.takes) if song else (),
            folder=str(folder),
            audio={name: str(folder / f"{name}.wav") for name in UPLOADS if getattr(request, name, None)},
        )
        job.running.touch()
        yield job
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def _seeds(first: int, takes: int) -> tuple[int, ...]:
    """Return a seed a take: `first` + i, where -1 draws the first here, in the main process."""
    if first < 0:
        first = secrets.randbelow(MAX_SEED - takes + 2)
    return tuple((first + i) % (MAX_SEED + 1) for i in range(takes))
