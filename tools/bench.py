"""How fast the studio is beside stock diffusers: python -m tools.bench [what ...], all of it by default

Both sides make the same thing in turn within one run, and the ratio of each pair is printed: median, smallest and
largest. Ratios within one run mean something on a noisy machine; seconds do not. The first pair warms up and
is not counted. On a shared machine: OMP_NUM_THREADS=1 taskset -c 0 python -m tools.bench --processor-time.

generate and the other modes: a whole request of the studio (uploads, loop, decoding, WAV, tags, record) against the
stock pipeline's call (same noise, steps, guidance, tiling and numbers; nothing written). "after the loop" is the time
that the studio then takes for decoding, loudness, encoding and tags, as a share of the stock pipeline's call. The stock
pipeline has no morph: that one is measured against an encoded source and two songs from words, which cost the same.
vae: decoding and encoding. first: a new process up to its first song, with loading. loop: a guided step of a
transformer of any size. planner: tokens a second. page: until it can be used. library: the page with 40 songs.

page: Chromium opens the studio on the built-in engine, first with an empty cache, then once more with what it kept.
The page is usable when the prompt has taken a letter, and ready when it shows what the studio runs on. Until it is
usable, the processor time of the page's own thread is counted, and the longest of its tasks.
library: first 40 songs of 10 seconds are made, then the page is opened by a browser that keeps none of them, and by one
that keeps all: processor time, JavaScript's memory after a collection, elements, and what a letter of the search, a
change of the filter and opening a song take, with the layout that follows.

ray, where Ray is installed: two workers start on this machine; they and this process compute with one thread each.
`overhead` is the time of a song on a worker over that of the same song in this process, `in CPU time` the same of the
time that this process and the workers computed, which a busy machine does not change. `throughput` is the time of
four songs on one worker over that on both. The two sides of each ratio are measured in turn; a row has the median and
the spread.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

import backend
import bootstrap
import gpu_ray
import models
import song_codec
import song_loop
from events import Done
from limits import SAMPLE_RATE
from model_weights import find_weights
from params import parse_request
from tools import bench_models, bench_page, bench_rows
from tools.bench_rows import Row

PARTS = ("vae", "first", "loop", "planner", "page", "library")
PROMPT = "warm lofi piano with soft drums and a mellow bass"
LYRICS = "[Verse]\nslow light on the window\n[Chorus]\nstay a while"
# The mode of each task, and the request's fields besides the words.
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": ("generate", {}),
    "cover": ("cover", {"strength": 1.0}),
    "extend": ("extend", {"after": 10}),
    "repaint": ("edit", {"start": 3, "end": 8}),
    "morph": ("edit", {"action": "morph", "source_prompt": "a plain sine"}),
    "layer": ("edit", {"action": "layer", "tracks": ["drums"]}),
    "extract": ("edit", {"action": "extract", "tracks": ["drums"]}),
    "complete": ("edit", {"action": "complete", "tracks": ["drums", "bass"]}),
}
# The stock pipeline's arguments for a task.
STOCK_ARGUMENTS: dict[str, dict[str, Any]] = {
    "cover": {"task_type": "cover"},
    "extend": {"task_type": "repaint"},
    "repaint": {"task_type": "repaint"},
    "layer": {"task_type": "lego", "track_name": "drums"},
    "extract": {"task_type": "extract", "track_name": "drums"},
    "complete": {"task_type": "complete", "complete_track_classes": ["drums", "bass"]},
}
VAE_SECONDS = 10
FIRST_SONG = (
    "import bootstrap; bootstrap.bootstrap(); from tools import bench; bench.first_{}({}, {})"
)
ROOT = Path(__file__).parents[1]
WORKERS = 2
SONGS = 4


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    cases = ", ".join((*TASKS, *PARTS))
    add("what", nargs="*", help=f"any of {cases}, all by default; or ray")
    add(
        "--seconds",
        type=float,
        nargs="+",
        default=[10, 60, 240],
        help="lengths of the song or source",
    )
    add("--steps", type=int, default=50)
    add("--runs", type=int, default=3)
    add(
        "--shape",
        choices=bench_models.CHOICES,
        default="preview",
        help="loop: the transformer's size",
    )
    add("--layers", type=int, help="loop: the transformer's depth, where not the shape's own")
    add(
        "--compiled",
        action="store_true",
        help="loop: the studio's layers compiled (a minute or two)",
    )
    add("--float8", action="store_true", help="loop: the studio's layers computed in 8 bits")
    add("--dimensions", choices=bench_models.PLANNERS, default="", help="planner: random weights")
    add("--processor-time", action="store_true", help="count the processor's time, not the clock's")
    add("--json", type=Path, help="write the rows there")
    add("--picture", type=Path, help="draw the ratios there (matplotlib)")
    arguments = parser.parse_args()
    unknown = set(arguments.what) - {*TASKS, *PARTS}
    if unknown and arguments.what != ["ray"]:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return arguments


def main() -> None:
    """Measure the requested cases, print a row for each, and write the file and the picture."""
    arguments = read_arguments()
    if arguments.what == ["ray"]:
        show_ray(arguments)
        return
    bench_rows.use_processor_time(arguments.processor_time)
    rows = []
    print(bench_rows.HEAD)
    for row in measured(arguments):
        rows.append(row)
        print(row.text(), flush=True)
        # After each row, so that a run that is stopped leaves what it has measured.
        if arguments.json:
            bench_rows.write(arguments.json, rows)
    if arguments.picture:
        bench_rows.draw(arguments.picture, rows)


def measured(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each case and length.

    If all cases are measured, modes other than generate are measured at the first length only.
    """
    steps = arguments.steps
    runs = arguments.runs
    for case in arguments.what or (*TASKS, *PARTS):
        if case == "loop":
            yield from bench_models.loop_rows(
                arguments.shape,
                arguments.layers,
                arguments.seconds,
                runs,
                arguments.compiled,
                arguments.float8,
            )
        elif case == "planner":
            yield from bench_models.planner_rows(arguments.dimensions, arguments.seconds, runs)
        elif case == "page":
            yield from bench_page.page_rows(runs)
        elif case == "library":
            yield from bench_page.library_rows(runs)
        elif case == "vae":
            yield from vae_rows(backend.get_backend().models.pipeline(), runs)
        elif case == "first":
            yield first_row(min(arguments.seconds), steps, runs)
        else:
            lengths = arguments.seconds
            if case != "generate" and not arguments.what:
                lengths = lengths[:1]
            for seconds in lengths:
                yield song_row(backend.get_backend(), case, seconds, steps, runs)


