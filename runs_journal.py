"""What remains of a run after a restart of the studio: one small file per run, beside the songs.

A file says whether its run was still going, or how it ended and which songs it left, but contains no
word that a visitor wrote. So a restarted studio knows that a run was cut off, and finds the
takes of earlier runs as long as they are in the output folder. A studio that cannot write there
works without it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import clock

log = logging.getLogger("studio")

RUN_ID = re.compile(r"[0-9a-f]{32}")
FOLDER = ".runs"
DAY = 86_400
# How long, and how many, files of runs without songs are kept; they say that a run failed or was cut off.
KEEP_DAYS = 2
MOST_WITHOUT_SONGS = 500
MOST_BYTES = 100_000  # of the file of a run

# Tells this process from one before it.
PROCESS = secrets.token_hex(8)


@dataclass(frozen=True)
class Entry:
    """One run: `songs` are names of files in the output folder, `problem` why there are none."""

    mode: str
    process: str
    state: str  # "waiting" until the run has ended
    songs: tuple[str, ...] = ()
    problem: dict[str, str] | None = None

    def is_sound(self) -> bool:
        """Return whether the values have these types; they may come from a file that somebody has changed."""
        texts = [self.mode, self.process, self.state, *self.songs]
        if self.problem is not None:
            if not isinstance(self.problem, dict):
                return False
            texts += [*self.problem, *self.problem.values()]
        return all(isinstance(text, str) for text in texts)

    def is_going_on(self) -> bool:
        return self.state == "waiting" and self.process == PROCESS

    def is_cut_off(self) -> bool:
        return self.state == "waiting" and self.process != PROCESS


class Journal:
    """The files of all runs. `songs` returns the output folder, which may not exist yet."""

    def __init__(self, songs: Callable[[], Path]):
        self._songs = songs

    @property
    def folder(self) -> Path:
        return self._songs() / FOLDER

    def write(self, run_id: str, entry: Entry) -> None:
        path = self._path(run_id)
        new = path.with_suffix(".new")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.write_text(json.dumps(asdict(entry)), encoding="utf-8")
            new.replace(path)
        except OSError as error:
            log.warning("a run could not be noted: %s", error.strerror or error)

    def find(self, run_id: str) -> Entry | None:
        """Return what is known of a run, None if nothing is; `run_id` may be anything that a caller sent."""
        if not RUN_ID.fullmatch(run_id):
            return None
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            path = self._path(run_id)
            if path.stat().st_size > MOST_BYTES:
                return None
            found = json.loads(path.read_text(encoding="utf-8"))
            entry = Entry(**{**found, "songs": tuple(found["songs"])})
            if entry.is_sound():
                return entry
        return None

    def forget(self, run_id: str) -> None:
        with contextlib.suppress(OSError):
            self._path(run_id).unlink()

    def song(self, name: str) -> Path | None:
        """Return the file of a song, None if it is gone or has become a link, which could lead anywhere."""
        path = self._songs() / Path(name).name
        return path if path.is_file() and not path.is_symlink() else None

    def prune(self) -> None:
        """Forget the runs whose songs are gone, and those that left none once they are old or too many."""
        without_songs = []
        with contextlib.suppress(OSError):
            for path in list(self.folder.iterdir()):
                if path.suffix == ".new" and _age(path) > DAY:
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
                elif path.suffix == ".json":
                    entry = self.find(path.stem)
                    if entry is None or not self._is_worth_keeping(entry, path):
                        self.forget(path.stem)
                    elif not entry.songs and not entry.is_going_on():
                        without_songs.append(path)
        for path in sorted(without_songs, key=_age)[MOST_WITHOUT_SONGS:]:
            self.forget(path.stem)

    def _is_worth_keeping(self, entry: Entry, path: Path) -> bool:
        if entry.songs:
            return any(self.song(name) for name in entry.songs)
        return entry.is_going_on() or _age(path) < KEEP_DAYS * DAY

    def _path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.json"


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return clock.now() - path.stat().st_mtime
    return 0.0
