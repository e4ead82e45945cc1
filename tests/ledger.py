"""A pretend device that adds up every model on it and the counted working memory, at the XL models' real sizes.

The plans, the slots, the retry and the order of a job's stages are the studio's own. Models are stand-ins without
arithmetic: they know their bytes and where they lie. What a job computes is scripted: which part works, and on how much
memory. `Ledger.used` is the most that ever lay on the device during the latest job, models that were given up but are
still referenced included.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import audio
import gpu
import jobs
import lora_apply
import model_memory
import model_offload
import model_parts
import models
import modes
import planner
import record
import song_align
import song_codec
import song_conditions
from events import Outcome, Progress, StudioError
from gpu_job import Job, SongJob
from model_hub import INDEX
from model_memory import GB, SONGWRITER_WORK_BYTES, SPARE_BYTES
from model_weights import OPTIONAL_PARTS, Weights
from params import SongRequest, model_of, parse_request, settle
from record import Ran

DTYPES = {
    "cuda": ("bfloat16", "bfloat16", "bfloat16"),
    "mps": ("bfloat16", "bfloat16", "float32"),
    "cpu": ("bfloat16", "bfloat16", "float32"),
    # one that is slow in bfloat16, and short of memory: weights are widened as they are used
    "cpu, widening": ("float32", "bfloat16", "float32"),
    # a card without bfloat16, such as a T4, and an older macOS
    "cuda, float16": ("float32", "float16", "float32"),
    "mps, float32": ("float32", "float32", "float32"),
    "cpu, float32": ("float32", "float32", "float32"),
}
# The bytes of the XL transformer in 8 bits beyond one for each number (test_memory_plans.py adds them up).
SCALES_AND_WIDE = {"bfloat16": 4_728_384, "float32": 11_574_976}
PLANNER_GB = 3.71
SONGWRITER_GB = 15.23
SECONDS = 60.0
STEPS = 3


NOTHING = models.Given()


class Part(torch.nn.Module):
    """A part of a model: its bytes, and where they are."""

    def __init__(self, ledger: Ledger, size: int, place: str):
        super().__init__()
        self.ledger = ledger
        self.size = size
        self.place = place
        ledger.parts.add(self)

    def to(self, place: Any) -> Part:
        self.place = torch.device(place).type
        if self.place == self.ledger.device:
            self.ledger.look(0)
        return self

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        return iter([SimpleNamespace(nbytes=self.size, device=torch.device(self.place))])

    def forward(self, work: int) -> None:
        assert self.place == self.ledger.device, "a part works that is not on the device"
        self.ledger.look(work)


class Pipe:
    """The song model in parts, as `models.build_pipeline` leaves it for a layout."""

    def __init__(
        self, ledger: Ledger, weights: Weights, layout: models.Layout, given: models.Given
    ):
        device = ledger.studio.models.device()
        sizes = ledger.part_bytes(device)
        if layout.eight_bits:
            sizes["transformer"] = int(model_memory.XL_PARTS_GB["transformer"] * GB) // 2
            sizes["transformer"] += SCALES_AND_WIDE[device.dtype]
        self.loras: list[Part] = []
        self.components = {
            name: given.parts.get(name) or Part(ledger, size, "cpu") for name, size in sizes.items()
        }
        for name, part in self.components.items():
            setattr(self, name, part)
        if given.offload is not None:
            given.offload.take(self)
        elif layout.in_parts:
            model_offload.Offload(self, device.kind)
        else:
            self.to(device.kind)

    def to(self, place: str) -> None:
        for part in self.components.values():
            part.to(place)


class Ledger:
    """A studio on a device `kind` with `room` bytes; `run` does one job after the other on it."""

    def __init__(self, name: str, room: int | None, folder: Path, patch: pytest.MonkeyPatch):
        kind = name.partition(",")[0]
        self.device = kind
        self.room = room
        self.machine = 64 * GB
        self.folder = folder
        self.parts: weakref.WeakSet[Part] = weakref.WeakSet()
        self.used = 0
        self.fault: type[Exception] | None = None
        self._make_files(folder)
        patch.setattr(
            models, "pick_device", lambda weights: models.Device(kind, *DTYPES[name], "a test")
        )
        patch.setattr(models, "free_memory", gc.collect)
        patch.setattr(
            models,
            "build_pipeline",
            lambda weights, device, layout, given=NOTHING: Pipe(self, weights, layout, given),
        )
        # The three checkpoints lie beside each other; what is equal is a link.
        patch.setattr(model_parts, "content", lambda folder: str(folder.resolve()))
        patch.setattr(models, "find_model", lambda name, own: self.weights_called(name))
        patch.setattr(models, "available_memory", lambda: self.machine - self.waiting())
        patch.setattr(model_memory, "room_for_models", lambda kind: self.room)
        patch.setattr(model_memory, "free_room", lambda kind: self.room)
        patch.setattr(
            model_memory,
            "plans_on",
            lambda device, distrusted=(): (*model_memory.LADDERS[kind], "fast8"),
        )
        self._script(patch)
        loaded = models.Models(self._slot(folder / "planner"), self._slot(folder / "songwriter"))
        loaded.weights = weights_of(folder)
        self.studio = SimpleNamespace(models=loaded, placing=model_memory.Placing(loaded))

    def part_bytes(self, device: models.Device) -> dict[str, int]:
        factors = {
            name: 2 if numbers == "float32" else 1
            for name, numbers in (("vae", device.vae_dtype), ("other", device.storage_dtype))
        }
        return {
            name: int(size * GB) * factors.get(name, factors["other"])
            for name, size in model_memory.XL_PARTS_GB.items()
        }

    def waiting(self) -> int:
        """Return the bytes that wait in the machine's memory; a device that shares it has all of them."""
        return sum(part.size for part in self.parts if part.place != self.device)

    def weights_called(self, name: str) -> Weights:
        """Return the studio's own model, or another one: its transformer, base's VAE too, and turbo without codes."""
        if name in ("", "sft"):
            return weights_of(self.folder)
        place = self.folder / name
        if not place.exists():
            place.mkdir()
            own = ("transformer", "vae") if name == "base" else ("transformer",)
            for part, size in model_memory.XL_PARTS_GB.items():
                if part in own:
                    write_file(place / part, size)
                elif name != "turbo" or part not in OPTIONAL_PARTS:
                    (place / part).symlink_to(self.folder / part)
            if name == "turbo":
                (place / INDEX).write_text("{}")
        return weights_of(place)

    def look(self, work: int) -> None:
        """Note what lies on the device now, with `work` bytes on top."""
        lying = sum(part.size for part in self.parts if part.place == self.device)
        self.used = max(self.used, lying + work)

    def fail(self) -> None:
        """Raise the job's fault, once. What is used after that counts for the plan that follows."""
        fault = self.fault
        self.fault = None
        assert self.used <= self.studio.placing.choice.need
        self.used = 0
        raise fault(
            "as the test wants it"
        )  # made here: a traceback keeps the models of its frames alive

    def run(
        self,
        mode: str,
        events: int | None = None,
        fault: type[Exception] | None = None,
        loras: dict[str, int] | None = None,
        **values: Any,
    ) -> Any:
        """Do a job; stop it after so many `events`, or let the transformer fail once.

        `loras` are the numbers of those that it asks for, by hash.

        Returns its `Choice`; one with a problem if the job was refused.
        """
        self.used = 0
        self.fault = fault
        request = parse_request(mode, {**WORDS[mode], **values})
        kind = model_of(request) or "sft"
        seeds = (1,) * values.get("takes", 1)
        specs = tuple(lora_of(*each) for each in (loras or {}).items())
        job = Job(request, seeds, (), "nowhere", {"source": ""}, specs)
        if isinstance(request, SongRequest):
            job = SongJob(**vars(job) | {"settings": settle(request, kind)})
        work = gpu._with_fallback(self.studio, job)
        with contextlib.closing(work), contextlib.suppress(RuntimeError):
            try:
                for number, _ in enumerate(work):
                    if number == events:
                        break
            except StudioError as error:
                return model_memory.Choice("", 0, problem=error.problem)
        return self.studio.placing.choice

    def _slot(self, folder: Path) -> Any:
        size = model_memory.bytes_in(folder)

        def build(weights: Weights) -> Part:
            device = self.studio.models.device()
            taken = size
            if folder.name == "planner" and models.planner_storage(device) == "float32":
                taken *= 2
            elif folder.name == "planner" and models.planner_dtype(device) == "float32":
                taken += 4 * model_offload.MOST_WIDENED
            part = Part(self, taken, "cpu")
            part.model_id = folder.name
            part.weights = weights
            part.model = SimpleNamespace(note="")
            return part.to(self.device)

        return lambda device: models.Slot(folder.name, lambda: weights_of(folder), build, None, "")

    def _make_files(self, folder: Path) -> None:
        """Write files of the real sizes without any bytes in them."""
        sizes = {**model_memory.XL_PARTS_GB, "planner": PLANNER_GB, "songwriter": SONGWRITER_GB}
        for name, size in sizes.items():
            write_file(folder / name, size)

    def _script(self, patch: pytest.MonkeyPatch) -> None:
        """Say which part works when: what the modes, the planner and the songwriter do with real models."""

        def bytes_of() -> tuple[int, int, int]:
            song = self.studio.placing.use.song
            loop = model_memory.song_bytes(song) + SPARE_BYTES if song else 0
            coding = model_memory.coding_bytes(song) + SPARE_BYTES if song else 0
            return loop, coding, model_memory.planner_bytes(song)

        def song(pipe: Pipe, job: SongJob, plan: Any, *_: Any) -> Iterator[Any]:
            loop, coding, _ = bytes_of()
            if hasattr(job.request, "source"):
                pipe.vae(coding)
            pipe.text_encoder(0)
            pipe.condition_encoder(0)
            for _ in range(STEPS):
                yield Progress("steps")
                pipe.transformer(loop)
                if self.fault:
                    self.fail()
            pipe.vae(coding)
            yield Outcome(Ran(seconds={}))

        def reconciled(pipe: Pipe, wanted: Any) -> list[Any]:
            device = self.studio.models.device()
            number_bytes = 4 if device.dtype == "float32" else 2
            loaded = []
            for spec in wanted:  # beside those that act until now
                part = Part(self, spec.info.numbers * number_bytes, "cpu")
                loaded.append(part.to(self.device))
            pipe.loras = loaded
            return []

        def planned(model: Part, *_: Any) -> Iterator[Any]:
            _, _, planning = bytes_of()
            model(planning)
            yield Progress("planning")
            yield SimpleNamespace(entry=lambda *_: {}, metadata={"language": "en"})

        def written(model: Part, *_: Any) -> Iterator[Any]:
            model(SONGWRITER_WORK_BYTES)
            yield SimpleNamespace(text="", end="stop", tokens=1)

        def encoded(pipe: Pipe, samples: Any, stage: str) -> Iterator[Any]:
            loop, coding, _ = bytes_of()
            pipe.vae(coding)
            yield Progress(stage)
            if (
                stage == "preparing"
            ):  # timed lyrics: the transformer listens, and is the last to work
                pipe.transformer(loop)
                raise RuntimeError("enough")

        patch.setattr(modes, "run", song)
        patch.setattr(
            jobs, "source_seconds", lambda job: SECONDS if hasattr(job.request, "source") else 0.0
        )
        patch.setattr(lora_apply, "reconcile", reconciled)
        patch.setattr(record, "library_versions", dict)
        for name in ("plan", "inspire", "polish", "describe"):
            patch.setattr(planner, name, planned)
        patch.setattr(Part, "write", written, raising=False)
        patch.setattr(song_codec, "encode", encoded)
        patch.setattr(song_conditions, "has_audio_codes", lambda pipe: True)
        patch.setattr(song_conditions, "audio_codes", lambda pipe, clean: [])
        patch.setattr(audio, "read_wav", lambda path: None)
        patch.setattr(song_align, "heads_of", lambda weights: {1: (0,)})


def lora_of(name: str, numbers: int) -> Any:
    return SimpleNamespace(info=SimpleNamespace(sha256=name, numbers=numbers, name=name, note=""))


def write_file(folder: Path, size_gb: float) -> None:
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(int(size_gb * GB))


def weights_of(folder: Path) -> Weights:
    return Weights(folder.name, folder, "variable", "", "xl", None, folder.name)


WORDS: dict[str, dict[str, Any]] = {
    "generate": {"prompt": "calm piano", "duration": SECONDS},
    "cover": {"prompt": "calm piano", "source": "/source.wav"},
    "edit": {"prompt": "calm piano", "source": "/source.wav", "start": 5, "end": 20},
    "align": {"source": "/source.wav", "lyrics": "a line", "prompt": "calm piano"},
    "describe": {"source": "/source.wav"},
    "inspire": {"idea": "rain"},
    "lyrics": {"brief": "rain"},
}
