"""Small LoRAs for songs: random adapters of rank 4 on three layers, in ComfyUI's format."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

MODULES = ("layers.0.self_attn.to_q", "layers.0.mlp.down_proj", "layers.1.cross_attn.to_k")


def write_adapter(path: Path, pipe: Any, seed: int = 0, wider: int = 0) -> Path:
    """Write an adapter for the pipeline's transformer; one that is `wider` does not fit it."""
    import torch
    from safetensors.torch import save_file

    import loras

    widths = loras.widths_of_pipe(pipe)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in MODULES:
        out, into = widths[module]
        down = torch.randn(4, into + wider, generator=generator) / math.sqrt(into)
        tensors[f"diffusion_model.{module}.lora_A.weight"] = down
        tensors[f"diffusion_model.{module}.lora_B.weight"] = torch.randn(out, 4, generator=generator)
    save_file(tensors, path)
    return path
