"""The denoising loop: from noise to latents with the pipeline's own components, one step at a time.

On text2music it equals `AceStepPipeline.__call__` in float32: bit for bit up to 256 tokens (20 s),
to 1e-5 beyond, where attention works in windows. It differs from it on purpose in three points:
latents stay in float32 between steps; each take's generator draws all of its noise on the CPU in
float32, so that a seed means the same on every device; and an XL checkpoint gets the timbre token
that it was trained with (`song_conditions.encode_condition`).

Shapes: B takes, T latent frames (25 a second), C latent channels (64 in the real model), L
condition tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import song_attention
from song_conditions import Condition

if TYPE_CHECKING:
    import torch

# Adaptive projected guidance as ACE-Step ships it (APG, arXiv 2410.02416), with eta 0; the
# threshold is an L2 norm.
APG_MOMENTUM = -0.75
APG_THRESHOLD = 2.5


@dataclass(frozen=True)
class Keep:
    """Restore a source outside a region after each of the first `steps` steps (upstream's repaint injection)."""

    new: torch.Tensor  # [1, T, 1] bool, True in the region
    # [1, T, C]; outside, latents become t * noise + (1 - t) * clean, with the run's initial noise
    clean: torch.Tensor
    steps: int
    frames: int = 0  # length of the ramps of the final `blend`


@dataclass(frozen=True)
class Morph:
    """Flow edit (upstream, v0.1.8): move `clean` [1, T, C] by the difference of two velocities."""

    source: Condition  # describes the source
    clean: torch.Tensor
    first: int  # the step at which it begins; earlier ones are skipped
    last: int  # the step from which only the target's velocity counts
    averages: int  # draws of noise per step


@dataclass(frozen=True)
class Denoising:
    """One run of the loop for B takes."""

    condition: Condition
    start: torch.Tensor  # [B, T, C] float32, the initial noise; for a morph the clean source
    # one per take; they drew `start` and draw any later noise
    generators: tuple[torch.Generator, ...]
    sigmas: tuple[float, ...]  # the N shifted timesteps from 1 down, without the final 0
    guidance: float
    cfg_start: float = (
        0.0  # guidance acts while the progress 1 - t is from `cfg_start` to `cfg_end`
    )
    cfg_end: float = 1.0
    sampler: str = "ode"
    # the step (from 0) at which another condition replaces the first
    switch: tuple[int, Condition] | None = None
    keep: Keep | None = None
    morph: Morph | None = None


class Step(NamedTuple):
    """The latents [B, T, C] after a step, and the song that they are expected to become; float32, on the device."""

    latents: torch.Tensor
    clean: torch.Tensor


def denoise(pipe: Any, loop: Denoising) -> Iterator[Step]:
    """Yield what each step makes; closing it ends the run."""
    import torch

    device = pipe._execution_device
    morph = loop.morph
    keep = loop.keep
    pipe.scheduler.set_timesteps(sigmas=list(loop.sigmas), device=device)
    sigmas = pipe.scheduler.sigmas
    # As Python floats: reading the device's tensor in every step would synchronise.
    times = sigmas.tolist()
    start = loop.start.to(device)
    latents = start
    model = _Model(pipe, loop.condition, len(start))
    source = _Model(pipe, morph.source, len(start)) if morph else None
    for index in range(len(loop.sigmas)):
        t = sigmas[index]
        t_next = sigmas[index + 1]
        guided = loop.guidance > 1.0 and loop.cfg_start <= 1.0 - times[index] <= loop.cfg_end
        guidance = loop.guidance if guided else 1.0
        if loop.switch and index == loop.switch[0]:
            model = _Model(pipe, loop.switch[1], len(start), model.momentum)
        with torch.no_grad():
            if morph and source and index < morph.last:
                if index >= morph.first:
                    change = _morph_velocity(model, source, morph, loop, latents, t, guidance)
                    latents = latents + (t_next - t) * change
                clean = latents
            else:
                if morph and index == morph.last:
                    noisy = noised(morph.clean, _fresh_noise(loop, latents), t)
                    latents = noisy + (latents - morph.clean)
                velocity = model.velocity(latents, t, guidance)
                clean = latents - t * velocity
                if loop.sampler == "sde" and times[index + 1] > 0.0:
                    # To the clean estimate, then fresh noise up to the next time (upstream's SDE).
                    latents = noised(clean, _fresh_noise(loop, latents), t_next)
                else:
                    latents = latents + (t_next - t) * velocity
            if keep and index < keep.steps:
                latents = torch.where(keep.new, latents, noised(keep.clean, start, t_next))
                clean = torch.where(keep.new, clean, keep.clean.float())
        yield Step(latents, clean)


OUTLINE_PARTS = 100
EVEN = 1e-4  # parts that differ by no more than this share are equally strong


def outline(clean: torch.Tensor) -> tuple[int, ...]:
    """Return how strong 100 equal parts of a song [1, T, C] are, from 0 for the weakest to 100; () if it is not finite.

    Only decoding tells how loud a song is. The norm of a frame rises and falls with it, at a
    thousandth of the cost: on the built-in engine songs that have quiet and loud parts correlate by
    0.5 to 0.7. It counts within the song alone.
    """
    norms = clean[0].norm(dim=-1).cpu().numpy().astype(np.float64)
    ends = np.linspace(0, len(norms), OUTLINE_PARTS + 1)
    # The area under the norms up to each frame, so that a part may end within a frame.
    area = np.interp(ends, np.arange(len(norms) + 1), np.concatenate([[0.0], np.cumsum(norms)]))
    parts = np.diff(area)
    if not np.isfinite(parts).all():
        return ()
    low = parts.min()
    high = parts.max()
    if high - low < EVEN * high:
        return (0,) * OUTLINE_PARTS
    return tuple(int(share) for share in np.rint(100 * (parts - low) / (high - low)))


class _Model:
    """The transformer under one condition, with the memory of its guidance."""

    def __init__(self, pipe: Any, condition: Condition, takes: int, momentum: Any = None):
        from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

        states = condition.states
        null = pipe.condition_encoder.null_condition_emb
        null = null.to(device=states.device, dtype=states.dtype)
        self._transformer = pipe.transformer
        self._takes = takes
        self._condition = song_attention.CachedCondition(states, null, takes)
        # Twice: for guidance's conditional and unconditional rows.
        self._context = condition.context.expand(takes, -1, -1).repeat(2, 1, 1)
        self.momentum = momentum or MomentumBuffer(momentum=APG_MOMENTUM)

    def velocity(self, latents: torch.Tensor, t: torch.Tensor, guidance: float) -> torch.Tensor:
        """Return the velocity [B, T, C] in float32 at time `t`, guided by APG if `guidance` is over 1."""
        from diffusers.guiders.adaptive_projected_guidance import normalized_guidance

        halves = 2 if guidance > 1.0 else 1
        dtype = self._transformer.dtype
        time = t.to(dtype).expand(halves * self._takes)
        velocity = self._transformer(
            hidden_states=latents.to(dtype).repeat(halves, 1, 1),
            timestep=time,
            timestep_r=time,
            encoder_hidden_states=self._condition,
            context_latents=self._context[: len(time)],
            return_dict=False,
        )[0]
        if halves == 1:
            return velocity.float()
        conditional, unconditional = velocity.chunk(2)
        return normalized_guidance(
            pred_cond=conditional,
            pred_uncond=unconditional,
            guidance_scale=guidance - 1.0,
            momentum_buffer=self.momentum,
            eta=0.0,
            norm_threshold=APG_THRESHOLD,
            use_original_formulation=True,
            norm_dim=(1,),
        ).float()


def _morph_velocity(
    model: _Model,
    source: _Model,
    morph: Morph,
    loop: Denoising,
    latents: torch.Tensor,
    t: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """Return target velocity minus source velocity [B, T, C], each at its own noisy point, averaged over the draws.

    Every draw starts from the same two momentum buffers, which then advance once, by the mean.
    """
    clean = morph.clean
    draws = morph.averages
    change = 0.0
    model_before = model.momentum.running_average
    source_before = source.momentum.running_average
    model_mean = 0.0
    source_mean = 0.0
    for _ in range(draws):
        noisy = noised(clean, _fresh_noise(loop, latents), t)
        model.momentum.running_average = model_before
        source.momentum.running_average = source_before
        source_velocity = source.velocity(noisy, t, guidance)
        target_velocity = model.velocity(noisy + (latents - clean), t, guidance)
        change = change + (target_velocity - source_velocity) / draws
        model_mean = model_mean + model.momentum.running_average / draws
        source_mean = source_mean + source.momentum.running_average / draws
    model.momentum.running_average = model_mean
    source.momentum.running_average = source_mean
    return change


def _fresh_noise(loop: Denoising, latents: torch.Tensor) -> torch.Tensor:
    return draw_noise(loop.generators, *latents.shape[1:]).to(latents.device)


def schedule(steps: int, shift: float) -> tuple[float, ...]:
    """Return the N timesteps t = 1 - i/N, shifted to s*t / (1 + (s - 1)*t), without the final 0."""
    import torch

    t = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float32)  # float32, to equal the pipeline's
    if shift != 1.0:
        t = shift * t / (1 + (shift - 1) * t)
    return tuple(t[:-1].tolist())


def generators_for(seeds: tuple[int, ...]) -> tuple[torch.Generator, ...]:
    import torch

    return tuple(torch.Generator("cpu").manual_seed(seed) for seed in seeds)


def draw_noise(generators: tuple[torch.Generator, ...], frames: int, channels: int) -> torch.Tensor:
    """Return noise [B, frames, channels], float32 on the CPU, one row from each take's generator."""
    import torch

    rows = []
    for generator in generators:
        rows.append(torch.randn((1, frames, channels), generator=generator, dtype=torch.float32))
    return torch.cat(rows)


def vary(noise: torch.Tensor, other: torch.Tensor, amount: float) -> torch.Tensor:
    """Rotate `noise` towards `other` by `amount` (0 to 1) of a quarter circle, which keeps its variance."""
    angle = amount * math.pi / 2
    return math.cos(angle) * noise + math.sin(angle) * other


def region(pipe: Any, clean: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
    """Return a bool mask [1, T, 1], True for each frame that a span (start, end) in samples touches."""
    import torch

    hop = pipe.sample_rate / pipe.latents_per_second
    mask = torch.zeros((1, clean.shape[1], 1), dtype=torch.bool, device=clean.device)
    for start, end in spans:
        mask[:, math.floor(start / hop) : math.ceil(end / hop)] = True
    return mask


def noised(clean: torch.Tensor, noise: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """Return `clean` [1 or B, T, C] at time `t` of the flow, for each take's `noise` [B, T, C]."""
    return t * noise.to(clean.device) + (1.0 - t) * clean.float()


def blend(latents: torch.Tensor, keep: Keep) -> torch.Tensor:
    """Restore the source outside the region of `keep`, with linear ramps of its `frames` on the kept side."""
    import torch

    if not keep.frames:  # upstream's aggressive mode
        return latents
    places = torch.arange(latents.shape[1])
    inside = keep.new[0, :, 0].cpu().nonzero()[:, 0]
    # The region's nearest frames, at or before each place and after it.
    index_after = torch.searchsorted(inside, places, right=True)
    before = inside[(index_after - 1).clamp(min=0)]
    after = inside[index_after.clamp(max=len(inside) - 1)]
    distance = torch.minimum((places - before).abs(), (after - places).abs())
    weight = (1.0 - distance / (keep.frames + 1)).clamp(min=0.0)
    weight = weight[None, :, None].to(latents.device)
    return weight * latents + (1.0 - weight) * keep.clean.float()