# --- songs ----------------------------------------------------------------------------------------


def song_row(studio: backend.Backend, task: str, seconds: float, steps: int, runs: int) -> Row:
    """Compare a request of the studio with the stock pipeline's call."""
    with tempfile.TemporaryDirectory() as folder:
        request = _request(task, seconds, steps, Path(folder))
        after_loop: list[float] = []
        row = Row.of_both(
            f"{task}, {steps} steps",
            seconds,
            lambda: stock_song(studio.models.pipeline(), task, request, seconds),
            lambda: after_loop.append(studio_song(studio, request)),
            runs,
        )
    share = statistics.median(after_loop[1:]) / row.stock
    facts = {"after the loop": f"{share:.1%}", "peak MB so far": round(_peak_memory_mb())}
    return replace(row, more=facts)


def _request(task: str, seconds: float, steps: int, folder: Path) -> Any:
    """Return the request of a task, for a song or a source in `folder` of so many seconds."""
    mode, fields = TASKS[task]
    options: dict[str, Any] = {"steps": steps}
    values = {"prompt": PROMPT, "lyrics": LYRICS, **fields, "seed": 7, "options": options}
    if mode == "generate":
        values["duration"] = seconds
        options["plan"] = False  # the stock pipeline makes no plan
    else:
        values["source"] = str(write_source(folder, seconds))
    return parse_request(mode, values)


