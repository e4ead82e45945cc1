"""The command line of app.py: arguments become environment variables before anything reads them; `--check`.

gradio and huggingface_hub read their variables when they are imported, so nothing imported here may import them.
`--check` looks at packages, device, weights and disks: it imports torch, but reads no weights and downloads nothing. It
only asks the hub, once and for at most 5 seconds, for the size of a model that is to be downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import bootstrap
import tooltips
from events import StudioError
from limits import LIMITS, STUDIO_VERSION, size_text


def read_arguments(
    arguments: Sequence[str] | None = None, environ: MutableMapping[str, str] = os.environ
) -> argparse.Namespace:
    """Check `arguments` (default: the command line) and set the variables of those that are given in `environ`.

    A wrong value ends the process with a sentence and status 2.
    """
    about = {"prog": "app.py", "description": tooltips.CLI_ABOUT, "epilog": tooltips.CLI_END}
    parser = argparse.ArgumentParser(**about, add_help=False, allow_abbrev=False)
    switch = {"action": "store_const", "const": "true"}
    for name, variable, settings in (
        ("host", "GRADIO_SERVER_NAME", {"metavar": "NAME", "type": _host}),
        ("port", "GRADIO_SERVER_PORT", {"metavar": "NUMBER", "type": _port}),
        ("share", "GRADIO_SHARE", switch),
        ("model", "ACE_STUDIO_MODEL", {"metavar": "MODEL", "type": _model("preview")}),
        ("planner", "ACE_STUDIO_PLANNER", {"metavar": "MODEL", "type": _model("preview", "off", inside=True)}),
        ("lyrics", "ACE_STUDIO_LYRICS", {"metavar": "MODEL", "type": _model("preview", "off")}),
        ("output", "ACE_STUDIO_OUTPUT", {"metavar": "FOLDER", "type": _output}),
        ("mcp", "GRADIO_MCP_SERVER", switch),
        ("ray", "ACE_STUDIO_RAY", {"metavar": "ADDRESS", "type": _ray, "nargs": "?", "const": "local"}),
        ("check", "check", switch),
    ):
        parser.add_argument(f"--{name}", dest=variable, help=tooltips.CLI_HELP[name], **settings)
    parser.add_argument("-h", "--help", action="help", help=tooltips.CLI_HELP["help"])
    given = parser.parse_args(arguments)
    environ.update({variable: value for variable, value in vars(given).items() if value and variable != "check"})
    return given


def shorten_errors() -> None:
    """Replace the traceback of an error at start with one sentence, and let SIGTERM end the process quietly."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            frame = traceback.extract_tb(trace)[-1]
            place = f"{Path(frame.filename).name}, line {frame.lineno}"
            print(tooltips.CANNOT_START.format(reason=_reason(error), place=place), file=sys.stderr, flush=True)

    sys.excepthook = hook
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())


# --- values -------------------------------------------------------------------------------------------------------


def _wrong(sentence: str, **values: object) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(sentence.format(**values))


def _host(text: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text.strip("[]")))
    if not re.fullmatch(r"(?!-)[A-Za-z0-9.-]*[A-Za-z0-9]\.?", text) or re.fullmatch(r"[\d.]+", text):
        raise _wrong(tooltips.CLI_HOST, value=text)
    return text


def is_port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 0 < int(text) < 65536


def _port(text: str) -> str:
    if not is_port(text):
        raise _wrong(tooltips.CLI_PORT, value=text)
    return text


def _ray(text: str) -> str:
    host, _, port = text.removeprefix("ray://").rpartition(":")
    if text not in ("local", "auto") and not (host and is_port(port)):
        raise _wrong(tooltips.CLI_RAY, value=text)
    return text


def _model(*words: str, inside: bool = False) -> Callable[[str], str]:
    """Return a check for one of `words`, an existing folder, or org/repo; with `inside` also org/repo/folder."""
    spelling = r"[A-Za-z0-9][\w.-]*/[\w.-]+" + (r"(/[\w.-]+)*" if inside else "")

    def check(text: str) -> str:
        if text.lower() in words:
            return text.lower()
        if text.startswith(("/", "./", "../", "~")) or text in (".", "..") or os.path.lexists(text):
            if not os.path.isdir(os.path.expanduser(text)):
                raise _wrong(tooltips.CLI_NO_FOLDER, value=text)
        elif not re.fullmatch(spelling, text):
            raise _wrong(tooltips.CLI_MODEL, value=text, words=" or ".join(words))
        return text

    return check


