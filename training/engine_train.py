"""Train the built-in engine on the band's music: python -m training engine --export assets/preview

Five stages. The first four are independent of each other: "decoder" (latents to sound), "encoder" (sound to latents),
"codes" (latents to five codes a second and back) and "song" (words to latents). "distilled" is a song model that needs
fewer steps and no guidance; an export has it instead of "song" once it has learnt from that very state. Without --stage
they run in order, for about five hours of one CPU core, or minutes on a GPU. The state is saved every 90 s and on
Ctrl-C, and the same command resumes it. Progress is one JSON object per line; at the end of a stage its curve is drawn
into the state folder. The learning rate falls as a cosine over the stage's minutes (CPU time, or real time on a GPU).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AceStepPipeline

from models import quiet_libraries
from training import engine_distil, engine_examples, engine_song, engine_vae
from training.band_styles import STYLES

STAGES = {
    stage.name: stage
    for stage in (
        engine_vae.DecoderStage,
        engine_vae.EncoderStage,
        engine_song.CodesStage,
        engine_song.SongStage,
        engine_distil.DistilledStage,
    )
}
SAVE_SECONDS = 90
LOG_SECONDS = 30
WARMUP_STEPS = 30
SMOKE_STEPS = 2
HELPERS_STEPS = 100
"""How many steps the helpers, which no checkpoint has, train alone before a checkpoint's parts train on."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


# --- the optimizer ------------------------------------------------------------------------------------------------


