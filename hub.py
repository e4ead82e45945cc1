"""Fetching a model from the Hugging Face hub into its cache: announced, resumed, stopped at any moment.

huggingface_hub (2.4) drops the part of a file it has when a download ends early, and cannot be stopped inside a file of
several gigabytes. So the bytes are streamed here, over its session, headers and URLs, into `blobs/<hash>.incomplete` of
its documented cache layout. A file that is complete and whose hash is right gets its blob name; when all are there they
get their links in `snapshots/<commit>`, so that huggingface_hub and everything built on it finds them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id

from events import Progress, StudioError
from limits import shown, size_text

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0
"""Longest wait for the hub's first answer."""
SILENCE_SECONDS = 600.0
"""A hub that could not be reached is not asked again for so long."""
READ_SECONDS = 20.0
TICK_SECONDS = 0.4
RETRIES, RETRY_SECONDS = 5, 1.0
CHUNK_BYTES = 1 << 20
SPARE_BYTES = 256_000_000

PARTS = (
    *("transformer", "vae", "text_encoder", "tokenizer", "condition_encoder"),
    *("audio_tokenizer", "audio_token_detokenizer", "scheduler"),
)
INDEX = "model_index.json"

# When each endpoint was last found silent (time.monotonic).
_silent_since: dict[str, float] = {}


@dataclass(frozen=True)
class Selection:
    """Which files of a repository make a model: `choose` picks them from all names, and `index` must be among them.

    `kind` and `variable` are for messages: what the model is, and what names it.
    """

    choose: Callable[[Iterable[str]], list[str]]
    index: str
    kind: str
    variable: str


def download(repo_id: str, cancelled: Callable[[], bool], selection: Selection | None = None) -> Iterator[Progress]:
    """Fetch a model in `repo_id` into the Hugging Face cache; what an earlier try brought is kept and used.

    Without a `selection` it is the pipeline.

    Yields an event at least every half second: `step` of `steps` in MB (10^6 bytes), and once, as a note, how much
    there is to fetch. Closing the generator stops it like `cancelled`, which is asked at every event.

    Raises StudioError where the hub cannot be reached, knows no such model or guards it, where the disk is too small,
    where the network fails for good, and when it was stopped.
    """
    _check_id(repo_id)
    yield from watched(Fetch(repo_id, selection or PIPELINE), cancelled)


