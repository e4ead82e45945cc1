"""The built-in engine's decoder and encoder: latents to the sampler's sound and back, small enough to learn on a CPU.

Both work on the coefficients of a fixed filter bank (an MDCT of 60 bands, 800 frames a second, middle and side) instead
of samples, channels last [B, T, C], every layer one matrix product. `oobleck` writes them into diffusers'
AutoencoderOobleck exactly: the bank becomes its outermost strided layers, and what the class has beyond that is idle
(residual units of gain 0, snakes that are straight lines, convolutions of a single tap).

The decoder starts with tone wheels: at 100 Hz a pair of channels for each tempered partial turns by its own frequency
and decays, and the next layer plays it. So phases need not be discovered, which is what stopped every network that
started from noise over 200 Hz.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from limits import SAMPLE_RATE
from training.band_score import DRUMS, ROLES, TICK, compose
from training.band_sounds import MIX_GAIN, PANS, STEMS, drum, note
from training.engine_latents import (
    BASS,
    CHORDS,
    FRAME_TICKS,
    HITS,
    LATENTS,
    LEAD,
    MOMENT,
    PLAYER_NUMBERS,
    PLAYERS,
    Events,
    events_of,
    latents_of,
    random_events,
    window,
)

BANDS = 60
SIDE_BANDS = 36
COEFFICIENTS = BANDS + SIDE_BANDS
TICK_FRAMES = TICK // BANDS
GAIN = 0.8
"""The level of training targets; `oobleck` brings it to the mix's."""
TAIL_TICKS = 48
"""How long before a crop a sound may have begun that is still heard in it."""

FIRST_TRAINING_SEED = 10_000_000
PIECES = 600
PIECE_SECONDS = 20.0


# --- targets ------------------------------------------------------------------------------------------------------


@functools.cache
def bank() -> np.ndarray:
    """Return the windowed cosine basis [60, 120] of the MDCT (Princen and Bradley 1987)."""
    n = np.arange(2 * BANDS)
    k = np.arange(BANDS)
    shape = np.sin(np.pi / (2 * BANDS) * (n + 0.5))
    phase = np.pi / BANDS * (n[None] + 0.5 + BANDS / 2) * (k[:, None] + 0.5)
    return (shape * np.cos(phase) * (2 / BANDS) ** 0.5).astype(np.float32)


