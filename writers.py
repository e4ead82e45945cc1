"""The language models beside the song pipeline: plans of songs, lyrics, and a song's words from an idea or a recording.

Runs inside the GPU entry point, as generators of progress; None marks an unreported token: a point to cancel at.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from typing import Any

import audio
import codec
import conditions
import hub
import lyrics
import planner
from events import Done, Draft, Job, Progress, StudioError, is_out_of_memory
from jobs import record_of, timed
from limits import KEYS
from memory import Placing
from models import Device, Models, Slot, free_memory
from params import GenerateRequest, LyricsRequest, Request
from planner import Brief, Plan, PlanSettings, PlanStep, Sketch
from weights import LYRICS_VARIABLE, PLANNER_VARIABLE, find_planner, find_writer

TELL_SECONDS = 0.1
"""Between two progress events of a planner, which writes faster than anybody reads."""

# --- the slots -----------------------------------------------------------------------------------------------------


def planner_slot(device: Callable[[], Device]) -> Slot:
    """Return the slot of the planner (ACE_STUDIO_PLANNER), which is loaded onto `device`."""
    return Slot(
        "The planner",
        find_planner,
        lambda weights: planner.load_planner(weights, device()),
        lambda weights: hub.download(weights.repo, lambda: False, hub.language_model(PLANNER_VARIABLE, weights.inside)),
        f"Songs can be made without it; {PLANNER_VARIABLE}=ACE-Step/acestep-5Hz-lm-0.6B is smaller.",
    )


def lyrics_slot(device: Callable[[], Device]) -> Slot:
    """Return the slot of the lyrics writer (ACE_STUDIO_LYRICS), which is loaded onto `device`."""
    return Slot(
        "The lyrics writer",
        find_writer,
        lambda weights: lyrics.build_writer(weights, device().kind),
        lambda weights: hub.download(weights.wanted, lambda: False, hub.language_model(LYRICS_VARIABLE)),
        f"Close other programs, or name a smaller model in {LYRICS_VARIABLE}.",
    )


# --- planning a song ----------------------------------------------------------------------------------------------


def wants_plan(request: Request) -> bool:
    """Tell whether `request` is a song that is to be planned first."""
    return isinstance(request, GenerateRequest) and request.options.plan


def plan_song(
    models: Models, placing: Placing, job: Job, pipe: Any, seconds: dict[str, float]
) -> Generator[Progress | None, None, tuple[Plan | None, dict[str, Any] | None]]:
    """Plan the song of `job`; returns the plan and what the record says about it, and adds to `seconds`.

    Where there is no planner, or it fails, the song is made without a plan, and the record says why. Other modes have
    no plan.
    """
    request, options = job.request, job.request.options
    if not isinstance(request, GenerateRequest):
        return None, None
    if not options.plan:
        # Where there is no planner the page has switched the control off, not the visitor.
        missing = models.planner.weights.problem if models.planner.weights.folder is None else None
        return None, _unplanned(missing.message if missing else "Plan the song first was off.")
    if not conditions.has_audio_codes(pipe):
        return None, _unplanned("This checkpoint cannot read a plan: its audio tokenizer and detokenizer are missing.")
    settings = PlanSettings(options.plan_temperature, cfg=options.plan_cfg, rewrite=options.rewrite)
    seed = options.plan_seed if options.plan_seed >= 0 else job.seeds[0]
    try:
        model = yield from _loaded(models.planner, seconds)
        with timed(seconds, "planning"):
            yield Progress("planning")
            plan = yield from _told(planner.plan(model, _brief(request), job.seeds, settings, seed))
    except StudioError as error:
        if error.problem.code == "out_of_memory" and placing.may_fall():
            raise
        return None, _unplanned(error.problem.message)
    return plan, {
        "used": True,
        **plan.facts(),
        "model": model.model_id,
        "temperature": settings.temperature,
        "cfg": settings.cfg,
    }


def _unplanned(reason: str) -> dict[str, Any]:
    return {"used": False, "reason": reason}


# --- words --------------------------------------------------------------------------------------------------------


def run(models: Models, placing: Placing, job: Job) -> Iterator[Progress | Draft | Done | None]:
    """Write what `job` asks for: lyrics, or a song in words (the record's "sketch"); ends with `Done`."""
    yield from (_lyrics if isinstance(job.request, LyricsRequest) else _sketch)(models, placing, job)


def _lyrics(models: Models, placing: Placing, job: Job) -> Iterator[Progress | Draft | Done]:
    request, seconds = job.request, {}
    placing.for_words(models.lyrics)
    writer = yield from _loaded(models.lyrics, seconds)
    name = f"The lyrics writer {writer.weights.model_id}"
    hint = f"Lower Max length, or name a smaller model in {LYRICS_VARIABLE}."
    with timed(seconds, "writing"):
        yield Progress("writing", 0, request.options.max_tokens)
        with _enough_memory(name, hint), closing(writer.write(request, job.seeds[0])) as drafts:
            for draft in drafts:
                yield draft
    facts = {"text": draft.text, "end": draft.end, "tokens": draft.tokens}
    yield Done((), record_of(models, job, models.lyrics.weights, seconds, facts))


def _sketch(models: Models, placing: Placing, job: Job) -> Iterator[Progress | Done | None]:
    request, seconds, codes = job.request, {}, []
    if request.mode == "describe":
        placing.for_song()
        codes = yield from _codes_of(models, job, seconds)
    placing.for_words(models.planner)
    model = yield from _loaded(models.planner, seconds)
    with timed(seconds, "writing"):
        yield Progress("writing")
        sketch = yield from _told(_written(model, request, job.seeds[0], codes))
    yield Done((), record_of(models, job, models.planner.weights, seconds, {"sketch": asdict(sketch)}))


def _written(model: planner.Planner, request: Any, seed: int, codes: list[int]) -> Iterator[PlanStep | Sketch]:
    if request.mode == "inspire":
        return planner.inspire(model, request.idea, seed, instrumental=request.instrumental, language=request.language)
    if request.mode == "polish":
        return planner.polish(model, _brief(request), seed)
    return planner.describe(model, codes, seed)


def _codes_of(models: Models, job: Job, seconds: dict[str, float]) -> Generator[Progress, None, list[int]]:
    """Return the source's audio codes; it is read by the song model's VAE and audio tokenizer."""
    if not models.loaded:
        yield Progress("loading")
    with timed(seconds, "loading"):
        pipe = models.pipeline()
    if not conditions.has_audio_codes(pipe):
        raise StudioError("unsupported", "This checkpoint cannot describe audio: its audio tokenizer is missing.")
    yield Progress("reading")
    with timed(seconds, "reading"):
        tiles = []
        for number, total, tile in codec.encode_samples(pipe, audio.read_wav(job.audio["source"])):
            tiles.append(tile)
            yield Progress("reading", number, total)
        return conditions.audio_codes(pipe, codec.join(tiles))


# --- small parts --------------------------------------------------------------------------------------------------


def _loaded(slot: Slot, seconds: dict[str, float]) -> Generator[Progress, None, Any]:
    if not slot.loaded:
        yield Progress("loading")
    with timed(seconds, "loading"):
        return slot.get()


@contextmanager
def _enough_memory(name: str, hint: str) -> Iterator[None]:
    """Turn a lack of memory into a sentence about the model `name`; what runs beside it survives."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        free_memory()
        raise StudioError("out_of_memory", f"{name} ran out of memory.", hint=hint) from None


def _told(events: Iterator[PlanStep | Plan | Sketch]) -> Generator[Progress | None, None, Any]:
    """Yield a planner's steps as progress, some of them as None, and return its result."""
    told = 0.0
    hint = "Make a shorter song or fewer takes, or switch planning off."
    with _enough_memory("The planner", hint), closing(events):
        for event in events:
            if not isinstance(event, PlanStep):
                return event
            now = time.monotonic()
            if now - told < TELL_SECONDS and event.step != event.steps:
                yield None
                continue
            told = now
            yield Progress("writing" if event.stage == "text" else "planning", event.step, event.steps)
    raise AssertionError("the planner ended without a result")


def _brief(request: Any) -> Brief:
    return Brief(
        prompt=request.prompt,
        lyrics=request.sung_lyrics(),
        seconds=request.duration,
        bpm=request.bpm,
        key=request.key,
        time_signature=request.time_signature,
        language=request.language,
    )


# What the built-in engine has learnt under these words: BPM, lowest and highest. The first that is there counts.
_TEMPOS = {
    **{"slow": (60, 84), "fast": (136, 172), "quick": (136, 172)},
    **{"lofi": (68, 96), "lo-fi": (68, 96), "ambient": (60, 92), "techno": (124, 146), "house": (116, 130)},
    **{"chiptune": (116, 172), "8-bit": (116, 172), "waltz": (84, 160), "funk": (88, 120), "rock": (96, 156)},
}
_ANY_TEMPO = (76, 132)
_SCALES = {
    **dict.fromkeys(("minor", "sad", "dark", "moody", "melanchol"), "minor"),
    **dict.fromkeys(("major", "happy", "bright", "cheerful", "sunny"), "major"),
}


def in_time(job: Job) -> tuple[Job, tuple[str, ...]]:
    """Return `job` with a tempo and a key, and a note where they were chosen: the built-in engine finds none itself.

    The words of the prompt narrow both down, and the seed chooses.
    """
    request = job.request
    if request.mode != "generate" or (request.bpm and request.key):
        return job, ()
    chance = random.Random(job.seeds[0])
    words = request.prompt.lower()
    bpm = chance.randint(*next((span for word, span in _TEMPOS.items() if word in words), _ANY_TEMPO))
    scale = next((scale for word, scale in _SCALES.items() if word in words), "")
    told = {"bpm": request.bpm or bpm, "key": request.key or chance.choice([key for key in KEYS if scale in key])}
    note = f"The built-in engine needs a tempo and a key: it was given {told['bpm']} BPM and {told['key']}."
    return replace(job, request=request.model_copy(update=told)), (note,)
