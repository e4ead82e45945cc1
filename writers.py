"""The language models inside the GPU entry point: plans of songs, lyrics, and a song in words from an idea.

These are generators that yield progress. None marks a point where the run can be cancelled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import audio
import lyrics
import lyrics_lines
import model_hub
import planner
import selfcheck
import song_codec
import song_conditions
from events import Draft, Outcome, Progress, StudioError, is_out_of_memory
from gpu_job import Job
from limits import LIMITS
from model_memory import Placing
from model_weights import (
    LYRICS_VARIABLE,
    PLANNER_MISSING,
    PLANNER_OFF,
    PLANNER_VARIABLE,
    Weights,
    find_planner,
    find_songwriter,
)
from models import Device, Models, Slot, free_memory
from params import (
    OF_SONGWRITER,
    GenerateRequest,
    InspireRequest,
    LyricsRequest,
    PolishRequest,
    Request,
    RewriteRequest,
)
from planner import Plan
from record import PlanEntry, Ran, WordsResult, timed

# Between two progress events of a planner, which writes faster than anybody reads.
REPORT_SECONDS = 0.1


def planner_slot(device: Callable[[], Device]) -> Slot:
    return Slot(
        "The planner",
        find_planner,
        lambda weights: planner.load_planner(weights, device()),
        lambda weights: model_hub.download(
            weights.repo, model_hub.language_model(PLANNER_VARIABLE, weights.inside)
        ),
        f"Songs can be made without it; {PLANNER_VARIABLE}=ACE-Step/acestep-5Hz-lm-0.6B is smaller.",
    )


def lyrics_slot(device: Callable[[], Device]) -> Slot:
    return Slot(
        "The songwriter",
        find_songwriter,
        lambda weights: load_songwriter(weights, device()),
        lambda weights: model_hub.download(
            weights.wanted, model_hub.language_model(LYRICS_VARIABLE)
        ),
        f"Close other programs, or name a smaller model in {LYRICS_VARIABLE}.",
    )


def load_songwriter(weights: Weights, device: Device) -> lyrics.Songwriter:
    """Load the songwriter in `weights`; raises StudioError, and errors of too little memory pass through."""
    if weights.engine == "small":
        return lyrics_lines.load_songwriter(weights)
    return lyrics.load_songwriter(weights, device.kind)


def loaded_model(
    loaded: bool, get: Callable[[], Any], seconds: dict[str, float]
) -> Generator[Progress, None, Any]:
    """Return the model from `get`, which loads it unless it is `loaded`; add the time to `seconds`."""
    if not loaded:
        yield Progress("loading")
    with timed(seconds, "loading"):
        return get()


def wants_plan(request: Request) -> bool:
    return isinstance(request, GenerateRequest) and request.options.plan


def plan_song(
    models: Models, placing: Placing, job: Job, seconds: dict[str, float]
) -> Generator[Progress | None, None, tuple[Plan | None, PlanEntry | None]]:
    """Plan the song of `job`; return the plan and its entry in the record, and add the time to `seconds`.

    Without a planner, or if it fails, there is no plan and the entry says why; modes other than
    generate have neither.
    """
    request = job.request
    if not isinstance(request, GenerateRequest):
        return None, None
    if not request.options.plan:
        reason = "Plan the song first was off."
        # Without a planner it was the page that switched the control off, not the visitor.
        weights = models.planner.weights
        if weights.folder is None and weights.problem:
            return None, _unplanned(models, request, weights.problem.message)
        return None, PlanEntry(used=False, reason=reason)
    if not models.has_audio_codes(models.current):
        reason = (
            "This checkpoint cannot read a plan: its audio tokenizer and detokenizer are missing."
        )
        return None, _could_not_plan(models, request, reason)
    if models.planner.weights.comes_along and not models.current.is_built_in_engine:
        reason = "The built-in planner plans for the built-in engine alone."
        return None, _could_not_plan(models, request, reason)
    try:
        models.planner.check()
        placing.for_planning()
        model = yield from loaded_model(models.planner.loaded, models.planner.get, seconds)
        with timed(seconds, "loading"):
            yield from selfcheck.planner(models, model)
        with timed(seconds, "planning"):
            yield Progress("planning")
            if job.automatic:
                longest = job.automatic.longest
            else:
                longest = LIMITS["duration"].high
            plan = yield from _result_of(planner.plan(model, request, job.seeds, longest))
    except StudioError as error:
        if error.problem.code == "out_of_memory" and placing.lower():
            raise
        return None, _could_not_plan(models, request, error.problem.message)
    return plan, plan.entry(model.model_id, request.options)


def _unplanned(models: Models, request: GenerateRequest, reason: str) -> PlanEntry:
    """Return the entry of a song without a planner. The built-in engine is made to play without one."""
    options = request.options
    was_asked = options.plan and "plan" in options.model_fields_set
    problem = models.planner.weights.problem
    expects_none = problem is None or problem.code == PLANNER_OFF
    if problem is not None and problem.code == PLANNER_MISSING:
        expects_none = models.current.is_built_in_engine
    if was_asked or not expects_none:
        return PlanEntry(used=False, reason=reason, missed=True)
    return PlanEntry(used=False, reason=reason)


def _could_not_plan(models: Models, request: GenerateRequest, reason: str) -> PlanEntry:
    """Return the entry of a song that should have been planned; without a planner nothing has failed."""
    if models.planner.weights.folder is None:
        return _unplanned(models, request, reason)
    return PlanEntry(used=False, reason=reason, failed=True)


def run(models: Models, placing: Placing, job: Job) -> Generator[Progress | Draft | Outcome | None]:
    """Write lyrics, or a song in words (the record's "sketch"); yields the `Outcome` last."""
    request = job.request
    seed = job.seeds[0]
    seconds: dict[str, float] = {}
    if request.mode == "describe":
        placing.for_song()
        codes = yield from _codes_of(models, job, seconds)
    slot = models.lyrics if request.mode in OF_SONGWRITER else models.planner
    placing.for_words(slot)
    model = yield from loaded_model(slot.loaded, slot.get, seconds)
    with timed(seconds, "writing"):
        if isinstance(request, LyricsRequest | RewriteRequest):
            steps = request.most_tokens
            yield Progress("writing", 0, steps)
            name = f"The songwriter {model.weights.model_id}"
            with (
                _enough_memory(name, _smaller(request)),
                closing(_drafts(model, request, seed)) as drafts,
            ):
                for draft in drafts:
                    yield draft
            note = model.model.note
            if note:
                yield Progress("writing", draft.tokens, steps, note=note)
            result = WordsResult(text=draft.text, end=draft.end, tokens=draft.tokens)
        else:
            yield Progress("writing")
            if isinstance(request, InspireRequest):
                events = planner.inspire(model, request, seed)
            elif isinstance(request, PolishRequest):
                events = planner.polish(model, request, seed)
            else:
                events = planner.describe(model, codes, seed)
            sketch = yield from _result_of(events)
            result = WordsResult(sketch=sketch)
    yield Outcome(Ran(seconds=seconds, model=slot.weights.entry()), result=result)


def _drafts(
    model: lyrics.Songwriter, request: LyricsRequest | RewriteRequest, seed: int
) -> Generator[Draft]:
    if isinstance(request, RewriteRequest):
        return model.rewrite(request, seed)
    return model.write(request, seed)


def _smaller(request: LyricsRequest | RewriteRequest) -> str:
    """Return what needs less memory."""
    less = "Lower Max length" if isinstance(request, LyricsRequest) else "Select fewer lines"
    return f"{less}, or name a smaller model in {LYRICS_VARIABLE}."


def _codes_of(
    models: Models, job: Job, seconds: dict[str, float]
) -> Generator[Progress, None, list[int]]:
    """Return the audio codes of the job's source, 5 a second."""
    pipe = yield from loaded_model(models.loaded, models.pipeline, seconds)
    if not song_conditions.has_audio_codes(pipe):
        raise StudioError(
            "unsupported", "This checkpoint cannot describe audio: its audio tokenizer is missing."
        )
    yield Progress("reading")
    with timed(seconds, "reading"):
        clean = yield from song_codec.encode(pipe, audio.read_wav(job.audio["source"]), "reading")
        return song_conditions.audio_codes(pipe, clean)


@contextmanager
def _enough_memory(name: str, hint: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        free_memory()
        raise StudioError("out_of_memory", f"{name} ran out of memory.", hint=hint) from None


def _result_of(events: Generator[Any]) -> Generator[Progress | None, None, Any]:
    """Yield a planner's progress, most of it as None, and return its result."""
    reported_at = 0.0
    hint = "Make a shorter song or fewer takes, or switch planning off."
    with _enough_memory("The planner", hint), closing(events):
        for event in events:
            if not isinstance(event, Progress):
                continue
            now = time.monotonic()
            if now - reported_at >= REPORT_SECONDS or event.step == event.steps:
                reported_at = now
                yield event
            else:
                yield None
    return event
