"""What the studio costs on top of the bare pipeline: python -m tools.bench [task ...]

Runs a whole request (uploads, loop, decoding, WAV, tags, record) and the same song through the stock pipeline (same
noise, steps, guidance, tiling, dtype; nothing written), in turn, and prints the ratio of the medians. Ratios within one
run mean something on a noisy machine; seconds do not. The first pair warms up and is not counted.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

import backend
import bootstrap
import sampling
from params import Done, parse_request

PROMPT = "warm lofi piano with soft drums and a mellow bass"
LYRICS = "[Verse]\nslow light on the window\n[Chorus]\nstay a while"
RATE = 48_000
WORDS = {"prompt": PROMPT, "lyrics": LYRICS}
TASKS = {
    "generate": ("generate", {}),
    "cover": ("cover", {"strength": 1.0}),
    "extend": ("extend", {"after": 10}),
    "repaint": ("edit", {"start": 3, "end": 8}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"any of {', '.join(TASKS)}; generate by default")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60, 240], help="lengths of the song or source")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    tasks = arguments.tasks or ["generate"]
    if unknown := set(tasks) - TASKS.keys():
        parser.error(f"unknown task: {', '.join(sorted(unknown))}")
    studio = backend.get_backend()
    studio.pipeline()
    print(f"engine {studio.weights.engine}, {studio.device().kind}, {studio.device().dtype}, {arguments.steps} steps")
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
    else:
        values["source"] = str(write_source(folder, seconds))
    request = parse_request(mode, values)
    bare, whole = [], []
    for _ in range(runs + 1):
        bare.append(timed(lambda: bare_song(studio.pipeline(), task, request, seconds)))
        whole.append(timed(lambda: studio_song(studio, request)))
    return statistics.median(bare[1:]), statistics.median(whole[1:])


def bare_song(pipe, task: str, request, seconds: float) -> None:
    """Make the song with one call of the stock pipeline."""
    more, length = {}, seconds
    if task != "generate":
        samples, _ = soundfile.read(request.source, dtype="float32", always_2d=True)
        import torch

        source = torch.from_numpy(samples.T.copy())
        if task == "extend":
            source = torch.nn.functional.pad(source, (0, round(request.after * RATE)))
            length = seconds + request.after
            more = {"task_type": "repaint", "repainting_start": seconds - 2, "repainting_end": length}
        elif task == "repaint":
            more = {"task_type": "repaint", "repainting_start": request.start, "repainting_end": request.end}
        else:
            more = {"task_type": "cover"}
        more["src_audio"] = source
    frames = sampling.frames_for(pipe, length)
    channels = pipe.transformer.config.audio_acoustic_hidden_dim
    noise = sampling.draw_noise(sampling.generators_for((request.seed,)), frames, channels)
    pipe(
        prompt=request.prompt,
        lyrics=request.lyrics,
        vocal_language=request.language,
        audio_duration=length,
        num_inference_steps=request.options.steps,
        guidance_scale=7.0,
        shift=1.0,
        latents=noise,
        **more,
    )


def studio_song(studio: backend.Backend, request) -> None:
    """Make the song as a visitor would."""
    *_, last = studio.stream(request)
    if not isinstance(last, Done):
        sys.exit(f"the studio failed: {last.problem.text()}")


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def write_source(folder: Path, seconds: float) -> Path:
    """Write a chord with a beat, 48 kHz stereo."""
    path = folder / f"source-{seconds:g}.wav"
    t = np.arange(round(seconds * RATE)) / RATE
    wave = np.sin(2 * np.pi * 220 * t) * (0.3 + 0.2 * np.cos(4 * np.pi * t))
    soundfile.write(path, np.stack([wave, wave], axis=1), RATE)
    return path


def peak_memory_mb() -> float:
    """Return the largest resident size of this process so far; Linux counts in kB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    bootstrap.bootstrap()
    main()
