"""What the studio costs on top of the bare pipeline: python -m tools.bench [task ...]

Runs a whole request (uploads, loop, decoding, WAV, tags, record) and the same song through the stock pipeline (same
noise, steps, guidance, tiling, dtype; nothing written), in turn, and prints the ratio of the medians. Ratios within one
run mean something on a noisy machine; seconds do not. The first pair warms up and is not counted. The stock
pipeline has no morph: that one is measured against an encoded source and two songs from words, which cost the same.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

import backend
import bootstrap
import codec
import sampling
from events import Done
from limits import SAMPLE_RATE
from params import parse_request
from tools import bench_loop, bench_page, bench_planner

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


def main() -> None:
    """Print a row for each task and length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tasks", nargs="*", metavar="task", help=f"any of {', '.join(TASKS)}, loop, planner, page; generate by default"
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60, 240], help="lengths of the song or source")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shape", choices=bench_loop.SHAPES, default="middle", help="loop: the transformer's size")
    parser.add_argument("--layers", type=int, help="loop: the transformer's depth, where not the shape's own")
    parser.add_argument("--dimensions", choices=bench_planner.SHAPES, default="", help="planner: random weights, CUDA")
    arguments = parser.parse_args()
    tasks = arguments.tasks or ["generate"]
    if "loop" in tasks:
        bench_loop.bench(arguments.shape, arguments.layers, arguments.seconds, arguments.runs)
        tasks.remove("loop")
    if "planner" in tasks:
        bench_planner.bench(arguments.dimensions, arguments.seconds, arguments.runs)
        tasks.remove("planner")
    if "page" in tasks:
        bench_page.bench(arguments.runs)
        tasks.remove("page")
    if not tasks:
        return
    if unknown := set(tasks) - TASKS.keys():
        parser.error(f"unknown task: {', '.join(sorted(unknown))}")
    studio = backend.get_backend()
    timed(studio.models.pipeline)
    engine, device = studio.models.weights.engine, studio.device()
    print(f"engine {engine}, {device.kind}, {device.dtype}, {arguments.steps} steps")
    print(f"{'task':<10}{'seconds':>8}{'bare':>9}{'studio':>9}{'ratio':>8}{'peak MB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            for seconds in arguments.seconds:
                bare, whole = compare(studio, task, seconds, arguments.steps, arguments.runs, Path(folder))
                row = f"{task:<10}{seconds:>8g}{bare:>8.2f}s{whole:>8.2f}s{whole / bare:>8.3f}{peak_memory_mb():>9.0f}"
                print(row, flush=True)


def compare(
    studio: backend.Backend, task: str, seconds: float, steps: int, runs: int, folder: Path
) -> tuple[float, float]:
    """Return the median seconds of the bare pipeline and of the studio, measured in turn."""
    mode, values = TASKS[task]
    values = {**WORDS, **values, "seed": 7, "options": {"steps": steps}}
    if mode == "generate":
        values["duration"] = seconds
        # The bare pipeline makes no plan.
        values["options"]["plan"] = False
    else:
        values["source"] = str(write_source(folder, seconds))
    request = parse_request(mode, values)
    bare, whole = [], []
    for _ in range(runs + 1):
        bare.append(timed(lambda: bare_song(studio.models.pipeline(), task, request, seconds)))
        whole.append(timed(lambda: studio_song(studio, request)))
    return statistics.median(bare[1:]), statistics.median(whole[1:])


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
    frames = codec.frames_for(pipe, length)
    channels = pipe.transformer.config.audio_acoustic_hidden_dim
    words = {
        "prompt": request.prompt,
        "lyrics": request.sung_lyrics(),
        "vocal_language": request.language,
        "audio_duration": length,
        "num_inference_steps": request.options.steps,
        "guidance_scale": 7.0,
        "shift": 1.0,
        "latents": sampling.draw_noise(sampling.generators_for((request.seed,)), frames, channels),
    }
    with bench_loop.stock(pipe.transformer):
        if task == "morph":
            pipe(**words, src_audio=more.pop("src_audio"), output_type="latent")
        pipe(**words, **more)


def studio_song(studio: backend.Backend, request) -> None:
    """Make the song as a visitor would."""
    *_, last = studio.stream(request)
    if not isinstance(last, Done):
        sys.exit(f"the studio failed: {last.problem.text()}")


def timed(work) -> float:
    """Return the seconds that `work` takes in a thread of its own, where the studio's songs run as well.

    OpenMP keeps a team of threads for each thread that computes; two teams, the main thread's being one, outnumber the
    cores, and libgomp then lets all of them sleep at every barrier, which doubles the time of a small model's steps.
    """
    with ThreadPoolExecutor(1) as thread:
        started = time.perf_counter()
        thread.submit(work).result()
        return time.perf_counter() - started


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
