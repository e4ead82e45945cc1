"""The folder whose files Gradio serves: uploads, and the page's copies of takes.

It may fill a tenth of the disk's free room; the files used least recently are deleted to make room for
more. A file of a request that waits or runs is in use, and is kept. Nothing here relies on a list of
what was written: every file in the folder counts, whoever left it there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import bootstrap
import clock

log = logging.getLogger("studio")

AGE_SECONDS = 24 * 3600.0
SWEEP_SECONDS = 3600.0
SHARE = 10  # the folder may fill one part in so many of the disk's free room
# File names take room too, on the disk and in each walk through the folder.
MOST_FILES = 10_000
BLOCK_BYTES = 512  # the unit of st_blocks
PART = ".arriving"

# Each returns the paths of files in use: the page adds what it shows, the runs what they need.
users: list[Callable[[], Iterable[str]]] = []
# The files that this process has written, which an orderly end deletes.
_own: set[Path] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class File:
    path: Path
    size: int  # bytes on the disk
    used_at: float  # seconds since 1970


def new_place(name: str) -> Path:
    """Return a path for a file of this name that nobody can guess; its folder exists."""
    place = bootstrap.page_folder() / secrets.token_hex(32) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def note_own(path: Path) -> None:
    with _lock:
        _own.add(path)


def budget() -> int:
    """Return how many bytes the folder may hold."""
    folder = bootstrap.existing(bootstrap.page_folder())
    held = sum(file.size for file in files())
    return (shutil.disk_usage(folder).free + held) // SHARE


def make_room(size: int) -> bool:
    """Delete the files used least recently until `size` more bytes fit; return whether they do."""
    return _shrink(budget() - size, MOST_FILES - 1)


def sweep() -> None:
    """Delete files that were not used for a day, and then those over the budget."""
    oldest = clock.now() - AGE_SECONDS
    used = _in_use()
    for file in files():
        if file.used_at < oldest and str(file.path) not in used:
            _delete(file)
    _shrink(budget(), MOST_FILES)
    with _lock:
        _own.intersection_update([path for path in _own if path.exists()])


def delete_own() -> None:
    """Delete the files that this process has written."""
    with _lock:
        for path in _own:
            _remove(path)
        _own.clear()


def touch(path: str | Path) -> None:
    """Note that a file is used now."""
    with contextlib.suppress(OSError):
        os.utime(path)


def files() -> list[File]:
    """Return the files in the folder, links included but not followed."""
    return list(_walk(bootstrap.page_folder().resolve()))


def _walk(folder: Path) -> Iterator[File]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError):  # it was just deleted
                facts = path.lstat()
                yield File(path, facts.st_blocks * BLOCK_BYTES, facts.st_mtime)


def _in_use() -> set[str]:
    return {os.path.realpath(path) for user in tuple(users) for path in user()}


def _shrink(most_bytes: int, most_files: int) -> bool:
    """Delete the files used least recently until both limits are kept; return whether they are."""
    found = sorted(files(), key=lambda file: file.used_at)
    held = sum(file.size for file in found)
    count = len(found)
    if held <= most_bytes and count <= most_files:
        return True
    used = _in_use()
    for file in found:
        if held <= most_bytes and count <= most_files:
            break
        if str(file.path) in used or file.path.name.endswith(PART):
            continue
        if _delete(file):
            held -= file.size
            count -= 1
    return held <= most_bytes and count <= most_files


def _delete(file: File) -> bool:
    try:
        file.path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("an old upload cannot be deleted: %s", error.strerror)
        return False
    _remove_empty(file.path.parent)
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    _remove_empty(path.parent)


def _remove_empty(folder: Path) -> None:
    if folder.resolve() != bootstrap.page_folder().resolve():
        with contextlib.suppress(OSError):  # there is more in it
            folder.rmdir()
