"""The denoising loop: from noise to latents, over the pipeline's own components, one step at a time.

`denoise` is a generator, so that progress, cancel and everything that has to happen between two steps stand in one
place. On text2music it equals `AceStepPipeline.__call__` bit for bit in float32 (tests/engine/test_sampling.py). It
leaves the stock pipeline in three points, each on purpose:

- latents stay in float32 between the steps; only what the transformer reads is cast to its dtype;
- noise is drawn on the CPU in float32 from each take's own generator, SDE noise too: a seed means the same start on
  every device;
- an XL checkpoint gets the timbre token that its weights were trained with and diffusers 0.42.1 leaves out.

Shapes: B takes, T latent frames (25 a second), C latent channels (64 in the real model), L condition tokens.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

# Adaptive projected guidance as ACE-Step trains and ships it (APG, arXiv 2410.02416): momentum, eta 0, L2 threshold.
APG_MOMENTUM = -0.75
APG_THRESHOLD = 2.5
# The timbre encoder was trained on 30 s: 10 s from the front, the middle and the back of the reference.
REFERENCE_SECONDS = 30
MAX_TEXT_TOKENS = 256
MAX_LYRIC_TOKENS = 2048


@dataclass(frozen=True)
class Words:
    """What the text encoder reads; `seconds` is the real length, of which the prompt shows the whole seconds."""

    prompt: str
    lyrics: str
    language: str
    seconds: float
    instruction: str
    bpm: int | None = None
    key: str = ""
    time_signature: str = ""


@dataclass(frozen=True)
class Condition:
    """What the transformer is told: `states` [1, L, D] from the encoders, `context` [1, T, 2C]: source and mask."""

    states: torch.Tensor
    context: torch.Tensor


@dataclass(frozen=True)
class Run:
    """One run of the loop for B takes.

    `noise` [B, T, C] float32 on the CPU is the start; `generators` (one a take, those that drew the noise) go on to
    draw SDE noise. `sigmas` are the N shifted timesteps from 1 down, without the final 0. Guidance acts where the
    progress 1 - t lies within `cfg_start` to `cfg_end`.
    """

    condition: Condition
    noise: torch.Tensor
    generators: tuple[torch.Generator, ...]
    sigmas: tuple[float, ...]
    guidance: float
    cfg_start: float = 0.0
    cfg_end: float = 1.0
    sampler: str = "ode"


@dataclass(frozen=True)
class Step:
    """The state after step `index` (from 1) of `total`: `latents` [B, T, C] float32 on the pipeline's device."""

    index: int
    total: int
    latents: torch.Tensor


# --- the loop -----------------------------------------------------------------------------------------------------


def denoise(pipe: Any, run: Run) -> Iterator[Step]:
    """Yield the latents after each step of `run`; closing the generator ends the run between two steps."""
    import torch
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

    device = pipe._execution_device
    pipe.scheduler.set_timesteps(sigmas=list(run.sigmas), device=device)
    sigmas, total = pipe.scheduler.sigmas, len(run.sigmas)
    momentum = MomentumBuffer(momentum=APG_MOMENTUM)
    latents = run.noise.to(device)
    for index in range(total):
        t, t_next = sigmas[index], sigmas[index + 1]
        guided = run.guidance > 1.0 and run.cfg_start <= 1.0 - float(t) <= run.cfg_end
        with torch.no_grad():
            velocity = _velocity(pipe, run.condition, latents, float(t), run.guidance if guided else 1.0, momentum)
            if run.sampler == "sde":
                latents = _sde_step(latents, velocity, t, t_next, run.generators)
            else:
                latents = latents + (t_next - t) * velocity
        yield Step(index + 1, total, latents)


def _velocity(
    pipe: Any, condition: Condition, latents: torch.Tensor, t: float, guidance: float, momentum: Any
) -> torch.Tensor:
    """Return the model's velocity [B, T, C] in float32 at time `t`, guided by APG where `guidance` is over 1."""
    import torch
    from diffusers.guiders.adaptive_projected_guidance import normalized_guidance

    takes, dtype = latents.shape[0], pipe.transformer.dtype
    states = condition.states.expand(takes, -1, -1)
    context = condition.context.expand(takes, -1, -1)
    x = latents.to(dtype)
    if guidance > 1.0:
        null = pipe.condition_encoder.null_condition_emb.to(device=states.device, dtype=states.dtype)
        states = torch.cat([states, null.expand_as(states)])
        context = torch.cat([context, context])
        x = torch.cat([x, x])
    time = t * torch.ones((x.shape[0],), device=x.device, dtype=dtype)
    velocity = pipe.transformer(
        hidden_states=x,
        timestep=time,
        timestep_r=time,
        encoder_hidden_states=states,
        context_latents=context,
        return_dict=False,
    )[0]
    if guidance > 1.0:
        conditional, unconditional = velocity.chunk(2)
        velocity = normalized_guidance(
            pred_cond=conditional,
            pred_uncond=unconditional,
            guidance_scale=guidance - 1.0,
            momentum_buffer=momentum,
            eta=0.0,
            norm_threshold=APG_THRESHOLD,
            use_original_formulation=True,
            norm_dim=(1,),
        )
    return velocity.float()


