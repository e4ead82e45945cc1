"""The modes: each turns a request into a run of the denoising loop, and a `Finish` for the decoded samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np

import audio
import audio_export
import audio_levels
import lora_apply
import models
import planner
import prompt_facts
import selfcheck
import song_align
import song_clock
import song_codec
import song_compilation
import song_conditions
import song_half
import song_loop
import song_score
import song_words
import tooltips
import writers
from audio_export import disk_problem
from audio_levels import match_level, splice
from events import (
    NO_SONG_DRAFT,
    DraftOffer,
    Outcome,
    Problem,
    Progress,
    SongDraft,
    StudioError,
    Take,
    is_out_of_memory,
)
from gpu_job import SongJob
from limits import (
    INSTRUMENTAL,
    LANGUAGES,
    MAX_LYRIC_TOKENS,
    MAX_TEXT_TOKENS,
    SAMPLE_RATE,
    TIME_SIGNATURES,
    samples_in,
    shown,
)
from lyrics_letters import written_language
from model_memory import Placing
from model_weights import NO_MORPH
from models import Models
from params import CoverRequest, EditRequest, ExtendRequest, GenerateRequest, SongRequest
from planner import Plan, Planner
from record import (
    DetailEntry,
    Instructions,
    LengthEntry,
    PlanEntry,
    Ran,
    SamplingEntry,
    WordsResult,
    timed,
)
from song_conditions import COMPLETE, COVER, EXTRACT, LAYER, REPAINT, TEXT2MUSIC
from song_length import Automatic

log = logging.getLogger("studio")

# The conservative repaint; an aggressive one has none of these.
INJECTION_SHARE = 1.0  # of the steps
BLEND_FRAMES = 25  # of the latents
CROSSFADE_SECONDS = 0.05
# Even an aggressive repaint leaves the source outside unchanged; upstream's splices nothing.
LEAST_CROSSFADE_SECONDS = 0.01
# How long the last sound of a plan is heard before it fades, and how long it fades at least.
SOUNDING_SECONDS = 0.2
LEAST_FADE_SECONDS = 0.4
SILENT_LATENTS_STD = 1e-3
# Music stays well under this; white noise has 0.56 on average, wind noise over 0.3.
NOISE_FLATNESS = 0.3

# Maps decoded samples [2, n] and the take's number to the take's samples; raises StudioError.
Finish = Callable[[np.ndarray, int], np.ndarray]
Asked = TypeVar("Asked", bound=SongRequest)


def make(
    loaded: Models, placing: Placing, job: SongJob
) -> Generator[Progress | DraftOffer | SongDraft | Outcome | None]:
    """Plan the song of `job` if requested, apply its LoRAs, and run its mode; yields the `Outcome` last."""
    seconds: dict[str, float] = {}
    request, from_prompt = prompt_facts.completed(job.request)
    job = replace(job, request=request)
    if placing.keeps_all:  # before planning, so that broken weights are reported at once
        yield from writers.loaded_model(loaded.loaded, loaded.pipeline, seconds)
    plan, plan_entry = yield from writers.plan_song(loaded, placing, job, seconds)
    length = None
    if job.automatic is not None:
        length = _settled_length(job.automatic, plan)
        job = replace(job, request=job.request.model_copy(update={"duration": length["seconds"]}))
        clock = tooltips.clock(length["seconds"])
        yield Progress("preparing", note=tooltips.LENGTH_SETTLED.format(length=clock))
    with timed(seconds, "loading"):
        placing.for_song()
    pipe = yield from writers.loaded_model(loaded.loaded, loaded.pipeline, seconds)
    with timed(seconds, "loading"):
        yield from selfcheck.song_model(loaded, pipe)
    job, plan, chosen, changes = _in_known_words(loaded, job, plan)
    job, plan, from_script, named = _in_written_language(job, plan)
    notes = (*_prompt_notes(from_prompt), *changes, *named)
    sources = {
        **dict.fromkeys(from_prompt, "prompt"),
        **dict.fromkeys(chosen, "engine"),
        **dict.fromkeys(from_script, "lyrics"),
    }
    if not placing.keeps_all:  # the VAE would have to change places with the transformer
        job = replace(job, offers_draft=False)
    acting = lora_apply.reconcile(pipe, job.loras)
    was_half = getattr(pipe.transformer, "half_precision", False)
    for event in run(pipe, job, plan, _listener(loaded, placing)):
        if was_half and not pipe.transformer.half_precision:
            was_half = False
            selfcheck.distrust_half(loaded)
        if isinstance(event, Outcome):
            event = event.with_facts(
                model=loaded.entry(),
                dtype=loaded.dtype,
                plan=plan_entry,
                loras=acting,
                length=length,
                details=_details(job, sources),
                seconds={**seconds, **event.ran.seconds},
            )
            closing = (*_lora_notes(job), *_plan_notes(plan_entry))
            event = replace(event, notes=(*notes, *event.notes, *closing))
        yield event


def _in_known_words(
    loaded: Models, job: SongJob, plan: Plan | None
) -> tuple[SongJob, Plan | None, tuple[str, ...], tuple[str, ...]]:
    """Put a song of the built-in engine into words that it knows; for other models nothing changes.

    Returns the job, the plan, the details that were chosen for the song, and notes for the visitor.
    """
    known = None
    if job.settings.built_in:
        known = song_words.read_words(loaded.current.local_folder)
    if known is None:
        return job, plan, (), ()
    request, chosen, notes = song_words.settle(
        job.request, job.seeds[0], known, choose=plan is None
    )
    job = replace(job, request=request)
    if job.request.sung_lyrics() != INSTRUMENTAL:
        notes = (*notes, tooltips.DID_NOT_SING)
    if plan is not None:
        plan = replace(plan, metadata=song_words.translated(plan.metadata, known))
    return job, plan, chosen, notes


def _prompt_notes(from_prompt: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note on the fields that the prompt decided."""
    if not from_prompt:
        return ()
    facts = tooltips.song_facts(
        from_prompt.get("bpm"),
        from_prompt.get("key", ""),
        TIME_SIGNATURES.get(from_prompt.get("time_signature", ""), ""),
    )
    return (tooltips.FROM_PROMPT.format(facts=", ".join(facts)),)