def _output(text: str) -> str:
    # The folder may not exist yet: the first one above it that does must be writable.
    place = _existing(Path(os.path.expanduser(text)))
    if not text or not place.is_dir():
        raise _wrong(tooltips.CLI_OUTPUT_FILE, value=text, place=place)
    if not os.access(place, os.W_OK | os.X_OK):
        raise _wrong(tooltips.CLI_OUTPUT_CLOSED, value=text, place=place)
    return text


def _existing(path: Path) -> Path:
    """Return `path`, or the first folder above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


# --- check --------------------------------------------------------------------------------------------------------

SONG_BYTES = 1_500_000_000
"""The disk space of four takes of ten minutes: float32 in the job's folder, 24 bit twice."""
PLANNER_GB = 3.8


@dataclass(frozen=True)
class Finding:
    """One line of the check: `name` as in tooltips.CHECK_LABELS; if it `stops`, no song can be made."""

    name: str
    text: str
    stops: bool = False

    def __str__(self) -> str:
        return f"{tooltips.CHECK_LABELS[self.name]:<15}{self.text}"


def check() -> int:
    """Print what would run here; return the exit status, 1 if no song can be made."""
    bootstrap.bootstrap()
    bad = []
    for finding in findings():
        print(finding, flush=True)
        if finding.stops:
            bad.append(tooltips.CHECK_LABELS[finding.name])
    if bad:
        print(Finding("result", tooltips.CHECK_BAD.format(names=", ".join(bad))))
        return 1
    import backend

    preview = backend.get_backend().status()["engine"] == "preview"
    print(Finding("result", tooltips.CHECK_GOOD_PREVIEW if preview else tooltips.CHECK_GOOD))
    return 0


def findings() -> Iterator[Finding]:
    """Yield the findings in the order that a start needs them; ends early if packages are missing."""
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("studio", f"{STUDIO_VERSION}, {machine}")
    yield (found := finding_of("packages", packages))
    if found.stops:
        return
    import backend
    from weights import find_planner, find_writer

    studio = backend.get_backend()
    steps = {
        "device": lambda: device(studio),
        "memory": lambda: memory_room(studio),
        "plan": lambda: memory_plan(studio.models.weights, studio.device(), studio.capabilities()["memory_plan"]),
        "model": lambda: song_model(studio.models.weights),
        "planner": lambda: planner(find_planner()),
        "lyrics": lambda: lyrics_writer(find_writer()),
        "cache": cache,
        "output": output,
        "workers": workers,
    }
    for name, step in steps.items():
        yield finding_of(name, step)


def finding_of(name: str, step: Callable[[], str]) -> Finding:
    """Return what `step` reports, or what it raises as a finding that stops."""
    try:
        return Finding(name, step())
    except StudioError as error:
        return Finding(name, str(error), stops=True)
    except Exception as error:
        return Finding(name, tooltips.CHECK_CANNOT_CHECK.format(reason=_reason(error)), stops=True)


def packages() -> str:
    try:
        from diffusers import AceStepPipeline  # noqa: F401

        import backend  # noqa: F401
        from jobs import versions
    except ImportError as error:
        raise StudioError("packages", tooltips.CHECK_PACKAGE.format(reason=error)) from None
    return ", ".join(f"{name} {version}" for name, version in versions().items() if name != "python")


# --- the machine --------------------------------------------------------------------------------------------------


def device(studio: Any) -> str:
    studio.device()
    facts = studio.capabilities()
    return f"{facts['device']}, {facts['dtype']}. {facts['device_reason']}"


def memory_room(studio: Any) -> str:
    import psutil

    import memory
    import models

    free, total = size_text(models.available_memory()), size_text(psutil.virtual_memory().total)
    room = tooltips.CHECK_RAM.format(free=free, total=total)
    if limit := memory.vram_limit_for(studio.device().kind):
        room += ", " + tooltips.CHECK_VRAM.format(total=size_text(limit))
    return f"{room}."


def memory_plan(weights: Any, where: Any, usual: str) -> str:
    """Return the plan for a `usual` song and the memory that the shortest one needs, which must fit."""
    import memory
    from weights import is_turbo

    shortest = memory.song_of(weights, where, LIMITS["duration"].low, 1, not is_turbo(weights))
    room = memory.room_for_models(where.kind)
    choice = memory.choose(where.kind, room, memory.sizes_of(weights, where), shortest)
    if choice.problem:
        raise StudioError.of(choice.problem)
    return tooltips.CHECK_PLAN.format(plan=usual, need=size_text(choice.need))


def cache() -> str:
    from huggingface_hub import constants

    return tooltips.CHECK_FREE.format(folder=constants.HF_HUB_CACHE, free=size_text(_free_in_cache()))


