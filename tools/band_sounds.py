"""How the band sounds: notes and drum hits become samples, by arithmetic alone.

Every melodic sound is two wavetables a note, an open and a closed one, with a glide from one to the other where a
synthesizer would close its filter. Phases are counted in integers, so that a pitch is exact however long a note lasts.
Noise is cut from one fixed bank drawn on the CPU. Nothing here is random: equal notes give equal samples on one device,
and on another device the same but for rounding.

Shapes: N notes, M samples of the longest of them, T samples of the piece, S stems.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch

from limits import SAMPLE_RATE

TABLE = 2_048
HARMONICS = 96
MOST_SAMPLES_AT_ONCE = 2**21
NOISE_SAMPLES = 2**19


@dataclass(frozen=True)
class Patch:
    """One melodic sound.

    `wave` names its spectrum. `open` and `closed` are the corner of its low-pass at the note's start and after `close`
    seconds, in Hz plus `follow` times the pitch. Attack, decay and release are in seconds, `sustain` is the level
    that the decay ends at. `voices` are unison voices as cents, spread over the stereo field by `width`; `wobble` is a
    vibrato (cents, Hz). `drive` saturates the whole stem.
    """

    wave: str
    open: float = 6000.0
    closed: float = 2000.0
    close: float = 0.3
    follow: float = 2.0
    attack: float = 0.005
    decay: float = 0.5
    sustain: float = 0.6
    release: float = 0.12
    voices: tuple[float, ...] = (0.0,)
    width: float = 0.0
    wobble: tuple[float, float] = (0.0, 5.0)
    drive: float = 0.0


@dataclass(frozen=True)
class Notes:
    """Notes of one instrument, each array [N]: onset and length in seconds, MIDI pitch, loudness 0 to 1."""

    onset: np.ndarray
    length: np.ndarray
    pitch: np.ndarray
    loudness: np.ndarray

    def __len__(self) -> int:
        return len(self.onset)


@dataclass(frozen=True)
class Finish:
    """What happens to a finished stem: level, low cut and high cut in Hz, room (share, seconds), echoes, place.

    `echo` is (level, seconds) of a feedback delay; `pan` goes from -1 to 1.
    """

    level: float = 1.0
    low_cut: float = 25.0
    high_cut: float = 18_000.0
    room: float = 0.1
    decay: float = 0.8
    echo: tuple[float, float] = (0.0, 0.3)
    pan: float = 0.0


# --- melodic sounds -----------------------------------------------------------------------------------------------


def play(notes: Notes, patch: Patch, samples: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the notes as played by `patch`, [2, samples]; notes that ring past the end are cut there."""
    out = torch.zeros(2, samples, device=device)
    order = np.argsort(notes.length, kind="stable")
    rows = 0
    while rows < len(order):
        chunk = _chunk(notes, order[rows:], patch)
        rows += len(chunk)
        stereo = _voices(notes, chunk, patch, device)
        for left_right, index in zip(stereo, chunk, strict=True):
            start = round(float(notes.onset[index]) * SAMPLE_RATE)
            heard = left_right[:, : max(min(_samples_of(notes, index, patch), samples - start), 0)]
            out[:, start : start + heard.shape[1]] += heard
    return torch.tanh(out * (1 + patch.drive)) / (1 + patch.drive / 4) if patch.drive else out


def _samples_of(notes: Notes, index: int, patch: Patch) -> int:
    return int((float(notes.length[index]) + 5 * patch.release) * SAMPLE_RATE) + 1


def _chunk(notes: Notes, order: np.ndarray, patch: Patch) -> np.ndarray:
    """Return the first of the notes in `order` (by length) that fit into memory together."""
    lengths = np.array([_samples_of(notes, index, patch) for index in order])
    fits = np.flatnonzero(lengths * np.arange(1, len(order) + 1) <= MOST_SAMPLES_AT_ONCE)
    return order[: int(fits[-1]) + 1 if len(fits) else 1]


