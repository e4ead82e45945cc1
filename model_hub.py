"""Download a model from the Hugging Face hub into its cache, with progress, resume and cancel.

huggingface_hub (2.4) deletes a partial file when a download breaks off, and cannot be stopped
within a file of several gigabytes. So this module streams the bytes into its documented cache
layout: first into `blobs/<hash>.incomplete`, which becomes the blob if its hash is right. Once all
blobs exist, `snapshots/<commit>` links to them. A file that another model in the cache has is
linked, not fetched.
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
from huggingface_hub import HfApi, constants, errors, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id

from beat import BEAT_SECONDS
from events import Progress, StudioError
from limits import shown, size_text

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0  # the longest wait for the hub's first answer
UNASKED_SECONDS = 600.0  # a hub that could not be reached is not asked again for this long
READ_SECONDS = 20.0
RETRIES = 5
RETRY_SECONDS = 1.0
SPARE_BYTES = 256_000_000
HASHED_BYTES = 2**22  # between two checks whether the download was stopped
BUSY_STATUS = (408, 429, 500, 502, 503, 504)  # of a server that may answer later

PARTS = (
    "transformer",
    "vae",
    "text_encoder",
    "tokenizer",
    "condition_encoder",
    "audio_tokenizer",
    "audio_token_detokenizer",
    "scheduler",
)
INDEX = "model_index.json"

_STOPPED = "What arrived is kept; the next download continues there."
# When to ask an endpoint that did not answer again, in `time.monotonic()`.
_silent_until: dict[str, float] = {}


@dataclass(frozen=True)
class Selection:
    """The files of a repository that make a model: those whose names match `pattern`; `index` must be one of them."""

    pattern: str
    index: str
    kind: str  # what the model is, for messages
    variable: str  # the setting that names the model, for messages

    def choose(self, names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if re.fullmatch(self.pattern, name))


PIPELINE = Selection(  # weights only as safetensors, without variants such as fp16
    rf"{INDEX}|({'|'.join(PARTS)})/[\w-]+(\.safetensors|(\.safetensors(\.index)?)?\.(json|txt|jinja))",
    INDEX,
    "diffusers pipeline",
    "ACE_STUDIO_MODEL",
)


def language_model(variable: str, folder: str = "") -> Selection:
    """Return the files of a language model in transformers layout, in a `folder` of its repository."""
    start = f"{folder}/" if folder else ""
    pattern = re.escape(start) + r"[\w.-]+\.(json|txt|jinja|model|safetensors)"
    return Selection(pattern, f"{start}config.json", "language model", variable)


def download(repo_id: str, selection: Selection = PIPELINE) -> Iterator[Progress]:
    """Download a model into the Hugging Face cache, continuing what an earlier download left.

    Yields progress in MB (10^6 bytes) at every beat; closing the generator stops the download.
    Raises StudioError if the hub cannot be reached, does not know the model or restricts it, or if
    disk or network fail.
    """
    if not is_repo_id(repo_id):
        raise StudioError(
            "model_unknown", f'A model on Hugging Face is named "org/model", not {shown(repo_id)}.'
        )
    yield from watched(_fetch_of(repo_id, selection))


def missing_bytes(repo_id: str, selection: Selection = PIPELINE) -> int:
    """Ask the hub, and return how many bytes `download` would fetch; raises the same errors."""
    if _is_silent():
        raise _unreachable("it did not answer before")
    fetch = _fetch_of(repo_id, selection)
    worker = threading.Thread(target=fetch.ask, name="hub", daemon=True)
    worker.start()
    worker.join(ASK_SECONDS)
    if worker.is_alive():
        raise _unreachable("no answer")
    if fetch.error:
        raise fetch.error
    return fetch.missing()


def _fetch_of(repo_id: str, selection: Selection) -> Fetch:
    def choose(offered: list[RepoFile], guarded: bool) -> list[RepoFile]:
        chosen = selection.choose(file.name for file in offered)
        if selection.index not in chosen:
            missing = f"{repo_id} holds no {selection.kind} ({selection.index} is missing)."
            raise StudioError("weights_unfit", missing)
        return [file for file in offered if file.name in chosen]

    return Fetch(repo_id, choose, selection.variable)


def watched(fetch: Fetch) -> Iterator[Progress]:
    """Run `fetch` in a thread and yield its progress; events, closing and errors are those of `download`."""
    if _is_silent():
        raise _unreachable("it did not answer before")
    worker = threading.Thread(target=fetch.run, name="download", daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            if not fetch.commit and fetch.seconds() > ASK_SECONDS:
                raise _unreachable("no answer")
            yield fetch.progress()
            worker.join(BEAT_SECONDS)
        if fetch.error:
            raise fetch.error
        yield fetch.progress()
    finally:
        fetch.stop.set()


def is_repo_id(text: str) -> bool:
    try:
        validate_repo_id(text)
    except errors.HFValidationError:
        return False
    return text.count("/") == 1


def storage_of(repo_id: str) -> Path:
    return Path(constants.HF_HUB_CACHE, f"models--{repo_id.replace('/', '--')}")


@dataclass(frozen=True)
class RepoFile:
    name: str
    size: int
    hash: str  # the SHA-256 of a large file, the git blob id of a small one


# Chooses from all files; the second argument says whether the repository is restricted.
Chooser = Callable[[list[RepoFile], bool], list[RepoFile]]


class Fetch:
    """One download, in a thread of its own, so that a network that hangs blocks nobody.

    With `token` False the owner's token is never sent.
    """

    def __init__(
        self, repo_id: str, choose: Chooser, variable: str, token: Literal[False] | None = None
    ):
        self.repo_id = repo_id
        self.storage = storage_of(repo_id)
        self._choose = choose
        self._variable = variable
        self._token = token
        self.stop = threading.Event()
        self.error: StudioError | None = None
        self.files: list[RepoFile] = []  # known, like the commit, once the hub has answered
        self.commit = ""
        self._note = ""
        # Bytes: of all files, of those on the disk, and of those that this download has received.
        self._total = 0
        self._done = 0
        self._fetched = 0
        self._started = time.monotonic()
        self._first_byte = math.inf

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def progress(self) -> Progress:
        note = self._note
        self._note = ""
        spent = time.monotonic() - self._first_byte
        left = None
        if spent > 1 and self._fetched:
            left = round((self._total - self._done) * spent / self._fetched, 1)
        total = math.ceil(self._total / 10**6)
        done = total if self._done >= self._total else self._done // 10**6
        return Progress("downloading", done, total, round(self.seconds(), 1), left, note)

    def run(self) -> None:
        try:
            self._ask()
            with self._alone():
                self._measure()
                for file in self.files:
                    self._fetch(file)
                self._link()
        except Exception as error:
            self.error = self._explained(error)

    def ask(self) -> None:
        """Ask the hub only; sets `files` or `error`."""
        try:
            self._ask()
        except Exception as error:
            self.error = self._explained(error)

    def missing(self) -> int:
        """Return the bytes of the files that no model in the cache has yet."""
        wanted = [file for file in self.files if self._twin(file) is None]
        return sum(file.size - self._present(file) for file in wanted)

    def _ask(self) -> None:
        api = HfApi(endpoint=constants.ENDPOINT, token=self._token)
        info = api.model_info(self.repo_id, files_metadata=True, timeout=ASK_SECONDS)
        offered = []
        for sibling in info.siblings or []:
            digest: str | None
            if sibling.lfs:
                size = sibling.lfs.size
                digest = sibling.lfs.sha256
            else:
                size = sibling.size or 0
                digest = sibling.blob_id
            offered.append(RepoFile(sibling.rfilename, size, digest or ""))
        self.files = self._choose(offered, bool(info.private or info.gated))
        commit = info.sha or ""
        # Commit and hashes become file names.
        for value in (commit, *(file.hash for file in self.files)):
            if not re.fullmatch("[0-9a-f]{40,64}", value):
                raise ValueError("the hub's answer has no file hashes")
        self.commit = commit

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of this repository, because two downloads would write the same partial files."""
        folder = Path(constants.HF_HUB_CACHE, ".locks", self.storage.name)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "ace-music-studio.lock")
        while True:
            try:
                with lock.acquire(timeout=BEAT_SECONDS):
                    yield
                    return
            except Timeout:
                self._note = "Another download of this model is running; this one waits for it."
                self._pause()

    def _pause(self, seconds: float = 0.0) -> None:
        """Wait; raises StudioError if the download was stopped, which nobody waits for any more."""
        if self.stop.wait(seconds):
            raise StudioError("cancelled", "The download was stopped.")

    def _measure(self) -> None:
        for file in self.files:
            self._link_known(file)
        self._total = sum(file.size for file in self.files)
        self._done = sum(self._present(file) for file in self.files)
        self.storage.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.storage).free
        missing = self._total - self._done
        if missing and missing + SPARE_BYTES > free:
            needs = f"{self.repo_id} needs {size_text(missing)} more"
            short = f"{needs}, and {size_text(free)} are free where models are kept "
            hint = "Make room there, or set HF_HOME to a folder on a larger disk, and start the studio again."
            raise StudioError("disk_full", f"{short}({constants.HF_HUB_CACHE}).", hint=hint)
        here = ""
        if self._done:
            here = f"; {size_text(self._done)} of it are already here"
        self._note = ""
        if missing:
            self._note = f"Downloading {size_text(self._total)} from Hugging Face to {constants.HF_HUB_CACHE}{here}."

    def _blob(self, file: RepoFile) -> Path:
        return self.storage / "blobs" / file.hash

    def _partial(self, file: RepoFile) -> Path:
        return self._blob(file).with_name(f"{file.hash}.incomplete")

    def _link_known(self, file: RepoFile) -> None:
        """Link a file that another model has in the cache already: equal hashes are equal files."""
        blob = self._blob(file)
        if _size(blob) == file.size:
            return
        known = self._twin(file)
        if known is None:
            return
        # A disk without such links gets the file from the hub.
        with contextlib.suppress(OSError):
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.unlink(missing_ok=True)
            os.link(known.resolve(), blob)
            self._partial(file).unlink(missing_ok=True)

    def _twin(self, file: RepoFile) -> Path | None:
        """Return the same file of another model in the cache, None if there is none."""
        for known in Path(constants.HF_HUB_CACHE).glob(f"models--*/blobs/{file.hash}"):
            if known != self._blob(file) and _size(known) == file.size:
                return known
        return None

    def _present(self, file: RepoFile) -> int:
        if _size(self._blob(file)) == file.size:
            return file.size
        received = _size(self._partial(file))
        return received if received <= file.size else 0

    def _fetch(self, file: RepoFile) -> None:
        if _size(self._blob(file)) == file.size:
            return
        partial = self._partial(file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if _size(partial) > file.size:
            partial.unlink()
        partial.touch()
        fruitless = 0  # attempts in a row that received nothing
        while _size(partial) != file.size:
            before = _size(partial)
            try:
                self._stream(file, partial)
            except errors.HfHubHTTPError as error:
                if error.response.status_code not in BUSY_STATUS:
                    raise
            except errors.HTTPError as error:
                log.info("the download of %s broke off: %s", file.name, error)
            fruitless = 0 if _size(partial) > before else fruitless + 1
            if fruitless > RETRIES:
                broke = f"The download broke off after {size_text(self._done)} of {size_text(self._total)}."
                raise StudioError("download_broken", broke, hint=_STOPPED)
            if _size(partial) != file.size:
                self._pause(RETRY_SECONDS)
        self._check(file, partial)
        partial.replace(self._blob(file))

    def _stream(self, file: RepoFile, partial: Path) -> None:
        """Append the rest of the file to `partial`; a server without ranges sends it from the start."""
        received = _size(partial)
        headers = {**build_hf_headers(token=self._token), "Accept-Encoding": "identity"}
        if received:
            headers["Range"] = f"bytes={received}-"
        url = hf_hub_url(self.repo_id, file.name, revision=self.commit, endpoint=constants.ENDPOINT)
        with get_session().stream(
            "GET", url, headers=headers, timeout=READ_SECONDS, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            if received and response.status_code != 206:
                self._done -= received
                received = 0
            self._first_byte = min(self._first_byte, time.monotonic())
            with partial.open("ab" if received else "wb") as target:
                # In pieces as they arrive: a larger piece would be lost if the connection broke
                # within it.
                for chunk in response.iter_bytes():
                    self._pause()
                    target.write(chunk)
                    self._done += len(chunk)
                    self._fetched += len(chunk)

    def _check(self, file: RepoFile, path: Path) -> None:
        """Compare the hash of a whole file; raises StudioError and deletes the file if it differs."""
        digest = hashlib.sha256()
        if len(file.hash) == 40:
            digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        with path.open("rb") as source:
            for piece in iter(lambda: source.read(HASHED_BYTES), b""):
                self._pause()
                digest.update(piece)
        if digest.hexdigest() != file.hash:
            path.unlink()
            damaged = f"{file.name} was damaged in transit."
            raise StudioError("download_broken", damaged, hint="Please start the download again.")

    def _link(self) -> None:
        """Make the snapshot, whose files link to the blobs, the one of the branch main."""
        snapshot = self.storage / "snapshots" / self.commit
        for file in self.files:
            pointer = snapshot / file.name
            pointer.parent.mkdir(parents=True, exist_ok=True)
            if _size(pointer) != file.size:  # missing, or a damaged file instead of a link
                pointer.unlink(missing_ok=True)
                pointer.symlink_to(os.path.relpath(self._blob(file), pointer.parent))
        reference = self.storage / "refs" / constants.DEFAULT_REVISION
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(self.commit, encoding="utf-8")

    def _explained(self, error: Exception) -> StudioError:
        """Return `error` as a sentence; the order matters, because most of these are kinds of OSError."""
        name = self.repo_id
        cache = constants.HF_HUB_CACHE
        hint = ""
        match error:
            case StudioError():
                return error
            case errors.GatedRepoError():
                code = "model_guarded"
                message = f"{name} is only for people who accepted its terms."
                hint = f"Accept them at {constants.ENDPOINT}/{name}, and start the studio with HF_TOKEN set."
            case errors.RepositoryNotFoundError():
                code = "model_unknown"
                message = f"Hugging Face does not know {name}, or it is private."
                hint = f"Check {self._variable}; a private one needs HF_TOKEN."
            case errors.OfflineModeIsEnabled():
                code = "offline"
                message = "Nothing is downloaded from Hugging Face, because HF_HUB_OFFLINE is set."
                hint = "Start the studio without it."
            case errors.HfHubHTTPError():
                code = "hub_refused"
                message = f"Hugging Face answered with error {error.response.status_code}."
                hint = "Please try again later."
            case errors.HTTPError() | ValueError() if not self.commit:
                return _unreachable(type(error).__name__)
            case OSError(errno=errno.ENOSPC | errno.EDQUOT):
                code = "disk_full"
                message = f"The model could not be stored in {cache}: {error.strerror}."
                hint = "Make room there; the next download continues where this one stopped."
            case OSError():
                code = "disk"
                message = f"The model could not be stored in {cache}: {error.strerror or error}."
            case _:
                log.error("a download failed unexpectedly", exc_info=error)
                code = "download_broken"
                message = f"The download failed unexpectedly ({type(error).__name__})."
        return StudioError(code, message, hint=hint)


def _is_silent() -> bool:
    return _silent_until.get(constants.ENDPOINT, 0.0) > time.monotonic()


def _unreachable(reason: str) -> StudioError:
    """Do not ask the silent hub again for a while; return the error that says so."""
    now = time.monotonic()
    until = _silent_until.get(constants.ENDPOINT, 0.0)
    if until <= now:
        until = now + UNASKED_SECONDS
        _silent_until[constants.ENDPOINT] = until
    when = time.strftime("%H:%M", time.localtime(time.time() + until - now + 59))
    message = f"Hugging Face ({constants.ENDPOINT}) cannot be reached: {reason}."
    hint = f"Check this machine's network. The studio asks again from {when}, or after a restart."
    return StudioError("hub_unreachable", message, hint=hint)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
