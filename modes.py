"""The modes: each turns a request into a run of the denoising loop, and the latents into takes.

`run` works inside the GPU entry point. It reads and writes float WAV in the job's folder and yields `Progress`, then
one `Outcome`; tensors never leave it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import audio
import codec
import compilation
import conditions
import export
import levels
import models
import sampling
from conditions import COMPLETE, COVER, EXTRACT, LAYER, REPAINT, TEXT2MUSIC
from events import Job, Outcome, Problem, Progress, StudioError, Take
from levels import match_level, splice
from limits import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, SAMPLE_RATE, samples_in, shown
from params import sampling_settings
from planner import Plan

# The conservative repaint: share of steps with injection, frames of the latent blend, seconds of crossfade. Other
# repaints use less of each; the shortest crossfade stays, so that the source is always unchanged (upstream's aggressive
# mode splices nothing).
CONSERVATIVE = (1.0, 25, 0.05)
LEAST_CROSSFADE_SECONDS = 0.01
SILENT_LATENTS_STD = 1e-3
# Music stays well under this; white noise has 0.56 on average, wind noise over 0.3.
NOISE_FLATNESS = 0.3


def run(
    pipe: Any, job: Job, untrained: bool, plan: Plan | None = None, kind: str = "sft"
) -> Iterator[Progress | Outcome]:
    """Make the song of `job`, according to `plan` if there is one.

    `untrained` means random weights, which make noise: no warning then. `kind` is the checkpoint's, which has its own
    defaults.
    """
    song = Song(pipe, job, untrained, plan, kind)
    yield Progress("reading")
    takes = yield from MODES[getattr(song.request, "action", job.request.mode)](song)
    numbers = {
        **{"steps": song.settings.steps, "guidance": song.settings.guidance, "shift": song.settings.shift},
        "sampler": song.request.options.sampler,
        "timbre_token": song.request.options.timbre_token and conditions.is_xl(pipe),
        "turbo": pipe.is_turbo,
    }
    yield Outcome(takes, {"sampling": numbers, **song.facts, "seconds": song.seconds}, tuple(song.notes))
    compilation.warm_up(pipe.transformer)


# --- the modes ----------------------------------------------------------------------------------------------------
# Each is a generator of progress that returns the takes.


def generate(song: Song) -> Iterator[Progress]:
    """Make a song from words, or from words and each take's planned audio codes."""
    duration, plan = song.request.duration, song.plan
    if plan is None:
        frames = codec.frames_for(song.pipe, duration)
        condition = song.condition(TEXT2MUSIC, duration, conditions.silent_context(song.pipe, frames))
    else:
        # As the stock pipeline does with `audio_codes`: a cover of them. The last may reach past the end.
        context = conditions.codes_context(song.pipe, plan.codes)
        frames, condition = context.shape[1], song.condition(COVER, duration, context)
    latents = yield from song.denoise(condition, song.noise(frames))
    return (yield from song.decode(latents, samples_in(duration), _loud))


def cover(song: Song) -> Iterator[Progress]:
    """Make a new version of the source: its audio codes are the context for the first `strength` of the steps.

    After that the context is silence. The hard switch is upstream's; diffusers blends unguided velocities instead,
    which keeps less of either. With `noise_strength` the run starts in mid-schedule from the noised source itself.
    """
    request, pipe = song.request, song.pipe
    source, clean = yield from song.read_source()
    frames, seconds = clean.shape[1], source.shape[1] / SAMPLE_RATE
    condition = song.condition(COVER, seconds, conditions.cover_context(pipe, clean))
    sigmas, start = song.sigmas(), song.noise(frames)
    if request.options.noise_strength > 0:
        sigmas = sampling.from_nearest(sigmas, 1.0 - request.options.noise_strength)
        start = sampling.noised(clean, start, sigmas[0])
    switch, step = None, int(len(sigmas) * request.strength)
    if step < len(sigmas):
        plain = song.condition(TEXT2MUSIC, seconds, conditions.silent_context(pipe, frames))
        switch = step, plain
    song.facts["switch_step"] = step
    latents = yield from song.denoise(condition, start, sigmas=sigmas, switch=switch)
    return (yield from song.decode(latents, source.shape[1], _loud))


