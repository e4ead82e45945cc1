"""What the built-in engine's music is worth: python -m training evaluate --checkpoint FOLDER --json FILE

Makes songs from held-out prompts, as the studio makes them, and measures them (`listening`): tempo, key, style,
silence, clipping, speed; what the VAE loses; whether a repaint keeps the tempo of its surroundings and an extension
continues in tempo and key. The column "ruler" has the same measurement of rendered pieces, where the truth
is known: no engine can be expected to do better. With `--planner` songs of the same prompts are made once more from
that planner's codes: the lines that begin with "planned", whose ruler are songs from the scores' own codes. `--gate`
ends with an error where the weights must not be shipped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import audio
import audio_export
import audio_levels
import bootstrap
import models
import modes
import planner
import planner_codes
import song_codec
from events import Progress
from gpu_job import SongJob
from limits import SAMPLE_RATE
from model_weights import BUILT_IN, MODEL_VARIABLE, Weights
from params import parse_request, settle
from training import engine_codes, listening
from training.band_score import Part, Score, compose
from training.band_sounds import render
from training.band_styles import STYLES
from training.engine_latents import FRAMES_PER_SECOND

TEMPO_ERROR = 0.04
FIRST_CLASSIFIER_SEED = 10_000
"""Held-out prompts have the seeds from 0; the training's begin at ten million."""

FIRST_LONG_SEED = 5_000
LONG_SECONDS = 90.0
EARLY_SECONDS = 30
STRETCH_SECONDS = 15
"""Songs in which tempo and key are judged stretch by stretch, those of the first seconds apart."""

FIRST_FORM_SEED = 8_000
FORM_SECONDS = 120.0
FORM_LYRICS = "[Intro]\n\n[Verse]\n\n[Chorus]\n\n[Verse]\n\n[Chorus]\n\n[Outro]"
"""Songs with sections, which are judged by where one begins, by how a chorus comes back, and by how the piece ends."""
BOUNDARY_SECONDS = 2.0
ENDED_SECONDS = 0.1
ENDED_SHARE = 0.1
"""A song has ended if its last tenth of a second has less than this share of its root mean square."""

CLIPPED_SHARE = 1e-3
GAP_SECONDS = 2.0
GATE = (
    "silent",
    "clipped",
    "tempo",
    "key",
    "style",
    "speed",
    "repaint, tempo",
    "extend, tempo",
    "extend, key",
    "long, tempo later",
    "long, key later",
)
"""The lines that decide whether weights may be shipped."""
SHOWN = 8
MEASURED = "## Measured"


