"""Runs programs made for ACE-Step, unchanged, against a running studio: python -m tools.clients --skill FOLDER ...

Each argument names a checkout of its repository; those that are not given are left out. Nothing is
fetched, and nothing is written into the checkouts except by the programs themselves. Every song is
measured: how long it is, and how loud its highest sample.

    skill     ace-step/ace-step-skills             bash, curl and jq
    upstream  ace-step/ACE-Step-1.5                its chat client; the package requests
    script    visoar/ace-step-1.5                  generate_music.py
    carey     betweentwomidnights/gary-localhost-installer
    wrangler  tsondo/Ace-Step-Wrangler
    daw       ace-step/ACE-Step-DAW                Node 20, and esbuild (npm install esbuild) in ESBUILD or on PATH
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
import socket
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


def tell(client: str, call: str, answer: dict[str, Any], *names: str) -> None:
    """Print what came back of a call without sound; raises ValueError if one of `names` is missing in it."""
    found = {name: answer.get(name) for name in names}
    print(f"{client}: {call}: {json.dumps(found)[:400]}", flush=True)
    if any(value in (None, "") for value in found.values()):
        raise ValueError(f"{call} lacks something")


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


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


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
        # The planner chooses how long a random song is.
        before = set(folder.rglob("*.mp3"))
        ran("bash", "acestep.sh", "random", folder=scripts, LC_ALL="C.UTF-8")
        made = sorted(set(folder.rglob("*.mp3")) - before)
        if not made:
            raise ValueError("acestep.sh wrote no random song")
        for path in made:
            report("skill", f"random, {mode}", path, soundfile.info(path).duration)


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
        words = {"description": "a slow tango at dusk", "vocal_language": "en"}
        written = client.post("/generate-lyrics", json=words).raise_for_status().json()
        tell("wrangler", "generate-lyrics", written, "caption", "lyrics", "bpm", "duration")
        sound = client.get("/audio", params={"path": written["audio_url"]})
        report("wrangler", "its song", sound.raise_for_status().content, written["duration"])
        analysis = client.post("/analyze-audio", json={"audio_path": path})
        tell("wrangler", "analyze-audio", analysis.raise_for_status().json(), "caption", "bpm")
        lyrics = "[Verse]\nThe lamp goes round\n[Chorus]\nGood night"
        estimate = client.post("/estimate-duration", json={"lyrics": lyrics}).raise_for_status()
        tell("wrangler", "estimate-duration", estimate.json(), "seconds", "method")
        if estimate.json()["method"] != "lm":
            raise ValueError("format_input gave no duration")


DAW = """
import { readFileSync, writeFileSync } from 'node:fs';
const kept = new Map();
globalThis.localStorage = {
  getItem: (name) => kept.get(name) ?? null,
  setItem: (name, value) => kept.set(name, value),
  removeItem: (name) => kept.delete(name),
};
const daw = await import(%(service)s);
const folder = %(folder)s;
daw.setBackendUrl(%(url)s);
const answers = { health: await daw.healthCheck(), models: await daw.listModels() };
answers.category = daw.inferModelCategory(answers.models.models[0]);
answers.lego = daw.modelSupportsTaskType('lego');
answers.init = await daw.initModel({ model: answers.models.default_model, slot: 1 });
const source = new Blob([readFileSync(`${folder}/source.wav`)], { type: 'audio/wav' });
const song = {
  prompt: 'calm piano', caption: 'calm piano', global_caption: 'calm', lyrics: '', instruction: '',
  audio_duration: %(seconds)d, bpm: 120, key_scale: '', time_signature: '', inference_steps: 9,
  guidance_scale: 7, shift: 3, batch_size: 1, audio_format: 'wav', thinking: false, model: '',
};
async function made(name, params, options) {
  const { task_id } = await daw.releaseLegoTask(source, { ...song, ...params }, options);
  for (;;) {
    const [item] = await daw.queryResult([task_id]);
    if (item.status === 2) throw new Error(`${name}: ${item.result}`);
    if (item.status === 1) {
      const [entry] = JSON.parse(item.result);
      const sound = await daw.downloadAudio(entry.file);
      writeFileSync(`${folder}/${name}.wav`, Buffer.from(await sound.arrayBuffer()));
      return entry;
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
}
const first = await made('text2music', { task_type: 'text2music' }, { referenceAudioBlob: source });
await made('cover', { task_type: 'cover', audio_cover_strength: 0.5 });
await made('repaint', { task_type: 'repaint', repainting_start: 3, repainting_end: 6 });
await made('lego', {
  task_type: 'lego', track_name: 'bass', repainting_start: 0, repainting_end: -1,
  chunk_mask_mode: 'auto', instruction: 'Generate the BASS track based on the audio context:',
});
// An earlier take by its path, as the DAW sends it.
const path = new URL(first.file, 'http://x').searchParams.get('path');
await made('again', { task_type: 'lego', track_name: 'drums', src_audio_path: path });
answers.stats = await daw.getStats();
answers.random = await daw.createRandomSample('custom_mode');
answers.sample = await daw.createSample({ query: 'a slow tango at dusk', instrumental: false });
answers.format = await daw.formatInput({ prompt: 'tango', lyrics: '[Verse]\\nLa', duration: 30, bpm: 90 });
writeFileSync(`${folder}/answers.json`, JSON.stringify(answers));
"""


def daw(checkout: Path, url: str, folder: Path) -> None:
    """Call the service of the DAW, which is a program for browsers, from Node."""
    # Small, since Node has nothing that would make a larger one smaller.
    samples, rate = soundfile.read(source_in(folder))
    soundfile.write(folder / "source.wav", samples[::3, 0], rate // 3)
    named = {
        "service": checkout / "src" / "services" / "aceStepApi.ts",
        "folder": folder,
        "url": url,
    }
    values = {name: json.dumps(str(value)) for name, value in named.items()}
    (folder / "run.ts").write_text(DAW % {**values, "seconds": SECONDS})
    bundler = os.environ.get("ESBUILD", "esbuild")
    options = [
        "--bundle",
        "--platform=node",
        "--format=esm",
        "--outfile=run.mjs",
        "--log-level=error",
    ]
    ran(bundler, "run.ts", *options, folder=folder)
    ran("node", "run.mjs", folder=folder)
    for name in ("text2music", "cover", "repaint", "lego", "again"):
        report("daw", name, folder / f"{name}.wav", SECONDS)
    answers = json.loads((folder / "answers.json").read_text())
    tell("daw", "the rest", answers, "health", "category", "lego", "init", "stats", "random")
    tell("daw", "createSample", answers["sample"], "caption", "lyrics", "duration")
    tell("daw", "formatInput", answers["format"], "caption", "duration", "bpm")


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
    named = {"plugin": checkout, "daemon": Path(__file__).with_name("lofi-daemon"), "out": out}
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
    "daw": daw,
    "lofi": lofi,
}

if __name__ == "__main__":
    raise SystemExit(main())
