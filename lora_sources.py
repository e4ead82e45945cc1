"""Where a LoRA comes from: an upload (a safetensors file, or a PEFT folder as a zip) or the hub.

Both are untrusted: only one safetensors file and its json are taken, and their sizes are known
before they are read.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Container, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from huggingface_hub import snapshot_download

import model_hub
from events import Problem, Progress, StudioError
from limits import shown, size_text
from lora_format import (
    CONFIG_FILE,
    FIELD,
    MAX_CONFIG_BYTES,
    MAX_FILE_BYTES,
    PeftConfig,
    Refusal,
    Widths,
    naming_lora,
    read_config,
    read_header,
    read_layout,
    whole_model,
)

HUB_VARIABLE = "ACE_STUDIO_HUB_LORAS"
PEFT_FILE = "adapter_model.safetensors"
SUFFIX = ".safetensors"
MAX_ENTRIES = 50

_NO_ALPHA = (
    f"It came without its {CONFIG_FILE}, so its alpha is unknown and assumed to be its rank. If it sounds too weak, "
    "raise its weight, or add the folder as a zip."
)
_DIRECTORY_BYTES = 1_000_000


@dataclass(frozen=True)
class LoraInfo:
    """What a LoRA is, for the page; with a `problem`, which says why it cannot be used, the rest may be empty."""

    name: str
    format: str = ""
    ranks: tuple[int, ...] = ()  # the distinct ranks in the file
    alphas: tuple[float, ...] = ()  # the distinct alphas
    modules: int = 0  # the number of layers it changes
    size: int = 0  # bytes
    numbers: int = 0  # that lie in memory while it acts
    sha256: str = ""
    made_for: str = ""  # "XL" or "2B" if it fits one of them
    fits: bool | None = None  # whether it fits the model in use; None if that is not here yet
    note: str = ""
    problem: Problem | None = None


@dataclass(frozen=True)
class LoraSpec:
    """One LoRA of a job: a checked file, the config that came with it, and its weight; picklable."""

    source: str  # for the record: "org/repo:file" or "upload", never a path
    path: str
    weight: float
    info: LoraInfo
    config: PeftConfig | None = None
    revision: str = ""


def prepare(
    source: str,
    weight: float,
    *,
    folder: Path,
    widths: Widths | None = None,
    uploads: Sequence[Path] = (),
) -> Generator[Progress, None, LoraSpec]:
    """Return the `LoraSpec` for "org/repo", "org/repo:file" or an uploaded file; yield progress,
    mostly of downloads.

    `folder` is the job's own, for what a zip holds; `widths` are the model's linear layers, None if
    unknown. A file counts as uploaded only within one of the folders `uploads`, because an API call
    may name any path. Raises StudioError with the field "options.loras" for everything that is
    wrong with the source or the file.
    """
    upload = _uploaded(source, uploads)
    if upload:
        path = upload
        named = "upload"
        revision = ""
        name = upload.name
    elif hub_id(source):
        path, named, revision = yield from _fetch(source)
        name = named
    elif os.path.isabs(source):
        raise StudioError(
            "lora_missing", "An uploaded LoRA is no longer here.", FIELD, "Add it again."
        )
    else:
        names = '"org/repo" or "org/repo:file" on Hugging Face'
        raise StudioError(
            "lora_unknown",
            f"A LoRA is an uploaded file, or {names}, not {shown(source, 80)}.",
            FIELD,
        )
    yield Progress("preparing")
    with naming_lora(name):
        path, config = _opened(path, folder)
        info = _described(path, name, config, widths)
    return LoraSpec(named, str(path), float(weight), info, config, revision)


def inspect(path: str | Path, widths: Widths | None = None) -> LoraInfo:
    """Return what the LoRA in `path` is: a safetensors file, a PEFT folder, or such a folder as a zip. Never raises."""
    path = Path(path)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="ace-music-studio-lora-") as folder,
            naming_lora(path.name),
        ):
            file, config = _opened(path, Path(folder))
            return _described(file, path.name, config, widths)
    except StudioError as error:
        return LoraInfo(path.name, fits=False, problem=error.problem)


def sha256_of(path: str | Path) -> str:
    """Return the file's SHA-256; an unchanged file is not read again."""
    stat = os.stat(path)
    return _digest(os.path.realpath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest(path: str, *identity: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _uploaded(source: str, uploads: Sequence[Path]) -> Path | None:
    """Return the file if it lies in a folder of `uploads`, links resolved."""
    if not os.path.isabs(source) or "\0" in source:
        return None
    real = Path(os.path.realpath(source))
    inside = any(real.is_relative_to(os.path.realpath(folder)) for folder in uploads)
    return real if inside and real.is_file() else None


def _opened(path: Path, folder: Path) -> tuple[Path, PeftConfig | None]:
    """Return the safetensors file of an upload and its config; a zip is unpacked into `folder`."""
    if path.is_file() and path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
        path = _unpack(path, Path(tempfile.mkdtemp(prefix="lora-", dir=folder)))
    if path.is_dir():
        path = path / PEFT_FILE
    config = path.with_name(CONFIG_FILE)
    by_peft = path.name == PEFT_FILE or any(
        name.startswith("base_model.model.") for name in read_header(path)[0]
    )
    if not by_peft or not config.is_file():
        return path, None
    with config.open("rb") as file:
        return path, read_config(file.read(MAX_CONFIG_BYTES + 1))


def _described(path: Path, name: str, config: PeftConfig | None, widths: Widths | None) -> LoraInfo:
    layout = read_layout(path, widths, config)
    alphas = tuple(sorted({layer.alpha for layer in layout.layers if layer.alpha is not None}))
    return LoraInfo(
        name=name,
        format=layout.format,
        ranks=tuple(sorted({layer.rank for layer in layout.layers if layer.rank is not None})),
        alphas=alphas,
        modules=len(layout.layers),
        size=path.stat().st_size,
        numbers=layout.numbers,
        sha256=sha256_of(path),
        made_for=layout.made_for,
        fits=None if widths is None else True,
        note=_NO_ALPHA if layout.format in ("PEFT", "plain") and not alphas else "",
    )


def is_inside(name: str) -> bool:
    """Return whether a name from a repository is a plain relative path."""
    return not re.search(r"[\\:\x00-\x1f]", name) and not {"", ".", ".."} & set(name.split("/"))


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack the two files of a PEFT folder from a zip into `folder`, which is private and empty, and return it."""
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as file:
            weights, config = _choose(file.infolist())
            _extract(file, weights, folder / PEFT_FILE, MAX_FILE_BYTES)
            if config:
                _extract(file, config, folder / CONFIG_FILE, MAX_CONFIG_BYTES)
    except (
        zipfile.BadZipFile,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        zlib.error,
    ) as error:
        raise _bad_zip("it is damaged") from error
    return folder


def _check_directory(archive: Path) -> None:
    """Look at the end of a zip, since zipfile reads its whole directory into memory, however long it is."""
    with archive.open("rb") as file:
        file.seek(max(archive.stat().st_size - 22 - 65_535 - 20, 0))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22 or b"PK\x06\x07" in tail[max(at - 20, 0) : at]:
        raise _bad_zip("its end is damaged, or of a kind for larger archives (zip64)")
    entries, directory = struct.unpack("<HI", tail[at + 10 : at + 16])
    if entries > MAX_ENTRIES or directory > _DIRECTORY_BYTES:
        raise _bad_zip(f"it has {entries} entries; the limit is {MAX_ENTRIES}")


def _choose(entries: list[zipfile.ZipInfo]) -> tuple[zipfile.ZipInfo, zipfile.ZipInfo | None]:
    # Windows PowerShell 5 writes "folder\\file", and macOS adds "__MACOSX/._file" for every file.
    by_name = {entry.filename.replace("\\", "/"): entry for entry in entries}
    names = [name for name in by_name if not re.search(r"(^|/)(\.|__MACOSX)", name)]
    if is_whole_model(names):
        raise whole_model()
    weights = weights_among(names)
    if weights is None:
        found = weights_in(names)
        raise _bad_zip(f"it holds {len(found)} safetensors files, not one", found)
    config = config_beside(weights, names)
    return by_name[weights], by_name[config] if config else None


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, most: int) -> None:
    """Write one entry to `path`, a regular file whatever the entry's own name and type are."""
    if entry.file_size > most:
        raise _bad_zip(f"{shown(entry.filename)} in it is too large")
    # zipfile bounds the memory of a step, and never reads more than the entry claims, only for
    # these two.
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _bad_zip("it has a password or an unusual compression")
    with archive.open(entry) as source, path.open("xb") as target:
        shutil.copyfileobj(source, target)


def _bad_zip(reason: str, names: Sequence[str] = ()) -> Refusal:
    hint = (
        f"Zip the folder with {PEFT_FILE} and {CONFIG_FILE}, or upload the safetensors file alone."
    )
    if names:
        hint += f" It holds {_listed(names)}."
    return Refusal("lora_broken", f"cannot be unpacked: {reason}", hint)


# --- which file of several: one rule for a zip, a repository and the cache ------------------------


def weights_in(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(SUFFIX))


def weights_among(names: Iterable[str]) -> str | None:
    """Return the LoRA among the files of a folder: the only one, or the topmost with PEFT's own name; else None."""
    found = weights_in(names)
    if len(found) == 1:
        return found[0]
    by_peft = [name for name in found if PurePosixPath(name).name == PEFT_FILE]
    least = min((name.count("/") for name in by_peft), default=0)
    topmost = [name for name in by_peft if name.count("/") == least]
    return topmost[0] if len(topmost) == 1 else None


def config_beside(weights: str, names: Container[str]) -> str | None:
    """Return the adapter_config.json in the folder of a file, if there is one."""
    beside = PurePosixPath(weights).with_name(CONFIG_FILE).as_posix()
    return beside if beside in names else None


def is_whole_model(names: Iterable[str]) -> bool:
    """Tell whether a folder holds a whole model, as diffusers or transformers save one."""
    paths = [PurePosixPath(name) for name in names]
    if any(path.name == CONFIG_FILE for path in paths):
        return False
    weights = [path.name for path in paths if path.name.endswith(SUFFIX)]
    if any(re.search(r"-\d{5}-of-\d{5}\.", name) for name in weights):
        return True
    # A LoRA may be called model.safetensors, too, but not beside other weights.
    is_model = "diffusion_pytorch_model.safetensors" in weights or "model.safetensors" in weights
    indexed = any(path.name == "model_index.json" for path in paths)
    return indexed or (is_model and len(weights) > 1)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shown(name, 60).strip('"') for name in names[:5]) + more


def hub_id(text: str) -> tuple[str, str] | None:
    """Split "org/repo" or "org/repo:file" into repository and file, "" if none is named; None if it is neither."""
    repo, _, file = text.strip().partition(":")
    if not model_hub.is_repo_id(repo) or (":" in text and not is_inside(file)):
        return None
    return repo, file


def hub_allowed() -> bool:
    """Return whether visitors may name repositories: always, except on a Space without ACE_STUDIO_HUB_LORAS=1."""
    return not _on_space() or os.environ.get(HUB_VARIABLE, "") == "1"


def _fetch(wanted: str) -> Generator[Progress, None, tuple[Path, str, str]]:
    """Download a LoRA, or take an earlier one if the hub is out of reach; return (path, "org/repo:file", commit)."""
    if not hub_allowed():
        message = "This Space does not download LoRAs from Hugging Face."
        hint = f"Upload the file, or set {HUB_VARIABLE}=1 in the Space's settings if it is yours."
        raise StudioError("lora_hub_off", message, FIELD, hint)
    named = hub_id(wanted)
    assert named is not None, wanted
    repo_id, file = named
    # On a Space, visitors must not reach what only the owner's token opens.
    token: Literal[False] | None = False if _on_space() else None
    running = model_hub.Fetch(
        repo_id, functools.partial(_choose_files, repo_id, file), "its name", token
    )
    try:
        yield from model_hub.watched(running)
        name = running.files[0].name
        commit = running.commit
    except StudioError as error:
        problem = error.problem
        cached = None
        if problem.code in ("hub_unreachable", "offline"):
            cached = _in_cache(repo_id, file)
        if cached is None:
            if problem.code == "model_unknown":
                code = "lora_unknown"
            else:
                code = problem.code
            raise StudioError(code, problem.message, FIELD, problem.hint) from None
        name, commit = cached
    return model_hub.storage_of(repo_id) / "snapshots" / commit / name, f"{repo_id}:{name}", commit


def _choose_files(
    repo_id: str, wanted: str, offered: list[model_hub.RepoFile], guarded: bool
) -> list[model_hub.RepoFile]:
    """Choose the safetensors file that is wanted and its config; raises StudioError."""
    if guarded and _on_space():
        closed = f"{repo_id} is not open to everybody, so this Space does not download it."
        raise StudioError("model_guarded", closed)
    files = {file.name: file for file in offered if is_inside(file.name)}
    name = _choose_file(repo_id, list(files), wanted)
    beside = config_beside(name, files)
    config = files[beside] if beside else None
    for file, most in ((files[name], MAX_FILE_BYTES), (config, MAX_CONFIG_BYTES)):
        if file and file.size > most:
            large = f"{file.name} in {repo_id} is {size_text(file.size)}; the limit is {size_text(most)}."
            raise StudioError("lora_too_large", large)
    if config:
        return [files[name], config]
    return [files[name]]


def _choose_file(repo_id: str, names: list[str], wanted: str) -> str:
    """Choose the safetensors file of a repository: the one that is named, or as `weights_among` does."""
    found = weights_in(names)
    name = wanted or weights_among(names)
    if name in found and (wanted or not is_whole_model(names)):
        return name
    if not wanted and is_whole_model(names):
        refusal = whole_model()
        raise StudioError(
            refusal.code, f"{repo_id} is a whole model, not a LoRA.", hint=refusal.hint
        )
    if not found:
        message = f"{repo_id} has no safetensors file in it."
        hint = "Only safetensors files are read."
    elif wanted:
        message = f"{repo_id} has no safetensors file {shown(wanted)}."
        hint = f"It has {_listed(found)}."
    else:
        message = f"{repo_id} has {len(found)} safetensors files."
        hint = f"Name one, {repo_id}:{found[0]}: {_listed(found)}."
    raise StudioError("lora_unknown", message, hint=hint)


def _in_cache(repo_id: str, file: str) -> tuple[str, str] | None:
    """Return (file, commit) of an earlier download, or None."""
    try:
        snapshot = Path(snapshot_download(repo_id, local_files_only=True))
        names = [
            path.relative_to(snapshot).as_posix()
            for path in snapshot.rglob(f"*{SUFFIX}")
            if path.exists()
        ]
        return _choose_file(repo_id, names, file), snapshot.name
    except (OSError, StudioError):
        return None


def _on_space() -> bool:
    return bool(os.environ.get("SPACE_ID"))
