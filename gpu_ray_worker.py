"""A Ray worker: one loaded studio in its own process, on any machine of a cluster; and Ray's errors as sentences."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bootstrap
from events import Outcome, Problem, StudioError, first_line
from gpu_job import Job
from status import Status

log = logging.getLogger("studio")

BLOCK_BYTES = 8 * 2**20  # small enough for a small object store to carry songs of any length
LORAS_KEPT = 8  # files of LoRAs that a worker keeps for its next songs


@dataclass(frozen=True)
class Block:
    """The next bytes of the file `name` in a job's folder; `follows` is False for the first ones."""

    name: str
    data: bytes
    follows: bool


class Worker:
    """One loaded studio. `run` makes one song at a time; the other methods answer meanwhile."""

    def __init__(self, name: str, environ: dict[str, str]):
        # A worker has no workers of its own. Ray sets the second variable to 1, which would limit
        # torch to one thread.
        for variable in ("ACE_STUDIO_RAY", "OMP_NUM_THREADS"):
            os.environ.pop(variable, None)
        os.environ.update(environ)
        bootstrap.bootstrap()
        import jobs

        jobs.sweep()
        self._name = name
        self._jobs = jobs
        self._loras: list[str] = []  # hashes of the files kept here, the most recently used last
        self._cancelled = ""

    def hello(self, get_status: Callable[[], Status]) -> Status:
        """Return the status of the studio in this process, with this worker as its only one."""
        import ray

        status = get_status()
        node = ray.get_runtime_context().get_node_id()[:12]
        (here,) = status.workers
        worker = replace(here, id=self._name, node=node, busy=False)
        return replace(status, workers=(worker,))

    def cancel(self, name: str) -> None:
        """Cancel the job whose folder has that name, even if it has not begun."""
        self._cancelled = name
        Path(self._jobs.process_folder(), name, "running").unlink(missing_ok=True)

    def close(self) -> None:
        self._jobs.stop(0)

    def run(
        self, entry: Callable[[Job], Generator[Any]], job: Job, files: dict[str, list[Any]]
    ) -> Generator[Any]:
        """Yield the hashes of the LoRAs kept here, then the events of `entry(job)`, each after its files' blocks."""
        name = Path(job.folder).name
        kept = self._jobs.process_folder() / "loras"
        kept.mkdir(mode=0o700, exist_ok=True)
        with self._jobs.job_folder(name) as folder:
            audio = {key: str(folder / f"{key}.wav") for key in job.audio}
            loras = tuple(replace(spec, path=str(kept / spec.info.sha256)) for spec in job.loras)
            local_job = replace(job, folder=str(folder), audio=audio, loras=loras)
            local_job.running.touch()
            if self._cancelled == name:
                return
            # Audio has its name as its key; LoRAs that are not kept yet have their hash.
            for key, blocks in files.items():
                _write(Path(audio.get(key, kept / key)), blocks)
            self._keep_loras(kept, [spec.info.sha256 for spec in loras])
            yield tuple(self._loras)
            with contextlib.closing(entry(local_job)) as events:
                for event in events:
                    if local_job.cancelled():
                        return
                    if isinstance(event, Outcome):
                        yield from _files_of(event)
                        event = event.with_facts(worker=self._name)
                    yield event

    def _keep_loras(self, kept: Path, used: list[str]) -> None:
        """Note the hashes in `used` as the latest, and delete the files that were not used for longest."""
        used = list(dict.fromkeys(used))
        self._loras = [key for key in self._loras if key not in used] + used
        while len(self._loras) > max(LORAS_KEPT, len(used)):
            (kept / self._loras.pop(0)).unlink(missing_ok=True)


def _files_of(outcome: Outcome) -> Generator[Block]:
    for take in outcome.takes:
        for number, data in enumerate(blocks_of(take.file)):
            yield Block(Path(take.file).name, data, number > 0)


def blocks_of(path: str) -> Generator[bytes]:
    if path:
        with open(path, "rb") as file:
            yield from iter(lambda: file.read(BLOCK_BYTES), b"")


