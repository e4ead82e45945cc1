"""JSON-RPC 2.0 over standard input and output: songs for an editor plug-in (lofi.nvim), without a web
server.

One object a line in both directions. The answer to `generate` is written before anything else is
said of its track, and every line in one write, short enough for a pipe: the plug-in depends on
both. Logs go to standard error. The end of the input, or SIGTERM, ends the process within 5 seconds,
whatever it is doing: nobody who is waited for has longer than the seconds below.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import audio_export
import jobs
import served
import takes
from backend import Backend, get_backend
from events import Done, Failed, Problem, Progress, share_done
from limits import LIMITS, MAX_SEED, SAMPLE_RATE, STUDIO_VERSION
from params import parse_request
from record import SongRecord

log = logging.getLogger("studio")

BACKEND = "ace_step"
MOST_WAITING = 10
MOST_LINE = 3_500  # bytes: a line must fit into a pipe's 4 KiB
MOST_INPUT = 1_000_000
MOST_PROMPT = 1_000
SECONDS = (5, 240)  # the plug-in's; ours begin at 10
STEPS = (1, 200)
GUIDANCE = (1, 30)
SAMPLERS = {"euler": "ode", "heun": "ode", "pingpong": "sde"}
IDLE_SECONDS = 300.0  # after which the models leave the memory
# From the end of the input, or SIGTERM, to the end of the process: less than 5 seconds in all.
ANSWER_SECONDS = 1.5  # for what was asked before the input ended
STOP_SECONDS = 2.5  # for the song to end
LAST_SECONDS = 0.5  # for everything else
PERCENT = 5  # between two notifications of progress

PARSE = -32700
INVALID_REQUEST = -32600
NO_METHOD = -32601
INVALID_PARAMS = -32602
CODES = {
    "MODEL_NOT_FOUND": -32000,
    "MODEL_LOAD_FAILED": -32001,
    "MODEL_DOWNLOAD_FAILED": -32002,
    "MODEL_INFERENCE_FAILED": -32003,
    "QUEUE_FULL": -32004,
    "INVALID_DURATION": -32005,
    "INVALID_PROMPT": -32006,
    "INVALID_BACKEND": -32007,
    "BACKEND_NOT_INSTALLED": -32008,
    "INVALID_INFERENCE_STEPS": -32009,
    "INVALID_GUIDANCE_SCALE": -32010,
    "INVALID_SCHEDULER": -32011,
}
# What a problem of ours is called there.
NAMES = {"no_weights": "MODEL_NOT_FOUND", "weights_missing": "MODEL_NOT_FOUND"}
CANCELLED = "GENERATION_CANCELLED"


class Refused(Exception):
    """An error in JSON-RPC's form."""

    def __init__(self, code: int, message: str, name: str = "", details: str = ""):
        super().__init__(message)
        self.error: dict[str, Any] = {"code": code, "message": message}
        if name:
            self.error["data"] = {"error_code": name, "details": details or message}


def refused(name: str, message: str) -> Refused:
    return Refused(CODES[name], message, name)


@dataclass
class Track:
    """One song that was asked for."""

    prompt: str
    seconds: float
    seed: int
    urgent: bool
    options: dict[str, Any]
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    cancelled: bool = False
    ended: bool = False  # its last notification has been written
    percent: int = -1
    steps: tuple[int, int] = (0, 0)

    def request(self) -> Any:
        return parse_request(
            "generate",
            {
                "prompt": self.prompt,
                "instrumental": True,
                "duration": self.seconds,
                "seed": self.seed,
                "options": self.options,
            },
        )


