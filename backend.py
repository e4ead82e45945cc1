"""The one way to the model: requests in, events out, one song at a time on one pipeline.

`Backend.stream` prepares a request outside the GPU (uploads, seeds, folders), hands one picklable `Job` to `gpu_entry`,
and lets `finish` make files of what comes back. `gpu_entry` is the only function that may touch the
models. It runs them in a thread of its own and yields at least twice a second whatever they do, so that closing the
generator always works: closing takes the job's `running` file away, which the work looks for at every step, tile and
token.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import spaces
from gradio import utils as gradio_utils

import align
import audio
import bootstrap
import cluster
import hub
import jobs
import lora_layout
import lora_sources
import loras
import memory
import models
import modes
import writers
import zerogpu
from events import (
    Done,
    Draft,
    Event,
    Failed,
    InvalidRequest,
    Job,
    Outcome,
    Problem,
    Progress,
    StudioError,
    as_dict,
    is_disk_full,
    is_out_of_memory,
)
from jobs import (
    HEARTBEAT_SECONDS,
    Clock,
    decode_upload,
    disk_problem,
    finish,
    job_for,
    output_folder,
    source_seconds,
    timed,
    versions,
)
from limits import LIMITS, STUDIO_VERSION
from memory import Placing
from params import AlignRequest, CoverRequest, DescribeRequest, Request, SongRequest, check_audio, check_source
from weights import (
    DEFAULT_MODEL_GB,
    NO_COVER,
    Weights,
    checkpoint_kind,
    has_audio_codes,
    is_turbo,
    is_untrained,
    task_support,
)
from zerogpu import Work, clamped, gpu_seconds, refusal, work_of

log = logging.getLogger("studio")

ON_ZEROGPU = bootstrap.on_zerogpu()
# Off ZeroGPU one pipeline serves everybody in turn; there every call has a worker of its own.
GPU_CONCURRENCY = {"concurrency_id": "gpu", "concurrency_limit": 8 if ON_ZEROGPU else 1}


# --- the GPU entry point ------------------------------------------------------------------------------------------


def _seconds(job: Job, seconds: int, *args: Any, **kwargs: Any) -> int:
    """Tell ZeroGPU how long the job takes; gradio may pass more arguments than the job's own."""
    return clamped(seconds)


@spaces.GPU(duration=_seconds)
def gpu_entry(job: Job, seconds: int) -> Iterator[Progress | Draft | Outcome | Done | Failed]:
    """Run `job` on the models; the last event is its `Outcome`, `Done` or `Failed`, unless it was cancelled."""
    events: queue.Queue = queue.Queue()
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(_drain, _work(job), job, events), name="song", daemon=True
    )
    thread.start()
    latest = Progress("preparing")
    beat = zerogpu.Beat(job.folder) if ON_ZEROGPU else None
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
            if beat:
                beat.at(latest.stage, latest.step)
            yield event
    finally:
        job.running.unlink(missing_ok=True)
        # A ZeroGPU worker hands its card back when this returns; elsewhere the lock keeps the next song waiting, and
        # the event loop, which may be what closes this generator, must not.
        if ON_ZEROGPU:
            thread.join()


def _on_gpu(job: Job, seconds: int) -> Iterator[Progress | Draft | Outcome | Done | Failed]:
    """Run `gpu_entry`: here, on a Ray worker, or on ZeroGPU, where a worker's death may go unreported."""
    if cluster.wanted():
        return cluster.run(on_worker, worker_status, job)
    events = gpu_entry(job, seconds)
    return zerogpu.heard(events, job.folder) if ON_ZEROGPU else events


def on_worker(job: Job) -> Iterator[Event | Outcome]:
    """Run `job` on a Ray worker, with the models that are on its machine or that it fetches."""
    try:
        yield from get_backend().gather(job.request)
    except Exception as error:
        yield Failed(problem_of(error))
        return
    yield from gpu_entry(job, 0)


def start_workers(changed: Callable[[int], None]) -> None:
    """Start the Ray workers where ACE_STUDIO_RAY asks for them; `changed` hears again and again how many there are."""
    if cluster.wanted():
        cluster.start(worker_status, changed)


def worker_status() -> dict[str, Any]:
    """Return what a Ray worker tells the studio about itself."""
    return get_backend().look()


def _drain(work: Iterator[Event | Outcome | None], job: Job, events: queue.Queue) -> None:
    """Put what `work` yields into `events`, then None; stop as soon as the job is cancelled.

    A None among it has nothing to tell.
    """
    try:
        with contextlib.closing(work):
            for event in work:
                if job.cancelled():
                    break
                if event is not None:
                    events.put(event)
    except Exception as error:
        if not job.cancelled():
            events.put(Failed(problem_of(error)))
    finally:
        events.put(None)


