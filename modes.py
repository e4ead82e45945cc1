"""From a request to a run of the loop: what each mode feeds into it and what it makes of the latents.

`run` works inside the GPU entry point. It reads and writes float WAV in the job's folder and yields `Progress` until it
yields its one `Outcome`; tensors never leave it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from planner import Plan, check_codes

# Repaint: the share of steps with injection, frames of the latent blend, seconds of crossfade; strength 0 to 1 goes
# from the first to nothing. Upstream's aggressive mode splices nothing; here the source always survives, so that a
# short crossfade stays.
CONSERVATIVE = (1.0, 25, 0.05)
LEAST_CROSSFADE_SECONDS = 0.01


def run(
    pipe: Any, job: Job, untrained: bool, plan: Plan | None = None, kind: str = "sft"
) -> Iterator[Progress | Outcome]:
    """Make the song of `job`; `untrained` says that the weights are random, so that noise is nothing to warn of.

    A song from words follows the `plan`, where there is one. The `kind` of the checkpoint decides what is usual.
    """
    song = Song(pipe, job, untrained, plan, kind)
    yield Progress("reading")
    takes = yield from MODES[job.request.mode](song)
    yield Outcome(takes, song.all_facts(), tuple(song.notes))
    compilation.warm_up(pipe.transformer)


# --- the modes ----------------------------------------------------------------------------------------------------
# Each is a generator of progress that returns the takes.


def generate(song: Song) -> Iterator[Progress]:
    """Make a song from words, or from words and each take's own audio codes, where it was planned."""
    duration, plan = song.request.duration, song.plan
    if plan is None:
        frames = codec.frames_for(song.pipe, duration)
        condition = song.condition(TEXT2MUSIC, duration, conditions.silent_context(song.pipe, frames))
    else:
        # As the stock pipeline does with `audio_codes`: a cover of what they say. The last may reach past the end.
        for codes in plan.codes:
            check_codes(codes, duration)
        context = conditions.codes_context(song.pipe, plan.codes)
        frames, condition = context.shape[1], song.condition(COVER, duration, context)
    latents = yield from song.denoise(condition, song.noise(frames))
    return (yield from song.decode(latents, lambda made, take: _loud(made[:, : samples_in(duration)], take)))


def cover(song: Song) -> Iterator[Progress]:
    """Sing the source anew: its audio codes are the context for the first `strength` of the steps, silence after.

    The hard switch is upstream's; diffusers blends unguided velocities instead, which keeps less of either. With
    `noise_strength` the run starts in mid-schedule from the noised source itself.
    """
    request, pipe = song.request, song.pipe
    source, clean = yield from song.read_source()
    frames, seconds = clean.shape[1], source.shape[1] / SAMPLE_RATE
    condition = song.condition(COVER, seconds, conditions.cover_context(pipe, clean))
    sigmas, start = song.sigmas(), song.noise(frames)
    if request.options.noise_strength > 0:
        sigmas = sampling.from_nearest(sigmas, 1.0 - request.options.noise_strength)
        start = sampling.noised(clean, start, sigmas[0])
    step = int(len(sigmas) * request.strength)
    switch = None
    if step < len(sigmas):
        plain = song.condition(TEXT2MUSIC, seconds, conditions.silent_context(pipe, frames))
        switch = sampling.Switch(step, plain)
    song.facts["switch_step"] = step
    latents = yield from song.denoise(condition, start, sigmas=sigmas, switch=switch)
    return (yield from song.decode(latents, lambda made, take: _loud(made[:, : source.shape[1]], take)))