def _free_in_cache() -> int:
    from huggingface_hub import constants

    return shutil.disk_usage(_existing(Path(constants.HF_HUB_CACHE))).free


def output() -> str:
    """Return the output folder; it and the temporary folder must have room for another song."""
    from jobs import output_folder

    folder = output_folder()
    for place in (Path(tempfile.gettempdir()), folder):
        free = shutil.disk_usage(place).free
        if free < SONG_BYTES:
            words = {"folder": place, "free": size_text(free), "least": size_text(SONG_BYTES)}
            raise StudioError("disk_full", tooltips.CHECK_FULL.format(**words))
    return tooltips.CHECK_FREE.format(folder=folder, free=size_text(free))


def workers() -> str:
    """Return the Ray workers; joins a cluster to count its cards, but starts nothing."""
    import cluster
    import cluster_worker

    where = cluster.wanted()
    if not where:
        return tooltips.CHECK_NO_RAY
    try:
        import ray

        if where == cluster.LOCAL:
            count = cluster.count_wanted()
            words = f"{count} worker{'' if count == 1 else 's'}" if count else "a worker for each card"
            return tooltips.CHECK_RAY_LOCAL.format(version=ray.__version__, workers=words)
        cluster.join(where)
        cards = ray.cluster_resources().get("GPU", 0)
        facts = {"nodes": f"{len(ray.nodes())} nodes", "cards": f"{cards:g} cards"}
        return tooltips.CHECK_RAY.format(version=ray.__version__, **facts)
    except Exception as error:
        raise StudioError.of(cluster_worker.problem_of(error)) from error


# --- weights ------------------------------------------------------------------------------------------------------


def song_model(weights: Any) -> str:
    import hub
    from weights import DEFAULT_MODEL_GB

    if weights.source == "preview" and weights.problem:
        size = tooltips.CHECK_SIZE.format(size=f"{DEFAULT_MODEL_GB} GB")
        return f"{tooltips.CHECK_STANDS_IN.format(problem=weights.problem.text())} {size}"
    text, here = _model_report(weights, weights.wanted, hub.PIPELINE)
    if not here:
        raise StudioError("weights_missing", text)
    return text


def planner(weights: Any) -> str:
    import hub
    from weights import DEFAULT_PLANNER, PLANNER_VARIABLE

    text, _ = _model_report(weights, weights.repo, hub.language_model(PLANNER_VARIABLE, weights.inside))
    if weights.source == "none" and weights.wanted == DEFAULT_PLANNER:
        text += " " + tooltips.CHECK_SIZE.format(size=f"{PLANNER_GB} GB")
    return text


def lyrics_writer(weights: Any) -> str:
    import hub
    from weights import LYRICS_VARIABLE

    return _model_report(weights, weights.wanted, hub.language_model(LYRICS_VARIABLE))[0]


def _model_report(weights: Any, repo: str, selection: Any) -> tuple[str, bool]:
    """Return what a model is and how large, and whether it is here or can be downloaded."""
    if weights.source == "hub":
        return _download_report(weights.wanted, repo, selection)
    if weights.source == "preview":
        return tooltips.CHECK_PREVIEW, True
    if weights.folder is None:
        return weights.problem.text() if weights.problem else weights.wanted, False
    size = sum(path.stat().st_size for path in Path(weights.folder).rglob("*") if path.is_file())
    words = {"model": weights.model_id, "size": size_text(size), "folder": weights.folder}
    return tooltips.CHECK_FOUND.format(**words), True


def _download_report(wanted: str, repo: str, selection: Any) -> tuple[str, bool]:
    """Return the size that the hub reports for a download, and whether the disk has room for it."""
    from huggingface_hub import HfApi, constants

    import hub

    try:
        api = HfApi(endpoint=constants.ENDPOINT)
        files = api.model_info(repo, files_metadata=True, timeout=hub.ASK_SECONDS).siblings or []
    except Exception as error:
        return tooltips.CHECK_UNASKED.format(model=wanted, reason=type(error).__name__), False
    chosen = set(selection.choose(file.rfilename for file in files))
    if selection.index not in chosen:
        return tooltips.CHECK_UNASKED.format(model=wanted, reason=f"{selection.index} is missing there"), False
    size = sum(file.size or 0 for file in files if file.rfilename in chosen)
    text = tooltips.CHECK_TO_FETCH.format(model=wanted, size=size_text(size))
    free = _free_in_cache()
    if size + hub.SPARE_BYTES > free:
        words = {"size": size_text(size), "free": size_text(free), "folder": constants.HF_HUB_CACHE}
        return f"{text} {tooltips.CHECK_NO_ROOM.format(**words)}", False
    return text, True
