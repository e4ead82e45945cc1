"""Ways to attend give the same song."""

from __future__ import annotations

import pytest
import torch

import attention
from tests.program import python
from tools import bench_attention


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return bench_attention.build(bench_attention.SMALL, "cpu", torch.float32)


def velocity(transformer, seconds=60):
    torch.manual_seed(1)
    with torch.no_grad():
        return transformer(**bench_attention.step_inputs(transformer, seconds, 2, "cpu", torch.float32))[0]


def test_repeated_heads_give_what_shared_heads_give(transformer):
    # 60 s are 750 tokens, so that the mask of 128 to each side hides most of them.
    stock = velocity(transformer)
    attention.use(transformer, "repeat")
    try:
        repeated = velocity(transformer)
    finally:
        attention.use(transformer, "stock")
    assert torch.allclose(stock, repeated, atol=1e-6)
    assert torch.equal(velocity(transformer), stock)


def test_repeated_heads_reach_the_kernel_that_takes_them(transformer, monkeypatch):
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **kwargs):
        seen.append((attn_mask is not None, query.shape[1] == key.shape[1], kwargs.get("enable_gqa", False)))
        return real(query, key, value, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    attention.use(transformer, "repeat")
    try:
        velocity(transformer)
    finally:
        attention.use(transformer, "stock")
    masked = [(same, grouped) for mask, same, grouped in seen if mask]
    assert masked and set(masked) == {(True, False)}
    assert {same for mask, same, _ in seen if not mask} == {False}


def test_an_unknown_way_is_an_error(transformer):
    with pytest.raises(ValueError, match="nonsense"):
        attention.use(transformer, "nonsense")
    attention.use(transformer, "stock")


@pytest.mark.long
@pytest.mark.slow
def test_the_bench_runs_without_a_card():
    ways = ("stock", "repeat", "nonsense")
    result = python("-m", "tools.bench_attention", *ways, "--small", "--seconds", "10", "--runs", "1")
    assert result.returncode == 0, result.stderr
    rows = result.stdout.splitlines()[2:]
    assert tuple(row.split()[0] for row in rows) == ways
    assert "not here" in rows[2]
    assert float(rows[1].split()[-1]) < 1e-5