def _voices(notes: Notes, chunk: np.ndarray, patch: Patch, device: torch.device | str) -> torch.Tensor:
    """Return the notes of `chunk` one by one, [N, 2, M]."""
    pitch, length, loudness = (
        torch.from_numpy(values[chunk].astype(np.float32)).to(device)[:, None]
        for values in (notes.pitch, notes.length, notes.loudness)
    )
    count = max(_samples_of(notes, index, patch) for index in chunk)
    ticks = torch.arange(count, device=device)
    seconds = (ticks / SAMPLE_RATE)[None]
    tables = torch.stack([_tables(pitch, corner, patch) for corner in (patch.open, patch.closed)])
    closing = torch.exp(-seconds / patch.close)
    sound = torch.zeros(len(chunk), 2, count, device=device)
    for number, cents in enumerate(patch.voices):
        hertz = 440.0 * 2 ** ((pitch.double() - 69 + cents / 100) / 12)
        step = torch.round(hertz / SAMPLE_RATE * 2**32).long()
        # A voice starts at its own place in the wave, or the voices would begin as one loud one.
        phase = ((ticks * step + number * 1_400_000_000) & 0xFFFFFFFF).float() / 2**32
        if patch.wobble[0]:
            depth = hertz.float() * (patch.wobble[0] / 1200 * math.log(2)) / (2 * math.pi * patch.wobble[1])
            phase = phase + depth * torch.sin(2 * math.pi * patch.wobble[1] * seconds)
            phase = phase - torch.floor(phase)
        voice = _read(tables, phase, closing)
        place = 0.5 + patch.width * ((number + 0.5) / len(patch.voices) - 0.5)
        sound[:, 0] += voice * math.cos(place * math.pi / 2)
        sound[:, 1] += voice * math.sin(place * math.pi / 2)
    rise = (seconds / patch.attack).clamp(max=1.0)
    held = patch.sustain + (1 - patch.sustain) * torch.exp(-seconds / patch.decay)
    fall = torch.exp(-(seconds - length).clamp(min=0.0) / patch.release)
    # Five release times leave 0.7 % of a note; the last of them fades that to nothing.
    end = ((length + 5 * patch.release - seconds) / patch.release).clamp(0.0, 1.0)
    return sound * (rise * held * fall * end * loudness / len(patch.voices) ** 0.5)[:, None]


def _read(tables: torch.Tensor, phase: torch.Tensor, closing: torch.Tensor) -> torch.Tensor:
    """Read both wavetables [2, N, TABLE + 1] at `phase` [N, M] (0 to 1), linearly, and glide from open to closed."""
    place = phase * TABLE
    index = place.long().clamp(max=TABLE - 1)
    share = place - index
    opened, closed = (
        torch.lerp(table.gather(1, index), table.gather(1, index + 1), share) for table in (tables[0], tables[1])
    )
    return torch.lerp(closed, opened, closing)


