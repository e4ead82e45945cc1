"""The command line of app.py: arguments become environment variables before anything reads them; `--check`.

gradio and huggingface_hub read their variables when they are imported, so nothing imported here may
import them. `--check` imports torch, but reads no weights and downloads nothing; it only asks the
hub for the size of a download.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import os
import platform
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import bootstrap
import tooltips
from events import StudioError
from limits import LIMITS, MODELS, STUDIO_VERSION, size_text


def read_arguments(
    arguments: Sequence[str] | None = None, environ: MutableMapping[str, str] = os.environ
) -> argparse.Namespace:
    """Set the variables of the given `arguments` in `environ`; a wrong value ends the process with status 2."""
    parser = argparse.ArgumentParser(
        "app.py",
        description=tooltips.CLI_DESCRIPTION,
        epilog=tooltips.CLI_END,
        add_help=False,
        allow_abbrev=False,
    )

    def add(name: str, variable: str, **settings: Any) -> None:
        parser.add_argument(f"--{name}", dest=variable, help=tooltips.CLI_HELP[name], **settings)

    def add_switch(name: str, variable: str) -> None:
        add(name, variable, action="store_const", const="true")

    song_model = partial(_model, ["preview"])
    songwriter = partial(_model, ["preview", "random", "off"])
    planner = partial(songwriter, inside=True)
    add("host", "GRADIO_SERVER_NAME", metavar="NAME", type=_host)
    add("port", "GRADIO_SERVER_PORT", metavar="NUMBER", type=_port)
    add_switch("share", "GRADIO_SHARE")
    add("model", "ACE_STUDIO_MODEL", metavar="MODEL", type=song_model)
    add("planner", "ACE_STUDIO_PLANNER", metavar="MODEL", type=planner)
    add("lyrics", "ACE_STUDIO_LYRICS", metavar="MODEL", type=songwriter)
    add("output", "ACE_STUDIO_OUTPUT", metavar="FOLDER", type=_output)
    add_switch("mcp", "GRADIO_MCP_SERVER")
    add("ray", "ACE_STUDIO_RAY", metavar="ADDRESS", type=_ray, nargs="?", const="local")
    add_switch("media", "media")  # run.sh installs it
    add_switch("check", "check")
    add_switch("selfcheck", "selfcheck")
    add_switch("daemon", "daemon")
    parser.add_argument("-h", "--help", action="help", help=tooltips.CLI_HELP["help"])
    given = parser.parse_args(arguments)
    for variable, value in vars(given).items():
        if value and variable not in ("media", "check", "selfcheck", "daemon"):
            environ[variable] = value
    return given


def shorten_errors() -> None:
    """Replace the traceback of an error at start with one sentence, and let SIGTERM end the process quietly."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            frame = traceback.extract_tb(trace)[-1]
            place = f"{Path(frame.filename).name}, line {frame.lineno}"
            sentence = tooltips.CANNOT_START.format(reason=_reason(error), place=place)
            print(sentence, file=sys.stderr, flush=True)

    sys.excepthook = hook
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())


def _host(text: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text.strip("[]")))
    is_name = re.fullmatch(r"(?!-)[A-Za-z0-9.-]*[A-Za-z0-9]\.?", text)
    is_number = re.fullmatch(r"[\d.]+", text)
    if not is_name or is_number:
        raise argparse.ArgumentTypeError(tooltips.CLI_HOST.format(value=text))
    return text


def is_port(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 0 < int(text) < 65536


def _port(text: str) -> str:
    if not is_port(text):
        raise argparse.ArgumentTypeError(tooltips.CLI_PORT.format(value=text))
    return text


def why_not_listening(host: str, port: str) -> str:
    """Return a sentence on why the studio cannot listen there, found by trying; `port` may be empty."""
    words = {"host": host, "port": port}
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port or 0), type=socket.SOCK_STREAM)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except (socket.gaierror, UnicodeError):
        return tooltips.HOST_UNKNOWN.format(**words)
    except OSError as error:
        known = {
            errno.EADDRNOTAVAIL: tooltips.HOST_ELSEWHERE,
            errno.EAFNOSUPPORT: tooltips.HOST_ELSEWHERE,
            errno.EACCES: tooltips.PORT_CLOSED,
            errno.EPERM: tooltips.PORT_CLOSED,
            errno.EADDRINUSE: tooltips.PORT_TAKEN,
        }
        sentence = known.get(error.errno or 0, tooltips.CANNOT_LISTEN)
        return sentence.format(**words, reason=error.strerror or error)
    return (tooltips.PORT_TAKEN if port else tooltips.NO_PORT).format(**words)


