"""The band: seeded instrumental pieces with stems and captions: python -m tools.render_band FOLDER [options]

The preview engine learns from nothing else. Eight styles, 60 to 180 BPM, 24 keys, 3/4 and 4/4, sections that follow
tags; stereo, 48 kHz, made from arithmetic (`band_sounds`) after a score drawn from a seed (`band_score`,
`band_styles`). No sound in it was recorded or taken from anywhere. The same seed and wishes give the same samples on
one device; the score is the same on all of them.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from limits import SAMPLE_RATE
from tools.band_score import Score, compose
from tools.band_styles import INSTRUMENTS, STEMS, STYLES

if TYPE_CHECKING:
    import torch

LEVEL = 0.15
"""RMS that a piece is brought to, where its peak allows."""
PEAK = 10 ** (-1 / 20)
END_SECONDS = 0.03


@dataclass(frozen=True)
class Piece:
    """A rendered piece: its score and its stems [5, 2, samples], in the order of `band_styles.STEMS`."""

    score: Score
    stems: torch.Tensor

    @property
    def mix(self) -> torch.Tensor:
        """The piece as it is heard, [2, samples]: the plain sum of its stems."""
        return self.stems.sum(dim=0)

    def track(self, name: str) -> torch.Tensor:
        """Return one track [2, samples], by the name that the studio's tasks use, like "keyboard"."""
        return self.stems[[STEMS.index(stem) for stem in self.score.tracks[name]]].sum(dim=0)


def render(score: Score, device: torch.device | str = "cpu") -> Piece:
    """Play a score: stereo at 48 kHz, as long as the score to the sample."""
    import torch

    with torch.no_grad():
        return Piece(score, _stems(score, device))


def _stems(score: Score, device: torch.device | str) -> torch.Tensor:
    import torch

    from tools import band_sounds

    how, samples = STYLES[score.style], round(score.seconds * SAMPLE_RATE)
    # Each kit and room is a little different; the golden ratio spreads them over the noise.
    turn = score.seed * 0.618_034 % 1.0
    kit = band_sounds.drum_kit(**how.kit, turn=turn, device=device)
    stems = torch.zeros(len(STEMS), 2, samples, device=device)
    for number, stem in enumerate(STEMS):
        if stem == "drums":
            stems[number] = band_sounds.beat(score.hits, kit, band_sounds.KIT_PLACES, samples)
        else:
            patch = INSTRUMENTS[score.players[stem]].patch
            stems[number] = band_sounds.play(score.notes[stem], patch, samples, device)
    if how.ducked and "kick" in score.hits:
        stems[1:] *= band_sounds.pump(score.hits["kick"][:, 0], samples, how.ducked, device)
    if how.hiss:
        stems[0] += how.hiss * band_sounds.noise(turn + 0.5, samples, device)
    stems = band_sounds.finish_stems(stems, [how.finish[stem] for stem in STEMS], turn)
    mix = stems.sum(dim=0)
    gain = min(LEVEL / float(mix.square().mean().sqrt()), PEAK / float(mix.abs().max()))
    # The end of the piece is no click.
    end = min(round(END_SECONDS * SAMPLE_RATE), samples)
    stems[..., samples - end :] *= torch.linspace(1, 0, end, device=device)
    return stems * gain


def main() -> None:
    """Render the pieces that were asked for and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the WAV files and a text file of each piece go")
    parser.add_argument("--style", choices=STYLES, default="", help="default: drawn")
    parser.add_argument("--bpm", type=int, default=0)
    parser.add_argument("--key", default="", help='as in "F# minor"')
    parser.add_argument("--beats", type=int, choices=(3, 4), default=0, help="beats a bar")
    parser.add_argument("--lyrics", default="", help="section tags, as in [Intro][Verse][Chorus]")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first piece; the next ones count up")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--stems", action="store_true", help="write every stem, too")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    wishes = {name: getattr(arguments, name) for name in ("style", "bpm", "key", "beats", "lyrics", "seconds")}
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        started = time.perf_counter()
        try:
            score = compose(seed, **wishes)
        except ValueError as error:
            parser.error(str(error))
        piece = render(score, arguments.device)
        write(piece, arguments.folder, arguments.stems)
        seconds = time.perf_counter() - started
        print(f"{seed}: {score.captions[0]}, {score.bpm} BPM, {score.key}, {score.beats}/4, made in {seconds:.1f} s")


def write(piece: Piece, folder: Path, stems: bool = False) -> None:
    """Write the mix as WAV with a JSON file beside it, and each stem where asked."""
    import soundfile

    score = piece.score
    name = re.sub(r"\W+", "-", f"{score.seed}-{score.style}-{score.bpm}-{score.key}").lower()
    sounds = {"": piece.mix} | ({f"-{stem}": piece.stems[n] for n, stem in enumerate(STEMS)} if stems else {})
    for suffix, samples in sounds.items():
        soundfile.write(folder / f"{name}{suffix}.wav", samples.cpu().numpy().T, SAMPLE_RATE, subtype="PCM_24")
    told = {
        "seed": score.seed,
        "style": score.style,
        "bpm": score.bpm,
        "key": score.key,
        "time_signature": str(score.beats),
        "seconds": score.seconds,
        "form": [[part.name, round(part.start, 3), round(part.end, 3)] for part in score.form],
        "lyrics": score.lyrics,
        "captions": score.captions,
        "instruments": score.players,
        "tracks": score.tracks,
    }
    (folder / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
