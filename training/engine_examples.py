"""What the song model learns from: pieces of the band, and what the studio's tasks make of them, in batches.

The pieces are a pool that a folder keeps, or, with worker processes, composed anew for each example: a GPU would
otherwise see the same ones hundreds of times. Every batch follows from the number of its step alone, whoever makes it.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import BatchEncoding

import modes
import planner_codes
import song_clock
import song_codec
from limits import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS
from training import engine_codes
from training.band_score import INSTRUMENTS, KITS, NOTE_NAMES, ROLES, Score, compose, parse_key
from training.band_sounds import STEMS
from training.band_styles import STYLES
from training.engine_latents import (
    FRAME_TICKS,
    FRAMES_PER_SECOND,
    LATENTS,
    PLAYERS,
    SECTIONS,
    clock,
    events_of,
    features_of,
    latents_of,
    track_of,
    words_for,
)
from training.engine_parts import KEPT_TIME, build_codes
from training.small_models import make_tokenizer

REFERENCE_FRAMES = song_codec.REFERENCE_SECONDS * FRAMES_PER_SECOND
FIRST_TRAINING_SEED = 20_000_000
FIRST_NEW_SEED = 100_000_000
NEW_SEEDS = 2**40
"""Pieces of the pool have seeds from the first on; those that are composed for one example draw theirs here."""
PIECES = {10: 500, 20: 1400, 30: 700, 60: 400, 120: 250, 180: 100}
"""How many pieces of how many seconds the pool has."""
LENGTHS = {
    "words": (0.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    "first": (0.6, 0.4, 0.0, 0.0, 0.0, 0.0),
    "all": (0.1, 0.42, 0.28, 0.12, 0.08, 0.0),
}
"""The shares of the pieces' lengths in each phase of the training."""
TASKS = {
    "first": {"text2music": 0.85, "repaint": 0.15},
    "all": {
        "text2music": 0.38,
        "repaint": 0.24,
        "cover": 0.25,
        "lego": 0.07,
        "extract": 0.04,
        "complete": 0.02,
    },
}
"""The shares of the tasks in each phase of the training."""
LONGER = {
    10: (20,),
    20: (30, 60, 120, 180),
    30: (60, 120, 180),
    60: (60, 120, 180),
    120: (120, 180),
    180: (180,),
}
"""Out of pieces of how many seconds an example is cut."""
WITH_REFERENCE = 0.12
PLANNED_SHARE = 0.6
"""How many covers follow the codes that their score would have, as planned songs do, if the tokenizer knows them."""
WHOLE = {"cover": 0.6}
"""How many examples of a task are whole pieces with their endings, as planned songs are."""
FROM_BEGINNING = {"repaint": 0.9}
"""How many examples of a task that are cut out of a longer piece are its beginning."""
SOURCE_NOISE = 0.3
"""Spread of the noise on some sources at most: the studio's come from the encoder, which misses a little."""
AHEAD = 4
"""How many batches each worker makes before they are asked for."""

QUESTIONS = {
    "bpm": 121,
    "coarse": 10,
    "fine": 13,
    "key": 12,
    "minor": 2,
    "beats": 2,
    "style": len(STYLES),
    "first": 5,
    "last": 5,
    "bass": 4,
    "chords": 6,
    "lead": 6,
    "kit": 3,
}
"""How many classes each question about a piece has that its words answer."""
NOT_SAID = -100


# --- pieces -------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A piece: its seconds, its score, its latents [T, 32] and its features [T, 37], both float16."""

    seconds: int
    score: Score
    latents: np.ndarray
    features: np.ndarray


class Norm(NamedTuple):
    """Mean and spread of the latents [32] and of the features [37]."""

    centre: torch.Tensor
    spread: torch.Tensor
    usual: torch.Tensor
    unusual: torch.Tensor

    def standard(self, latents: np.ndarray) -> torch.Tensor:
        """Return latents [T, 32] with a mean of 0 and a spread of 1."""
        return (torch.from_numpy(latents.astype(np.float32)) - self.centre) / self.spread

    def silence(self) -> torch.Tensor:
        """Return the standardised latent [32] in which nothing sounds and nobody knows who plays."""
        out = -self.centre / self.spread
        out[PLAYERS] = 0
        return out


