"""From a request to a run of the loop: what each mode feeds into it and what it makes of the latents.

`run` works inside the GPU entry point. It reads and writes float WAV in the job's folder and yields `Progress` until it
yields its one `Outcome`; tensors never leave it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import codec
import conditions
import levels
import sampling
from events import Progress, StudioError
from jobs import Job
from limits import SAMPLE_RATE, samples_in
from planner import Plan, check_codes
from song import Song, Take
from splice import match_level, splice

# The instructions that the weights were trained with (upstream constants.py).
TEXT2MUSIC = "Fill the audio semantic mask based on the given conditions:"
COVER = "Generate audio semantic tokens based on the given conditions:"
REPAINT = "Repaint the mask area based on the given conditions:"
LAYER = "Generate the {} track based on the audio context:"
EXTRACT = "Extract the {} track from the audio:"
COMPLETE = "Complete the input track with {}:"
# Repaint: the share of steps with injection, frames of the latent blend, seconds of crossfade; strength 0 to 1 goes
# from the first to nothing. Upstream's aggressive mode splices nothing; here the source always survives, so that a
# short crossfade stays.
CONSERVATIVE = (1.0, 25, 0.05)
LEAST_CROSSFADE_SECONDS = 0.01


@dataclass(frozen=True)
class Outcome:
    """What a run made: the takes, what really ran (`facts`, for the record), and sentences for the visitor."""

    takes: tuple[Take, ...]
    facts: dict[str, Any]
    notes: tuple[str, ...]


def run(pipe: Any, job: Job, preview: bool, plan: Plan | None = None) -> Iterator[Progress | Outcome]:
    """Make the song of `job`; `preview` says that the weights are the built-in ones, which sound like noise.

    A song from words follows the `plan`, where there is one.
    """
    song = Song(pipe, job, preview, plan)
    yield Progress("reading")
    takes = yield from MODES[job.request.mode](song)
    yield Outcome(takes, song.all_facts(), tuple(song.notes))


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
        codes = [check_codes(plan.codes_text(take), duration) for take in range(len(song.job.seeds))]
        context = conditions.codes_context(song.pipe, codes)
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


def extract(song: Song) -> Iterator[Progress]:
    """Take one track out of the source."""
    return (yield from _from_source(song, EXTRACT.format(song.request.tracks[0].upper())))


def complete(song: Song) -> Iterator[Progress]:
    """Add the named tracks to the source."""
    return (yield from _from_source(song, COMPLETE.format(" | ".join(track.upper() for track in song.request.tracks))))


def _from_source(song: Song, instruction: str) -> Iterator[Progress]:
    source, clean = yield from song.read_source()
    everywhere = sampling.region(song.pipe, clean, [(0, source.shape[1])])
    condition = song.condition(instruction, source.shape[1] / SAMPLE_RATE, conditions.context_of(clean, everywhere))
    latents = yield from song.denoise(condition, song.noise(clean.shape[1]))
    return (yield from song.decode(latents, lambda made, take: _whole(made[:, : source.shape[1]], take)))


ACTIONS = {"repaint": repaint, "morph": morph, "layer": layer, "extract": extract, "complete": complete}
MODES = {
    "generate": generate,
    "cover": cover,
    "extend": extend,
    "edit": lambda song: ACTIONS[song.request.action](song),
}


def task_support(kind: str) -> dict[str, str]:
    """Tell for each task whether a checkpoint of `kind` (base, sft, turbo, preview) supports it officially.

    Only the base checkpoints were trained to layer, extract and complete, and morph needs guidance (upstream's task
    table); what is not official still runs, as an experiment.
    """
    official = {"generate", "cover", "extend", "repaint"}
    official |= {"layer", "extract", "complete"} if kind == "base" else set()
    official |= {"morph"} if kind != "turbo" else set()
    tasks = [name for name in MODES if name != "edit"] + list(ACTIONS)
    return {task: "official" if task in official else "experimental" for task in tasks}


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
