"""Timed lyrics through the backend: a finished song becomes lines with times, on a checkpoint that names its heads."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import align
import audio
import backend
import codec
import export
import sampling
from events import Done, Failed, InvalidRequest, Progress
from limits import SAMPLE_RATE
from params import parse_request

LYRICS = "[Verse]\nslow light on the window\n\n[Chorus]\nstay (ooh) a while"
SECONDS = 12


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A copy of the tiny checkpoint whose transformer names the heads that follow the lyrics."""
    copy = shutil.copytree(tiny, tmp_path_factory.mktemp("checkpoints") / "with-heads")
    place = copy / "transformer" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), align.CONFIG_KEY: {"0": [1], "1": [0]}}))
    return copy


@pytest.fixture(scope="module")
def studio(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_STUDIO_MODEL", str(folder))
        fresh = backend.Backend()
        patch.setattr(backend, "_backend", fresh)
        yield fresh


@pytest.fixture(scope="module")
def take(tmp_path_factory):
    """A finished song: something to hear, in the left ear at first and then in the right."""
    path = tmp_path_factory.mktemp("songs") / "take.wav"
    times = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.4 * np.sin(2 * np.pi * (200 + 20 * times) * times)
    export.encode(np.stack([tone * (times < 6), tone * (times >= 6)]), path, "wav")
    return str(path)


def ask(take, **values):
    words = {"source": take, "prompt": "calm piano", "lyrics": LYRICS, "language": "en", "bpm": 90, "seed": 7}
    return parse_request("align", {**words, **values})


def run(studio, take, **values):
    *progress, last = studio.stream(ask(take, **values))
    assert all(isinstance(event, Progress) for event in progress)
    return last, {event.stage for event in progress}


@pytest.mark.parametrize("planned", [False, True])
def test_every_sung_line_has_its_time(studio, take, planned):
    done, stages = run(studio, take, planned=planned, steps=20)
    assert isinstance(done, Done), done
    assert {"preparing", "aligning"} <= stages
    record = json.loads(json.dumps(done.record))
    lines = record["lines"]
    assert [line["text"] for line in lines] == ["slow light on the window", "stay (ooh) a while"]
    assert 0 <= lines[0]["start"] <= lines[0]["end"] <= lines[1]["end"] <= SECONDS
    assert lines[0]["start"] <= lines[1]["start"]
    assert record["lrc"].splitlines()[1].endswith("]stay (ooh) a while")
    assert 0 <= record["score"] <= 1
    assert record["seconds"]["aligning"] > 0 and record["model"]["id"]
    assert not done.files and not {"source", "path"} & set(record["request"])


def test_the_times_repeat_and_follow_the_song(studio, take, tmp_path):
    first, again = (run(studio, take)[0].record for _ in range(2))
    assert (first["lines"], first["score"]) == (again["lines"], again["score"])
    backwards = str(tmp_path / "backwards.wav")
    export.encode(audio.decode(take)[:, ::-1], backwards, "wav")
    assert run(studio, backwards)[0].record["score"] != first["score"]


def test_what_is_heard_are_the_heads_of_the_noisy_song(studio, take, monkeypatch):
    heard = {}

    def attention(pipe, condition, latents, noise, t, heads, tokens):
        heard.update(t=t, heads=heads, latents=latents, noise=noise, tokens=tokens)
        return whole(pipe, condition, latents, noise, t, heads, tokens)

    whole = align.attention
    monkeypatch.setattr(align, "attention", attention)
    run(studio, take, steps=25)
    pipe = studio.models.pipeline()
    assert (heard["t"], heard["heads"]) == (1 / 25, {0: (1,), 1: (0,)})
    assert heard["latents"].shape[1] == codec.frames_for(pipe, SECONDS)
    drawn = sampling.draw_noise(sampling.generators_for((7,)), *heard["latents"].shape[1:])
    assert bool((heard["noise"] == drawn).all())
    assert heard["tokens"] == align.lyric_slice(pipe, LYRICS, "en")[0]


def test_a_song_without_words_cannot_be_asked_for(take):
    for values in ({"lyrics": ""}, {"instrumental": True}, {"lyrics": "[Instrumental]"}):
        with pytest.raises(InvalidRequest, match="nothing is sung"):
            ask(take, **values)


def test_a_checkpoint_without_heads_says_so(studio, take, monkeypatch):
    assert studio.status()["timed_lyrics"] == {"available": True, "reason": ""}
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    fresh = backend.Backend()
    monkeypatch.setattr(backend, "_backend", fresh)
    facts = fresh.capabilities()["timed_lyrics"]
    assert not facts["available"] and "no attention heads" in facts["reason"]
    last, _ = run(fresh, take)
    assert isinstance(last, Failed) and last.problem.code == "unsupported"
