"""The built-in songwriter's products in bytes: how far they may be off, and what is done where they are wrong."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import lyrics_bytes
from lyrics_bytes import ByteProduct
from lyrics_layers import BranchingLayers
from tests.weights import SONGWRITER


@pytest.fixture
def width():
    width = lyrics_bytes.input_range()
    if width is None:
        pytest.skip("this processor has no right products in bytes")
    return width


@pytest.fixture
def judged_anew():
    """Forget what this processor can do, before and after."""
    lyrics_bytes.input_range.cache_clear()
    yield
    lyrics_bytes.input_range.cache_clear()


@pytest.mark.numbers
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_off_by_what_rounding_takes(width, bias):
    torch.manual_seed(1)
    linears = [torch.nn.Linear(96, 64, bias=bias), torch.nn.Linear(96, 32, bias=bias)]
    # Rows of very different sizes, each of which has a scale of its own.
    with torch.no_grad():
        linears[1].weight *= 1e-3
    states = torch.randn(6, 96, dtype=torch.float64)
    products = ByteProduct(linears, width).parts(states.float())
    steps = 255 if width == "whole" else 127
    input_step = (states.max().clamp_min(0) - states.min().clamp_max(0)) / steps
    for linear, product in zip(linears, products, strict=True):
        weight = linear.weight.detach().double()
        offset = linear.bias.detach().double() if bias else 0.0
        weight_step = weight.abs().amax(dim=1) / 127
        # Half a step of each number, and where zero lies is rounded too, by half a step more.
        of_inputs = input_step * weight.abs().sum(dim=1)
        of_weights = weight_step / 2 * (states.abs() + input_step).sum(dim=1, keepdim=True)
        off = (product.double() - (states @ weight.T + offset)).abs()
        assert (off <= (of_inputs + of_weights) * 1.001 + 1e-6).all()
        assert off.max() > 0


def test_the_first_text_is_read_exactly_and_the_rest_nearly(width):
    model = AutoModelForCausalLM.from_pretrained(SONGWRITER).eval()
    text, line = [5, 9, 300, 41], [[7, 8], [600, 2], [31, 32]]
    plain = BranchingLayers(model)
    quick = BranchingLayers(model, lyrics_bytes.in_bytes(model))
    torch.testing.assert_close(quick.read(text), plain.read(text), atol=0, rtol=0)
    scores = []
    for layers in (plain, quick):
        layers.branch(3, 2)
        scores.append(layers.step(line))
    assert not torch.equal(*scores)
    # Another line would be as far away as lines are from each other.
    off = (scores[1] - scores[0]).norm(dim=1)
    apart = torch.cdist(scores[0], scores[0]) + torch.eye(3) * 1e9
    assert (off < apart.amin(dim=1) / 4).all()


def test_sums_that_do_not_fit_are_found(judged_anew, monkeypatch):
    right = ByteProduct.__call__

    def overflowing(product, states):
        """Add as a processor does that keeps pairs of products in 16 bits: the largest would not fit."""
        largest = states.abs().max()
        return right(product, states) * (0.5 if not product._reduced and largest > 200 else 1)

    monkeypatch.setattr(ByteProduct, "__call__", overflowing)
    assert lyrics_bytes.input_range() == "reduced"
    lyrics_bytes.input_range.cache_clear()
    monkeypatch.setattr(ByteProduct, "__call__", lambda product, states: right(product, states) / 2)
    assert lyrics_bytes.input_range() is None
    assert lyrics_bytes.in_bytes(None) is None


def test_without_byte_products_the_songwriter_does_without(judged_anew, monkeypatch):
    def missing(weights, bias):
        raise NotImplementedError("no quantized engine")

    monkeypatch.setattr(lyrics_bytes, "_packed", missing)
    assert lyrics_bytes.in_bytes(None) is None