def extend(song: Song) -> Iterator[Progress]:
    """Add music before and after the source, which is unchanged except for the overlap at each new end."""
    request = song.request
    before, after = samples_in(request.before), samples_in(request.after)
    source, clean = yield from song.read_source(before, after)
    total = source.shape[1]
    end = total - after
    # A short clip keeps at least half of itself.
    overlap = min(samples_in(request.options.overlap), (end - before) // 2)
    parts = [(start, stop) for start, stop in ((0, before), (end, total)) if start < stop]
    return (yield from _replace(song, source, clean, parts, overlap, overlap, song.settings.steps))


def repaint(song: Song) -> Iterator[Progress]:
    """Replace a region of the source; every sample outside it and its crossfade is unchanged (reference 2.5)."""
    options = song.request.options
    source, clean = yield from song.read_source()
    parts = [song.region_in(source.shape[1])]
    strength = {"conservative": 0.0, "aggressive": 1.0}.get(options.repaint_mode, options.repaint_strength)
    share, blend, fade = (value * (1.0 - strength) for value in CONSERVATIVE)
    fade = samples_in(max(fade, LEAST_CROSSFADE_SECONDS))
    steps = round(share * song.settings.steps)
    return (yield from _replace(song, source, clean, parts, 0, fade, steps, round(blend)))


def _replace(
    song: Song, source: np.ndarray, clean: Any, parts: list, margin: int, fade: int, steps: int, blend: int = 0
) -> Iterator[Progress]:
    """Replace `parts`, (start, end) in samples, of the source [2, n] with its latents `clean` [1, T, C].

    The model replaces them with a `margin` around, of which a crossfade of `fade` samples is used. Outside, the
    source's latents are injected for `steps` steps, and blended with the final ones over `blend` frames.
    """
    total = source.shape[1]
    spans = [(max(start - margin, 0), min(end + margin, total)) for start, end in parts]
    new = sampling.region(song.pipe, clean, spans)
    context = conditions.masked_context(song.pipe, clean, new)
    condition = song.condition(REPAINT, total / SAMPLE_RATE, context)
    keep = sampling.Keep(new, clean, steps)
    latents = yield from song.denoise(condition, song.noise(clean.shape[1]), keep=keep)

    def finish(made: np.ndarray, take: int) -> np.ndarray:
        joined = source
        for start, end in parts:
            _not_silent(made[:, start:end], take)
            joined = splice(joined, match_level(made, source, start, end, fade), start, end, fade)
        return joined

    return (yield from song.decode(sampling.blend(latents, clean, new, blend), total, finish))


def morph(song: Song) -> Iterator[Progress]:
    """Move the source from its own description to the new prompt and lyrics (flow edit, reference 2.10)."""
    request, pipe = song.request, song.pipe
    if pipe.is_turbo:
        raise StudioError("unsupported", "Morph needs a checkpoint with guidance; this turbo checkpoint has none.")
    source, clean = yield from song.read_source()
    seconds, context = source.shape[1] / SAMPLE_RATE, conditions.silent_context(pipe, clean.shape[1])
    before = {"prompt": request.source_prompt, "lyrics": request.source_lyrics or request.sung_lyrics()}
    target = song.condition(TEXT2MUSIC, seconds, context)
    steps, options = song.settings.steps, request.options
    first, last = int(steps * options.n_min), int(steps * options.n_max)
    source_words = song.condition(TEXT2MUSIC, seconds, context, **before)
    plan = sampling.Morph(source_words, clean, first, last, averages=options.n_avg)
    start = clean.float().expand(len(song.job.seeds), -1, -1)
    latents = yield from song.denoise(target, start, morph=plan)
    return (yield from song.decode(latents, source.shape[1], _whole))


def with_tracks(song: Song) -> Iterator[Progress]:
    """Layer a track over the source or a region of it, extract one from it, or complete it with the named ones.

    A layer is returned as a stem, or mixed with the source if asked.
    """
    request = song.request
    source, clean = yield from song.read_source()
    start, end = song.region_in(source.shape[1])
    instruction = {"layer": LAYER, "extract": EXTRACT, "complete": COMPLETE}[request.action]
    instruction = instruction.format(" | ".join(track.upper() for track in request.tracks))
    new = sampling.region(song.pipe, clean, [(start, end)])
    condition = song.condition(instruction, source.shape[1] / SAMPLE_RATE, conditions.context_of(clean, new))
    latents = yield from song.denoise(condition, song.noise(clean.shape[1]))

    def finish(made: np.ndarray, take: int) -> np.ndarray:
        stem = _whole(made, take)
        if (start, end) != (0, source.shape[1]):
            stem = splice(np.zeros_like(stem), stem, start, end, samples_in(CONSERVATIVE[2]))
        if not request.options.mix:
            return stem
        mix = source + stem
        if audio.peak_of(mix) > 1.0:
            message = f"Take {take}: source and new layer together are {levels.peak_dbfs(mix):.1f} dB over full scale."
            hint = "Turn mix off and mix the stem yourself, or use a quieter source."
            raise StudioError("too_loud", message, hint=hint)
        return mix

    return (yield from song.decode(latents, source.shape[1], finish))


MODES = {
    **{"generate": generate, "cover": cover, "extend": extend, "repaint": repaint, "morph": morph},
    **dict.fromkeys(("layer", "extract", "complete"), with_tracks),
}


def _not_silent(made: np.ndarray, number: int) -> None:
    if levels.is_silent(made):
        raise StudioError("bad_take", f"Take {number} is silent.", hint="Try another seed or more steps.")


def _loud(made: np.ndarray, number: int) -> np.ndarray:
    """Scale to a peak of -1 dBFS, as upstream does."""
    _not_silent(made, number)
    return levels.scale_to_peak(made, -1.0)


def _whole(made: np.ndarray, number: int) -> np.ndarray:
    """Keep the level, unless its peak is over full scale."""
    _not_silent(made, number)
    return made / max(audio.peak_of(made), 1.0)


class Song:
    """What every mode needs for one job: pipeline, settings, facts and notes for the record, and the clock."""

    def __init__(self, pipe: Any, job: Job, untrained: bool, plan: Plan | None, kind: str):
        self.pipe, self.job, self.untrained, self.plan = pipe, job, untrained, plan
        self.request = job.request if plan is None else job.request.model_copy(update=plan.words())
        self.settings, self.notes = sampling_settings(job.request, "turbo" if pipe.is_turbo else kind)
        self.facts: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()
        self._generators = sampling.generators_for(job.seeds)
        self._timbre = None
        if "reference" in job.audio:
            samples = audio.read_wav(job.audio["reference"])
            if levels.is_silent(samples):
                self.notes.append("The reference audio is silent, so it was not used.")
            else:
                self._timbre = codec.reference_latents(pipe, samples)

    def condition(self, instruction: str, seconds: float, context: Any, **others: str) -> conditions.Condition:
        """Encode the request's words (or `others`) for `context`, within the model's token budget.

        The first call notes in the record what was cut.
        """
        words = {**conditions.words_of(self.request, seconds, instruction), **others}
        words["prompt"], dropped = conditions.fit_prompt(self.pipe, words)
        if not others and "prompt_used" not in self.facts:
            _, tokens = conditions.count_tokens(self.pipe, words)
            self.facts |= {"prompt_used": words["prompt"], "prompt_dropped": dropped, "lyric_tokens": tokens}
            self.facts["instruction"] = instruction
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
        return conditions.encode_condition(self.pipe, words, context, self._timbre, self.request.options.timbre_token)

    def noise(self, frames: int) -> Any:
        """Draw the takes' noise [B, frames, C], rotated towards other seeds if a variation is requested."""
        channels, options = self.pipe.transformer.config.audio_acoustic_hidden_dim, self.request.options
        noise = sampling.draw_noise(self._generators, frames, channels)
        if options.variation > 0:
            others = sampling.generators_for(self.job.variation_seeds)
            noise = sampling.vary(noise, sampling.draw_noise(others, frames, channels), options.variation)
        return noise

    def sigmas(self) -> tuple[float, ...]:
        return sampling.schedule(self.settings.steps, self.settings.shift)

    def read_source(self, before: int = 0, after: int = 0) -> Iterator[Progress]:
        """Read and encode the source with `before` and `after` samples of silence around it.

        Returns (samples [2, n], latents [1, T, C]); T covers n and at least 5.12 s, beyond n with silence.
        """
        samples = np.pad(audio.read_wav(self.job.audio["source"]), ((0, 0), (before, after)))
        latents = []
        for number, total, tile in codec.encode_samples(self.pipe, samples):
            latents.append(tile)
            yield Progress("reading", number, total)
        return samples, codec.long_enough(self.pipe, codec.join(latents))

    def region_in(self, total: int) -> tuple[int, int]:
        """Return the request's start and end in samples of a source of `total`; an end of 0 is that of the source."""
        return samples_in(self.request.start), min(samples_in(self.request.end) or total, total)

    def denoise(self, condition: conditions.Condition, start: Any, **more: Any) -> Iterator[Progress]:
        """Run the loop from `start` [B, T, C]; returns the final latents. `more` are further fields of the `Run`."""
        self._stop_clock("reading")
        options = self.request.options
        run = sampling.Run(
            **{"condition": condition, "start": start, "generators": self._generators},
            **{"guidance": self.settings.guidance, "cfg_start": options.cfg_start, "cfg_end": options.cfg_end},
            **{"sampler": options.sampler, "sigmas": self.sigmas(), **more},
        )
        yield Progress("steps", 0, len(run.sigmas))
        for index, latents in enumerate(sampling.denoise(self.pipe, run), 1):
            models.trim_memory(latents.device)
            yield Progress("steps", index, len(run.sigmas))
        self._stop_clock("steps")
        return latents

    def decode(self, latents: Any, length: int, finish: Callable[[np.ndarray, int], np.ndarray]) -> Iterator[Progress]:
        """Decode each take to `length` samples and write `finish(samples, number)`; returns the takes.

        A take that is not finite, constant, or refused by `finish` keeps its problem; the others are not affected.
        """
        takes = []
        for number, seed in enumerate(self.job.seeds, 1):
            try:
                take = yield from self._decode_take(latents[number - 1 : number], length, number, finish)
            except StudioError as error:
                take = Take(seed, problem=error.problem)
            except audio.AudioError as error:  # the folder for work in progress is full: earlier takes are there
                take = Take(seed, problem=Problem(error.code, error.message, hint=error.hint))
            takes.append(take)
        if refusal := codec.refusal(self.pipe):
            self.notes.append(f"The VAE ran on the processor, because the GPU refused it: {refusal}")
        self._stop_clock("decoding")
        return tuple(takes)

    def _decode_take(self, latents: Any, length: int, number: int, finish: Callable) -> Iterator[Progress]:
        if not bool(latents.isfinite().all()):
            message = f"Take {number} failed: the model returned numbers that are not finite."
            raise StudioError("bad_take", message, hint="Try another seed or lower guidance.")
        if float(latents.std()) < SILENT_LATENTS_STD:
            raise StudioError("bad_take", f"Take {number} is empty.", hint="Try another seed.")
        tiles = []
        for tile, total, decoded in codec.decode_latents(self.pipe, latents):
            tiles.append(decoded.numpy())
            yield Progress("decoding", (number - 1) * total + tile, len(self.job.seeds) * total)
        made = finish(np.concatenate(tiles, axis=1)[:, :length], number)
        warnings = ()
        if not self.untrained and levels.spectral_flatness(made) > NOISE_FLATNESS:
            warnings = (f"Take {number} sounds like noise. A shorter, plainer prompt or another seed often helps.",)
        path = str(Path(self.job.folder, f"take-{number}.wav"))
        export.write_wav(path, made)
        return Take(self.job.seeds[number - 1], path, warnings=warnings)

    def _stop_clock(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._since, 3)
        self._since = now
