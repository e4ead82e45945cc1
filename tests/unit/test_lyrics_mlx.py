"""The MLX backend against a fake of mlx-lm's documented functions; MLX itself runs on Apple Silicon only.

The fake's signatures, and the order in which it calls the model, the sampler and the progress callback, are those of
mlx-lm 0.32.2 (mlx_lm/utils.py, mlx_lm/generate.py). As in MLX from 0.31.2 on, a stream works in one thread only.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from dataclasses import fields
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lyrics
from events import StudioError
from model_weights import Weights, find_songwriter
from params import LyricsRequest, parse_request
from planner_decoding import Draw
from tests.weights import SONGWRITER

VOCABULARY = 50
END = 7
RESPONSE = ("token", "finish_reason")
"""The fields of mlx_lm.generate.GenerationResponse that the songwriter reads."""


class Stream:
    """A stream that only the thread that made it may use."""

    def __init__(self):
        self._thread = threading.get_ident()

    def check(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("There is no Stream(gpu, 1) in current thread.")


class FakeMlx:
    """mlx.core and mlx_lm, as far as the songwriter uses them."""

    def __init__(self):
        self.loaded: list[str] = []
        self.threads: set[int] = set()
        self.steps = 0
        self.closed = 0
        self.failure: Exception | None = None
        self.reads_forever = False
        self.core = SimpleNamespace(
            array=np.array,
            float32=np.float32,
            new_stream=lambda device: Stream(),
            default_device=lambda: "gpu",
        )

    def load(self, path_or_hf_repo: str) -> tuple[Any, Any]:
        if self.failure:
            raise self.failure
        self.loaded.append(path_or_hf_repo)
        self.threads.add(threading.get_ident())
        return "model", "tokenizer"

    def stream_generate(
        self,
        model,
        tokenizer,
        prompt,
        max_tokens,
        stream,
        sampler,
        prefill_step_size,
        prompt_progress_callback,
    ):
        assert (model, tokenizer) == ("model", "tokenizer")
        assert all(isinstance(token, int) for token in prompt)

        def step(token: int) -> int:
            stream.check()
            self.steps += 1
            self.threads.add(threading.get_ident())
            if self.failure:
                raise self.failure
            scores = np.random.default_rng(token).normal(size=(1, VOCABULARY)).astype(np.float16)
            sampled = sampler(scores)
            assert sampled.shape == (1,)
            return int(sampled.item())

        done, total = 0, len(prompt)
        try:
            prompt_progress_callback(0, total)
            while total - done > 1:
                stream.check()
                done += 0 if self.reads_forever else min(prefill_step_size, total - done - 1)
                prompt_progress_callback(done, total)
            token = step(prompt[-1])
            for number in range(1, max_tokens + 1):
                following = step(token)  # under way before this token is handed out
                if number == 1:
                    prompt_progress_callback(total, total)
                reason = "stop" if token == END else "length" if number == max_tokens else None
                yield SimpleNamespace(token=token, finish_reason=reason)
                if reason:
                    return
                token = following
        finally:
            stream.check()  # mlx-lm synchronises the stream when it is closed
            self.closed += 1


@pytest.fixture(scope="module")
def weights() -> Weights:
    """The tiny model, called one for MLX; transformers is imported here, before it could take the fake for MLX."""
    folder = SONGWRITER
    importlib.import_module("transformers")
    return Weights("studio/mlx", folder, "models", "", "mlx", None, "studio/mlx")


@pytest.fixture
def mlx(weights, monkeypatch) -> FakeMlx:
    """Put the fake where MLX would be."""
    fake = FakeMlx()
    package, core, lm = ModuleType("mlx"), ModuleType("mlx.core"), ModuleType("mlx_lm")
    vars(core).update(vars(fake.core))
    package.core, lm.load, lm.stream_generate = core, fake.load, fake.stream_generate
    for module in (package, core, lm):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake


@pytest.fixture
def songwriter(weights, mlx) -> lyrics.Songwriter:
    """Return a songwriter on the fake, with the tiny model's real tokenizer."""
    return lyrics.load_songwriter(weights, "cpu")


def request(**options: Any) -> LyricsRequest:
    """Return a request for 16 tokens, unless `options` say otherwise."""
    return parse_request("lyrics", {"brief": "rain", "options": {"max_tokens": 16, **options}})