def _sde_step(
    latents: torch.Tensor, velocity: torch.Tensor, t: torch.Tensor, t_next: torch.Tensor, generators: tuple
) -> torch.Tensor:
    """Step to the clean estimate and back up to `t_next` with fresh noise (upstream's SDE, next schedule value)."""
    clean = latents - t * velocity
    if float(t_next) == 0.0:
        return clean
    fresh = draw_noise(generators, latents.shape[1], latents.shape[2]).to(latents.device)
    return t_next * fresh + (1.0 - t_next) * clean


# --- what goes in -------------------------------------------------------------------------------------------------


def schedule(steps: int, shift: float) -> tuple[float, ...]:
    """Return the N timesteps from 1 down, t = 1 - i/N, shifted to s*t / (1 + (s - 1)*t); the final 0 is left out.

    Computed in float32 like the pipeline's own, whose values it equals.
    """
    import torch

    t = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float32)
    if shift != 1.0:
        t = shift * t / (1 + (shift - 1) * t)
    return tuple(t[:-1].tolist())


def frames_for(pipe: Any, seconds: float) -> int:
    """Return the latent frames that hold `seconds` of audio; the last one may reach past the end."""
    return math.ceil(seconds * pipe.latents_per_second)


def generators_for(seeds: tuple[int, ...]) -> tuple[torch.Generator, ...]:
    """Return one CPU generator a seed."""
    import torch

    return tuple(torch.Generator("cpu").manual_seed(seed) for seed in seeds)


def draw_noise(generators: tuple[torch.Generator, ...], frames: int, channels: int) -> torch.Tensor:
    """Return noise [B, frames, channels], float32 on the CPU, one draw from each take's generator."""
    import torch

    return torch.cat([torch.randn((1, frames, channels), generator=g, dtype=torch.float32) for g in generators])


def vary(noise: torch.Tensor, other: torch.Tensor, amount: float) -> torch.Tensor:
    """Turn `noise` towards `other` by a quarter circle times `amount` (0 to 1), which keeps its variance (retake)."""
    angle = amount * math.pi / 2
    return math.cos(angle) * noise + math.sin(angle) * other


def encode_condition(
    pipe: Any, words: Words, context: torch.Tensor, timbre: torch.Tensor | None = None, timbre_token: bool = True
) -> Condition:
    """Encode words and timbre for `context` [1, T, 2C].

    `timbre` [1, 750, C] are latents of a reference, None the model's own silence. `timbre_token` prepends the XL
    checkpoints' learned token; a 2B-shaped checkpoint has no use for it and ignores the switch.
    """
    import torch

    device, dtype = pipe._execution_device, pipe.transformer.dtype
    if timbre is None:
        timbre = silence(pipe, math.ceil(REFERENCE_SECONDS * pipe.latents_per_second))
    with torch.no_grad(), _timbre_token(pipe, timbre_token and is_xl(pipe)):
        text, text_mask, lyrics, lyrics_mask = pipe.encode_prompt(
            prompt=words.prompt,
            lyrics=words.lyrics,
            device=device,
            vocal_language=words.language,
            audio_duration=words.seconds,
            instruction=words.instruction,
            bpm=words.bpm,
            keyscale=words.key,
            timesignature=words.time_signature,
        )
        states, _ = pipe.condition_encoder(
            text_hidden_states=text,
            text_attention_mask=text_mask,
            lyric_hidden_states=lyrics,
            lyric_attention_mask=lyrics_mask,
            refer_audio_acoustic_hidden_states_packed=timbre.to(device=device, dtype=dtype),
            refer_audio_order_mask=torch.zeros(1, device=device, dtype=torch.long),
        )
    return Condition(states, context)


def is_xl(pipe: Any) -> bool:
    """Tell whether the checkpoint has XL's shape: a condition encoder narrower than the transformer it feeds."""
    config = pipe.transformer.config
    return config.encoder_hidden_size is not None and config.encoder_hidden_size != config.hidden_size


@contextlib.contextmanager
def _timbre_token(pipe: Any, wanted: bool):
    """Prepend the learned token to the timbre sequence, whose first position the encoder pools (upstream, XL)."""
    import torch

    encoder = pipe.condition_encoder.timbre_encoder

    def prepend(module, inputs, embedded):
        token = encoder.special_token.to(device=embedded.device, dtype=embedded.dtype)
        return torch.cat([token.expand(embedded.shape[0], -1, -1), embedded], dim=1)

    hook = encoder.embed_tokens.register_forward_hook(prepend) if wanted else None
    try:
        yield
    finally:
        if hook:
            hook.remove()


def silence(pipe: Any, frames: int) -> torch.Tensor:
    """Return the model's own silence [1, frames, C]; literal zeros are out of its distribution and drone."""
    latents = pipe.condition_encoder.silence_latent.to(device=pipe._execution_device, dtype=pipe.transformer.dtype)
    repeats = math.ceil(frames / latents.shape[1])
    return latents.repeat(1, repeats, 1)[:, :frames]


