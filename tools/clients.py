"""Runs programs made for ACE-Step, unchanged, against a running studio: python -m tools.clients --skill FOLDER ...

Each argument names a checkout of its repository; those that are not given are left out. Nothing is
fetched, and nothing is written into the checkouts except by the programs themselves. Every song is
measured: how long it is, and how loud its highest sample.

    skill     ace-step/ace-step-skills             bash, curl and jq
    upstream  ace-step/ACE-Step-1.5                its chat client; the package requests
    script    visoar/ace-step-1.5                  generate_music.py
    carey     betweentwomidnights/gary-localhost-installer
    wrangler  tsondo/Ace-Step-Wrangler
    lofi      willibrandon/lofi.nvim               nvim; it starts tools/lofi-daemon itself
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from tests.program import ROOT, free_port

RATE = 48_000
SECONDS = 12
MOST_SECONDS = 600
QUICK = {"bpm": 120, "inference_steps": 9}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("tools.clients", description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="the running studio")
    for name in CLIENTS:
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help="its checkout")
    given = vars(parser.parse_args(arguments))
    failed = []
    for name, run in CLIENTS.items():
        if given[name] is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                run(given[name].resolve(), given["url"].rstrip("/"), Path(folder))
            except Exception as error:
                print(f"{name}: failed: {type(error).__name__}: {error}", flush=True)
                failed.append(name)
    return 1 if failed else 0


def report(client: str, call: str, sound: bytes | Path, wanted: float) -> None:
    """Print what came back of a call; raises ValueError if it is no song of `wanted` seconds."""
    file = io.BytesIO(sound) if isinstance(sound, bytes) else sound
    samples, rate = soundfile.read(file)
    seconds = len(samples) / rate
    peak = float(np.abs(samples).max())
    print(f"{client}: {call}: {seconds:g} s of {wanted:g}, peak {peak:.2f}", flush=True)
    if abs(seconds - wanted) > 0.1 or peak < 0.01:
        raise ValueError(f"{call} is not a song of {wanted:g} s")


def source_in(folder: Path) -> Path:
    """Write a pulsing chord and return its path."""
    times = np.arange(SECONDS * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * hertz * times) for hertz in (220.0, 277.2, 329.6)) / 10
    pulse = 0.6 + 0.4 * np.sign(np.sin(2 * np.pi * 2 * times))
    path = folder / "source.wav"
    soundfile.write(path, np.stack([chord * pulse] * 2, axis=1), RATE)
    return path


def ran(*command: str | Path, folder: Path, **environ: str) -> str:
    """Run a program and return what it printed; raises CalledProcessError."""
    done = subprocess.run(
        [str(each) for each in command],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=True,
    )
    return done.stdout


@contextlib.contextmanager
def web_app(module: str, folder: Path, **environ: str) -> Iterator[httpx.Client]:
    """Serve a client that is a server itself, and yield a client of that."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", module, "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=folder, env={**os.environ, **environ}, **quiet) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=MOST_SECONDS) as client:
                _until(lambda: _answers(client))
                yield client
        finally:
            process.terminate()


def _answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        client.get("/")
        return True
    return False


def _until(true: Callable[[], Any]) -> Any:
    end = time.monotonic() + MOST_SECONDS
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(0.5)
    raise TimeoutError


# --- each client ----------------------------------------------------------------------------------


def skill(checkout: Path, url: str, folder: Path) -> None:
    # It writes beside its repository.
    ours = shutil.copytree(checkout / "skills" / "acestep", folder / "repo" / "skills" / "acestep")
    scripts = ours / "scripts"
    for mode in ("native", "completion"):
        for setting in (("api_url", url), ("api_mode", mode)):
            ran("bash", "acestep.sh", "config", "--set", *setting, folder=scripts, LC_ALL="C.UTF-8")
        before = set(folder.rglob("*.mp3"))
        command = ["bash", "acestep.sh", "generate", "calm piano", "--duration", "10"]
        ran(*command, folder=scripts, LC_ALL="C.UTF-8")
        made = sorted(set(folder.rglob("*.mp3")) - before)
        if not made:
            raise ValueError("acestep.sh wrote no song")
        for path in made:
            report("skill", f"generate, {mode}", path, 10)


def upstream(checkout: Path, url: str, folder: Path) -> None:
    shutil.copy(checkout / "openrouter" / "client_test.py", folder)
    ran(sys.executable, "client_test.py", "--base-url", url, "--test", "all", folder=folder)
    for path in sorted(folder.rglob("*.mp3")):
        report("upstream", path.stem, path, 30)


