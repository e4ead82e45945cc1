"""Scores of takes through the backend: what the record says, the best of several, and damage that is heard."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import audio
import backend
import planner
import song_align
import song_conditions
from limits import SCORE_PARTS
from params import parse_request
from tests.engine.songs import samples_of, song
from tools import scores

pytestmark = pytest.mark.usefixtures("output")


@pytest.fixture
def writing(make_studio: Callable[..., backend.Backend]) -> backend.Backend:
    """A studio of its own: the planner judges only where no job before it has chosen a lower memory plan."""
    return make_studio()


def test_each_take_has_a_score_from_the_parts_that_apply(studio: backend.Backend):
    record = song(studio, takes=2, bpm=120).record
    for take in record["takes"]:
        assert 0 <= take["score"] <= 100
        assert {"silence", "clipping", "noise", "ending"} <= set(take["score_parts"])
        assert set(take["score_parts"]) <= {*SCORE_PARTS} - {"lyrics", "recognition"}
        assert "lines" not in take
    assert record["seconds"]["scoring"] >= 0
    assert record["request"]["options"]["score"] == [*SCORE_PARTS]
    assert "passed_over" not in record


def test_parts_can_be_switched_off_and_the_song_stays_the_same(studio: backend.Backend):
    whole = song(studio)
    one = song(studio, options={"score": ["noise"]})
    none = song(studio, options={"score": []})
    assert set(one.record["takes"][0]["score_parts"]) == {"noise"}
    assert not {"score", "score_parts"} & set(none.record["takes"][0])
    for other in (one, none):
        np.testing.assert_array_equal(samples_of(other)[0], samples_of(whole)[0])


def test_the_best_of_several_songs_becomes_the_take(studio: backend.Backend):
    done = song(studio, bpm=120, options={"best_of": 3})
    record = done.record
    assert record["seeds"] == [7, 8, 9]
    assert len(done.files) == len(record["takes"]) == 1
    (take,) = record["takes"]
    others = record["passed_over"]
    assert {take["seed"], *(each["seed"] for each in others)} == {7, 8, 9}
    assert take["score"] >= max(each["score"] for each in others)
    alone = song(studio, bpm=120, seed=take["seed"])
    assert alone.record["takes"][0]["score"] == take["score"]
    np.testing.assert_allclose(samples_of(alone)[0], samples_of(done)[0], atol=1e-3)


# --- what the models tell -------------------------------------------------------------------------


def test_the_planner_judges_the_songs_that_it_planned(writing: backend.Backend):
    record = song(writing, lyrics="la la", takes=2, options={"score": ["recognition"]}).record
    for take in record["takes"]:
        assert 0 <= take["score_parts"]["recognition"] <= 100
        assert take["score"] == take["score_parts"]["recognition"]
    unplanned = song(writing, lyrics="la la", options={"plan": False, "score": ["tempo"]}).record
    assert "recognition" not in unplanned["takes"][0].get("score_parts", {})


@pytest.mark.numbers
def test_recognition_is_what_the_codes_tell_of_the_words(writing: backend.Backend, monkeypatch):
    """Compare with the formula, on the stock model's own logits (reference 5.4)."""
    model = writing.models.planner.get()
    words = {"lyrics": "[Verse]\nla <|im_end|>", "bpm": 120, "key": "D minor"}
    request: Any = parse_request("generate", {"prompt": "a waltz", **words})
    codes = [3, 1, 4, 1, 5] * 4
    assert planner.LIKELIEST == 10
    # A random model expects none of them among its first ten.
    likeliest = model.model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(planner, "LIKELIEST", likeliest)
    found = planner.recognition(model, request, "a waltz", codes, 4.2)

    def said_after(words: str, text: str) -> tuple[torch.Tensor, list[int]]:
        begin = model.vocabulary.encode(planner.chat(model.tokenizer, "describe", words))
        end = model.vocabulary.encode(text)
        with torch.no_grad():
            logits = model.model(torch.tensor([begin + end])).logits[0].log_softmax(-1)
        return logits[len(begin) - 1 : -1], list(end)

    def likely(words: str, text: str) -> float:
        logits, tokens = said_after(words, text)
        rows = zip(logits, tokens, strict=True)
        return float(np.mean([float(row[token]) for row, token in rows]))

    def recalled(text: str) -> float:
        """The mean place of its tokens among the likeliest, from 1 for the first."""
        places = []
        for row, token in zip(*said_after(heard, text), strict=True):
            rank = row.topk(likeliest).indices.tolist().index(token)
            places.append(1 - rank / likeliest)
        return float(np.mean(places))

    said = planner.as_plain_text("[Verse]\nla <|im_end|>")
    targets = {
        "<think>\ncaption: a waltz\n</think>\n": 0.5,
        f"<think>\n</think>\n# Lyric\n{said}\n": 0.3,
    }
    heard = "".join(f"<|audio_code_{model.vocabulary.nearest(code)}|>" for code in codes)
    expected = 0.0
    for text, weight in targets.items():
        gain = likely(heard, text) - likely("NO USER INPUT", text)
        expected += weight / (1 + math.exp(-gain / 0.1))
    details = ("bpm: 120", "duration: 4", "keyscale: D minor")
    recalls = [recalled(f"<think>\n{detail}\n</think>\n") for detail in details]
    assert 0.1 < np.mean(recalls) < 0.9
    expected += 0.2 * np.mean(recalls)
    assert found == pytest.approx(expected, rel=1e-4)
    # in pieces it is the same
    monkeypatch.setattr(planner, "JUDGED_AT_ONCE", 2)
    again = planner.recognition(model, request, "a waltz", codes, 4.2)
    assert again == pytest.approx(found, rel=1e-4)
    assert planner.recognition(model, request, "a waltz", [*codes, 2, 7], 4.2) != found
    assert planner.recognition(model, request, "a waltz", codes, 9.0) != found
    # A song that is too long for the planner has no part, and no error.
    assert planner.recognition(model, request, "a waltz", codes * 2_000, 4.2) is None


