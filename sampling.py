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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
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
    """What the transformer is told: `states` [1, L, D] of the encoders, and `context` [1 or B, T, 2C]: source, mask."""

    states: torch.Tensor
    context: torch.Tensor


@dataclass(frozen=True)
class Switch:
    """From step `step` (from 0) on, `condition` takes the place of the run's own (upstream's cover strength)."""

    step: int
    condition: Condition


@dataclass(frozen=True)
class Keep:
    """Hold a source outside a region: after each of the first `steps` steps, latents where `new` is False are put back.

    They are put back as the source would be at that time: t * noise + (1 - t) * clean, with the run's initial noise
    (upstream's repaint injection). `new` [1, T, 1] bool, `clean` [1, T, C].
    """

    new: torch.Tensor
    clean: torch.Tensor
    steps: int


@dataclass(frozen=True)
class Morph:
    """Flow edit (upstream, v0.1.8): move `clean` [1, T, C] by the difference of two velocities.

    The first `first` steps are skipped, up to step `last` source and target run side by side, averaged over `averages`
    draws of noise; the rest is the target's alone. `source` is what the source is said to be.
    """

    source: Condition
    clean: torch.Tensor
    first: int
    last: int
    averages: int


@dataclass(frozen=True)
class Run:
    """One run of the loop for B takes.

    `start` [B, T, C] float32 is the noise it starts from (a morph starts from its clean source instead);
    `generators` (one a take, those that drew the noise) go on to draw what noise is needed later. `sigmas` are the N
    shifted timesteps from 1 down, without the final 0. Guidance acts where the progress 1 - t lies within `cfg_start`
    to `cfg_end`.
    """

    condition: Condition
    start: torch.Tensor
    generators: tuple[torch.Generator, ...]
    sigmas: tuple[float, ...]
    guidance: float
    cfg_start: float = 0.0
    cfg_end: float = 1.0
    sampler: str = "ode"
    switch: Switch | None = None
    keep: Keep | None = None
    morph: Morph | None = None


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
    momentum, source_momentum = MomentumBuffer(momentum=APG_MOMENTUM), MomentumBuffer(momentum=APG_MOMENTUM)
    start = latents = run.start.to(device)
    for index in range(total):
        t, t_next = sigmas[index], sigmas[index + 1]
        guided = run.guidance > 1.0 and run.cfg_start <= 1.0 - float(t) <= run.cfg_end
        guidance = run.guidance if guided else 1.0
        condition = run.switch.condition if run.switch and index >= run.switch.step else run.condition
        with torch.no_grad():
            if run.morph and index < run.morph.last:
                if index >= run.morph.first:
                    change = _morph_velocity(pipe, run, latents, t, guidance, momentum, source_momentum)
                    latents = latents + (t_next - t) * change
            else:
                if run.morph and index == run.morph.last:
                    latents = _leave_source(run, latents, t)
                velocity = _velocity(pipe, condition, latents, float(t), guidance, momentum)
                if run.sampler == "sde":
                    latents = _sde_step(latents, velocity, t, t_next, run.generators)
                else:
                    latents = latents + (t_next - t) * velocity
            if run.keep and index < run.keep.steps:
                source = t_next * start + (1.0 - t_next) * run.keep.clean.float()
                latents = torch.where(run.keep.new, latents, source)
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


def _morph_velocity(
    pipe: Any, run: Run, latents: torch.Tensor, t: torch.Tensor, guidance: float, momentum: Any, source_momentum: Any
) -> torch.Tensor:
    """Return the mean over the draws of (target velocity - source velocity), each at its own noisy place [B, T, C].

    Every draw starts from the same two momentum buffers; afterwards they advance once, by the mean.
    """
    clean = run.morph.clean.float()
    target_before, source_before = momentum.running_average, source_momentum.running_average
    change, target_after, source_after = 0.0, 0.0, 0.0
    for _ in range(run.morph.averages):
        momentum.running_average, source_momentum.running_average = target_before, source_before
        noise = draw_noise(run.generators, latents.shape[1], latents.shape[2]).to(latents.device)
        noisy_source = (1.0 - t) * clean + t * noise
        noisy_target = noisy_source + (latents - clean)
        source = _velocity(pipe, run.morph.source, noisy_source, float(t), guidance, source_momentum)
        target = _velocity(pipe, run.condition, noisy_target, float(t), guidance, momentum)
        change = change + (target - source) / run.morph.averages
        target_after = target_after + momentum.running_average / run.morph.averages
        source_after = source_after + source_momentum.running_average / run.morph.averages
    momentum.running_average, source_momentum.running_average = target_after, source_after
    return change