def read_off(score: Score, seconds: int) -> Row:
    """Return a piece with what can be read off its score."""
    frames = seconds * FRAMES_PER_SECOND
    latents = latents_of(events_of(score), frames * FRAME_TICKS).astype(np.float16)
    return Row(seconds, score, latents, features_of(score, frames).astype(np.float16))


def make_pool(folder: Path, smoke: bool) -> list[Row]:
    """Return the pieces of the pool; they take minutes to compose and are kept in `folder`."""
    path = folder / "pool.pkl"
    if path.exists():
        held = [Row(*row) for row in pickle.loads(path.read_bytes())]
        if held[0].score.harmony:
            return held
    rows: list[Row] = []
    for seconds, count in PIECES.items():
        for _ in range(2 if smoke else count):
            score = compose(FIRST_TRAINING_SEED + len(rows), seconds=float(seconds))
            rows.append(read_off(score, seconds))
    # Plain tuples, which a file can hold whatever becomes of `Row`.
    path.write_bytes(pickle.dumps([tuple(row) for row in rows]))
    return rows


def norm_of(folder: Path, smoke: bool) -> Norm:
    """Return the means and spreads of the pool, which `folder` keeps: every stage rests on them."""
    path = folder / "norm.pt"
    held = torch.load(path) if path.exists() else {}
    if "usual" not in held:
        rows = make_pool(folder, smoke)
        latents = torch.cat([torch.from_numpy(row.latents[::5].astype(np.float32)) for row in rows])
        held.setdefault("mu", latents.mean(0))
        held.setdefault("sd", latents.std(0).clamp(min=0.05))
        first: dict[int, list[np.ndarray]] = {}
        for row in rows:
            first.setdefault(row.seconds, []).append(row.features[::7])
        sample = np.concatenate([part for parts in first.values() for part in parts[:200]])
        features = torch.from_numpy(sample.astype(np.float32))
        held |= {"usual": features.mean(0), "unusual": features.std(0).clamp(min=0.05)}
        torch.save(held, path)
    return Norm(held["mu"], held["sd"], held["usual"], held["unusual"])


class Pieces:
    """The pieces to learn from: the pool in `folder`, or new ones for each example."""

    def __init__(self, folder: Path, smoke: bool, composed: bool = False):
        self.norm = norm_of(folder, smoke)
        self.pool: dict[int, list[Row]] | None = None
        if not composed:
            self.pool = {}
            for row in make_pool(folder, smoke):
                self.pool.setdefault(row.seconds, []).append(row)

    def draw(self, rng: np.random.Generator, seconds: int) -> Row:
        """Return a piece of so many seconds."""
        if self.pool is not None:
            rows = self.pool[seconds]
            return rows[int(rng.integers(len(rows)))]
        seed = FIRST_NEW_SEED + int(rng.integers(NEW_SEEDS))
        return read_off(compose(seed, seconds=float(seconds)), seconds)


# --- examples -----------------------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """Prompts and lyrics as tokens, padded to the longest: the numbers [B, L] and which of them are real [B, L]."""

    text: torch.Tensor
    text_mask: torch.Tensor
    lyrics: torch.Tensor
    lyrics_mask: torch.Tensor


class Example(NamedTuple):
    """One row of a batch; target, source and mask as the studio's tasks have them, features NaN where unknown."""

    target: torch.Tensor
    source: torch.Tensor
    mask: torch.Tensor
    features: torch.Tensor
    text: str
    lyrics: str
    answers: list[int]
    reference: torch.Tensor | None


class Batch(NamedTuple):
    """Examples of one length: latents [B, T, 32], mask [B, T, 1], features [B, T, 37], tokens, answers [B, 13].

    `references` [R, T', 32] are those that were given, `which` [B] the number of each example's, from 1 on, 0 for none.
    """

    target: torch.Tensor
    source: torch.Tensor
    mask: torch.Tensor
    features: torch.Tensor
    tokens: Tokens
    answers: torch.Tensor
    references: torch.Tensor
    which: torch.Tensor