def extend(song: Song) -> Iterator[Progress]:
    """Add music before and after the source; its samples stay, but for the overlap at each new end."""
    request, pipe = song.request, song.pipe
    before, after = samples_in(request.before), samples_in(request.after)
    source, clean = yield from song.read_source(before, after)
    total, kept = source.shape[1], source.shape[1] - before - after
    # A short clip keeps at least half of itself.
    overlap = min(samples_in(request.options.overlap), kept // 2)
    parts = [(0, before)] if before else []
    parts += [(total - after, total)] if after else []
    masked = [
        (max(start - (overlap if start else 0), 0), min(end + (0 if start else overlap), total)) for start, end in parts
    ]
    new = sampling.region(pipe, clean, masked)
    condition = song.condition(REPAINT, total / SAMPLE_RATE, conditions.masked_context(pipe, clean, new))
    latents = yield from song.denoise(
        condition, song.noise(clean.shape[1]), keep=sampling.Keep(new, clean, song.settings.steps)
    )

    def finish(made: np.ndarray, take: int) -> np.ndarray:
        extended = source
        for start, end in parts:
            _not_silent(made[:, start:end], take)
            fitted = match_level(made[:, :total], source, start, end, overlap)
            extended = splice(extended, fitted, start, end, overlap)
        return extended

    return (yield from song.decode(latents, finish))


def repaint(song: Song) -> Iterator[Progress]:
    """Make a region of the source anew; outside of it and its crossfade every sample stays (reference 2.5)."""
    request, pipe = song.request, song.pipe
    source, clean = yield from song.read_source()
    start, end = song.region_of(source)
    share, blend, fade = (value * _closeness(request) for value in CONSERVATIVE)
    fade = samples_in(max(fade, LEAST_CROSSFADE_SECONDS))
    new = sampling.region(pipe, clean, [(start, end)])
    condition = song.condition(REPAINT, source.shape[1] / SAMPLE_RATE, conditions.masked_context(pipe, clean, new))
    keep = sampling.Keep(new, clean, round(share * song.settings.steps))
    latents = yield from song.denoise(condition, song.noise(clean.shape[1]), keep=keep)
    latents = sampling.blend(latents, clean, new, round(blend))

    def finish(made: np.ndarray, take: int) -> np.ndarray:
        _not_silent(made[:, start:end], take)
        fitted = match_level(made[:, : source.shape[1]], source, start, end, fade)
        return splice(source, fitted, start, end, fade)

    return (yield from song.decode(latents, finish))


def morph(song: Song) -> Iterator[Progress]:
    """Move the source from what it is said to be to the new prompt and lyrics (flow edit, reference 2.10)."""
    request, pipe = song.request, song.pipe
    if pipe.is_turbo:
        raise StudioError("unsupported", "Morph needs a checkpoint with guidance; this turbo checkpoint has none.")
    source, clean = yield from song.read_source()
    frames, seconds = clean.shape[1], source.shape[1] / SAMPLE_RATE
    context = conditions.silent_context(pipe, frames)
    was = {"prompt": request.source_prompt, "lyrics": request.source_lyrics or request.sung_lyrics()}
    target = song.condition(TEXT2MUSIC, seconds, context)
    steps, options = song.settings.steps, request.options
    plan = sampling.Morph(
        source=song.condition(TEXT2MUSIC, seconds, context, **was),
        clean=clean,
        first=int(steps * options.n_min),
        last=int(steps * options.n_max),
        averages=options.n_avg,
    )
    start = clean.float().expand(len(song.job.seeds), -1, -1)
    latents = yield from song.denoise(target, start, morph=plan)
    return (yield from song.decode(latents, lambda made, take: _whole(made[:, : source.shape[1]], take)))


def layer(song: Song) -> Iterator[Progress]:
    """Make one more track for the source, or for a region of it; returns the stem, or the mix where asked."""
    request, pipe = song.request, song.pipe
    source, clean = yield from song.read_source()
    start, end = song.region_of(source)
    new = sampling.region(pipe, clean, [(start, end)])
    instruction = LAYER.format(request.tracks[0].upper())
    condition = song.condition(instruction, source.shape[1] / SAMPLE_RATE, conditions.context_of(clean, new))
    latents = yield from song.denoise(condition, song.noise(clean.shape[1]))

    def finish(made: np.ndarray, take: int) -> np.ndarray:
        stem = _whole(made[:, : source.shape[1]], take)
        if (start, end) != (0, source.shape[1]):
            stem = splice(np.zeros_like(stem), stem, start, end, samples_in(CONSERVATIVE[2]))
        if not request.options.mix:
            return stem
        mix = source + stem
        if float(np.abs(mix).max()) > 1.0:
            raise StudioError(
                "too_loud",
                f"Take {take}: source and new layer together go {levels.peak_dbfs(mix):.1f} dB over full scale.",
                hint="Take the stem alone (mix off) and mix it yourself, or use a quieter source.",
            )
        return mix

    return (yield from song.decode(latents, finish))


def from_source(song: Song) -> Iterator[Progress]:
    """Take one track out of the source, or add the named tracks to it."""
    tracks = " | ".join(track.upper() for track in song.request.tracks)
    instruction = (EXTRACT if song.request.action == "extract" else COMPLETE).format(tracks)
    source, clean = yield from song.read_source()
    everywhere = sampling.region(song.pipe, clean, [(0, source.shape[1])])
    condition = song.condition(instruction, source.shape[1] / SAMPLE_RATE, conditions.context_of(clean, everywhere))
    latents = yield from song.denoise(condition, song.noise(clean.shape[1]))
    return (yield from song.decode(latents, lambda made, take: _whole(made[:, : source.shape[1]], take)))


ACTIONS = {"repaint": repaint, "morph": morph, "layer": layer, "extract": from_source, "complete": from_source}
MODES = {
    "generate": generate,
    "cover": cover,
    "extend": extend,
    "edit": lambda song: ACTIONS[song.request.action](song),
}


# --- small parts --------------------------------------------------------------------------------------------------


def _closeness(request: Any) -> float:
    """Return how much of the conservative repaint is left: 1 conservative, 0 aggressive."""
    return {"conservative": 1.0, "aggressive": 0.0}.get(
        request.options.repaint_mode, 1.0 - request.options.repaint_strength
    )


def _not_silent(made: np.ndarray, number: int) -> None:
    if levels.is_silent(made):
        raise StudioError("bad_take", f"Take {number} came out silent.", hint="Try another seed or more steps.")


def _loud(made: np.ndarray, number: int) -> np.ndarray:
    """End at a peak of -1 dBFS, as upstream does; what is silent is an error instead of amplified nothing."""
    _not_silent(made, number)
    return levels.scale_to_peak(made, -1.0)


def _whole(made: np.ndarray, number: int) -> np.ndarray:
    """Leave the level as the model made it, unless its peak is over full scale."""
    _not_silent(made, number)
    return made / max(float(np.abs(made).max()), 1.0)


# --- a song in the making -----------------------------------------------------------------------------------------

SILENT_LATENTS_STD = 1e-3
# Music measured with scipy's definition stays well under this; white noise has 0.56 on average, wind noise over 0.3.
NOISE_FLATNESS = 0.3


class Song:
    """What every mode needs of one job: the pipeline, the numbers, what there is to say about it, and the clock."""

    def __init__(self, pipe: Any, job: Job, untrained: bool, plan: Plan | None, kind: str):
        self.pipe, self.job, self.untrained, self.plan = pipe, job, untrained, plan
        self.request = job.request if plan is None else job.request.model_copy(update=plan.words())
        self.settings, self.notes = sampling_settings(job.request, "turbo" if pipe.is_turbo else kind)
        self.facts: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()
        self._generators = sampling.generators_for(job.seeds)
        self._timbre = self._read_reference()

    def all_facts(self) -> dict[str, Any]:
        """Return what really ran, for the record."""
        numbers = {
            "steps": self.settings.steps,
            "guidance": self.settings.guidance,
            "shift": self.settings.shift,
            "sampler": self.request.options.sampler,
            "timbre_token": self.request.options.timbre_token and conditions.is_xl(self.pipe),
            "turbo": self.pipe.is_turbo,
        }
        return {"sampling": numbers, **self.facts, "seconds": self.seconds}

    def condition(self, instruction: str, seconds: float, context: Any, **others: str) -> conditions.Condition:
        """Encode the request's words (or `others`) for `context`, cut to the model's token budget, which is noted."""
        words = replace(conditions.words_of(self.request, seconds, instruction), **others)
        kept, dropped = conditions.fit_prompt(self.pipe, words)
        words = replace(words, prompt=kept)
        tokens = conditions.lyric_tokens(self.pipe, words)
        if not others and "prompt_used" not in self.facts:
            self._note_budget(dropped, tokens)
            self.facts |= {"prompt_used": kept, "prompt_dropped": dropped, "lyric_tokens": tokens}
            self.facts["instruction"] = instruction
        return conditions.encode_condition(self.pipe, words, context, self._timbre, self.request.options.timbre_token)

    def noise(self, frames: int) -> Any:
        """Draw the takes' noise [B, frames, C], turned towards other seeds where a variation is asked."""
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

    def region_of(self, source: np.ndarray) -> tuple[int, int]:
        """Return the request's start and end in samples; an end of 0 is that of the source [2, n]."""
        start, end = samples_in(self.request.start), samples_in(self.request.end)
        return start, min(end or source.shape[1], source.shape[1])

    def denoise(self, condition: conditions.Condition, start: Any, **more: Any) -> Iterator[Progress]:
        """Run the loop from `start` [B, T, C]; returns the final latents. `more` are further fields of the `Run`."""
        self._stop_clock("reading")
        options = self.request.options
        run = sampling.Run(
            condition=condition,
            start=start,
            generators=self._generators,
            sigmas=more.pop("sigmas", None) or self.sigmas(),
            guidance=self.settings.guidance,
            cfg_start=options.cfg_start,
            cfg_end=options.cfg_end,
            sampler=options.sampler,
            **more,
        )
        yield Progress("steps", 0, len(run.sigmas))
        latents = start
        for step in sampling.denoise(self.pipe, run):
            latents = step.latents
            models.trim_memory(latents.device)
            yield Progress("steps", step.index, step.total)
        self._stop_clock("steps")
        return latents

    def decode(self, latents: Any, finish: Callable[[np.ndarray, int], np.ndarray]) -> Iterator[Progress]:
        """Decode each take and write what `finish(samples, number)` makes of it; returns the takes.

        A take that is not finite, constant, or that `finish` refuses with a StudioError keeps its problem; the others
        are not touched by it.
        """
        takes = []
        for number, seed in enumerate(self.job.seeds, 1):
            try:
                take = yield from self._decode_take(latents[number - 1 : number], number, finish)
            except StudioError as error:
                take = Take(seed, problem=error.problem)
            except audio.AudioError as error:  # the folder for work in progress is full: earlier takes are there
                take = Take(seed, problem=Problem(error.code, error.message, hint=error.hint))
            takes.append(take)
        if said := codec.refusal(self.pipe):
            self.notes.append(f"The VAE ran on the processor, because the GPU refused it: {said}")
        self._stop_clock("decoding")
        return tuple(takes)

    def _decode_take(self, latents: Any, number: int, finish: Callable) -> Iterator[Progress]:
        _check_latents(latents, number)
        tiles = []
        for tile, total, decoded in codec.decode_latents(self.pipe, latents):
            tiles.append(decoded.numpy())
            yield Progress("decoding", (number - 1) * total + tile, len(self.job.seeds) * total)
        made = finish(np.concatenate(tiles, axis=1), number)
        warnings = ()
        if not self.untrained and levels.spectral_flatness(made) > NOISE_FLATNESS:
            warnings = (f"Take {number} sounds like noise. A shorter, plainer prompt or another seed often helps.",)
        path = str(Path(self.job.folder, f"take-{number}.wav"))
        export.write_wav(path, made)
        return Take(self.job.seeds[number - 1], path, warnings=warnings)

    def _read_reference(self) -> Any:
        """Return the timbre latents of the reference, or None where there is none or a silent one."""
        if "reference" not in self.job.audio:
            return None
        samples = audio.read_wav(self.job.audio["reference"])
        if levels.is_silent(samples):
            self.notes.append("The reference audio is silent, so it was left out.")
            return None
        return codec.reference_latents(self.pipe, samples)

    def _note_budget(self, dropped: str, tokens: int) -> None:
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

    def _stop_clock(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._since, 3)
        self._since = now


def _check_latents(latents: Any, number: int) -> None:
    if not bool(latents.isfinite().all()):
        raise StudioError(
            "bad_take",
            f"Take {number} broke off: the model returned numbers that are not finite.",
            hint="Try another seed or lower guidance.",
        )
    if float(latents.std()) < SILENT_LATENTS_STD:
        raise StudioError("bad_take", f"Take {number} came out empty.", hint="Try another seed.")
