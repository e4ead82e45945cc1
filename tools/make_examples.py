"""Make the songs of Generate's examples with the built-in engine: python -m tools.make_examples [NAME ...]

Writes into assets/examples, for each example of presets/examples.json or for those named, a song as MP3; and for all of
them the covers, and cards.json with what the page's player shows of them.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

import audio
import audio_export
import bootstrap
from backend import get_backend
from events import Done
from limits import SAMPLE_RATE
from model_weights import PREVIEW
from page_fields import EXAMPLES
from page_generate import SOUNDS
from params import parse_request

SONGS = EXAMPLES["generate"]
SECONDS = 20
# Of the first song; each next one has the next seed, so that no two covers look alike.
SEED = 107
MP3 = {
    "format": "MP3",
    "subtype": "MPEG_LAYER_III",
    "bitrate_mode": "CONSTANT",
    "compression_level": 0.9,
}
MOST_BYTES = 150_000
# Of the covers, which a first visit loads, and how wide the page shows them.
QUALITY = 45
PIXELS = 160
COLUMNS = 100


def make_song(name: str) -> None:
    """Make the song of an example and write it as MP3."""
    wanted = {**SONGS[name], "duration": SECONDS, "seed": seed_of(name), "quality": "best"}
    wanted["options"] = {"plan": False, "fade_out": 2, "format": "wav"}
    done = next(
        event
        for event in get_backend().stream(parse_request("generate", wanted))
        if isinstance(event, Done)
    )
    samples = audio.read_wav(done.files[0])
    sound = sound_of(name)
    soundfile.write(sound, samples.mean(axis=0), SAMPLE_RATE, **MP3)
    if sound.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"{sound.name} has {sound.stat().st_size:,} bytes, more than {MOST_BYTES:,}."
        )


def make_card(name: str) -> dict[str, object]:
    """Draw the cover of an example from its song, write it, and return the example's card."""
    sound = sound_of(name)
    picture = sound.with_suffix(".webp")
    samples = audio.decode(sound)
    small = cover_of(name, samples).resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    small.save(picture, quality=QUALITY, method=6)
    return {
        "sound": sound.name,
        "picture": picture.name,
        "seconds": samples.shape[1] / SAMPLE_RATE,
        "peaks": _peaks(samples),
    }


def cover_of(name: str, samples: np.ndarray) -> Image.Image:
    """Return the cover of an example as it is drawn from its song, in full size."""
    drawn = audio_export.picture_for_tags(samples, seed_of(name), SONGS[name]["key"])
    return Image.open(io.BytesIO(drawn))


def seed_of(name: str) -> int:
    return SEED + list(SONGS).index(name)


def sound_of(name: str) -> Path:
    """Return where the song of an example is."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"\W+", "-", letters)
    return SOUNDS / f"{slug}.mp3"


def _peaks(samples: np.ndarray) -> str:
    """Return the lowest and the highest sample of each column as int8 in base64."""
    parts = np.array_split(samples, COLUMNS, axis=1)
    lows_and_highs = np.array([(part.min(), part.max()) for part in parts])
    scaled = np.rint(lows_and_highs * 127 / np.abs(samples).max())
    return base64.b64encode(scaled.astype(np.int8).tobytes()).decode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the examples' songs again, all of them or those named, then all covers and cards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args(arguments).names or list(SONGS)
    if not SONGS.keys() >= set(names):
        parser.error(f"The examples are: {', '.join(SONGS)}.")
    bootstrap.bootstrap()
    os.environ["ACE_STUDIO_MODEL"] = PREVIEW
    SOUNDS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ACE_STUDIO_OUTPUT"] = folder
        for name in names:
            make_song(name)
    cards = {name: make_card(name) for name in SONGS}
    (SOUNDS / "cards.json").write_text(
        json.dumps(cards, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    _remove_others(cards)


def _remove_others(cards: dict[str, dict[str, object]]) -> None:
    """Delete the files of examples that are no longer there."""
    kept = {card[part] for card in cards.values() for part in ("sound", "picture")}
    for file in SOUNDS.iterdir():
        if file.name not in kept | {"cards.json"}:
            file.unlink()


if __name__ == "__main__":
    main()
