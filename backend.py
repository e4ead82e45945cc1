"""The one way to the model: requests in, events out, one song at a time on one pipeline.

`Backend.stream` prepares a request outside the GPU (uploads, seeds, folders), hands one picklable `Job` to `gpu_entry`,
and lets `finish` make files of what comes back. `gpu_entry` is the only function that may touch the
models. It runs them in a thread of its own and yields at least twice a second whatever they do, so that closing the
generator always works: closing takes the job's `running` file away, which the work looks for at every step and tile.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import queue
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import spaces

import audio
import models
import modes
from estimate import gpu_seconds
from finish import finish, output_folder, versions
from modes import Job, Outcome
from params import (
    LIMITS,
    MAX_SEED,
    STUDIO_VERSION,
    Done,
    Event,
    Failed,
    Problem,
    Progress,
    SongRequest,
    StudioError,
    check_source,
    sampling_settings,
)

log = logging.getLogger("studio")

ON_ZEROGPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
# Off ZeroGPU one pipeline serves everybody in turn; there every call has a worker of its own.
GPU_CONCURRENCY = {"concurrency_id": "gpu", "concurrency_limit": 8 if ON_ZEROGPU else 1}
HEARTBEAT_SECONDS = 0.4
UPLOADS = {"source": "The source", "reference": "The reference audio"}


# --- the GPU entry point ------------------------------------------------------------------------------------------


def _seconds(job: Job, seconds: int, *args: Any, **kwargs: Any) -> int:
    """Tell ZeroGPU how long the job takes; gradio may pass more arguments than the job's own."""
    return seconds


@spaces.GPU(duration=_seconds)
def gpu_entry(job: Job, seconds: int) -> Iterator[Progress | Outcome | Failed]:
    """Run `job` on the model; the last event is its `Outcome` or `Failed`, unless it was cancelled."""
    events: queue.Queue = queue.Queue()
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(_drain, _work(job), job, events), name="song", daemon=True
    )
    thread.start()
    latest = Progress("waiting")
    try:
        while True:
            try:
                event = events.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                event = latest
            if event is None:
                return
            if isinstance(event, Progress):
                latest = event
            yield event
    finally:
        job.running.unlink(missing_ok=True)
        # A ZeroGPU worker hands its card back when this returns; elsewhere the lock keeps the next song waiting, and
        # the event loop, which may be what closes this generator, must not.
        if ON_ZEROGPU:
            thread.join()


def _drain(work: Iterator[Event | Outcome], job: Job, events: queue.Queue) -> None:
    """Put what `work` yields into `events`, then None; stop as soon as the job is cancelled."""
    try:
        with contextlib.closing(work):
            for event in work:
                if job.cancelled():
                    break
                events.put(event)
    except Exception as error:
        if not job.cancelled():
            events.put(Failed(problem_of(error)))
    finally:
        events.put(None)


def _work(job: Job) -> Iterator[Progress | Outcome]:
    backend = get_backend()
    while not backend.turn.acquire(timeout=HEARTBEAT_SECONDS):
        if job.cancelled():
            return
        yield Progress("waiting")
    try:
        if not backend.loaded:
            yield Progress("loading")
        started = time.monotonic()
        pipe = backend.pipeline()
        loading = time.monotonic() - started
        for event in modes.run(pipe, job, backend.weights.engine == "preview"):
            if isinstance(event, Outcome):
                event.facts["seconds"] = {"loading": round(loading, 3), **event.facts["seconds"]}
            yield event
    finally:
        backend.turn.release()


# --- the backend --------------------------------------------------------------------------------------------------


