"""The training of the built-in planner: what it exports is what it trained, and it resumes exactly."""

from __future__ import annotations

import dataclasses
import pickle
import random

import numpy as np
import pytest
import torch

from training import engine_codes, engine_parts, planner

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizing(tmp_path_factory: pytest.TempPathFactory) -> planner.Tokenizing:
    folder = tmp_path_factory.mktemp("engine")
    engine_parts.build_codes()["audio_tokenizer"].save_pretrained(folder / "audio_tokenizer")
    torch.save({"mu": torch.zeros(32), "sd": torch.ones(32)}, folder / "norm.pt")
    return planner.Tokenizing(folder, folder / "norm.pt")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few short pieces, few codes."""
    monkeypatch.setattr(planner, "SHARD", 12)
    monkeypatch.setattr(planner, "MEASURED", 2)
    monkeypatch.setattr(planner, "SECONDS", (10,))
    monkeypatch.setattr(planner, "CODES", 200)
    monkeypatch.setattr(planner, "BATCH_TOKENS", 300)


def test_what_is_exported_computes_what_was_trained(few, tokenizing, tmp_path):
    training = planner.Training(tmp_path, tokenizing)
    training.run(3, 0)
    training._put(training.mean)
    lesson = training.teacher.lesson(training.pieces.shard(0)[0], "generate", random.Random(1))
    tokens = torch.tensor([lesson.tokens])
    model = training.exportable()
    with torch.no_grad():
        trained = training._losses([lesson], by_digit=True)
        scores = model(input_ids=tokens[:, :-1]).logits[0]
    first = training.teacher.first_code
    codes = torch.tensor(lesson.learnt[1:]) == 2
    own = torch.nn.functional.cross_entropy(scores[codes][:, first:], tokens[0, 1:][codes] - first)
    assert float(own) == pytest.approx(float(trained["codes"]), rel=1e-4)
    # What each digit says costs no more than the whole code.
    assert {"moment", "beat", "drums", "playing", "chord"} <= trained.keys()
    assert all(float(trained[name]) <= float(own) + 1e-4 for name in (*engine_codes.NAMES, "chord"))
    # Every part of a code is learnt from, and what the parts cannot say as well.
    for name in ("text", "parts", "own"):
        assert training.trained[f"embedding.{name}"].abs().max() > 0


def test_a_resumed_training_of_the_planner_is_one_that_was_not_stopped(few, tokenizing, tmp_path):
    whole = planner.Training(tmp_path / "whole", tokenizing)
    whole.run(4, 0)
    planner.Training(tmp_path / "parts", tokenizing).run(2, 0)
    resumed = planner.Training(tmp_path / "parts", tokenizing)
    assert resumed.updates == 2
    resumed.run(4, 0)
    assert all(torch.equal(resumed.mean[name], value) for name, value in whole.mean.items())


def test_drafts_are_drawn_as_the_studio_draws_them(few, tokenizing, tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "DRAFTED", 10)
    training = planner.Training(tmp_path, tokenizing)
    found = training.drafts(1)
    assert 1 <= found["draft_different"] <= 50
    assert all(0 <= found[f"draft_{name}"] <= 1 for name in ("tempo", "steady", "in_key"))


def test_lessons_hold_what_the_score_does_and_what_the_tokenizer_hears(few, tokenizing, tmp_path):
    training = planner.Training(tmp_path, tokenizing)
    piece = training.pieces.shard(0)[0]
    teacher = training.teacher
    for task, wanted in (("generate", teacher.alike(piece.codes)), ("describe", None)):
        lesson = teacher.lesson(piece, task, random.Random(2))
        tokens = training.tokenizer.convert_ids_to_tokens(list(lesson.tokens))
        codes = [int(token[13:-2]) for token in tokens if token.startswith("<|audio_code_")]
        assert codes == (wanted or [teacher._nearest(code) for code in piece.heard])
    known = np.array(teacher.known)
    assert np.isin(teacher.alike(piece.codes), known).all()
    held = pickle.loads((tmp_path / tokenizing.digest / "scores-0.pkl").read_bytes())
    assert held[0]["codes"] == piece.codes


def test_a_planner_is_not_exported_for_an_engine_whose_codes_mean_something_else(
    few, tokenizing, tmp_path
):
    training = planner.Training(tmp_path, tokenizing)
    with pytest.raises(ValueError, match="train its codes"):
        training.export(tmp_path / "planner")
    pieces = training.pieces.shard(-1)
    pieces[:] = [dataclasses.replace(piece, heard=piece.codes) for piece in pieces]
    training.export(tmp_path / "planner")
    weights = (tmp_path / "planner" / "model.safetensors").stat().st_size
    assert weights == pytest.approx(2 * training.model.num_parameters(), rel=0.01)


def test_some_lessons_have_codes_that_lead_astray(few, tokenizing, tmp_path):
    training = planner.Training(tmp_path, tokenizing)
    first = training.teacher.first_code
    tokens = torch.full((40, 60), first + 1)
    tokens[:, :10] = 7
    codes = tokens >= first
    heard = training._misheard(tokens, codes, torch.Generator().manual_seed(1))
    changed = heard != tokens
    assert not changed[:, :10].any()
    assert changed.any(dim=1).any() and not changed.any(dim=1).all()
    assert first <= heard[codes].min() and heard.max() < first + len(training.teacher.known)
