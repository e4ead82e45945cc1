"""A dress rehearsal at full size: python -m tools.full_size FOLDER

Writes a checkpoint of the XL model's real shape into FOLDER, with random bfloat16 weights in shards as on the hub
(11.5 GB; --planner adds 3.4 GB, --songwriter 15.2 GB), and makes a song, a cover, an extension and an edit with it by
each memory plan of this machine. Prints seconds and peak memory of each stage. What sounds is noise; sizes, places and
numbers are the real ones. A folder that is written already is used again.

--layers 2 keeps all widths and takes two layers of each stack: a size for CI (2 GB on disk).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bootstrap
import model_memory
import models
from model_hub import INDEX, PARTS
from tools import random_models
from training import small_models

if TYPE_CHECKING:
    import torch
    from torch import nn

    from backend import Backend

SHARD = "5GB"
AUDIO_CODES = 65_535
WORDS = {
    "prompt": "warm lofi piano with soft drums",
    "lyrics": "[Verse]\nslow light on the window",
    "seed": 7,
}
KNOWN = {"bpm": 90, "key": "A minor", "time_signature": "4"}


def main() -> None:
    """Write what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--layers", type=int, default=0, help="layers of each stack; all of them by default"
    )
    parser.add_argument(
        "--planner", action="store_true", help="with a planner of 1.7 billion parameters"
    )
    parser.add_argument(
        "--songwriter", action="store_true", help="with a songwriter of 7 billion parameters"
    )
    parser.add_argument(
        "--two",
        action="store_true",
        help="with a second song model, whose transformer alone is its own (8.3 GB)",
    )
    parser.add_argument(
        "--plans",
        nargs="+",
        choices=model_memory.TEXTS,
        help="memory plans; all of this device by default",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the songs (60)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--write", action="store_true", help="write the weights, and run nothing")
    arguments = parser.parse_args()
    places = write(arguments.folder, arguments.layers, arguments.planner, arguments.songwriter)
    second = None
    if arguments.two:
        second = write_second(places["ACE_STUDIO_MODEL"])
    if not arguments.write:
        rehearse(places, second, arguments.plans, arguments.seconds, arguments.steps)


# --- the weights --------------------------------------------------------------------------------------------------


def write(folder: Path, layers: int, planner: bool, songwriter: bool) -> dict[str, Path]:
    """Write what is not there yet; returns the folder of each model by the variable that names it."""
    wanted = {"ACE_STUDIO_MODEL": write_song_model}
    wanted |= {"ACE_STUDIO_PLANNER": write_planner} if planner else {}
    wanted |= {"ACE_STUDIO_LYRICS": write_songwriter} if songwriter else {}
    places = {}
    for variable, write_one in wanted.items():
        name = variable.rpartition("_")[2].lower()
        place = folder / (f"{name}-{layers}-layers" if layers else name)
        if not place.exists():
            aside = place.with_name(f".{place.name}")
            shutil.rmtree(aside, ignore_errors=True)
            started = time.monotonic()
            write_one(aside, layers)
            aside.rename(place)
            size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            print(
                f"{place}: {size / model_memory.GB:.1f} GB written in {time.monotonic() - started:.0f} s",
                flush=True,
            )
        places[variable] = place.absolute()
    return places


def shapes(layers: int = 0) -> dict[str, Callable[[], nn.Module]]:
    """Return what builds each part of the XL model; `layers` of each stack, 0 is all."""
    from diffusers import AceStepTransformer1DModel, AutoencoderOobleck
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )
    from transformers import Qwen3Config, Qwen3Model

    def most(number: int) -> int:
        return min(number, layers or number)

    return {
        "transformer": lambda: AceStepTransformer1DModel(
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=most(32),
            num_attention_heads=32,
            num_key_value_heads=8,
            encoder_hidden_size=2048,
            model_version="sft",
        ),
        "condition_encoder": lambda: AceStepConditionEncoder(
            num_lyric_encoder_hidden_layers=most(8), num_timbre_encoder_hidden_layers=most(4)
        ),
        "audio_tokenizer": AceStepAudioTokenizer,
        "audio_token_detokenizer": AceStepAudioTokenDetokenizer,
        "vae": lambda: AutoencoderOobleck(
            downsampling_ratios=[2, 4, 4, 6, 10], sampling_rate=48_000
        ),
        "text_encoder": lambda: Qwen3Model(
            Qwen3Config(
                vocab_size=151_669,
                hidden_size=1024,
                intermediate_size=3072,
                num_hidden_layers=most(28),
                num_attention_heads=16,
                num_key_value_heads=8,
                head_dim=128,
                max_position_embeddings=32_768,
                rope_theta=1_000_000.0,
                tie_word_embeddings=True,
            )
        ),
    }


