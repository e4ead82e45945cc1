"""The real weights on a real card, through the whole studio: pytest -m gpu

Needs the model on this machine (ACE_STUDIO_MODEL, models/ or the Hugging Face cache; also the planner and the lyrics
writer for their tests) and a CUDA or MPS device; what is missing is skipped with its reason. Takes some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import audio
import audio_levels
import model_offload
from tests.program import ROOT

pytestmark = pytest.mark.gpu
RATE = 48_000
LYRICS = (
    "[Verse]\nSlow light on the window\nSteam above the cup\n"
    "[Chorus]\nStay a while, stay a while\nTill the day is up"
)
WORDS = {
    "prompt": "warm lo-fi piano with brushed drums, female vocals",
    "lyrics": LYRICS,
    "language": "en",
}

# The tests' own environment names the preview and an empty cache, which libraries have read by now: a studio that runs
# on what the user has is a process of its own.
WORKER = """
import json, sys
from bootstrap import bootstrap
bootstrap()
import backend, events, params
studio = backend.get_backend()
weights = studio.models.weights
facts = {"engine": weights.engine, "problem": weights.problem and weights.problem.text()}
published = studio.capabilities()
facts |= {name: published[name] for name in ("device", "planner", "lyrics")}
print(json.dumps(facts), flush=True)
for line in sys.stdin:
    mode, values = json.loads(line)
    *_, last = studio.stream(params.parse_request(mode, values))
    if isinstance(last, events.Done):
        print(json.dumps({"files": last.files, "record": last.record}), flush=True)
    else:
        print(json.dumps({"failed": last.problem.text()}), flush=True)
"""
OURS = ("ACE_STUDIO_MODEL", "ACE_STUDIO_PLANNER", "ACE_STUDIO_LYRICS", "HF_HOME", "HF_HUB_CACHE")


class Studio:
    """A studio on the real weights; `ask` makes one thing after the other."""

    def __init__(self, folder: Path):
        environ = {name: value for name, value in os.environ.items() if name not in OURS}
        # What the user named for this run: GPU_ACE_STUDIO_MODEL=... pytest -m gpu
        environ |= {name: os.environ[f"GPU_{name}"] for name in OURS if f"GPU_{name}" in os.environ}
        environ |= {
            "ACE_STUDIO_OUTPUT": str(folder / "songs"),
            "GRADIO_TEMP_DIR": str(folder / "page"),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._answer()

    def ask(self, mode: str, **values) -> dict:
        """Return files and record of what was asked for."""
        self._process.stdin.write(json.dumps([mode, values]) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert "failed" not in answer, answer["failed"]
        return answer

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise AssertionError("the studio ended")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    studio = Studio(tmp_path_factory.mktemp("gpu"))
    try:
        if studio.facts["engine"] != "xl":
            pytest.skip(f"the real weights are not here: {studio.facts['problem']}")
        if studio.facts["device"] == "cpu":
            pytest.skip("there is no GPU")
        yield studio
    finally:
        studio.close()


@pytest.fixture(scope="module")
def source(studio) -> str:
    """A song of 30 s to work on."""
    return studio.ask("generate", **WORDS, duration=30, seed=7)["files"][0]


def heard(path: str, seconds: float) -> np.ndarray:
    """Return the samples of a file that is as long as it should be, is not silent, is not clipped and is no noise."""
    samples = audio.decode(path)
    assert samples.shape == (2, round(seconds * RATE))
    assert np.isfinite(samples).all() and np.abs(samples).max() <= 1.0
    parts = samples[:, : samples.shape[1] // RATE * RATE].reshape(2, -1, RATE)
    loud = np.sqrt((parts**2).mean(axis=(0, 2)))
    assert np.median(loud) > 0.01, "most of it is silent"
    assert audio_levels.spectral_flatness(samples) < 0.3, "it sounds like noise"
    return samples


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seconds", [30, 120, 240])
def test_generate(studio, seconds):
    answer = studio.ask("generate", **WORDS, duration=seconds, seed=7)
    heard(answer["files"][0], seconds)
    assert answer["record"]["model"]["engine"] == "xl"
    assert answer["record"]["sampling"]["steps"] == 50


@pytest.mark.timeout(1800)
def test_four_takes_differ_and_a_seed_repeats_its_song(studio):
    four = [
        heard(path, 30)
        for path in studio.ask("generate", **WORDS, duration=30, seed=7, takes=4)["files"]
    ]
    assert not any(np.allclose(four[0], other, atol=1e-2) for other in four[1:])
    plain = {**WORDS, "duration": 30, "seed": 8}
    once, again = (heard(studio.ask("generate", **plain)["files"][0], 30) for _ in range(2))
    assert np.allclose(once, again, atol=1e-3)


@pytest.mark.timeout(1800)
def test_a_plan_shapes_the_song(studio):
    if studio.facts["planner"]["state"] in ("none", "off"):
        pytest.skip("the planner is not here")
    answer = studio.ask("generate", **WORDS, duration=30, seed=7)
    assert answer["record"]["plan"]["used"], answer["record"]["plan"]
    heard(answer["files"][0], 30)


@pytest.mark.timeout(1800)
def test_cover(studio, source):
    made = heard(
        studio.ask(
            "cover", **{**WORDS, "prompt": "hard rock with electric guitars"}, source=source
        )["files"][0],
        30,
    )
    assert not np.allclose(made, audio.decode(source), atol=1e-2)


@pytest.mark.timeout(1800)
def test_extend_keeps_the_source(studio, source):
    made = heard(
        studio.ask("extend", **WORDS, source=source, after=20, options={"overlap": 2})["files"][0],
        50,
    )
    kept = 28 * RATE
    # 24 bits in the file.
    assert np.abs(made[:, :kept] - audio.decode(source)[:, :kept]).max() < 2**-22
    assert np.sqrt((made[:, 32 * RATE :] ** 2).mean()) > 0.01


@pytest.mark.timeout(1800)
def test_a_repaint_keeps_all_but_its_region(studio, source):
    answer = studio.ask("edit", **WORDS, source=source, action="repaint", start=10, end=15)
    made, before = heard(answer["files"][0], 30), audio.decode(source)
    outside = np.r_[0 : 9 * RATE, 16 * RATE : 30 * RATE]
    assert np.abs(made[:, outside] - before[:, outside]).max() < 2**-22
    inside = slice(11 * RATE, 14 * RATE)
    assert not np.allclose(made[:, inside], before[:, inside], atol=1e-2)


@pytest.mark.timeout(1800)
def test_lyrics(studio):
    if studio.facts["lyrics"]["state"] in ("none", "off"):
        pytest.skip("the songwriter is not here")
    record = studio.ask("lyrics", brief="A slow song about rain in May", language="en", seed=7)[
        "record"
    ]
    assert "[" in record["text"] and len(record["text"].splitlines()) > 8
    assert record["end"] in ("stop", "length")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plan", ["swap", "offload", "fp8", "fast8"])
def test_every_memory_plan_makes_a_song(studio, plan):
    if studio.facts["device"] != "cuda" and plan != "swap":
        pytest.skip("only an NVIDIA card has this plan")
    if plan == "fast8" and not model_offload.float8_is_supported():
        pytest.skip("this card has no float8 arithmetic")
    answer = studio.ask("generate", **WORDS, duration=30, seed=7, options={"memory_plan": plan})
    assert answer["record"]["memory_plan"] == plan
    heard(answer["files"][0], 30)
