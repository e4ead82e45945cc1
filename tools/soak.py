"""Make many songs, visits and runs on a studio of its own and tell what it holds on to: python -m tools.soak --help

A table has a line at each tenth. MB: resident memory. used: what malloc has given out and not got back, in MB; if only
MB grows, glibc keeps holes. objects: Python's, in thousands. sessions, ended: what Gradio and the studio remember, each
up to its limit. threads, files: open ones. jobs, journal, songs, page: what lies in the folders. other: what lies
beside them in the folder for temporary files. The last line is the growth since the half, when all that has a limit has
reached it: nothing may grow with the number of visits or runs.

A run of --runs is left in one of several ways, drawn from a fixed seed: listened to, hung up on in its stream or before
it, started on its own and never asked for, or cancelled by its id. One that is refused for lack of room does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
from gradio.state_holder import StateHolder

ROOT = Path(__file__).resolve().parents[1]
SONG = {
    "prompt": "calm piano",
    "duration": 10,
    "instrumental": True,
    "options": {"steps": 1, "plan": False},
}
START = "import sys; from tools import soak; soak.serve(int(sys.argv[1]), sys.argv[2])"
INSIDE = "inside.json"
# Uploads and copies of takes are deleted after so many seconds here, looked at as often: a day is too long for a soak.
PAGE_SECONDS = 30
MOST_TYPES = 12  # of objects that have grown most since the half
ROW = "{:>6} {:>7} {:>6} {:>7} {:>8} {:>8} {:>5} {:>7} {:>5} {:>4} {:>7} {:>5} {:>4} {:>5}"
NAMES = (
    "done",
    "seconds",
    "MB",
    "used",
    "objects",
    "sessions",
    "ended",
    "threads",
    "files",
    "jobs",
    "journal",
    "songs",
    "page",
    "other",
)


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Run the soak that the arguments ask for; print and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--songs", type=int, default=500)
    parser.add_argument("--visits", type=int, default=2000)
    parser.add_argument(
        "--runs", type=int, default=0, help="songs and lyrics whose callers hang up at random"
    )
    parser.add_argument(
        "--sessions",
        type=int,
        default=500,
        help="open pages that Gradio remembers (the studio's 500)",
    )
    parser.add_argument(
        "--random",
        action="store_true",
        help="on the tests' random models, which take a fraction of the time",
    )
    asked = parser.parse_args(arguments)
    lines = []
    print(ROW.format(*NAMES), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        works = {"songs": asked.songs, "visits": asked.visits, "runs": asked.runs}
        for line in soak(works, asked.sessions, Path(folder), asked.random):
            print(ROW.format(*(line[name] for name in NAMES)), flush=True)
            lines.append(line)
    half = lines[len(lines) // 2]
    last = lines[-1]
    done = max(last["done"] - half["done"], 1)
    print(
        f"since the half: {1000 * (last['MB'] - half['MB']) / done:.1f} kB resident, "
        f"{1000 * (last['used'] - half['used']) / done:.1f} kB used, "
        f"{1000 * (last['objects'] - half['objects']) / done:.1f} objects each"
    )
    for name, more in (Counter(last["types"]) - Counter(half["types"])).most_common(MOST_TYPES):
        print(f"  {more:+} {name}")
    return lines


# --- inside the studio ------------------------------------------------------------------------------------------------


def serve(sessions: int, folder: str) -> None:
    """Serve a studio that writes what it holds into `folder` whenever it gets SIGUSR1."""
    import app
    import served

    app.SESSIONS = sessions
    served.AGE_SECONDS = PAGE_SECONDS
    served.SWEEP_SECONDS = PAGE_SECONDS

    def tell(*_: object) -> None:
        new = Path(folder, f"{INSIDE}.new")
        new.write_text(json.dumps(_held()))
        new.replace(Path(folder, INSIDE))

    signal.signal(signal.SIGUSR1, tell)
    app.main()


def _held() -> dict[str, Any]:
    import backend
    import runs

    gc.collect()
    found = gc.get_objects()
    types = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in found)
    holders = [each for each in found if issubclass(type(each), StateHolder)]
    return {
        "used": round(_in_use() / 1e6, 1),
        "objects": round(len(found) / 1000, 1),
        "sessions": sum(len(each.session_data) for each in holders),
        "ended": runs.runs_of(backend.get_backend()).counts()["ended"],
        "types": dict(types.most_common(400)),
    }


class _MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _in_use() -> int:
    """Return the bytes that malloc has given out, 0 where it cannot tell. Python's small objects are not among them."""
    with contextlib.suppress(AttributeError, OSError):
        ask = ctypes.CDLL(None).mallinfo2
        ask.restype = _MallInfo
        found = ask()
        return found.uordblks + found.hblkhd
    return 0


# --- outside ----------------------------------------------------------------------------------------------------------