def test_what_goes_wrong_with_judging_costs_no_take(
    writing: backend.Backend, monkeypatch, caplog: pytest.LogCaptureFixture
):
    def full(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(song_conditions, "audio_codes", full)
    with caplog.at_level(logging.ERROR):
        record = song(writing).record
    assert "could not be judged" in caplog.text
    (take,) = record["takes"]
    assert "recognition" not in take["score_parts"] and take["score"] is not None
    assert record["errors"] == []


# --- shuffled words -------------------------------------------------------------------------------


def test_words_that_are_sung_in_another_order_score_lower():
    """On attention as the heads of a song model show it: a blurred diagonal, with noise."""
    lines, tokens_a_line, frames = 8, 6, 400
    count = lines * tokens_a_line
    tokens = np.repeat(np.arange(lines), tokens_a_line)
    right = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        centres = (np.arange(count) + 0.5) * frames / count
        distance = (np.arange(frames)[None] - centres[:, None]) / (frames / count)
        sung = np.exp(-0.5 * distance**2) + 0.05 * random.uniform(size=(count, frames))
        heads = np.stack([sung, np.roll(sung, 2, axis=1)]).astype(np.float16)
        order = random.permutation(lines)
        while (order == np.arange(lines)).all():
            order = random.permutation(lines)
        places = np.concatenate(
            [np.arange(line * tokens_a_line, (line + 1) * tokens_a_line) for line in order]
        )
        right += song_align.score(heads, tokens) > song_align.score(heads[:, places], tokens)
    assert right >= 0.95 * 40


EXAMPLES = {"lo-fi-at-night": 76, "eight-bit-chase": 150, "folk-duet": 98, "valse-a-paris": 132}


# --- on the built-in engine -----------------------------------------------------------------------


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> backend.Backend:
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    fresh = backend.Backend()
    monkeypatch.setattr(backend, "_backend", fresh)
    return fresh


@pytest.mark.matrix
@pytest.mark.usefixtures("built_in")
def test_sound_takes_are_preferred_to_damaged_ones():
    pieces = list(scores.songs(20, 30))
    for name, compared in scores.pairs(pieces).items():
        assert scores.right(compared) >= 0.95, (name, compared)


def test_damage_is_heard_in_an_example_of_the_built_in_engine():
    """The same on the songs that come with the studio, which take no time to make."""
    pieces = []
    for name, bpm in EXAMPLES.items():
        pieces.append(scores.Piece(audio.decode(f"assets/examples/{name}.mp3"), bpm, 0.0, 1.0))
    for name, compared in scores.pairs(pieces).items():
        if name != "cut off":
            assert scores.right(compared) == 1, (name, compared)
