"""Takes into files: measured, encoded, tagged in memory, written once, copied for the page; the output folder.

Takes are independent: an error in one affects no other, and a song that is in the output folder
stays there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import math
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import audio
import audio_export
import audio_levels
import bootstrap
import clock
import jobs
import served
import song_score
import tooltips
from beat import BEAT_SECONDS
from events import (
    NO_SONG_DRAFT,
    Done,
    Failed,
    Outcome,
    Problem,
    Progress,
    SongDraft,
    StudioError,
    Take,
    is_disk_full,
)
from gpu_job import SongJob
from limits import LIMITS, SAMPLE_RATE
from model_weights import task_support
from params import SongRequest
from record import PassedOver, SongRecord, Stored, TakeEntry, TakeFailure, song_record

log = logging.getLogger("studio")

_SECRET = secrets.token_bytes(32)
LOUDNESS_MISSED_LU = 0.5
HEAVY_LIMITING_DB = 6
# Errors of a folder that refuses a name: it cannot store a letter, or the name is too long.
BAD_NAME = (errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG)


def finish(job: SongJob, outcome: Outcome, output: Path) -> Generator[Progress | Done | Failed]:
    """Save the good takes into `output`, several at once; yields `Done` last, or `Failed` if none could be saved.

    `Done` has paths of copies that Gradio serves: the output folder itself is never served. Closing
    the generator ends the writing.
    """
    started = time.monotonic()
    record = _record_of(job, outcome)
    chosen = best_takes(outcome.takes, job.request.takes)
    if job.request.options.best_of is not None:
        record["passed_over"] = [
            PassedOver(seed=take.seed, score=song_score.total(take.parts))
            for take in outcome.takes
            if take not in chosen
        ]
    saving = Saving(job.request, record, output, chosen)
    seconds = job.request.song_seconds(jobs.source_seconds(job))
    yield from saving.run(takes_at_once(len(chosen), seconds))
    prune(saving.paths())
    _fill_in(record, saving)
    record["seconds"]["finishing"] = round(time.monotonic() - started, 3)
    problems = saving.problems()
    if len(problems) == len(saving.songs):
        yield Failed(problems[0])
    else:
        yield Done(tuple(song.copy for song in saving.songs if song.problem is None), record)


def best_takes(takes: Sequence[Take], count: int) -> list[Take]:
    """Return the `count` best of the `takes`, in their order; one that failed comes after all others."""

    def worth(place: int) -> tuple[bool, float]:
        take = takes[place]
        return take.problem is None, song_score.total(take.parts) or 0.0

    ranked = sorted(range(len(takes)), key=worth, reverse=True)
    return [takes[place] for place in sorted(ranked[:count])]


def takes_at_once(takes: int, seconds: float) -> int:
    """Return how many takes of `seconds` to save at once: one per core, together no longer than the longest song."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    in_memory = int(LIMITS["duration"].high / seconds)
    return max(min(takes, cores, in_memory), 1)


def _record_of(job: SongJob, outcome: Outcome) -> SongRecord:
    return song_record(
        outcome.ran,
        mode=job.request.mode,
        request=jobs.request_entry(job),
        audio=jobs.upload_entries(job),
        seeds=job.seeds,
        variation_seeds=job.variation_seeds if job.request.options.variation else (),
        notes=[*outcome.notes, *_notes(job.request, outcome.ran.kind)],
    )


def _notes(request: SongRequest, kind: str) -> Iterator[str]:
    task = getattr(request, "action", request.mode)
    changes_level = request.options.loudness is not None or request.options.fade_out
    if task in ("extend", "repaint", "layer") and changes_level:
        yield "Loudness and fade-out change the whole file, including the samples of the source."
    if task_support(kind)[task] != "official":
        yield f"{task.capitalize()} is experimental with this checkpoint: use a base checkpoint for it."


def _fill_in(record: SongRecord, saving: Saving) -> None:
    """Add the saved takes, and the failures of the others, to the record."""
    for number, song in enumerate(saving.songs, 1):
        if song.problem:
            message = song.problem.text()
            failure = TakeFailure(take=number, seed=song.take.seed, message=message)
            record["errors"].append(failure)
        elif song.written:
            record["takes"].append(song.written.entry)
    saved = len(saving.paths())
    if saved and any(song.found_no_room for song in saving.songs):
        record["notes"].append(
            f"The disk is full: {saved} of {len(saving.songs)} takes could be saved."
        )


@dataclass(frozen=True)
class WrittenTake:
    """A song in the output folder, and its entry in the record."""

    path: Path
    entry: TakeEntry


