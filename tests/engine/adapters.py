"""LoRAs for the tiny checkpoints, in every format, each with the deltas that it means for weight 1."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import lora_apply

MODULES = (
    *(
        "layers.0.self_attn.to_q",
        "layers.0.self_attn.to_out.0",
        "layers.1.cross_attn.to_k",
        "layers.1.mlp.gate_proj",
    ),
    *("layers.0.mlp.down_proj", "time_embed.time_proj", "condition_embedder"),
)
UPSTREAM = {".to_q": ".q_proj", ".to_k": ".k_proj", ".to_v": ".v_proj", ".to_out.0": ".o_proj"}
RANK, ALPHA = 4, 10.0
SCALE = ALPHA / RANK
FILE = "adapter_model.safetensors"

Deltas = dict[str, torch.Tensor]


def upstream(module: str, prefix: str = "") -> str:
    """Return a module's name as ACE-Step's own code has it."""
    return prefix + functools.reduce(
        lambda name, pair: name.replace(*pair), UPSTREAM.items(), module
    )


def flat(module: str, prefix: str) -> str:
    return prefix + upstream(module).replace(".", "_")


def matrices(
    pipe: Any, seed: int = 0, rank: int = RANK, modules: tuple[str, ...] = MODULES
) -> dict[str, tuple]:
    """Return (A [r, in], B [out, r]) for each module."""
    generator, widths = torch.Generator().manual_seed(seed), lora_apply.widths_of_pipe(pipe)
    made = {}
    for module in modules:
        out, into = widths[module]
        down = torch.randn(rank, into, generator=generator) / math.sqrt(into)
        made[module] = (down, torch.randn(out, rank, generator=generator) / math.sqrt(rank) * 0.4)
    return made


def deltas(made: dict[str, tuple], scale: float) -> Deltas:
    """Return what matrices of `matrices` add to each module's weight."""
    return {module: scale * up.float() @ down.float() for module, (down, up) in made.items()}