@dataclass(frozen=True)
class Line:
    """One line of the result: the engine's figure, what is wanted ("at least" or "at most"), the ruler's figure."""

    name: str
    value: float | None
    at_least: float | None = None
    at_most: float | None = None
    ruler: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Tell whether the figure is as wanted; None where nothing is wanted of it or it was not measured."""
        if self.value is None or (self.at_least is None and self.at_most is None):
            return None
        return (
            self.value >= self.at_least if self.at_least is not None else self.value <= self.at_most
        )

    def row(self) -> str:
        """Return the line as a row of the table."""
        wanted = f">= {self.at_least:g}" if self.at_least is not None else ""
        wanted = f"<= {self.at_most:g}" if self.at_most is not None else wanted
        verdict = {True: "pass", False: "FAIL", None: ""}[self.passed]
        figures = [
            "-" if figure is None else f"{figure:.3g}" for figure in (self.value, self.ruler)
        ]
        return f"{self.name:<24}{figures[0]:>9}{wanted:>9}{figures[1]:>9}  {verdict:<5} {self.note}".rstrip()


# --- making -------------------------------------------------------------------------------------------------------


class Engine:
    """The checkpoint in `folder` as the studio runs it, with a request's `options`, by default its quality's own."""

    def __init__(
        self,
        folder: Path,
        quality: str,
        options: dict[str, float] | None = None,
        device: models.Device | None = None,
    ):
        weights = Weights(folder.name, folder, "variable", "", "preview", None, folder.name)
        self.device = device or models.pick_device(weights)
        # As "preview" the folder would be the one that the studio has, not this one.
        self.pipe = models.build_pipeline(replace(weights, engine="xl"), self.device)
        self.words = {"quality": quality, "options": options or {}}

    def make(
        self,
        mode: str,
        score: Score,
        source: np.ndarray | None = None,
        planned_by: planner.Planner | None = None,
        codes: tuple[int, ...] = (),
        **values: Any,
    ) -> np.ndarray | None:
        """Return the song of a score's words as samples [2, n]; None where the take ended with a problem.

        With `planned_by` it follows the codes that this planner writes for them, with `codes` those.
        """
        words = {
            "prompt": score.captions[0],
            "lyrics": score.lyrics,
            "bpm": score.bpm,
            "key": score.key,
            "time_signature": str(score.beats),
            **self.words,
            **values,
        }
        with tempfile.TemporaryDirectory() as folder:
            sounds = {}
            if source is not None:
                path = str(Path(folder, "source.wav"))
                audio_export.write_wav(path, source)
                words["source"] = path
                sounds["source"] = path
            request = parse_request(mode, words)
            job = SongJob(
                request, (score.seed,), (0,), folder, sounds, settings=settle(request, "preview")
            )
            job.running.touch()
            plan = None
            if planned_by is not None:
                *_, plan = planner.plan(planned_by, request, job.seeds)
            elif codes:
                plan = planner.Plan(
                    metadata={},
                    caption=request.prompt,
                    rewritten=False,
                    seed=score.seed,
                    seconds=score.seconds,
                    codes=(codes,),
                    stuck=(None,),
                )
            events = modes.run(self.pipe, job, plan)
            *_, outcome = (event for event in events if not isinstance(event, Progress))
            take = outcome.takes[0]
            return audio.read_wav(take.file) if take.file else None


def held_out(count: int, seconds: float, first: int = 0) -> list[Score]:
    """Return scores whose words are prompts: every style in turn, at tempos and in keys that it usually has."""
    styles = list(STYLES)
    numbers = range(first, first + count)
    return [
        compose(number, style=styles[number % len(styles)], seconds=seconds) for number in numbers
    ]


def with_sections(count: int) -> list[Score]:
    """Return scores of `FORM_SECONDS` with section tags."""
    styles = list(STYLES)
    return [
        compose(
            FIRST_FORM_SEED + number,
            style=styles[number % len(styles)],
            seconds=FORM_SECONDS,
            lyrics=FORM_LYRICS,
        )
        for number in range(count)
    ]


def rendered(scores: list[Score]) -> Iterator[np.ndarray]:
    """Yield the samples [2, n] of the band's own renderings."""
    for score in scores:
        yield render(score).mix


# --- measuring ----------------------------------------------------------------------------------------------------


def style_classifier(engine: Engine, count: int, seconds: float) -> listening.Classifier:
    """Train the classifier on `count` rendered pieces that are neither trained on nor asked for.

    It hears half of them as they come out of the engine's VAE: one that knows clean renderings alone judges by what
    the VAE adds, and takes even perfect latents for another style in every second case.
    """
    names = list(STYLES)
    scores = [
        compose(FIRST_CLASSIFIER_SEED + number, style=names[number % len(names)], seconds=seconds)
        for number in range(count)
    ]
    sounds = (
        through_vae(engine, samples) if number // len(names) % 2 else samples
        for number, samples in enumerate(rendered(scores))
    )
    features = np.stack([listening.traits(samples) for samples in sounds])
    return listening.train_classifier(features, [score.style for score in scores])


