"""A LoRA to upload, and the panel of LoRAs, used as a visitor would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Locator, expect
from safetensors.numpy import save_file

from tests.page.steps import Tab

MODULES = ("layers.0.self_attn.to_q", "layers.0.mlp.down_proj", "layers.1.cross_attn.to_k")


def write(path: Path, widths: Any, modules: Sequence[str] = MODULES, rank: int = 4) -> Path:
    """Write an adapter for these modules as a safetensors file."""
    random, tensors = np.random.default_rng(0), {}
    for module in modules:
        out, into = widths[module]
        for name, shape, scale in (
            ("lora_A", (rank, into), into**-0.5),
            ("lora_B", (out, rank), 1),
        ):
            values = (scale * random.standard_normal(shape)).astype(np.float32)
            tensors[f"diffusion_model.{module}.{name}.weight"] = values
    save_file(tensors, path)
    return path


class Panel:
    """The panel of a tab, used as a visitor would."""

    def __init__(self, tab: Tab):
        self.tab, self.page, self.list = tab, tab.page, tab.part("loras")
        self.items, self.said = self.list.get_by_role("listitem"), self.list.locator(".said")
        self.line, self.box = tab.part("lora-line"), tab.part("lora-hub").locator("input, textarea")
        tab.unfold("sound")
        if not self.list.is_visible():
            tab.part("loras-fold").locator("> button").click()
        expect(self.list).to_be_visible()

    def upload(self, *paths: Path) -> None:
        self.tab.part("lora-file").locator("input[type=file]").set_input_files(paths)

    def name(self, text: str) -> None:
        """Type a repository and press Add."""
        self.box.fill(text)
        self.tab.part("lora-hub-add").click()

    def has(self, *names: str) -> None:
        """Expect these LoRAs in this order."""
        expect(self.items.locator(".name")).to_have_text([*names])

    def weight(self, name: str) -> Locator:
        return self.list.get_by_role("spinbutton", name=f"Weight of {name}", exact=True)

    def press(self, action: str, name: str) -> None:
        """Press "Move up", "Move down" or "Remove" of a LoRA."""
        self.list.get_by_role("button", name=f"{action} {name}", exact=True).click()
