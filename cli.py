"""The command line of app.py: arguments become environment variables before anything reads them; `--check`.

gradio and huggingface_hub read their variables when they are imported, so only bootstrap, limits and texts are imported
with it. `check` looks at packages, device, weights and disks: it imports torch, but reads no weights and downloads
nothing. It only asks the hub, once and for at most 5 seconds, for the size of a model that is to be downloaded.
"""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import bootstrap
import tooltips
from limits import LIMITS, STUDIO_VERSION, size_text

VARIABLES = {
    "host": "GRADIO_SERVER_NAME",
    "port": "GRADIO_SERVER_PORT",
    "share": "GRADIO_SHARE",
    "model": "ACE_STUDIO_MODEL",
    "planner": "ACE_STUDIO_PLANNER",
    "lyrics": "ACE_STUDIO_LYRICS",
    "output": "ACE_STUDIO_OUTPUT",
    "mcp": "GRADIO_MCP_SERVER",
    "ray": "ACE_STUDIO_RAY",
}


def read_arguments(
    arguments: Sequence[str] | None = None, environ: MutableMapping[str, str] = os.environ
) -> argparse.Namespace:
    """Check `arguments` (default: the command line) and set the variables of those that are given in `environ`.

    A wrong value ends the process with a sentence and status 2.
    """
    given = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    for name, variable in VARIABLES.items():
        value = getattr(given, name)
        if value is not None:
            environ[variable] = str(value)
    return given


