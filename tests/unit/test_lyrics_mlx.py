"""The MLX backend against a fake of mlx-lm's documented functions; MLX itself runs on Apple Silicon only.

The fake's signatures, and the order in which it calls the model, the sampler and the progress callback, are those of
mlx-lm 0.32.2 (mlx_lm/utils.py, mlx_lm/generate.py). As in MLX from 0.31.2 on, a stream works in one thread only.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lyrics
import preview
from events import StudioError
from params import LyricsRequest, parse_request
from weights import Weights, find_writer

VOCABULARY = 50
END = 7


@dataclass
class GenerationResponse:
    """The fields of mlx_lm.generate.GenerationResponse that the writer may read."""

    token: int
    logprobs: Any
    prompt_tokens: int
    generation_tokens: int
    finish_reason: str | None = None


class Stream:
    """A stream that only the thread that made it may use."""

    def __init__(self):
        self._thread = threading.get_ident()

    def check(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("There is no Stream(gpu, 1) in current thread.")


class FakeMlx:
    """mlx.core and mlx_lm, as far as the writer uses them."""

    def __init__(self):
        self.loaded: list[str] = []
        self.threads: set[int] = set()
        self.steps = 0
        self.closed = 0
        self.failure: Exception | None = None
        self.delay: Callable[[], None] = lambda: None
        self.core = SimpleNamespace(
            array=np.array, float32=np.float32, new_stream=lambda device: Stream(), default_device=lambda: "gpu"
        )

    def load(self, path_or_hf_repo: str) -> tuple[Any, Any]:
        if self.failure:
            raise self.failure
        self.loaded.append(path_or_hf_repo)
        self.threads.add(threading.get_ident())
        return "model", "tokenizer"

    def generate_step(
        self, prompt, model, stream=None, *, max_tokens=256, sampler=None, prefill_step_size=2048,
        prompt_progress_callback=None,
    ):  # fmt: skip
        done, total, last = 0, len(prompt), int(prompt[-1])
        prompt_progress_callback(0, total)
        while total - done > 1:
            self.delay()
            stream.check()
            done += min(prefill_step_size, total - done - 1)
            prompt_progress_callback(done, total)

        def step(token: int) -> tuple[Any, Any]:
            stream.check()
            self.steps += 1
            self.threads.add(threading.get_ident())
            if self.failure:
                raise self.failure
            scores = np.random.default_rng(token).normal(size=(1, VOCABULARY)).astype(np.float16)
            sampled = sampler(scores)
            assert sampled.shape == (1,)
            return sampled, scores[0]

        token, scores = step(last)
        for drawn in range(max_tokens + 1):
            # The next token is under way before this one is handed out.
            following = step(int(token.item())) if drawn != max_tokens else None
            if drawn == 0:
                prompt_progress_callback(total, total)
            if following is None:
                return
            yield token.item(), scores
            token, scores = following

    def stream_generate(self, model, tokenizer, prompt, max_tokens=256, stream=None, **kwargs):
        assert (model, tokenizer) == ("model", "tokenizer")
        assert all(isinstance(token, int) for token in prompt)
        try:
            reply = self.generate_step(prompt, model, stream, max_tokens=max_tokens, **kwargs)
            for number, (token, scores) in enumerate(reply, 1):
                if token == END or number == max_tokens:
                    break
                yield GenerationResponse(token, scores, len(prompt), number)
            reason = "stop" if token == END else "length"
            yield GenerationResponse(token, scores, len(prompt), number, reason)
        finally:
            stream.check()  # mlx-lm synchronises the stream when it is closed
            self.closed += 1


@pytest.fixture(scope="module")
def weights() -> Weights:
    """The tiny model, called one for MLX; transformers is imported here, before it could take the fake for MLX."""
    folder = preview.language_model_folder("qwen2")
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
def writer(weights, mlx):
    """A writer on the fake, with the tiny model's real tokenizer."""
    made = lyrics.build_writer(weights, "cpu")
    yield made
    made.close()


def request(**options: Any) -> LyricsRequest:
    """A request for 16 tokens unless `options` say otherwise."""
    return parse_request("lyrics", {"brief": "rain", "options": {"max_tokens": 16, **options}})