def _work(job: Job) -> Iterator[Event | Outcome | None]:
    backend = get_backend()
    turn = backend.models.turn
    while True:
        # Read before trying: the load may end while this waits for it.
        stage = "loading" if backend.models.preparing else "waiting"
        if turn.acquire(timeout=HEARTBEAT_SECONDS):
            break
        if job.cancelled():
            return
        yield Progress(stage)
    try:
        yield from _within_memory(backend, job)
    except Exception as error:
        if isinstance(error, StudioError) or not is_out_of_memory(error):
            raise
        models.free_memory()
        raise backend.placing.too_large() from None
    finally:
        turn.release()


def _within_memory(backend: Backend, job: Job) -> Iterator[Event | Outcome | None]:
    """Run `job` by the memory plan that fits; where memory runs out all the same, once more by the next lower one."""
    placing, source = backend.placing, source_seconds(job)
    plan = placing.begin(job.request, source)
    try:
        yield from _by_plan(backend, job, plan)
        return
    except Exception as error:
        lower = placing.lower() if is_out_of_memory(error) else None
        if lower is None:
            raise
    # Only here is the exception gone, and with it what it held on the device.
    models.free_memory()
    note = memory.fallback_note(plan, lower)
    yield Progress("loading", note=note)
    yield from _by_plan(backend, job, placing.begin(job.request, source, lower), (note,))


def _by_plan(backend: Backend, job: Job, plan: str, notes: tuple[str, ...] = ()) -> Iterator[Event | Outcome | None]:
    """Run `job`; what comes of it tells its memory plan, and begins with `notes`."""
    request = job.request
    run = _make_song if isinstance(request, SongRequest) else align.run if request.mode == "align" else writers.run
    for event in run(backend.models, backend.placing, job):
        if isinstance(event, Outcome):
            device = backend.device()
            ran = jobs.what_ran(backend.models.weights, device)
            event.facts.update(ran, dtype=device.dtype, memory_plan=plan)
            event = replace(event, notes=(*notes, *event.notes))
        elif isinstance(event, Done):
            event.record["memory_plan"] = plan
        yield event


def _make_song(loaded: models.Models, placing: Placing, job: Job) -> Iterator[Progress | Outcome | None]:
    if not loaded.loaded:
        yield Progress("loading")
    seconds: dict[str, float] = {}
    with timed(seconds, "loading"):
        placing.for_planning()
        pipe = loaded.pipeline()
    plan, facts = yield from writers.plan_song(loaded, placing, job, pipe, seconds)
    placing.for_song()
    notes: tuple[str, ...] = ()
    if plan is None and loaded.weights.engine == "preview" and not is_untrained(loaded.weights):
        job, notes = writers.in_time(job)
    acting = loras.reconcile(pipe, job.loras)
    for event in modes.run(pipe, job, is_untrained(loaded.weights), plan, checkpoint_kind(loaded.weights)):
        if isinstance(event, Outcome):
            event.facts["seconds"] = {**seconds, **event.facts["seconds"]}
            event.facts.update(plan=facts, loras=acting)
            if plan is None and writers.wants_plan(job.request) and loaded.planner.weights.folder is not None:
                # Where there is no planner at all, the status says so and not every song.
                event = replace(event, notes=(*event.notes, f"Made without a plan: {facts['reason']}"))
            event = replace(event, notes=(*notes, *event.notes))
        yield event


# --- the backend --------------------------------------------------------------------------------------------------


