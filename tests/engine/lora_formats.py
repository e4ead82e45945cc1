"""LoRAs in every format: one writer each, which returns the file with the deltas that it means for weight 1."""

from __future__ import annotations

import json
import math

import torch
from safetensors.torch import load_file, save_file

import loras

MODULES = (
    *("layers.0.self_attn.to_q", "layers.0.self_attn.to_out.0", "layers.1.cross_attn.to_k", "layers.1.mlp.gate_proj"),
    *("layers.0.mlp.down_proj", "time_embed.time_proj", "condition_embedder"),
)
UPSTREAM = {".to_q": ".q_proj", ".to_k": ".k_proj", ".to_v": ".v_proj", ".to_out.0": ".o_proj"}
RANK, ALPHA = 4, 10.0


def upstream(module):
    """Return a module's name as ACE-Step's own code has it."""
    for ours, theirs in UPSTREAM.items():
        module = module.replace(ours, theirs)
    return module


def matrices(pipe, seed=0, rank=RANK, modules=MODULES):
    """Return (A [r, in], B [out, r]) for each module."""
    generator = torch.Generator().manual_seed(seed)
    widths = loras.widths_of_pipe(pipe)
    made = {}
    for module in modules:
        out, into = widths[module]
        down = torch.randn(rank, into, generator=generator) / math.sqrt(into)
        made[module] = (down, torch.randn(out, rank, generator=generator) / math.sqrt(rank) * 0.4)
    return made


def deltas(made, scale):
    """Return what matrices of `matrices` add to each module's weight."""
    return {module: scale * up @ down for module, (down, up) in made.items()}


def put(path, tensors, metadata=None):
    """Write tensors into a file and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def pairs(made, name, down, up):
    """Return the tensors of matrices under the names that a format gives them."""
    tensors = {}
    for module, (a, b) in made.items():
        tensors |= {f"{name(module)}.{down}": a, f"{name(module)}.{up}": b}
    return tensors


def peft(pipe, folder, **config):
    made = matrices(pipe)
    tensors = pairs(made, lambda m: f"base_model.model.{upstream(m)}", "lora_A.weight", "lora_B.weight")
    path = put(folder / "adapter_model.safetensors", tensors)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_rslora": False, **config}
    path.with_name("adapter_config.json").write_text(json.dumps(settings))
    return path, deltas(made, ALPHA / RANK)


def peft_folder(pipe, folder):
    path, change = peft(pipe, folder)
    return path.parent, change


def peft_rslora(pipe, folder):
    path, change = peft(pipe, folder, use_rslora=True)
    return path, {module: delta * math.sqrt(RANK) for module, delta in change.items()}


def peft_alpha_pattern(pipe, folder):
    path, change = peft(pipe, folder, alpha_pattern={"layers.0.self_attn.q_proj": 2.0, "mlp.down_proj": 1.0})
    change["layers.0.self_attn.to_q"] *= 2.0 / ALPHA
    change["layers.0.mlp.down_proj"] *= 1.0 / ALPHA
    return path, change


def bare(pipe, folder):
    made = matrices(pipe)
    return put(folder / "bare.safetensors", pairs(made, upstream, "lora_A.weight", "lora_B.weight")), deltas(made, 1.0)


def diffusers(pipe, folder):
    made = matrices(pipe)
    tensors = pairs(made, lambda m: f"transformer.{m}", "lora_A.weight", "lora_B.weight")
    settings = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA}
    metadata = {"lora_adapter_metadata": json.dumps(settings), "format": "pt"}
    return put(folder / "pytorch_lora_weights.safetensors", tensors, metadata), deltas(made, ALPHA / RANK)


def comfyui(pipe, folder):
    made, prefix = matrices(pipe), "diffusion_model.decoder."
    tensors = pairs(made, lambda m: prefix + upstream(m), "lora_A.weight", "lora_B.weight")
    tensors |= {f"{prefix}{upstream(m)}.alpha": torch.tensor(ALPHA) for m in made}
    return put(folder / "comfy.safetensors", tensors), deltas(made, ALPHA / RANK)


def kohya(pipe, folder):
    made = matrices(pipe)

    def name(module):
        return "lora_unet_" + upstream(module).replace(".", "_")

    tensors = pairs(made, name, "lora_down.weight", "lora_up.weight")
    tensors = {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
    tensors |= {f"{name(m)}.alpha": torch.tensor(ALPHA, dtype=torch.bfloat16) for m in made}
    rounded = {m: (a.bfloat16().float(), b.bfloat16().float()) for m, (a, b) in made.items()}
    return put(folder / "kohya.safetensors", tensors), deltas(rounded, ALPHA / RANK)


def lokr(pipe, folder, low=("lokr_w2",)):
    generator = torch.Generator().manual_seed(0)
    tensors, change = {}, {}
    for module in MODULES:
        out, into = loras.widths_of_pipe(pipe)[module]
        shapes = {"lokr_w1": (4, 8), "lokr_w2": (out // 4, into // 8)}
        name, product = "lycoris_" + upstream(module).replace(".", "_"), {}
        for factor, (rows, columns) in shapes.items():
            a = torch.randn(rows, RANK, generator=generator) / 2
            b = torch.randn(RANK, columns, generator=generator) * 0.1
            if factor in low:
                tensors |= {f"{name}.{factor}_a": a, f"{name}.{factor}_b": b}
            else:
                tensors[f"{name}.{factor}"] = a @ b
            product[factor] = a @ b
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
        scale = ALPHA / RANK if low else 1.0  # LyCORIS: two whole factors are their own scale
        change[module] = scale * torch.kron(product["lokr_w1"], product["lokr_w2"])
    return put(folder / "lokr_weights.safetensors", tensors, {"lokr_config": "{}"}), change


def lokr_whole(pipe, folder):
    return lokr(pipe, folder, ())


def lokr_low(pipe, folder):
    return lokr(pipe, folder, ("lokr_w1", "lokr_w2"))


def lokr_dora(pipe, folder, low=("lokr_w2",), axis=1):
    """A LoKr that says how long the rows (axis 1) or columns (axis 0) of the changed weights are (LyCORIS)."""
    path, change = lokr(pipe, folder, low)
    tensors, generator = load_file(path), torch.Generator().manual_seed(1)
    for module, delta in change.items():
        weight = pipe.transformer.get_submodule(module).weight
        whole = weight + delta
        length = whole.norm(dim=axis, keepdim=True)
        wanted = length * (0.9 + 0.2 * torch.rand(length.shape, generator=generator))
        tensors["lycoris_" + upstream(module).replace(".", "_") + ".dora_scale"] = wanted
        change[module] = whole * wanted / length - weight
    return put(path, tensors, {"lokr_config": "{}"}), change


def lokr_dora_in(pipe, folder):
    return lokr_dora(pipe, folder, (), 0)


FORMATS = {
    "PEFT folder": (peft_folder, "PEFT"),
    "rslora": (peft_rslora, "PEFT"),
    "alpha pattern": (peft_alpha_pattern, "PEFT"),
    "bare": (bare, "plain"),
    "diffusers": (diffusers, "diffusers"),
    "ComfyUI": (comfyui, "ComfyUI"),
    "kohya": (kohya, "kohya"),
    "LoKr": (lokr, "LoKr"),
    "LoKr whole": (lokr_whole, "LoKr"),
    "LoKr low rank": (lokr_low, "LoKr"),
    "LoKr with DoRA": (lokr_dora, "LoKr"),
    "LoKr with DoRA by column": (lokr_dora_in, "LoKr"),
}