def _in_written_language(
    job: SongJob, plan: Plan | None
) -> tuple[SongJob, Plan | None, tuple[str, ...], tuple[str, ...]]:
    """Set the language by the script of the lyrics if neither the visitor nor the planner chose one.

    Returns the job, the plan, the details that the script decided, and notes for the visitor.
    """
    chosen = job.request.language if plan is None else plan.metadata["language"]
    language = written_language(job.request.sung_lyrics())
    if chosen != "unknown" or language == "unknown":
        return job, plan, (), ()
    job = replace(job, request=job.request.model_copy(update={"language": language}))
    if plan is not None:
        plan = replace(plan, metadata={**plan.metadata, "language": language})
    return job, plan, ("language",), (tooltips.FROM_SCRIPT.format(language=LANGUAGES[language]),)


def _details(job: SongJob, sources: Mapping[str, str]) -> dict[str, DetailEntry]:
    """Return what decided each detail that was left open, by the names of the request's fields."""
    return {
        name: DetailEntry(value=getattr(job.request, name), source=source)
        for name, source in sources.items()
    }


def _lora_notes(job: SongJob) -> tuple[str, ...]:
    """Return notes on the job's LoRAs, such as a missing alpha."""
    return tuple(f"LoRA {spec.info.name}: {spec.info.note}" for spec in job.loras if spec.info.note)


def _plan_notes(entry: PlanEntry | None) -> tuple[str, ...]:
    """Return a note on why a song was made without the requested plan, if that failed."""
    # Nothing has failed if there is no planner: the status says so.
    if entry and entry.get("failed"):
        return (f"Made without a plan: {entry['reason']}",)
    return ()


def _settled_length(automatic: Automatic, plan: Plan | None) -> LengthEntry:
    if plan is not None:
        return LengthEntry(seconds=plan.seconds, source="planner")
    return LengthEntry(seconds=automatic.guess.seconds, source=automatic.guess.source)