def coefficients(samples: np.ndarray) -> np.ndarray:
    """Return the coefficients [n / 60, 96] of samples [2, n]: the middle's 60, then the side's lowest 36."""
    parts = np.stack([samples[0] + samples[1], samples[0] - samples[1]]) * 2**-0.5
    blocks = np.pad(parts, ((0, 0), (BANDS // 2, BANDS // 2))).reshape(2, -1, BANDS)
    middle, side = np.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=2) @ bank().T
    return np.concatenate([middle, side[:, :SIDE_BANDS]], axis=1)


@functools.cache
def _pattern(name: str, *which: Any) -> np.ndarray:
    """Return the coefficients of a one-shot, from one tick before its onset."""
    sound = drum(*which) if name in DRUMS else note(name, *which)
    length = -(-len(sound) // TICK) * TICK + TICK
    samples = np.zeros((2, TICK + length), np.float32)
    for channel, gain in zip(samples, PANS[name], strict=True):
        channel[TICK : TICK + len(sound)] = sound * gain
    return coefficients(samples)


def target_of(events: Events, ticks: int) -> np.ndarray:
    """Return the coefficients [8 * ticks, 96] of the first `ticks` of events as they sound."""
    out = np.zeros((TICK_FRAMES * ticks + 480, COEFFICIENTS), np.float32)

    def strike(pattern: np.ndarray, tick: int, level: int) -> None:
        start = TICK_FRAMES * (tick - 1)
        skipped = max(0, -start)
        out[start + skipped : start + len(pattern)] += pattern[skipped:] * (level / 2)

    for role in ROLES:
        for tick, pitch, level in events.notes[role]:
            if tick < ticks:
                strike(_pattern(role, events.instruments[role], int(pitch)), int(tick), level)
    for tick, number, level in events.hits:
        if tick < ticks:
            strike(_pattern(DRUMS[number], events.kit, DRUMS[number]), int(tick), level)
    return out[: TICK_FRAMES * ticks] * GAIN


def crop(
    events: Events, start: int, frames: int, stems: Sequence[str] = STEMS
) -> tuple[np.ndarray, np.ndarray, Events]:
    """Return latents and coefficients of `frames` from tick `start`, with what sounded just before, and its events."""
    ticks = TAIL_TICKS + FRAME_TICKS * frames
    inside = window(events, start - TAIL_TICKS, start - TAIL_TICKS + ticks, stems)
    latents = latents_of(inside, ticks)
    truth = target_of(inside, ticks)
    return latents[TAIL_TICKS // FRAME_TICKS :], truth[TAIL_TICKS * TICK_FRAMES :], inside


@functools.cache
def piece(seed: int) -> Events:
    """Return the events of a piece of 20 s."""
    return events_of(compose(seed, seconds=PIECE_SECONDS))


@functools.cache
def usual_sizes() -> torch.Tensor:
    """Return the root mean square [96] of the coefficients of random events, the faint ones floored at -45 dB."""
    rng = np.random.default_rng(99)
    drawn = [target_of(random_events(rng, 240), 240) for _ in range(16)]
    size = torch.from_numpy(np.stack(drawn)).square().mean((0, 1)).sqrt()
    return size.clamp(min=float(size.max()) * 10 ** (-45 / 20))


# --- layers -------------------------------------------------------------------------------------------------------


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return x @ weight in float32; autocast computes it in bfloat16 where that is on."""
    return (x @ weight).float()


def _halved(x: torch.Tensor) -> torch.Tensor:
    """Return x in autocast's type: cast before its taps are copied, it is copied faster."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class _SnakeFunction(torch.autograd.Function):
    """x + sin(e^alpha x)^2 / e^beta, its gradient by hand."""

    @staticmethod
    def forward(ctx, x, alpha, beta):
        a = alpha.exp()
        b = beta.exp().reciprocal()
        sine = (x * a).sin_()
        ctx.save_for_backward(x, sine, a, b)
        return torch.addcmul(x, sine.square(), b)

    @staticmethod
    def backward(ctx, grad):
        x, sine, a, b = ctx.saved_tensors
        slope = (x * a).cos_().mul_(sine).mul_(2 * a * b)
        by_alpha = (grad * slope * x).flatten(0, -2).sum(0)
        by_beta = -(grad * sine.square()).flatten(0, -2).sum(0) * b
        return grad + grad * slope, by_alpha, by_beta


class Snake(nn.Module):
    """Oobleck's activation."""

    def __init__(self, width: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _SnakeFunction.apply(x, self.alpha, self.beta)


class Conv(nn.Module):
    """A convolution that keeps the length; the weight is [kernel * inputs, outputs], taps outermost."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, dilation: int = 1, gain: float = 1.0
    ):
        super().__init__()
        self.inputs = inputs
        self.kernel = kernel
        self.dilation = dilation
        self.weight = nn.Parameter(
            torch.randn(kernel * inputs, outputs) * gain * (kernel * inputs) ** -0.5
        )
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernel == 1:
            return product(x, self.weight) + self.bias
        frames = x.shape[1]
        step = self.dilation
        reach = (self.kernel - 1) * step // 2
        padded = functional.pad(_halved(x), (0, 0, reach, reach))
        taps = [padded[:, number * step : number * step + frames] for number in range(self.kernel)]
        return product(torch.cat(taps, dim=2), self.weight) + self.bias

    def class_weight(self) -> torch.Tensor:
        """Return the weight as nn.Conv1d has it."""
        return (
            self.weight.detach().reshape(self.kernel, self.inputs, -1).permute(2, 1, 0).contiguous()
        )


class Down(nn.Module):
    """Stride s, kernel 2 s, padding s / 2; the weight is [2 * s * inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.inputs = inputs
        self.stride = stride
        self.weight = nn.Parameter(
            torch.randn(2 * stride * inputs, outputs) * (2 * stride * inputs) ** -0.5
        )
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, frames, channels = x.shape
        padded = functional.pad(x, (0, 0, self.stride // 2, self.stride // 2))
        blocks = padded.reshape(batch, frames // self.stride + 1, self.stride * channels)
        return product(torch.cat([blocks[:, :-1], blocks[:, 1:]], dim=2), self.weight) + self.bias

    def class_weight(self) -> torch.Tensor:
        """Return the weight as nn.Conv1d has it."""
        return (
            self.weight.detach()
            .reshape(2 * self.stride, self.inputs, -1)
            .permute(2, 1, 0)
            .contiguous()
        )


class Up(nn.Module):
    """The transpose of Down; the weight is [inputs, 2 * s * outputs]."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.outputs = outputs
        self.stride = stride
        self.weight = nn.Parameter(torch.randn(inputs, 2 * stride * outputs) * (2 * inputs) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, frames, _ = x.shape
        halves = product(x, self.weight).reshape(batch, frames, 2, self.stride * self.outputs)
        blocks = functional.pad(halves[:, :, 0], (0, 0, 0, 1)) + functional.pad(
            halves[:, :, 1], (0, 0, 1, 0)
        )
        out = blocks.reshape(batch, (frames + 1) * self.stride, self.outputs)
        return out[:, self.stride // 2 : self.stride // 2 + frames * self.stride] + self.bias

    def class_weight(self) -> torch.Tensor:
        """Return the weight as nn.ConvTranspose1d has it."""
        return (
            self.weight.detach()
            .reshape(-1, 2 * self.stride, self.outputs)
            .permute(0, 2, 1)
            .contiguous()
        )


class Unit(nn.Module):
    """Oobleck's residual unit."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.snake1 = Snake(width)
        self.snake2 = Snake(width)
        self.conv1 = Conv(width, width, 7, dilation)
        self.conv2 = Conv(width, width, 1, gain=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class Decoder(nn.Module):
    """Latents [B, T, 32] to coefficients [B, 32 T, 96], each in units of its scale."""

    def __init__(self, w25: int = 384, w100: int = 288):
        super().__init__()
        self.inp = Conv(LATENTS, w25, 7)
        self.sn1 = Snake(w25)
        self.up4 = Up(w25, w100, 4)
        self.u100 = nn.ModuleList([Unit(w100, dilation) for dilation in (1, 3, 9)])
        self.sn2 = Snake(w100)
        self.up8 = Up(w100, COEFFICIENTS, 8)
        self.u800 = nn.ModuleList([Unit(COEFFICIENTS, 1)])
        self.sn3 = Snake(COEFFICIENTS)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        x = self.up4(self.sn1(self.inp(latents)))
        for unit in self.u100:
            x = unit(x)
        x = self.up8(self.sn2(x))
        for unit in self.u800:
            x = unit(x)
        return self.sn3(x)


class Encoder(nn.Module):
    """Coefficients [B, 32 T, 96], each in units of its scale, to latents [B, T, 32] in units of theirs."""

    def __init__(self, w800: int = 128, w100: int = 384, w25: int = 512):
        super().__init__()
        self.w800 = w800
        self.u800 = nn.ModuleList([Unit(w800, 1)])
        self.sn1 = Snake(w800)
        self.down8 = Down(w800, w100, 8)
        self.u100 = nn.ModuleList([Unit(w100, dilation) for dilation in (1, 3, 9)])
        self.sn2 = Snake(w100)
        self.down4 = Down(w100, w25, 4)
        self.sn3 = Snake(w25)
        self.out = Conv(w25, LATENTS, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x, (0, self.w800 - x.shape[2]))
        for unit in self.u800:
            x = unit(x)
        x = self.down8(self.sn1(x))
        for unit in self.u100:
            x = unit(x)
        return self.out(self.sn3(self.down4(self.sn2(x))))


def decoder_like(weights: dict[str, torch.Tensor]) -> Decoder:
    """Return a decoder with these weights, as wide as they are."""
    decoder = Decoder(weights["inp.weight"].shape[1], weights["up8.weight"].shape[0])
    decoder.load_state_dict(weights)
    return decoder


# --- tone wheels --------------------------------------------------------------------------------------------------

WHEEL_PITCHES = np.arange(28, 119)


@torch.no_grad()
def start_as_tone_wheels(decoder: Decoder, scale: torch.Tensor, loudness: float = 0.1) -> None:
    """Let the 100 Hz channels begin as a pair for each partial that turns and decays, and `up8` as what plays them.

    A pair (p, q) stands for p sin(w t) + q cos(w t) from its frame on. The units carry it over 2, 2 and 3 taps of their
    dilations (1, 3, 9), which are 36 frames in all.
    """
    omega = 2 * np.pi * 440 * 2.0 ** ((WHEEL_PITCHES - 69) / 12)
    wheels = 2 * len(omega)
    width = decoder.up8.weight.shape[0]
    for unit, taps in zip(decoder.u100, (2, 2, 3), strict=True):
        kernel = unit.conv1.weight.reshape(7, width, width)
        kernel[:, :wheels, :wheels] = 0
        for tap in range(1, taps + 1):
            kernel[3 - tap, :wheels, :wheels] = _turned(omega, tap * unit.conv1.dilation)
        unit.conv2.weight[:wheels, :wheels] = torch.eye(wheels)
        for weight in (*kernel, unit.conv2.weight):
            weight[wheels:, :wheels] *= 0.3
            weight[:wheels, wheels:] *= 0.3
        for snake in (unit.snake1, unit.snake2):
            snake.alpha[:wheels] = -4.0
    decoder.sn2.alpha[:wheels] = -4.0
    decoder.sn3.alpha.fill_(-3.0)
    _play_wheels(decoder.up8.weight.reshape(width, 16, COEFFICIENTS), omega, scale, loudness)
    for unit in decoder.u800:
        unit.conv2.weight.mul_(0.1)
    decoder.up4.weight.reshape(-1, 8, width)[:, :, :wheels] *= 0.5


def _turned(omega: np.ndarray, frames: int) -> torch.Tensor:
    """Return the matrix that takes every pair `frames` of 10 ms further."""
    seconds = frames * TICK / SAMPLE_RATE
    decay = np.exp(-seconds / (0.25 * (220 / np.maximum(omega / 2 / np.pi, 60)) ** 0.25))
    cosine = decay * np.cos(omega * seconds)
    sine = decay * np.sin(omega * seconds)
    out = np.zeros((2 * len(omega), 2 * len(omega)), np.float32)
    p = 2 * np.arange(len(omega))
    q = 2 * np.arange(len(omega)) + 1
    out[p, p] = cosine
    out[q, q] = cosine
    out[p, q] = sine
    out[q, p] = -sine
    return torch.from_numpy(out)


def _play_wheels(
    kernel: torch.Tensor, omega: np.ndarray, scale: torch.Tensor, loudness: float
) -> None:
    """Set the rows of `up8` [width, 16 frames, 96] that turn pairs into the middle's coefficients."""
    wheels = 2 * len(omega)
    kernel[:wheels] = 0
    kernel[wheels:] *= 0.5
    seconds = np.arange(-BANDS // 2, 8 * BANDS + BANDS + BANDS // 2) / SAMPLE_RATE
    for number, turning in enumerate(omega):
        if turning / 2 / np.pi > 11_000:
            continue
        for part, wave in enumerate((np.sin, np.cos)):
            sound = wave(turning * seconds) * loudness
            frames = np.stack(
                [bank() @ sound[BANDS * frame : BANDS * (frame + 2)] for frame in range(8)]
            )
            kernel[2 * number + part, 4:12, :BANDS] = torch.from_numpy(
                (frames * 2**0.5).astype(np.float32)
            )
    kernel[:wheels, :, :BANDS] /= scale[:BANDS]


# --- training -----------------------------------------------------------------------------------------------------


def likeness(made: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the cosine of two tensors: 1 for the same wave."""
    return float((made * truth).sum() / (made.norm() * truth.norm() + 1e-9))


def _stacked(rows: list[tuple[np.ndarray, ...]], device: torch.device) -> list[torch.Tensor]:
    return [torch.from_numpy(np.stack(column)).to(device) for column in zip(*rows, strict=True)]


class DecoderStage:
    """Latents to coefficients; three quarters of the crops are random events, often of few stems."""

    name = "decoder"
    minutes = 60.0
    rate = 0.015
    adam_rate = 2e-3
    floor = 0.04
    clip = 2.0
    keep = 0.99
    newton_steps = 5
    inputs_first = True

    def __init__(self, device: torch.device, smoke: bool, saved: dict[str, Any] | None):
        self.device = device
        self.batch = 2 if smoke else 10
        self.frames = 8 if smoke else 32
        self.scale = saved["scale"] if saved else usual_sizes() ** 0.5
        if saved:
            self.module = decoder_like(saved["live"])
        else:
            self.module = Decoder()
            start_as_tone_wheels(self.module, self.scale)
        self.module.to(device)
        self.trained = dict(self.module.named_parameters())
        self.averaged = self.trained
        self.facts = {"scale": self.scale}
        self.held = self.draw(np.random.default_rng(99), 2 if smoke else 24, 50, held=True)

    def is_matrix(self, name: str) -> bool:
        """Tell whether Muon trains a parameter of two dimensions; Adam keeps the wheels in place."""
        return "up8" not in name

    def draw(
        self, rng: np.random.Generator, count: int, frames: int, held: bool = False
    ) -> list[torch.Tensor]:
        """Return latents [count, frames, 32] and coefficients [count, 32 frames, 96]."""
        rows = []
        for number in range(count):
            stems = STEMS
            which = rng.random()
            if held:
                stems = ("chords", "lead") if number % 2 else STEMS
            elif which < 0.45:
                stems = ("chords", "lead")
            elif which < 0.6:
                stems = ("bass",)
            elif which < 0.7:
                stems = ("drums",)
            if rng.random() < 0.25 and not held:
                events = piece(FIRST_TRAINING_SEED + int(rng.integers(PIECES)))
                start = FRAME_TICKS * int(rng.integers(0, 500 - frames))
                rows.append(crop(events, start, frames, stems)[:2])
            else:
                ticks = FRAME_TICKS * frames
                events = window(random_events(rng, ticks), 0, ticks, stems)
                rows.append((latents_of(events, ticks), target_of(events, ticks)))
        return _stacked(rows, self.device)

    def loss(self, step: int, share: float) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the distance of the coefficients, relative to how loud each crop is."""
        latents, truth = self.draw(np.random.default_rng([3, step]), self.batch, self.frames)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step)) * 0.03
        truth = truth / self.scale.to(self.device)
        missed = self.module(latents + noise.to(self.device)) - truth
        power = truth.square().mean((1, 2), keepdim=True)
        squared = (missed.square() / (power + 0.02)).mean()
        return squared + 0.3 * (missed.abs() / (power.sqrt() + 0.1)).mean(), {}

    def measure(self, mean: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return the likeness on held-out events, of everything and of chords and lead alone."""
        with torch.no_grad():
            made = torch.func.functional_call(self.module, mean, self.held[0]) * self.scale.to(
                self.device
            )
        truth = self.held[1]
        return {
            "likeness": likeness(made[::2], truth[::2]),
            "tones": likeness(made[1::2], truth[1::2]),
        }


class EncoderStage:
    """Coefficients to latents, at levels of -6 to +4 dB, of pieces, their stems and random events."""

    name = "encoder"
    minutes = 60.0
    rate = 0.008
    adam_rate = 2e-3
    floor = 0.05
    clip = 2.0
    keep = 0.99
    newton_steps = 5
    inputs_first = True

    def __init__(self, device: torch.device, smoke: bool, saved: dict[str, Any] | None):
        self.device = device
        self.batch = 2 if smoke else 8
        self.frames = 48
        self.module = Encoder().to(device)
        if saved:
            self.module.load_state_dict(saved["live"])
            self.facts = {name: saved[name] for name in ("std", "inscale")}
        else:
            some = self.draw(np.random.default_rng(98), 4 if smoke else 64, 48)[0]
            spread = some.flatten(0, 1).std(0).clamp(min=0.05).cpu()
            self.facts = {"std": spread, "inscale": usual_sizes() ** 0.7}
        self.trained = dict(self.module.named_parameters())
        self.averaged = self.trained
        self.held = self.draw(np.random.default_rng(99), 2 if smoke else 16, 100, held=True)

    def is_matrix(self, name: str) -> bool:
        """Tell whether Muon trains a parameter of two dimensions."""
        return True

    def draw(
        self, rng: np.random.Generator, count: int, frames: int, held: bool = False
    ) -> list[torch.Tensor]:
        """Return latents, coefficients and which latents can be heard, [count, 1, 32]."""
        rows = []
        for _ in range(count):
            stems = STEMS
            if held or rng.random() < 0.6:
                events = piece((0 if held else FIRST_TRAINING_SEED) + int(rng.integers(PIECES)))
                start = FRAME_TICKS * int(rng.integers(0, 500 - frames))
                if not held and rng.random() < 0.3:
                    stems = tuple(stem for stem in STEMS if rng.random() < 0.5)
                latents, truth, events = crop(events, start, frames, stems)
            else:
                events = random_events(rng, FRAME_TICKS * frames)
                latents = latents_of(events, FRAME_TICKS * frames)
                truth = target_of(events, FRAME_TICKS * frames)
            if not held:
                truth = truth * np.float32(10 ** (rng.uniform(-6, 4) / 20))
            rows.append((latents, truth, _audible(events)[None]))
        return _stacked(rows, self.device)

    def loss(self, step: int, share: float) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the square error of the latents; the first frames lack what came before them."""
        latents, sound, weights = self.draw(
            np.random.default_rng([4, step]), self.batch, self.frames
        )
        read = self.module(sound / self.facts["inscale"].to(self.device))
        missed = (read - latents / self.facts["std"].to(self.device)) * weights
        return missed.square()[:, 8:].mean(), {}

    def measure(self, mean: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return the share of the latents' variance that is missed, and F1 of chords and drums, on held-out pieces."""
        latents, sound, weights = self.held
        with torch.no_grad():
            read = torch.func.functional_call(
                self.module, mean, sound / self.facts["inscale"].to(self.device)
            )
        read = read * self.facts["std"].to(self.device)
        missed = ((read - latents).square() * weights).mean((0, 1)) / (latents.var((0, 1)) + 0.01)
        parts = {"bass": BASS, "lead": LEAD, "moment": MOMENT, "players": PLAYERS}
        figures = {name: float(missed[part].mean()) for name, part in parts.items()}
        scores = {"chords": CHORDS, "drums": HITS}
        figures |= {
            name: _f1(latents[..., part] > 0.2, read[..., part] > 0.3)
            for name, part in scores.items()
        }
        return {"missed": float(missed.mean()), **figures}


def _audible(events: Events) -> np.ndarray:
    """Return 1 for latents [32] that the sound tells, 0 for the instrument of a stem that does not play."""
    weights = np.ones(LATENTS, np.float32)
    for stem, numbers in PLAYER_NUMBERS.items():
        if not len(events.hits if stem == "drums" else events.notes[stem]):
            weights[numbers] = 0
    return weights


def _f1(truth: torch.Tensor, found: torch.Tensor) -> float:
    return float(2 * (truth & found).sum() / (truth.sum() + found.sum() + 1e-9))


# --- into the real class ------------------------------------------------------------------------------------------


@torch.no_grad()
def oobleck(
    decoder: dict[str, Any], encoder: dict[str, Any], centre: torch.Tensor, spread: torch.Tensor
) -> nn.Module:
    """Return the AutoencoderOobleck that computes what the states of decoder and encoder do.

    Its latents are standardised by `centre` and `spread` [32], which is what the song model works with.
    """
    from diffusers import AutoencoderOobleck

    fast = decoder_like(decoder["mean"])
    reader = Encoder()
    reader.load_state_dict(encoder["mean"])
    w100 = fast.up4.outputs
    w25 = fast.up4.weight.shape[0]
    vae = AutoencoderOobleck(
        encoder_hidden_size=2 * LATENTS,
        downsampling_ratios=[BANDS, 8, 4],
        channel_multiples=[2, w100 // 48, w25 // 48],
        decoder_channels=48,
        decoder_input_channels=LATENTS,
        audio_channels=2,
        sampling_rate=SAMPLE_RATE,
    )
    _write_decoder(vae.decoder, fast, decoder["scale"], centre, spread)
    _write_encoder(vae.encoder, reader, encoder, centre, spread)
    return vae.eval()


def _write_decoder(
    real: nn.Module, fast: Decoder, scale: torch.Tensor, centre: torch.Tensor, spread: torch.Tensor
) -> None:
    first = fast.inp.class_weight()
    _put(real.conv1, first * spread[:, None], fast.inp.bias + (first * centre[:, None]).sum((1, 2)))
    low, middle, last = real.block
    _put_snake(low.snake1, fast.sn1)
    _put(low.conv_t1, fast.up4.class_weight(), fast.up4.bias)
    _put_units(low, fast.u100)
    _put_snake(middle.snake1, fast.sn2)
    _put(middle.conv_t1, fast.up8.class_weight(), fast.up8.bias)
    _put_units(middle, fast.u800)
    _put_snake(last.snake1, fast.sn3)
    _put(last.conv_t1, _filters(last.conv_t1.weight_v, scale * MIX_GAIN / GAIN), torch.zeros(48))
    _put_units(last, [])
    _straighten(real.snake1)
    _put_tap(real.conv2)


def _write_encoder(
    real: nn.Module,
    fast: Encoder,
    state: dict[str, Any],
    centre: torch.Tensor,
    spread: torch.Tensor,
) -> None:
    high, middle, low = real.block
    _put_tap(real.conv1)
    _put_units(high, [])
    _straighten(high.snake1)
    filters = _filters(high.conv1.weight_v, 1 / (state["inscale"] * MIX_GAIN / GAIN))
    _put(high.conv1, filters, torch.zeros(len(filters)))
    _put_units(middle, fast.u800)
    _put_snake(middle.snake1, fast.sn1)
    _put(middle.conv1, fast.down8.class_weight(), fast.down8.bias)
    _put_units(low, fast.u100)
    _put_snake(low.snake1, fast.sn2)
    # Both halves of the class share their multiples; channels that only the decoder needs stay at zero.
    spare = low.conv1.out_channels - fast.down4.bias.shape[0]
    _put(
        low.conv1,
        functional.pad(fast.down4.class_weight(), (0, 0, 0, 0, 0, spare)),
        functional.pad(fast.down4.bias, (0, spare)),
    )
    real.snake1.alpha.copy_(functional.pad(fast.sn3.alpha, (0, spare))[None, :, None])
    real.snake1.beta.copy_(functional.pad(fast.sn3.beta, (0, spare))[None, :, None])
    weight = torch.zeros_like(real.conv2.weight_v)
    bias = torch.full((2 * LATENTS,), -4.0)
    sizes = state["std"] / spread
    weight[:LATENTS, : fast.out.inputs] = fast.out.class_weight() * sizes[:, None, None]
    # The upper half is the posterior's spread: softplus(-4) is nearly sure.
    bias[:LATENTS] = fast.out.bias * sizes - centre / spread
    _put(real.conv2, weight, bias)


@torch.no_grad()
def states_of(
    vae: nn.Module, centre: torch.Tensor, spread: torch.Tensor
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights and facts of the decoder and the encoder that `oobleck` wrote, so that they can train on."""
    low, middle, last = vae.decoder.block
    first = vae.decoder.conv1
    decoder = Decoder(first.out_channels, low.conv_t1.out_channels)
    _take(decoder.inp, first)
    taps = decoder.inp.weight.reshape(first.kernel_size[0], LATENTS, -1) / spread[:, None]
    decoder.inp.weight.copy_(taps.reshape(decoder.inp.weight.shape))
    decoder.inp.bias.sub_((taps * centre[:, None]).sum((0, 1)))
    _take_snake(decoder.sn1, low.snake1)
    _take(decoder.up4, low.conv_t1)
    _take_units(decoder.u100, low)
    _take_snake(decoder.sn2, middle.snake1)
    _take(decoder.up8, middle.conv_t1)
    _take_units(decoder.u800, middle)
    _take_snake(decoder.sn3, last.snake1)

    encoder = Encoder()
    high, middle, low = vae.encoder.block
    _take_units(encoder.u800, middle)
    _take_snake(encoder.sn1, middle.snake1)
    _take(encoder.down8, middle.conv1)
    _take_units(encoder.u100, low)
    _take_snake(encoder.sn2, low.snake1)
    _take(encoder.down4, low.conv1)
    _take_snake(encoder.sn3, vae.encoder.snake1)
    _take(encoder.out, vae.encoder.conv2)
    encoder.out.bias.add_(centre / spread)
    level = MIX_GAIN / GAIN
    return (
        {"live": decoder.state_dict(), "scale": _sizes_of(last.conv_t1) / level},
        {
            "live": encoder.state_dict(),
            "std": spread,
            "inscale": 1 / (_sizes_of(high.conv1) * level),
        },
    )


def _sizes_of(layer: nn.Module) -> torch.Tensor:
    """Return the sizes [96] with which `_filters` wrote the bank into a layer."""
    plain = _filters(layer.weight_v, torch.ones(COEFFICIENTS))[:COEFFICIENTS].flatten(1).norm(dim=1)
    return layer.weight_g.flatten()[:COEFFICIENTS] / plain


def _take(fast: nn.Module, real: nn.Module) -> None:
    """Take over what `_put` wrote (the direction is the weight) but for the channels that the fast one lacks."""
    weight = torch.where(real.weight_g == 0, 0.0, real.weight_v)
    if isinstance(fast, Up):
        weight = weight.permute(0, 2, 1)
    else:
        outputs = fast.weight.shape[1]
        inputs = fast.weight.shape[0] // weight.shape[2]
        weight = weight[:outputs, :inputs].permute(2, 1, 0)
    fast.weight.copy_(weight.reshape(fast.weight.shape))
    fast.bias.copy_(real.bias[: len(fast.bias)])


def _take_snake(fast: Snake, real: nn.Module) -> None:
    fast.alpha.copy_(real.alpha.flatten()[: len(fast.alpha)])
    fast.beta.copy_(real.beta.flatten()[: len(fast.beta)])


def _take_units(units: Sequence[Unit], block: nn.Module) -> None:
    for fast, real in zip(units, (block.res_unit1, block.res_unit2, block.res_unit3), strict=False):
        _take_snake(fast.snake1, real.snake1)
        _take_snake(fast.snake2, real.snake2)
        _take(fast.conv1, real.conv1)
        _take(fast.conv2, real.conv2)


def _filters(like: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return the bank as the kernel of a strided layer: its first two channels are the waves, left and right."""
    kernel = torch.zeros_like(like)
    rows = torch.from_numpy(bank()) * 2**-0.5
    kernel[:BANDS, 0] = rows
    kernel[:BANDS, 1] = rows
    kernel[BANDS:COEFFICIENTS, 0] = rows[:SIDE_BANDS]
    kernel[BANDS:COEFFICIENTS, 1] = -rows[:SIDE_BANDS]
    kernel[:COEFFICIENTS] *= sizes[:, None, None]
    return kernel


def _put(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Set a weight-normed layer; rows of zeros keep a direction and get the gain 0."""
    size = weight.flatten(1).norm(dim=1)
    layer.weight_v.copy_(torch.where(size[:, None, None] == 0, torch.ones_like(weight), weight))
    layer.weight_g.copy_(size.reshape(layer.weight_g.shape))
    if bias is not None:
        layer.bias.copy_(bias)


def _put_snake(real: nn.Module, fast: Snake) -> None:
    real.alpha.copy_(fast.alpha[None, :, None])
    real.beta.copy_(fast.beta[None, :, None])


def _put_units(block: nn.Module, units: Sequence[Unit]) -> None:
    """Fill a block's units, which have the dilations 1, 3 and 9, with `units`; the others add nothing."""
    for number, real in enumerate((block.res_unit1, block.res_unit2, block.res_unit3)):
        if number < len(units):
            fast = units[number]
            _put_snake(real.snake1, fast.snake1)
            _put_snake(real.snake2, fast.snake2)
            _put(real.conv1, fast.conv1.class_weight(), fast.conv1.bias)
            _put(real.conv2, fast.conv2.class_weight(), fast.conv2.bias)
        else:
            real.conv2.weight_g.zero_()
            real.conv2.bias.zero_()
            real.conv1.bias.zero_()
            _straighten(real.snake1)
            _straighten(real.snake2)


def _straighten(snake: nn.Module) -> None:
    """Make a snake a straight line: sin(e^-12 x)^2 is nothing beside x."""
    snake.alpha.fill_(-12.0)
    snake.beta.fill_(0.0)


def _put_tap(layer: nn.Module) -> None:
    """Let a convolution of seven taps pass two channels on unchanged."""
    weight = torch.zeros_like(layer.weight_v)
    weight[0, 0, 3] = 1.0
    weight[1, 1, 3] = 1.0
    _put(layer, weight, None if layer.bias is None else torch.zeros_like(layer.bias))
