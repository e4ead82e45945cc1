"""Half precision: its measures change nothing in float32, and keep the published activations finite in float16."""

from __future__ import annotations

import pytest
import torch

import agreement
import audio
import backend
import models
import modes
import selfcheck
import song_half
import tooltips
from events import Outcome, Progress
from gpu_job import SongJob
from model_memory import Placing
from params import parse_request, settle
from tests.weights import CPU, weights_in

OLD_CARD = models.Device("cpu", "float32", "float16", "float32", "a test")
LARGEST = torch.finfo(torch.float16).max
# The largest numbers that were published for XL: in the residual stream, and in scores.
STREAM = 505_000.0
SCORES = 128_000.0
# In the last layer of the lyric encoder.
LYRICS = 1_360_000.0
EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture
def old_card(tiny):
    """The pipeline of a card without bfloat16."""
    return models.build_pipeline(weights_in(tiny), OLD_CARD)


def velocity(pipe, avoid=frozenset({"condition"})):
    condition = selfcheck._condition_of(pipe.transformer, 3)
    return selfcheck._pass(pipe, condition, avoid, whole=True)["velocity"]


@pytest.mark.numbers
@pytest.mark.parametrize("avoid", [frozenset(), frozenset({"windows"})], ids=["ours", "stock"])
def test_in_float32_the_measures_change_nothing_but_the_last_digits(tiny, avoid):
    pipe = models.build_pipeline(weights_in(tiny), CPU)
    plain = velocity(pipe, avoid)
    song_half.divide(pipe.transformer)
    divided = velocity(pipe, avoid)
    song_half.undo(pipe.transformer)
    # Dividing by 64 is exact. A query's weight is rounded once when it is scaled, by half an epsilon, in each of the
    # two attentions of a layer; a softmax passes that on, times the size of its scores, which are below 16 here.
    layers = len(pipe.transformer.layers)
    assert agreement.difference(divided, plain) <= 16 * 2 * layers * EPSILON
    assert torch.equal(velocity(pipe, avoid), plain)


def stream(pipe) -> float:
    """Return the largest number that leaves the first layer."""
    seen = []
    layer = pipe.transformer.layers[0]
    hook = layer.register_forward_hook(
        lambda module, inputs, output: seen.append(float(output.abs().max()))
    )
    try:
        velocity(pipe)
    finally:
        hook.remove()
    return seen[0]


def grow(pipe) -> None:
    """Let the first layer's numbers be as large as published."""
    down = pipe.transformer.layers[0].mlp.down_proj
    for _ in range(2):  # the first time, the layer's input counts as well
        down.weight.data = (down.weight.data.float() * (STREAM / stream(pipe))).to(
            down.weight.dtype
        )


@pytest.mark.numbers
@pytest.mark.slow
def test_published_activations_overflow_without_the_measures_and_are_finite_with_them(old_card):
    transformer = old_card.transformer
    grow(old_card)
    before = stream(old_card)
    assert before > torch.finfo(torch.float16).max
    plain = velocity(old_card)
    song_half._compute_in(transformer, torch.float16)
    transformer.half_precision = True
    assert not velocity(old_card).isfinite().all()
    transformer.half_precision = False
    song_half._compute_in(transformer, torch.float32)
    song_half.use(transformer)
    # Dividing by a power of two is exact. Half precision rounds the weights, the product and the sum.
    rounding = 3 * torch.finfo(torch.float16).eps
    assert stream(old_card) == pytest.approx(before / song_half.DIVISOR, rel=rounding)
    made = velocity(old_card)
    assert made.dtype == torch.float32 and transformer.dtype == torch.float32
    assert agreement.difference(made, plain) <= agreement.BOUNDS["float16"]
    song_half.leave(transformer)
    assert torch.equal(velocity(old_card), plain)


def test_scores_overflow_and_those_of_scaled_queries_do_not(old_card):
    attention = old_card.transformer.layers[0].self_attn
    weight = attention.norm_q.weight
    size = attention.head_dim
    # Normed queries and keys are as long as the root of their size, and scores at most the product.
    weight.data = torch.full_like(weight, SCORES / size)
    key = torch.ones(size, dtype=torch.float16)
    assert not (attention.norm_q(key.float()).half() @ key).isfinite()
    song_half.divide(old_card.transformer)
    score = attention.norm_q(key.float()).half() @ key
    assert score.isfinite() and float(score) == pytest.approx(SCORES * size**-0.5, rel=0.01)