def measure_songs(
    engine: Engine, scores: list[Score], classifier: listening.Classifier
) -> tuple[list[Line], list]:
    """Measure songs from words, and the band's renderings of the same words beside them.

    Returns the lines and, song by song, what `describe` heard.
    """
    heard = []
    ruler = []
    took = []
    for score, truth in zip(scores, rendered(scores), strict=True):
        started = time.perf_counter()
        samples = engine.make("generate", score, duration=score.seconds)
        took.append((time.perf_counter() - started) / score.seconds)
        heard.append(describe(samples, score, classifier))
        ruler.append(describe(truth, score, classifier))
        print(f"{len(heard)}/{len(scores)} {score.style}: {heard[-1]}", file=sys.stderr, flush=True)

    def share(rows: list[dict], test) -> float:
        return sum(bool(test(row)) for row in rows) / len(rows)

    def line(name: str, test, **wanted: float) -> Line:
        return Line(name, share(heard, test), ruler=share(ruler, test), **wanted)

    factors = Counter(str(row["factor"]) for row in heard if row["tempo_error"] <= TEMPO_ERROR)
    factor_note = "within 4 %, of which at double or half the tempo: " + str(
        factors["0.5"] + factors["2.0"]
    )
    lines = [
        line("silent", lambda row: row["silent"], at_most=0.0),
        line("clipped", lambda row: row["clipped"], at_most=0.0),
        replace(
            line("tempo", lambda row: row["tempo_error"] <= TEMPO_ERROR, at_least=0.85),
            note=factor_note,
        ),
        line("key", lambda row: row["key_match"] in ("same", "relative"), at_least=0.75),
        line("key, relative excluded", lambda row: row["key_match"] == "same"),
        line("style", lambda row: row["style"] == row["asked_style"], at_least=0.75),
    ]
    note = f"seconds a second of music, {engine.device.kind}, the first song left out"
    lines.append(Line("speed", float(np.median(took[1:] or took)), at_most=0.15, note=note))
    return lines, heard


def measure_planned(
    engine: Engine, scores: list[Score], planned_by: planner.Planner
) -> tuple[list[Line], list]:
    """Measure songs from a planner's codes, to be compared with "tempo" and "key" of the unplanned ones.

    Beside them are songs from the codes of the scores themselves: no planner of this engine can do better.
    Returns the lines and, song by song, whether the tempo and the key are right.
    """
    rows = []
    for score in scores:
        own = planner_codes.codes_of(
            engine_codes.digits_of(score, round(score.seconds * FRAMES_PER_SECOND))
        )
        song = engine.make("generate", score, planned_by=planned_by, duration=score.seconds)
        best = engine.make("generate", score, codes=tuple(own.tolist()), duration=score.seconds)
        found = {"ruler": judged(best, score), **judged(song, score)}
        rows.append({"seed": score.seed, "asked_style": score.style, **found})

    def line(what: str) -> Line:
        share = float(np.mean([row[what] for row in rows]))
        best = float(np.mean([row["ruler"][what] for row in rows]))
        return Line(f"planned, {what}", share, at_least=0.95, ruler=best)

    return [line("tempo"), line("key")], rows


def judged(samples: np.ndarray | None, score: Score) -> dict[str, bool]:
    """Return whether tempo and key of a song [2, n] are right; of no song they are not."""
    if samples is None:
        return {"tempo": False, "key": False}
    tempo = has_tempo(listening.tempo(samples), score.bpm)
    return {"tempo": tempo, "key": has_key(listening.key_ranking(samples)[0], score.key)}


def draw_songs(engine: Engine, songs: list[tuple[Score, dict[str, Any]]], path: Path) -> None:
    """Draw the spectrograms of songs, made once more, under what was asked and what `describe` heard."""
    pictures = []
    for score, heard in songs:
        title = (
            f"{score.style}, seed {score.seed}: asked {score.bpm} BPM, {score.key}; "
            f"heard {heard['tempo']:g} BPM, {heard['key']}"
        )
        pictures.append((title, engine.make("generate", score, duration=score.seconds), ()))
    draw_spectrograms(pictures, path)


def draw_planned(engine: Engine, planned_by: planner.Planner, path: Path) -> None:
    """Draw the spectrograms of `SHOWN` planned songs with the sections of their plans."""
    pictures = []
    for score in with_sections(SHOWN):
        song = engine.make("generate", score, planned_by=planned_by, duration=score.seconds)
        title = f"{score.style}, seed {score.seed}: {score.bpm} BPM, {score.key}"
        pictures.append((title, song, score.form))
    draw_spectrograms(pictures, path)


