"""A grid of songs from a running studio, measured and written as a table: python -m tools.matrix [--help]

Every tempo and key of the grid is one song from words, and each further task works on that song. A row tells how long
the call took, the studio's largest memory meanwhile (where it runs on this machine), the tempo and key that librosa
hears in the result, and how audible the borders are where new audio meets old. Needs requirements-dev.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import soundfile
from gradio_client import Client, handle_file

from limits import parse_key
from training.listening import rank_keys, tempo_error

URL = "http://127.0.0.1:7860"
TEMPOS = (90, 120, 140)
KEYS = ("C major", "A minor")
PROMPT = "tight drums, electric bass, bright piano chords"
NEW_PROMPT = "brass section, congas, live room"
OVERLAP = 1.0
EDGE_SECONDS = 0.05
# How often the studio's memory is looked at.
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Task:
    """A call: its endpoint, what it takes besides words, and where, in seconds of the result, new audio meets old."""

    endpoint: str
    values: Mapping[str, Any]
    borders: tuple[float, ...] = ()


def tasks_for(seconds: float) -> dict[str, Task]:
    """Return every task for a source of `seconds`; the repaint is of its middle third."""
    start = round(seconds / 3, 3)
    end = round(2 * seconds / 3, 3)
    repaint = {"prompt": NEW_PROMPT, "start": start, "end": end}
    extend = {"after": seconds / 2, "options": {"overlap": OVERLAP}}
    return {
        "generate": Task("/generate", {"duration": seconds}),
        "cover": Task("/cover", {"prompt": NEW_PROMPT}),
        "extend": Task("/extend", extend, (seconds - OVERLAP, seconds)),
        "repaint": Task("/edit", repaint, (start, end)),
        "morph": Task("/edit", {"action": "morph", "prompt": NEW_PROMPT, "source_prompt": PROMPT}),
        "layer": Task(
            "/edit", {"action": "layer", "prompt": "hand percussion", "tracks": ["percussion"]}
        ),
        "extract": Task("/edit", {"action": "extract", "tracks": ["drums"]}),
        "complete": Task("/edit", {"action": "complete", "tracks": ["strings", "brass"]}),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the grid, print its table, return 1 where a call failed."""
    given = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        client = Client(given.url, verbose=False, analytics_enabled=False, download_files=folder)
        try:
            text = ""
            failed = False
            for line in table(client, given):
                print(line, flush=True)
                text = f"{text}{line}\n"
                failed = failed or " failed: " in line
        finally:
            client.close()
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = list(tasks_for(30))
    parser.add_argument("--url", default=URL, help=f"address of the studio ({URL})")
    parser.add_argument("--bpm", type=int, nargs="+", default=TEMPOS, help="tempos (90 120 140)")
    parser.add_argument(
        "--key", type=parse_key, nargs="+", default=KEYS, help='keys ("C major" "A minor")'
    )
    parser.add_argument(
        "--task",
        nargs="+",
        choices=every,
        default=every,
        metavar="TASK",
        help=f"of {', '.join(every)}",
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="length of the songs from words (30)"
    )
    parser.add_argument(
        "--steps", type=int, help="denoising steps; those of the standard quality unless given"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the table, too")
    return parser


# --- the grid -----------------------------------------------------------------------------------------------------


def table(client: Client, given: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of a Markdown table, each as soon as it is known."""
    facts = client.predict(api_name="/capabilities")
    yield f"{facts['model']} ({facts['engine']}), {facts['device']}, {facts['dtype']}, studio {facts['studio']}"
    yield ""
    names = (
        "bpm",
        "key",
        "task",
        "support",
        "seconds",
        "peak MB",
        "length",
        "tempo",
        "off by",
        "heard key",
        "step dB",
    )
    yield _row(names)
    yield _row("---" for _ in names)
    studio = process_at(given.url)
    tasks = tasks_for(given.seconds)
    for bpm in given.bpm:
        for key in given.key:
            words = {"bpm": bpm, "key": key, "seed": given.seed}
            source: Path | None = None
            # The song from words comes first whether it is asked for or not: the others need it.
            for name in dict.fromkeys(("generate", *given.task)):
                if name != "generate" and source is None:
                    break
                try:
                    path, cells = measured(client, studio, tasks[name], words, source, given.steps)
                except Exception as error:
                    path = None
                    cells = [f" failed: {_one_line(error)}"]
                source = source or path
                if name in given.task or path is None:
                    yield _row([bpm, key, name, facts["tasks"].get(name, ""), *cells])


def measured(
    client: Client,
    studio: psutil.Process | None,
    task: Task,
    words: Mapping[str, Any],
    source: Path | None,
    steps: int | None,
) -> tuple[Path, list[str]]:
    """Make a task's song and return its file and the cells of its row from "seconds" on."""
    values = {"prompt": PROMPT, "instrumental": True, **words, **task.values}
    values["options"] = {**values.get("options", {}), **({"steps": steps} if steps else {})}
    if task.endpoint != "/generate":
        values["source"] = handle_file(source)
    with Meter(studio) as meter:
        started = time.monotonic()
        files, _ = client.predict(**values, api_name=task.endpoint)
        seconds = time.monotonic() - started
    samples, rate = soundfile.read(files[0], always_2d=True)
    mono = samples.mean(axis=1).astype(np.float32)
    tempo = heard_tempo(mono, rate)
    return Path(files[0]), [
        f"{seconds:.1f}",
        f"{meter.peak / 2**20:.0f}" if meter.peak else "",
        f"{len(samples) / rate:g}",
        f"{tempo:.1f}",
        f"{100 * tempo_error(tempo, words['bpm'])[0]:.1f} %",
        heard_key(mono, rate),
        ", ".join(f"{step_db(samples, rate, border):+.1f}" for border in task.borders),
    ]


def _row(cells: Any) -> str:
    return f"| {' | '.join(str(cell).strip() if cell else '' for cell in cells)} |"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).replace("|", "/").split()) or type(error).__name__


