"""The header of a safetensors file, read without trust: what tensors it holds, and that the file really holds them.

A LoRA comes from anybody. Nothing here unpickles, and no weights are read: the file begins with the length of a JSON
header that names each tensor, its type, shape and place, and all of it is checked against the file before it is
believed. What is wrong is a `Refusal`, which `about` turns into one sentence that names the LoRA.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from events import StudioError
from limits import shown

FIELD = "options.loras"
MAX_FILE_BYTES = 2_000_000_000
MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 20_000

_NAME_CHARACTERS = 500
_DIMENSIONS = 8
_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}
_NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}


class Refusal(Exception):
    """Why a file is not used: `rest` goes on after "The LoRA ..." and has no full stop."""

    def __init__(self, code: str, rest: str, hint: str = ""):
        super().__init__(code, rest, hint)
        self.code, self.rest, self.hint = code, rest, hint


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Turn a `Refusal`, and a file that cannot be opened, into a `StudioError` about the LoRA `name`."""
    try:
        yield
    except Refusal as error:
        raise StudioError(error.code, f"The LoRA {shown(name, 80)} {error.rest}.", FIELD, error.hint) from None
    except FileNotFoundError:
        sentence = f"The LoRA {shown(name, 80)} is not there any more."
        raise StudioError("lora_missing", sentence, FIELD, "Add it again.") from None
    except OSError as error:
        sentence = f"The LoRA {shown(name, 80)} could not be read or stored: {error.strerror or error}."
        raise StudioError("disk", sentence, FIELD) from None


# --- the header ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """One entry of a header; `start` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The tensors by name, the file's own `metadata`, and its `size` in bytes."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    size: int


def read_header(path: str | Path, most: int = MAX_FILE_BYTES) -> Header:
    """Read and check the header of a safetensors file of up to `most` bytes; the tensors themselves are not read.

    Raises:
        Refusal: the file is too large, cut off, not safetensors, or its header contradicts itself or the file.
        OSError: the file cannot be opened.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Refusal("lora_too_large", f"is {size / 1e9:.1f} GB; up to {most / 1e9:g} GB are read")
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _no_header(start)
        header = parse_json(file.read(length), "its header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise broken("its header is damaged (metadata)")
    if len(header) > MAX_TENSORS:
        raise broken(f"it lists {len(header):,} tensors; up to {MAX_TENSORS:,} are read")
    tensors = {name: _tensor(name, entry, 8 + length) for name, entry in header.items()}
    _check_places(tensors, 8 + length, size)
    return Header(tensors, metadata, size)


def read_number(path: str | Path, tensor: Tensor) -> float:
    if math.prod(tensor.shape) != 1:
        raise broken("an alpha in it is not one number")
    with Path(path).open("rb") as file:
        file.seek(tensor.start)
        data = file.read(tensor.end - tensor.start)
    if len(data) != tensor.end - tensor.start:
        raise broken("it was cut off while it was read")
    if tensor.dtype == "BF16":
        return struct.unpack("<f", b"\0\0" + data)[0]
    if tensor.dtype not in _NUMBERS:
        raise broken(f"an alpha in it is of the type {tensor.dtype}")
    return struct.unpack(_NUMBERS[tensor.dtype], data)[0]


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """Parse an untrusted JSON object; a key that stands twice, NaN and deep nesting are refused like bad syntax."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key stands twice")
        return value

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise broken(f"{what} is damaged (no JSON object)")
    return value


def broken(reason: str) -> Refusal:
    return Refusal("lora_broken", f"cannot be used: {reason}", "Download or export it again, as safetensors.")


def is_inside(name: str) -> bool:
    """Tell whether a name of an archive or a repository is a plain relative path."""
    parts = name.split("/")
    return bool(name) and not re.search(r"[\\:\x00-\x1f]", name) and not {"", ".", ".."} & set(parts)


def sha256_of(path: str | Path) -> str:
    """Return the file's SHA-256; one that did not change since is not read again."""
    stat = os.stat(path)
    return _digest(os.path.realpath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest(path: str, *identity: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_header(start: bytes) -> Refusal:
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        reason = "it is not a safetensors file but one that can run programs when it is opened (.pt, .bin, .ckpt)"
        return Refusal("lora_broken", f"cannot be used: {reason}", "Only safetensors files are read.")
    if start == b"version ":
        return broken("it is a Git LFS pointer, not the weights")
    return broken("it is not a safetensors file, or it is cut off")


def _tensor(name: str, entry: Any, data: int) -> Tensor:
    flaw = broken(f"its header is damaged ({shown(name)})")
    if (
        not isinstance(entry, dict)
        or entry.keys() != {"dtype", "shape", "data_offsets"}
        or len(name) > _NAME_CHARACTERS
    ):
        raise flaw
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    whole = all(
        isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**53 for n in numbers)
        for numbers in (shape, offsets)
    )
    if not isinstance(dtype, str) or dtype not in _BYTES or not whole or len(shape) > _DIMENSIONS or len(offsets) != 2:
        raise flaw
    if offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        raise flaw
    return Tensor(dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _check_places(tensors: Mapping[str, Tensor], data: int, size: int) -> None:
    """Demand what the format does: the tensors fill the file from `data` to its end, without overlaps or holes."""
    end = data
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            raise broken("its tensors overlap or leave holes")
        end = tensor.end
    if end != size:
        raise broken(f"it is not whole ({size:,} of {end:,} bytes)" if size < end else "bytes follow its tensors")
