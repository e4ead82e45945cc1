"""Songs in files, as the studio writes them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import audio_export
from limits import SAMPLE_RATE


def write_song(samples: np.ndarray, path: Path, kind: str = "wav") -> Path:
    """Write [channels, samples] at 48 kHz and return the path."""
    audio_export.save(Path(path), audio_export.encode(samples, kind))
    return path


def tag_file(path: Path, title: str, record: Mapping[str, Any], picture: bytes = b"") -> None:
    file = io.BytesIO(path.read_bytes())
    audio_export.tag(file, title, record, picture)
    audio_export.save(path, file)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


CONTAINERS = {"m4a": "ipod", "aac": "adts", "mkv": "matroska"}


def write_media(samples: np.ndarray, path: Path, codec: str) -> Path:
    """Write [channels, samples] at 48 kHz as a phone or a browser does, with PyAV; return the path."""
    import av

    kind = path.suffix.removeprefix(".")
    layout = "stereo" if len(samples) == 2 else "mono"
    with av.open(str(path), "w", format=CONTAINERS.get(kind, kind)) as file:
        stream = file.add_stream(codec, rate=SAMPLE_RATE, layout=layout)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples, np.float32), format="fltp", layout=layout
        )
        frame.sample_rate = SAMPLE_RATE
        frame.pts = 0
        fitting = av.AudioResampler(
            format=stream.format, layout=layout, rate=SAMPLE_RATE, frame_size=stream.frame_size or 0
        )
        for part in [*fitting.resample(frame), *fitting.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path
