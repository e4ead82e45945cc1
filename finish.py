"""After the GPU: takes become files with tags, and a run becomes its record.

The record holds enough to make the song again and what really ran; the same record, for one take, is written into each
file. No object in it has a key "path", "url" or "meta": clients would try to download it.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from gradio import processing_utils
from gradio import utils as gradio_utils

import audio
import checkpoints
import export
import levels
import models
import modes
import outputs
from events import Done, Failed, Progress, StudioError
from jobs import Job
from limits import SAMPLE_RATE, STUDIO_VERSION
from modes import Outcome
from params import SongRequest
from song import Take

PACKAGES = ("torch", "diffusers", "transformers", "gradio", "huggingface_hub", "soundfile")


def finish(
    request: SongRequest, job: Job, outcome: Outcome, output: Path, weights: checkpoints.Weights, device: models.Device
) -> Iterator[Progress | Done | Failed]:
    """Encode, tag and measure the good takes into `output`; ends with `Done`, or `Failed` where no take is good.

    The paths in `Done` are copies in Gradio's cache: the output folder itself is never served.
    """
    started = time.monotonic()
    record = _record(request, job, outcome, weights, device)
    files, made = [], []
    for number, take in enumerate(outcome.takes, 1):
        yield Progress("finishing", number, len(outcome.takes))
        if take.problem:
            record["errors"].append({"take": number, "seed": take.seed, "message": take.problem.text()})
            continue
        facts, samples = _measure(request, take)
        path = _save(request, take, samples, {**record, "takes": [facts]}, output)
        record["takes"].append({**facts, "name": path.name, "sha256": sha256(path)})
        made.append(path)
        files.append(processing_utils.save_file_to_cache(path, cache_dir=gradio_utils.get_upload_folder()))
    outputs.prune(made)
    record["seconds"]["finishing"] = round(time.monotonic() - started, 3)
    if files:
        yield Done(tuple(files), record)
    else:
        yield Failed(outcome.takes[0].problem)


def output_folder() -> Path:
    """Return the folder for finished songs (ACE_STUDIO_OUTPUT), made where missing and checked by writing to it.

    Raises StudioError where it cannot be written to.
    """
    folder = outputs.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise StudioError(
            "disk",
            f"The output folder {folder} cannot be written to: {error.strerror or error}.",
            hint="Free some space or name another folder in ACE_STUDIO_OUTPUT.",
        ) from None
    return folder


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape the sound."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(
    request: SongRequest, job: Job, outcome: Outcome, weights: checkpoints.Weights, device: models.Device
) -> dict[str, Any]:
    facts = dict(outcome.facts)
    uploads = {name: Path(getattr(request, name)) for name in job.audio}
    asked = request.model_dump(mode="json", exclude={"mode", "source", "reference"})
    # An uploaded file is "upload" here: its path is nobody's business.
    asked["options"]["loras"] = [{"source": lora.source, "weight": lora.weight} for lora in job.loras]
    return {
        "studio": STUDIO_VERSION,
        "mode": request.mode,
        "request": asked,
        "audio": {name: {"name": path.name, "sha256": sha256(path)} for name, path in uploads.items()},
        "seeds": list(job.seeds),
        "variation_seeds": list(job.variation_seeds) if request.options.variation else [],
        "model": {"id": weights.model_id, "revision": weights.revision, "engine": weights.engine},
        "device": device.kind,
        "dtype": device.dtype,
        "versions": versions(),
        "plan": None,
        "loras": [],
        "seconds": facts.pop("seconds"),
        **facts,
        "notes": [*outcome.notes, *_level_notes(request), *_task_notes(request, checkpoints.checkpoint_kind(weights))],
        "errors": [],
        "takes": [],
    }


def _task_notes(request: SongRequest, kind: str) -> list[str]:
    task = getattr(request, "action", request.mode)
    if modes.task_support(kind)[task] == "official":
        return []
    return [f"{task.capitalize()} is experimental with this checkpoint: it was made for the base checkpoint."]


def _level_notes(request: SongRequest) -> list[str]:
    """Say what loudness and fade-out cost in a mode that otherwise leaves the source's samples alone."""
    keeps = request.mode == "extend" or getattr(request, "action", "") in ("repaint", "layer")
    options = request.options
    if keeps and (options.loudness is not None or options.fade_out):
        return ["Loudness and fade-out change the whole file, so the source's samples are not the same any more."]
    return []


def _measure(request: SongRequest, take: Take) -> tuple[dict[str, Any], Any]:
    """Return a take's facts and its samples [2, n] after fade-out and loudness."""
    samples = levels.fade_out(audio.read_wav(take.file), request.options.fade_out)
    warnings = list(take.warnings)
    if request.options.loudness is not None:
        samples = levels.scale_to_loudness(samples, request.options.loudness)
        reached = levels.loudness_lufs(samples)
        if reached is not None and abs(reached - request.options.loudness) > 0.5:
            warnings.append(
                f"The loudness is {reached:.1f} LUFS instead of {request.options.loudness:g}: louder would clip."
            )
    loudness = levels.loudness_lufs(samples)
    facts = {
        "seed": take.seed,
        "duration": round(samples.shape[-1] / SAMPLE_RATE, 6),
        "peak_dbfs": round(levels.peak_dbfs(samples), 2),
        "loudness_lufs": None if loudness is None else round(loudness, 2),
        "warnings": warnings,
    }
    return facts, samples


def _save(request: SongRequest, take: Take, samples: Any, record: dict[str, Any], output: Path) -> Path:
    """Encode and tag a take under a name that nothing else has; a failure leaves no file behind."""
    name = export.file_name(request.prompt, take.seed, request.options.format, request.mode)
    path = _reserve(output / name)
    try:
        export.encode(samples, path, request.options.format)
        export.write_tags(path, title=path.stem, record=record)
    except Exception:
        path.unlink(missing_ok=True)
        raise
    return path


def _reserve(path: Path) -> Path:
    """Create the first free of "name", "name-2", "name-3" ... as an empty file and return it."""
    for number in range(1, 100_000):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        with contextlib.suppress(FileExistsError):
            candidate.touch(exist_ok=False)
            return candidate
    raise StudioError("disk", f"There are too many files called {path.name} in the output folder.")