def watched(fetch: Fetch, cancelled: Callable[[], bool]) -> Iterator[Progress]:
    """Run `fetch` in a thread of its own and tell where it is; events, closing and errors are those of `download`."""
    _raise_if_silent()
    worker = threading.Thread(target=fetch.run, name="download", daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            if cancelled():
                raise _stopped()
            if not fetch.answered.is_set() and fetch.seconds() > ASK_SECONDS:
                raise _unreachable("no answer")
            yield fetch.progress()
            worker.join(TICK_SECONDS)
        if fetch.error:
            raise fetch.error
        yield fetch.progress()
    finally:
        fetch.stop.set()


def is_repo_id(text: str) -> bool:
    """Tell whether `text` reads "org/repo" in the hub's spelling."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def pipeline_files(names: Iterable[str]) -> list[str]:
    """Choose from a repository's file names those that the pipeline loads: its index and its parts, weights once.

    Weights come as safetensors only, without the variants (fp16 ...) that stand beside the plain ones.
    """
    chosen = []
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        wanted = folder in PARTS and re.fullmatch(r"[\w-]+(\.safetensors(\.index)?)?\.(json|txt|jinja)", file)
        weights = folder in PARTS and re.fullmatch(r"[\w-]+\.safetensors", file)
        if name == INDEX or wanted or weights:
            chosen.append(name)
    return chosen


PIPELINE = Selection(pipeline_files, INDEX, "diffusers pipeline", "ACE_STUDIO_MODEL")


def language_model(variable: str, folder: str = "") -> Selection:
    """Return the selection of a language model in `folder` of a repository: its config, tokenizer and safetensors."""
    start = f"{folder}/" if folder else ""

    def choose(names: Iterable[str]) -> list[str]:
        pattern = re.compile(re.escape(start) + r"[\w.-]+\.(json|txt|jinja|model|safetensors)")
        return sorted(name for name in names if pattern.fullmatch(name))

    return Selection(choose, f"{start}config.json", "language model", variable)


def storage_of(repo_id: str) -> Path:
    """Return the folder of a repository in the Hugging Face cache."""
    return Path(constants.HF_HUB_CACHE, f"models--{repo_id.replace('/', '--')}")


# --- the worker ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RepoFile:
    """One file of a repository: its hash is the SHA-256 of a large file, the git blob id of a small one."""

    name: str
    size: int
    hash: str


class _Stop(Exception):
    """Ends the worker; nobody waits for its result any more."""


class Fetch:
    """One download, worked off in a thread of its own so that a network that hangs blocks nobody who watches.

    `commit` is the one that the hub named, "" before its answer. A fetch of another kind chooses its files in `choose`.
    """

    token: Literal[False] | None = None
    """False asks and fetches without the owner's token; None with it, where there is one."""

    def __init__(self, repo_id: str, selection: Selection):
        self.repo_id, self.selection = repo_id, selection
        self.storage = storage_of(repo_id)
        self.stop, self.answered = threading.Event(), threading.Event()
        self.error: StudioError | None = None
        self.commit = self.note = ""
        self._total = self._done = self._fetched = 0
        self._started = time.monotonic()
        self._first_byte: float | None = None

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def progress(self) -> Progress:
        """Return where it stands; a note is said once."""
        note, self.note = self.note, ""
        left = None
        if self._first_byte is not None and self._fetched:
            spent = time.monotonic() - self._first_byte
            left = round((self._total - self._done) * spent / self._fetched, 1) if spent > 1 else None
        done, total = self._done // 10**6, math.ceil(self._total / 10**6)
        whole = self._total and self.done()
        return Progress("downloading", total if whole else done, total, round(self.seconds(), 1), left, note)

    def done(self) -> bool:
        return self._done >= self._total

    def run(self) -> None:
        """Do it all; what goes wrong ends up in `error`."""
        try:
            files = self._ask()
            with self._alone():
                self.plan(files)
                for file in files:
                    self._fetch(file)
                self._link(files)
        except _Stop:
            self.error = _stopped()
        except Exception as error:
            self.error = self.explained(error)

    def _ask(self) -> list[RepoFile]:
        try:
            api = HfApi(endpoint=constants.ENDPOINT, token=self.token)
            info = api.model_info(self.repo_id, files_metadata=True, timeout=ASK_SECONDS)
        finally:
            self.answered.set()
        there = [
            RepoFile(s.rfilename, s.lfs.size if s.lfs else s.size or 0, (s.lfs.sha256 if s.lfs else s.blob_id) or "")
            for s in info.siblings or []
        ]
        files = self.choose(there, bool(info.private or info.gated))
        # Hashes become file names below.
        if not all(re.fullmatch("[0-9a-f]{40,64}", value) for value in (info.sha or "", *(f.hash for f in files))):
            raise ValueError("the hub's answer has no file hashes")
        self.commit = info.sha
        return files

    def choose(self, there: list[RepoFile], guarded: bool) -> list[RepoFile]:
        """Choose among the files of a repository, `guarded` where not everybody may read it; raises StudioError."""
        chosen = set(self.selection.choose(file.name for file in there))
        if self.selection.index not in chosen:
            missing = f"{self.repo_id} holds no {self.selection.kind} ({self.selection.index} is missing)."
            raise StudioError("weights_unfit", missing)
        return [file for file in there if file.name in chosen]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of this repository: two studios, or two clicks, write the same partial files."""
        folder = Path(constants.HF_HUB_CACHE, ".locks", self.storage.name)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "ace-music-studio.lock")
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                self.note = self.note or "Another download of this model is running; this one waits for it."
                if self.stop.wait(TICK_SECONDS):
                    raise _Stop from None
        try:
            yield
        finally:
            lock.release()

    def plan(self, files: list[RepoFile]) -> None:
        """Add up what there is to do and whether the disk has room for it; raises StudioError."""
        self._total = sum(file.size for file in files)
        self._done = sum(self._present(file) for file in files)
        self.storage.mkdir(parents=True, exist_ok=True)
        free, missing = shutil.disk_usage(self.storage).free, self._total - self._done
        if missing and missing + SPARE_BYTES > free:
            raise StudioError(
                "disk_full",
                f"{self.repo_id} needs {size_text(missing)} more, and {size_text(free)} are free where models are kept "
                f"({constants.HF_HUB_CACHE}).",
                hint="Make room there, or set HF_HOME to a folder on a larger disk, and start the studio again.",
            )
        here = f"; {size_text(self._done)} of it are here already" if self._done else ""
        self.note = f"Fetching {size_text(self._total)} from Hugging Face into {constants.HF_HUB_CACHE}{here}."

    def _blob(self, file: RepoFile) -> Path:
        return self.storage / "blobs" / file.hash

    def _partial(self, file: RepoFile) -> Path:
        return self._blob(file).with_name(f"{file.hash}.incomplete")

    def _present(self, file: RepoFile) -> int:
        sizes = (_size(self._blob(file)), _size(self._partial(file)))
        return file.size if sizes[0] == file.size else min(sizes[1], file.size)

    def _fetch(self, file: RepoFile) -> None:
        if _size(self._blob(file)) == file.size:
            return
        partial, fruitless = self._partial(file), 0
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        while (before := _size(partial)) != file.size:
            try:
                self._stream(file, partial)
            except HfHubHTTPError as error:
                # Refused, unless the server says that it is only busy.
                if error.response.status_code not in (408, 429, 500, 502, 503, 504):
                    raise
            except HTTPError as error:
                log.info("the download of %s broke off: %s", file.name, error)
            if _size(partial) == file.size:
                break
            fruitless = 0 if _size(partial) > before else fruitless + 1
            if fruitless > RETRIES:
                raise StudioError(
                    "download_broken",
                    f"The download broke off after {size_text(self._done)} of {size_text(self._total)}.",
                    hint="What arrived is kept; starting it again goes on from there.",
                )
            if self.stop.wait(RETRY_SECONDS):
                raise _Stop
        self._check(file, partial)
        partial.replace(self._blob(file))

    def _stream(self, file: RepoFile, partial: Path) -> None:
        """Append to `partial` what the server sends of the rest; a server without ranges makes it start anew."""
        have = _size(partial)
        if have > file.size:
            self._done -= file.size
            os.truncate(partial, 0)
            have = 0
        headers = {**build_hf_headers(token=self.token), "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        url = hf_hub_url(self.repo_id, file.name, revision=self.commit, endpoint=constants.ENDPOINT)
        with get_session().stream("GET", url, headers=headers, timeout=READ_SECONDS, follow_redirects=True) as response:
            hf_raise_for_status(response)
            if have and response.status_code != 206:
                self._done -= have
                have = 0
            self._first_byte = self._first_byte or time.monotonic()
            with partial.open("ab" if have else "wb") as target:
                # In pieces as they arrive: a larger piece would be lost with the connection that breaks inside it.
                for chunk in response.iter_bytes():
                    if self.stop.is_set():
                        raise _Stop
                    target.write(chunk)
                    self._done += len(chunk)
                    self._fetched += len(chunk)

    def _check(self, file: RepoFile, path: Path) -> None:
        digest = hashlib.sha256()
        if len(file.hash) == 40:
            digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        with path.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                if self.stop.is_set():
                    raise _Stop
                digest.update(chunk)
        if digest.hexdigest() != file.hash:
            path.unlink()
            raise StudioError(
                "download_broken", f"{file.name} did not arrive intact.", hint="Please start the download again."
            )

    def _link(self, files: list[RepoFile]) -> None:
        snapshot = self.storage / "snapshots" / self.commit
        for file in files:
            pointer, blob = snapshot / file.name, self._blob(file)
            pointer.parent.mkdir(parents=True, exist_ok=True)
            if not pointer.exists() or _size(pointer) != file.size:
                pointer.unlink(missing_ok=True)
                pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        reference = self.storage / "refs" / constants.DEFAULT_REVISION
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(self.commit, encoding="utf-8")

    def explained(self, error: Exception) -> StudioError:
        """Put what went wrong into words; order matters, since most of these are kinds of OSError."""
        if isinstance(error, StudioError):
            return error
        if isinstance(error, GatedRepoError):
            return StudioError(
                "model_guarded",
                f"{self.repo_id} is only for people who accepted its terms.",
                hint=f"Accept them at {constants.ENDPOINT}/{self.repo_id}, and start the studio with HF_TOKEN set.",
            )
        if isinstance(error, RepositoryNotFoundError):
            return StudioError(
                "model_unknown",
                f"Hugging Face knows no model {self.repo_id}, or it is private.",
                hint=f"Check {self.selection.variable}; a private model needs HF_TOKEN.",
            )
        if isinstance(error, OfflineModeIsEnabled):
            return StudioError(
                "offline",
                "Nothing is fetched from Hugging Face, because HF_HUB_OFFLINE is set.",
                hint="Start the studio without it.",
            )
        if isinstance(error, HfHubHTTPError):
            return StudioError(
                "hub_refused",
                f"Hugging Face answered with error {error.response.status_code}.",
                hint="Please try again later.",
            )
        if not self.commit and isinstance(error, HTTPError | ValueError):
            return _unreachable(type(error).__name__)
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return StudioError(
                "disk_full" if full else "disk",
                f"The model could not be stored in {constants.HF_HUB_CACHE}: {error.strerror or error}.",
                hint="Make room there; the download goes on from where it stopped." if full else "",
            )
        log.error("a download failed unexpectedly", exc_info=error)
        return StudioError("download_broken", f"The download ended in an unexpected error ({type(error).__name__}).")


# --- words --------------------------------------------------------------------------------------------------------


def _check_id(repo_id: str) -> None:
    if not is_repo_id(repo_id):
        raise StudioError("model_unknown", f'A model on Hugging Face is named like "org/model", not {shown(repo_id)}.')


def _unreachable(reason: str) -> StudioError:
    """Remember that the hub is silent, and say so."""
    _silent_since[constants.ENDPOINT] = time.monotonic()
    return _silence_error(reason, SILENCE_SECONDS)


def _raise_if_silent() -> None:
    since = _silent_since.get(constants.ENDPOINT)
    if since is not None and (left := since + SILENCE_SECONDS - time.monotonic()) > 0:
        raise _silence_error("it gave no answer before", left)


def _silence_error(reason: str, seconds: float) -> StudioError:
    when = time.strftime("%H:%M", time.localtime(time.time() + seconds + 59))
    return StudioError(
        "hub_unreachable",
        f"Hugging Face ({constants.ENDPOINT}) cannot be reached: {reason}.",
        hint=f"Check this machine's network. The studio asks again from {when} on, or after a restart.",
    )


def _stopped() -> StudioError:
    return StudioError(
        "cancelled", "The download was stopped.", hint="What arrived is kept; starting it again goes on from there."
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
