"""Make many songs and visits on a studio of its own and tell what it holds on to: python -m tools.soak --help

A table has a line at each tenth: songs and visits so far, resident memory, threads, open files, folders of jobs. The
last line is the growth since the half: nothing may grow with the number of visits.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
SONG = {"prompt": "calm piano", "duration": 10, "instrumental": True, "options": {"steps": 1, "plan": False}}
START = "import app; app.SESSIONS = {sessions}; app.main()"


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Run the soak that the arguments ask for; print and return its lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--songs", type=int, default=500)
    parser.add_argument("--visits", type=int, default=2000)
    parser.add_argument("--sessions", type=int, default=150, help="sessions that Gradio remembers (the studio's 150)")
    asked = parser.parse_args(arguments)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for line in soak(asked.songs, asked.visits, asked.sessions, Path(folder)):
            print("  ".join(f"{name} {value:g}" for name, value in line.items()), flush=True)
            lines.append(line)
    half = lines[len(lines) // 2]
    calls = sum(lines[-1][name] - half[name] for name in ("songs", "visits"))
    print(f"since the half: {(lines[-1]['MB'] - half['MB']) / max(calls, 1):.3f} MB a visit or song")
    return lines


def soak(songs: int, visits: int, sessions: int, folder: Path) -> Iterator[dict[str, float]]:
    """Yield a line of facts at each tenth of the work, the first before it."""
    environ = {"TMPDIR": str(folder), "ACE_STUDIO_OUTPUT": str(folder / "songs"), "ACE_STUDIO_KEEP_GB": "0.05"}
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(sessions=sessions)],
        cwd=ROOT,
        env={**os.environ, "ACE_STUDIO_MODEL": "preview", "GRADIO_TEMP_DIR": str(folder / "page"), **environ},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = re.search(r"http://\S+", process.stdout.readline())[0].rstrip("/")
        with httpx.Client(base_url=url, timeout=600) as client:
            loads = _load_events(client)
            _song(client)  # torch and the models come with the first one
            for tenth in range(11):
                for done, total, work in ((tenth, songs, _song), (tenth, visits, lambda c: _visit(c, loads))):
                    for _ in range(total * done // 10 - total * max(done - 1, 0) // 10):
                        work(client)
                yield {"songs": songs * tenth // 10, "visits": visits * tenth // 10, **_facts(process.pid, folder)}
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
    event = client.post("/gradio_api/call/v2/generate", json=SONG).raise_for_status().json()["event_id"]
    text = client.get(f"/gradio_api/call/v2/generate/{event}").text
    assert "event: complete" in text, text[-300:]


def _facts(pid: int, folder: Path) -> dict[str, float]:
    process = psutil.Process(pid)
    jobs = [path for path in folder.glob("ace-music-studio-jobs-*/*/*") if path.is_dir()]
    return {
        "MB": round(process.memory_info().rss / 1e6, 1),
        "threads": process.num_threads(),
        "files": process.num_fds(),
        "jobs": len(jobs),
    }


if __name__ == "__main__":
    main()
