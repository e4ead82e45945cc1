"""The built-in engine in fewer steps: a copy of the song model learns to take one step where the model takes several.

Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) in one go: the teacher is the trained song model under
the studio's guidance, two of its steps make one of the student's, and the student is asked once, without guidance.
Words and references are read as before; only the transformer learns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance

from song_loop import APG_THRESHOLD
from training.engine_parts import build_parts, mask_attention, velocity_of
from training.engine_song import SongStage, context_of, noise_like

STEPS = 8
"""How many steps the student takes from noise to a song."""
TEACHER_STEPS = 2
"""How many steps of the teacher make one of the student's."""
GUIDANCE = 7.0
FIRST = 0.35
"""The share of examples that are the first step, from pure noise, which plans the song."""


class DistilledStage(SongStage):
    """A copy of the song model that needs `STEPS` steps and no guidance."""

    name = "distilled"
    minutes = 60.0
    rate = 0.005
    adam_rate = 5e-4
    WORDS_SHARE = 0.0
    FRAMES: ClassVar[dict[str, int]] = {"cpu": 2250, "cuda": 64_000}

    def __init__(
        self,
        device: torch.device,
        smoke: bool,
        saved: dict[str, Any] | None,
        folder: Path,
        workers: int = 0,
    ):
        song = torch.load(folder / "song.pt", map_location="cpu", weights_only=False)
        # What is shipped are the running means of the weights.
        mean = {f"parts.{name}": value for name, value in song["mean"].items()}
        begun = {**song, "live": {**song["live"], **mean}, "begun": True}
        super().__init__(device, smoke, saved or begun, folder, workers)
        self.facts["teacher"] = song["step"]
        self.teacher = build_parts(song["layers"])["transformer"].requires_grad_(False).to(device)
        parts = {name.removeprefix("transformer."): value for name, value in song["mean"].items()}
        self.teacher.load_state_dict(
            {name: parts[name] for name, _ in self.teacher.named_parameters()}, strict=False
        )
        mask_attention(self.teacher, self.shared)
        self.trained = {
            name: p for name, p in self.trained.items() if name.startswith("parts.transformer.")
        }

    def loss(self, step: int, share: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the squared distance between one step of the student and those of the teacher, as velocities."""
        rng = np.random.default_rng([17, step])
        batch = self._batch(step, "all")
        target = batch.target
        count = len(target)
        context = context_of(batch)
        with torch.no_grad():
            states, real = self.conditioner(batch.tokens, batch.references, batch.which)
        noise = noise_like(target, step)
        number = np.where(rng.random(count) < FIRST, 0, rng.integers(STEPS, size=count))
        first = torch.from_numpy(1 - number / STEPS).float().to(self.device)
        last = first - 1 / STEPS
        here = first[:, None, None]
        latents = here * noise + (1 - here) * target
        wanted = self._taught(latents, context, states, real, first, last)
        self._hide(~real)
        velocity = velocity_of(self.module["parts"]["transformer"], latents, first, states, context)
        error = (velocity - wanted).square().mean((1, 2))
        is_first = torch.from_numpy(number == 0).to(self.device)
        figures = {"distance": error.mean(), "first": (error * is_first).sum() / is_first.sum()}
        return error.mean(), {name: value.detach() for name, value in figures.items()}

    @torch.no_grad()
    def _taught(
        self,
        latents: torch.Tensor,
        context: torch.Tensor,
        states: torch.Tensor,
        real: torch.Tensor,
        first: torch.Tensor,
        last: torch.Tensor,
    ) -> torch.Tensor:
        """Return the constant velocity that leads from `latents` to where the guided teacher arrives at `last`."""
        null = (
            self.module["parts"]["condition_encoder"]
            .null_condition_emb.to(states.dtype)
            .expand_as(states)
        )
        both = torch.cat([states, null])
        self._hide(~torch.cat([real, torch.ones_like(real)]))
        now = latents
        time = first
        for number in range(1, TEACHER_STEPS + 1):
            velocity = velocity_of(
                self.teacher, now.repeat(2, 1, 1), time.repeat(2), both, context.repeat(2, 1, 1)
            )
            with_words, without = velocity.chunk(2)
            guided = normalized_guidance(
                pred_cond=with_words,
                pred_uncond=without,
                guidance_scale=GUIDANCE - 1.0,
                momentum_buffer=None,
                eta=0.0,
                norm_threshold=APG_THRESHOLD,
                use_original_formulation=True,
                norm_dim=(1,),
            )
            following = first + (last - first) * number / TEACHER_STEPS
            now = now + (following - time)[:, None, None] * guided
            time = following
        return (now - latents) / (last - first)[:, None, None]