def stock_song(pipe: Any, task: str, request: Any, seconds: float) -> None:
    """Make the song with one call of the stock pipeline; a morph with two, the first of which is not decoded."""
    import torch

    arguments = dict(STOCK_ARGUMENTS.get(task, {}))
    length = seconds
    if task != "generate":
        samples, _ = soundfile.read(request.source, dtype="float32", always_2d=True)
        source = torch.from_numpy(samples.T.copy())
        if task == "extend":
            length = seconds + request.after
            source = torch.nn.functional.pad(source, (0, round(request.after * SAMPLE_RATE)))
            arguments |= {"repainting_start": seconds - 2, "repainting_end": length}
        elif task == "repaint":
            arguments |= {"repainting_start": request.start, "repainting_end": request.end}
        arguments["src_audio"] = source
    frames = song_codec.frames_for(pipe, length)
    channels = pipe.transformer.config.audio_acoustic_hidden_dim
    generators = song_loop.generators_for((request.seed,))
    common = {
        "prompt": request.prompt,
        "lyrics": request.sung_lyrics(),
        "vocal_language": request.language,
        "audio_duration": length,
        "num_inference_steps": request.options.steps,
        "guidance_scale": 7.0,
        "shift": 1.0,
        "latents": song_loop.draw_noise(generators, frames, channels),
    }
    with bench_models.stock(pipe.transformer), bench_models.stock_vae(pipe.vae):
        if task == "morph":
            pipe(**common, src_audio=arguments.pop("src_audio"), output_type="latent")
        pipe(**common, **arguments)


def studio_song(studio: backend.Backend, request: Any) -> float:
    """Make the song as a visitor would; returns the seconds that it took after the loop."""
    *_, last = studio.stream(request)
    if not isinstance(last, Done):
        sys.exit(f"the studio failed: {last.problem.text()}")
    return last.song["seconds"]["decoding"] + last.song["seconds"]["finishing"]


def write_source(folder: Path, seconds: float) -> Path:
    """Write a chord with a beat, 48 kHz stereo."""
    path = folder / f"source-{seconds:g}.wav"
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.sin(2 * np.pi * 220 * t) * (0.3 + 0.2 * np.cos(4 * np.pi * t))
    soundfile.write(path, np.stack([wave, wave], axis=1), SAMPLE_RATE)
    return path


def _peak_memory_mb() -> float:
    """Return the largest resident size of this process so far; Linux counts in kB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


# --- the VAE --------------------------------------------------------------------------------------


def vae_rows(pipe: Any, runs: int) -> Iterator[Row]:
    """Compare decoding and encoding of audio in tiles with the stock VAE's."""
    import torch

    channels = pipe.vae.config.decoder_input_channels
    latents = torch.randn(1, VAE_SECONDS * SAMPLE_RATE // pipe.vae.hop_length, channels)
    noise = np.random.default_rng(1).standard_normal((2, VAE_SECONDS * SAMPLE_RATE))
    samples = 0.1 * noise.astype(np.float32)

    def decode() -> None:
        deque(song_codec.decode_latents(pipe, latents.to(pipe._execution_device)), 0)

    def encode() -> None:
        deque(song_codec.encode(pipe, samples, "reading"), 0)

    for ours in (decode, encode):

        def stock(work: Any = ours) -> None:
            with bench_models.stock_vae(pipe.vae):
                work()

        yield Row.of_both(f"VAE, {ours.__name__}", VAE_SECONDS, stock, ours, runs)


# --- the first song -------------------------------------------------------------------------------


def first_row(seconds: float, steps: int, runs: int) -> Row:
    """Compare new processes up to their first song."""

    def start(side: str) -> None:
        command = [sys.executable, "-c", FIRST_SONG.format(side, seconds, steps)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"The first song ({side}) failed: {done.stderr[-2000:]}")

    return Row.of_both(
        "first song, with loading", seconds, lambda: start("stock"), lambda: start("studio"), runs
    )


def first_stock(seconds: float, steps: int) -> None:
    """Load the stock pipeline and make a song."""
    import torch
    from diffusers import AceStepPipeline

    weights = find_weights()
    device = models.pick_device(weights)
    dtype = getattr(torch, device.dtype)
    pipe = AceStepPipeline.from_pretrained(weights.folder, dtype=dtype).to(device.kind)
    pipe.vae.enable_tiling()
    pipe(
        prompt=PROMPT,
        lyrics=LYRICS,
        audio_duration=seconds,
        num_inference_steps=steps,
        guidance_scale=7.0,
        shift=1.0,
    )


def first_studio(seconds: float, steps: int) -> None:
    """Load the studio and make a song."""
    request = _request("generate", seconds, steps, Path())
    studio_song(backend.get_backend(), request)


# --- Ray ------------------------------------------------------------------------------------------


def show_ray(arguments: argparse.Namespace) -> None:
    """Print three rows for each length of `arguments.seconds`, with `steps` and `runs`."""
    import torch

    torch.set_num_threads(1)
    os.environ.update({gpu_ray.RAY: gpu_ray.LOCAL, gpu_ray.WORKERS: str(WORKERS)})
    # Ray lets its workers give way to everything else on a busy machine.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    gpu_ray.pool.start(backend.worker_status)
    try:
        while len(gpu_ray.pool.workers()) < WORKERS:
            problem = gpu_ray.pool.problem
            if problem:
                sys.exit(problem.text())
            time.sleep(0.2)
        print(f"{arguments.steps} steps, {WORKERS} workers with one thread each")
        print(f"{'':<14}{'seconds':>8}{'ratio':>8}{'spread':>16}")
        for seconds in arguments.seconds:
            # The first pair of each warms up.
            pairs = [overhead(seconds, arguments.steps) for _ in range(arguments.runs + 1)][1:]
            show_ratios("overhead", seconds, [wall for wall, _ in pairs])
            show_ratios("in CPU time", seconds, [computed for _, computed in pairs])
            show_ratios(
                "throughput",
                seconds,
                [throughput(seconds, arguments.steps) for _ in range(arguments.runs + 1)][1:],
            )
    finally:
        gpu_ray.pool.dismiss()


def show_ratios(name: str, seconds: float, ratios: list[float]) -> None:
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"{name:<14}{seconds:>8g}{statistics.median(ratios):>8.3f}{spread:>16}", flush=True)