class Backend:
    """Knows the weights, the device and the pipeline; `turn` is held while a song is being made."""

    def __init__(self):
        self.turn = threading.Lock()
        self._building = threading.Lock()
        self._picking = threading.Lock()
        self._device: models.Device | None = None
        self._pipe: Any = None
        self.weights = models.find_weights()

    @property
    def loaded(self) -> bool:
        """Tell whether the pipeline is built."""
        return self._pipe is not None

    def pipeline(self) -> Any:
        """Return the pipeline, built at the first call however many ask for it at once."""
        with self._building:
            if self._pipe is None:
                self._pipe = models.build_pipeline(self.weights, self.device())
            return self._pipe

    def device(self) -> models.Device:
        """Return the device that is used; the first call imports torch."""
        with self._picking:
            if self._device is None:
                self._device = models.pick_device(self.weights)
            return self._device

    def refresh(self) -> None:
        """Look for the weights again; a change lets go of the pipeline once the song that uses it is done."""
        weights = models.find_weights()
        if weights != self.weights:
            with self.turn, self._building:
                self.weights, self._pipe, self._device = weights, None, None

    def status(self) -> dict[str, Any]:
        """Return facts for the status line, without loading anything; `device` is empty until it is known."""
        weights, device = self.weights, self._device
        return {
            "engine": weights.engine,
            "model": weights.model_id,
            "revision": weights.revision,
            "source": weights.source,
            "device": device.kind if device else "",
            "device_reason": device.reason if device else "",
            "dtype": device.dtype if device else "",
            "loaded": self.loaded,
            "turbo": models.is_turbo(weights),
            "problem": _as_dict(weights.problem),
            "wanted": weights.wanted,
            "planner": "off",
            "lyrics": "off",
            "download_gb": models.DEFAULT_MODEL_GB,
            "tasks": modes.task_support(models.checkpoint_kind(weights)),
        }

    def capabilities(self) -> dict[str, Any]:
        """Return what this studio can do, for programs; picks the device, which imports torch once."""
        device = self.device()
        status = self.status()
        return {
            "studio": STUDIO_VERSION,
            "model": status["model"],
            "revision": status["revision"],
            "engine": status["engine"],
            "turbo": status["turbo"],
            "problem": status["problem"],
            "device": device.kind,
            "device_reason": device.reason,
            "dtype": device.dtype,
            "memory_plan": "everything resident",
            "planner": status["planner"],
            "lyrics": status["lyrics"],
            "tasks": status["tasks"],
            "limits": {
                name: {"low": limit.low, "high": limit.high, "default": limit.default, "unit": limit.unit}
                for name, limit in LIMITS.items()
            },
            "versions": versions(),
        }

    def stream(self, request: SongRequest) -> Iterator[Event]:
        """Make the song of `request`: progress, then `Done` or `Failed`. Closing the generator cancels the song."""
        clock = _Clock()
        try:
            for event in self._song(request):
                yield clock.stamp(event) if isinstance(event, Progress) else event
        except Exception as error:
            yield Failed(problem_of(error))

    def download(self) -> Iterator[Event]:
        """Fetch the real weights; the studio uses them from the next song on. Closing the generator stops the fetch."""
        gone = threading.Event()
        try:
            yield from models.download(self.weights.wanted, gone.is_set)
            self.refresh()
            yield Done((), {})
        except Exception as error:
            yield Failed(problem_of(error))
        finally:
            gone.set()

    def _song(self, request: SongRequest) -> Iterator[Event]:
        if self.weights.source == "hub":
            # Named on purpose in ACE_STUDIO_MODEL, so the first song may fetch it.
            yield from models.download(self.weights.wanted, lambda: False)
            self.refresh()
        if self.weights.folder is None:
            raise _error(self.weights.problem)
        output = output_folder()
        with _job(request) as job:
            yield Progress("preparing")
            for name in job.audio:
                seconds = _decode_upload(job, name, getattr(request, name))
                if name == "source":
                    check_source(request, seconds)
                yield Progress("preparing")
            outcome = None
            for event in gpu_entry(job, self._gpu_seconds(request, job)):
                if isinstance(event, Failed):
                    yield event
                    return
                if isinstance(event, Outcome):
                    outcome = event
                else:
                    yield event
            if outcome is None:
                raise StudioError("cancelled", "The song was cancelled before it was done.")
            yield from finish(request, job, outcome, output, self.weights, self.device())

    def _gpu_seconds(self, request: SongRequest, job: Job) -> int:
        settings, _ = sampling_settings(request, models.is_turbo(self.weights))
        if "source" in job.audio:
            duration = audio.duration_of(job.audio["source"])
            duration += getattr(request, "before", 0) + getattr(request, "after", 0)
        else:
            duration = request.duration
        steps = settings.steps
        if getattr(request, "action", "") == "morph":
            # Source and target both run in every averaged draw.
            steps *= 2 * request.options.n_avg
        return gpu_seconds(duration, steps, request.takes, settings.guidance)