def orthogonal(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """Return about the nearest orthogonal matrices to some [N, R, C], by Newton and Schulz's iteration.

    It runs on the small squares of wide or tall matrices, which takes half of the products.
    """
    is_wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if is_wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square = x @ x.mT
    whole = None
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        square = factor @ square @ factor
        whole = factor if whole is None else factor @ whole
    x = whole @ x
    return x if is_wide else x.mT


class Optimizer:
    """Muon (Jordan 2024) for the matrices of a stage, those of one shape at once, and Adam for its other parameters."""

    MOMENTUM = 0.95

    def __init__(self, stage: Any):
        self.stage = stage
        matrices = {n: p for n, p in stage.trained.items() if p.ndim == 2 and stage.is_matrix(n)}
        self.matrices = list(matrices.values())
        self.buffers = [torch.zeros_like(matrix) for matrix in self.matrices]
        others = [p for n, p in stage.trained.items() if n not in matrices]
        self.adam = torch.optim.Adam(others, lr=stage.adam_rate, betas=(0.9, 0.98), foreach=True)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Take a step at `factor` of the stage's rates."""
        alike: dict[torch.Size, list[int]] = {}
        for number, matrix in enumerate(self.matrices):
            if matrix.grad is not None:
                alike.setdefault(matrix.shape, []).append(number)
        for shape, numbers in alike.items():
            matrices = [self.matrices[number] for number in numbers]
            held = [self.buffers[number] for number in numbers]
            gradients = [matrix.grad for matrix in matrices]
            torch._foreach_lerp_(held, gradients, 1 - self.MOMENTUM)
            ahead = torch._foreach_lerp(gradients, held, self.MOMENTUM)
            updates = orthogonal(torch.stack(ahead), self.stage.newton_steps)
            inputs, outputs = shape if self.stage.inputs_first else shape[::-1]
            rate = self.stage.rate * factor * max(1.0, outputs / inputs) ** 0.5
            torch._foreach_add_(matrices, updates.unbind(), alpha=-rate)
        for group in self.adam.param_groups:
            group["lr"] = self.stage.adam_rate * factor
        self.adam.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.stage.trained.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"buffers": self.buffers, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for held, saved in zip(self.buffers, state["buffers"], strict=True):
            held.copy_(saved)
        self.adam.load_state_dict(state["adam"])


# --- a stage's training -------------------------------------------------------------------------------------------


class Training:
    """One stage, its optimizer, the running mean of its weights and its state on disk.

    It ends after `minutes`, by default the stage's own, or after `steps` in all. `smoke` makes everything tiny. With
    `workers` the song model's pieces are composed anew by so many processes.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        minutes: float | None = None,
        steps: int | None = None,
        device: str = "cpu",
        smoke: bool = False,
        workers: int = 0,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.pt"
        self.device = torch.device(device)
        # cuDNN's attention makes a plan for each new shape, and prompts have every length.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.steps = steps
        held = read_state(folder, name)
        torch.manual_seed(0)
        more: tuple[Any, ...] = () if name in ("decoder", "encoder") else (folder,)
        if name in ("song", "distilled"):
            more = (folder, workers)
        self.stage = STAGES[name](self.device, smoke, held, *more)
        self.minutes = self.stage.minutes if minutes is None else minutes
        self.optimizer = Optimizer(self.stage)
        self.mean = {n: p.detach().clone() for n, p in self.stage.averaged.items()}
        self.step = 0
        self.spent = 0.0
        if held:
            self.mean = {n: held["mean"][n].to(kept) for n, kept in self.mean.items()}
            self.step = held["step"]
            self.spent = held["spent"]
        self.begun = bool(held and held.get("begun"))
        if held and "opt" in held:
            self.optimizer.load_state_dict(held["opt"])
        self.half = self.stage.name != "codes" and half_pays(self.device)
        self.figures: dict[str, list[torch.Tensor]] = {}

    @property
    def share(self) -> float:
        """How much of the training is done, 0 to 1; one that continues a checkpoint begins at half."""
        share = share_of(self.step, self.spent, self.minutes, self.steps)
        return (1 + share) / 2 if self.begun else share

    def run(self) -> None:
        """Train to the end, saving now and then, also when interrupted."""
        on_gpu = self.device.type == "cuda"
        clock, threads = (
            (time.perf_counter, 1) if on_gpu else (time.process_time, torch.get_num_threads())
        )
        began = clock()
        before = self.spent
        logged = self.spent
        saved = self.spent
        try:
            while self.share < 1:
                self._one_step()
                self.spent = before + (clock() - began) / threads
                if self.spent - logged > LOG_SECONDS:
                    logged = self.spent
                    self.log()
                if self.spent - saved > SAVE_SECONDS:
                    saved = self.spent
                    self.save()
        finally:
            self.save()
        self.log()

    def _one_step(self) -> None:
        share = self.share
        kind = self.device.type
        with torch.autocast(kind, torch.bfloat16) if self.half else contextlib.nullcontext():
            loss, figures = self.stage.loss(self.step, share)
        self.optimizer.zero_grad()
        loss.backward()
        if (
            self.begun
            and self.step < HELPERS_STEPS
            and self.stage.averaged is not self.stage.trained
        ):
            for parameter in self.stage.averaged.values():
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_(list(self.stage.trained.values()), self.stage.clip)
        self.optimizer.step(self._factor(share))
        kept = min(self.stage.keep, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            live = [self.stage.averaged[name].detach() for name in self.mean]
            torch._foreach_lerp_(list(self.mean.values()), live, 1 - kept)
        self.step += 1
        # Read when they are printed: a GPU would have to be waited for in each step.
        for name, value in {"loss": loss.detach(), **figures}.items():
            self.figures.setdefault(name, []).append(torch.as_tensor(value))

    def _factor(self, share: float) -> float:
        """Return the share of the rates: a warm-up, then a cosine down to the stage's floor."""
        rise = min(1.0, (self.step + 1) / WARMUP_STEPS)
        first = getattr(self.stage, "WORDS_SHARE", 0.0)
        fallen = min(1.0, max(0.0, (share - first) / (1 - first)))
        return rise * (
            self.stage.floor + (1 - self.stage.floor) * 0.5 * (1 + math.cos(math.pi * fallen))
        )

    def log(self) -> None:
        """Print what the last half minute brought as a line of JSON, and add it to the stage's log."""
        figures = {
            name: float(torch.stack(values).float().nanmean())
            for name, values in self.figures.items()
        }
        figures |= self.stage.measure(self.mean)
        self.figures = {}
        line = {"stage": self.stage.name, "step": self.step, "seconds": round(self.spent)}
        text = json.dumps(line | {name: round(value, 4) for name, value in figures.items()})
        print(text, flush=True)
        with self.path.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def save(self) -> None:
        """Write the state aside, then in its place."""
        state = {
            "live": self.stage.module.state_dict(),
            "mean": self.mean,
            "opt": self.optimizer.state_dict(),
            "step": self.step,
            "spent": self.spent,
            "begun": self.begun,
            **self.stage.facts,
        }
        aside = self.path.with_suffix(".tmp")
        torch.save(state, aside)
        aside.replace(self.path)


def read_state(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the state of a stage, None where it has not begun. Bare weights count as a finished training."""
    path = folder / f"{name}.pt"
    if not path.exists():
        return None
    held = torch.load(path, map_location="cpu", weights_only=False)
    return held if "live" in held else {"live": held, "mean": held, "step": 0, "spent": math.inf}


def share_of(step: int, spent: float, minutes: float, steps: int | None) -> float:
    """Return how much of a training is done after `spent` seconds, by its steps if they are given."""
    return step / steps if steps and math.isfinite(spent) else spent / (minutes * 60)


def half_pays(device: torch.device) -> bool:
    """Tell whether bfloat16 products are faster: on GPUs, and on the CPUs where a trial says so.

    What a CPU's flags promise is no guide: some with AVX-512 BF16 take twice as long as in float32.
    """
    if device.type == "cuda":
        return True
    took = {}
    for kind in (torch.float32, torch.bfloat16):
        left = torch.ones(2048, 512, dtype=kind)
        right = torch.ones(512, 512, dtype=kind)
        trials = []
        for _ in range(8):
            began = time.perf_counter()
            left @ right
            trials.append(time.perf_counter() - began)
        took[kind] = min(trials)
    return took[torch.bfloat16] < took[torch.float32]


# --- what comes of it ---------------------------------------------------------------------------------------------


def begin(checkpoint: Path, folder: Path, smoke: bool = False) -> None:
    """Write the parts of a checkpoint into `folder` as states from which training continues, if it holds none yet."""
    if (folder / "song.pt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    pipe = AceStepPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    norm = engine_examples.norm_of(folder, smoke)
    states = (
        *engine_vae.states_of(pipe.vae, norm.centre, norm.spread),
        *engine_song.states_of(pipe, norm),
    )
    for name, state in zip(PARTS, states, strict=True):
        torch.save(
            {"mean": state["live"], **state, "step": 0, "spent": 0.0, "begun": True},
            folder / f"{name}.pt",
        )


def export(state: Path, folder: Path) -> Path:
    """Write the states of all stages as a checkpoint that the studio loads.

    Raises ValueError where a state is missing.
    """
    held = {name: read_state(state, name) for name in STAGES}
    missing = [name for name in PARTS if held[name] is None]
    if missing or not (state / "norm.pt").exists():
        raise ValueError(f"Nothing to export: train {', '.join(missing) or 'codes'} first.")
    if held["distilled"] and held["distilled"]["teacher"] != held["song"]["step"]:
        held["distilled"] = None
    norm = torch.load(state / "norm.pt")
    vae = engine_vae.oobleck(held["decoder"], held["encoder"], norm["mu"], norm["sd"])
    parts = {
        "vae": vae,
        **engine_song.trained_parts(held["distilled"] or held["song"], held["codes"]),
    }
    counts = engine_song.count_parameters(parts)
    folder.mkdir(parents=True, exist_ok=True)
    engine_song.write_checkpoint(parts, folder, card(counts, held))
    return folder


PARTS = {
    "decoder": ("vae",),
    "encoder": ("vae",),
    "codes": ("audio_tokenizer", "audio_token_detokenizer"),
    "song": ("text_encoder", "condition_encoder", "transformer"),
}


def card(counts: dict[str, int], held: dict[str, Any]) -> str:
    """Return the model card of an exported checkpoint."""
    rows = "\n".join(
        f"| {stage} | {', '.join(parts)} | {sum(counts[part] for part in parts) / 1e6:.2f} M "
        f"| {_trained(held[stage])} |"
        for stage, parts in PARTS.items()
    )
    if held["distilled"]:
        rows += f"\n| distilled | transformer | {counts['transformer'] / 1e6:.2f} M | {_trained(held['distilled'])} |"
    return f"""---
license: mit
library_name: diffusers
tags: [music, text-to-audio, preview]
---

# ACE Music Studio: built-in engine

Short instrumental pieces in {len(STYLES)} styles ({", ".join(STYLES)}),
in the layout of ACE-Step 1.5 and with its classes, {sum(counts.values()) / 1e6:.1f} M parameters in bfloat16.
The studio plays it until the real model is downloaded; it is not a substitute for it.

It was trained from nothing on music that `training/band_sounds.py` of this project computes. No recording, no text and
no weights of anybody else went into it. Its prompts are in English.

| stage | parts | parameters | steps | minutes |
|---|---|---|---|---|
{rows}

- It can: make a piece of 10 s to three minutes from a prompt, BPM, key, 3/4 or 4/4 and section tags; repaint, extend,
  cover; layer, extract and complete the tracks of its own kind of music.
- It cannot: sing, play lyrics, follow words that its captions never had, or sound like recorded instruments.
- `python -m training evaluate` measures it; with `--card` its figures follow below.

Licence: MIT, the project's own.
"""


def _trained(held: dict[str, Any] | None) -> str:
    """Return the steps and minutes of a stage's state as two cells, which are empty for a checkpoint's own part."""
    if not held or not math.isfinite(held["spent"]) or not held["step"]:
        return "- | -"
    return f"{held['step']:,} | {held['spent'] / 60:.1f}"


def draw_curve(folder: Path, name: str) -> Path | None:
    """Draw what a stage's log holds, one small plot for each figure; None where matplotlib or the log is missing."""
    log = folder / f"{name}.jsonl"
    try:
        import matplotlib
    except ImportError:
        return None
    if not log.exists():
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    names = [
        key
        for key in dict.fromkeys(key for line in lines for key in line)
        if key not in ("stage", "step", "seconds")
    ]
    figure, axes = pyplot.subplots(
        math.ceil(len(names) / 4), 4, figsize=(14, 2.6 * math.ceil(len(names) / 4))
    )
    for axis, key in zip(axes.flat, names, strict=False):
        points = [(line["seconds"] / 60, line[key]) for line in lines if key in line]
        axis.plot(*zip(*points, strict=True), marker=".")
        axis.set_title(f"{name}: {key}", fontsize=9)
    for axis in list(axes.flat)[len(names) :]:
        axis.remove()
    figure.supxlabel("minutes")
    figure.tight_layout()
    figure.savefig(folder / f"{name}.png", dpi=90)
    pyplot.close(figure)
    return folder / f"{name}.png"


def main() -> None:
    """Train, export, or both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = ", ".join(f"{name} {stage.minutes:g}" for name, stage in STAGES.items())
    parser.add_argument("--stage", choices=STAGES, help="default: all of them, in order")
    parser.add_argument("--minutes", type=float, help=f"of a stage in all (default: {defaults})")
    parser.add_argument(
        "--state", type=Path, default=Path("outputs/training"), help="folder of the state"
    )
    parser.add_argument("--threads", type=int, help="default: as many as torch chooses")
    parser.add_argument("--device", default="cpu", help='"cuda" for a GPU')
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes that compose new pieces for the song model, for a GPU (default: a pool of pieces)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="two steps of every stage on a few pieces: does it run?",
    )
    parser.add_argument(
        "--begin",
        type=Path,
        help="train a stage of this checkpoint on (default: song), and keep its other parts",
    )
    parser.add_argument("--export", type=Path, help="write the checkpoint here at the end")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # Background jobs of a shell ignore Ctrl-C, and kill sends the other one: both save the state.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)

    steps = SMOKE_STEPS if arguments.smoke else None
    stages = list(STAGES)
    if arguments.stage:
        stages = [arguments.stage]
    elif arguments.begin:
        stages = ["song"]
    if arguments.begin:
        begin(arguments.begin, arguments.state, arguments.smoke)
    try:
        for name in stages:
            minutes = arguments.minutes or STAGES[name].minutes
            held = read_state(arguments.state, name)
            if not held or share_of(held["step"], held["spent"], minutes, steps) < 1:
                Training(
                    name,
                    arguments.state,
                    minutes,
                    steps,
                    arguments.device,
                    arguments.smoke,
                    arguments.workers,
                ).run()
                draw_curve(arguments.state, name)
        if arguments.export:
            print(export(arguments.state, arguments.export))
    except ValueError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the state is saved. The same command resumes it.")


if __name__ == "__main__":
    main()
