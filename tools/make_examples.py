"""Make the songs of Generate's examples with the built-in engine: python -m tools.make_examples

Writes into assets/examples, for each example of presets/examples.json, a song as MP3 and its picture, and cards.json
with what the page's player shows of them.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import tempfile
import unicodedata

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
from record import Stored

SECONDS = 20
SEED = 7
MP3 = {
    "format": "MP3",
    "subtype": "MPEG_LAYER_III",
    "bitrate_mode": "CONSTANT",
    "compression_level": 0.9,
}
MOST_BYTES = 150_000
# Of the pictures, which a first visit loads.
QUALITY = 40
COLUMNS = 100


def make(name: str) -> dict[str, object]:
    """Make the song of an example, write its files, and return its card."""
    wanted = {**EXAMPLES["generate"][name], "duration": SECONDS, "seed": SEED, "quality": "draft"}
    wanted["options"] = {"plan": False, "fade_out": 2, "format": "wav"}
    done = next(
        event
        for event in get_backend().stream(parse_request("generate", wanted))
        if isinstance(event, Done)
    )
    samples = audio.read_wav(done.files[0])
    slug = re.sub(
        r"\W+", "-", unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    )
    sound = SOUNDS / f"{slug}.mp3"
    picture = SOUNDS / f"{slug}.webp"
    soundfile.write(sound, samples.mean(axis=0), SAMPLE_RATE, **MP3)
    if sound.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"{sound.name} has {sound.stat().st_size:,} bytes, more than {MOST_BYTES:,}."
        )
    art = audio_export.picture_for_page(
        samples, done.record["takes"][0]["seed"], Stored.from_record(done.record).key
    )
    small = Image.open(io.BytesIO(base64.b64decode(art.partition(",")[2])))
    small.save(picture, quality=QUALITY, method=6)
    parts = np.array_split(samples, COLUMNS, axis=1)
    lows_and_highs = (
        np.array([(part.min(), part.max()) for part in parts]) * 127 / np.abs(samples).max()
    )
    peaks = base64.b64encode(np.rint(lows_and_highs).astype(np.int8).tobytes()).decode()
    return {
        "sound": sound.name,
        "picture": picture.name,
        "seconds": samples.shape[1] / SAMPLE_RATE,
        "peaks": peaks,
    }


def main() -> None:
    """Make all examples again."""
    bootstrap.bootstrap()
    os.environ["ACE_STUDIO_MODEL"] = PREVIEW
    SOUNDS.mkdir(parents=True, exist_ok=True)
    for old in SOUNDS.iterdir():
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ACE_STUDIO_OUTPUT"] = folder
        cards = {name: make(name) for name in EXAMPLES["generate"]}
    (SOUNDS / "cards.json").write_text(
        json.dumps(cards, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
