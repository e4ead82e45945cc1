"""How fast the studio is beside stock diffusers: python -m tools.bench [what ...], all of it by default

Both sides make the same thing in turn within one run, and what is printed is the ratio of each pair: its median, and
its least and most. Ratios within one run mean something on a noisy machine; seconds do not. The first pair warms up and
is not counted. On a shared machine: OMP_NUM_THREADS=1 taskset -c 0 python -m tools.bench --processor-time.

generate and the other modes: a whole request of the studio (uploads, loop, decoding, WAV, tags, record) against the
stock pipeline's call (same noise, steps, guidance, tiling and numbers; nothing written). "after the loop" is the time
that the studio then takes for decoding, loudness, encoding and tags, as a share of the stock pipeline's call. The stock
pipeline has no morph: that one is measured against an encoded source and two songs from words, which cost the same.
vae: decoding and encoding. first: a new process up to its first song, with loading. loop: a guided step of a
transformer of any size. planner: tokens a second. page: until it can be used.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import backend
import bootstrap
import models
import song_codec
import song_loop
from events import Done
from limits import SAMPLE_RATE
from model_weights import find_weights
from params import parse_request
from tools import bench_loop, bench_page, bench_planner, bench_ray, bench_rows
from tools.bench_rows import Row

PROMPT = "warm lofi piano with soft drums and a mellow bass"
LYRICS = "[Verse]\nslow light on the window\n[Chorus]\nstay a while"
WORDS = {"prompt": PROMPT, "lyrics": LYRICS}
TASKS = {
    "generate": ("generate", {}),
    "cover": ("cover", {"strength": 1.0}),
    "extend": ("extend", {"after": 10}),
    "repaint": ("edit", {"start": 3, "end": 8}),
    "morph": ("edit", {"action": "morph", "source_prompt": "a plain sine"}),
    "layer": ("edit", {"action": "layer", "tracks": ["drums"]}),
    "extract": ("edit", {"action": "extract", "tracks": ["drums"]}),
    "complete": ("edit", {"action": "complete", "tracks": ["drums", "bass"]}),
}
# The stock pipeline's words for a task.
BARE = {
    "cover": {"task_type": "cover"},
    "extend": {"task_type": "repaint"},
    "repaint": {"task_type": "repaint"},
    "layer": {"task_type": "lego", "track_name": "drums"},
    "extract": {"task_type": "extract", "track_name": "drums"},
    "complete": {"task_type": "complete", "complete_track_classes": ["drums", "bass"]},
}


PARTS = ("vae", "first", "loop", "planner", "page")
VAE_SECONDS = 10
FIRST = "import bootstrap; bootstrap.bootstrap(); from tools import bench; bench.first_{}({}, {})"
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure what was asked, print a row each, and write the file and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="*", help=f"any of {', '.join((*TASKS, *PARTS))}, all by default; or ray"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="+",
        default=[10, 60, 240],
        help="lengths of the song or source",
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--shape",
        choices=bench_loop.CHOICES,
        default="preview",
        help="loop: the transformer's size",
    )
    parser.add_argument(
        "--layers", type=int, help="loop: the transformer's depth, where not the shape's own"
    )
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="loop: the studio's layers compiled (a minute or two)",
    )
    parser.add_argument(
        "--float8", action="store_true", help="loop: the studio's layers computed in 8 bits"
    )
    parser.add_argument(
        "--dimensions", choices=bench_planner.SHAPES, default="", help="planner: random weights"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="count the processor's time, not the clock's"
    )
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--picture", type=Path, help="draw the ratios there (matplotlib)")
    given = parser.parse_args()
    if given.what == ["ray"]:
        bench_ray.main(given)
        return
    wanted = given.what or [*TASKS, *PARTS]
    if unknown := set(wanted) - {*TASKS, *PARTS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    bench_rows.use_processor_time(given.processor_time)
    rows = []
    print(bench_rows.HEAD)
    for row in measured(wanted, given):
        rows.append(row)
        print(row.text(), flush=True)
        # Each time, so that a run that is stopped leaves what it measured.
        if given.json:
            bench_rows.write(given.json, rows)
    if given.picture:
        bench_rows.draw(given.picture, rows)


def measured(wanted: list[str], given: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each thing and length. Modes but generate are measured at the least length alone."""
    for what in wanted:
        if what == "loop":
            yield from bench_loop.bench(
                given.shape, given.layers, given.seconds, given.runs, given.compiled, given.float8
            )
        elif what == "planner":
            yield from bench_planner.bench(given.dimensions, given.seconds, given.runs)
        elif what == "page":
            yield from bench_page.bench(given.runs)
        elif what == "vae":
            yield from vae_rows(backend.get_backend().models.pipeline(), given.runs)
        elif what == "first":
            yield first_row(min(given.seconds), given.steps, given.runs)
        else:
            for seconds in given.seconds if what == "generate" or given.what else given.seconds[:1]:
                yield compare(backend.get_backend(), what, seconds, given.steps, given.runs)