def _tables(pitch: torch.Tensor, corner: float, patch: Patch) -> torch.Tensor:
    """Return a band-limited period of the wave for each pitch [N, 1], [N, TABLE + 1]; the last point is the first."""
    hertz = 440.0 * 2 ** ((pitch - 69) / 12)
    number = torch.arange(1, HARMONICS + 1, device=pitch.device, dtype=torch.float32)[None]
    frequency = hertz * number
    passed = 1 / torch.sqrt(1 + (frequency / (corner + patch.follow * hertz)) ** 4)
    passed = passed * ((19_000 - frequency) / 3_000).clamp(0.0, 1.0)
    spectrum = torch.zeros(pitch.shape[0], TABLE // 2 + 1, device=pitch.device, dtype=torch.complex64)
    spectrum[:, 1 : HARMONICS + 1] = -1j * passed * _spectrum(patch.wave, pitch.device)[None]
    wave = torch.fft.irfft(spectrum, n=TABLE) * TABLE / 2
    return torch.cat([wave, wave[:, :1]], dim=1)


def _spectrum(wave: str, device: torch.device) -> torch.Tensor:
    """Return the amplitudes of the harmonics of a wave, [HARMONICS]."""
    drawn = {
        "sine": {1: 1.0},
        "tine": {1: 1.0, 2: 0.25, 3: 0.12, 4: 0.1, 7: 0.05, 14: 0.03},
        "organ": {1: 0.8, 2: 0.7, 3: 0.5, 4: 0.45, 6: 0.2, 8: 0.2},
        "bell": {1: 0.7, 3: 0.35, 5: 0.1, 8: 0.12, 13: 0.06},
        "flute": {1: 1.0, 2: 0.3, 3: 0.12, 4: 0.04},
        "round": {1: 1.0, 2: 0.4, 3: 0.12, 4: 0.05},
    }
    number = torch.arange(1, HARMONICS + 1, device=device, dtype=torch.float32)
    if wave in drawn:
        amplitudes = torch.zeros(HARMONICS, device=device)
        for harmonic, amplitude in drawn[wave].items():
            amplitudes[harmonic - 1] = amplitude
        return amplitudes
    odd = (number % 2 == 1).float()
    return {
        "saw": 0.6 / number,
        "square": 0.8 * odd / number,
        "triangle": 0.9 * odd / number**2,
        "pulse": torch.sin(math.pi * number * 0.2).abs() / number,
        "string": torch.sin(math.pi * number / 5).abs() * 1.2 / number**1.3,
        "reed": 0.5 * (0.6 + 0.4 * odd) / number**0.8,
        "bowed": 0.6 / number**1.1 * (1 + 0.5 * torch.cos(number * 0.9)),
    }[wave]


# --- drums --------------------------------------------------------------------------------------------------------


def beat(
    hits: dict[str, np.ndarray], kit: dict[str, torch.Tensor], places: dict[str, float], samples: int
) -> torch.Tensor:
    """Return the drums, [2, samples]: `hits` maps a piece of the kit to rows (onset in seconds, loudness)."""
    out = torch.zeros(2, samples, device=next(iter(kit.values())).device)
    for name, rows in hits.items():
        sound, place = kit[name], 0.5 + 0.5 * places.get(name, 0.0)
        stereo = torch.stack([sound * math.cos(place * math.pi / 2), sound * math.sin(place * math.pi / 2)])
        for onset, loudness in rows:
            start = round(float(onset) * SAMPLE_RATE)
            heard = max(min(stereo.shape[1], samples - start), 0)
            out[:, start : start + heard] += float(loudness) * stereo[:, :heard]
    return out


def drum_kit(
    kick: tuple[float, float, float, float],
    snare: tuple[float, float, float],
    hat: tuple[float, float],
    turn: float,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Make the sounds of a kit, each [M].

    `kick` is (pitch in Hz, sweep in Hz, decay in seconds, click), `snare` (pitch in Hz, decay in seconds, share of
    noise), `hat` (corner in Hz, decay in seconds). `turn` (0 to 1) chooses the noise, so that kits of one kind differ.
    """
    pitch, sweep, fade, click = kick
    tone, decay, rattle = snare
    bright, short = hat
    kit = {
        "kick": _swept(pitch, sweep, 0.03, fade, device)
        + click * _hiss(0.01, 2_000, 12_000, 0.002, turn, device, fade),
        "snare": (1 - rattle) * _swept(tone, tone * 0.6, 0.02, decay * 0.7, device, 2 * decay)
        + rattle * _hiss(2 * decay, 900, 11_000, decay / 2, turn + 0.1, device),
        "hat": 0.5 * _hiss(5 * short, bright, 17_000, short, turn + 0.2, device),
        "open": 0.5 * _hiss(0.5, bright, 17_000, 0.14, turn + 0.3, device),
        "ride": 0.35 * _hiss(0.8, bright * 0.7, 14_000, 0.25, turn + 0.4, device)
        + 0.1 * _swept(3_100, 0, 0.1, 0.2, device, 0.8),
        "crash": 0.5 * _hiss(1.6, 2_500, 16_000, 0.5, turn + 0.5, device),
        "clap": _clap(turn + 0.6, device),
        "rim": 0.7 * _swept(820, 300, 0.005, 0.02, device, 0.1) + 0.3 * _hiss(0.1, 2_000, 9_000, 0.01, turn, device),
        "tom": _swept(pitch * 2.1, pitch, 0.06, 0.16, device, 0.5),
        "shaker": 0.35 * _hiss(0.14, 5_000, 13_000, 0.03, turn + 0.7, device, rise=0.02),
        "brush": 0.5 * _hiss(0.3, 1_500, 9_000, 0.09, turn + 0.8, device, rise=0.015),
    }
    return {name: sound / sound.abs().max() * KIT_LEVELS[name] for name, sound in kit.items()}


KIT_LEVELS = {
    "kick": 0.9,
    "snare": 0.7,
    "hat": 0.3,
    "open": 0.3,
    "ride": 0.28,
    "crash": 0.35,
    "clap": 0.55,
    "rim": 0.45,
    "tom": 0.6,
    "shaker": 0.25,
    "brush": 0.4,
}
KIT_PLACES = {"hat": 0.25, "open": 0.25, "ride": -0.3, "crash": -0.35, "rim": -0.15, "tom": 0.2, "shaker": -0.4}


def _swept(
    pitch: float, sweep: float, glide: float, fade: float, device: torch.device | str, seconds: float | None = None
) -> torch.Tensor:
    """A sine that falls from `pitch` + `sweep` to `pitch` and dies away."""
    t = torch.arange(int((seconds or 5 * fade) * SAMPLE_RATE), device=device) / SAMPLE_RATE
    cycles = pitch * t + sweep * glide * (1 - torch.exp(-t / glide))
    end = (1 - t / t[-1]).clamp(max=0.1) * 10
    return torch.sin(2 * math.pi * cycles) * torch.exp(-t / fade) * end


def _hiss(
    seconds: float,
    low: float,
    high: float,
    fade: float,
    turn: float,
    device: torch.device | str,
    padded: float = 0.0,
    rise: float = 0.0005,
) -> torch.Tensor:
    """Noise between two corners that dies away; with `padded` as long as a swept sine of that decay."""
    samples = int((5 * padded if padded else seconds) * SAMPLE_RATE)
    t = torch.arange(samples, device=device) / SAMPLE_RATE
    spectrum = torch.fft.rfft(noise(turn, samples, device))
    hertz = torch.linspace(0, SAMPLE_RATE / 2, spectrum.shape[-1], device=device)
    shape = 1 / torch.sqrt(1 + (low / hertz.clamp(min=1.0)) ** 6) / torch.sqrt(1 + (hertz / high) ** 6)
    end = (1 - t / t[-1]).clamp(max=0.1) * 10
    return torch.fft.irfft(spectrum * shape, n=samples) * torch.exp(-t / fade) * (t / rise).clamp(max=1.0) * end


def _clap(turn: float, device: torch.device | str) -> torch.Tensor:
    """Three short bursts and a tail."""
    tail = _hiss(0.35, 900, 7_000, 0.07, turn, device)
    out = tail.clone()
    for number, start in enumerate((0, 480, 1_050)):
        burst = _hiss(0.03, 900, 7_000, 0.006, turn + 0.01 * number, device)
        out[start : start + len(burst)] += burst
    return out


def noise(turn: float, samples: int, device: torch.device | str) -> torch.Tensor:
    """Return `samples` of white noise from place `turn` (its fraction) of the bank, round it where it ends."""
    bank = _noise_bank(str(device))
    start = int((turn % 1.0) * NOISE_SAMPLES)
    repeats = math.ceil((start + samples) / NOISE_SAMPLES)
    return bank.repeat(repeats)[start : start + samples]


@functools.lru_cache(maxsize=4)
def _noise_bank(device: str) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(20_260)
    return torch.randn(NOISE_SAMPLES, generator=generator).to(device)


# --- rooms and levels ---------------------------------------------------------------------------------------------


def finish_stems(stems: torch.Tensor, finishes: list[Finish], turn: float) -> torch.Tensor:
    """Put each stem [S, 2, T] through its equalizer, room and echo, in one pass over the spectrum."""
    samples, device = stems.shape[-1], stems.device
    rooms = [_room(finish, turn, device) for finish in finishes]
    size = _smooth(samples + max(room.shape[-1] for room in rooms))
    hertz = torch.linspace(0, SAMPLE_RATE / 2, size // 2 + 1, device=device)
    out = torch.empty_like(stems)
    for number, (finish, room) in enumerate(zip(finishes, rooms, strict=True)):
        low = 1 / torch.sqrt(1 + (finish.low_cut / hertz.clamp(min=1.0)) ** 4)
        high = 1 / torch.sqrt(1 + (hertz / finish.high_cut) ** 4)
        spectrum = torch.fft.rfft(stems[number], n=size) * torch.fft.rfft(room, n=size) * (low * high * finish.level)
        out[number] = torch.fft.irfft(spectrum, n=size)[:, :samples]
    return out


def _room(finish: Finish, turn: float, device: torch.device | str) -> torch.Tensor:
    """Return the impulse response [2, M]: the sound itself at its place, a tail of noise, echoes from side to side."""
    level, gap = finish.echo
    echoes = 6 if level else 0
    tail = int(2.5 * finish.decay * SAMPLE_RATE) if finish.room else 1
    out = torch.zeros(2, max(tail, int(echoes * gap * SAMPLE_RATE) + 1), device=device)
    if finish.room:
        t = torch.arange(tail, device=device) / SAMPLE_RATE
        fall = torch.exp(-3 * t / finish.decay) * (t / 0.012).clamp(max=1.0) * (1 - t / t[-1])
        sides = torch.stack([noise(turn + 0.37 * side, tail, device) for side in range(2)])
        out[:, :tail] = finish.room * sides * fall * (10 / (finish.decay * SAMPLE_RATE)) ** 0.5
    place = (finish.pan + 1) * math.pi / 4
    direct = (math.cos(place) * 2**0.5, math.sin(place) * 2**0.5)
    for side in range(2):
        out[side, 0] = direct[side]
        for number in range(1, echoes + 1):
            out[side, int(number * gap * SAMPLE_RATE)] += level**number * (1.2 if number % 2 == side else 0.5)
    return out


def _smooth(size: int) -> int:
    """Return the next length whose only prime factors are 2, 3 and 5, which Fourier transforms are quick for."""
    candidates = (2**a * 3**b * 5**c for a in range(1, 24) for b in range(5) for c in range(5))
    return min(length for length in candidates if length >= size)


def pump(beats: np.ndarray, samples: int, depth: float, device: torch.device | str) -> torch.Tensor:
    """Return the gain [samples] of a compressor that each of the `beats` (seconds) ducks by `depth` for a moment."""
    gain = torch.ones(samples, device=device)
    dip = 1 - depth * torch.exp(-torch.arange(int(0.4 * SAMPLE_RATE), device=device) / SAMPLE_RATE / 0.11)
    for onset in beats:
        start = round(float(onset) * SAMPLE_RATE)
        heard = max(min(len(dip), samples - start), 0)
        gain[start : start + heard] = torch.minimum(gain[start : start + heard], dip[:heard])
    return gain