class Daemon:
    """Answers lines, and writes lines with `write`. Reading, answering and making songs each have a thread.

    `ended` is set once there is nothing more to do: after the end of the input, or `shutdown`.
    """

    def __init__(self, studio: Backend, write: Callable[[bytes], None]):
        self._studio = studio
        self._write = write
        self._waiting: deque[Track] = deque()
        self._going: Track | None = None
        self._news = threading.Condition()
        self._stopping = False
        self.ended = threading.Event()
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # an empty one is the last
        self._later: list[Callable[[], None]] = []  # once the present request has been answered
        self._methods: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "generate": self.generate,
            "cancel": self.cancel,
            "get_backends": self.get_backends,
            "download_backend": self.download_backend,
            "ping": lambda params: {"status": "ok", "version": STUDIO_VERSION},
            "shutdown": self.shutdown,
        }

    def start(self, source: IO[bytes]) -> None:
        """Begin to answer the lines of `source`."""
        for work in (partial(self._read, source), self._answer_all, self._work):
            threading.Thread(target=work, daemon=True).start()

    def _read(self, source: IO[bytes]) -> None:
        """Read until the input ends; what was asked before is still answered, if that does not take long."""
        while line := source.readline(MOST_INPUT):
            self._lines.put(line)
        self._lines.put(b"")
        self.ended.wait(ANSWER_SECONDS)
        self.ended.set()

    def _answer_all(self) -> None:
        while not self._stopping:
            line = self._lines.get()
            if not line:
                break
            if line.strip():
                self.answer(line)
        self.ended.set()

    def stop(self) -> None:
        """Cancel what is running, and start nothing new."""
        with self._news:
            self._stopping = True
            self._waiting.clear()
            if self._going:
                self._going.cancelled = True
            self._news.notify_all()

    # --- requests ---------------------------------------------------------------------------------

    def answer(self, line: bytes) -> None:
        """Answer one line, unless it is a notification."""
        number: Any = None
        try:
            message = _parsed(line)
            number = message.get("id")
            result = self._called(message)
        except Refused as error:
            self._say({"jsonrpc": "2.0", "id": number, "error": error.error})
            return
        except Exception:
            log.exception("a request failed")
            error_facts = {"code": -32603, "message": "Internal error"}
            self._say({"jsonrpc": "2.0", "id": number, "error": error_facts})
            return
        if "id" in message:
            self._say({"jsonrpc": "2.0", "id": number, "result": result})
        # Only now: nothing of a track may be said before its answer.
        later = self._later
        self._later = []
        for each in later:
            each()

    def _called(self, message: Mapping[str, Any]) -> Any:
        params = message.get("params") or {}
        if not isinstance(params, dict):  # Lua sends empty ones as a list
            raise Refused(INVALID_PARAMS, "params must be an object.")
        method = self._methods.get(str(message["method"]))
        if method is None:
            raise Refused(NO_METHOD, f"There is no method {str(message['method'])[:40]}.")
        return method(params)

    def generate(self, params: Mapping[str, Any]) -> dict[str, Any]:
        track = track_of(params)
        with self._news:
            if len(self._waiting) >= MOST_WAITING:
                raise refused("QUEUE_FULL", f"{MOST_WAITING} songs are waiting already.")
            place = len(self._waiting)
            if track.urgent:
                place = sum(each.urgent for each in self._waiting)
            starts = self._going is None and not self._waiting
        self._later.append(partial(self._queue, track, place))
        return {
            "track_id": track.id,
            "status": "generating" if starts else "queued",
            "position": 0 if starts else place + 1,
            "seed": track.seed,
            "backend": BACKEND,
        }

    def _queue(self, track: Track, place: int) -> None:
        with self._news:
            self._waiting.insert(min(place, len(self._waiting)), track)
            self._news.notify_all()

    def cancel(self, params: Mapping[str, Any]) -> dict[str, Any]:
        wanted = params.get("track_id")
        with self._news:
            if self._going and self._going.id == wanted and not self._going.ended:
                self._going.cancelled = True
                return {"cancelled": True, "was_generating": True}
            found = [track for track in self._waiting if track.id == wanted]
            for track in found:
                self._waiting.remove(track)
                self._later.append(partial(self._fail, track, CANCELLED, "The song was cancelled."))
        return {"cancelled": bool(found), "was_generating": False}

    def get_backends(self, params: Mapping[str, Any]) -> dict[str, Any]:
        status = self._studio.status()
        backend = {
            "type": BACKEND,
            "name": "ACE-Step",
            "status": "error" if status.source == "none" else "ready",
            "min_duration_sec": LIMITS["duration"].low,
            "max_duration_sec": SECONDS[1],
            "sample_rate": SAMPLE_RATE,
            "model_version": status.model,
        }
        return {"backends": [backend], "default_backend": BACKEND}

    def download_backend(self, params: Mapping[str, Any]) -> dict[str, Any]:
        if params.get("backend", BACKEND) != BACKEND:
            raise refused("INVALID_BACKEND", f"The only backend is {BACKEND}.")
        return {"backend": BACKEND, "status": "already_installed", "files_downloaded": 0}

    def shutdown(self, params: Mapping[str, Any]) -> dict[str, Any]:
        self._stopping = True
        return {"status": "shutting_down"}

    # --- songs ------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            track = self._next()
            if track is None:
                return
            try:
                self._make(track)
            except Exception:
                log.exception("a song failed")
                self._fail(track, "MODEL_INFERENCE_FAILED", "The song failed unexpectedly.")
            with self._news:
                self._going = None

    def _next(self) -> Track | None:
        """Return the next track, None at the end; models that nobody needs leave the memory meanwhile."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._stopping, IDLE_SECONDS)
                if self._stopping:
                    return None
                if self._waiting:
                    self._going = self._waiting.popleft()
                    return self._going
            self._forget()

    def _forget(self) -> None:
        models = self._studio.models
        if models.loaded:
            models.unload_pipeline()

    def _make(self, track: Track) -> None:
        began = time.monotonic()
        with contextlib.closing(self._studio.stream(track.request())) as events:
            for event in events:
                if track.cancelled:
                    self._fail(track, CANCELLED, "The song was cancelled.")
                    return
                match event:
                    case Progress():
                        self._progress(track, event)
                    case Done():
                        served.delete(event.files)  # there is no page that would show them
                        self._complete(track, event.song, time.monotonic() - began)
                    case Failed(problem):
                        self._fail(track, name_of(problem), problem.text())

    def _progress(self, track: Track, event: Progress) -> None:
        if event.stage == "steps":
            track.steps = (event.step, event.steps)
        percent = int(share_done(event) * 100) // PERCENT * PERCENT
        if percent <= track.percent:
            return
        track.percent = min(percent, 95)
        facts = {"percent": track.percent, "eta_sec": round(event.left or 0.0, 1)}
        step, steps = track.steps
        self._tell(
            "generation_progress",
            {"track_id": track.id, **facts, "current_step": step, "total_steps": steps},
        )

    def _complete(self, track: Track, record: SongRecord, seconds: float) -> None:
        track.ended = True
        take = record["takes"][0]
        self._tell(
            "generation_complete",
            {
                "track_id": track.id,
                "path": str(takes.songs_folder() / take["name"]),
                "duration_sec": take["duration"],
                "sample_rate": SAMPLE_RATE,
                "prompt": track.prompt,
                "seed": track.seed,
                "generation_time_sec": round(seconds, 2),
                "model_version": record["model"]["id"],
                "backend": BACKEND,
            },
        )

    def _fail(self, track: Track, code: str, message: str) -> None:
        track.ended = True
        self._tell(
            "generation_error", {"track_id": track.id, "code": code, "message": message[:1_000]}
        )

    # --- lines ------------------------------------------------------------------------------------

    def _tell(self, method: str, params: dict[str, Any]) -> None:
        self._say({"jsonrpc": "2.0", "method": method, "params": params})

    def _say(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, ensure_ascii=False).encode()
        params = message.get("params", {})
        while len(line) > MOST_LINE and params.get("prompt"):
            params["prompt"] = params["prompt"][: len(params["prompt"]) // 2]
            line = json.dumps(message, ensure_ascii=False).encode()
        self._write(line + b"\n")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise Refused(PARSE, "Parse error") from None
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        raise Refused(INVALID_REQUEST, "Invalid Request")
    return message


def track_of(params: Mapping[str, Any]) -> Track:
    """Return the track that `generate` asks for; raises Refused."""
    prompt = params.get("prompt")
    if not isinstance(prompt, str) or not 1 <= len(prompt.strip()) <= MOST_PROMPT:
        message = f"prompt must have from 1 to {MOST_PROMPT:,} characters."
        raise refused("INVALID_PROMPT", message)
    backend = params.get("backend", BACKEND)
    if backend == "musicgen":
        raise refused("BACKEND_NOT_INSTALLED", f"The only backend here is {BACKEND}.")
    if backend != BACKEND:
        raise refused("INVALID_BACKEND", f"backend must be {BACKEND}.")
    seconds = _within(params, "duration_sec", SECONDS, 30, "INVALID_DURATION")
    options: dict[str, Any] = {"format": "wav"}
    if params.get("inference_steps") is not None:
        steps = _within(params, "inference_steps", STEPS, 60, "INVALID_INFERENCE_STEPS")
        options["steps"] = int(steps)
    if params.get("guidance_scale") is not None:
        guidance = _within(params, "guidance_scale", GUIDANCE, 15, "INVALID_GUIDANCE_SCALE")
        options["guidance"] = min(guidance, LIMITS["guidance"].high)
    scheduler = params.get("scheduler", "euler")
    if scheduler not in SAMPLERS:
        message = f"scheduler must be one of {', '.join(SAMPLERS)}."
        raise refused("INVALID_SCHEDULER", message)
    options["sampler"] = SAMPLERS[scheduler]
    return Track(
        prompt.strip(),
        max(seconds, LIMITS["duration"].low),
        _seed(params.get("seed")),
        params.get("priority") == "high",
        options,
    )


def _within(
    params: Mapping[str, Any], name: str, limits: tuple[int, int], default: float, code: str
) -> float:
    """Return a number within `limits`; raises Refused."""
    value = params.get(name)
    if value is None:
        return default
    low, high = limits
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise refused(code, f"{name} must be from {low} to {high}.")
    return float(value)


def _seed(value: Any) -> int:
    """Return a seed below 2^32: the one that was sent, which Lua may write as a float, or a new one."""
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not is_whole or isinstance(value, bool) or value < 0:
        return secrets.randbelow(MAX_SEED + 1)
    return int(value) % (MAX_SEED + 1)


def name_of(problem: Problem) -> str:
    return NAMES.get(problem.code, "MODEL_INFERENCE_FAILED")


# --- the process ----------------------------------------------------------------------------------


@contextlib.contextmanager
def own_output() -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes lines to standard output, where nothing else is written any more."""
    ours = os.dup(1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def write(line: bytes) -> None:
        with lock, contextlib.suppress(OSError):  # the reader is gone
            os.write(ours, line)

    yield write


def main() -> None:
    """Serve until the end of the input; ends the process with status 0."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    with own_output() as write:
        jobs.sweep()
        takes.sweep_songs()
        daemon = Daemon(get_backend(), write)
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: daemon.ended.set())
        daemon.start(sys.stdin.buffer)
        # Python may miss a signal that arrives just before a wait without an end.
        while not daemon.ended.wait(0.5):
            pass
        end(daemon)


def end(daemon: Daemon) -> None:
    """Cancel what is running, wait until it has tidied up, and end the process."""
    # Whoever reads standard error may have stopped, and then its last lines are never written.
    timer = threading.Timer(STOP_SECONDS + LAST_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()
    daemon.stop()
    jobs.stop(STOP_SECONDS)
    audio_export.stop()
    served.delete_own()
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(0)  # a thread inside torch would abort a normal exit