def compare(studio: backend.Backend, task: str, seconds: float, steps: int, runs: int) -> Row:
    """Compare a request of the studio with the bare pipeline's call."""
    mode, values = TASKS[task]
    values = {**WORDS, **values, "seed": 7, "options": {"steps": steps}}
    if mode == "generate":
        values["duration"] = seconds
        # The bare pipeline makes no plan.
        values["options"]["plan"] = False
    with tempfile.TemporaryDirectory() as folder:
        if mode != "generate":
            values["source"] = str(write_source(Path(folder), seconds))
        request = parse_request(mode, values)
        after: list[float] = []
        row = Row.of(
            f"{task}, {steps} steps",
            seconds,
            lambda: bare_song(studio.models.pipeline(), task, request, seconds),
            lambda: after.append(studio_song(studio, request)),
            runs,
        )
    share = statistics.median(after[1:]) / row.stock
    return replace(
        row, more={"after the loop": f"{share:.1%}", "peak MB so far": round(peak_memory_mb())}
    )


def vae_rows(pipe: Any, runs: int) -> Iterator[Row]:
    """Compare decoding and encoding of audio in tiles with the stock VAE's."""
    import torch

    hop, channels = pipe.vae.hop_length, pipe.vae.config.decoder_input_channels
    latents = torch.randn(1, VAE_SECONDS * SAMPLE_RATE // hop, channels)
    samples = 0.1 * np.random.default_rng(1).standard_normal((2, VAE_SECONDS * SAMPLE_RATE)).astype(
        np.float32
    )
    sides = {
        "decode": lambda: deque(
            song_codec.decode_latents(pipe, latents.to(pipe._execution_device)), 0
        ),
        "encode": lambda: deque(song_codec.encode(pipe, samples, "reading"), 0),
    }
    for name, ours in sides.items():

        def stock(work: Any = ours) -> None:
            with bench_loop.stock_vae(pipe.vae):
                work()

        yield Row.of(f"VAE, {name}", VAE_SECONDS, stock, ours, runs)


def first_row(seconds: float, steps: int, runs: int) -> Row:
    """Compare new processes up to their first song."""

    def started(side: str) -> None:
        command = [sys.executable, "-c", FIRST.format(side, seconds, steps)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"The first song ({side}) failed: {done.stderr[-2000:]}")

    return Row.of(
        "first song, with loading",
        seconds,
        lambda: started("stock"),
        lambda: started("studio"),
        runs,
    )


def first_stock(seconds: float, steps: int) -> None:
    """Load the stock pipeline and make a song."""
    import torch
    from diffusers import AceStepPipeline

    weights = find_weights()
    device = models.pick_device(weights)
    pipe = AceStepPipeline.from_pretrained(weights.folder, dtype=getattr(torch, device.dtype)).to(
        device.kind
    )
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
    options = {"steps": steps, "plan": False}
    values = {**WORDS, "duration": seconds, "seed": 7, "options": options}
    studio_song(backend.get_backend(), parse_request("generate", values))


def bare_song(pipe, task: str, request, seconds: float) -> None:
    """Make the song with the stock pipeline, with one call; a morph with two, the first of which is not decoded."""
    import torch

    more, length = dict(BARE.get(task, {})), seconds
    if task != "generate":
        samples, _ = soundfile.read(request.source, dtype="float32", always_2d=True)
        source = torch.from_numpy(samples.T.copy())
        if task == "extend":
            length = seconds + request.after
            source = torch.nn.functional.pad(source, (0, round(request.after * SAMPLE_RATE)))
            more |= {"repainting_start": seconds - 2, "repainting_end": length}
        elif task == "repaint":
            more |= {"repainting_start": request.start, "repainting_end": request.end}
        more["src_audio"] = source
    frames = song_codec.frames_for(pipe, length)
    channels = pipe.transformer.config.audio_acoustic_hidden_dim
    words = {
        "prompt": request.prompt,
        "lyrics": request.sung_lyrics(),
        "vocal_language": request.language,
        "audio_duration": length,
        "num_inference_steps": request.options.steps,
        "guidance_scale": 7.0,
        "shift": 1.0,
        "latents": song_loop.draw_noise(
            song_loop.generators_for((request.seed,)), frames, channels
        ),
    }
    with bench_loop.stock(pipe.transformer), bench_loop.stock_vae(pipe.vae):
        if task == "morph":
            pipe(**words, src_audio=more.pop("src_audio"), output_type="latent")
        pipe(**words, **more)


def studio_song(studio: backend.Backend, request) -> float:
    """Make the song as a visitor would; returns the seconds that it took after the loop."""
    *_, last = studio.stream(request)
    if not isinstance(last, Done):
        sys.exit(f"the studio failed: {last.problem.text()}")
    return last.record["seconds"]["decoding"] + last.record["seconds"]["finishing"]


def write_source(folder: Path, seconds: float) -> Path:
    """Write a chord with a beat, 48 kHz stereo."""
    path = folder / f"source-{seconds:g}.wav"
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.sin(2 * np.pi * 220 * t) * (0.3 + 0.2 * np.cos(4 * np.pi * t))
    soundfile.write(path, np.stack([wave, wave], axis=1), SAMPLE_RATE)
    return path


def peak_memory_mb() -> float:
    """Return the largest resident size of this process so far; Linux counts in kB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    bootstrap.bootstrap()
    main()
