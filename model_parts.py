"""What checkpoints share: parts of equal content are loaded once, and a turbo without audio codes borrows SFT's.

Equality is decided by content, never by a name: the hub's hashes of files in its cache, else a hash of the file. What
was read is remembered, because a loaded model outlives its files.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from model_hub import PARTS
from model_weights import OPTIONAL_PARTS, Weights, has_audio_codes, read_json, transformer_config

# The transformer is what makes a checkpoint another one: it is never compared, which would read many gigabytes. A
# scheduler is small, and keeps what a song has set.
OWN = ("transformer", "scheduler")
# What libraries note in a configuration about themselves, which changes nothing.
NOTES = ("_diffusers_version", "_name_or_path", "transformers_version")
_BLOB = re.compile("[0-9a-f]{64}")

# Hashes of files by path, size and time of change; of parts by their folder.
_files: dict[tuple[str, int, int], str] = {}
_parts: dict[Path, str] = {}


def folders_of(weights: Weights, lender: Weights | None = None) -> dict[str, Path]:
    """Return the folder of each part of a checkpoint, with the parts that it borrows from `lender`."""
    if weights.folder is None:
        return {}
    folders = {part: weights.folder / part for part in PARTS}
    if not has_audio_codes(weights):
        for part in OPTIONAL_PARTS:
            del folders[part]
            if lender is not None:
                folders[part] = lender.local_folder / part
    return folders


def keys_of(weights: Weights, lender: Weights | None = None) -> dict[str, str]:
    """Return a key for each part of a checkpoint, borrowed ones included; equal keys mean equal content."""
    keys = {}
    for part, folder in folders_of(weights, lender).items():
        keys[part] = str(folder) if part in OWN else content(folder)
    return keys


def can_lend(lender: Weights, weights: Weights) -> bool:
    """Tell whether `lender` has the parts for audio codes that `weights` lacks.

    Codes are made of latents, so both must have the same VAE.
    """
    if weights.folder is None or lender.folder is None or has_audio_codes(weights):
        return False
    if not has_audio_codes(lender):
        return False
    channels = "audio_acoustic_hidden_dim"
    if transformer_config(weights).get(channels) != transformer_config(lender).get(channels):
        return False
    return content(weights.folder / "vae") == content(lender.folder / "vae") != ""


def content(folder: Path) -> str:
    """Return a hash of what is in the folder of a part, the last one if it is gone; "" if it was never there."""
    digest = hashlib.sha256()
    paths = [path for path in sorted(folder.glob("*")) if path.is_file()]
    try:
        for path in paths:
            digest.update(f"{path.name}\n{_hash_of(path)}\n".encode())
    except OSError:
        paths = []
    if paths:
        _parts[folder] = digest.hexdigest()
    return _parts.get(folder, "")


def _hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, which the name of a file in the hub's cache tells if it is a large one."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
        return blob.name
    facts = blob.stat()
    key = (str(blob), facts.st_size, facts.st_mtime_ns)
    if key not in _files:
        _files[key] = _read_hash(blob, is_config=path.name == "config.json")
    return _files[key]


def _read_hash(path: Path, is_config: bool) -> str:
    config = read_json(path) if is_config else None
    if config is not None:
        kept = {name: value for name, value in config.items() if name not in NOTES}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
