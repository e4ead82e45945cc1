"""The output folder: where it is, and what leaves it again by age and by size.

Only files that the studio made there may go: one whose tags hold a record, and whose name is the one that this record
gives it. A song that was renamed or moved is the visitor's own and stays, like everything else in the folder.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import export

log = logging.getLogger("studio")

KEEP_DAYS, KEEP_GB = "ACE_STUDIO_KEEP_DAYS", "ACE_STUDIO_KEEP_GB"
# (days, gigabytes): on a machine of one's own, and on a Space, which is everybody's.
AT_HOME, ON_A_SPACE = (30.0, 20.0), (1.0, 2.0)
NO_LIMIT = "off"
NAME = re.compile(r"(.+-seed-\d+)(?:-\d+)?\.(wav|flac|mp3|ogg)")


@dataclass(frozen=True)
class Keep:
    """How many `days` a finished song stays, and how many `gb` (10^9 bytes) all of them have; infinite: no limit."""

    days: float
    gb: float


def folder() -> Path:
    """Return the folder for finished songs (ACE_STUDIO_OUTPUT), which may not be there yet."""
    return Path(os.environ.get("ACE_STUDIO_OUTPUT") or Path(__file__).with_name("outputs")).expanduser().resolve()


def keep() -> Keep:
    """Return what ACE_STUDIO_KEEP_DAYS and ACE_STUDIO_KEEP_GB say; "off" is no limit, nonsense is the default."""
    days, gb = ON_A_SPACE if os.environ.get("SPACE_ID") else AT_HOME
    return Keep(_limit(KEEP_DAYS, days), _limit(KEEP_GB, gb))


def prune(made: Collection[Path] = (), now: float | None = None) -> list[Path]:
    """Delete songs that are too old, then the oldest while all are too large; returns what went.

    The files just `made` stay. It never raises: a file that cannot be deleted stays, and the log says so.
    """
    limits, gone = keep(), []
    songs = sorted(_songs(folder()), key=lambda song: song[1].st_mtime)
    oldest = (time.time() if now is None else now) - limits.days * 86_400

    def enough(size: int, next_mtime: float) -> bool:
        return next_mtime >= oldest and size <= limits.gb * 1e9

    size = sum(facts.st_size for _, facts in songs)
    if not songs or enough(size, songs[0][1].st_mtime):
        return []  # without a look into the files
    songs = [song for song in songs if _is_ours(song[0])]
    size = sum(facts.st_size for _, facts in songs)
    for path, facts in songs:
        if enough(size, facts.st_mtime):
            break
        if path in made:
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the old song %s cannot be deleted: %s", path, error)
            continue
        size -= facts.st_size
        gone.append(path)
    if gone:
        log.info("deleted %d old songs from the output folder", len(gone))
    return gone


def _limit(variable: str, default: float) -> float:
    text = os.environ.get(variable, "").strip().lower()
    if not text:
        return default
    if text == NO_LIMIT:
        return math.inf
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 < value < math.inf:
        return value
    log.warning('%s must be a number above 0 or "%s", not "%s"; it is %g now', variable, NO_LIMIT, text[:40], default)
    return default


def _songs(place: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the files that are called like songs of the studio; links are not followed."""
    found = []
    try:
        for entry in os.scandir(place):
            if NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                found.append((place / entry.name, entry.stat(follow_symlinks=False)))
    except OSError:
        pass  # no folder yet, or a file that went meanwhile
    return found


def _is_ours(path: Path) -> bool:
    """Tell whether the record in a file's tags gives it the name that it has."""
    stem, kind = NAME.fullmatch(path.name).groups()
    record = export.read_record(path) or {}
    try:
        prompt, seed = record["request"]["prompt"], record["takes"][0]["seed"]
        return export.file_name(prompt, seed, kind, record["mode"]) == f"{stem}.{kind}"
    except (KeyError, IndexError, TypeError, AttributeError):
        return False
