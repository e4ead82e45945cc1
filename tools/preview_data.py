"""What the preview engine is trained on: rendered pieces, and what each task asks of them.

Pieces are numbered; piece n is always the same music. A pool holds the newest ones and takes on a fresh one every few
steps, so that the pieces of a step, and every draw made from them, follow from the step's number alone: a training
that is resumed sees what it would have seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import codec
import modes
import preview
from limits import SAMPLE_RATE
from tools.band_score import Score, compose
from tools.band_styles import STEMS
from tools.render_band import Piece, render

HOP = math.prod(preview.DOWNSAMPLING)
"""Samples that a latent frame stands for."""

REFERENCE_FRAMES = codec.REFERENCE_SECONDS * SAMPLE_RATE // HOP
FIRST_TRAINING_SEED = 1_000_000
"""Seeds under this are for evaluation and are never trained on."""

WORDS_IN_LYRICS = 0.25
UNSAID = 0.15
NO_CONDITION = 0.15
WITH_REFERENCE = 0.3
TASKS = {"text2music": 0.4, "repaint": 0.2, "cover": 0.15, "lego": 0.1, "extract": 0.05, "complete": 0.1}


class Pool:
    """The newest `size` pieces of those numbered from 0, one more every `fresh_every` steps.

    It begins with `start` pieces, by default full, and grows. `make` turns a piece's number into what is kept of it.
    """

    def __init__(self, size: int, fresh_every: int, make: Callable[[int], Any], start: int = 0):
        self.size, self.fresh_every, self.make, self.start = size, fresh_every, make, start or size
        self.held: dict[int, Any] = {}

    def at(self, step: int) -> list[Any]:
        """Return the pieces of a step, oldest first; makes those that are missing."""
        newest = self.start + step // self.fresh_every
        wanted = range(max(newest - self.size, 0), newest)
        self.held = {number: self.held[number] if number in self.held else self.make(number) for number in wanted}
        return list(self.held.values())


def draw(seed: int, stage: str, step: int) -> np.random.Generator:
    """Return the generator of a step's draws."""
    return np.random.default_rng([seed, len(stage), ord(stage[0]), step])


def make_piece(number: int, seconds: float, device: torch.device | str) -> Piece:
    """Render piece `number` of the training."""
    return render(compose(FIRST_TRAINING_SEED + number, seconds=seconds), device)


# --- stage 1: sound -----------------------------------------------------------------------------------------------


def waveforms(pool: list[Piece], rng: np.random.Generator, batch: int, samples: int) -> torch.Tensor:
    """Return crops [batch, 2, samples]: half of whole mixes, the rest of stems, of some stems, and of nothing."""
    crops = []
    for _ in range(batch):
        piece = pool[int(rng.integers(len(pool)))]
        start = int(rng.integers(piece.stems.shape[-1] - samples + 1))
        heard = piece.stems[..., start : start + samples]
        kind = rng.random()
        if kind < 0.5:
            chosen = list(range(len(STEMS)))
        elif kind < 0.8:
            chosen = [int(rng.integers(len(STEMS)))]
        else:
            chosen = np.flatnonzero(rng.random(len(STEMS)) < 0.5).tolist()
        gain = 10 ** (rng.uniform(-10, 2) / 20)
        crop = heard[chosen].sum(dim=0) * gain
        crops.append(crop / max(float(crop.abs().max()), 1.0))
    return torch.stack(crops)