def draw_spectrograms(
    pictures: list[tuple[str, np.ndarray | None, tuple[Part, ...]]], path: Path
) -> None:
    """Draw the spectrogram of each song [2, n] under its title, with a line and a name where a section begins."""
    import librosa
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = -(-len(pictures) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(14, 2.4 * rows), squeeze=False)
    for axis, (title, samples, sections) in zip(axes.flat, pictures, strict=False):
        axis.set_title(title, fontsize=9)
        axis.set_yticks([])
        if samples is None:
            continue
        mel = librosa.power_to_db(
            librosa.feature.melspectrogram(y=samples.mean(axis=0), sr=SAMPLE_RATE, n_mels=96),
            ref=np.max,
            top_db=70,
        )
        seconds = samples.shape[1] / SAMPLE_RATE
        axis.imshow(
            mel, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, len(mel))
        )
        for part in sections:
            axis.axvline(part.start, color="white", linewidth=1)
            axis.text(part.start + 0.5, len(mel) - 12, part.name, color="white", fontsize=8)
    figure.supxlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def describe(
    samples: np.ndarray | None, score: Score, classifier: listening.Classifier
) -> dict[str, Any]:
    """Return what is heard in a song [2, n] beside what was asked; None counts as silence."""
    asked = {
        "seed": score.seed,
        "asked_style": score.style,
        "asked_bpm": score.bpm,
        "asked_key": score.key,
    }
    if samples is None:
        nothing = {
            "silent": True,
            "clipped": False,
            "tempo": 0.0,
            "tempo_error": 1.0,
            "factor": 1.0,
        }
        return {**asked, **nothing, "key": "", "key_match": "other", "style": ""}
    tempo = listening.tempo(samples)
    error, factor = listening.tempo_error(tempo, score.bpm)
    key = listening.key_ranking(samples)[0]
    return {
        **asked,
        "silent": longest_gap(samples) > GAP_SECONDS,
        "clipped": clipped_share(samples) > CLIPPED_SHARE,
        "tempo": round(tempo, 1),
        "tempo_error": round(error, 4),
        "factor": factor,
        "key": key,
        "key_match": listening.key_match(key, score.key),
        "style": classifier.style(samples),
    }


def has_tempo(tempo: float, bpm: float) -> bool:
    """Tell whether a tempo is the asked one within 4 %, half and double allowed."""
    return listening.tempo_error(tempo, bpm)[0] <= TEMPO_ERROR


def has_key(found: str, asked: str) -> bool:
    """Tell whether a key is the asked one or its relative."""
    return listening.key_match(found, asked) in ("same", "relative")


def longest_gap(samples: np.ndarray) -> float:
    """Return the seconds of the longest stretch under -60 dBFS, measured in tenths of a second."""
    block = SAMPLE_RATE // 10
    quiet = [
        audio_levels.is_silent(samples[:, start : start + block])
        for start in range(0, samples.shape[1], block)
    ]
    longest = 0
    run = 0
    for silent in quiet:
        run = run + 1 if silent else 0
        longest = max(longest, run)
    return longest / 10


def clipped_share(samples: np.ndarray) -> float:
    """Return the share of samples that lie at the song's own peak, as the flat tops of a clipped wave do."""
    peak = float(np.abs(samples).max())
    return float((np.abs(samples) >= 0.999 * peak).mean()) if peak else 0.0


def through_vae(engine: Engine, samples: np.ndarray) -> np.ndarray:
    """Return samples [2, n] as they come back from the latents."""

    def encoded() -> Iterator[Any]:
        yield (yield from song_codec.encode(engine.pipe, samples, "reading"))

    *_, clean = encoded()
    back = np.concatenate(
        [part.numpy() for *_, part in song_codec.decode_latents(engine.pipe, clean)], axis=1
    )
    return back[:, : samples.shape[1]]


