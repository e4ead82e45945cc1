"""The language models beside the song pipeline: plans of songs, lyrics, and a song's words from an idea or a recording.

A `Slot` knows one of them, the planner or the lyrics writer, from the folder on disk to the loaded model. The rest runs
inside the GPU entry point, as generators of progress; a None among it is a token that is not worth telling, between
which a job can be stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import audio
import codec
import conditions
import hub
import lyrics
import models
import plan_weights
import planner
from events import Done, Draft, Problem, Progress, StudioError, is_out_of_memory
from finish import versions
from jobs import Job
from limits import STUDIO_VERSION
from params import GenerateRequest, LyricsRequest, Request
from planner import Brief, Plan, PlanSettings, PlanStep, Sketch

if TYPE_CHECKING:
    from backend import Backend

TELL_SECONDS = 0.1
"""Between two progress events of a planner, which writes faster than anybody reads."""

# --- one language model -------------------------------------------------------------------------------------------


class Slot:
    """The planner or the lyrics writer: its `weights`, the model once it is loaded, or the `problem` of loading it."""

    def __init__(
        self,
        name: str,
        find: Callable[[], Any],
        build: Callable[[Any], Any],
        fetch: Callable[[Any], Iterator[Progress]],
    ):
        self.name, self._find, self._build, self._fetch = name, find, build, fetch
        self._building = threading.Lock()
        self._model: Any = None
        self.weights = find()
        self.problem: Problem | None = None

    @property
    def loaded(self) -> bool:
        """Tell whether the model is in memory."""
        return self._model is not None

    def get(self) -> Any:
        """Return the model, loaded at the first call; raises StudioError where it is not here or cannot be loaded.

        What failed is not tried again before `refresh`, except for a lack of memory, which may be gone by now.
        """
        # A ZeroGPU worker may have been forked while another thread held the lock, so what is there needs none.
        if (model := self._model) is not None:
            return model
        with self._building:
            if self._model is None:
                problem = self._missing() or self.problem
                if problem and problem.code != "out_of_memory":
                    raise StudioError.of(problem)
                self._model, self.problem = self._load()
                if self.problem:
                    # Out here the exception is gone, and with it what it held of the model.
                    models.free_memory()
                    raise StudioError.of(self.problem)
            return self._model

    def fetch(self) -> Iterator[Progress]:
        """Fetch what was named on purpose and is not here yet; the caller looks again afterwards."""
        if self.weights.source != "hub":
            return
        try:
            yield from self._fetch(self.weights)
        except StudioError as error:
            self.problem = error.problem
            raise

    def check(self) -> None:
        """Raise StudioError where the weights are not on this machine."""
        if problem := self._missing():
            raise StudioError.of(problem)

    def refresh(self, turn: threading.Lock) -> None:
        """Look for the weights again and forget what failed; others let go of the model, once `turn` is free."""
        found = self._find()
        if found == self.weights:
            self.problem = None
            return
        with turn:
            self.let_go()
            self.weights, self.problem = found, None

    def let_go(self) -> None:
        """Give the model's memory back; the next use loads it again."""
        with self._building:
            if isinstance(self._model, lyrics.Writer):
                self._model.close()
            self._model = None
        models.free_memory()

    def status(self) -> dict[str, Any]:
        """Return whether it is "off", not here ("none"), "ready" to be loaded, "loaded" or "failed", and why."""
        weights, state = self.weights, "ready"
        to_fetch = weights.source == "hub" and not self.problem
        if weights.source == "off":
            state = "off"
        elif self.loaded:
            state = "loaded"
        elif self.problem:
            state = "failed"
        elif weights.folder is None and not to_fetch:
            state = "none"
        return {
            "state": state,
            "model": "" if state == "off" else weights.model_id,
            "source": weights.source,
            "problem": None if to_fetch else as_dict(self.problem or weights.problem),
        }

    def _missing(self) -> Problem | None:
        if self.weights.folder is not None:
            return None
        return (
            self.problem or self.weights.problem or Problem("weights_missing", f"{self.name} is not on this machine.")
        )

    def _load(self) -> tuple[Any, Problem | None]:
        try:
            return self._build(self.weights), None
        except StudioError as error:
            return None, error.problem
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = f"{self.name} {self.weights.model_id} does not fit into the memory that is free."
            return None, Problem("out_of_memory", message, hint="Close other programs, or name a smaller model.")


def planner_slot(device: Callable[[], models.Device]) -> Slot:
    """Return the slot of the planner (ACE_STUDIO_PLANNER), which is loaded onto `device`."""
    return Slot(
        "The planner",
        lambda: planner.find_planner(),
        lambda weights: planner.load_planner(weights, device()),
        lambda weights: hub.download(
            weights.repo, lambda: False, hub.language_model(plan_weights.VARIABLE, weights.inside)
        ),
    )


def lyrics_slot(device: Callable[[], models.Device]) -> Slot:
    """Return the slot of the lyrics writer (ACE_STUDIO_LYRICS), which is loaded onto `device`."""
    return Slot(
        "The lyrics writer",
        lambda: lyrics.find_writer(),
        lambda weights: lyrics.build_writer(weights, device().kind),
        lambda weights: hub.download(weights.wanted, lambda: False, hub.language_model(lyrics.VARIABLE)),
    )


# --- planning a song ----------------------------------------------------------------------------------------------


def wants_plan(request: Request) -> bool:
    """Tell whether `request` is a song that is to be planned first."""
    return isinstance(request, GenerateRequest) and request.options.plan


