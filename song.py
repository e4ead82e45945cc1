"""A song in the making: what every mode needs of one job, from the words to the takes.

A mode (modes.py) asks it for conditions and noise, runs the loop through it and lets it decode; tensors stay in here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import audio
import codec
import conditions
import export
import levels
import sampling
from events import Problem, Progress, StudioError
from jobs import Job
from limits import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, samples_in, shown
from params import sampling_settings
from planner import Plan

SILENT_LATENTS_STD = 1e-3
# Music measured with scipy's definition stays well under this; white noise has 0.56 on average, wind noise over 0.3.
NOISE_FLATNESS = 0.3


@dataclass(frozen=True)
class Take:
    """One take: its seed and either the float WAV that it was written to or the problem that it ended with."""

    seed: int
    file: str = ""
    problem: Problem | None = None
    warnings: tuple[str, ...] = ()


class Song:
    """What every mode needs of one job: the pipeline, the numbers, what there is to say about it, and the clock."""

    def __init__(self, pipe: Any, job: Job, preview: bool, plan: Plan | None):
        self.pipe, self.job, self.preview, self.plan = pipe, job, preview, plan
        self.request = job.request if plan is None else job.request.model_copy(update=plan.words())
        self.settings, self.notes = sampling_settings(job.request, pipe.is_turbo)
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

    def condition(
        self, instruction: str, seconds: float, context: Any, prompt: str | None = None, lyrics: str | None = None
    ) -> conditions.Condition:
        """Encode the request's words (or others) for `context`, cut to the model's token budget, which is noted."""
        request = self.request
        words = conditions.Words(
            prompt=request.prompt if prompt is None else prompt,
            lyrics=request.sung_lyrics() if lyrics is None else lyrics,
            language=request.language,
            seconds=seconds,
            instruction=instruction,
            bpm=request.bpm,
            key=request.key,
            time_signature=request.time_signature,
        )
        kept, dropped = conditions.fit_prompt(self.pipe, words)
        words = replace(words, prompt=kept)
        tokens = conditions.lyric_tokens(self.pipe, words)
        if prompt is None and "prompt_used" not in self.facts:
            self._note_budget(dropped, tokens)
            self.facts |= {"prompt_used": kept, "prompt_dropped": dropped, "lyric_tokens": tokens}
            self.facts["instruction"] = instruction
        return conditions.encode_condition(self.pipe, words, context, self._timbre, request.options.timbre_token)

    def noise(self, frames: int) -> Any:
        """Draw the takes' noise [B, frames, C], turned towards other seeds where a variation is asked."""
        channels, options = self.pipe.transformer.config.audio_acoustic_hidden_dim, self.request.options
        noise = sampling.draw_noise(self._generators, frames, channels)
        if options.variation > 0:
            others = sampling.generators_for(self.job.variation_seeds)
            noise = sampling.vary(noise, sampling.draw_noise(others, frames, channels), options.variation)
        return noise

    def sigmas(self) -> tuple[float, ...]:
        """Return the schedule of the run."""
        return sampling.schedule(self.settings.steps, self.settings.shift)

    def read_source(self, before: int = 0, after: int = 0) -> Iterator[Progress]:
        """Read and encode the source with `before` and `after` samples of silence around it.

        Returns (samples [2, n], latents [1, T, C]); T covers n, and what it covers beyond n is silence.
        """
        samples = np.pad(audio.read_wav(self.job.audio["source"]), ((0, 0), (before, after)))
        latents = []
        for number, total, tile in codec.encode_samples(self.pipe, samples):
            latents.append(tile)
            yield Progress("reading", number, total)
        return samples, codec.join(latents)

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
            takes.append(take)
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
        if not self.preview and levels.spectral_flatness(made) > NOISE_FLATNESS:
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