def shorten_errors() -> None:
    """Replace the traceback of an error at start with one sentence, and let SIGTERM end the process quietly."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        frame = traceback.extract_tb(trace)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        print(
            tooltips.CANNOT_START.format(reason=" ".join(_reason(error).split()), place=place),
            file=sys.stderr,
            flush=True,
        )

    sys.excepthook = hook
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="app.py",
        description=tooltips.CLI_ABOUT,
        epilog=tooltips.CLI_END,
        add_help=False,
        allow_abbrev=False,
    )

    def value(name: str, metavar: str, check: Callable[[str], str], **settings: object) -> None:
        parser.add_argument(f"--{name}", metavar=metavar, type=check, help=tooltips.CLI_HELP[name], **settings)

    def switch(name: str, **settings: object) -> None:
        parser.add_argument(f"--{name}", action="store_const", const="true", help=tooltips.CLI_HELP[name], **settings)

    value("host", "NAME", _host)
    value("port", "NUMBER", _port)
    switch("share")
    value("model", "MODEL", _model("preview"))
    value("planner", "MODEL", _model("preview", "off", inside=True))
    value("lyrics", "MODEL", _model("preview", "off"))
    value("output", "FOLDER", _output)
    switch("mcp")
    value("ray", "ADDRESS", _ray, nargs="?", const="local")
    switch("check")
    parser.add_argument("-h", "--help", action="help", help=tooltips.CLI_HELP["help"])
    return parser


# --- values -------------------------------------------------------------------------------------------------------


def _wrong(sentence: str, **values: object) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(sentence.format(**values))


def _host(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        pass
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
            return text
        if not re.fullmatch(spelling, text):
            raise _wrong(tooltips.CLI_MODEL, value=text, words=" or ".join(words))
        return text

    return check


def _output(text: str) -> str:
    # The folder may not exist yet: the first one above it that does must be writable.
    place = Path(os.path.expanduser(text)).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not text or not place.is_dir():
        raise _wrong(tooltips.CLI_OUTPUT_FILE, value=text, place=place)
    if not os.access(place, os.W_OK | os.X_OK):
        raise _wrong(tooltips.CLI_OUTPUT_CLOSED, value=text, place=place)
    return text


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
    found: list[Finding] = []
    for finding in findings():
        found.append(finding)
        print(finding, flush=True)
    verdict = verdict_of(found)
    print(verdict)
    return int(verdict.stops)


def verdict_of(found: list[Finding]) -> Finding:
    """Return the last line: whether a song can be made, or why not."""
    bad = dict.fromkeys(tooltips.CHECK_LABELS[finding.name] for finding in found if finding.stops)
    if bad:
        return Finding("result", tooltips.CHECK_BAD.format(names=", ".join(bad)), stops=True)
    import backend

    preview = backend.get_backend().status()["engine"] == "preview"
    return Finding("result", tooltips.CHECK_GOOD_PREVIEW if preview else tooltips.CHECK_GOOD)


def findings() -> Iterator[Finding]:
    """Yield the findings in the order that a start needs them; ends early if packages are missing."""
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("studio", f"{STUDIO_VERSION}, Python {platform.python_version()}, {system}")
    try:
        from diffusers import AceStepPipeline  # noqa: F401

        import backend
        from jobs import versions
    except ImportError as error:
        yield Finding("packages", tooltips.CHECK_PACKAGE.format(reason=error), stops=True)
        return
    packages = [f"{name} {version}" for name, version in versions().items() if name != "python"]
    yield Finding("packages", ", ".join(packages))
    studio = backend.get_backend()
    steps = {
        "device": lambda: device(studio),
        "memory": lambda: memory_room(studio),
        "plan": lambda: memory_plan(studio.models.weights, studio.device(), studio.capabilities()["memory_plan"]),
        "model": lambda: song_model(studio.models.weights),
        "planner": planner,
        "lyrics": lyrics_writer,
        "cache": cache,
        "output": output,
        "workers": workers,
    }
    for name, step in steps.items():
        yield tried(name, step)


def tried(name: str, step: Callable[[], Finding]) -> Finding:
    """Return what `step` finds; an exception becomes a finding that stops."""
    try:
        return step()
    except Exception as error:
        return Finding(name, tooltips.CHECK_CANNOT_CHECK.format(reason=_reason(error)), stops=True)


# --- the machine --------------------------------------------------------------------------------------------------


def device(studio: Any) -> Finding:
    studio.device()
    facts = studio.capabilities()
    return Finding("device", f"{facts['device']}, {facts['dtype']}. {facts['device_reason']}")


def memory_room(studio: Any) -> Finding:
    import psutil

    import memory
    import models

    free, total = size_text(models.available_memory()), size_text(psutil.virtual_memory().total)
    room = tooltips.CHECK_RAM.format(free=free, total=total)
    if limit := memory.vram_limit_for(studio.device().kind):
        room += ", " + tooltips.CHECK_VRAM.format(total=size_text(limit))
    return Finding("memory", f"{room}.")


def memory_plan(weights: Any, where: Any, usual: str) -> Finding:
    """Return the plan for a `usual` song and the memory of the shortest one; it stops if that does not fit."""
    import memory
    from weights import is_turbo

    shortest = memory.song_of(weights, where, LIMITS["duration"].low, 1, not is_turbo(weights))
    room = memory.room_for_models(where.kind)
    choice = memory.choose(where.kind, room, memory.sizes_of(weights, where), shortest)
    if choice.problem:
        return Finding("plan", choice.problem.text(), stops=True)
    return Finding("plan", tooltips.CHECK_PLAN.format(plan=usual, need=size_text(choice.need)))


def cache() -> Finding:
    from huggingface_hub import constants

    free = size_text(_free_in_cache())
    return Finding("cache", tooltips.CHECK_FREE.format(folder=constants.HF_HUB_CACHE, free=free))


def _free_in_cache() -> int:
    """Return the free bytes of the model cache, or of the first existing folder above it."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def output() -> Finding:
    """Return the output folder; it stops if that or the temporary folder has no room for another song."""
    from events import StudioError
    from jobs import output_folder

    try:
        folder = output_folder()
    except StudioError as error:
        return Finding("output", error.problem.text(), stops=True)
    for place in (Path(tempfile.gettempdir()), folder):
        free = shutil.disk_usage(place).free
        if free < SONG_BYTES:
            words = {"folder": place, "free": size_text(free), "least": size_text(SONG_BYTES)}
            return Finding("output", tooltips.CHECK_FULL.format(**words), stops=True)
    return Finding("output", tooltips.CHECK_FREE.format(folder=folder, free=size_text(free)))