def plan_song(
    studio: Backend, job: Job, pipe: Any, seconds: dict[str, float]
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
        missing = studio.planner.weights.problem if studio.planner.weights.folder is None else None
        return None, _unplanned(missing.message if missing else "Plan the song first was off.")
    if not conditions.has_audio_codes(pipe):
        return None, _unplanned("This checkpoint cannot read a plan: its audio tokenizer and detokenizer are missing.")
    settings = PlanSettings(options.plan_temperature, cfg=options.plan_cfg, rewrite=options.rewrite)
    seed = options.plan_seed if options.plan_seed >= 0 else job.seeds[0]
    try:
        model = yield from _loaded(studio.planner, seconds)
        started = time.monotonic()
        yield Progress("planning")
        plan = yield from _told(planner.plan(model, _brief(request), job.seeds, settings, seed))
    except StudioError as error:
        if error.problem.code == "out_of_memory" and studio.placing.may_fall():
            raise
        return None, _unplanned(error.problem.message)
    seconds["planning"] = round(time.monotonic() - started, 3)
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


def run(studio: Backend, job: Job) -> Iterator[Progress | Draft | Done | None]:
    """Write what `job` asks for: lyrics, or a song in words (the record's "sketch"); ends with `Done`."""
    yield from (_lyrics if isinstance(job.request, LyricsRequest) else _sketch)(studio, job)


def _lyrics(studio: Backend, job: Job) -> Iterator[Progress | Draft | Done]:
    request, seconds = job.request, {}
    studio.placing.for_words(studio.lyrics)
    writer = yield from _loaded(studio.lyrics, seconds)
    started, draft = time.monotonic(), None
    yield Progress("writing", 0, request.options.max_tokens)
    try:
        with closing(writer.write(request, job.seeds[0])) as drafts:
            for draft in drafts:
                yield draft
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        model = writer.weights.model_id
    else:
        seconds["writing"] = round(time.monotonic() - started, 3)
        facts = {"text": draft.text, "end": draft.end, "tokens": draft.tokens}
        yield Done((), record_of(studio, job, studio.lyrics.weights, seconds, facts))
        return
    models.free_memory()
    raise StudioError(
        "out_of_memory",
        f"The lyrics writer {model} ran out of memory.",
        hint=f"Lower Max length, or name a smaller model in {lyrics.VARIABLE}.",
    )


def _sketch(studio: Backend, job: Job) -> Iterator[Progress | Done | None]:
    request, seconds, codes = job.request, {}, ""
    if request.mode == "describe":
        studio.placing.for_song()
        codes = yield from _codes_of(studio, job, seconds)
    studio.placing.for_words(studio.planner)
    model = yield from _loaded(studio.planner, seconds)
    started = time.monotonic()
    yield Progress("writing")
    sketch = yield from _told(_written(model, request, job.seeds[0], codes))
    seconds["writing"] = round(time.monotonic() - started, 3)
    words = {
        "prompt": sketch.caption,
        "lyrics": sketch.lyrics,
        "bpm": sketch.bpm,
        "key": sketch.key,
        "time_signature": sketch.time_signature,
        "language": sketch.language,
        "duration": sketch.seconds,
    }
    yield Done((), record_of(studio, job, studio.planner.weights, seconds, {"sketch": words}))


def _written(model: planner.Planner, request: Any, seed: int, codes: str) -> Iterator[PlanStep | Sketch]:
    if request.mode == "inspire":
        return planner.inspire(model, request.idea, seed, instrumental=request.instrumental, language=request.language)
    if request.mode == "polish":
        return planner.polish(model, _brief(request), seed)
    return planner.describe(model, codes, seed)


def _codes_of(studio: Backend, job: Job, seconds: dict[str, float]) -> Generator[Progress, None, str]:
    """Return the source's audio codes as text; it is read by the song model's VAE and audio tokenizer."""
    if not studio.loaded:
        yield Progress("loading")
    started = time.monotonic()
    pipe = studio.pipeline()
    seconds["loading"] = round(time.monotonic() - started, 3)
    if not conditions.has_audio_codes(pipe):
        raise StudioError("unsupported", "This checkpoint cannot describe audio: its audio tokenizer is missing.")
    yield Progress("reading")
    started, tiles = time.monotonic(), []
    for number, total, tile in codec.encode_samples(pipe, audio.read_wav(job.audio["source"])):
        tiles.append(tile)
        yield Progress("reading", number, total)
    codes = planner.codes_text(conditions.audio_codes(pipe, codec.join(tiles)))
    seconds["reading"] = round(time.monotonic() - started, 3)
    return codes


# --- small parts --------------------------------------------------------------------------------------------------


def as_dict(problem: Problem | None) -> dict[str, str] | None:
    """Return `problem` as a status shows it."""
    return None if problem is None else {"code": problem.code, "message": problem.message, "hint": problem.hint}


def _loaded(slot: Slot, seconds: dict[str, float]) -> Generator[Progress, None, Any]:
    if not slot.loaded:
        yield Progress("loading")
    started = time.monotonic()
    model = slot.get()
    seconds["loading"] = round(seconds.get("loading", 0.0) + time.monotonic() - started, 3)
    return model


def _told(events: Iterator[PlanStep | Plan | Sketch]) -> Generator[Progress | None, None, Any]:
    """Yield a planner's steps as progress, some of them as None, and return its result."""
    told = 0.0
    with closing(events):
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


def record_of(
    studio: Backend, job: Job, weights: Any, seconds: dict[str, float], facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the record of a job that is no song: what was asked, what ran, and `facts`, which came of it."""
    return {
        "studio": STUDIO_VERSION,
        "mode": job.request.mode,
        "request": job.request.model_dump(mode="json", exclude={"mode", "source"}),
        "seed": job.seeds[0],
        "model": {
            "id": weights.model_id,
            "revision": weights.revision,
            "engine": getattr(weights, "engine", "transformers"),
        },
        "device": studio.device().kind,
        "versions": versions(),
        "seconds": seconds,
        **facts,
    }
