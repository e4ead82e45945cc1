"""Train the preview engine on music that the band renders: python -m tools.train_preview --stage vae --minutes 9

Three stages, one after the other, with the real classes in a small shape (`preview_shape`): "vae" (sound to latents and
back), "codes" (latents to five codes a second and back), "song" (text encoder, condition encoder and transformer, by
flow matching on every task). A run goes on from the state that it finds, stops after its minutes and writes the state
again (`preview_state`), so that half an hour of a GPU can be had in pieces. The log is one JSON object a line.
`--export` writes the running mean of the weights as a checkpoint in the real layout; `--smoke` runs two steps of every
stage in the small shape and exports.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.preview_shape import SHAPES, STAGES

ENDING_SECONDS = 20
"""What writing the state takes at most; a run stops that much before its minutes are over."""


class Trainer:
    """The parts, the stage in training, and the state on disk.

    `half` computes in bfloat16. Of the options, `compile` compiles what a stage names, `log` is the file that a line is
    added to every `log_every` steps, and the state is written every `save_every` steps. Raises ValueError for a state
    that is not whole or of another shape.
    """

    def __init__(
        self, state: Path, shape: str = "full", seed: int = 0, device: str = "cpu", half: bool = False, **options: Any
    ):
        import torch

        from tools import preview_state
        from tools.preview_shape import build_parts

        self.folder, self.device, self.half = state, torch.device(device), half
        self.compile, self.log_every = options.get("compile", False), options.get("log_every", 50)
        self.save_every, self.log_file = options.get("save_every", 2_000), options.get("log")
        self.progress = preview_state.read_progress(state) or preview_state.Progress(shape, seed)
        if self.progress.shape != shape:
            raise ValueError(f"The state in {state} is of the shape {self.progress.shape}, not {shape}.")
        self.parts = {
            name: part.to(self.device) for name, part in build_parts(SHAPES[shape], self.progress.seed).items()
        }
        preview_state.read(state, self.parts, {}, preview_state.Average({}), None)

    def run(self, name: str, steps: int | None = None, until: Callable[[], bool] | None = None) -> None:
        """Train stage `name` for `steps` more steps, or until `until` says so; then write the state.

        Raises ValueError for a stage whose turn it is not.
        """
        import torch

        from tools import preview_state
        from tools.preview_steps import PLANS, STAGE_CLASSES

        self._check_turn(name)
        started = time.perf_counter()
        plan = PLANS[self.progress.shape][name]
        trained = {part: self.parts[part] for part in STAGES[name]}
        for part, module in self.parts.items():
            module.requires_grad_(part in trained).train(part in trained)
        parameters = [parameter for part in trained.values() for parameter in part.parameters()]
        optimizer = torch.optim.AdamW(parameters, plan.rate, betas=(0.9, 0.99), weight_decay=plan.decay, fused=True)
        average = preview_state.Average(trained, plan.average)
        finished = {part: self.parts[part] for stage in STAGES if stage != name for part in STAGES[stage]}
        finished = {part: module for part, module in finished.items() if self._was_trained(part)}
        preview_state.read(self.folder, finished, trained, average, optimizer)
        stage = STAGE_CLASSES[name](self.parts, plan, self.progress.seed, self.device, self.half)
        if self.compile:
            for module in stage.compiled():
                module.compile(dynamic=name == "song")
        first = step = self.progress.steps.get(name, 0)
        spent = self.progress.seconds.get(name, 0.0)

        def save() -> None:
            self.progress.steps[name] = step
            self.progress.seconds[name] = round(spent + time.perf_counter() - started, 1)
            preview_state.write(self.folder, self.progress, finished, trained, average, optimizer)
            preview_state.read(self.folder, finished, trained, average, optimizer)

        while (steps is None or step < first + steps) and not (until and step > first and until()):
            for group in optimizer.param_groups:
                group["lr"] = plan.rate * min(1.0, (step + 1) / plan.warmup)
            terms = self._terms(stage, step)
            loss = sum(terms.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            size = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            # A step whose gradient is not finite would poison the running mean; it is left out.
            if bool(size.isfinite()):
                optimizer.step()
                average.update(trained, step)
            step += 1
            if step % self.log_every == 0 or step == first + 1:
                self._log(name, step, loss, terms, size, spent + time.perf_counter() - started)
            if step % self.save_every == 0:
                save()
        # Written twice in one place the state would be rounded twice.
        if step % self.save_every:
            save()
        average.copy_to(trained)

    def export(self, folder: Path) -> Path:
        """Write the running means as a checkpoint that the studio loads."""
        from tools import preview_shape

        facts = {**preview_shape.facts_of(SHAPES[self.progress.shape], self.parts), **vars(self.progress)}
        # Fresh ones: those in use may be compiled and carry the training's attention.
        parts = preview_shape.build_parts(SHAPES[self.progress.shape], self.progress.seed)
        for name, part in parts.items():
            part.load_state_dict(self.parts[name].state_dict())
        return preview_shape.export(parts, folder, card(facts), facts)

    def _check_turn(self, name: str) -> None:
        """Raise ValueError where a stage before `name` has not been trained, or one after it has."""
        place = list(STAGES).index(name)
        missing = [stage for stage in list(STAGES)[:place] if not self.progress.steps.get(stage)]
        if missing:
            raise ValueError(f"Stage {name} comes after {' and '.join(missing)}, which has not been trained.")
        later = [stage for stage in list(STAGES)[place + 1 :] if self.progress.steps.get(stage)]
        if later:
            raise ValueError(f"Stage {name} is finished: {later[0]} was trained on it.")

    def _was_trained(self, part: str) -> bool:
        return any(part in names and self.progress.steps.get(stage) for stage, names in STAGES.items())

    def _terms(self, stage: Any, step: int) -> dict:
        """Return the terms of the loss; where compiling fails, say so and go on without it."""
        try:
            return stage.loss(step)
        except Exception as error:
            if not self.compile:
                raise
            self.compile = False
            for module in stage.compiled():
                module._compiled_call_impl = None
            print(f"Not compiled: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            return stage.loss(step)

    def _log(self, name: str, step: int, loss: Any, terms: dict, size: Any, seconds: float) -> None:
        told = {
            "stage": name,
            "step": step,
            "seconds": round(seconds, 1),
            "loss": round(loss.item(), 5),
            **{term: round(value.item(), 5) for term, value in terms.items()},
            "gradient": round(size.item(), 4),
        }
        self.progress.losses[name] = told["loss"]
        line = json.dumps(told)
        print(line, flush=True)
        if self.log_file:
            with Path(self.log_file).open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def card(facts: dict[str, Any]) -> str:
    """Return the model card of an exported checkpoint."""
    counts = facts["parameters"]
    rows = "\n".join(
        f"| {stage} | {', '.join(parts)} | {sum(counts[part] for part in parts) / 1e6:.2f} M "
        f"| {facts['steps'].get(stage, 0):,} | {facts['seconds'].get(stage, 0) / 60:.1f} "
        f"| {facts['losses'].get(stage, 'not trained')} |"
        for stage, parts in STAGES.items()
    )
    return f"""---