class Backend:
    """Requests in, events out; `models` and `placing` are what the jobs work with."""

    def __init__(self):
        self.models = models.Models(writers.planner_slot, writers.lyrics_slot)
        self.placing = Placing(self.models)
        self._widths: tuple[Weights | None, lora_layout.Widths | None] = None, None

    def device(self) -> models.Device:
        """Return the device that is used; the first call imports torch."""
        return self.models.device()

    def load_all(self) -> None:
        self.models.load_all()
        self.widths()

    def widths(self) -> lora_layout.Widths | None:
        """Return the linear layers that a LoRA has to fit; None while the song model is not here.

        Read once: on ZeroGPU `spaces` deletes the files after it has packed the weights.
        """
        weights, (known_of, widths) = self.models.weights, self._widths
        if widths is None or known_of != weights:
            widths = lora_layout.widths_of(weights.folder) if weights.folder else None
            self._widths = weights, widths
        return widths

    def status(self) -> dict[str, Any]:
        """Return facts for the status line, without loading anything; `device` is empty until it is known.

        Where songs are made on Ray workers the facts are those that one of them told last.
        """
        return {**(cluster.reported() or self._status_here()), "workers": self.workers()}

    def look(self) -> dict[str, Any]:
        """Return `status` with the device picked, which imports torch once; Ray workers pick their own."""
        if not cluster.wanted():
            self.device()
        return self.status()

    def workers(self) -> list[dict[str, Any]]:
        """Return who makes the songs: this process, or the Ray workers that answer."""
        if cluster.wanted():
            return cluster.workers()
        device, busy = self.models.known_device, self.models.turn.locked() and not self.models.preparing
        here = {"id": jobs.WORKER, "node": "", "pid": os.getpid(), "device": device.kind if device else ""}
        return [{**here, "busy": busy}]

    def _status_here(self) -> dict[str, Any]:
        weights, device = self.models.weights, self.models.known_device
        codes = has_audio_codes(weights)
        return {
            "engine": weights.engine,
            "model": weights.model_id,
            "revision": weights.revision,
            "source": weights.source,
            "device": device.kind if device else "",
            "device_reason": device.reason if device else "",
            "dtype": device.dtype if device else "",
            "memory_plan": self.placing.text() if device else "",
            "memory_plans": self.placing.plans(device),
            "loaded": self.models.loaded,
            "kind": checkpoint_kind(weights),
            "turbo": is_turbo(weights),
            "problem": as_dict(weights.problem),
            "wanted": weights.wanted,
            "planner": self.models.planner.status(),
            "lyrics": {**self.models.lyrics.status(), "engine": self.models.lyrics.weights.engine},
            "download_gb": DEFAULT_MODEL_GB,
            "tasks": task_support(checkpoint_kind(weights), codes),
            "unsupported": {} if codes else {"cover": NO_COVER},
            "timed_lyrics": align.support(weights),
        }

    def capabilities(self) -> dict[str, Any]:
        """Return what this studio can do, for programs; picks the device, which imports torch once."""
        status = self.look()
        kept = ("model", "revision", "engine", "turbo", "problem", "device", "device_reason", "dtype", "memory_plan")
        kept += ("planner", "lyrics", "tasks", "unsupported", "timed_lyrics", "workers")
        limits = {
            name: {"low": limit.low, "high": limit.high, "default": limit.default, "unit": limit.unit}
            for name, limit in LIMITS.items()
        }
        return {
            "studio": STUDIO_VERSION,
            **{name: status[name] for name in kept},
            "limits": limits,
            "versions": versions(),
        }

    def stream(self, request: Request) -> Iterator[Event]:
        """Do what `request` asks: progress, then `Done` or `Failed`. Closing the generator cancels it."""
        clock = Clock()
        try:
            for event in self._run(request):
                yield clock.stamp(event) if isinstance(event, Progress) else event
        except Exception as error:
            yield Failed(problem_of(error))
        finally:
            memory.trim_heap()

    def download(self) -> Iterator[Event]:
        """Fetch the real weights; the studio uses them from the next song on. Closing the generator stops the fetch."""
        gone = threading.Event()
        try:
            yield from hub.download(self.models.weights.wanted, gone.is_set)
            self.models.refresh()
            yield Done((), {})
        except Exception as error:
            yield Failed(problem_of(error))
        finally:
            gone.set()

    def _run(self, request: Request) -> Iterator[Event]:
        if not cluster.wanted():
            yield from self.gather(request)
        output = output_folder() if isinstance(request, SongRequest) else None
        with job_for(request) as job:
            yield Progress("preparing")
            for name in job.audio:
                seconds = decode_upload(job, name, getattr(request, name))
                if name == "source":
                    check_source(request, seconds)
                yield Progress("preparing")
            seconds = self._gpu_seconds(request, job)
            if isinstance(request, SongRequest):
                job = yield from self._with_loras(job)
            lending = zerogpu.Lending(lambda seconds: _on_gpu(job, seconds), job.folder, seconds)
            if ON_ZEROGPU:
                yield Progress("lending")
            with contextlib.closing(lending.events()) as events:
                # Its last event ends the reading: what ZeroGPU does when it takes the card back may fail or never end.
                for event in events:
                    if isinstance(event, Outcome | Done | Failed):
                        break
                    yield event
                else:
                    raise StudioError("cancelled", "It was cancelled before it was done.")
            if ON_ZEROGPU and isinstance(event, Outcome):
                event.facts["gpu"] = lending.facts()
            elif ON_ZEROGPU and isinstance(event, Done):
                event.record["gpu"] = lending.facts()
            if isinstance(event, Outcome):
                yield from finish(request, job, event, output, self.models.weights)
            else:
                yield event

    def _with_loras(self, job: Job) -> Iterator[Event]:
        """Return the job with the files of its LoRAs, fetched where they come from the hub, and checked."""
        specs = []
        for choice in job.request.options.loras:
            spec = yield from lora_sources.prepare(
                choice.source,
                choice.weight,
                folder=Path(job.folder),
                widths=self.widths(),
                uploads=(Path(gradio_utils.get_upload_folder()),),
                cancelled=job.cancelled,
            )
            specs.append(spec)
        return replace(job, loras=tuple(specs))

    def gather(self, request: Request) -> Iterator[Event]:
        """Fetch the models that were named on purpose and are not here, and raise StudioError without a needed one."""
        if isinstance(request, SongRequest | DescribeRequest | AlignRequest):
            if self.models.weights.source == "hub":
                yield from hub.download(self.models.weights.wanted, lambda: False)
                self.models.refresh()
            if self.models.weights.folder is None:
                nothing = Problem("no_weights", "The model's weights are not here.")
                raise StudioError.of(self.models.weights.problem or nothing)
        if isinstance(request, CoverRequest) and not has_audio_codes(self.models.weights):
            raise StudioError("unsupported", NO_COVER, hint="Use a checkpoint that has both, such as XL SFT.")
        if isinstance(request, SongRequest):
            slot = self.models.planner if writers.wants_plan(request) and not self.models.planner.problem else None
        elif isinstance(request, AlignRequest):
            slot = None
        else:
            slot = self.models.lyrics if request.mode == "lyrics" else self.models.planner
        if slot and slot.weights.source == "hub":
            try:
                yield from slot.fetch()
                self.models.refresh()
            except StudioError:
                # A song is made without its plan, and its record says why.
                if not isinstance(request, SongRequest):
                    raise
        if slot and not isinstance(request, SongRequest):
            slot.check()

    def _gpu_seconds(self, request: Request, job: Job) -> int:
        """Return the seconds to ask ZeroGPU for; raises StudioError there where one call cannot last that long."""
        work = self.work_of(request, source_seconds(job))
        if ON_ZEROGPU and (problem := refusal(work)):
            raise StudioError.of(problem)
        return gpu_seconds(work)

    def work_of(self, request: Request, source: float = 0.0) -> Work:
        """Return what `request` asks of the GPU; `source` is the length of its source in seconds."""
        if isinstance(request, AlignRequest):
            # One forward pass; the estimate would count the tokens of a text.
            return Work("align", duration=source, steps=1, source=source)
        planned = self.models.planner.weights.folder is not None
        return work_of(request, kind=checkpoint_kind(self.models.weights), source=source, planner=planned)