def measure_vae(engine: Engine, scores: list[Score]) -> list[Line]:
    """Measure what is lost between a rendered piece and its way through the latents and back."""
    import librosa

    distances = []
    drifts = []
    likeness = []
    tempos = []
    keys = []
    for score, samples in zip(scores, rendered(scores), strict=True):
        back = through_vae(engine, samples)
        loud = [
            librosa.power_to_db(
                librosa.feature.melspectrogram(y=x.mean(axis=0), sr=SAMPLE_RATE, n_mels=80),
                top_db=60,
            )
            for x in (samples, back)
        ]
        distances.append(float(np.abs(loud[0] - loud[1]).mean()))
        drifts.append(abs(audio_levels.rms_dbfs(back) - audio_levels.rms_dbfs(samples)))
        likeness.append(
            float(
                np.dot(samples.ravel(), back.ravel())
                / (np.linalg.norm(samples) * np.linalg.norm(back) + 1e-9)
            )
        )
        tempos.append([has_tempo(listening.tempo(sound), score.bpm) for sound in (back, samples)])
        keys.append(
            [has_key(listening.key_ranking(sound)[0], score.key) for sound in (back, samples)]
        )
    tempo, true_tempo = np.mean(tempos, axis=0).tolist()
    key, true_key = np.mean(keys, axis=0).tolist()
    return [
        Line("VAE, tempo", tempo, at_least=0.95, ruler=true_tempo),
        Line("VAE, key", key, at_least=0.95, ruler=true_key),
        Line(
            "VAE, likeness of waves",
            float(np.mean(likeness)),
            at_least=0.95,
            note="1 is the same wave",
        ),
        Line(
            "VAE, mel distance",
            float(np.mean(distances)),
            at_most=2.0,
            note="dB, mean over 80 bands",
        ),
        Line("VAE, level error", float(np.mean(drifts)), note="dB"),
    ]


def measure_edits(engine: Engine, scores: list[Score]) -> tuple[list[Line], list]:
    """Repaint the middle of rendered pieces and extend them; judge the new part alone.

    Returns the lines and, piece by piece, whether tempo and key are right.
    """
    rows = []
    for score, source in zip(scores, rendered(scores), strict=True):
        start = round(score.seconds * 0.25, 2)
        end = round(score.seconds * 0.75, 2)
        repainted = engine.make("edit", score, source, action="repaint", start=start, end=end)
        after = max(10.0, score.seconds / 2)
        extended = engine.make("extend", score, source, after=after)
        row = {"seed": score.seed, "asked_bpm": score.bpm, "asked_key": score.key}
        middle = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        parts = {
            "repaint": (None if repainted is None else repainted[:, middle], source[:, middle]),
            "extend": (
                None if extended is None else extended[:, source.shape[1] :],
                source[:, -round(after * SAMPLE_RATE) :],
            ),
        }
        for name, sounds in parts.items():
            for who, part in zip(("engine", "ruler"), sounds, strict=True):
                row[f"{name}, {who}"] = {
                    "tempo": part is not None and has_tempo(listening.tempo(part), score.bpm),
                    "key": part is not None and has_key(listening.key_ranking(part)[0], score.key),
                }
        rows.append(row)

    def line(part: str, what: str, wanted: float) -> Line:
        found = [
            np.mean([row[f"{part}, {who}"][what] for row in rows]) for who in ("engine", "ruler")
        ]
        return Line(f"{part}, {what}", float(found[0]), at_least=wanted, ruler=float(found[1]))

    lines = [
        line("repaint", "tempo", 0.85),
        line("extend", "tempo", 0.8),
        line("extend", "key", 0.7),
    ]
    return lines, rows


def measure_long(engine: Engine, count: int) -> tuple[list[Line], list]:
    """Make songs of `LONG_SECONDS` and judge each stretch of `STRETCH_SECONDS` alone, before and after `EARLY_SECONDS`.

    Returns the lines and, song by song, whether the tempo and the key of each stretch are right.
    """
    rows = []
    for score in held_out(count, LONG_SECONDS, first=FIRST_LONG_SEED):
        song = engine.make("generate", score, duration=score.seconds)
        rows.append(
            {
                "seed": score.seed,
                "engine": stretches(song, score),
                "ruler": stretches(render(score).mix, score),
            }
        )
    early = round(EARLY_SECONDS / STRETCH_SECONDS)

    def share(who: str, what: str, part: slice) -> float:
        return float(np.mean([stretch[what] for row in rows for stretch in row[who][part]]))

    lines = []
    for name, what, part, wanted in (
        ("long, tempo at first", "tempo", slice(early), None),
        ("long, tempo later", "tempo", slice(early, None), 0.8),
        ("long, key later", "key", slice(early, None), 0.7),
    ):
        lines.append(
            Line(
                name, share("engine", what, part), at_least=wanted, ruler=share("ruler", what, part)
            )
        )
    return lines, rows