def put(path: Path, tensors: Deltas, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def pairs(
    made: dict[str, tuple],
    name: Callable[[str], str] = upstream,
    ends: tuple[str, str] = ("A", "B"),
) -> Deltas:
    """Return the tensors of matrices under the names that a format gives them."""
    down, up = ends
    tensors = {f"{name(module)}.lora_{down}.weight": matrix for module, (matrix, _) in made.items()}
    return tensors | {
        f"{name(module)}.lora_{up}.weight": matrix for module, (_, matrix) in made.items()
    }


def lora(
    pipe: Any,
    folder: Path,
    name: Callable[[str], str] = upstream,
    ends: tuple[str, str] = ("A", "B"),
    alphas: bool = False,
    dtype: torch.dtype = torch.float32,
    metadata: dict[str, str] | None = None,
    scale: float = SCALE,
) -> tuple[Path, Deltas]:
    """Write a plain LoRA; with `alphas` the file holds its own."""
    made = {module: (down.to(dtype), up.to(dtype)) for module, (down, up) in matrices(pipe).items()}
    tensors = pairs(made, name, ends)
    if alphas:
        tensors |= {f"{name(module)}.alpha": torch.tensor(ALPHA, dtype=dtype) for module in made}
    return put(folder / FILE, tensors, metadata), deltas(made, scale)


def peft(pipe: Any, folder: Path, scale: float = SCALE, **config: Any) -> tuple[Path, Deltas]:
    path, change = lora(
        pipe, folder, functools.partial(upstream, prefix="base_model.model."), scale=scale
    )
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_rslora": False, **config}
    path.with_name("adapter_config.json").write_text(json.dumps(settings))
    return path, change


def peft_folder(pipe: Any, folder: Path) -> tuple[Path, Deltas]:
    path, change = peft(pipe, folder)
    return path.parent, change


def peft_alpha_pattern(pipe: Any, folder: Path) -> tuple[Path, Deltas]:
    path, change = peft(
        pipe, folder, alpha_pattern={"layers.0.self_attn.q_proj": 2.0, "mlp.down_proj": 1.0}
    )
    change["layers.0.self_attn.to_q"] *= 2.0 / ALPHA
    change["layers.0.mlp.down_proj"] *= 1.0 / ALPHA
    return path, change


def lokr(pipe: Any, folder: Path, low: tuple[str, ...] = ("lokr_w2",)) -> tuple[Path, Deltas]:
    """Write a LoKr whose factors in `low` have a low rank."""
    generator = torch.Generator().manual_seed(0)
    tensors, change = {}, {}
    for module in MODULES:
        out, into = lora_apply.widths_of_pipe(pipe)[module]
        name, product = flat(module, "lycoris_"), {}
        for factor, (rows, columns) in {
            "lokr_w1": (4, 8),
            "lokr_w2": (out // 4, into // 8),
        }.items():
            a = torch.randn(rows, RANK, generator=generator) / 2
            b = torch.randn(RANK, columns, generator=generator) * 0.1
            product[factor] = a @ b
            tensors |= (
                {f"{name}.{factor}_a": a, f"{name}.{factor}_b": b}
                if factor in low
                else {f"{name}.{factor}": a @ b}
            )
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
        # LyCORIS: two whole factors are their own scale.
        change[module] = (SCALE if low else 1.0) * torch.kron(
            product["lokr_w1"], product["lokr_w2"]
        )
    return put(folder / FILE, tensors, {"lokr_config": "{}"}), change


def lokr_dora(
    pipe: Any, folder: Path, low: tuple[str, ...] = ("lokr_w2",), axis: int = 1
) -> tuple[Path, Deltas]:
    """Write a LoKr that says how long the rows (axis 1) or columns (axis 0) of the changed weights are (LyCORIS)."""
    path, change = lokr(pipe, folder, low)
    tensors, generator = load_file(path), torch.Generator().manual_seed(1)
    for module, delta in change.items():
        weight = pipe.transformer.get_submodule(module).weight
        length = (weight + delta).norm(dim=axis, keepdim=True)
        wanted = length * (0.9 + 0.2 * torch.rand(length.shape, generator=generator))
        tensors[f"{flat(module, 'lycoris_')}.dora_scale"] = wanted
        change[module] = (weight + delta) * wanted / length - weight
    return put(path, tensors, {"lokr_config": "{}"}), change


SETTINGS = {
    "lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": ALPHA})
}
_with = functools.partial
FORMATS = {
    "PEFT folder": (peft_folder, "PEFT"),
    "rslora": (_with(peft, scale=ALPHA / math.sqrt(RANK), use_rslora=True), "PEFT"),
    "alpha pattern": (peft_alpha_pattern, "PEFT"),
    "bare": (_with(lora, scale=1.0), "plain"),
    "diffusers": (_with(lora, name="transformer.{}".format, metadata=SETTINGS), "diffusers"),
    "ComfyUI": (
        _with(lora, name=_with(upstream, prefix="diffusion_model.decoder."), alphas=True),
        "ComfyUI",
    ),
    "kohya": (
        _with(
            lora,
            name=_with(flat, prefix="lora_unet_"),
            ends=("down", "up"),
            alphas=True,
            dtype=torch.bfloat16,
        ),
        "kohya",
    ),
    "LoKr": (lokr, "LoKr"),
    "LoKr whole": (_with(lokr, low=()), "LoKr"),
    "LoKr low rank": (_with(lokr, low=("lokr_w1", "lokr_w2")), "LoKr"),
    "LoKr with DoRA": (lokr_dora, "LoKr"),
    "LoKr with DoRA by column": (_with(lokr_dora, low=(), axis=0), "LoKr"),
}


def write_adapter(
    path: Path, pipe: Any, seed: int = 0, wider: int = 0, prefix: str = "diffusion_model."
) -> Path:
    """Write a small adapter for songs, in ComfyUI's format; one that is `wider` does not fit the pipeline."""
    modules = ("layers.0.self_attn.to_q", "layers.0.mlp.down_proj", "layers.1.cross_attn.to_k")
    made = matrices(pipe, seed, modules=modules)
    made = {
        module: (torch.nn.functional.pad(down, (0, wider)), 5 * up)
        for module, (down, up) in made.items()
    }
    return put(path, pairs(made, f"{prefix}{{}}".format))