def write_song_model(folder: Path, layers: int) -> None:
    """Write the parts one after the other, so that no more than one is in memory, and the index that lists them."""
    import diffusers
    import torch

    models.quiet_libraries()
    generator = torch.Generator().manual_seed(0)
    for name, build in shapes(layers).items():
        part = filled(build, generator)
        if name == "vae":
            level_off(part)
        if name == "condition_encoder":
            part.silence_latent = torch.randn((1, 15_000, 64), generator=generator).to(
                torch.bfloat16
            )
        part.save_pretrained(folder / name, max_shard_size=SHARD)
        del part
    small_models.make_tokenizer().save_pretrained(folder / "tokenizer")
    diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0).save_pretrained(
        folder / "scheduler"
    )
    classes = {
        "transformer": ("diffusers", "AceStepTransformer1DModel"),
        "vae": ("diffusers", "AutoencoderOobleck"),
        "text_encoder": ("transformers", "Qwen3Model"),
        "tokenizer": ("transformers", "Qwen2Tokenizer"),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "condition_encoder": ("ace_step", "AceStepConditionEncoder"),
        "audio_tokenizer": ("ace_step", "AceStepAudioTokenizer"),
        "audio_token_detokenizer": ("ace_step", "AceStepAudioTokenDetokenizer"),
    }
    index = {"_class_name": "AceStepPipeline", "_diffusers_version": diffusers.__version__}
    (folder / INDEX).write_text(
        json.dumps({**index, **{part: classes[part] for part in PARTS}}, indent=2)
    )


def write_second(first: Path) -> Path:
    """Write a song model beside the first one, with links to its parts and a transformer of its own; return it."""
    import torch
    from diffusers import AceStepTransformer1DModel

    folder = first.with_name(f"{first.name}-second").absolute()
    if folder.exists():
        return folder
    aside = first.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for path in first.absolute().iterdir():
        if path.name != "transformer":
            (aside / path.name).symlink_to(path)
    config = AceStepTransformer1DModel.load_config(first / "transformer")
    generator = torch.Generator().manual_seed(1)
    part = filled(lambda: AceStepTransformer1DModel.from_config(config), generator)
    part.save_pretrained(aside / "transformer", max_shard_size=SHARD)
    return aside.rename(folder)


def write_planner(folder: Path, layers: int) -> None:
    """Write a planner of 1.7 billion parameters with all audio codes."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=151_669 + AUDIO_CODES,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=min(28, layers or 28),
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        rope_theta=1_000_000.0,
        tie_word_embeddings=True,
    )
    codes = (f"<|audio_code_{number}|>" for number in range(AUDIO_CODES))
    _write_language_model(
        folder, lambda: Qwen3ForCausalLM(config), "qwen3", (*small_models.THINK, *codes)
    )


def write_songwriter(folder: Path, layers: int) -> None:
    """Write a songwriter of 7 billion parameters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=min(28, layers or 28),
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        rope_theta=1_000_000.0,
        tie_word_embeddings=False,
    )
    _write_language_model(folder, lambda: Qwen2ForCausalLM(config), "qwen2", ())


def _write_language_model(
    folder: Path,
    build: Callable[[], nn.Module],
    family: small_models.Family,
    marks: tuple[str, ...],
) -> None:
    import torch

    tokenizer = small_models.make_tokenizer(family, marks)
    model = filled(build, torch.Generator().manual_seed(0))
    if model.config.tie_word_embeddings:
        model.tie_weights()
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)