license: mit
library_name: diffusers
tags: [music, text-to-audio, preview]
---

# ACE Music Studio: preview engine

Short instrumental sketches in eight styles (lofi, house, techno, ambient, chiptune, rock, waltz, funk), in the layout
of ACE-Step 1.5 and with its classes, {sum(counts.values()) / 1e6:.1f} M parameters in bfloat16. It is what the studio
plays before the real model is there, and it is no substitute for it.

It was trained from nothing on music that `tools/render_band.py` of this project makes by arithmetic. No recording, no
text and no weights of anybody else went into it. The language of its prompts is English.

| stage | parts | parameters | steps | minutes | last loss |
|---|---|---|---|---|---|
{rows}

- It can: make a piece of 10 to 60 s from a prompt, BPM, key, 3/4 or 4/4 and section tags; repaint, extend, cover;
  layer, extract and complete the tracks of its own kind of music.
- It cannot: sing, play lyrics, follow words that its captions never had, or make the sound of recorded instruments.
- `tools/evaluate_preview.py` measures it; with `--card` its figures stand below.

Licence: MIT, the project's own.
"""


def main() -> None:
    """Train, export, or both; ends with a sentence where that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("outputs/preview-training"), help="folder of the state")
    parser.add_argument("--stage", choices=STAGES, help="default: the last one begun")
    parser.add_argument("--minutes", type=float, help="stop after these, the state written")
    parser.add_argument("--steps", type=int, help="stop after this many steps of this run")
    parser.add_argument("--shape", choices=SHAPES, default="full")
    parser.add_argument("--seed", type=int, default=0, help="of a training that begins")
    parser.add_argument("--device", default="", help="default: cuda where there is one")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 on a GPU")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--log", type=Path, help="file that a JSON line is added to every --log-every steps")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--export", type=Path, help="write the checkpoint here at the end")
    parser.add_argument("--smoke", action="store_true", help="two steps of every stage in the small shape, and export")
    arguments = parser.parse_args()
    started = time.perf_counter()
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    options = {
        "half": on_gpu and not arguments.float32,
        "compile": on_gpu and not arguments.no_compile,
        "log": arguments.log,
        "log_every": 1 if arguments.smoke else arguments.log_every,
    }
    try:
        trainer = Trainer(
            arguments.state, "small" if arguments.smoke else arguments.shape, arguments.seed, device, **options
        )
        if arguments.smoke:
            for stage in STAGES:
                trainer.run(stage, steps=2)
            print(trainer.export(arguments.export or arguments.state.with_name(f"{arguments.state.name}-checkpoint")))
            return
        begun = [stage for stage in STAGES if trainer.progress.steps.get(stage)]
        limit = (
            None if arguments.minutes is None else arguments.minutes * 60 - min(ENDING_SECONDS, arguments.minutes * 6)
        )
        if limit is not None or arguments.steps is not None:
            over = None if limit is None else lambda: time.perf_counter() - started > limit
            trainer.run(arguments.stage or (begun or ["vae"])[-1], arguments.steps, over)
        elif not arguments.export:
            parser.error("say how long to train (--minutes or --steps), or where to --export to")
        if arguments.export:
            print(trainer.export(arguments.export))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