def silent_context(pipe: Any, frames: int) -> torch.Tensor:
    """Return the text2music context [1, frames, 2C]: silence as the source, 1 (make it) everywhere in the mask."""
    import torch

    source = silence(pipe, frames)
    return torch.cat([source, torch.ones_like(source)], dim=-1)


def fit_prompt(pipe: Any, words: Words) -> tuple[str, str]:
    """Return (kept, dropped): the longest start of the prompt, cut at a word, with which the metadata fits 256 tokens.

    The tokenizer cuts from the right, where BPM, key and length stand, so that a long prompt would silence them. A
    prompt without spaces is cut at a character.
    """
    if _prompt_tokens(pipe, words, words.prompt) <= MAX_TEXT_TOKENS:
        return words.prompt, ""
    ends = [i for i, c in enumerate(words.prompt) if c.isspace()] or list(range(len(words.prompt)))
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _prompt_tokens(pipe, words, words.prompt[: ends[middle - 1]]) <= MAX_TEXT_TOKENS
        low, high = (middle, high) if fits else (low, middle - 1)
    end = ends[low - 1] if low else 0
    return words.prompt[:end].rstrip(), words.prompt[end:].strip()


def _prompt_tokens(pipe: Any, words: Words, prompt: str) -> int:
    text, _ = pipe._format_prompt(
        prompt=prompt,
        audio_duration=words.seconds,
        instruction=words.instruction,
        bpm=words.bpm,
        keyscale=words.key,
        timesignature=words.time_signature,
    )
    return len(pipe.tokenizer(text).input_ids)


def lyric_tokens(pipe: Any, words: Words) -> int:
    """Count the tokens of the rendered lyrics; the model reads the first 2,048."""
    _, text = pipe._format_prompt(prompt="", lyrics=words.lyrics, vocal_language=words.language)
    return len(pipe.tokenizer(text).input_ids)


# --- audio in and out of latents ----------------------------------------------------------------------------------


def encode_audio(pipe: Any, samples: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield latents [1, t, C] of `samples` [2, n] (48 kHz), tile after tile; their concatenation is the whole.

    Takes the mode of the posterior: `latent_dist.sample()` would draw from the global generator. Tiles as the VAE's
    own tiling does, but stops between two of them.
    """
    import torch

    vae = pipe.vae
    size, overlap = vae.tile_sample_min_length, vae.tile_sample_overlap
    for start, end, left, right in _tiles(samples.shape[-1], size, overlap):
        tile = samples[None, :, start:end].to(device=pipe._execution_device, dtype=vae.dtype)
        with torch.no_grad():
            latents = vae.encode(tile).latent_dist.mode()
        frames = latents.shape[-1]
        hop = (end - start) / frames
        latents = latents[:, :, round(left / hop) : frames - round(right / hop)]
        yield latents.transpose(1, 2).to(pipe.transformer.dtype)


def decode_latents(pipe: Any, latents: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (tile, tiles, samples [2, n] float32 on the CPU) for `latents` [1, T, C]; joined they are the whole song.

    The tiles are those of the VAE's own tiling, which is exact to 4e-7 here, decoded one by one so that a cancelled
    song stops between two of them and memory does not grow with its length.
    """
    import torch

    vae = pipe.vae
    z = latents.transpose(1, 2).to(vae.dtype)
    tiles = _tiles(z.shape[-1], vae.tile_latent_min_length, vae.tile_latent_overlap)
    for number, (start, end, left, right) in enumerate(tiles, 1):
        with torch.no_grad():
            audio = vae.decode(z[:, :, start:end]).sample[0]
        hop = audio.shape[-1] / (end - start)
        audio = audio[:, round(left * hop) : audio.shape[-1] - round(right * hop)]
        yield number, len(tiles), audio.float().cpu()


def _tiles(length: int, size: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Return (start, end, left, right) windows over `length`, of which `left` and `right` are overlap to drop."""
    if length <= size:
        return [(0, length, 0, 0)]
    stride = size - 2 * overlap
    windows = []
    for core in range(0, length, stride):
        core_end = min(core + stride, length)
        start, end = max(0, core - overlap), min(length, core_end + overlap)
        windows.append((start, end, core - start, end - core_end))
    return windows


def reference_latents(pipe: Any, samples: np.ndarray) -> torch.Tensor:
    """Return timbre latents [1, 750, C] of a reference [2, n] at 48 kHz, repeated where it is shorter than 30 s.

    Three slices of 10 s, at the front, a third in and the back, at fixed places (diffusers; upstream draws them).
    """
    import torch

    samples, rate = torch.from_numpy(samples), pipe.sample_rate
    whole = REFERENCE_SECONDS * rate
    if samples.shape[-1] < whole:
        samples = samples.repeat(1, math.ceil(whole / samples.shape[-1]))
    length, slice_ = samples.shape[-1], 10 * rate
    starts = (0, length // 3, length - slice_)
    samples = torch.cat([samples[:, start : start + slice_] for start in starts], dim=-1)
    return torch.cat(list(encode_audio(pipe, samples)), dim=1)