def _leave_source(run: Run, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the edited latents made noisy once more, from where the target goes on alone."""
    clean = run.morph.clean.float()
    noise = draw_noise(run.generators, latents.shape[1], latents.shape[2]).to(latents.device)
    return (1.0 - t) * clean + t * noise + (latents - clean)


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


def context_of(source: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return the context [1, T, 2C] of `source` [1, T, C] with 1 in the mask where `new` [1, T, 1] is True."""
    import torch

    return torch.cat([source, new.to(source.dtype).expand_as(source)], dim=-1)


def masked_context(pipe: Any, source: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return the repaint context: the source with silence in the region, 1 in the mask there, 0 elsewhere."""
    import torch

    return context_of(torch.where(new, silence(pipe, source.shape[1]), source), new)


def cover_context(pipe: Any, clean: torch.Tensor) -> torch.Tensor:
    """Return the cover context: `clean` [1, T, C] through the 5 Hz audio codes and back, 1 everywhere in the mask."""
    import torch

    with torch.no_grad():
        codes, _ = pipe.audio_tokenizer.tokenize(clean, silence(pipe, clean.shape[1]))
        source = pipe.audio_token_detokenizer(codes.to(clean.dtype))[:, : clean.shape[1]]
    return torch.cat([source, torch.ones_like(source)], dim=-1)


def has_audio_codes(pipe: Any) -> bool:
    """Tell whether the checkpoint came with the two parts that make audio codes and read them."""
    return pipe.audio_tokenizer is not None and pipe.audio_token_detokenizer is not None


def codes_context(pipe: Any, codes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the context [B, 5N, 2C] of each take's N audio codes (5 a second), 1 everywhere in the mask."""
    import torch

    device, dtype = pipe._execution_device, pipe.transformer.dtype
    # One quantizer reads the codes; a checkpoint with more gets zeros for the others, as in the pipeline.
    quantizers = pipe.audio_tokenizer.config.fsq_input_num_quantizers
    indices = torch.tensor(codes, dtype=torch.long, device=device)[..., None]
    indices = torch.nn.functional.pad(indices, (0, quantizers - 1))
    with torch.no_grad():
        quantized = pipe.audio_tokenizer.quantizer.get_output_from_indices(indices).to(dtype)
        source = pipe.audio_token_detokenizer(quantized).to(dtype)
    return torch.cat([source, torch.ones_like(source)], dim=-1)


def audio_codes(pipe: Any, clean: torch.Tensor) -> list[int]:
    """Return the audio codes, 5 a second, of latents `clean` [1, T, C]."""
    import torch

    with torch.no_grad():
        _, indices = pipe.audio_tokenizer.tokenize(clean, silence(pipe, clean.shape[1]))
    return indices[0, :, 0].tolist()


def region(pipe: Any, clean: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
    """Return a bool mask [1, T, 1], True on each frame that a span (start, end) in samples touches."""
    import torch

    hop = pipe.sample_rate / pipe.latents_per_second
    mask = torch.zeros((1, clean.shape[1], 1), dtype=torch.bool, device=clean.device)
    for start, end in spans:
        mask[:, math.floor(start / hop) : math.ceil(end / hop)] = True
    return mask


def from_nearest(sigmas: tuple[float, ...], level: float) -> tuple[float, ...]:
    """Return the rest of the schedule from the entry nearest to `level` (0 to 1) on."""
    first = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - level))
    return sigmas[first:]


def noised(clean: torch.Tensor, noise: torch.Tensor, t: float) -> torch.Tensor:
    """Return `clean` [1, T, C] as it is at time `t` of the flow, for each take's `noise` [B, T, C]."""
    return t * noise.to(clean.device) + (1.0 - t) * clean.float()


def blend(latents: torch.Tensor, clean: torch.Tensor, new: torch.Tensor, frames: int) -> torch.Tensor:
    """Put `clean` back outside `new`, with linear ramps of `frames` frames that reach into the kept side.

    Without frames the latents stay as they are (upstream's aggressive mode).
    """
    import torch

    if not frames:
        return latents
    count = clean.shape[1]
    inside = new[0, :, 0].nonzero()[:, 0]
    distance = (torch.arange(count, device=clean.device)[:, None] - inside[None]).abs().amin(dim=1)
    weight = (1.0 - distance / (frames + 1)).clamp(min=0.0)[None, :, None]
    return weight * latents + (1.0 - weight) * clean.float()


def fit_prompt(pipe: Any, words: Words) -> tuple[str, str]:
    """Return (kept, dropped): the longest start of the prompt, cut at a word, with which the metadata fits 256 tokens.

    The tokenizer cuts from the right, where BPM, key and length stand, so that a long prompt would silence them. A
    prompt without spaces is cut at a character.
    """
    if prompt_tokens(pipe, words, words.prompt) <= MAX_TEXT_TOKENS:
        return words.prompt, ""
    ends = [i for i, c in enumerate(words.prompt) if c.isspace()] or list(range(len(words.prompt)))
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        fits = prompt_tokens(pipe, words, words.prompt[: ends[middle - 1]]) <= MAX_TEXT_TOKENS
        low, high = (middle, high) if fits else (low, middle - 1)
    end = ends[low - 1] if low else 0
    return words.prompt[:end].rstrip(), words.prompt[end:].strip()


def prompt_tokens(pipe: Any, words: Words, prompt: str) -> int:
    """Count the tokens of the rendered prompt, metadata included, with `prompt` in the place of the words' own."""
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


def encode_samples(pipe: Any, samples: np.ndarray) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (tile, tiles, latents [1, t, C]) of `samples` [2, n] (48 kHz); joined they cover n, padded with silence.

    Takes the mode of the posterior: `latent_dist.sample()` would draw from the global generator. Tiles as the VAE's
    own tiling does, but stops between two of them.
    """
    import torch

    vae = pipe.vae
    padding = -samples.shape[-1] % int(pipe.sample_rate / pipe.latents_per_second)
    waveform = torch.nn.functional.pad(torch.from_numpy(samples), (0, padding))
    tiles = _tiles(waveform.shape[-1], vae.tile_sample_min_length, vae.tile_sample_overlap)
    for number, (start, end, left, right) in enumerate(tiles, 1):
        tile = waveform[None, :, start:end].to(device=pipe._execution_device, dtype=vae.dtype)
        with torch.no_grad():
            latents = vae.encode(tile).latent_dist.mode()
        frames = latents.shape[-1]
        hop = (end - start) / frames
        latents = latents[:, :, round(left / hop) : frames - round(right / hop)]
        yield number, len(tiles), latents.transpose(1, 2).to(pipe.transformer.dtype)


def join(latents: list[torch.Tensor]) -> torch.Tensor:
    """Return tiles [1, t, C] as one [1, T, C]."""
    import torch

    return torch.cat(latents, dim=1)


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
    rate = pipe.sample_rate
    whole, slice_ = REFERENCE_SECONDS * rate, 10 * rate
    if samples.shape[-1] < whole:
        samples = np.tile(samples, (1, math.ceil(whole / samples.shape[-1])))
    length = samples.shape[-1]
    starts = (0, length // 3, length - slice_)
    samples = np.concatenate([samples[:, start : start + slice_] for start in starts], axis=1)
    return join([latents for _, _, latents in encode_samples(pipe, samples)])
