"""Where a LoRA comes from: an upload (a safetensors file, or a PEFT folder as a zip) or the hub.

`prepare` works outside the GPU. It makes a `LoraSpec` of what a visitor asked for: a checked file of this machine and
all that is known about it, picklable, so that it can be part of a job. Uploads and repositories are untrusted: nothing
is taken of a zip or a repository but one safetensors file and its json, and their sizes are known before they are read.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import constants

import hub
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
    about,
    is_inside,
    is_peft,
    read_config,
    read_header,
    read_layout,
    sha256_of,
)

MAX_ENTRIES = 50

NO_ALPHA = (
    f"It came without its {CONFIG_FILE}, so its alpha is not known and its rank is taken for it. If it sounds too "
    "weak, raise its weight, or add the folder as a zip."
)

_ARCHIVES = re.compile(r"\.(zip|tar|t?gz|tgz|bz2|xz|7z|rar|zst|jar|whl)$", re.IGNORECASE)
_DIRECTORY_BYTES = 1_000_000
_CHUNK = 1 << 20


@dataclass(frozen=True)
class LoraInfo:
    """What a LoRA is, for the page: `problem` says why it cannot be used, and then the rest may be empty.

    `ranks` and `alphas` are the different ones that occur, `modules` is how many layers it changes, `size` is in bytes.
    `made_for` is "XL" or "2B" where it fits one of them, and `fits` tells whether it fits the model that runs (None:
    not known, because that model is not here yet). `note` is a sentence on what is missing, where something is.
    """

    name: str
    format: str = ""
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    modules: int = 0
    size: int = 0
    sha256: str = ""
    made_for: str = ""
    fits: bool | None = None
    note: str = ""
    problem: Problem | None = None


@dataclass(frozen=True)
class LoraSpec:
    """One LoRA of a job: a file that was checked, what stood beside it, and the weight it acts with.

    `source` is for the record: "org/repo:file" or "upload", with the `revision` of the repository; never a path.
    """

    name: str
    source: str
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
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Progress]:
    """Make a `LoraSpec` of "org/repo", "org/repo:file" or an uploaded file; returns it.

    `folder` is the job's own, for what a zip holds; `widths` are the model's linear layers (None: not known yet). A
    file counts as uploaded only inside one of the folders `uploads`: whoever calls the API may write any path there.
    Yields progress, above all while something is fetched.

    Raises:
        StudioError: with the field "options.loras", for everything that is wrong with the source or the file.
    """
    if upload := _uploaded(source, uploads):
        path, named, revision, name = upload, "upload", "", upload.name
    elif hub_id(source):
        check_hub_allowed()
        path, named, revision = yield from fetch(source.strip(), cancelled)
        name = named
    else:
        raise _unknown_source(source)
    yield Progress("preparing")
    with about(name):
        path, config = _opened(path, folder)
        info = _described(path, name, config, widths)
    return LoraSpec(name, named, str(path), float(weight), info, config, revision)


def inspect(path: str | Path, widths: Widths | None = None) -> LoraInfo:
    """Tell what the LoRA in `path` is: a safetensors file, a PEFT folder, or such a folder as a zip. Never raises."""
    path = Path(path)
    try:
        with tempfile.TemporaryDirectory(prefix="ace-music-studio-lora-") as folder, about(path.name):
            file, config = _opened(path, Path(folder))
            return _described(file, path.name, config, widths)
    except StudioError as error:
        return LoraInfo(path.name, fits=False, problem=error.problem)


def _unknown_source(source: str) -> StudioError:
    if os.path.isabs(source):
        return StudioError("lora_missing", "A LoRA that was uploaded is not here any more.", FIELD, "Add it again.")
    return StudioError(
        "lora_unknown",
        f'A LoRA is an uploaded file, "org/repo" or "org/repo:file" on Hugging Face, not {shown(source, 80)}.',
        FIELD,
    )


# --- files --------------------------------------------------------------------------------------------------------


def _uploaded(source: str, uploads: Iterable[Path]) -> Path | None:
    """Return the file if it lies in one of the folders `uploads`, links resolved."""
    if not os.path.isabs(source) or "\0" in source:
        return None
    real = Path(os.path.realpath(source))
    inside = any(real.is_relative_to(os.path.realpath(folder)) for folder in uploads)
    return real if inside and real.is_file() else None


def _opened(path: Path, folder: Path) -> tuple[Path, PeftConfig | None]:
    """Return the safetensors file of an upload and what stands beside it; a zip is unpacked into `folder`."""
    if not path.is_dir() and zipfile.is_zipfile(path) and path.suffix.lower() == ".zip":
        path = _unpack(path, Path(tempfile.mkdtemp(prefix="lora-", dir=folder)))
    if path.is_dir():
        path = path / PEFT_FILE
    config = path.with_name(CONFIG_FILE)
    if not config.is_file() or not (path.name == PEFT_FILE or is_peft(read_header(path))):
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
        size=layout.header.size,
        sha256=sha256_of(path),
        made_for=layout.made_for,
        fits=None if widths is None else True,
        note=NO_ALPHA if layout.format in ("PEFT", "plain") and not alphas else "",
    )


# --- zips ---------------------------------------------------------------------------------------------------------


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack the two files of a PEFT folder from a zip into `folder`, which is private and empty; returns it."""
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as file:
            weights, config = _choose(file.infolist())
            _extract(file, weights, folder / PEFT_FILE, MAX_FILE_BYTES)
            if config:
                _extract(file, config, folder / CONFIG_FILE, MAX_CONFIG_BYTES)
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise _bad_zip("it is damaged") from error
    return folder


