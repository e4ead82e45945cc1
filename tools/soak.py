"""Make many songs and visits on a studio of its own and tell what it holds on to: python -m tools.soak --help

A table has a line at each tenth: songs, visits and runs so far, resident memory, threads, open files, folders of jobs,
files of the journal. The last line is the growth since the half: nothing may grow with the number of visits or runs.
A run of --runs is left in one of several ways, drawn from a fixed seed: listened to, hung up on in its stream or before
it, started on its own and never asked for, or cancelled by its id.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
SONG = {
    "prompt": "calm piano",
    "duration": 10,
    "instrumental": True,
    "options": {"steps": 1, "plan": False},
}
START = "import app; app.SESSIONS = {sessions}; app.main()"


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
        default=150,
        help="sessions that Gradio remembers (the studio's 150)",
    )
    asked = parser.parse_args(arguments)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for line in soak(asked.songs, asked.visits, asked.sessions, Path(folder), asked.runs):
            print("  ".join(f"{name} {value:g}" for name, value in line.items()), flush=True)
            lines.append(line)
    half = lines[len(lines) // 2]
    calls = sum(lines[-1][name] - half[name] for name in ("songs", "visits", "runs"))
    print(
        f"since the half: {(lines[-1]['MB'] - half['MB']) / max(calls, 1):.3f} MB a visit, song or run"
    )
    return lines


def soak(
    songs: int, visits: int, sessions: int, folder: Path, runs: int = 0
) -> Iterator[dict[str, float]]:
    """Yield a line of facts at each tenth of the work, the first before it."""
    environ = {
        "TMPDIR": str(folder),
        "ACE_STUDIO_OUTPUT": str(folder / "songs"),
        "ACE_STUDIO_KEEP_GB": "0.05",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(sessions=sessions)],
        cwd=ROOT,
        env={
            **os.environ,
            "ACE_STUDIO_MODEL": "preview",
            "GRADIO_TEMP_DIR": str(folder / "page"),
            **environ,
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = re.search(r"http://\S+", process.stdout.readline())[0].rstrip("/")
        with httpx.Client(base_url=url, timeout=600) as client:
            loads = _load_events(client)
            _song(client)  # torch and the models come with the first one
            draw = random.Random(7)
            works = (
                (songs, lambda: _song(client)),
                (visits, lambda: _visit(client, loads)),
                (runs, lambda: draw.choice(LEAVING)(client, draw)),
            )
            for tenth in range(11):
                for total, work in works:
                    for _ in range(total * tenth // 10 - total * max(tenth - 1, 0) // 10):
                        work()
                _until_idle(folder)
                done = {
                    "songs": songs * tenth // 10,
                    "visits": visits * tenth // 10,
                    "runs": runs * tenth // 10,
                }
                yield {**done, **_facts(process.pid, folder)}
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


def _start(client: httpx.Client, draw: random.Random, **options: object) -> str:
    """Start a song or lyrics, some of them long; return the event, or "" if there is no room."""
    steps = draw.choice((1, 1, 40))
    song = {**SONG, "options": {**SONG["options"], "steps": steps, **options}}
    answer = client.post("/gradio_api/call/v2/generate", json=song)
    if answer.status_code == 503:
        return ""
    return answer.raise_for_status().json()["event_id"]


def _listened_to(client: httpx.Client, draw: random.Random) -> None:
    if event := _start(client, draw):
        text = client.get(f"/gradio_api/call/v2/generate/{event}").text
        assert "event: complete" in text or "event: error" in text, text[-300:]


def _hung_up_on(client: httpx.Client, draw: random.Random) -> None:
    event = _start(client, draw)
    if not event:
        return
    left_after = draw.randrange(1, 12)
    with client.stream("GET", f"/gradio_api/call/v2/generate/{event}") as stream:
        for number, _ in enumerate(stream.iter_lines()):
            if number >= left_after:
                break


def _detached(client: httpx.Client, draw: random.Random) -> str:
    event = _start(client, draw, detach=True)
    if not event:
        return ""
    found = re.search(
        r'"run": "([0-9a-f]{32})"', client.get(f"/gradio_api/call/v2/generate/{event}").text
    )
    return found[1] if found else ""  # no room for this owner


def _cancelled(client: httpx.Client, draw: random.Random) -> None:
    if run := _detached(client, draw):
        client.post(f"/runs/{run}/cancel").raise_for_status()


def _left_in_its_events(client: httpx.Client, draw: random.Random) -> None:
    run = _detached(client, draw)
    if not run:
        return
    with client.stream("GET", f"/runs/{run}/events") as stream:
        for number, _ in enumerate(stream.iter_lines()):
            if number >= 4:
                break
    client.post(f"/runs/{run}/cancel")


LEAVING: tuple[Callable[[httpx.Client, random.Random], object], ...] = (
    *(_listened_to, _hung_up_on, _hung_up_on),
    *(_detached, _cancelled, _left_in_its_events),
)


def _until_idle(folder: Path, seconds: float = 600) -> None:
    """Wait until no job is left: a run that nobody listens to is finished all the same."""
    end = time.monotonic() + seconds
    while _jobs(folder):
        assert time.monotonic() < end, "runs are still going on"
        time.sleep(0.2)


def _jobs(folder: Path) -> list[Path]:
    return [path for path in folder.glob("ace-music-studio-jobs-*/*/*") if path.is_dir()]


def _facts(pid: int, folder: Path) -> dict[str, float]:
    process = psutil.Process(pid)
    return {
        "MB": round(process.memory_info().rss / 1e6, 1),
        "threads": process.num_threads(),
        "files": process.num_fds(),
        "jobs": len(_jobs(folder)),
        "journal": len([*(folder / "songs" / ".runs").glob("*")]),
    }


if __name__ == "__main__":
    main()
