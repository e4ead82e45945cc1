"""What tools.bench compares: songs of every mode, the VAE, and a new process up to its first song."""

from __future__ import annotations

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
import models
import song_codec
import song_loop
from events import Done
from limits import SAMPLE_RATE
from model_weights import find_weights
from params import parse_request
from tools import bench_loop
from tools.bench_rows import Row

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
    "import bootstrap; bootstrap.bootstrap(); "
    "from tools import bench_cases; bench_cases.first_{}({}, {})"
)
ROOT = Path(__file__).parents[1]


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
    with bench_loop.stock(pipe.transformer), bench_loop.stock_vae(pipe.vae):
        if task == "morph":
            pipe(**common, src_audio=arguments.pop("src_audio"), output_type="latent")
        pipe(**common, **arguments)


def studio_song(studio: backend.Backend, request: Any) -> float:
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
            with bench_loop.stock_vae(pipe.vae):
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