def _check_directory(archive: Path) -> None:
    """Look at the end of a zip, since zipfile reads its whole directory into memory, however long it is."""
    size = archive.stat().st_size
    if size > MAX_FILE_BYTES:
        raise _bad_zip(f"it is {size / 1e9:.1f} GB; up to {MAX_FILE_BYTES / 1e9:g} GB are read")
    with archive.open("rb") as file:
        file.seek(max(size - 22 - 65_535 - 20, 0))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22 or b"PK\x06\x07" in tail[max(at - 20, 0) : at]:
        raise _bad_zip("its end is damaged, or of a kind for larger archives (zip64)")
    entries, directory = struct.unpack("<HI", tail[at + 10 : at + 16])
    if entries > MAX_ENTRIES or directory > _DIRECTORY_BYTES:
        raise _bad_zip(f"it has {entries} entries; up to {MAX_ENTRIES} are read")


def _choose(entries: list[zipfile.ZipInfo]) -> tuple[zipfile.ZipInfo, zipfile.ZipInfo | None]:
    """Check all entries of a zip and return its one safetensors file and the config beside it."""
    if len(entries) > MAX_ENTRIES:
        raise _bad_zip(f"it has {len(entries)} entries; up to {MAX_ENTRIES} are read")
    if sum(entry.file_size for entry in entries) > MAX_FILE_BYTES:
        raise _bad_zip(f"it unpacks to more than {MAX_FILE_BYTES / 1e9:g} GB")
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind and kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise _bad_zip(f"{shown(entry.filename)} in it is a link or a device")
        if not is_inside(entry.filename.rstrip("/")):
            raise _bad_zip(f"{shown(entry.filename)} in it leads out of its folder")
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _bad_zip("it has a password, or is compressed in a way that is not usual")
        if _ARCHIVES.search(entry.filename):
            raise _bad_zip(f"{shown(entry.filename)} in it is an archive itself")
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise _bad_zip("a name stands in it twice")
    weights = [entry for entry in entries if entry.filename.endswith(SUFFIX) and not _is_hidden(entry.filename)]
    if len(weights) != 1:
        raise _bad_zip(f"it holds {len(weights)} safetensors files, and one is needed")
    beside = PurePosixPath(weights[0].filename).with_name(CONFIG_FILE).as_posix()
    return weights[0], next((entry for entry in entries if entry.filename == beside), None)


