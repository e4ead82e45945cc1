"""One song, or lyrics, from the command line: ./run.sh make "calm piano" --duration 30 --out song.flac

A studio that answers on the usual address makes it; otherwise this process loads the models itself.
The paths of the files go to standard output, everything else to standard error. The status is 0 if
all is well, 1 if it failed, 2 for a wrong argument, 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import bootstrap
import tooltips
from events import Done, Draft, Event, Failed, InvalidRequest, Problem, Progress, StudioError
from limits import FORMATS, LIMITS, TEXT_LIMITS
from params import REQUESTS, options_type, parse_request
from record import WordsResult, is_song

COMMANDS = {
    "make": "generate",
    "cover": "cover",
    "extend": "extend",
    "edit": "edit",
    "lyrics": "lyrics",
}
POSITIONAL = {"generate": "prompt", "lyrics": "brief"}  # the others: prompt, too
FILES = ("source", "reference")
ASK_SECONDS = 2.0  # for a studio that may be running
ASK_AGAIN_SECONDS = 0.1  # for what it has made since
STATUS_FAILED = 1
STATUS_WRONG_VALUE = 2
STATUS_INTERRUPTED = 130


def main(arguments: Sequence[str]) -> None:
    """Run a command and end the process with its status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a thread inside torch would abort a normal exit


def run(arguments: Sequence[str]) -> int:
    """Run a command; return its status."""
    bootstrap.bootstrap()
    mode = COMMANDS[arguments[0]]
    try:
        given = parser_of(arguments[0]).parse_args(arguments[1:])
        values = values_of(mode, given)
        request = parse_request(mode, values)
    except SystemExit as error:  # argparse has said why
        return int(error.code or 0)
    except InvalidRequest as error:
        for problem in error.problems:
            say(f"{problem.field.replace('_', '-') or 'request'}: {problem.text()}")
        return STATUS_WRONG_VALUE
    except OSError as error:
        say(f"{error.filename} cannot be read: {error.strerror}.")
        return STATUS_WRONG_VALUE
    try:
        url = studio_at(given.url)
        if url and not given.here:
            events = remote(url, mode, values)
        else:
            events = local(request)
        with contextlib.closing(events):
            done = last_of(events, given.quiet)
        deliver(done, given)
    except KeyboardInterrupt:
        say("Interrupted.")
        return STATUS_INTERRUPTED
    except StudioError as error:
        say(error.problem.text())
        return STATUS_FAILED
    except OSError as error:
        say(f"The song could not be written: {error.strerror or error}.")
        return STATUS_FAILED
    return 0


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


# --- arguments ------------------------------------------------------------------------------------


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of a command: an argument for every parameter and option."""
    mode = COMMANDS[command]
    parser = argparse.ArgumentParser(
        f"run.sh {command}", description=tooltips.MAKE_DESCRIPTIONS[command], allow_abbrev=False
    )
    words = POSITIONAL.get(mode, "prompt")
    parser.add_argument(words, nargs="?", default="", help=_help(words))
    fields = REQUESTS[mode].model_fields
    for name in fields:
        if name not in (words, "options"):
            _add(parser, name, fields[name].default)
    options = options_type(REQUESTS[mode]).model_fields
    for name in options:
        _add(parser, name, options[name].default)
    for name in ("out", "record", "url"):
        metavar = "ADDRESS" if name == "url" else "FILE"
        parser.add_argument(f"--{name}", metavar=metavar, help=tooltips.MAKE_HELP[name])
    for name in ("here", "quiet"):
        parser.add_argument(f"--{name}", action="store_true", help=tooltips.MAKE_HELP[name])
    return parser


def _add(parser: argparse.ArgumentParser, name: str, default: Any) -> None:
    flag = f"--{name.replace('_', '-')}"
    help_text = _help(name)
    if isinstance(default, bool):
        action = argparse.BooleanOptionalAction
        parser.add_argument(flag, dest=name, action=action, default=None, help=help_text)
    elif name in ("tracks", "regions", "loras"):
        parser.add_argument(flag, dest=name, nargs="+", help=help_text)
    else:
        parser.add_argument(flag, dest=name, help=help_text)


def _help(name: str) -> str:
    limit = LIMITS.get(name)
    if limit:
        unit = f" {limit.unit}" if limit.unit else ""
        return f"{limit.label}, from {limit.low:g} to {limit.high:.12g}{unit}".replace("%", "%%")
    if name in TEXT_LIMITS:
        return f"{name.replace('_', ' ')}, up to {TEXT_LIMITS[name]:,} characters, or @FILE"
    return tooltips.MAKE_HELP.get(name, name.replace("_", " "))


def values_of(mode: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return the values of a request from arguments; raises OSError for a file that cannot be read."""
    fields = REQUESTS[mode].model_fields
    options = options_type(REQUESTS[mode]).model_fields
    values: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    for name, value in vars(given).items():
        if value is None:
            continue
        if name in fields:
            values[name] = _value(name, value)
        elif name in options:
            chosen[name] = _value(name, value)
    suffix = Path(given.out or "").suffix.lstrip(".").lower()
    if suffix in FORMATS and "format" in options:
        chosen.setdefault("format", suffix)
    return {**values, "options": chosen}


def _value(name: str, value: Any) -> Any:
    if name == "regions":
        return [[_number(each) for each in pair.split("-", 1)] for pair in value]
    if name == "loras":
        return [_lora(each) for each in value]
    if name in FILES:
        Path(value).open("rb").close()  # raises OSError
        return os.path.abspath(value)
    if name in LIMITS:
        return _number(value)
    if name in TEXT_LIMITS and value.startswith("@"):
        return Path(value[1:]).read_text(encoding="utf-8")
    return value