def overhead(seconds: float, steps: int) -> tuple[float, float]:
    """Return the time of a song on a worker over that in this process, and the same ratio of CPU time."""
    began = cpu_seconds()
    with in_this_process():
        here = time_of(1, seconds, steps)
    between = cpu_seconds()
    on_worker = time_of(1, seconds, steps)
    return on_worker / here, (cpu_seconds() - between) / (between - began)


def cpu_seconds() -> float:
    """Return how long this process and the workers have computed so far."""
    processes = [
        psutil.Process(pid)
        for pid in (os.getpid(), *(worker.pid for worker in gpu_ray.pool.workers()))
    ]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def throughput(seconds: float, steps: int) -> float:
    """Return the time of `SONGS` songs on one worker over that on all of them."""
    *_, held = with_return(gpu_ray.pool.take(()))
    try:
        one = time_of(SONGS, seconds, steps)
    finally:
        gpu_ray.pool.give_back(held)
    return one / time_of(SONGS, seconds, steps)


def time_of(songs: int, seconds: float, steps: int) -> float:
    """Return the seconds that `songs` songs take that are asked for at once."""
    started = time.perf_counter()
    with ThreadPoolExecutor(songs) as threads:
        list(threads.map(lambda seed: make_song(seed, seconds, steps), range(songs)))
    return time.perf_counter() - started


def make_song(seed: int, seconds: float, steps: int) -> None:
    """Make a song as a visitor would."""
    options = {"steps": steps, "plan": False}
    values = {"prompt": "warm lofi piano", "duration": seconds, "seed": seed, "options": options}
    *_, last = backend.get_backend().stream(parse_request("generate", values))
    if not isinstance(last, Done):
        sys.exit(f"the studio failed: {last.problem.text()}")


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Let songs be made here; the workers wait."""
    where = os.environ.pop(gpu_ray.RAY)
    try:
        yield
    finally:
        os.environ[gpu_ray.RAY] = where


def with_return(events: Iterator) -> Iterator:
    """Yield the events of a generator, then what it returns."""
    yield (yield from events)


if __name__ == "__main__":
    bootstrap.bootstrap()
    main()