_backend: Backend | None = None
_backend_lock = threading.Lock()


def get_backend() -> Backend:
    """Return the one backend, made at the first call; two first calls at once get the same."""
    global _backend
    with _backend_lock:
        if _backend is None:
            _backend = Backend()
        return _backend


# --- around a job -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _job(request: SongRequest) -> Iterator[Job]:
    """Give the request a folder of its own, seeds, and the uploads it names; the folder goes with the block."""
    folder = Path(tempfile.gettempdir(), "ace-music-studio", secrets.token_hex(16))
    folder.mkdir(parents=True)
    try:
        job = Job(
            request=request,
            seeds=_seeds(request.seed, request.takes),
            variation_seeds=_seeds(request.options.variation_seed, request.takes),
            folder=str(folder),
            audio={name: str(folder / f"{name}.wav") for name in UPLOADS if getattr(request, name, None)},
        )
        job.running.touch()
        yield job
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _seeds(first: int, takes: int) -> tuple[int, ...]:
    """Return a seed a take: `first` + i, where -1 draws the first here, in the main process."""
    if first < 0:
        first = secrets.randbelow(MAX_SEED - takes + 2)
    return tuple((first + i) % (MAX_SEED + 1) for i in range(takes))


def _decode_upload(job: Job, name: str, upload: str) -> float:
    """Write the upload as float WAV at 48 kHz into the job's folder; returns its seconds."""
    try:
        samples = audio.decode(upload)
    except audio.AudioError as error:
        raise StudioError("bad_audio", f"{UPLOADS[name]}: {error.message}", name, error.hint) from None
    audio.write_wav(job.audio[name], samples)
    return samples.shape[1] / audio.SAMPLE_RATE


class _Clock:
    """Stamps progress with the seconds gone and, from the pace within the stage, the seconds left in it."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._started = self._stage_started = now()
        self._stage, self._first = "", 0

    def stamp(self, event: Progress) -> Progress:
        now = self._now()
        if event.stage != self._stage:
            self._stage, self._stage_started, self._first = event.stage, now, event.step
        done, left = event.step - self._first, event.left
        if left is None and done > 0 and event.steps:
            left = round((now - self._stage_started) / done * (event.steps - event.step), 1)
        return replace(event, elapsed=round(now - self._started, 1), left=left)


# --- problems ----------------------------------------------------------------------------------------


def problem_of(error: Exception) -> Problem:
    """Turn any exception into a value that tells a person what happened; the unexpected goes to the log in full."""
    if isinstance(error, StudioError):
        return error.problem
    if isinstance(error, audio.AudioError):
        return Problem("audio", error.message, hint=error.hint)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        models.free_memory()
        return Problem(
            "out_of_memory", "There was not enough memory for this song.", hint="Try fewer takes or seconds."
        )
    if isinstance(error, OSError):
        log.exception("a file operation failed")
        return Problem("disk", f"A file could not be read or written: {error.strerror or error}.")
    log.error("a song failed unexpectedly", exc_info=error)
    return Problem(
        "internal",
        f"The song could not be made because of an unexpected error ({type(error).__name__}).",
        hint="Please try again; the log of the studio has the details.",
    )


def _error(problem: Problem | None) -> StudioError:
    if problem is None:
        return StudioError("no_weights", "The model's weights are not here.")
    return StudioError(problem.code, problem.message, problem.field, problem.hint)


def _as_dict(problem: Problem | None) -> dict[str, str] | None:
    return None if problem is None else {"code": problem.code, "message": problem.message, "hint": problem.hint}


if ON_ZEROGPU:
    # Weights moved to "cuda" in a handler's thread are not intercepted there; at import, on the main thread, they are.
    get_backend().pipeline()
