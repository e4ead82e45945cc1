"""Render seeded instrumental pieces: python -m training band FOLDER --style funk --bpm 104 --key "E minor" --stems

The built-in engine learns from nothing but this band. Eight styles, 60 to 180 BPM, 24 keys, 3/4 and 4/4, sections that
follow tags; stereo, 48 kHz. `band_score` writes a score from a seed, `band_sounds` plays it. Equal seeds and options
give equal samples.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

from limits import SAMPLE_RATE
from training.band_score import compose
from training.band_sounds import STEMS, Piece, render
from training.band_styles import STYLES


def main() -> None:
    """Render the pieces asked for and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="where the WAV files and a JSON file for each piece go"
    )
    parser.add_argument("--style", choices=STYLES, help="default: drawn")
    parser.add_argument("--bpm", type=int)
    parser.add_argument("--key", help='as in "F# minor"')
    parser.add_argument("--beats", type=int, choices=(3, 4), help="beats per bar")
    parser.add_argument("--lyrics", help="section tags, as in [Intro][Verse][Chorus]")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first piece; the next ones count up"
    )
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--stems", action="store_true", help="write every stem too")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    wishes = {
        name: getattr(arguments, name)
        for name in ("style", "bpm", "key", "beats", "lyrics", "seconds")
    }
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        started = time.perf_counter()
        try:
            score = compose(seed, **wishes)
        except ValueError as error:
            parser.error(str(error))
        write(render(score), arguments.folder, arguments.stems)
        seconds = time.perf_counter() - started
        print(
            f"{seed}: {score.captions[0]}, {score.bpm} BPM, {score.key}, {score.beats}/4, made in {seconds:.1f} s"
        )


def write(piece: Piece, folder: Path, stems: bool = False) -> None:
    """Write the mix as WAV with a JSON file beside it, and each stem if asked."""
    import soundfile

    score = piece.score
    name = re.sub(
        r"\W+", "-", f"{score.seed}-{score.style}-{score.bpm}-{score.key.replace('#', ' sharp')}"
    ).lower()
    sounds = {"": piece.mix} | (
        {f"-{stem}": sound for stem, sound in zip(STEMS, piece.stems, strict=True)} if stems else {}
    )
    for suffix, samples in sounds.items():
        soundfile.write(folder / f"{name}{suffix}.wav", samples.T, SAMPLE_RATE, subtype="PCM_24")
    facts = {
        "seed": score.seed,
        "style": score.style,
        "bpm": score.bpm,
        "key": score.key,
        "time_signature": str(score.beats),
        "seconds": score.seconds,
        "form": [[part.name, round(part.start, 3), round(part.end, 3)] for part in score.form],
        "lyrics": score.lyrics,
        "captions": score.captions,
        "instruments": score.instruments,
        "kit": score.kit,
    }
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