@dataclass(frozen=True)
class Listener:
    """What the models can tell of a finished take: the heads that follow the lyrics, and a planner, if it is there."""

    heads: song_align.Heads = field(default_factory=dict)
    planner: Planner | None = None


def _listener(loaded: Models, placing: Placing) -> Listener:
    # A planner that would have to be loaded, or moved to the device, costs more than its judgement
    # is worth.
    planner = None
    if placing.keeps_all and loaded.planner.loaded:
        planner = loaded.planner.get()
    return Listener(song_align.heads_of(loaded.current), planner)


NOBODY = Listener()


def run(
    pipe: Any, job: SongJob, plan: Plan | None = None, listener: Listener = NOBODY
) -> Iterator[Progress | DraftOffer | SongDraft | Outcome]:
    """Yield the progress of the song of `job`, then its `Outcome`; `listener` hears how good the takes are.

    A song whose numbers half precision cannot hold is made again in float32, and so are later ones.
    """
    try:
        yield from _once(pipe, job, plan, listener)
        return
    except song_half.NotFinite:
        pass
    # Not within `except`: until its end the exception keeps tensors on the device.
    models.free_memory()
    song_half.leave(pipe.transformer)
    yield Progress("reading", note=tooltips.HALF_FAILED)
    for event in _once(pipe, job, plan, listener):
        if isinstance(event, Outcome):
            event = replace(event, notes=(tooltips.HALF_FAILED, *event.notes))
        yield event


def _once(
    pipe: Any, job: SongJob, plan: Plan | None, listener: Listener
) -> Iterator[Progress | DraftOffer | SongDraft | Outcome]:
    """Make the song of `job`; raises NotFinite if half precision does not hold its numbers."""
    seconds: dict[str, float] = {}
    yield Progress("reading")
    with timed(seconds, "reading"):
        song: Song[Any] = Song(pipe, job, plan)
        yield from song.read()
        prepare = MODES[getattr(song.request, "action", job.request.mode)]
        loop, finish = prepare(song)
    with timed(seconds, "steps"):
        steps = len(loop.sigmas)
        draft = _Draft(song, loop, finish)
        yield Progress("steps", 0, steps)
        for index, (latents, clean) in enumerate(song_loop.denoise(pipe, loop), 1):
            models.trim_memory(latents.device)
            song_half.check(pipe.transformer, latents)
            outline = song_loop.outline(clean[:1])
            yield Progress("steps", index, steps, outline=outline)
            yield from draft.after(index, clean, seconds)
        if loop.keep:
            latents = song_loop.blend(latents, loop.keep)
    seconds["steps"] = round(seconds["steps"] - seconds.get("draft", 0.0), 3)
    takes = yield from _decoded(song, latents, finish, _Judge(song, loop, listener), seconds)
    ran = Ran(
        seconds=seconds,
        kind=song.settings.kind,
        sampling=song.sampling_entry(),
        instructions=song.instructions,
        switch_step=song.switch_step,
    )
    yield Outcome(ran, takes, notes=tuple(song.notes))
    song_compilation.warm_up(pipe.transformer)


