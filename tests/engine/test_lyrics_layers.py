"""The built-in songwriter's layers against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from lyrics_layers import GROWTH, BranchingLayers
from tests.weights import SONGWRITER


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(SONGWRITER).eval()


def stock(model, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, -1]


@pytest.mark.numbers
def test_continuations_score_as_if_each_were_the_whole_text(model):
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        return torch.randint(4_000, (count,), generator=generator).tolist()

    layers = BranchingLayers(model)
    # Beyond the first room, so that it grows.
    text = draw(GROWTH - 3)
    torch.testing.assert_close(layers.read(text), stock(model, text), atol=1e-5, rtol=1e-4)
    for kept, count in ((2, 3), (0, 2), (1, 4)):
        rows = [draw(4) for _ in range(3)]
        layers.branch(3, 4)
        for part in (slice(0, 2), slice(2, 3), slice(3, 4)):
            scores = layers.step([row[part] for row in rows])
            expected = torch.stack([stock(model, text + row[: part.stop]) for row in rows])
            torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
        layers.keep(kept, count)
        text += rows[kept][:count]
        assert layers.length == len(text)
        more = draw(2)
        text += more
        torch.testing.assert_close(layers.read(more), stock(model, text), atol=1e-5, rtol=1e-4)