def workers() -> Finding:
    """Return the Ray workers; joins a cluster to count its cards, but starts nothing."""
    import cluster
    import cluster_worker

    where = cluster.wanted()
    if not where:
        return Finding("workers", tooltips.CHECK_NO_RAY)
    try:
        import ray

        if where == cluster.LOCAL:
            count = cluster.count_wanted()
            words = f"{count} worker{'' if count == 1 else 's'}" if count else "a worker for each card"
            return Finding("workers", tooltips.CHECK_RAY_LOCAL.format(version=ray.__version__, workers=words))
        cluster.join(where)
        found = ray.cluster_resources()
        facts = {"nodes": f"{len(ray.nodes())} nodes", "cards": f"{found.get('GPU', 0):g} cards"}
        return Finding("workers", tooltips.CHECK_RAY.format(version=ray.__version__, **facts))
    except Exception as error:
        return Finding("workers", cluster_worker.problem_of(error).text(), stops=True)


# --- weights ------------------------------------------------------------------------------------------------------


def song_model(weights: Any) -> Finding:
    import hub
    from weights import DEFAULT_MODEL_GB

    if weights.source == "preview" and weights.problem:
        size = tooltips.CHECK_SIZE.format(size=f"{DEFAULT_MODEL_GB} GB")
        return Finding("model", f"{tooltips.CHECK_STANDS_IN.format(problem=weights.problem.text())} {size}")
    return _finding("model", weights, weights.wanted, hub.PIPELINE, needed=True)


def planner() -> Finding:
    import hub
    from weights import DEFAULT_PLANNER, PLANNER_VARIABLE, find_planner

    weights = find_planner()
    found = _finding("planner", weights, weights.repo, hub.language_model(PLANNER_VARIABLE, weights.inside))
    if weights.source == "none" and weights.wanted == DEFAULT_PLANNER:
        found = replace(found, text=f"{found.text} {tooltips.CHECK_SIZE.format(size=f'{PLANNER_GB} GB')}")
    return found


def lyrics_writer() -> Finding:
    import hub
    from weights import LYRICS_VARIABLE, find_writer

    weights = find_writer()
    return _finding("lyrics", weights, weights.wanted, hub.language_model(LYRICS_VARIABLE))


def _finding(name: str, weights: Any, repo: str, selection: Any, needed: bool = False) -> Finding:
    """Return what a model is and how large; if it is `needed`, it stops without it."""
    if weights.source == "hub":
        return _download(name, weights.wanted, repo, selection, needed)
    if weights.source == "preview":
        return Finding(name, tooltips.CHECK_PREVIEW)
    if weights.folder is None:
        return Finding(name, weights.problem.text() if weights.problem else str(weights.wanted), needed)
    size = sum(path.stat().st_size for path in Path(weights.folder).rglob("*") if path.is_file())
    words = {"model": weights.model_id, "size": size_text(size), "folder": weights.folder}
    return Finding(name, tooltips.CHECK_FOUND.format(**words))


def _download(name: str, wanted: str, repo: str, selection: Any, needed: bool) -> Finding:
    """Return the size that the hub reports for a download, compared with the free disk space."""
    from huggingface_hub import HfApi, constants

    import hub

    try:
        api = HfApi(endpoint=constants.ENDPOINT)
        files = api.model_info(repo, files_metadata=True, timeout=hub.ASK_SECONDS).siblings or []
    except Exception as error:
        return Finding(name, tooltips.CHECK_UNASKED.format(model=wanted, reason=type(error).__name__), needed)
    chosen = set(selection.choose(file.rfilename for file in files))
    if selection.index not in chosen:
        reason = f"{selection.index} is missing there"
        return Finding(name, tooltips.CHECK_UNASKED.format(model=wanted, reason=reason), needed)
    size = sum(file.size or 0 for file in files if file.rfilename in chosen)
    text = tooltips.CHECK_TO_FETCH.format(model=wanted, size=size_text(size))
    free = _free_in_cache()
    if size + hub.SPARE_BYTES > free:
        words = {"size": size_text(size), "free": size_text(free), "folder": constants.HF_HUB_CACHE}
        return Finding(name, f"{text} {tooltips.CHECK_NO_ROOM.format(**words)}", needed)
    return Finding(name, text)