_backend: Backend | None = None
_backend_lock = threading.Lock()


def get_backend() -> Backend:
    """Return the one backend, made at the first call; two first calls at once get the same."""
    global _backend
    with _backend_lock:
        if _backend is None:
            jobs.prune()
            _backend = Backend()
        return _backend


def check(request: Request) -> None:
    """Check what the fields of `request` do not tell: its files, and whether one call to ZeroGPU lasts long enough.

    Page and API ask before anything is queued; of the files only the headers are read. Raises InvalidRequest.
    """
    source = check_audio(request)
    if not bootstrap.on_zerogpu():
        return
    if problem := refusal(get_backend().work_of(request, source)):
        field = next((name for name in ("duration", "after", "takes") if hasattr(request, name)), "")
        raise InvalidRequest(Problem(problem.code, problem.message, field, problem.hint))


def problem_of(error: Exception) -> Problem:
    """Turn any exception into a value that tells a person what happened; the unexpected goes to the log in full."""
    if isinstance(error, StudioError):
        return error.problem
    if isinstance(error, audio.AudioError) or is_disk_full(error):
        return disk_problem(error)
    if is_out_of_memory(error):
        models.free_memory()
        return memory.too_large(None)
    if isinstance(error, OSError):
        log.exception("a file operation failed")
        return disk_problem(error)
    log.error("a job failed unexpectedly", exc_info=error)
    return Problem(
        "internal",
        f"It could not be made because of an unexpected error ({type(error).__name__}).",
        hint="Please try again; the log of the studio has the details.",
    )


if ON_ZEROGPU:
    # Weights moved to "cuda" in a handler's thread are not intercepted there; at import, on the main thread, they are.
    get_backend().load_all()
