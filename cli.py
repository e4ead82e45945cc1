"""The command line of app.py: arguments become environment variables, set before anything reads them; `--check`.

Of our modules only bootstrap, limits and texts are imported with it: gradio and huggingface_hub look at their variables
while they are imported, and `--help` and a wrong value should not wait for them. `check` looks at packages, device,
weights and disks; it imports torch, reads no weights and downloads nothing. Of a model that was named on purpose and is
not here it asks the hub for the size, once, for at most 5 seconds.
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
    """Check `arguments` (the command line's own unless given) and set their variables in `environ`.

    A wrong value ends the process with a sentence and status 2, as --help does with the help and status 0. What is not
    given leaves its variable as it is.
    """
    given = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    for name, variable in VARIABLES.items():
        value = getattr(given, name)
        if value is not None:
            environ[variable] = str(value)
    return given


def say_why_it_cannot_start() -> None:
    """Let what ends the process be one sentence and status 1, and SIGTERM end it quietly while nothing runs yet."""

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        frame = traceback.extract_tb(trace)[-1]
        reason = f"{kind.__name__}: {error}" if str(error) else kind.__name__
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        print(tooltips.CANNOT_START.format(reason=" ".join(reason.split()), place=place), file=sys.stderr, flush=True)

    sys.excepthook = say
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


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
    """Return a name or an address to listen on; whether it is one of this machine shows when the studio starts."""
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
    """Return one of the words, or the address of a head."""
    host, _, port = text.removeprefix("ray://").rpartition(":")
    if text not in ("local", "auto") and not (host and is_port(port)):
        raise _wrong(tooltips.CLI_RAY, value=text)
    return text


def _model(*words: str, inside: bool = False) -> Callable[[str], str]:
    """Return a check that takes one of `words`, a folder that is here, or the spelling of a model on the hub.

    `inside` allows a folder within a repository: org/repo/folder.
    """
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
    """Return a folder that is there or can be made."""
    place = Path(os.path.expanduser(text)).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not text or not place.is_dir():
        raise _wrong(tooltips.CLI_OUTPUT_FILE, value=text, place=place)
    if not os.access(place, os.W_OK | os.X_OK):
        raise _wrong(tooltips.CLI_OUTPUT_CLOSED, value=text, place=place)
    return text


# --- what would run here -------------------------------------------------------------------------------------------

SONG_BYTES = 1_500_000_000
"""What four takes of ten minutes need while they are made: float32 in the job's folder, 24 bit twice."""
PLANNER_GB = 3.8


@dataclass(frozen=True)
class Finding:
    """One line of the check: `name` as in tooltips.CHECK_LABELS; where it `stops`, no song could be made."""

    name: str
    text: str
    stops: bool = False


def check() -> int:
    """Print what would run here; return the exit status, 1 where a song could not be made."""
    bootstrap.bootstrap()
    found: list[Finding] = []
    for finding in findings():
        found.append(finding)
        print(line(finding), flush=True)
    verdict = verdict_of(found)
    print(line(verdict))
    return int(verdict.stops)


def line(finding: Finding) -> str:
    return f"{tooltips.CHECK_LABELS[finding.name]:<15}{finding.text}"


def verdict_of(found: list[Finding]) -> Finding:
    """Return the last line: whether a song can be made, or because of what it could not."""
    bad = [tooltips.CHECK_LABELS[finding.name] for finding in found if finding.stops]
    if bad:
        return Finding("result", tooltips.CHECK_BAD.format(names=", ".join(dict.fromkeys(bad))), stops=True)
    import backend

    preview = backend.get_backend().status()["engine"] == "preview"
    return Finding("result", tooltips.CHECK_GOOD_PREVIEW if preview else tooltips.CHECK_GOOD)


def findings() -> Iterator[Finding]:
    """Yield what is found, in the order in which a start would need it; ends early where packages are missing."""
    here = f"{STUDIO_VERSION}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("studio", here)
    try:
        from diffusers import AceStepPipeline  # noqa: F401

        import backend
        from jobs import versions
    except ImportError as error:
        yield Finding("packages", tooltips.CHECK_PACKAGE.format(reason=error), stops=True)
        return
    packages = {name: version for name, version in versions().items() if name != "python"}
    yield Finding("packages", ", ".join(f"{name} {version}" for name, version in packages.items()))
    for name, look in (
        ("device", lambda: device(backend.get_backend())),
        ("model", lambda: song_model(backend.get_backend().models.weights)),
        ("planner", planner),
        ("lyrics", lyrics_writer),
        ("cache", cache),
        ("output", output),
        ("workers", workers),
    ):
        yield from _tried(name, look)


def _tried(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what `look` finds; whatever it raises stops a song, too."""
    try:
        yield from look()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        yield Finding(name, tooltips.CHECK_CANNOT_CHECK.format(reason=reason), stops=True)


# --- the machine --------------------------------------------------------------------------------------------------


def device(studio: Any) -> Iterator[Finding]:
    """Yield the device with its reason, the memory, and how the weights would be placed in it."""
    import psutil

    import memory
    import models

    studio.device()
    facts = studio.capabilities()
    yield Finding("device", f"{facts['device']}, {facts['dtype']}. {facts['device_reason']}")
    free, total = size_text(models.available_memory()), size_text(psutil.virtual_memory().total)
    room = tooltips.CHECK_RAM.format(free=free, total=total)
    if limit := memory.vram_limit_for(facts["device"]):
        room += ", " + tooltips.CHECK_VRAM.format(total=size_text(limit))
    yield Finding("memory", f"{room}.")
    yield memory_plan(studio.models.weights, studio.device(), facts["memory_plan"])


def memory_plan(weights: Any, where: Any, usual: str) -> Finding:
    """Return the plan for a `usual` song, and what the shortest one needs; where that does not fit, there is none."""
    import memory
    from weights import is_turbo

    shortest = memory.song_of(weights, where, LIMITS["duration"].low, 1, not is_turbo(weights))
    room = memory.room_for_models(where.kind)
    choice = memory.choose(where.kind, room, memory.sizes_of(weights, where), shortest)
    if choice.problem:
        return Finding("plan", choice.problem.text(), stops=True)
    return Finding("plan", tooltips.CHECK_PLAN.format(plan=usual, need=size_text(choice.need)))


def cache() -> Iterator[Finding]:
    """Yield where fetched models are kept, and the room there."""
    from huggingface_hub import constants

    yield Finding("cache", tooltips.CHECK_FREE.format(folder=constants.HF_HUB_CACHE, free=free_text(_cache_folder())))


def output() -> Iterator[Finding]:
    """Yield where songs go, and whether the folder and the one for work in progress take one more."""
    from events import StudioError
    from jobs import output_folder

    try:
        folder = output_folder()
    except StudioError as error:
        yield Finding("output", error.problem.text(), stops=True)
        return
    for place in (folder, Path(tempfile.gettempdir())):
        free = shutil.disk_usage(place).free
        if free < SONG_BYTES:
            words = {"folder": place, "free": size_text(free), "least": size_text(SONG_BYTES)}
            yield Finding("output", tooltips.CHECK_FULL.format(**words), stops=True)
            return
    yield Finding("output", tooltips.CHECK_FREE.format(folder=folder, free=free_text(folder)))


def workers() -> Iterator[Finding]:
    """Yield who would make the songs; a cluster is joined for it, and nothing is started."""
    import cluster
    import cluster_problems

    where = cluster.wanted()
    if not where:
        yield Finding("workers", tooltips.CHECK_NO_RAY)
        return
    try:
        import ray

        if where == cluster.LOCAL:
            count = cluster.count_wanted()
            words = f"{count} worker{'' if count == 1 else 's'}" if count else "a worker for each card"
            yield Finding("workers", tooltips.CHECK_RAY_LOCAL.format(version=ray.__version__, workers=words))
            return
        cluster.join(where)
        found = ray.cluster_resources()
        facts = {"nodes": f"{len(ray.nodes())} nodes", "cards": f"{found.get('GPU', 0):g} cards"}
        yield Finding("workers", tooltips.CHECK_RAY.format(version=ray.__version__, **facts))
    except Exception as error:
        yield Finding("workers", cluster_problems.problem_of(error).text(), stops=True)


# --- weights ------------------------------------------------------------------------------------------------------


def song_model(weights: Any) -> Iterator[Finding]:
    """Yield what the song model is; the only one without which nothing can be made."""
    import hub
    from weights import DEFAULT_MODEL_GB

    if weights.engine == "preview":
        if weights.problem is None:
            yield Finding("model", tooltips.CHECK_PREVIEW)
            return
        size = tooltips.CHECK_SIZE.format(size=f"{DEFAULT_MODEL_GB} GB")
        yield Finding("model", f"{tooltips.CHECK_STANDS_IN.format(problem=weights.problem.text())} {size}")
    elif weights.source == "hub":
        yield _to_fetch("model", weights.wanted, weights.wanted, hub.PIPELINE, stops=True)
    elif weights.folder is None:
        yield Finding("model", weights.problem.text() if weights.problem else str(weights.wanted), stops=True)
    else:
        yield _found("model", weights)


def planner() -> Iterator[Finding]:
    """Yield what the planner is; without one songs are made without a plan."""
    import hub
    from weights import DEFAULT_PLANNER, PLANNER_VARIABLE, find_planner

    weights = find_planner()
    found = _language_model("planner", weights, weights.repo, hub.language_model(PLANNER_VARIABLE, weights.inside))
    if weights.source == "none" and weights.wanted == DEFAULT_PLANNER:
        found = replace(found, text=f"{found.text} {tooltips.CHECK_SIZE.format(size=f'{PLANNER_GB} GB')}")
    yield found


def lyrics_writer() -> Iterator[Finding]:
    """Yield what the lyrics writer is; without one lyrics are typed."""
    import hub
    from weights import LYRICS_VARIABLE, find_writer

    weights = find_writer()
    yield _language_model("lyrics", weights, weights.wanted, hub.language_model(LYRICS_VARIABLE))


def _language_model(name: str, weights: Any, repo: str, selection: Any) -> Finding:
    if weights.source == "hub":
        return _to_fetch(name, weights.wanted, repo, selection, stops=False)
    if weights.source == "preview":
        return Finding(name, tooltips.CHECK_PREVIEW)
    if weights.folder is not None:
        return _found(name, weights)
    return Finding(name, weights.problem.text() if weights.problem else str(weights.wanted))


def _found(name: str, weights: Any) -> Finding:
    size = sum(path.stat().st_size for path in Path(weights.folder).rglob("*") if path.is_file())
    words = {"model": weights.model_id, "size": size_text(size), "folder": weights.folder}
    return Finding(name, tooltips.CHECK_FOUND.format(**words))


def _to_fetch(name: str, wanted: str, repo: str, selection: Any, stops: bool) -> Finding:
    """Ask the hub how much a model is and compare it with the room; `stops`: without it there is no song."""
    from huggingface_hub import HfApi, constants

    import hub

    try:
        api = HfApi(endpoint=constants.ENDPOINT)
        info = api.model_info(repo, files_metadata=True, timeout=hub.ASK_SECONDS)
    except Exception as error:
        return Finding(name, tooltips.CHECK_UNASKED.format(model=wanted, reason=type(error).__name__), stops)
    files = info.siblings or []
    chosen = set(selection.choose(file.rfilename for file in files))
    if selection.index not in chosen:
        reason = f"{selection.index} is missing there"
        return Finding(name, tooltips.CHECK_UNASKED.format(model=wanted, reason=reason), stops)
    size = sum(file.size or 0 for file in files if file.rfilename in chosen)
    text = tooltips.CHECK_TO_FETCH.format(model=wanted, size=size_text(size))
    free = shutil.disk_usage(_cache_folder()).free
    if size + hub.SPARE_BYTES > free:
        words = {"size": size_text(size), "free": size_text(free), "folder": constants.HF_HUB_CACHE}
        return Finding(name, f"{text} {tooltips.CHECK_NO_ROOM.format(**words)}", stops)
    return Finding(name, text)


# --- words --------------------------------------------------------------------------------------------------------


def _cache_folder() -> Path:
    """Return the model cache, or the first folder above it that is there."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE).absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def free_text(folder: Path) -> str:
    return size_text(shutil.disk_usage(folder).free)