class Words(NamedTuple):
    """Words alone and the answers [B, 13] that they give."""

    tokens: Tokens
    answers: torch.Tensor


def answers_to(score: Score, details: dict) -> list[int]:
    """Return the class of each of the questions, `NOT_SAID` for what the words leave out."""
    out = dict.fromkeys(QUESTIONS, NOT_SAID)
    if details["bpm"] is not None:
        coarse = min(max(round((details["bpm"] - 66) / 12), 0), 9)
        out |= {
            "bpm": details["bpm"] - 60,
            "coarse": coarse,
            "fine": details["bpm"] - (66 + 12 * coarse) + 6,
        }
    if details["key"] is not None:
        tonic, scale = parse_key(details["key"])
        out |= {"key": tonic, "minor": int(scale == "minor")}
    if details["beats"] is not None:
        out["beats"] = details["beats"] - 3
    if "[" in score.lyrics and score.lyrics.strip() != "[Instrumental]":
        out |= {
            "first": SECTIONS.index(score.form[0].name),
            "last": SECTIONS.index(score.form[-1].name),
        }
    out |= {role: INSTRUMENTS[role].index(score.instruments[role]) for role in ROLES}
    out |= {"style": list(STYLES).index(score.style), "kit": KITS.index(score.kit)}
    return [out[name] for name in QUESTIONS]


