"""Compile the song model's layers for a ZeroGPU Space: python -m tools.compile_layers FOLDER

Run it on a card of the Space's kind, with the packages of requirements.txt. It writes FOLDER/package; upload FOLDER as
a model repository and set ACE_STUDIO_COMPILE to its name on the Space:

    hf upload OWNER/NAME FOLDER

A package holds machine code: load only your own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bootstrap

if TYPE_CHECKING:
    import torch

TAKES = (1, 2, 3, 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the packages go")
    parser.add_argument(
        "--takes", type=int, nargs="+", default=TAKES, choices=TAKES, help="all four by default"
    )
    given = parser.parse_args()
    bootstrap.bootstrap()
    import model_weights
    import models

    found = model_weights.find_weights()
    if found.engine != "preview" and found.folder is None:
        parser.error((found.problem or model_weights.missing_model(found.wanted)).text())
    device = models.pick_device(found)
    if device.kind != "cuda":
        parser.error("there is no NVIDIA card here; compile on one of the Space's kind.")
    write(models.build_pipeline(found, device).transformer, given.folder, given.takes)


def write(transformer: Any, folder: Path, takes: tuple[int, ...]) -> None:
    """Write a package for each kind of layer and number of takes, guided and not, under `folder`/package."""
    import spaces

    for count in takes:
        for rows in (2 * count, count):
            for name, program in export_layers(transformer, rows, count):
                print(f"compiling {name}", flush=True)
                spaces.aoti_compile_and_save(folder / "package", program, submodule=name)


def export_layers(
    transformer: Any, rows: int, takes: int
) -> Iterator[tuple[str, torch.export.ExportedProgram]]:
    """Yield the name and the program of each package for songs of `takes` takes in `rows` rows."""
    import torch

    from song_attention import Tables, compute_layer, condition_heads
    from song_compilation import kinds, package_name, sample

    class Exportable(torch.nn.Module):
        def __init__(self, layer: Any):
            super().__init__()
            self.layer = layer

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            x, *tables, temb, key, value, answer = inputs
            tables = Tables(transformer.config.sliding_window, *tables)
            return compute_layer(self.layer, x, tables, temb, (key, value, answer), takes)

    x, tables, temb, condition = sample(transformer, rows, takes)
    some = torch.export.Dim.AUTO
    lengths = (
        {1: some},
        {0: some},
        {0: some},
        None,
        None,
        {0: some, 1: some},
        None,
        {2: some},
        {2: some},
        None,
    )
    for windowed, layer in kinds(transformer).items():
        with torch.no_grad():
            program = torch.export.export(
                Exportable(layer).eval(),
                (x, *tables[1:], temb, *condition_heads(layer, condition)),
                dynamic_shapes=(lengths,),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        yield package_name(windowed, rows, takes), program


if __name__ == "__main__":
    main()