def _ray(text: str) -> str:
    host, _, port = text.removeprefix("ray://").rpartition(":")
    if text not in ("local", "auto") and not (host and is_port(port)):
        raise argparse.ArgumentTypeError(tooltips.CLI_RAY.format(value=text))
    return text


def _model(words: Sequence[str], text: str, inside: bool = False) -> str:
    """Check for one of `words`, an existing folder, or org/repo; with `inside` also org/repo/folder."""
    if text.lower() in words:
        return text.lower()
    if text.startswith(("/", "./", "../", "~")) or text in (".", "..") or os.path.lexists(text):
        if not os.path.isdir(os.path.expanduser(text)):
            raise argparse.ArgumentTypeError(tooltips.CLI_NO_FOLDER.format(value=text))
        return text
    pattern = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
    if inside:
        pattern += r"(/[\w.-]+)*"
    if not re.fullmatch(pattern, text):
        sentence = tooltips.CLI_MODEL.format(value=text, words=" or ".join(words))
        raise argparse.ArgumentTypeError(sentence)
    return text


def _output(text: str) -> str:
    # The folder may not exist yet: the first one above it that does must be writable.
    place = bootstrap.existing(Path(os.path.expanduser(text)))
    if not text or not place.is_dir():
        raise argparse.ArgumentTypeError(tooltips.CLI_OUTPUT_FILE.format(value=text, place=place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(tooltips.CLI_OUTPUT_CLOSED.format(value=text, place=place))
    return text


def run_command(arguments: Sequence[str]) -> None:
    """Make what a command such as "make" or "lyrics" asks for and end the process; return if there is none."""
    if not arguments or arguments[0].startswith("-"):
        return
    import cli_make

    if arguments[0] in cli_make.COMMANDS:
        cli_make.main(arguments)


def serve_lines() -> None:
    """Speak JSON-RPC over standard input and output until the end; ends the process."""
    bootstrap.bootstrap()
    import daemon

    daemon.main()


# About what four takes of ten minutes need: float32, and a copy in 24 bits.
SONG_BYTES = 1_500_000_000
PLANNER_GB = 3.8
LANGUAGE_MODELS = ("planner", "lyrics")  # a song needs neither


def check() -> int:
    """Print what would run here; return the exit status, 1 if no song can be made."""
    bootstrap.bootstrap()
    bad = []
    for name, step in steps():
        text, stops = finding(name, step)
        print(f"{tooltips.CHECK_LABELS[name]:<15}{text}", flush=True)
        if stops:
            bad.append(tooltips.CHECK_LABELS[name])
        if stops and name == "packages":
            break
    result = tooltips.CHECK_BAD.format(names=", ".join(bad))
    if not bad:
        import backend

        if backend.get_backend().status().is_built_in:
            result = tooltips.CHECK_GOOD_BUILT_IN
        else:
            result = tooltips.CHECK_GOOD
    print(f"{tooltips.CHECK_LABELS['result']:<15}{result}")
    return 1 if bad else 0


def finding(name: str, step: Callable[[], str]) -> tuple[str, bool]:
    """Return what `step` reports or raises, and whether that prevents songs."""
    try:
        return step(), False
    except StudioError as error:
        return str(error), name not in LANGUAGE_MODELS
    except Exception as error:
        return tooltips.CHECK_CANNOT_CHECK.format(reason=_reason(error)), True


def steps() -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the steps in the order that a start needs them; those after "packages" need the packages."""
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "studio", lambda: f"{STUDIO_VERSION}, {machine}"
    yield "packages", packages
    import backend
    import model_hub
    from model_weights import LYRICS_VARIABLE, PLANNER_VARIABLE

    studio = backend.get_backend()
    models = studio.models
    planner = models.planner.weights
    planner_files = model_hub.language_model(PLANNER_VARIABLE, planner.inside)
    songwriter_files = model_hub.language_model(LYRICS_VARIABLE)

    def plan_of_a_song() -> str:
        usual_plan = studio.full_status().memory_plan
        planner_bytes = studio.placing.sizes().planner
        return memory_plan(models.weights, models.device(), usual_plan, planner_bytes)

    yield "device", lambda: device(studio)
    yield "memory", lambda: memory_room(studio)
    yield "plan", lambda: plan_of_a_song()
    yield "model", lambda: model(models.weights, model_hub.PIPELINE)
    yield "models", lambda: other_models(studio)
    yield "planner", lambda: model(planner, planner_files)
    yield "lyrics", lambda: model(models.lyrics.weights, songwriter_files)
    yield "selfcheck", lambda: self_check(studio)
    yield "cache", cache
    yield "output", output
    yield "workers", workers


def packages() -> str:
    try:
        from diffusers import AceStepPipeline  # noqa: F401

        import backend  # noqa: F401
        from record import library_versions
    except ImportError as error:
        raise StudioError("packages", tooltips.CHECK_PACKAGE.format(reason=error)) from None
    versions = library_versions()
    del versions["python"]
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def device(studio: Any) -> str:
    status = studio.full_status()
    return f"{status.device}, {status.dtype}. {status.device_reason}"


def other_models(studio: Any) -> str:
    """Return the song models that a request can name besides the studio's own, and which are here."""
    found = [
        tooltips.CHECK_OTHER_MODEL.format(
            name=MODELS[each.name], kind=each.name, state="not here" if each.problem else "here"
        )
        for each in studio.status().song_models
        if not each.own
    ]
    return f"{', '.join(found)}."


def memory_room(studio: Any) -> str:
    import psutil

    import model_memory
    import models

    free = size_text(models.available_memory())
    total = size_text(psutil.virtual_memory().total)
    room = tooltips.CHECK_RAM.format(free=free, total=total)
    limit = model_memory.vram_limit_for(studio.models.device().kind)
    if limit:
        room += ", " + tooltips.CHECK_VRAM.format(total=size_text(limit))
    return f"{room}."


def memory_plan(weights: Any, device: Any, usual_plan: str, planner_bytes: int = 0) -> str:
    """Return the plan for a typical song, and the memory that the shortest song needs, which must fit.

    A planner of `planner_bytes` counts if it fits; songs can be made without it.
    """
    import estimate
    import model_memory
    from model_weights import is_turbo

    shortest = estimate.song_of(weights, device, LIMITS["duration"].low, 1, not is_turbo(weights))
    use = model_memory.Use(shortest, loops=True, plans=True)
    room = model_memory.room_for_models(device.kind)
    sizes = model_memory.sizes_of(weights, device)
    planned = replace(sizes, planner=planner_bytes)
    choice = model_memory.choose(device.kind, room, planned, use)
    text = tooltips.CHECK_PLAN
    if choice.problem and planner_bytes:
        choice = model_memory.choose(device.kind, room, sizes, use)
        text = tooltips.CHECK_PLAN_UNPLANNED
    if choice.problem:
        raise StudioError.from_problem(choice.problem)
    return text.format(plan=usual_plan, need=size_text(choice.need))


def self_check(studio: Any) -> str:
    """Return what the self-check found here before."""
    import selfcheck

    if not selfcheck.wanted():
        return tooltips.CHECK_SELFCHECK_OFF
    found = selfcheck.remembered(studio.models)
    bad = [finding.path for finding in found if not finding.agrees]
    if bad:
        return selfcheck.sentences_on(bad)
    if found:
        return tooltips.CHECK_SELFCHECK_GOOD.format(count=len(found))
    return tooltips.CHECK_SELFCHECK_NONE


def prove() -> int:
    """Check again every path that these models can take; print a report, and return 1 if something disagrees."""
    bootstrap.bootstrap()
    import backend
    import selfcheck

    studio = backend.get_backend()
    started = time.monotonic()
    try:
        for finding in selfcheck.everything(studio.models, studio.placing):
            print(finding.line(), flush=True)
    except StudioError as error:
        print(error)
        return 1
    found = selfcheck.remembered(studio.models)
    seconds = f"{time.monotonic() - started:.1f}"
    print(tooltips.SELFCHECK_REPORT.format(seconds=seconds, report=selfcheck.report(studio.models)))
    return 0 if found and all(finding.agrees for finding in found) else 1


def cache() -> str:
    from huggingface_hub import constants

    folder = constants.HF_HUB_CACHE
    return tooltips.CHECK_FREE.format(folder=folder, free=size_text(_free(folder)))


def _free(folder: Path | str) -> int:
    """Return the free bytes where `folder` is or will be."""
    return shutil.disk_usage(bootstrap.existing(Path(folder))).free


def output() -> str:
    """Return the output folder; it and the temporary folder must have room for another song."""
    from takes import output_folder

    folder = output_folder()
    for place in (Path(tempfile.gettempdir()), folder):
        free = _free(place)
        if free < SONG_BYTES:
            sentence = tooltips.CHECK_FULL.format(
                folder=place, free=size_text(free), least=size_text(SONG_BYTES)
            )
            raise StudioError("disk_full", sentence)
    return tooltips.CHECK_FREE.format(folder=folder, free=size_text(free))


def workers() -> str:
    """Return the Ray workers; joins a cluster to count its cards, but starts nothing."""
    import gpu_ray
    import gpu_ray_worker

    address = gpu_ray.wanted()
    if not address:
        return tooltips.CHECK_NO_RAY
    try:
        import ray

        if address == gpu_ray.LOCAL:
            count = gpu_ray.count_wanted()
            if count == 0:
                words = "a worker for each card"
            elif count == 1:
                words = "1 worker"
            else:
                words = f"{count} workers"
            return tooltips.CHECK_RAY_LOCAL.format(version=ray.__version__, workers=words)
        gpu_ray.join(address)
        cards = ray.cluster_resources().get("GPU", 0)
        return tooltips.CHECK_RAY.format(
            version=ray.__version__, nodes=f"{len(ray.nodes())} nodes", cards=f"{cards:g} cards"
        )
    except Exception as error:
        raise StudioError.from_problem(gpu_ray_worker.problem_of(error)) from error


def model(weights: Any, selection: Any) -> str:
    """Return a model's name and size; raises StudioError if it is neither here nor can be downloaded."""
    from model_weights import DEFAULT_MODEL_GB, DEFAULT_PLANNER

    if weights.source == "hub":
        return download(weights, selection)
    if weights.comes_along and weights.problem:
        size = tooltips.CHECK_SIZE.format(size=f"{DEFAULT_MODEL_GB} GB")
        return f"{tooltips.CHECK_STANDS_IN.format(problem=weights.problem.text())} {size}"
    if weights.comes_along:
        return tooltips.CHECK_BUILT_IN
    if weights.folder is None:
        text = weights.problem.text()
        if weights.source == "none" and weights.wanted == DEFAULT_PLANNER:
            text += " " + tooltips.CHECK_SIZE.format(size=f"{PLANNER_GB} GB")
        raise StudioError("weights_missing", text)
    size = sum(path.stat().st_size for path in weights.folder.rglob("*") if path.is_file())
    return tooltips.CHECK_FOUND.format(
        model=weights.model_id, size=size_text(size), folder=weights.folder
    )


def download(weights: Any, selection: Any) -> str:
    """Return the size of a download as the hub reports it; raises StudioError if there is none, or no room for it."""
    from huggingface_hub import HfApi, constants

    import model_hub

    api = HfApi(endpoint=constants.ENDPOINT)
    reason = ""
    try:
        info = api.model_info(weights.repo, files_metadata=True, timeout=model_hub.ASK_SECONDS)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if selection.index not in sizes:
            reason = f"{selection.index} is missing there"
    except Exception as error:
        reason = type(error).__name__
    if reason:
        raise StudioError(
            "weights_missing", tooltips.CHECK_UNASKED.format(model=weights.wanted, reason=reason)
        )
    size = sum(sizes[name] for name in selection.choose(sizes))
    free = _free(constants.HF_HUB_CACHE)
    text = tooltips.CHECK_TO_FETCH.format(model=weights.wanted, size=size_text(size))
    if size + model_hub.SPARE_BYTES > free:
        no_room = tooltips.CHECK_NO_ROOM.format(
            size=size_text(size), free=size_text(free), folder=constants.HF_HUB_CACHE
        )
        raise StudioError("disk_full", f"{text} {no_room}")
    return text