class Examples:
    """Draws the song model's examples, on the CPU: `frames` of them in a batch, or `prompts` words."""

    def __init__(self, pieces: Pieces, folder: Path, frames: int, prompts: int):
        self.pieces = pieces
        self.norm = pieces.norm
        self.frames = frames
        self.prompts = prompts
        self.tokenizer = make_tokenizer()
        self.silence = self.norm.silence() + torch.from_numpy(
            clock(max(PIECES) * FRAMES_PER_SECOND)
        )
        held = torch.load(folder / "codes.pt", weights_only=False)
        self.codes = build_codes().requires_grad_(False)
        self.codes.load_state_dict(held.get("live", held))
        self.codes.load_state_dict(held.get("mean", held), strict=False)
        self.planned_share = PLANNED_SHARE if self._codes_are_scores() else 0.0

    def batch(self, step: int, phase: str) -> Batch | Words:
        """Return what is learnt in a step of a phase of the training: "words", "first" or "all"."""
        if phase == "words":
            return self._words(np.random.default_rng([11, step]))
        rng = np.random.default_rng([13, step])
        seconds = int(rng.choice(list(PIECES), p=LENGTHS[phase]))
        tasks = TASKS[phase]
        count = max(1, self.frames // (seconds * FRAMES_PER_SECOND))
        drawn = rng.choice(list(tasks), count, p=list(tasks.values()))
        return self._collate([self.example(rng, seconds, str(task)) for task in drawn])

    def _words(self, rng: np.random.Generator) -> Words:
        texts = []
        sung = []
        answers = []
        for _ in range(self.prompts):
            score = self.pieces.draw(rng, 20).score
            instead = {
                "bpm": int(rng.integers(60, 181)),
                "beats": int(rng.integers(3, 5)),
                "key": f"{rng.choice(NOTE_NAMES[int(rng.integers(12))])} {rng.choice(('major', 'minor'))}",
            }
            text, lyrics, details = words_for(score, rng, modes.TEXT2MUSIC, 20.0, **instead)
            texts.append(text)
            sung.append(lyrics)
            answers.append(answers_to(score, details))
        return Words(self.tokens(texts, sung), torch.tensor(answers))

    def _collate(self, batch: list[Example]) -> Batch:
        references = [row.reference for row in batch if row.reference is not None]
        given = torch.tensor([row.reference is not None for row in batch])
        return Batch(
            torch.stack([row.target for row in batch]),
            torch.stack([row.source for row in batch]),
            torch.stack([row.mask for row in batch]),
            torch.stack([row.features for row in batch]),
            self.tokens([row.text for row in batch], [row.lyrics for row in batch]),
            torch.tensor([row.answers for row in batch]),
            torch.stack(references) if references else torch.zeros(0, REFERENCE_FRAMES, LATENTS),
            given * given.cumsum(0),
        )

    def tokens(self, texts: list[str], lyrics: list[str]) -> Tokens:
        """Return prompts and lyrics as the studio's tokens, cut where it cuts them."""
        words = self._padded(texts, MAX_TEXT_TOKENS)
        sung = self._padded(lyrics, MAX_LYRIC_TOKENS)
        return Tokens(
            words.input_ids, words.attention_mask.bool(), sung.input_ids, sung.attention_mask.bool()
        )

    def _padded(self, texts: list[str], longest: int) -> BatchEncoding:
        return self.tokenizer(
            texts, padding="longest", truncation=True, max_length=longest, return_tensors="pt"
        )

    def example(self, rng: np.random.Generator, seconds: int, task: str) -> Example:
        """Draw a piece of `seconds`, or part of a longer one, and what one of the studio's tasks makes of it.

        The clock starts with the part, as the studio's does. To a part from later on, which is like a visitor's own
        music, it does not tell the beat.
        """
        frames = seconds * FRAMES_PER_SECOND
        length = seconds
        if task != "text2music" and rng.random() >= WHOLE.get(task, 0.0):
            length = int(rng.choice(LONGER[seconds]))
        row = self.pieces.draw(rng, length)
        start = 0
        if length > seconds and rng.random() >= FROM_BEGINNING.get(task, 0.4):
            start = int(rng.integers(0, length * FRAMES_PER_SECOND - frames + 1))
        here = slice(start, start + frames)
        score = row.score
        target = self.norm.standard(row.latents[here])
        features = torch.from_numpy(row.features[here].astype(np.float32))
        features = (features - self.norm.usual) / self.norm.unusual
        if start:
            features = torch.full_like(features, float("nan"))
        silence = self.silence_for(score, frames)
        target, source, mask, instruction = self._context(rng, task, score, target, here, silence)
        if task != "text2music" and rng.random() < 0.5:
            source = source + SOURCE_NOISE * rng.random() * torch.from_numpy(
                rng.standard_normal(source.shape, np.float32)
            )
        text, lyrics, details = words_for(score, rng, instruction, float(seconds))
        reference = None
        if rng.random() < WITH_REFERENCE:
            reference = target.repeat(math.ceil(REFERENCE_FRAMES / frames), 1)[:REFERENCE_FRAMES]
        return Example(
            target, source, mask, features, text, lyrics, answers_to(score, details), reference
        )

    def silence_for(self, score: Score, frames: int) -> torch.Tensor:
        """Return the silence [T, 32] of a song: in long ones its clock starts again (song_clock.py)."""
        if frames <= round(KEPT_TIME.longest * FRAMES_PER_SECOND):
            return self.silence[:frames]
        period = song_clock.period_frames(KEPT_TIME, score.bpm, score.beats, FRAMES_PER_SECOND)
        return self.silence[:period].repeat(math.ceil(frames / period), 1)[:frames]

    def _context(
        self,
        rng: np.random.Generator,
        task: str,
        score: Score,
        target: torch.Tensor,
        here: slice,
        silence: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
        """Return target, source, mask and instruction of a task."""
        everywhere = torch.ones(len(target), 1)
        if task == "text2music":
            return target, silence, everywhere, modes.TEXT2MUSIC
        if task == "repaint":
            mask = _new_region(rng, len(target))
            return target, torch.where(mask > 0, silence, target), mask, modes.REPAINT
        if task == "cover":
            planned = rng.random() < self.planned_share
            source = self._from_codes(target, score, here.start if planned else None)
            return target, source, everywhere, modes.COVER

        def stems(names: list[str]) -> torch.Tensor:
            ticks = round(score.seconds * FRAMES_PER_SECOND) * FRAME_TICKS
            return self.norm.standard(latents_of(events_of(score, names), ticks))[here]

        if task == "complete":
            missing = [str(stem) for stem in rng.permutation(STEMS)[: int(rng.integers(1, 4))]]
            tracks = " | ".join(
                dict.fromkeys(track_of(stem, score.instruments) for stem in missing)
            )
            source = stems([stem for stem in STEMS if stem not in missing])
            return target, source, everywhere, modes.COMPLETE.format(tracks)
        stem = str(rng.choice(STEMS))
        track = track_of(stem, score.instruments)
        if task == "lego":
            return (
                stems([stem]),
                stems([s for s in STEMS if s != stem]),
                everywhere,
                modes.LAYER.format(track),
            )
        return stems([stem]), target, everywhere, modes.EXTRACT.format(track)

    @torch.no_grad()
    def _codes_are_scores(self) -> bool:
        """Tell whether the tokenizer finds the score's codes: older ones have codes of their own."""
        shares = []
        rng = np.random.default_rng(0)
        for _ in range(20):
            row = self.pieces.draw(rng, 10)
            _, codes = self.codes["audio_tokenizer"].tokenize(self.norm.standard(row.latents)[None])
            wanted = planner_codes.codes_of(engine_codes.digits_of(row.score, len(row.latents)))
            shares.append(engine_codes.agreement(codes[0, :, 0].numpy(), wanted))
        return float(np.mean(shares)) >= engine_codes.UNDERSTOOD

    @torch.no_grad()
    def _from_codes(self, target: torch.Tensor, score: Score, start: int | None) -> torch.Tensor:
        """Return latents [T, 32] from the codes of `target`, or from those of its score from the frame `start` on."""
        tokenizer = self.codes["audio_tokenizer"]
        if start is None:
            codes, _ = tokenizer.tokenize(target[None])
        else:
            planned = planner_codes.codes_of(engine_codes.digits_of(score, len(target), start))
            codes = tokenizer.quantizer.get_output_from_indices(torch.from_numpy(planned)[None])
        return self.codes["audio_token_detokenizer"](codes)[0, : len(target)]


def _new_region(rng: np.random.Generator, frames: int) -> torch.Tensor:
    """Return a mask [frames, 1] that is 1 in a middle, at the end (extend) or at the start."""
    length = int(frames * rng.uniform(0.15, 0.7))
    where = rng.random()
    start = 0
    if where < 0.35:
        start = int(rng.integers(frames - length + 1))
    elif where < 0.9:
        start = frames - length
    mask = torch.zeros(frames, 1)
    mask[start : start + length] = 1
    return mask


# --- batches ------------------------------------------------------------------------------------------------------


class Supply:
    """The batches of one step after the other, made in this process or by `workers` others."""

    def __init__(self, examples: Examples, workers: int = 0):
        self.examples = examples
        self.workers = workers
        self._batches: Iterator[Batch | Words] = iter(())
        self._next: tuple[str, int] | None = None

    def batch(self, step: int, phase: str) -> Batch | Words:
        """Return the batch of a step; workers make those of the steps that follow meanwhile."""
        if not self.workers:
            return self.examples.batch(step, phase)
        if self._next != (phase, step):
            # Before others start: they would inherit the end of those that are here.
            self._batches = iter(())
            loader = DataLoader(
                _Steps(self.examples, phase, step),
                batch_size=None,
                num_workers=self.workers,
                prefetch_factor=AHEAD,
                pin_memory=torch.cuda.is_available(),
            )
            self._batches = iter(loader)
        self._next = (phase, step + 1)
        return next(self._batches)


class _Steps(IterableDataset):
    """The batches from a step on; of several workers, which a loader asks in turn, each makes every so many-th."""

    def __init__(self, examples: Examples, phase: str, first: int):
        self.examples = examples
        self.phase = phase
        self.first = first

    def __iter__(self) -> Iterator[Batch | Words]:
        worker = get_worker_info()
        step = self.first + worker.id
        while True:
            yield self.examples.batch(step, self.phase)
            step += worker.num_workers