def _is_hidden(name: str) -> bool:
    """Tell whether a name is one of those that macOS adds to every zip ("__MACOSX/._adapter_model.safetensors")."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, most: int) -> None:
    """Write one entry to `path`; what it really holds counts, not what its header says."""
    if entry.file_size > most:
        raise _bad_zip(f"{shown(entry.filename)} in it is too large")
    written = 0
    with archive.open(entry) as source, path.open("xb") as target:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > entry.file_size:
                raise _bad_zip(f"{shown(entry.filename)} in it is larger than it says")
            target.write(chunk)
    if written != entry.file_size:
        raise _bad_zip(f"{shown(entry.filename)} in it is cut off")


def _bad_zip(reason: str) -> Refusal:
    return Refusal(
        "lora_broken",
        f"cannot be unpacked: {reason}",
        f"Zip the folder with {PEFT_FILE} and {CONFIG_FILE}, or upload the safetensors file alone.",
    )


# --- the hub -----------------------------------------------------------------------------------------------------

HUB_VARIABLE = "ACE_STUDIO_HUB_LORAS"
PEFT_FILE = "adapter_model.safetensors"
SUFFIX = ".safetensors"


def hub_id(text: str) -> tuple[str, str] | None:
    """Split "org/repo" or "org/repo:file" into repository and file ("" where none is named); None if it is neither."""
    repo, _, file = text.strip().partition(":")
    if not hub.is_repo_id(repo) or (":" in text and not is_inside(file)):
        return None
    return repo, file


def hub_allowed() -> bool:
    """Tell whether visitors may name repositories: always, but on a Space only with ACE_STUDIO_HUB_LORAS=1."""
    return not _on_space() or os.environ.get(HUB_VARIABLE, "") == "1"


def check_hub_allowed() -> None:
    """Raise StudioError where visitors may not name repositories."""
    if not hub_allowed():
        raise StudioError(
            "lora_hub_off",
            "This Space does not fetch LoRAs from Hugging Face.",
            FIELD,
            f"Upload the file, or set {HUB_VARIABLE}=1 in the Space's settings if it is yours.",
        )


def fetch(wanted: str, cancelled: Callable[[], bool]) -> Iterator[Progress]:
    """Fetch one LoRA into the Hugging Face cache; returns (its path, "org/repo:file", the commit).

    Where the hub cannot be reached, what the cache has is used.
    """
    repo_id, file = hub_id(wanted)
    try:
        running = LoraFetch(repo_id, file)
        yield from hub.watched(running, cancelled)
        name, commit = running.chosen, running.commit
    except StudioError as error:
        cached = _in_cache(repo_id, file) if error.problem.code in ("hub_unreachable", "offline") else None
        if cached is None:
            problem = error.problem
            raise StudioError(problem.code, problem.message, FIELD, problem.hint) from None
        name, commit = cached
    return hub.storage_of(repo_id) / "snapshots" / commit / name, f"{repo_id}:{name}", commit


# --- fetching -----------------------------------------------------------------------------------------------------


class LoraFetch(hub.Fetch):
    """The download of one safetensors file and the adapter_config.json beside it; `chosen` is the former's name."""

    def __init__(self, repo_id: str, file: str):
        super().__init__(repo_id, hub.Selection(sorted, "", "LoRA", "its name"))
        self._wanted = file
        self.chosen = ""
        # On a Space, visitors must not reach what only the owner's token opens.
        self.token = False if _on_space() else None

    def choose(self, there: list[hub.RepoFile], guarded: bool) -> list[hub.RepoFile]:
        """Choose the file that is wanted and its config; raises StudioError."""
        if guarded and _on_space():
            raise StudioError(
                "model_guarded", f"{self.repo_id} is not open to everybody, so this Space does not fetch it."
            )
        files = {file.name: file for file in there if is_inside(file.name)}
        self.chosen = _choose_file(self.repo_id, list(files), self._wanted)
        config = PurePosixPath(self.chosen).with_name(CONFIG_FILE).as_posix()
        chosen = [files[self.chosen], *([files[config]] if config in files else [])]
        for file, most in zip(chosen, (MAX_FILE_BYTES, MAX_CONFIG_BYTES), strict=False):
            if file.size > most:
                raise StudioError(
                    "lora_too_large",
                    f"{file.name} in {self.repo_id} is {size_text(file.size)}; up to {size_text(most)} are fetched.",
                )
        return chosen

    def plan(self, files: list[hub.RepoFile]) -> None:
        """Add up what there is to do; what is here already needs no announcement."""
        super().plan(files)
        if self.done():
            self.note = ""

    def explained(self, error: Exception) -> StudioError:
        """Put what went wrong into words; a LoRA is named in a form, not in a variable."""
        explained = super().explained(error)
        if explained.problem.code != "model_unknown":
            return explained
        return StudioError(
            "lora_unknown",
            f"Hugging Face knows no repository {self.repo_id}, or it is private.",
            hint="Check its spelling; a private one needs HF_TOKEN.",
        )


def _choose_file(repo_id: str, names: list[str], wanted: str) -> str:
    """Choose the safetensors file of a repository: the one that is named, the only one, or PEFT's own."""
    found = sorted(name for name in names if name.endswith(SUFFIX))
    if wanted in found:
        return wanted
    if not wanted and (len(found) == 1 or PEFT_FILE in found):
        return PEFT_FILE if PEFT_FILE in found else found[0]
    listed = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    if not found:
        raise StudioError(
            "lora_unknown", f"{repo_id} has no safetensors file in it.", hint="Only safetensors files are read."
        )
    if wanted:
        raise StudioError(
            "lora_unknown", f"{repo_id} has no safetensors file {shown(wanted)}.", hint=f"It has {listed}."
        )
    raise StudioError(
        "lora_unknown",
        f"{repo_id} has {len(found)} safetensors files.",
        hint=f"Name one, {repo_id}:{found[0]}: {listed}.",
    )


def _in_cache(repo_id: str, file: str) -> tuple[str, str] | None:
    """Return (file, commit) of what an earlier fetch left, or None."""
    storage = hub.storage_of(repo_id)
    try:
        commit = (storage / "refs" / constants.DEFAULT_REVISION).read_text(encoding="utf-8").strip()
        if not re.fullmatch("[0-9a-f]{40}", commit):
            return None
        snapshot = storage / "snapshots" / commit
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob(f"*{SUFFIX}") if path.exists()]
        return _choose_file(repo_id, names, file), commit
    except (OSError, StudioError):
        return None


def _on_space() -> bool:
    return bool(os.environ.get("SPACE_ID"))