def measure_form(
    engine: Engine, count: int, planned_by: planner.Planner
) -> tuple[list[Line], list]:
    """Make planned songs of `FORM_SECONDS` with section tags and judge their form; the ruler is the band's rendering.

    Returns the lines and, song by song, what was found.
    """
    rows = []
    for score in with_sections(count):
        song = engine.make("generate", score, planned_by=planned_by, duration=score.seconds)
        found = {"engine": form_heard(song, score), "ruler": form_heard(render(score).mix, score)}
        rows.append({"seed": score.seed, "asked_style": score.style, **found})

    def line(name: str, what: str, wanted: float) -> Line:
        shares = [np.mean([row[who][what] for row in rows]) for who in ("engine", "ruler")]
        return Line(f"form, {name}", float(shares[0]), at_least=wanted, ruler=float(shares[1]))

    lines = [
        line("sections begin", "begin", 0.8),
        line("chorus comes back", "returns", 0.9),
        line("ends", "ends", 1.0),
    ]
    return lines, rows


def form_heard(samples: np.ndarray | None, score: Score) -> dict[str, float]:
    """Return how much of a score's form is heard in samples [2, n]; in no song nothing is.

    `begin` is the share of its sections that begin within `BOUNDARY_SECONDS` of where one is heard to, `returns`
    whether the second chorus is nearer to the first than to any verse, `ends` whether it ends by itself.
    """
    if samples is None:
        return {"begin": 0.0, "returns": 0.0, "ends": 0.0}
    bar_seconds = 60 * score.beats / score.bpm
    bars = round(score.form[-1].start / bar_seconds) + 1
    heard = listening.bars_heard(
        samples, bar_seconds, max(bars, round(score.seconds / bar_seconds))
    )
    wanted = [part.start for part in score.form[1:]]
    begun = np.array(listening.sections_begin(heard, len(wanted))) * bar_seconds
    near = [bool((np.abs(begun - start) <= BOUNDARY_SECONDS).any()) for start in wanted]
    means: dict[str, list[np.ndarray]] = {}
    for part in score.form:
        bars_of = slice(round(part.start / bar_seconds), round(part.end / bar_seconds))
        means.setdefault(part.name, []).append(heard[bars_of].mean(axis=0))
    first, second = means["chorus"]
    to_verses = min(float(np.linalg.norm(second - verse)) for verse in means["verse"])
    loud = float(np.sqrt(np.square(samples).mean()))
    last = samples[:, -round(ENDED_SECONDS * SAMPLE_RATE) :]
    return {
        "begin": float(np.mean(near)),
        "returns": float(np.linalg.norm(second - first) < to_verses),
        "ends": float(float(np.sqrt(np.square(last).mean())) < ENDED_SHARE * loud),
    }


def stretches(samples: np.ndarray | None, score: Score) -> list[dict[str, bool]]:
    """Return whether tempo and key are right in each stretch of a song [2, n]; of no song none is."""
    found = []
    for start in range(0, round(score.seconds), STRETCH_SECONDS):
        part = samples
        if samples is not None:
            part = samples[:, start * SAMPLE_RATE : (start + STRETCH_SECONDS) * SAMPLE_RATE]
        found.append(judged(part, score))
    return found


# --- the command --------------------------------------------------------------------------------------------------


def evaluate(
    engine: Engine,
    prompts: int,
    edits: int,
    pieces: int,
    seconds: float,
    long: int,
    form: int,
    planned_by: planner.Planner | None = None,
) -> tuple[list[Line], dict]:
    """Run every measurement; returns the lines and what was heard song by song.

    Planned songs are measured where there is a planner for them.
    """
    scores = held_out(prompts, seconds)
    classifier = style_classifier(engine, pieces, seconds)
    lines, songs = measure_songs(engine, scores, classifier)
    lines += measure_vae(engine, scores[:edits])
    more, changed = measure_edits(engine, scores[:edits])
    longer, later = measure_long(engine, long)
    details = {"songs": songs, "edits": changed, "long": later}
    lines += [*more, *longer]
    if planned_by is not None:
        planned, details["planned"] = measure_planned(engine, scores, planned_by)
        formed, details["form"] = measure_form(engine, form, planned_by)
        lines += [*planned, *formed]
    return lines, details


