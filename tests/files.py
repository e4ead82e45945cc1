"""Songs in files, as the studio writes them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import audio_export


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