def test_the_fake_has_the_signatures_of_mlx_lm():
    pytest.importorskip("mlx_lm", reason="mlx-lm runs on Apple Silicon only")
    generate = importlib.import_module("mlx_lm.generate")
    real = importlib.import_module("mlx_lm")
    for function in (real.load, real.stream_generate, generate.generate_step):
        ours = set(inspect.signature(getattr(FakeMlx, function.__name__)).parameters) - {"self"}
        assert ours <= set(inspect.signature(function).parameters), function
    ours = {field.name for field in fields(GenerationResponse)}
    assert ours <= {field.name for field in fields(generate.GenerationResponse)}


def test_it_writes_in_one_thread_of_its_own(writer, mlx):
    drafts = list(writer.write(request(), 3))
    assert drafts[-1].end in ("stop", "length")
    assert len(mlx.threads) == 1
    assert threading.get_ident() not in mlx.threads
    assert mlx.loaded == [str(writer.weights.folder)]
    assert writer.kind == "mps"


def test_seeds_repeat_and_temperature_zero_or_a_small_top_p_is_greedy(writer):
    def text(seed, **options):
        return list(writer.write(request(**options), seed))[-1].text

    texts = [text(seed, temperature=1.5) for seed in (3, 4, 3)]
    assert texts[0] == texts[2] != texts[1]
    assert len({text(seed, temperature=0) for seed in range(4)} | {text(1, temperature=1, top_p=0.05)}) == 1


def test_it_stops_at_the_token_limit(writer, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "END", -1)
    for most in (16, 40):
        drafts = list(writer.write(request(max_tokens=most), 3))
        assert (drafts[-1].tokens, drafts[-1].end) == (most, "length")


def test_the_end_token_ends_it_and_is_no_text(writer, monkeypatch):
    free = list(writer._model.tokens([1, 2], lyrics.Sampler(1.0, 1.0, 3, VOCABULARY), 30))
    tokens = [token for token in free if token is not None]
    assert 2 < len(tokens) <= 30
    monkeypatch.setattr(sys.modules[__name__], "END", tokens[2])
    cut = list(writer._model.tokens([1, 2], lyrics.Sampler(1.0, 1.0, 3, VOCABULARY), 30))
    assert [token for token in cut if token is not None] == tokens[: tokens.index(tokens[2])]


def test_closing_stops_it_within_one_token(writer, mlx):
    drafts = writer.write(request(max_tokens=2_000), 3)
    while next(drafts).tokens < 3:
        pass
    drafts.close()
    steps = mlx.steps
    assert steps <= 5  # three, the one that mlx-lm has under way, and one more
    assert mlx.closed == 1
    # The thread is free at once, and the next request starts afresh.
    assert list(writer.write(request(), 4))[-1].end


def test_closing_while_it_reads_the_prompt(writer, mlx, monkeypatch):
    monkeypatch.setattr(lyrics, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(lyrics, "PROMPT_CHUNK", 4)
    mlx.delay = lambda: time.sleep(0.05)
    drafts = writer.write(request(), 3)
    assert next(drafts).tokens == 0  # a sign of life while nothing is written yet
    drafts.close()
    assert mlx.steps == 0
    assert mlx.closed == 1


def test_a_failure_to_load_is_told_and_fetches_nothing(weights, mlx, monkeypatch):
    mlx.failure = ValueError("Model type qwen9 not supported.\nand more")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("a download"))
    with pytest.raises(StudioError) as caught:
        lyrics.build_writer(weights, "cpu")
    assert caught.value.problem.code == "mlx_failed"
    assert "Model type qwen9 not supported." in str(caught.value)
    assert "Nothing else was fetched" in caught.value.problem.hint
    for name in ("mlx", "mlx.core", "mlx_lm"):  # not installed
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StudioError, match="with MLX"):
        lyrics.build_writer(weights, "cpu")


def test_a_failure_while_writing_is_told_and_the_writer_lives_on(writer, mlx):
    mlx.failure = RuntimeError("[metal] Command buffer execution failed: Insufficient Memory")
    with pytest.raises(StudioError) as caught:
        list(writer.write(request(), 3))
    assert "Insufficient Memory" in str(caught.value)
    mlx.failure = None
    assert list(writer.write(request(), 3))[-1].end


def test_a_mac_looks_for_the_mlx_model(monkeypatch, tmp_path):
    monkeypatch.delenv("ACE_STUDIO_LYRICS", raising=False)
    monkeypatch.setattr("weights.MODELS_FOLDER", tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    found = find_writer()
    assert (found.engine, found.wanted) == ("mlx", "mlx-community/Qwen2.5-7B-Instruct-4bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = find_writer()
    assert (found.engine, found.wanted) == ("transformers", "Qwen/Qwen2.5-7B-Instruct")