def load_planner(folder: Path, device: models.Device) -> planner.Planner:
    """Load the planner in `folder` as the studio does; raises StudioError where it is none."""
    weights = Weights(folder.name, folder, "variable", "", "transformers", None, folder.name)
    return planner.load_planner(weights, device)


def write_card(folder: Path, rows: list[str]) -> None:
    """Put the table into the checkpoint's card, in the place of an older one."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8").split(MEASURED)[0].rstrip("\n")
    table = "\n".join(rows)
    card.write_text(f"{text}\n\n{MEASURED}\n\n```\n{table}\n```\n", encoding="utf-8")


def main() -> None:
    """Measure a checkpoint, print the table, write what was asked for; exits where the gate does not let it pass."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="default: the one that the built-in engine runs"
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument(
        "--edits", type=int, default=48, help="pieces that are repainted and extended"
    )
    parser.add_argument(
        "--pieces",
        type=int,
        default=960,
        help="rendered pieces that the style classifier learns from",
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--long", type=int, default=12, help=f"songs of {LONG_SECONDS:g} s")
    parser.add_argument(
        "--planner", type=Path, help="measure planned songs too: the folder of the planner"
    )
    parser.add_argument(
        "--form", type=int, default=24, help=f"planned songs of {FORM_SECONDS:g} s with sections"
    )
    parser.add_argument("--quality", default="standard")
    parser.add_argument("--steps", type=int, help="default: those of the quality")
    parser.add_argument("--guidance", type=float, help="default: that of the quality")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(
        "--picture", type=Path, help="draw the spectrograms of the first eight songs here (PNG)"
    )
    parser.add_argument(
        "--planned-picture",
        type=Path,
        help="draw eight planned songs with their sections here (PNG)",
    )
    parser.add_argument(
        "--card", action="store_true", help="add the table to the checkpoint's README.md"
    )
    parser.add_argument(
        "--gate", action="store_true", help=f"fail where one of {', '.join(GATE)} does"
    )
    parser.add_argument("--smoke", action="store_true", help="two prompts, two steps: does it run?")
    arguments = parser.parse_args()
    folder = arguments.checkpoint or BUILT_IN[MODEL_VARIABLE]
    given = arguments
    sizes = (given.prompts, given.edits, given.pieces, given.seconds, given.long, given.form)
    if arguments.smoke:
        sizes = (2, 1, 16, 10.0, 1, 1)
    options = {"steps": 2 if arguments.smoke else arguments.steps, "guidance": arguments.guidance}
    given_options = {name: value for name, value in options.items() if value is not None}
    engine = Engine(folder, arguments.quality, given_options)
    planned_by = None
    if arguments.planner:
        planned_by = load_planner(arguments.planner, engine.device)
    lines, details = evaluate(engine, *sizes, planned_by=planned_by)
    rows = [f"{'':<24}{'engine':>9}{'wanted':>9}{'ruler':>9}", *(line.row() for line in lines)]
    print("\n".join(rows))
    if arguments.json:
        figures = [{**vars(line), "passed": line.passed} for line in lines]
        report = {"checkpoint": folder.name, "sizes": sizes, "lines": figures, **details}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.picture:
        scores = held_out(min(sizes[0], SHOWN), sizes[3])
        draw_songs(engine, [*zip(scores, details["songs"], strict=False)], arguments.picture)
    if arguments.planned_picture and planned_by is not None:
        draw_planned(engine, planned_by, arguments.planned_picture)
    if arguments.card:
        write_card(folder, rows)
    failed = [line.name for line in lines if line.name in GATE and line.passed is False]
    if arguments.gate and failed:
        sys.exit(f"These weights must not be shipped: {', '.join(failed)}.")


if __name__ == "__main__":
    bootstrap.bootstrap()
    main()