# --- stages 2 and 3: latents --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """The latents [T, C] of a piece: its mix, each of its tracks, one track's absence, and some of its stems.

    `without` is (track, mix without it); `some` is (tracks that are missing, mix of the others).
    """

    score: Score
    mix: torch.Tensor
    tracks: dict[str, torch.Tensor]
    without: tuple[str, torch.Tensor]
    some: tuple[tuple[str, ...], torch.Tensor]


def encode_piece(vae: Any, piece: Piece) -> Encoded:
    """Encode what the tasks need of a piece."""
    rng = np.random.default_rng([piece.score.seed, 7])
    names = list(piece.score.tracks)
    sounds = {name: piece.track(name) for name in names}
    absent = str(rng.choice(names))
    missing = tuple(str(name) for name in rng.permutation(names)[: int(rng.integers(1, len(names)))])
    rest = sum(sound for name, sound in sounds.items() if name not in missing)
    return Encoded(
        score=piece.score,
        mix=_latents(vae, piece.mix),
        tracks={name: _latents(vae, sound) for name, sound in sounds.items()},
        without=(absent, _latents(vae, piece.mix - sounds[absent])),
        some=(missing, _latents(vae, rest)),
    )


def _latents(vae: Any, samples: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        latents = vae.encode(samples[None].to(vae.dtype)).latent_dist.mode()
    return latents[0].T.float()


def latent_crops(pool: list[Encoded], rng: np.random.Generator, batch: int, frames: int) -> torch.Tensor:
    """Return crops [batch, frames, C] of mixes and, one time in four, of single tracks."""
    crops = []
    for _ in range(batch):
        piece = pool[int(rng.integers(len(pool)))]
        latents = piece.mix
        if rng.random() < 0.25:
            latents = list(piece.tracks.values())[int(rng.integers(len(piece.tracks)))]
        start = int(rng.integers(max(latents.shape[0] - frames, 0) + 1))
        crops.append(latents[start : start + frames])
    return torch.stack(crops)


@dataclass(frozen=True)
class Example:
    """One example of stage 3: what is to be made, what is given, and what is said.

    `target` [T, C]; `source` [T, C] and `mask` [T, 1] make the context; `covered` says that the source goes through the
    audio codes. `reference` are latents [750, C] or None for silence.
    """

    task: str
    target: torch.Tensor
    source: torch.Tensor
    mask: torch.Tensor
    covered: bool
    text: str
    lyrics: str
    reference: torch.Tensor | None


def song_examples(
    pool: list[Encoded], rng: np.random.Generator, frames: int, silence: torch.Tensor, words: list[str]
) -> list[Example]:
    """Draw a batch of examples of one length, about `frames` latent frames together."""
    by_length: dict[int, list[Encoded]] = {}
    for piece in pool:
        by_length.setdefault(piece.mix.shape[0], []).append(piece)
    lengths = sorted(by_length)
    # Weighted by how many pieces there are of each length.
    length = lengths[int(rng.choice(len(lengths), p=np.array([len(by_length[n]) for n in lengths]) / len(pool)))]
    pieces = by_length[length]
    count = max(frames // length, 1)
    return [_example(pieces[int(rng.integers(len(pieces)))], rng, silence, words) for _ in range(count)]


def _example(piece: Encoded, rng: np.random.Generator, silence: torch.Tensor, words: list[str]) -> Example:
    task = str(rng.choice(list(TASKS), p=list(TASKS.values())))
    frames = piece.mix.shape[0]
    quiet = silence.reshape(1, -1).expand(frames, -1)
    everywhere = torch.ones(frames, 1, device=piece.mix.device)
    target, source, mask, instruction = piece.mix, quiet, everywhere, modes.TEXT2MUSIC
    if task == "repaint":
        mask = _region(rng, frames).to(piece.mix.device)
        source, instruction = torch.where(mask > 0, quiet, piece.mix), modes.REPAINT
    elif task == "cover":
        source, instruction = piece.mix, modes.COVER
    elif task == "lego":
        track, source = piece.without
        target, instruction = piece.tracks[track], modes.LAYER.format(track.upper())
    elif task == "extract":
        track = str(rng.choice(list(piece.tracks)))
        target, source, instruction = piece.tracks[track], piece.mix, modes.EXTRACT.format(track.upper())
    elif task == "complete":
        missing, source = piece.some
        instruction = modes.COMPLETE.format(" | ".join(track.upper() for track in missing))
    reference = _reference(piece.mix, rng) if rng.random() < WITH_REFERENCE else None
    text, lyrics = _told(piece.score, instruction, rng, words)
    return Example(task, target, source, mask, task == "cover", text, lyrics, reference)


def _region(rng: np.random.Generator, frames: int) -> torch.Tensor:
    """Return a mask [T, 1], 1 where new music is wanted: a part inside, or (as extending does) an end or both ends."""
    mask = torch.zeros(frames, 1)
    length = int(frames * rng.uniform(0.15, 0.7))
    kind = rng.random()
    if kind < 0.5:
        start = int(rng.integers(frames - length + 1))
        mask[start : start + length] = 1
    elif kind < 0.8:
        mask[frames - length :] = 1
    elif kind < 0.9:
        mask[:length] = 1
    else:
        mask[: length // 2] = 1
        mask[frames - length // 2 :] = 1
    return mask


def _reference(latents: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return 30 s of latents as the studio makes them of a reference: repeated where it is shorter."""
    long = latents.repeat(math.ceil(REFERENCE_FRAMES / latents.shape[0]), 1)
    start = int(rng.integers(long.shape[0] - REFERENCE_FRAMES + 1))
    return long[start : start + REFERENCE_FRAMES]


def _told(score: Score, instruction: str, rng: np.random.Generator, words: list[str]) -> tuple[str, str]:
    """Return the prompt and the lyrics as the pipeline writes them; now and then a number is left unsaid."""
    from diffusers import AceStepPipeline

    bpm = score.bpm if rng.random() >= UNSAID else None
    key = score.key if rng.random() >= UNSAID else ""
    beats = str(score.beats) if rng.random() >= UNSAID else ""
    lyrics = score.lyrics
    if lyrics != "[Instrumental]" and rng.random() < WORDS_IN_LYRICS:
        lyrics = re.sub(r"\]", lambda _: "]\n" + _lines(rng, words), lyrics)
    return AceStepPipeline._format_prompt(
        AceStepPipeline,
        prompt=str(rng.choice(score.captions)),
        lyrics=lyrics,
        vocal_language=str(rng.choice(("unknown", "unknown", "en"))),
        audio_duration=score.seconds,
        instruction=instruction,
        bpm=bpm,
        keyscale=key,
        timesignature=beats,
    )


def _lines(rng: np.random.Generator, words: list[str]) -> str:
    return "\n".join(" ".join(rng.choice(words, int(rng.integers(3, 8)))) for _ in range(int(rng.integers(1, 4))))


def lyric_words() -> list[str]:
    """Return words that lines of lyrics are made of; the engine learns to leave them be."""
    return preview.WORDS.read_text(encoding="utf-8").split()