# --- measuring ----------------------------------------------------------------------------------------------------


def heard_tempo(mono: np.ndarray, rate: int) -> float:
    """Return the tempo of [samples] in beats a minute, as librosa estimates it; 0 where it hears no beat."""
    import librosa

    tempo, _ = librosa.beat.beat_track(y=mono, sr=rate)
    return float(np.atleast_1d(tempo)[0])


def heard_key(mono: np.ndarray, rate: int) -> str:
    """Return the key whose profile fits the mean chroma of [samples] best, as in "F# minor"; "" for silence."""
    import librosa

    if np.abs(mono).max(initial=0) < 1e-6:
        return ""
    return rank_keys(librosa.feature.chroma_cqt(y=mono, sr=rate).mean(axis=1))[0]


def step_db(samples: np.ndarray, rate: int, border: float) -> float:
    """Return the largest jump between samples around `border` (s), in dB over the largest in the half second beside.

    `samples` are [n, channels]. Around means within a crossfade. Music has jumps of its own, so that 0 dB is nothing
    unusual; a click stands out by 10 dB and more.
    """
    jumps = np.abs(np.diff(samples, axis=0)).max(axis=1)
    at, edge, beside = (round(seconds * rate) for seconds in (border, EDGE_SECONDS, 0.5))
    near = jumps[max(at - edge, 0) : at + edge]
    around = np.concatenate(
        [jumps[max(at - edge - beside, 0) : max(at - edge, 0)], jumps[at + edge :][:beside]]
    )
    if not near.size or not around.size:
        return 0.0
    return float(20 * np.log10((near.max() + 1e-9) / (around.max() + 1e-9)))


class Meter:
    """Notes the largest memory of `studio` in bytes while it is open: resident, and on the GPU if it reports that."""

    def __init__(self, studio: psutil.Process | None):
        self.peak = 0
        self._studio = studio
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Meter:
        if self._studio is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._studio is not None:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            with contextlib.suppress(psutil.Error):
                family = [self._studio, *self._studio.children(recursive=True)]
                resident = sum(one.memory_info().rss for one in family)
                self.peak = max(self.peak, resident + gpu_bytes({one.pid for one in family}))
            if self._done.wait(LOOK_SECONDS):
                return


def gpu_bytes(processes: set[int]) -> int:
    """Return the memory that `processes` hold on NVIDIA cards, 0 where there is none."""
    if not shutil.which("nvidia-smi"):
        return 0
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    rows = [line.split(",") for line in answer.splitlines() if line.count(",") == 1]
    return sum(
        int(used) * 2**20 for pid, used in rows if int(pid) in processes and used.strip().isdigit()
    )


def process_at(url: str) -> psutil.Process | None:
    """Return the process that listens at `url`; None where it is on another machine or may not be looked at."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if (
                one.status == psutil.CONN_LISTEN
                and one.laddr.port == (parts.port or 80)
                and one.pid
            ):
                return psutil.Process(one.pid)
    return None


if __name__ == "__main__":
    sys.exit(main())