def soak(
    works: dict[str, int], sessions: int, folder: Path, on_random: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield a line of facts at each tenth of the work, the first before it."""
    environ = {
        **os.environ,
        "TMPDIR": str(folder),
        "ACE_STUDIO_OUTPUT": str(folder / "songs"),
        "ACE_STUDIO_KEEP_GB": "0.05",
        "GRADIO_TEMP_DIR": str(folder / "page"),
        "ACE_STUDIO_MODEL": "preview",
    }
    if on_random:
        from tools.random_models import make_checkpoint

        environ["ACE_STUDIO_MODEL"] = str(make_checkpoint(folder / "random"))
        environ |= {"ACE_STUDIO_PLANNER": "random", "ACE_STUDIO_LYRICS": "random"}
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(sessions), str(folder)],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    began = time.monotonic()
    try:
        url = re.search(r"http://\S+", process.stdout.readline())[0].rstrip("/")
        with httpx.Client(base_url=url, timeout=600) as client:
            loads = _load_events(client)
            _song(client)  # torch and the models come with the first one
            draw = random.Random(7)
            actions: dict[str, Callable[[], object]] = {
                "songs": lambda: _song(client),
                "visits": lambda: _visit(client, loads),
                "runs": lambda: _run(client, draw),
            }
            for tenth in range(11):
                for name, total in works.items():
                    for _ in range(total * tenth // 10 - total * max(tenth - 1, 0) // 10):
                        actions[name]()
                _until_idle(folder)
                yield {
                    "done": sum(total * tenth // 10 for total in works.values()),
                    "seconds": round(time.monotonic() - began),
                    **_facts(process, folder),
                }
    finally:
        process.terminate()
        process.wait(20)


def _load_events(client: httpx.Client) -> list[dict]:
    """Return the events that the page sends when it is opened."""
    every = client.get("/config").json()["dependencies"]
    return [each for each in every if any(trigger == "load" for _, trigger in each["targets"])]


def _visit(client: httpx.Client, loads: list[dict]) -> None:
    """Open the page as a browser does."""
    session = uuid.uuid4().hex
    client.get("/").raise_for_status()
    for each in loads:
        if not each["inputs"] and not each["queue"]:
            body = {"data": [], "fn_index": each["id"], "session_hash": session}
            client.post("/gradio_api/run/predict", json=body).raise_for_status()


def _song(client: httpx.Client) -> None:
    """Make a song through the API."""
    event = (
        client.post("/gradio_api/call/v2/generate", json=SONG).raise_for_status().json()["event_id"]
    )
    text = client.get(f"/gradio_api/call/v2/generate/{event}").text
    assert "event: complete" in text, text[-300:]


# --- runs that are left ---------------------------------------------------------------------------------------------


class _NoRoomError(Exception):
    """The queue is full, or this caller's share of it."""


def _run(client: httpx.Client, draw: random.Random) -> None:
    """Make a run and leave it in one of several ways; wait while the queue has no room."""
    leave = draw.choice(LEAVING)
    while True:
        with contextlib.suppress(_NoRoomError):
            leave(client, draw)
            return
        time.sleep(0.2)


def _start(client: httpx.Client, draw: random.Random, **options: object) -> str:
    """Start a song, long or short, or lyrics; return the address of its events."""
    song = {**SONG, "options": {**SONG["options"], "steps": draw.choice((1, 1, 12)), **options}}
    words = {"brief": "rain in May", "options": {"max_tokens": 16, **options}}
    name, asked = draw.choice((("generate", song), ("generate", song), ("lyrics", words)))
    answer = client.post(f"/gradio_api/call/v2/{name}", json=asked)
    if answer.status_code == 503:
        raise _NoRoomError
    event = answer.raise_for_status().json()["event_id"]
    return f"/gradio_api/call/v2/{name}/{event}"


def _listened_to(client: httpx.Client, draw: random.Random) -> None:
    text = client.get(_start(client, draw)).text
    _check_room(text)
    assert "event: complete" in text, text[-300:]


def _hung_up_on(client: httpx.Client, draw: random.Random) -> None:
    _hear(client, _start(client, draw), draw.randrange(1, 12))


def _hear(client: httpx.Client, address: str, lines: int) -> None:
    """Listen to a stream for so many lines, then hang up."""
    with client.stream("GET", address) as stream:
        for number, line in enumerate(stream.iter_lines(), 1):
            _check_room(line)
            if number >= lines:
                break


def _check_room(text: str) -> None:
    if "waiting already" in text:
        raise _NoRoomError


def _detached(client: httpx.Client, draw: random.Random) -> str:
    """Return the id of a run that continues by itself."""
    text = client.get(_start(client, draw, detach=True)).text
    _check_room(text)
    found = re.search(r"[0-9a-f]{32}", text.partition("event: complete")[2])
    assert found, text[-300:]
    return found[0]


def _cancelled(client: httpx.Client, draw: random.Random) -> None:
    run = _detached(client, draw)
    client.post(f"/runs/{run}/cancel").raise_for_status()


def _left_in_its_events(client: httpx.Client, draw: random.Random) -> None:
    run = _detached(client, draw)
    _hear(client, f"/runs/{run}/events", 4)
    client.post(f"/runs/{run}/cancel").raise_for_status()


LEAVING: tuple[Callable[[httpx.Client, random.Random], object], ...] = (
    _listened_to,
    _hung_up_on,
    _hung_up_on,
    _detached,
    _cancelled,
    _left_in_its_events,
)


def _until(true: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the studio does not come to rest"
        time.sleep(0.2)


def _until_idle(folder: Path) -> None:
    """Wait until no job is left: a run that nobody listens to is finished all the same."""
    _until(lambda: not _jobs(folder))


def _jobs(folder: Path) -> list[Path]:
    return [path for path in folder.glob("ace-music-studio-jobs-*/*/*") if path.is_dir()]


def _facts(process: subprocess.Popen, folder: Path) -> dict[str, Any]:
    inside = folder / INSIDE
    inside.unlink(missing_ok=True)
    process.send_signal(signal.SIGUSR1)
    _until(inside.exists)
    outside = psutil.Process(process.pid)
    return {
        "MB": round(outside.memory_info().rss / 1e6, 1),
        "threads": outside.num_threads(),
        "files": outside.num_fds(),
        "jobs": len(_jobs(folder)),
        "journal": len([*(folder / "songs" / ".runs").glob("*")]),
        "songs": len([*(folder / "songs").glob("*.wav")]),
        "page": len([path for path in (folder / "page").rglob("*") if path.is_file()]),
        "other": len([*folder.iterdir()]),
        **json.loads(inside.read_text()),
    }


if __name__ == "__main__":
    main()
