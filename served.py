"""The folder whose files Gradio serves: uploads, and the page's copies of takes.

It may fill a tenth of the disk's free room; the files used least recently are deleted to make room for
more. A file of a request that waits or runs is in use, and is kept. Nothing here relies on a list of
what was written: every file in the folder counts, whoever left it there.

Several studios of one user share the folder. Each writes the time into its files in use again and again,
and leaves the files alone that another one used a short while ago.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import threading
import time
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
MOST_UNUSED = 500  # uploads that no run has named yet
RECOUNT_SECONDS = 60.0  # for which a walk through the folder is good enough
SLACK = 20  # where files have to go, one part in so many of each limit becomes free beyond the need
USING_SECONDS = 300.0  # after which a studio notes again which files it uses
OTHERS_SECONDS = 900.0  # for which a file that another studio used counts as in use
BLOCK_BYTES = 512  # the unit of st_blocks
PART = ".arriving"  # the end of the name of an upload that is not complete

# Functions that return the paths of files in use: what the page shows, and what the runs need.
files_in_use: list[Callable[[], Iterable[str]]] = []
# The files that this process has written, which an orderly end deletes.
_own: set[Path] = set()
# Those of them that were uploaded and that no run has named, the oldest first.
_unused: dict[Path, None] = {}
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


def note_upload(path: Path) -> None:
    """Note that this process has taken a file in; the oldest that nobody has used goes if there are too many."""
    surplus = []
    with _lock:
        _own.add(path)
        _unused[_real(path)] = None
        while len(_unused) > MOST_UNUSED:
            oldest = next(iter(_unused))
            del _unused[oldest]
            surplus.append(oldest)
    if surplus:
        used = _in_use()
        for each in surplus:
            if str(each) not in used:
                _remove(each)


def discard(paths: Iterable[str]) -> None:
    """Delete those of these files that were taken in and that no run has named."""
    for path in paths:
        with _lock:
            unused = _real(path) in _unused
            _unused.pop(_real(path), None)
        if unused:
            _remove(Path(path))


def budget() -> int:
    """Return how many bytes the folder may hold."""
    return _budget(sum(file.size for file in files()))


def make_room(size: int, number: int = 1) -> bool:
    """Delete the files used least recently until `number` more of `size` bytes in all fit; return whether they do."""
    global _count
    with _counting:
        if _count is None or not _count.is_good():
            _count = Count()
        if _count.add(size, number):
            return True
        _count = Count()
        _count.shrink(size)
        return _count.add(size, number)


def sweep() -> None:
    """Delete files that were not used for a day, and then those over the budget."""
    touch_used()
    oldest = clock.now() - AGE_SECONDS
    used = _in_use()
    for file in files():
        if file.used_at < oldest and str(file.path) not in used:
            _delete(file)
    count = Count()
    if not count.add(0, 0):
        count.shrink(0)
    with _lock:
        _own.intersection_update([path for path in _own if path.exists()])


def touch_used() -> None:
    """Write the time into the files in use, for other studios that share the folder."""
    for path in _in_use():
        touch(path)


def delete(paths: Iterable[str | Path]) -> None:
    """Delete files that this process has written and that nobody is shown."""
    with _lock:
        for path in map(Path, paths):
            _remove(path)
            _own.discard(path)


def delete_own() -> None:
    """Delete the files that this process has written."""
    with _lock:
        for path in _own:
            _remove(path)
        _own.clear()


def touch(path: str | Path) -> None:
    """Note that a file is used now."""
    real = _real(path)
    if bootstrap.page_folder().resolve() not in real.parents:
        return
    with _lock:
        _unused.pop(real, None)
    with contextlib.suppress(OSError):
        os.utime(real)


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
    """Return the real paths of files that must stay."""
    used: set[str] = set()
    for find in tuple(files_in_use):
        used.update(os.path.realpath(path) for path in find())
    return used


class Count:
    """What the folder holds by one walk through it, and by what was added since.

    A walk through thousands of files takes longer than a small upload, so one has to do for many uploads.
    """

    def __init__(self) -> None:
        found = sorted(files(), key=lambda file: file.used_at)
        self.folder = bootstrap.page_folder()
        self.counted_at = time.monotonic()
        self.size = sum(file.size for file in found)
        self.number = len(found)
        self._oldest_first = found

    def is_good(self) -> bool:
        recent = time.monotonic() - self.counted_at < RECOUNT_SECONDS
        return recent and self.folder == bootstrap.page_folder()

    def add(self, size: int, number: int) -> bool:
        """Count `number` more files of `size` bytes in all, if they fit; return whether they do."""
        fits = self.size + size <= _budget(self.size) and self.number + number <= MOST_FILES
        if fits:
            self.size += size
            self.number += number
        return fits

    def shrink(self, size: int) -> None:
        """Delete the files used least recently until `size` more bytes fit, and some more for the next uploads."""
        budget_bytes = _budget(self.size)
        most_bytes = budget_bytes - size - budget_bytes // SLACK
        most_files = MOST_FILES - 1 - MOST_FILES // SLACK
        used = _in_use()
        with _lock:
            own = {_real(path) for path in _own}
        others_since = clock.now() - OTHERS_SECONDS
        for file in self._oldest_first:
            if self.size <= most_bytes and self.number <= most_files:
                break
            if str(file.path) in used or file.path.name.endswith(PART):
                continue
            if file.used_at > others_since and file.path not in own:
                continue
            if _delete(file):
                self.size -= file.size
                self.number -= 1


_count: Count | None = None
_counting = threading.Lock()


def _budget(held: int) -> int:
    folder = bootstrap.existing(bootstrap.page_folder())
    return (shutil.disk_usage(folder).free + held) // SHARE


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _delete(file: File) -> bool:
    """Delete a file and the folder that it leaves empty; return whether it is gone."""
    try:
        file.path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("an old upload cannot be deleted: %s", error.strerror)
        return False
    _remove_empty(file.path.parent)
    return True


def _remove(path: Path) -> None:
    """Delete a file if that is possible; an end of the process has no use for a problem."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    _remove_empty(path.parent)


def _remove_empty(folder: Path) -> None:
    if folder.resolve() != bootstrap.page_folder().resolve():
        with contextlib.suppress(OSError):  # there is more in it
            folder.rmdir()
