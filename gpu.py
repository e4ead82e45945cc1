"""The GPU entry point: the only place from which a job reaches the models.

`run` takes a job to where the models are: this process, a card that ZeroGPU lends, or a Ray worker.
There `entry` works in a thread of its own: it waits for the models' turn, lets the memory plan make
room, and makes the song, the words or the timed lyrics. If memory runs out, the job is done once
more with the next lower plan. An event comes at every beat (beat.py), so it can be closed at any
time; closing it deletes the job's `running` file, which the models' code looks at before every
step, tile and token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, Protocol

import spaces

import audio_export
import beat
import bootstrap
import gpu_ray
import gpu_zero
import jobs
import lora_apply
import model_memory
import models
import modes
import record
import selfcheck
import song_align
import writers
from events import (
    NO_THREADS,
    Event,
    Failed,
    Outcome,
    Problem,
    Progress,
    StudioError,
    is_out_of_memory,
    is_out_of_threads,
)
from gpu_job import Job, SongJob
from params import AlignRequest

log = logging.getLogger("studio")

ON_ZEROGPU = bootstrap.on_zerogpu()

# A job's events: what `entry` yields, and None where the job can be stopped.
Work = Generator[Event | Outcome | None]


class Studio(Protocol):
    """Who holds the models of this process, and decides where they lie."""

    models: models.Models
    placing: model_memory.Placing


_studio: Callable[[], Studio]


def serve(studio: Callable[[], Studio]) -> None:
    """Let jobs run on the models of `studio()`. It is a function, because a job arrives in a forked process too."""
    global _studio
    _studio = studio


def run(
    job: Job, seconds: int, entry_on_worker: Callable[[Job], Any], look: Callable[[], Any]
) -> Generator[Any]:
    """Yield the events of `job`, which ends with an `Outcome` or `Failed`; raises StudioError.

    `seconds` are those of ZeroGPU's card. `entry_on_worker` and `look` run on a Ray worker: all of a
    job there, and the status of that worker.
    """
    if gpu_ray.wanted():
        return gpu_ray.run(entry_on_worker, look, job)
    if ON_ZEROGPU:
        return gpu_zero.lent(lambda asked: entry(job, asked), job.folder, seconds)
    return entry(job, 0)


@spaces.GPU(duration=lambda job, seconds: seconds)
def entry(job: Job, seconds: int) -> Generator[Event | Outcome]:
    """Run `job` on the models; unless it is cancelled, the last event is its `Outcome` or `Failed`."""
    life = gpu_zero.Beat(job.folder) if ON_ZEROGPU else None
    if life:
        # Before the work: a worker may die with its first event, and is missed by its heartbeat alone.
        life.write()
    events, thread = beat.in_thread(_when_free(job), "song", job.cancelled)
    latest: Event | Outcome = Progress("preparing")
    try:
        for event in events:
            if life:
                life.write()
            if isinstance(event, Progress):
                latest = event
            yield latest if event is beat.QUIET else event
    finally:
        job.running.unlink(missing_ok=True)
        # ZeroGPU takes the card back when this returns. Elsewhere the lock holds back the next
        # song, and this must not block: the event loop may be closing it.
        if ON_ZEROGPU:
            thread.join()


def _when_free(job: Job) -> Work:
    """Run `job` when the models' turn comes; what goes wrong becomes `Failed`, unless it was cancelled."""
    studio = _studio()
    yield from studio.models.taking_turn()
    problem = None
    try:
        yield from _with_fallback(studio, job)
    except Exception as error:
        if not job.cancelled():
            problem = _problem_of_job(error, studio.placing)
    finally:
        studio.models.turn.release()
    if problem:
        # not within `except`: until its end the exception keeps tensors on the device
        models.free_memory()
        yield Failed(problem)