def filled(build: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Build a model in bfloat16 and give each parameter seeded values that keep signals in bounds."""
    import torch

    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = build()
    finally:
        torch.set_default_dtype(usual)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(random_models.draw(model, name, parameter, generator))
    return model


def level_off(vae: nn.Module) -> None:
    """Scale the last layer so that noise decodes to a usual level: a silent take would count as a failure."""
    import torch

    with torch.no_grad():
        loud = (
            vae.float()
            .decode(torch.randn((1, 64, 8), generator=torch.Generator().manual_seed(0)))
            .sample.std()
        )
        vae.decoder.conv2.weight_g *= 0.1 / float(loud)
    vae.to(torch.bfloat16)


# --- the rehearsal ------------------------------------------------------------------------------------------------


def rehearse(
    places: dict[str, Path],
    second: Path | None,
    plans: Sequence[str] | None,
    seconds: float,
    steps: int,
) -> None:
    """Run every stage by every plan and print a row for each; a failure is reported, and the rest still runs."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"ACE_STUDIO_PLANNER": "off", "ACE_STUDIO_LYRICS": "off", "ACE_STUDIO_OUTPUT": folder}
        os.environ.update({**own, **{name: str(place) for name, place in places.items()}})
        import backend
        from tools.bench import write_source

        studio = backend.get_backend()
        device = studio.models.device()
        source = str(write_source(Path(folder), seconds))
        print(f"{device.reason} {seconds:g} s of music, {steps} steps.\n")
        print(f"| memory plan | stage | seconds | peak GB on {device.kind} | of which |")
        print("|---|---|---|---|---|")
        for plan in plans or model_memory.plans_on(device):
            for stage, mode, values in _requests(studio, source, second, seconds, steps):
                took, peak, notes = measured(studio, plan, mode, values)
                print(
                    f"| {plan} | {stage} | {took:.1f} | {peak / model_memory.GB:.2f} | {notes} |",
                    flush=True,
                )


def _requests(
    studio: Backend, source: str, second: Path | None, seconds: float, steps: int
) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """Yield each stage with its mode and values; loading alone has none."""
    given = {**WORDS, "options": {"steps": steps}}
    unplanned = {**given, "options": {"steps": steps, "plan": False}}
    yield "load", "generate", None
    yield "song", "generate", {**unplanned, "duration": seconds}
    if studio.models.planner.weights.folder:
        yield "planned song", "generate", {**given, **KNOWN, "duration": seconds}
    if second:
        for name, model in (("other model", str(second)), ("first model again", "")):
            options = {**unplanned["options"], "model": model}
            yield name, "generate", {**given, "duration": seconds, "options": options}
    yield "cover", "cover", {**given, "source": source}
    yield "extend", "extend", {**given, "source": source, "after": 10}
    yield "edit", "edit", {**given, "source": source, "start": 2, "end": 6}
    if studio.models.lyrics.weights.folder:
        yield "lyrics", "lyrics", {"brief": "rain", "seed": 7, "options": {"max_tokens": 64}}


def measured(
    studio: Backend, plan: str, mode: str, values: dict[str, Any] | None
) -> tuple[float, int, str]:
    """Return seconds, peak bytes and the record's own seconds of one stage, or why it failed."""
    from events import Done
    from params import parse_request

    forget_peak()
    started = time.monotonic()
    notes = ""
    if values is None:
        request = parse_request(mode, {**WORDS, "options": {"memory_plan": plan}})
        studio.placing.begin(request, studio.settle(request), 0.0)
        studio.models.pipeline()
        return time.monotonic() - started, peak_bytes(), notes
    options = dict(values["options"])
    if mode != "lyrics":
        options["memory_plan"] = plan
    *_, last = studio.stream(parse_request(mode, {**values, "options": options}))
    if isinstance(last, Done):
        seconds = last.record["seconds"]
        notes = ", ".join(f"{name} {length:.1f}" for name, length in seconds.items())
        planned = last.record.get("plan") or {}
        if "reason" in planned and options.get("plan", True):
            notes += f"; not planned: {planned['reason']}"
    else:
        notes = last.problem.text()
    return time.monotonic() - started, peak_bytes(), notes


def forget_peak() -> None:
    """Reset the peak of memory use, if the system allows that."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform.startswith("linux"):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the largest use of the card's memory, else of this process's, since `forget_peak` (macOS: ever)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    if sys.platform.startswith("linux"):
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    bootstrap.bootstrap()
    main()
