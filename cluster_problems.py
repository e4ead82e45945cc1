"""What goes wrong with Ray, in sentences for people: which of its errors mean that a worker is gone, and the others.

ray is imported where it is used.
"""

from __future__ import annotations

import logging

from events import Problem, StudioError, first_line

log = logging.getLogger("studio")

AGAIN = "The worker that was making this song is gone, so another one starts it again."
# What Ray calls an actor that died in its constructor.
AT_START = "creation task"
NO_CLIENT = Problem(
    "ray_client",
    "Ray's client (ray://) cannot stream what a worker says.",
    hint='Start the studio on a machine of the cluster with ACE_STUDIO_RAY=auto, or name the head as "host:6379".',
)
UNREACHABLE = Problem(
    "ray_unreachable",
    "The head of the Ray cluster cannot be reached.",
    hint="The studio tries again every few seconds. Check that the head is running, and what ACE_STUDIO_RAY names.",
)
SLOW_START = Problem(
    "ray_start",
    "Ray did not start on this machine in time.",
    hint="The studio tries again every few seconds. A busy machine may need RAY_raylet_start_wait_time_s=120.",
)
NO_WORKER = Problem(
    "ray_no_worker",
    "No worker of the Ray cluster is left.",
    hint="The studio goes on waiting for one and uses it as soon as it is there.",
)
TWICE = Problem(
    "ray_died",
    "Two workers in a row died while they were making this song.",
    hint="Try fewer takes or a shorter song; the logs of Ray tell why they died.",
)


def is_death(error: Exception) -> bool:
    """Tell whether `error` says that a worker, its process or its machine is gone, or answers no more."""
    import ray

    gone = (
        ray.exceptions.RayActorError,
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.ObjectLostError,
        TimeoutError,
    )
    return isinstance(error, gone) and AT_START not in str(error)


def problem_of(error: Exception) -> Problem:
    """Return the sentence for what Ray raises."""
    if isinstance(error, StudioError):
        return error.problem
    if isinstance(error, ImportError):
        return Problem("ray_missing", "Ray is not installed here.", hint="Start the studio with ./run.sh --ray.")
    text = str(error)
    if "ersion mismatch" in text:
        return Problem(
            "ray_versions",
            f"This machine and the cluster have different versions of Ray or Python: {_versions(text)}",
            hint="Install the same versions on all of them.",
        )
    kind = type(error).__name__
    if AT_START in text:
        return Problem(
            "ray_start",
            f"A worker could not start: {text.strip().splitlines()[-1]}",
            hint="Each machine needs the packages of requirements.txt; the logs of Ray have the details.",
        )
    if kind in ("ObjectStoreFullError", "OutOfDiskError"):
        return Problem(
            "ray_full",
            "The object store of the cluster is full.",
            hint="Try again when fewer songs are being made, or give Ray more memory (--object-store-memory).",
        )
    if kind == "RuntimeEnvSetupError":
        return Problem(
            "ray_code", f"A worker could not get the studio's code: {first_line(error)}", hint="See the logs of Ray."
        )
    if "timed out during startup" in text:
        return SLOW_START
    if isinstance(error, ConnectionError) or "GCS" in text or "gcs" in text:
        return UNREACHABLE
    log.error("Ray failed unexpectedly", exc_info=error)
    return Problem(
        "ray_failed",
        f"A worker could not do its work ({kind}: {first_line(error)[:200]}).",
        hint="The log of the studio and those of Ray have the details.",
    )


def _versions(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "Ray:" in line or "Python:" in line]
    return ", ".join(lines) or "they differ."