def _with_fallback(studio: Studio, job: Job) -> Work:
    """Run `job` with the best memory plan that fits; if memory runs out, once more with the next lower plan."""
    placing = studio.placing
    source_seconds = jobs.source_seconds(job)
    loras = {spec.info.sha256: spec.info.numbers for spec in job.loras}
    _use_song_model(studio.models, job)
    device_seconds = yield from _choose_device(studio.models)
    plan = placing.begin(job.request, job.settings, source_seconds, loras=loras)
    is_trusted = yield from selfcheck.plan(studio.models, plan)
    if not is_trusted:
        # chooses another one now
        plan = placing.begin(job.request, job.settings, source_seconds, loras=loras)
    notes = (placing.note,) if placing.note else ()
    if notes:
        yield Progress("loading", note=placing.note)
    try:
        yield from _by_plan(studio, job, plan, device_seconds, *notes)
        return
    except Exception as error:
        lower = placing.lower() if is_out_of_memory(error) else None
        if lower is None:
            raise
    models.free_memory()  # not within `except`, see above
    note = model_memory.fallback_note(plan, lower)
    yield Progress("loading", note=note)
    plan = placing.begin(job.request, job.settings, source_seconds, lower, loras)
    yield from _by_plan(studio, job, plan, device_seconds, note)


def _use_song_model(loaded: models.Models, job: Job) -> None:
    """Make the song model that `job` asks for the current one."""
    weights = jobs.song_model(job, loaded)
    former = None if weights is None else loaded.use(weights)
    if former is not None:
        lora_apply.reconcile(former, ())  # LoRAs act on the transformer that was asked for


def _choose_device(loaded: models.Models) -> Generator[Progress, None, float]:
    """Have the device chosen; return the seconds that this took: many the first time, when torch is imported."""
    seconds: dict[str, float] = {}
    if loaded.known_device is None:
        yield Progress("loading")
        with record.timed(seconds, "loading"):
            loaded.device()
    return seconds.get("loading", 0.0)


def _by_plan(studio: Studio, job: Job, plan: str, device_seconds: float, *notes: str) -> Work:
    """Yield the events of `job`; its outcome gets the facts of this process, the memory `plan` and
    the `notes`.

    `device_seconds` were spent on choosing the device, which belongs to loading.
    """
    for event in _work(studio.models, studio.placing, job):
        if isinstance(event, Outcome):
            event = event.with_facts(
                device=studio.models.device().kind,
                versions=record.library_versions(),
                memory_plan=plan,
            )
            if device_seconds:
                event = _with_loading(event, device_seconds)
            event = replace(event, notes=(*notes, *event.notes))
        yield event


def _with_loading(outcome: Outcome, more: float) -> Outcome:
    """Return `outcome` with so many `more` seconds of loading."""
    seconds = outcome.ran.seconds
    loading = round(seconds.get("loading", 0.0) + more, 3)
    return outcome.with_facts(seconds={**seconds, "loading": loading})


def _work(loaded: models.Models, placing: model_memory.Placing, job: Job) -> Work:
    """Do a job of its kind."""
    if isinstance(job, SongJob):
        return modes.make(loaded, placing, job)
    if isinstance(job.request, AlignRequest):
        return song_align.run(loaded, placing, job)
    return writers.run(loaded, placing, job)


def _problem_of_job(error: Exception, placing: model_memory.Placing) -> Problem:
    """Return the problem of the job that `placing` made room for; the song decides what to advise."""
    if is_out_of_memory(error) and not isinstance(error, StudioError):
        return model_memory.too_large(placing.song)
    return problem_of(error)


def problem_of(error: Exception) -> Problem:
    """Return a problem that explains `error` to a person; unexpected errors are logged with their traceback."""
    if isinstance(error, StudioError):
        return error.problem
    if is_out_of_memory(error):
        models.free_memory()
        return model_memory.too_large(None)
    if is_out_of_threads(error):
        return NO_THREADS
    problem = audio_export.disk_problem(error)
    if problem:
        return problem
    log.error("a job failed unexpectedly", exc_info=error)
    message = f"An unexpected error occurred ({type(error).__name__})."
    return Problem("internal", message, hint="Please try again; the studio's log has the details.")
