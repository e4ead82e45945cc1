"""Carries the memory plan out: which model is on the device while a job plans, sings or writes.

memory.py decides from numbers; here are the numbers, and the models that come and go. Everything is called by the job
that has its turn. On ZeroGPU each call has a whole card and everything stays where it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import bootstrap
import checkpoints
import memory
import models
from estimate import Work, work_of
from events import StudioError
from params import SongRequest

if TYPE_CHECKING:
    from backend import Backend
    from writers import Slot

# What the status tells before there was a job.
USUAL = Work("generate", duration=60.0, takes=1, guidance=7.0)


class Placing:
    """The memory plan of one studio: `plan` is the one in force, "" before the first job."""

    def __init__(self, studio: Backend):
        self._studio = studio
        self.plan = ""
        self._limit = ""
        self._fell = False
        self._away = False
        self._sizes = memory.Sizes(0, 0, 0)
        self._song: memory.Song | None = None

    def text(self) -> str:
        """Return the plan in words; before the first job the one that a usual song would get."""
        return memory.TEXTS[self.plan or self._choice(USUAL, "auto").plan]

    @staticmethod
    def plans(device: models.Device | None) -> tuple[str, ...]:
        """Return the plans that may be asked for on `device`; all of them before it is known."""
        if bootstrap.on_zerogpu():
            return ("resident",)
        return memory.LADDERS[device.kind] if device else tuple(memory.TEXTS)

    def begin(self, request: Any, source: float, at_most: str | None = None) -> str:
        """Choose and take the plan for `request`, whose source has `source` seconds; returns its name.

        `at_most` is the best plan that may still be taken. Raises StudioError where nothing fits.
        """
        self._fell = at_most is not None
        forced = getattr(getattr(request, "options", None), "memory_plan", "auto")
        if bootstrap.on_zerogpu():
            if forced not in ("auto", "resident"):
                message = f"Memory plan must be auto or resident on ZeroGPU, not {forced}."
                raise StudioError("unsupported", message, "options.memory_plan")
            self.plan = "resident"
            return self.plan
        work = work_of(request, turbo=checkpoints.is_turbo(self._studio.weights), source=source)
        choice = self._choice(work if isinstance(request, SongRequest) else None, forced)
        if choice.problem and not at_most:
            raise StudioError.of(choice.problem)
        limit = at_most or (self._limit if forced == "auto" else "")
        self._take(memory.not_above(self._studio.device().kind, choice.plan, limit))
        return self.plan

    def lower(self) -> str | None:
        """Return the next plan below the one in force, to which later jobs keep as well; None where there is none."""
        lower = memory.lower(self._studio.device().kind, self.plan)
        if lower:
            self._limit = lower
        return lower

    def may_fall(self) -> bool:
        """Tell whether a lack of memory in this job leads to a second try by a lower plan."""
        return not self._fell and memory.lower(self._studio.device().kind, self.plan) is not None

    def for_planning(self) -> None:
        """Make room for the planner beside the song model, or in its place where both do not fit."""
        if not self._moves():
            return
        self._studio.lyrics.let_go()
        kind = self._studio.device().kind
        room = models.room_for_models(kind)
        both = self._sizes.pipeline + self._sizes.planner + memory.planner_bytes(self._song)
        # Elsewhere the song model would have to be read again for every song.
        if self.plan == "swap" and kind == "cuda" and room is not None and both > room:
            self._send_away()

    def for_song(self) -> None:
        """Give the device to the song model alone."""
        if self._moves():
            self._studio.lyrics.let_go()
            self._studio.planner.let_go()
        self._bring_back()

    def for_words(self, slot: Slot) -> None:
        """Give the device to the language model of `slot` alone."""
        if not self._moves():
            return
        for other in (self._studio.planner, self._studio.lyrics):
            if other is not slot:
                other.let_go()
        self._send_away()

    # --- what comes and goes ----------------------------------------------------------------------------------

    def _moves(self) -> bool:
        return self.plan not in ("", "resident")

    def _take(self, plan: str) -> None:
        """Take `plan`; a pipeline that was built for other places or numbers is let go and built again at its use."""
        alike = ("", "resident", "swap")
        if plan != self.plan and not (plan in alike and self.plan in alike):
            self._studio.let_go_of_pipeline()
            self._away = False
        self.plan = plan

    def _send_away(self) -> None:
        """Take the song model off the device: to the machine's own memory, or, where that is the same, altogether."""
        studio = self._studio
        if not studio.loaded or self._away:
            return
        if studio.device().kind != "cuda":
            studio.let_go_of_pipeline()
        elif self.plan == "swap":
            studio.pipeline().to("cpu")
            self._away = True
            models.free_memory()
        else:
            models.leave(studio.pipeline())

    def _bring_back(self) -> None:
        if self._away:
            self._away = False
            self._studio.pipeline().to(self._studio.device().kind)

    # --- numbers ----------------------------------------------------------------------------------------------

    def _choice(self, work: Work | None, forced: str) -> memory.Choice:
        studio = self._studio
        device, weights = studio.device(), studio.weights
        if bootstrap.on_zerogpu():
            return memory.Choice("resident", 0)
        sizes = models.sizes_of(weights, device)
        # A planner is computed in the device's numbers; its weights are in bfloat16, the built-in one's in float32.
        planner = studio.planner.weights
        factor = 2 if device.dtype == "float32" and planner.source != "preview" else 1
        self._sizes = memory.Sizes(
            sizes.pipeline,
            sizes.transformer,
            sizes.largest,
            planner=factor * _bytes(planner.folder),
            writer=_bytes(studio.lyrics.weights.folder),
        )
        self._song = None
        if work:
            self._song = models.song_of(weights, device, work.duration, work.takes, work.guidance > 1)
        return memory.choose(device.kind, models.room_for_models(device.kind), self._sizes, self._song, forced)


def _bytes(folder: Path | None) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else 0