class _Draft:
    """The first take as it is in the loop, decoded once if somebody asks for it from half of the steps on."""

    def __init__(self, song: Song, loop: song_loop.Denoising, finish: Finish):
        self._song = song
        self._keep = loop.keep
        self._finish = finish
        self._steps = len(loop.sigmas)
        self._is_offered = False
        self._is_over = not song.job.offers_draft

    def after(
        self, step: int, clean: Any, seconds: dict[str, float]
    ) -> Iterator[Progress | DraftOffer | SongDraft]:
        """Offer the draft, or make it if it is asked for, after a `step` that expects `clean` [B, T, C]."""
        if self._is_over or 2 * step < self._steps or step == self._steps:
            return
        wanted = self._song.job.draft_wanted
        if not self._is_offered:
            self._is_offered = True
            yield DraftOffer(str(wanted))
        if wanted.exists():
            self._is_over = True
            wanted.unlink()
            with timed(seconds, "draft"):
                yield from self._made(step, clean[:1])

    def _made(self, step: int, clean: Any) -> Iterator[Progress | SongDraft]:
        """Decode the draft; if memory or the disk has no room for it, the song continues."""
        problem = NO_SONG_DRAFT
        try:
            samples = yield from self._decoded(step, clean)
            path = str(Path(self._song.job.folder, "draft.wav"))
            audio_export.write_wav(path, self._finish(samples, 1))
            yield SongDraft(step, path)
            return
        except (StudioError, audio.AudioError) as error:
            problem = _problem_of(error)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("there was no memory for a draft")
        # Not within `except`: until its end the exception keeps tensors on the device.
        models.free_memory()
        yield SongDraft(step, problem=problem)

    def _decoded(self, step: int, clean: Any) -> Generator[Progress, None, np.ndarray]:
        if self._keep:
            clean = song_loop.blend(clean, self._keep)
        tiles = []
        for _, _, decoded in song_codec.decode_latents(self._song.pipe, clean):
            tiles.append(decoded.numpy())
            yield Progress("steps", step, self._steps)
        return np.concatenate(tiles, axis=1)[:, : self._song.length]


def generate(song: Song[GenerateRequest]) -> tuple[song_loop.Denoising, Finish]:
    """Make a song from words; it follows its plan, if it has one, for the share `plan_strength` of the steps."""
    options = song.request.options
    if options.exclude and song.plan is None:
        song.notes.append("Exclude had no effect, because the song was not planned.")
    elif options.exclude and options.plan_cfg == 1:
        song.notes.append("Exclude had no effect, because Plan guidance is 1.")
    if song.plan is None:
        return song.denoising(song.text2music()), _loud
    # A cover of the codes, as the stock pipeline does with `audio_codes`. The last code may reach
    # past the end.
    condition = song.condition(COVER, song_conditions.codes_context(song.pipe, song.plan.codes))
    switch = _switch(song, song.sigmas, options.plan_strength)
    finish: Finish = _loud
    if song.plan.ends and options.plan_strength > 0:
        finish = _ending_with(song.plan)
    return song.denoising(condition, switch=switch), finish


def cover(song: Song[CoverRequest]) -> tuple[song_loop.Denoising, Finish]:
    """Make a new version of the source, which is the context for the share `strength` of the steps.

    The context holds the source's audio codes or, with `detail` "sound", its latents unchanged
    (upstream's "cover-nofsq", #1142). In later steps it is silence. With `noise_strength` the run
    starts in mid-schedule from the noised source.
    """
    request = song.request
    sigmas = song.sigmas
    start = None
    if request.options.detail == "sound":
        context = song_conditions.context_of(song.clean)
    else:
        context = song_conditions.cover_context(song.pipe, song.clean)
    condition = song.condition(COVER, context)
    if request.options.noise_strength > 0:
        level = 1.0 - request.options.noise_strength
        nearest = min(range(len(sigmas)), key=lambda step: abs(sigmas[step] - level))
        sigmas = sigmas[nearest:]
        start = song_loop.noised(song.clean, song.noise(song.frames), sigmas[0])
    switch = _switch(song, sigmas, request.strength)
    return song.denoising(condition, start, sigmas=sigmas, switch=switch), _loud


def _switch(
    song: Song, sigmas: tuple[float, ...], share: float
) -> tuple[int, song_conditions.Condition] | None:
    """Return the step, after `share` of all steps, from which only the words count, and their condition, or None.

    The hard switch is upstream's; diffusers blends unguided velocities instead, which keeps less of
    both.
    """
    step = int(len(sigmas) * share)
    song.switch_step = step
    if step == len(sigmas):
        return None
    return step, song.text2music()