@pytest.mark.slow
def test_the_lyric_encoder_stays_in_float32(old_card):
    encoder = old_card.condition_encoder.lyric_encoder
    width = encoder.config.text_hidden_dim
    words = torch.randn(1, 6, width, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 6)
    seen = []
    mlp = encoder.layers[-1].mlp
    down = mlp.down_proj
    down.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        encoder(words, mask)
        factor = LYRICS / float(seen[-1].abs().max())
        for layer in (mlp.up_proj, down):  # one alone would not fit into the weights' numbers
            layer.weight.data = (layer.weight.data.float() * factor**0.5).to(torch.float16)
        song_half.use(old_card.transformer)
        states = encoder(words, mask)
    assert float(seen[-1].abs().max()) > LARGEST and seen[-1].dtype == torch.float32
    assert states.isfinite().all()


@pytest.mark.slow
def test_the_self_check_decides(old_card, monkeypatch):
    def half():
        checks = selfcheck.song_checks(old_card, "cuda")
        return next(check for check in checks if check.path == "half")

    finding = selfcheck._finding(half())
    assert finding.agrees and not old_card.transformer.half_precision
    half().use()
    assert old_card.transformer.half_precision
    song_half.leave(old_card.transformer)
    grow(old_card)
    # Without the measures the card would make noise of it.
    monkeypatch.setattr(song_half, "divide", lambda transformer: None)
    monkeypatch.setattr(song_half, "undo", lambda transformer: None)
    assert not selfcheck._finding(half()).agrees


def test_the_record_and_the_status_name_the_numbers_that_are_used(old_card, monkeypatch):
    loaded = backend.Backend().models
    monkeypatch.setattr(loaded, "known_device", OLD_CARD)
    loaded._pipe = old_card
    assert loaded.dtype == "float32"
    song_half.use(old_card.transformer)
    assert loaded.dtype == "float16"


@pytest.mark.slow
def test_a_song_that_is_not_finite_in_half_precision_is_made_once_more_in_float32(
    old_card, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(selfcheck, "file", lambda: tmp_path / selfcheck.FILE)
    loaded = backend.Backend().models
    loaded.weights = weights_in(tiny)
    monkeypatch.setattr(loaded, "known_device", OLD_CARD)
    loaded._pipe = old_card
    transformer = old_card.transformer
    options = {"steps": 3, "plan": False, "score": []}
    words = {"prompt": "calm piano", "duration": 10, "options": options}
    request = parse_request("generate", words)
    job = SongJob(request, (7,), (8,), str(tmp_path), settings=settle(request, "sft"))

    def made() -> tuple[Outcome, list[Progress], bytes]:
        *progress, outcome = modes.make(loaded, Placing(loaded), job)
        (take,) = outcome.takes
        assert take.problem is None
        return outcome, [event for event in progress if event], audio.read_wav(take.file).tobytes()

    _, _, right = made()
    song_half.use(transformer)
    calls = []

    def overflow(module, inputs, output):
        if transformer.half_precision:
            calls.append(1)
            if len(calls) == 2:  # in the second step
                return (output[0] * torch.inf,)
        return output

    transformer.register_forward_hook(overflow)
    outcome, progress, samples = made()
    assert samples == right and not transformer.half_precision and len(calls) == 2
    assert outcome.notes[0] == tooltips.HALF_FAILED and outcome.ran.dtype == "float32"
    assert [event.note for event in progress if event.note] == [tooltips.HALF_FAILED]
    # It is remembered, and the status says so.
    (finding,) = selfcheck.remembered(loaded)
    assert finding.path == "half" and not finding.agrees
    assert selfcheck.WORDS["half"] in selfcheck.summary(loaded)
    outcome, _, _ = made()
    assert tooltips.HALF_FAILED not in outcome.notes
    # At the next start it is not even tried.
    monkeypatch.setattr(selfcheck, "wanted", lambda: True)
    checks = [check for check in selfcheck.song_checks(old_card, "cuda") if check.path == "half"]
    loaded.distrusted.clear()
    assert list(selfcheck._prove(loaded, "song", checks, dict)) == []
    assert not transformer.half_precision and "half" in loaded.distrusted