@dataclass
class TakeFile:
    """A take that becomes a file: first it is `written`, then it gets a `copy`, unless a `problem` prevents it."""

    take: Take
    problem: Problem | None
    written: WrittenTake | None = None
    copy: str = ""

    @property
    def is_full(self) -> bool:
        return self.problem is not None and self.problem.code == audio_export.FULL

    @property
    def found_no_room(self) -> bool:
        return self.is_full and self.written is None


class Saving:
    """Saves the takes of a job, several at once, each in a thread."""

    def __init__(
        self, request: SongRequest, record: SongRecord, output: Path, takes: Collection[Take]
    ):
        self.request = request
        self.record = record
        self.output = output
        self.songs = [TakeFile(take, take.problem) for take in takes]
        self._closed = threading.Event()

    def run(self, at_once: int) -> Iterator[Progress]:
        """Save all takes; closing the generator ends the writing. A failure becomes the `problem` of its song."""
        threads = futures.ThreadPoolExecutor(at_once, "take")
        try:
            yield from self._until_done([threads.submit(self._save, song) for song in self.songs])
            # Takes that are written at once may fill a disk that has room for some of them: try
            # these again one by one.
            for song in self.songs:
                if at_once > 1 and song.is_full and song.take.problem is None:
                    song.problem = None
                    yield from self._until_done([threads.submit(self._save, song)])
        finally:
            self._closed.set()
            threads.shutdown(cancel_futures=True)

    def paths(self) -> list[Path]:
        return [song.written.path for song in self.songs if song.written]

    def problems(self) -> list[Problem]:
        return [song.problem for song in self.songs if song.problem]

    def _until_done(self, saving: list[futures.Future]) -> Iterator[Progress]:
        unfinished = {future for future in saving if not future.done()}
        while unfinished:
            number = len(self.songs) - len(unfinished) + 1
            yield Progress("finishing", number, len(self.songs))
            unfinished = futures.wait(unfinished, BEAT_SECONDS, futures.FIRST_COMPLETED).not_done

    def _save(self, song: TakeFile) -> None:
        """Write the file of a song and its copy for the page; raises CancelledError."""
        if song.problem:
            return
        try:
            if song.written is None:
                file, song.written = self._write(song.take)
            else:
                file = io.BytesIO(song.written.path.read_bytes())
            song.copy = _copy_or_link(file, song.written.path)
        except futures.CancelledError:
            raise
        except Exception as error:
            song.problem = self._problem_of(error, song)

    def _problem_of(self, error: Exception, song: TakeFile) -> Problem:
        problem = audio_export.disk_problem(error)
        if problem is None:
            log.error("a take could not be saved", exc_info=error)
            message = tooltips.TAKE_NOT_SAVED.format(kind=type(error).__name__)
            problem = Problem("internal", message)
        if song.written is None:
            return problem
        where = tooltips.TAKE_WITHOUT_COPY.format(name=song.written.path.name)
        return replace(problem, message=f"{problem.message} {where}")

    def _write(self, take: Take) -> tuple[io.BytesIO, WrittenTake]:
        """Write a take into the output folder under a free name; return its bytes too."""
        entry, samples = _measured(self.request, take)
        kind = self.request.options.format
        name_parts = (self.request.prompt, take.seed, kind, self.request.mode)
        file = audio_export.encode(samples, kind, self._closed.is_set)
        # The folder may have been deleted since the song began.
        self.output.mkdir(parents=True, exist_ok=True)
        likely_path = self.output / audio_export.file_name(*name_parts)
        title = next(audio_export.free_names(likely_path)).stem
        try:
            self._tag(file, title, entry, samples)
        except Exception as error:
            log.error("a take could not be tagged", exc_info=error)
            entry["warnings"].append(tooltips.TAKE_WITHOUT_TAGS)
            file = audio_export.encode(samples, kind, self._closed.is_set)
        digest = hashlib.sha256(file.getbuffer()).hexdigest()
        with audio_export.aside(self.output) as part:
            part.write_bytes(file.getbuffer())
            path = self._claim(part, name_parts)
        entry["name"] = path.name
        entry["sha256"] = digest
        return file, WrittenTake(path, entry)

    def _tag(self, file: io.BytesIO, title: str, entry: TakeEntry, samples: Any) -> None:
        tags = {**self.record, "takes": [entry]}
        picture = audio_export.picture_for_tags(
            samples, entry["seed"], Stored.from_record(tags).key
        )
        audio_export.tag(file, title, tags, picture)

    def _claim(self, part: Path, name_parts: tuple[str, int, str, str]) -> Path:
        """Give a file its name, in ASCII if the output folder cannot store the letters of the prompt."""
        try:
            return audio_export.claim(part, self.output / audio_export.file_name(*name_parts))
        except (UnicodeEncodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in BAD_NAME:
                raise
        return audio_export.claim(part, self.output / audio_export.plain_file_name(*name_parts))


def _copy_or_link(file: io.BytesIO, song: Path) -> str:
    """Return the path of what the page gets of `song`: a copy, or where there is no room a second name of the file."""
    try:
        return copy_for_page(file, song.name)
    except Exception as error:
        if not _met_full_disk(error):
            raise
        copy = _place_for_page(file, song.name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(song, copy)
        except OSError:
            raise error from None
    served.note_own(copy)
    return str(copy)


def as_download(path: Path, kind: str, title: str) -> io.BytesIO:
    """Return a take as a file of this kind, with its record, its cover and, unless it is "", this title in the tags.

    Raises `AudioError` or OSError. A file without an acceptable record gets no tags.
    """
    record = audio_export.read_record(path)
    picture = b""
    if path.suffix == f".{kind}":
        file = io.BytesIO(path.read_bytes())  # with its picture
    else:
        samples = audio.read_wav(path)
        file = audio_export.encode(samples, kind)
        stored = Stored.from_record(record)
        if isinstance(stored.seed, int) and stored.seed >= 0:
            picture = audio_export.picture_for_tags(samples, stored.seed, stored.key)
    if record:
        audio_export.tag(file, title or path.stem, record, picture)
    return file


def draft_for_page(draft: SongDraft) -> SongDraft:
    """Return a draft whose file, a float WAV, has become a FLAC beside it, half as large and playable anywhere."""
    if not draft.file:
        return draft
    path = Path(draft.file).with_suffix(".flac")
    try:
        audio_export.save(path, audio_export.encode(audio.read_wav(draft.file), "flac"))
    except (audio.AudioError, OSError) as error:
        problem = audio_export.disk_problem(error) or NO_SONG_DRAFT
        return replace(draft, file="", problem=problem)
    Path(draft.file).unlink(missing_ok=True)
    return replace(draft, file=str(path))


def copy_for_page(file: io.BytesIO, name: str) -> str:
    """Write a copy into the folder that Gradio serves; return its path, which nobody can guess.

    On a full disk, the oldest uploads and copies that nobody uses make room for it.
    """
    copy = _place_for_page(file, name)
    try:
        _write_copy(copy, file)
    except Exception as error:
        if not _met_full_disk(error):
            raise
        served.make_room(file.getbuffer().nbytes)
        _write_copy(copy, file)
    served.note_own(copy)
    return str(copy)


def _met_full_disk(error: Exception) -> bool:
    return getattr(error, "code", "") == audio_export.FULL or is_disk_full(error)


def _place_for_page(file: io.BytesIO, name: str) -> Path:
    digest = hashlib.sha256(_SECRET)
    digest.update(file.getbuffer())
    return bootstrap.page_folder() / digest.hexdigest() / name


def _write_copy(copy: Path, file: io.BytesIO) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        audio_export.save(copy, file)
    except Exception:
        with contextlib.suppress(OSError):
            copy.parent.rmdir()
        raise


def _measured(request: SongRequest, take: Take) -> tuple[TakeEntry, Any]:
    """Return a take's entry in the record and its samples [2, n] after fade-out and loudness."""
    target = request.options.loudness
    reduction = 0.0
    warnings = list(take.warnings)
    samples = audio_levels.fade_out(audio.read_wav(take.file), request.options.fade_out)
    if target is not None:
        samples, reduction = audio_levels.scale_to_loudness(samples, target)
    loudness = audio_levels.loudness_lufs(samples)
    if target is not None and loudness is not None:
        warnings += _loudness_warnings(loudness, target, reduction)
    entry = TakeEntry(
        seed=take.seed,
        duration=round(samples.shape[-1] / SAMPLE_RATE, 6),
        peak_dbfs=round(audio_levels.peak_dbfs(samples), 2),
        loudness_lufs=None if loudness is None else round(loudness, 2),
        warnings=warnings,
    )
    if target is not None:
        entry["gain_reduction_db"] = round(reduction, 2)
    score = song_score.total(take.parts)
    if score is not None:
        entry["score"] = score
        entry["score_parts"] = song_score.shown(take.parts)
    if "lines" in take.words:
        entry["alignment"] = take.words["score"]
        entry["lines"] = take.words["lines"]
    return entry, samples


def _loudness_warnings(loudness: float, target: float, reduction: float) -> list[str]:
    warnings = []
    if abs(loudness - target) > LOUDNESS_MISSED_LU:
        warnings.append(
            f"The loudness is {loudness:.1f} LUFS instead of {target:g}: louder would clip."
        )
    if reduction > HEAVY_LIMITING_DB:
        warnings.append(
            f"Peaks were turned down by up to {reduction:.1f} dB to reach {target:g} LUFS; "
            "a lower loudness keeps more of the punch."
        )
    return warnings


# --- the output folder ----------------------------------------------------------------------------

KEEP_DAYS = "ACE_STUDIO_KEEP_DAYS"
KEEP_GB = "ACE_STUDIO_KEEP_GB"
# Days and gigabytes. Everyone shares a Space.
AT_HOME = (30.0, 20.0)
ON_A_SPACE = (1.0, 2.0)
ABANDONED_SECONDS = 60  # since a part file last grew
SONG_NAME = re.compile(r"(.+-seed-\d+)(?:-\d+)?\.(wav|flac|mp3|ogg)")


def songs_folder() -> Path:
    """Return the output folder, which may not exist yet."""
    folder = os.environ.get("ACE_STUDIO_OUTPUT") or Path(__file__).with_name("outputs")
    return Path(folder).expanduser().resolve()


def output_folder() -> Path:
    """Return the folder for finished songs, created if missing; raises StudioError if it cannot be written to."""
    folder = songs_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise StudioError(
            audio_export.FULL if is_disk_full(error) else "disk",
            f"The output folder {folder} cannot be written to: {error.strerror or error}.",
            hint="Free some space or name another folder in ACE_STUDIO_OUTPUT.",
        ) from None
    return folder


def retention() -> tuple[float, float]:
    """Return for how many days, and up to how many gigabytes (10^9 bytes) in total, songs are kept; inf for "off"."""
    days, gb = ON_A_SPACE if os.environ.get("SPACE_ID") else AT_HOME
    return _limit(KEEP_DAYS, days), _limit(KEEP_GB, gb)


def prune(made: Collection[Path] = ()) -> None:
    """Delete songs that are too old, then the oldest until the rest fits, but none of those just `made`."""
    sweep_songs()
    days, gb = retention()
    oldest = clock.now() - days * 86_400
    most_bytes = gb * 1e9
    songs = [song for song in _files() if SONG_NAME.fullmatch(song[0].name)]
    songs.sort(key=lambda song: song[1].st_mtime)

    def are_too_many() -> bool:
        if not songs:
            return False
        _, first = songs[0]
        total_bytes = sum(facts.st_size for _, facts in songs)
        return first.st_mtime < oldest or total_bytes > most_bytes

    if are_too_many():
        songs = [song for song in songs if _is_ours(song[0])]  # reads their tags
    while are_too_many():
        path, _ = songs.pop(0)
        if path in made:
            continue
        try:
            path.unlink(missing_ok=True)
            log.info("deleted an old song from the output folder")
        except OSError as error:
            log.warning("the old song %s cannot be deleted: %s", path, error)


def sweep_songs() -> None:
    """Delete what a killed studio left half-written: empty songs and abandoned part files."""
    oldest = clock.now() - ABANDONED_SECONDS
    for path, facts in _files():
        is_part = audio_export.PART.fullmatch(path.name)
        is_empty = SONG_NAME.fullmatch(path.name) and not facts.st_size
        if (is_part or is_empty) and facts.st_mtime < oldest:
            with contextlib.suppress(OSError):
                path.unlink()


def _limit(variable: str, default: float) -> float:
    text = os.environ.get(variable, "").strip().lower() or str(default)
    if text == "off":
        return math.inf
    with contextlib.suppress(ValueError):
        value = float(text)
        if 0 < value < math.inf:
            return value
    log.warning('%s must be above 0 or "off", not "%s"; using %g', variable, text[:40], default)
    return default


def _files() -> Iterator[tuple[Path, os.stat_result]]:
    try:
        entries = list(os.scandir(songs_folder()))
    except OSError:  # no folder yet
        return
    for entry in entries:
        with contextlib.suppress(OSError):  # it was just deleted
            if entry.is_file(follow_symlinks=False):
                yield Path(entry), entry.stat(follow_symlinks=False)


def _is_ours(path: Path) -> bool:
    """Tell whether the record in a file's tags matches its name: the studio deletes no other songs."""
    name = SONG_NAME.fullmatch(path.name)
    if name is None:
        return False
    stem, kind = name.groups()
    stored = Stored.from_record(audio_export.read_record(path))
    prompt = stored.request.get("prompt")
    if not isinstance(prompt, str) or not isinstance(stored.mode, str):
        return False
    name_parts = (prompt, stored.seed, kind, stored.mode)
    our_names = (
        audio_export.file_name(*name_parts),
        audio_export.plain_file_name(*name_parts),
    )
    return f"{stem}.{kind}" in our_names
