"""The dress rehearsal: its parts have the real sizes, and every stage of every plan runs."""

from __future__ import annotations

import pytest
import torch

from tests.program import python
from tools import full_size

MILLIONS = {
    "transformer": 4169,
    "condition_encoder": 608,
    "audio_tokenizer": 105,
    "audio_token_detokenizer": 105,
    "vae": 168.7,
    "text_encoder": 596,
}


def test_the_parts_are_as_large_as_the_real_ones():
    with torch.device("meta"):
        parts = {name: build() for name, build in full_size.shapes().items()}
    sizes = {
        name: sum(one.numel() for one in part.parameters()) / 1e6 for name, part in parts.items()
    }
    assert sizes == pytest.approx(MILLIONS, rel=0.01)
    assert parts["vae"].hop_length == 1920


@pytest.mark.matrix
@pytest.mark.timeout(1500)
def test_every_stage_runs_by_every_plan_at_two_layers(tmp_path):
    size = ("--layers", "2", "--planner", "--two", "--seconds", "10", "--steps", "2")
    result = python("-m", "tools.full_size", str(tmp_path), *size, seconds=1400)
    assert result.returncode == 0, result.stderr
    rows = [
        line.strip("| ").split(" | ")
        for line in result.stdout.splitlines()
        if line.startswith("| ")
    ][1:]
    stages = {
        plan: [row[1] for row in rows if row[0] == plan] for plan in ("resident", "swap", "fp8")
    }
    assert set(map(tuple, stages.values())) == {
        (
            *("load", "song", "planned song", "other model", "first model again"),
            *("cover", "extend", "edit"),
        )
    }
    assert all("decoding" in row[4] for row in rows if row[1] != "load"), result.stdout