def extend(song: Song[ExtendRequest]) -> tuple[song_loop.Denoising, Finish]:
    """Add music before and after the source, which is unchanged except for the overlap at each new end."""
    before = samples_in(song.request.before)
    end = song.length - samples_in(song.request.after)
    # At most half of a short source at each new end.
    overlap = min(samples_in(song.request.options.overlap), (end - before) // 2)
    parts = []
    if before > 0:
        parts.append((0, before))
    if end < song.length:
        parts.append((end, song.length))
    return _replace(song, parts, overlap, overlap, song.settings.steps)


def repaint(song: Song[EditRequest]) -> tuple[song_loop.Denoising, Finish]:
    """Replace regions of the source; every sample outside them and their crossfades is unchanged."""
    options = song.request.options
    if options.repaint_mode == "conservative":
        strength = 0.0
    elif options.repaint_mode == "aggressive":
        strength = 1.0
    else:
        strength = options.repaint_strength
    kept = 1.0 - strength
    fade = samples_in(max(CROSSFADE_SECONDS * kept, LEAST_CROSSFADE_SECONDS))
    steps = round(INJECTION_SHARE * kept * song.settings.steps)
    return _replace(song, song.regions(), 0, fade, steps, blend=round(BLEND_FRAMES * kept))


def _replace(
    song: Song, parts: list[tuple[int, int]], margin: int, fade: int, steps: int, blend: int = 0
) -> tuple[song_loop.Denoising, Finish]:
    """Replace `parts`, (start, end) in samples, of the source.

    The model replaces them and a `margin` of samples around them, of which a crossfade of `fade`
    samples is used. Outside, the source's latents are injected for `steps` steps, and blended with
    the final ones over `blend` frames.
    """
    spans = [(max(start - margin, 0), min(end + margin, song.length)) for start, end in parts]
    new = song_loop.region(song.pipe, song.clean, spans)
    context = song_conditions.masked_context(song.clean, song.silence(), new)
    condition = song.condition(REPAINT, context)

    def finish(samples: np.ndarray, take: int) -> np.ndarray:
        joined = song.source
        for start, end in parts:
            _not_silent(samples[:, start:end], take)
            matched = match_level(samples, song.source, start, end, fade)
            joined = splice(joined, matched, start, end, fade)
        return joined

    return song.denoising(condition, keep=song_loop.Keep(new, song.clean, steps, blend)), finish


def morph(song: Song[EditRequest]) -> tuple[song_loop.Denoising, Finish]:
    """Move the source from its own description to the new prompt and lyrics (flow edit)."""
    request = song.request
    options = request.options
    if song.settings.turbo:
        raise StudioError("unsupported", NO_MORPH)
    target = song.text2music()
    source = song.text2music(
        prompt=request.source_prompt, lyrics=request.source_lyrics or request.sung_lyrics()
    )
    first = int(song.settings.steps * options.n_min)
    last = int(song.settings.steps * options.n_max)
    edit = song_loop.Morph(source, song.clean, first, last, options.n_avg)
    start = song.clean.float().expand(len(song.job.seeds), -1, -1)
    return song.denoising(target, start, morph=edit), _whole


def with_tracks(song: Song[EditRequest]) -> tuple[song_loop.Denoising, Finish]:
    """Layer a track over the source or regions of it, extract a track, or complete the source with tracks.

    A layer is returned as a stem, or with `mix` together with the source.
    """
    request = song.request
    regions = song.regions()
    instruction = {"layer": LAYER, "extract": EXTRACT, "complete": COMPLETE}[request.action]
    instruction = instruction.format(" | ".join(track.upper() for track in request.tracks))
    new = song_loop.region(song.pipe, song.clean, regions)
    condition = song.condition(instruction, song_conditions.context_of(song.clean, new))

    def finish(samples: np.ndarray, take: int) -> np.ndarray:
        stem = _whole(samples, take)
        if regions != [(0, song.length)]:
            whole = stem
            stem = np.zeros_like(stem)
            for start, end in regions:
                stem = splice(stem, whole, start, end, samples_in(CROSSFADE_SECONDS))
        if not request.options.mix:
            return stem
        mix = song.source + stem
        if audio.peak_of(mix) > 1.0:
            over = audio_levels.peak_dbfs(mix)
            message = (
                f"Take {take}: source and new layer together are {over:.1f} dB over full scale."
            )
            hint = "Turn mix off and mix the stem yourself, or use a quieter source."
            raise StudioError("too_loud", message, hint=hint)
        return mix

    return song.denoising(condition), finish


# By mode, or by action for an edit.
MODES: dict[str, Callable[[Song[Any]], tuple[song_loop.Denoising, Finish]]] = {
    "generate": generate,
    "cover": cover,
    "extend": extend,
    "repaint": repaint,
    "morph": morph,
    "layer": with_tracks,
    "extract": with_tracks,
    "complete": with_tracks,
}


class Song(Generic[Asked]):
    """What every mode needs for one job: pipeline, settings and sizes, and facts for the record."""

    def __init__(self, pipe: Any, job: SongJob, plan: Plan | None):
        self.pipe = pipe
        self.job = job
        self.plan = plan
        self.request = cast(Asked, job.request)  # of the mode that makes the song
        if plan is not None:
            self.request = self.request.model_copy(update=plan.words())
        self.settings = job.settings
        self.notes = [*job.settings.notes]
        self.sigmas = song_loop.schedule(self.settings.steps, self.settings.shift)
        self.instructions: Instructions | None = None  # those of the first condition
        self.switch_step: int | None = None  # from which the words alone count
        self._generators = song_loop.generators_for(job.seeds)
        self._timbre = None

    def read(self) -> Iterator[Progress]:
        """Set `duration` in seconds, `length` in samples, `frames`, and a source's samples and latents.

        `source` is [2, n] at 48 kHz, `clean` [1, T, C]; T covers n, padded with silence to at least
        5.12 s.
        """
        request = self.request
        pipe = self.pipe
        files = self.job.audio
        if "reference" in files:
            samples = audio.read_wav(files["reference"])
            if audio_levels.is_silent(samples):
                self.notes.append("The reference audio is silent, so it was not used.")
            else:
                self._timbre = yield from song_codec.reference_latents(pipe, samples)
        if "source" not in files:
            self.duration = request.song_seconds(0.0)
            self.length = samples_in(self.duration)
            self.frames = song_codec.frames_for(pipe, self.duration)
            return
        self.source = audio.read_wav(files["source"])
        if isinstance(request, ExtendRequest):
            padding = (samples_in(request.before), samples_in(request.after))
            self.source = np.pad(self.source, ((0, 0), padding))
        latents = yield from song_codec.encode(pipe, self.source, "reading")
        self.clean = song_codec.long_enough(pipe, latents)
        self.length = self.source.shape[1]
        self.frames = self.clean.shape[1]
        self.duration = self.length / SAMPLE_RATE

    def condition(self, instruction: str, context: Any, **others: str) -> song_conditions.Condition:
        """Encode the request's words, or `others` instead, for `context`; the first call records what did not fit."""
        words = {**song_conditions.words_of(self.request, self.duration, instruction), **others}
        words["prompt"], dropped = song_conditions.fit_prompt(self.pipe, words)
        if self.instructions is None:
            self._record_words(words, dropped)
        return song_conditions.encode_condition(
            self.pipe, words, context, self._timbre, self.request.options.timbre_token
        )

    def _record_words(self, words: song_conditions.Words, dropped: str) -> None:
        _, tokens = song_conditions.count_tokens(self.pipe, words)
        self.instructions = Instructions(
            instruction=words["instruction"],
            prompt_used=words["prompt"],
            prompt_dropped=dropped,
            lyric_tokens=tokens,
        )
        if dropped:
            self.notes.append(
                f"The prompt was longer than the {MAX_TEXT_TOKENS} tokens the model reads; "
                f"it was cut before {shown(dropped)} so that BPM, key and length still count."
            )
        if tokens > MAX_LYRIC_TOKENS:
            self.notes.append(
                f"The lyrics have {tokens:,} tokens; the model reads the first {MAX_LYRIC_TOKENS:,}, "
                "so the end of the lyrics was not used."
            )

    def sampling_entry(self) -> SamplingEntry:
        options = self.request.options
        return SamplingEntry(
            steps=self.settings.steps,
            guidance=self.settings.guidance,
            shift=self.settings.shift,
            sampler=options.sampler,
            timbre_token=options.timbre_token and song_conditions.is_xl(self.pipe),
            turbo=self.settings.turbo,
        )

    def text2music(self, **others: str) -> song_conditions.Condition:
        context = song_conditions.context_of(self.silence())
        return self.condition(TEXT2MUSIC, context, **others)

    def silence(self) -> Any:
        """Return the model's silence for this song [1, T, C]."""
        return song_clock.silence(self.pipe, self.frames, self.request)

    def noise(self, frames: int) -> Any:
        """Draw the takes' noise [B, frames, C], rotated towards other seeds if a variation is requested."""
        channels = self.pipe.transformer.config.audio_acoustic_hidden_dim
        options = self.request.options
        noise = song_loop.draw_noise(self._generators, frames, channels)
        if options.variation > 0:
            generators = song_loop.generators_for(self.job.variation_seeds)
            other = song_loop.draw_noise(generators, frames, channels)
            noise = song_loop.vary(noise, other, options.variation)
        return noise

    def regions(self: Song[EditRequest]) -> list[tuple[int, int]]:
        """Return the request's regions, (start, end) in samples, or its one start and end (0 is the source's end)."""
        regions = self.request.regions
        if not regions:
            regions = ((self.request.start, self.request.end),)
        in_samples = []
        for start, end in regions:
            last = samples_in(end) or self.length
            in_samples.append((samples_in(start), min(last, self.length)))
        return in_samples

    def denoising(
        self,
        condition: song_conditions.Condition,
        start: Any = None,
        *,
        sigmas: tuple[float, ...] | None = None,
        switch: tuple[int, song_conditions.Condition] | None = None,
        keep: song_loop.Keep | None = None,
        morph: song_loop.Morph | None = None,
    ) -> song_loop.Denoising:
        """Return a run of the loop from `start` [B, T, C], by default noise; `sigmas` are by default the settings'."""
        if start is None:
            start = self.noise(condition.context.shape[1])
        options = self.request.options
        return song_loop.Denoising(
            condition,
            start,
            generators=self._generators,
            sigmas=self.sigmas if sigmas is None else sigmas,
            guidance=self.settings.guidance,
            cfg_start=options.cfg_start,
            cfg_end=options.cfg_end,
            sampler=options.sampler,
            switch=switch,
            keep=keep,
            morph=morph,
        )


def _decoded(
    song: Song, latents: Any, finish: Finish, judge: _Judge, seconds: dict[str, float]
) -> Generator[Progress, None, tuple[Take, ...]]:
    """Decode each take, `finish` it, let it be judged and write it; returns the takes, and adds to `seconds`.

    A take that is not finite, constant, or refused by `finish` gets a problem; the others are not
    affected.
    """
    takes = []
    for number, seed in enumerate(song.job.seeds, 1):
        try:
            own = latents[number - 1 : number]
            with timed(seconds, "decoding"):
                take, made = yield from _take(song, own, number, finish)
            with timed(seconds, "scoring"):
                take = judge.scored(take, made, own, number)
        # An AudioError means that the folder for work in progress is full.
        except (StudioError, audio.AudioError) as error:
            take = Take(seed, problem=_problem_of(error))
        takes.append(take)
    refusal = song_codec.refusal(song.pipe)
    if refusal:
        song.notes.append(f"The VAE ran on the processor, because the GPU refused it: {refusal}")
    return tuple(takes)


def _problem_of(error: StudioError | audio.AudioError) -> Problem:
    if isinstance(error, StudioError):
        return error.problem
    return disk_problem(error) or Problem(error.code, error.message, hint=error.hint)


def _take(
    song: Song, latents: Any, number: int, finish: Finish
) -> Generator[Progress, None, tuple[Take, np.ndarray]]:
    """Decode a take and write its file; returns it and its samples."""
    if not bool(latents.isfinite().all()):
        message = f"Take {number} failed: the model returned numbers that are not finite."
        raise StudioError("bad_take", message, hint="Try another seed or lower guidance.")
    if float(latents.std()) < SILENT_LATENTS_STD:
        raise StudioError("bad_take", f"Take {number} is empty.", hint="Try another seed.")
    tiles = []
    seeds = song.job.seeds
    for tile, total, decoded in song_codec.decode_latents(song.pipe, latents):
        tiles.append(decoded.numpy())
        yield Progress("decoding", (number - 1) * total + tile, len(seeds) * total)
    decoded_song = np.concatenate(tiles, axis=1)[:, : song.length]
    samples = finish(decoded_song, number)
    path = str(Path(song.job.folder, f"take-{number}.wav"))
    audio_export.write_wav(path, samples)
    return Take(seeds[number - 1], path, warnings=_plan_warnings(song.plan, number)), samples


class _Judge:
    """Finds out how good the takes of a song are (song_score.py), and when their lines are sung."""

    def __init__(self, song: Song, loop: song_loop.Denoising, listener: Listener):
        self._song = song
        self._loop = loop
        self._listener = listener
        self._parts = song_score.parts_of(song.request)

    def scored(self, take: Take, samples: np.ndarray, latents: Any, number: int) -> Take:
        """Return the `take` with the parts of its score, its timed lyrics, and a warning if it sounds like noise."""
        flatness = audio_levels.spectral_flatness(samples)
        warnings = take.warnings
        if flatness > NOISE_FLATNESS:
            warnings += (
                f"Take {number} sounds like noise. A shorter, plainer prompt or another seed often helps.",
            )
        parts = song_score.measured(samples, self._song.request.bpm, self._parts, flatness)
        words = WordsResult()
        try:
            if "lyrics" in self._parts and self._listener.heads:
                words = self._followed(take, latents, number)
                parts["lyrics"] = words["score"]
            if "recognition" in self._parts and self._listener.planner is not None:
                recognition = self._recognition(self._listener.planner, latents)
                if recognition is not None:
                    parts["recognition"] = recognition
        except Exception:  # such as a full card: the take is finished, and stays
            log.exception("a take could not be judged")
            models.free_memory()
        return replace(take, warnings=warnings, parts=parts, words=words)

    def _followed(self, take: Take, latents: Any, number: int) -> WordsResult:
        song = self._song
        condition = self._loop.condition
        if len(condition.context) > 1:  # a plan has other codes for each take
            condition = replace(condition, context=condition.context[number - 1 : number])
        noise = song_loop.draw_noise(
            song_loop.generators_for((take.seed,)), latents.shape[1], latents.shape[2]
        )
        return song_align.follow(
            song.pipe,
            condition,
            latents,
            noise,
            1 / song.settings.steps,
            self._listener.heads,
            song.request,
            song.duration,
        )

    def _recognition(self, judge: Planner, latents: Any) -> float | None:
        song = self._song
        if not song_conditions.has_audio_codes(song.pipe):
            return None
        codes = song_conditions.audio_codes(song.pipe, latents.to(song.pipe.transformer.dtype))
        return planner.recognition(judge, song.request, song.request.prompt, codes, song.duration)


def _not_silent(samples: np.ndarray, number: int) -> None:
    if audio_levels.is_silent(samples):
        raise StudioError(
            "bad_take", f"Take {number} is silent.", hint="Try another seed or more steps."
        )


def _loud(samples: np.ndarray, number: int) -> np.ndarray:
    _not_silent(samples, number)
    return audio_levels.scale_to_peak(samples, -1.0)  # dBFS, as upstream does


def _ending_with(plan: Plan) -> Finish:
    """Return what lets a song fade away once its plan is over, after which small models play on."""

    def finish(samples: np.ndarray, number: int) -> np.ndarray:
        seconds = samples.shape[1] / SAMPLE_RATE - plan.ends[number - 1] - SOUNDING_SECONDS
        return _loud(audio_levels.fade_out(samples, max(seconds, LEAST_FADE_SECONDS)), number)

    return finish


def _whole(samples: np.ndarray, number: int) -> np.ndarray:
    """Keep the level, unless its peak is over full scale."""
    _not_silent(samples, number)
    return samples / max(audio.peak_of(samples), 1.0)


def _plan_warnings(plan: Plan | None, number: int) -> tuple[str, ...]:
    stuck = plan.stuck[number - 1] if plan is not None else None
    if stuck is None:
        return ()
    return (
        f"The plan of take {number} repeats itself from {stuck:.0f} s on. Another seed often helps.",
    )