def _write(path: Path, blocks: list[Any]) -> None:
    import ray

    with path.open("wb") as file:
        for block in blocks:
            file.write(ray.get(block))


AT_START = "creation task"  # what Ray calls the constructor of an actor
RETRIED = "The studio tries again every few seconds."
PACKAGES = "Each machine needs the packages of requirements.txt; the logs of Ray have the details."
LOGS = "The log of the studio and those of Ray have the details."
UNREACHABLE = Problem(
    "ray_unreachable",
    "The head of the Ray cluster cannot be reached.",
    hint=f"{RETRIED} Check that the head is running, and what ACE_STUDIO_RAY names.",
)
NO_WORKER = Problem(
    "ray_no_worker",
    "No worker of the Ray cluster is left.",
    hint="The studio keeps waiting for one and uses it as soon as it is there.",
)

NO_START = Problem(
    "ray_start",
    "No worker of the Ray cluster has started within five minutes.",
    hint=f"The cluster may be busy with other work. {LOGS}",
)
NO_ROOM = "ray_no_room"


def no_room(cards: float) -> Problem:
    """Return the problem of a cluster where no machine is large enough for a worker with so many `cards`."""
    if not cards:
        needed = "one CPU"
    elif cards == 1:
        needed = "1 GPU"
    else:
        needed = f"{cards:g} GPUs"
    message = f"No machine of the Ray cluster has room for a worker, which takes {needed}."
    hint = "Start Ray there with more (--num-cpus, --num-gpus), or change ACE_STUDIO_RAY_GPUS."
    return Problem(NO_ROOM, message, hint=hint)


def is_death(error: Exception) -> bool:
    """Tell whether `error` means that a worker, its process or its machine is gone or no longer answers."""
    from ray import exceptions as ray

    gone = (
        ray.RayActorError,
        ray.WorkerCrashedError,
        ray.NodeDiedError,
        ray.ObjectLostError,
        TimeoutError,
    )
    return isinstance(error, gone) and AT_START not in str(error)


def problem_of(error: Exception) -> Problem:
    """Return an error of Ray, or one that came through it, as a problem.

    Ray has no types for most of its errors, so they are recognised by their texts.
    """
    text = str(error)
    kind = type(error).__name__
    if isinstance(error, StudioError):
        return error.problem
    if isinstance(error, ImportError):
        hint = "Start the studio with ./run.sh --ray."
        return Problem("ray_missing", "Ray is not installed here.", hint=hint)
    if "ersion mismatch" in text:
        return _other_versions(text)
    if AT_START in text:
        message = f"A worker could not start: {text.strip().splitlines()[-1]}"
        return Problem("ray_start", message, hint=PACKAGES)
    if kind in ("ObjectStoreFullError", "OutOfDiskError"):
        hint = "Try again when fewer songs are being made, or give Ray more memory (--object-store-memory)."
        return Problem("ray_full", "The object store of the cluster is full.", hint=hint)
    if kind == "RuntimeEnvSetupError":
        message = f"A worker could not get the studio's code: {first_line(error)}"
        return Problem("ray_code", message, hint=LOGS)
    if "timed out during startup" in text:
        hint = f"{RETRIED} A busy machine may need RAY_raylet_start_wait_time_s=120."
        return Problem("ray_start", "Ray did not start on this machine in time.", hint=hint)
    if isinstance(error, ConnectionError) or "gcs" in text.lower():
        return UNREACHABLE
    log.error("Ray failed unexpectedly", exc_info=error)
    return Problem(
        "ray_failed",
        f"A worker could not do its work ({kind}: {first_line(error)[:200]}).",
        hint=LOGS,
    )


def _other_versions(text: str) -> Problem:
    lines = [line.strip() for line in text.splitlines()]
    versions = ", ".join(line for line in lines if "Ray:" in line or "Python:" in line)
    message = (
        "This machine and the cluster have different versions of Ray or Python: "
        f"{versions or 'they differ.'}"
    )
    return Problem("ray_versions", message, hint="Install the same versions on all of them.")