def script(checkout: Path, url: str, folder: Path) -> None:
    out = folder / "song.mp3"
    options = ["--caption", "calm piano", "--duration", "10", "--poll-interval", "1"]
    ran(
        sys.executable,
        checkout / "generate_music.py",
        "--api-url",
        url,
        *options,
        "--output",
        out,
        folder=folder,
    )
    report("script", "generate", out, 10)


def carey(checkout: Path, url: str, folder: Path) -> None:
    here = folder / "carey"
    (here / "acestep").mkdir(parents=True)
    (here / "acestep" / "api_server.py").touch()
    for path in (checkout / "services" / "carey").glob("*.*"):
        shutil.copy(path, here)
    data = base64.b64encode(source_in(folder).read_bytes()).decode()
    settings = {"ACESTEP_URL": url, "ACESTEP_MANAGE_MODEL_LIFECYCLE": "false"}
    calls = {
        "lego": ({"track_name": "drums", **QUICK}, SECONDS),
        "extract": ({"track_name": "bass", **QUICK}, SECONDS),
        "complete": ({"audio_duration": SECONDS + 6, "model": "base", **QUICK}, SECONDS + 6),
        "cover": ({"caption": "techno", "bpm": 120}, SECONDS),
    }
    with web_app("carey_wrapper:app", here, **settings) as client:
        for task, (fields, seconds) in calls.items():
            body = {"audio_data": data, **fields}
            started = client.post(f"/{task}", json=body).raise_for_status().json()
            number = started.get("task_id") or started.get("session_id")

            def sound(path: str = f"/{task}/status/{number}") -> str:
                facts = client.get(path).json()
                if facts.get("status") == "failed":
                    raise ValueError(facts.get("error"))
                return facts.get("audio_data") or ""

            report("carey", task, base64.b64decode(_until(sound)), seconds)


def wrangler(checkout: Path, url: str, folder: Path) -> None:
    for name in ("torch", "torchaudio", "uroman"):
        (folder / f"{name}.py").touch()
    here = folder / "wrangler"
    for name in ("backend", "frontend"):
        shutil.copytree(checkout / name, here / name)
    settings = {"ACESTEP_PORT": url.rpartition(":")[2], "PYTHONPATH": str(folder)}
    with web_app("main:app", here / "backend", **settings) as client:
        with source_in(folder).open("rb") as file:
            files = {"file": ("source.wav", file, "audio/wav")}
            path = client.post("/upload-audio", files=files).raise_for_status().json()["path"]
        song = {"style": "calm piano", "audio_format": "wav"}
        rework = {**song, "src_audio_path": path, "inference_steps_raw": 9}
        region = {"repainting_start": 3, "repainting_end": 6}
        for fields in (
            {**song, "duration": SECONDS},
            {**rework, "task_type": "cover", "audio_cover_strength": 0.5},
            {**rework, "task_type": "repaint", **region},
        ):
            started = client.post("/generate", json=fields).raise_for_status().json()

            def ended(task: str = started["task_id"]) -> Any:
                facts = client.get(f"/status/{task}").json()
                return facts if facts["status"] != "processing" else None

            audio_url = _until(ended)["results"][0]["audio_url"]
            sound = client.get("/audio", params={"path": audio_url}).raise_for_status().content
            report("wrangler", fields.get("task_type", "generate"), sound, SECONDS)


LUA = """
vim.opt.rtp:prepend(%(plugin)s)
local lofi = require('lofi')
lofi.setup({daemon_path = %(daemon)s, backend = 'ace_step'})
local answer
lofi.generate({prompt = 'calm piano', duration_sec = 12, backend = 'ace_step'}, function(problem, song)
  answer = vim.json.encode({problem = problem, song = song})
end)
vim.wait(600000, function() return answer end, 50)
lofi.stop()
vim.fn.writefile({answer or '{}'}, %(out)s)
vim.cmd('qa!')
"""


def lofi(checkout: Path, url: str, folder: Path) -> None:
    """Start the daemon from the editor; `lofi.cancel()` is never called: it kills programs by their names."""
    out = folder / "answer.json"
    named = {"plugin": checkout, "daemon": ROOT / "tools" / "lofi-daemon", "out": out}
    script = folder / "run.lua"
    script.write_text(LUA % {name: json.dumps(str(path)) for name, path in named.items()})
    ran("nvim", "--headless", "--clean", "-c", f"luafile {script}", folder=folder)
    answer = json.loads(out.read_text())
    if "song" not in answer:
        raise ValueError(answer)
    report("lofi", "generate", Path(answer["song"]["path"]), 12)


CLIENTS: dict[str, Callable[[Path, str, Path], None]] = {
    "skill": skill,
    "upstream": upstream,
    "script": script,
    "carey": carey,
    "wrangler": wrangler,
    "lofi": lofi,
}

if __name__ == "__main__":
    raise SystemExit(main())