def test_the_fake_has_the_signatures_of_mlx_lm():
    pytest.importorskip("mlx_lm", reason="mlx-lm runs on Apple Silicon only")
    generate = importlib.import_module("mlx_lm.generate")
    real = importlib.import_module("mlx_lm")
    parameters = {
        *inspect.signature(real.stream_generate).parameters,
        *inspect.signature(generate.generate_step).parameters,
    }
    assert set(inspect.signature(FakeMlx.stream_generate).parameters) - {"self"} <= parameters
    assert "path_or_hf_repo" in inspect.signature(real.load).parameters
    assert set(RESPONSE) <= {field.name for field in fields(generate.GenerationResponse)}


def test_it_writes_in_one_thread_and_settings_mean_what_they_do_elsewhere(
    songwriter, mlx, monkeypatch
):
    def last(seed, **options):
        return list(songwriter.write(request(**options), seed))[-1]

    texts = [last(seed, temperature=1.5).text for seed in (3, 4, 3)]
    assert texts[0] == texts[2] != texts[1]
    assert (
        len(
            {
                *(last(seed, temperature=0).text for seed in range(4)),
                last(1, temperature=1, top_p=0.05).text,
            }
        )
        == 1
    )
    monkeypatch.setattr(sys.modules[__name__], "END", -1)
    for most in (16, 40):
        assert (last(3, max_tokens=most).tokens, last(3, max_tokens=most).end) == (most, "length")
    assert len(mlx.threads) == 1 and threading.get_ident() not in mlx.threads
    assert mlx.loaded == [str(songwriter.weights.folder)]


def test_the_end_token_ends_it_and_is_no_text(songwriter, monkeypatch):
    def tokens():
        drawn = songwriter.model.tokens(
            [1, 2], lyrics.Sampler(Draw(1.0, 1.0), 3, 30, VOCABULARY), 30
        )
        return [token for token in drawn if token is not None]

    free = tokens()
    assert 2 < len(free) <= 30
    monkeypatch.setattr(sys.modules[__name__], "END", free[2])
    assert tokens() == free[: free.index(free[2])]


def test_closing_stops_it_within_one_token_or_while_it_reads_the_prompt(
    songwriter, mlx, monkeypatch
):
    drafts = songwriter.write(request(max_tokens=2_000), 3)
    while next(drafts).tokens < 3:
        pass
    drafts.close()
    assert mlx.steps <= 5  # three, the one that mlx-lm has under way, and one more
    assert mlx.closed == 1
    monkeypatch.setattr(lyrics, "BEAT_SECONDS", 0.01)
    mlx.reads_forever, mlx.steps = True, 0
    drafts = songwriter.write(request(), 3)
    assert next(drafts).tokens == 0  # a sign of life while nothing is written yet
    drafts.close()
    assert (mlx.steps, mlx.closed) == (0, 2)
    # The thread is free at once, and the next request starts afresh.
    mlx.reads_forever = False
    assert list(songwriter.write(request(), 4))[-1].end


def test_a_failure_to_load_is_reported_and_downloads_nothing(weights, mlx, monkeypatch):
    mlx.failure = ValueError("Model type qwen9 not supported.\nand more")
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("a download")
    )
    with pytest.raises(StudioError, match=r"Model type qwen9 not supported\.") as caught:
        lyrics.load_songwriter(weights, "cpu")
    assert caught.value.problem.code == "mlx_failed"
    for name in ("mlx", "mlx.core", "mlx_lm"):  # not installed
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StudioError, match="with MLX"):
        lyrics.load_songwriter(weights, "cpu")


def test_a_failure_while_writing_is_reported_and_the_songwriter_lives_on(songwriter, mlx):
    mlx.failure = RuntimeError("[metal] Command buffer execution failed: Insufficient Memory")
    with pytest.raises(StudioError, match="Insufficient Memory"):
        list(songwriter.write(request(), 3))
    mlx.failure = None
    assert list(songwriter.write(request(), 3))[-1].end


def test_a_mac_looks_for_the_mlx_model(monkeypatch, tmp_path):
    monkeypatch.delenv("ACE_STUDIO_LYRICS", raising=False)
    monkeypatch.setattr("model_weights.MODELS_FOLDER", tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    found = find_songwriter()
    assert (found.engine, found.wanted) == ("mlx", "mlx-community/Qwen2.5-7B-Instruct-4bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = find_songwriter()
    assert (found.engine, found.wanted) == ("transformers", "Qwen/Qwen2.5-7B-Instruct")