def _number(text: str) -> Any:
    """Return the number in `text`, None for "auto", else the text, of which the request then complains."""
    if text.lower() == "auto":
        return None
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _lora(text: str) -> dict[str, Any]:
    source, _, weight = text.partition("=")
    if not weight:
        return {"source": source}
    return {"source": source, "weight": _number(weight)}


# --- who makes it ---------------------------------------------------------------------------------


def studio_at(named: str | None) -> str:
    """Return the address of a studio that answers, "" if there is none.

    Raises StudioError if one was named and does not answer.
    """
    import httpx

    host = os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    port = os.environ.get("GRADIO_SERVER_PORT") or "7860"
    url = (named or f"http://{host}:{port}").rstrip("/")
    with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL, ValueError):
        answer = httpx.get(f"{url}/runs/none", timeout=ASK_SECONDS)
        if answer.json().get("code") == "no_run":
            return url
    if named:
        raise StudioError("no_studio", f"No studio answers on {url}.")
    return ""


def local(request: Any) -> Generator[Event]:
    """Make it in this process; closing the generator cancels it."""
    import jobs
    import served
    import takes
    from backend import get_backend

    jobs.sweep()
    takes.sweep_songs()
    with contextlib.closing(get_backend().stream(request)) as events:
        for event in events:
            try:
                yield event
            finally:
                if isinstance(event, Done):
                    served.delete(event.files)  # there is no page that would show them


def remote(url: str, mode: str, values: dict[str, Any]) -> Generator[Event]:
    """Let the studio on `url` make it; closing the generator cancels it there."""
    from gradio_client import Client, handle_file

    key = os.environ.get("ACE_STUDIO_API_KEY", "").split(",")[0].strip()
    headers = {"Authorization": f"Bearer {key}"} if key else None
    folder = tempfile.mkdtemp(prefix="ace-music-studio-make-")
    try:
        client = Client(
            url, verbose=False, headers=headers, analytics_enabled=False, download_files=folder
        )
        sent = {**values}
        for name in FILES:
            if sent.get(name):
                sent[name] = handle_file(sent[name])
        job = client.submit(**sent, api_name=f"/{mode}")
        try:
            yield from _events_of(job, mode)
        finally:
            job.cancel()
            client.close()
    except (ValueError, RuntimeError, OSError) as error:
        raise StudioError("failed", _sentence_of(error)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sentence_of(error: Exception) -> str:
    """Return what an error of gradio_client says, which makes a list of the wrong values."""
    text = str(error).strip() or type(error).__name__
    wrong = [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]
    return "\n".join(wrong) or text


def _events_of(job: Any, mode: str) -> Iterator[Event]:
    for value in _outputs_of(job):
        if mode == "lyrics":
            yield Draft(value, 0)
        elif value[0] is None and "progress" in value[1]:
            yield Progress(**value[1]["progress"])
    result = job.result()
    if mode == "lyrics":
        yield Done((), WordsResult(text=result))
    else:
        files, record = result
        yield Done(tuple(files), record)


def _outputs_of(job: Any) -> Iterator[Any]:
    """Yield what a job says until its end. Iterating over the job itself would never end if an upload is refused."""
    told = 0
    is_done = False
    while not is_done:
        futures.wait([job.future], timeout=ASK_AGAIN_SECONDS)
        is_done = job.done()
        outputs = job.outputs()
        yield from outputs[told:]
        told = len(outputs)


# --- messages and files ---------------------------------------------------------------------


def last_of(events: Iterator[Event], quiet: bool) -> Done:
    """Return the end of a run, telling its progress on a terminal; raises StudioError if it failed."""
    shown = sys.stderr.isatty() and not quiet
    for event in events:
        if isinstance(event, Done):
            if shown:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
            # Not after the generator has ended, which deletes what was fetched.
            return _kept(event)
        if isinstance(event, Failed):
            raise StudioError.from_problem(event.problem)
        if isinstance(event, Progress) and shown:
            line = str(tooltips.progress_sentence(event))
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    raise StudioError.from_problem(Problem("cancelled", "It ended without a result."))


def _kept(done: Done) -> Done:
    """Copy the files to a folder of this process."""
    if not done.files:
        return done
    folder = Path(tempfile.mkdtemp(prefix="ace-music-studio-make-"))
    return Done(tuple(shutil.copy(file, str(folder)) for file in done.files), done.record)


def deliver(done: Done, given: argparse.Namespace) -> None:
    """Write the files and the record where they were asked for, and print their paths, or the lyrics."""
    text = None if is_song(done.record) else done.words.get("text")
    if given.record:
        record = json.dumps(done.record, ensure_ascii=False, indent=1)
        _write(given.record, f"{record}\n")
    if text is not None:
        _write(given.out or "-", f"{text}\n")
        return
    for number, file in enumerate(done.files, 1):
        place = place_of(Path(file), given.out, number, len(done.files))
        part = place.with_name(f".{place.name}.part")
        shutil.move(file, part)
        os.replace(part, place)
        print(place)
    if done.files:
        shutil.rmtree(Path(done.files[0]).parent, ignore_errors=True)


def place_of(file: Path, out: str | None, number: int, count: int) -> Path:
    """Return where a take goes: below `out` if that is a folder, else `out`, numbered if there are several."""
    if not out:
        return Path(file.name)
    place = Path(out)
    if place.is_dir() or out.endswith("/"):
        place.mkdir(parents=True, exist_ok=True)
        return place / file.name
    if not place.suffix:
        place = place.with_suffix(file.suffix)
    place.parent.mkdir(parents=True, exist_ok=True)
    if count == 1:
        return place
    return place.with_stem(f"{place.stem}-{number}")


def _write(path: str, text: str) -> None:
    if path == "-":
        sys.stdout.write(text)
        return
    Path(path).write_text(text, encoding="utf-8")
