"""Timed lyrics: the heads' attention is the transformer's own, times follow from it, and the backend gives them."""

from __future__ import annotations

import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch

import audio
import backend
import song_align
import song_codec
import song_conditions
import song_loop
from events import Done, Failed, InvalidRequest, Progress
from limits import MAX_LYRIC_TOKENS, SAMPLE_RATE
from params import parse_request
from status import TimedLyrics
from tests.engine.songs import song
from tests.files import write_song

LYRICS = "[Verse 1]\nslow light on the window\n\n[Chorus - soft]\nstay (ooh) a while\n"
HEADS = {0: (1,), 1: (0, 1)}
SONG = slice(2, 7)
SECONDS = 12


def test_the_config_names_the_heads(pipe):
    config = pipe.transformer.config
    assert (
        song_align.alignment_heads({**config, song_align.CONFIG_KEY: {"0": [1], "1": [0, 1]}})
        == HEADS
    )
    for named in (None, {"99": [0]}, {"0": [99]}, {"0": ["x"]}, {"0": 3}, [1]):
        assert song_align.alignment_heads({**config, song_align.CONFIG_KEY: named}) == {}, named
    assert (
        song_align.alignment_heads({}) == {}
        and song_align.alignment_heads({song_align.CONFIG_KEY: {"0": [1]}}) == {}
    )
    # The official shapes have the heads of upstream.
    for shape, layer, heads in (((32, 32), 5, (5, 6, 7)), ((24, 16), 3, (10, 11))):
        official = {"num_hidden_layers": shape[0], "num_attention_heads": shape[1]}
        assert song_align.alignment_heads(official)[layer] == heads


@pytest.mark.numbers
def test_attention_is_what_the_transformer_attends_to_and_leaves_nothing_behind(pipe, monkeypatch):
    condition, latents, noise = _song(pipe, 61)
    before = _forward(pipe, condition, latents)
    heard = song_align.attention(pipe, condition, latents, noise, 0.02, HEADS, SONG)
    assert torch.equal(_forward(pipe, condition, latents), before)
    assert not any(layer.cross_attn._forward_pre_hooks for layer in pipe.transformer.layers)
    everything = _eager(pipe, condition, latents, noise, 0.02, monkeypatch)
    expected = np.stack(
        [everything[layer][head][:, SONG].T for layer in HEADS for head in HEADS[layer]]
    )
    assert heard.shape == (3, 5, 31)
    np.testing.assert_allclose(heard, expected, atol=1e-3)
    assert heard.astype(np.float32).std() > 0


def test_tokens_know_their_lines_and_what_is_sung(pipe):
    for lyrics in [LYRICS, "hé [x] 夜の🎵空\r\nok", "one", "x" * 9_000 + "\nend"]:
        where, tokens = song_align.lyric_slice(pipe, lyrics, "en")
        _, text = pipe._format_prompt(prompt="", lyrics=lyrics, vocal_language="en")
        ids = pipe.tokenizer(text, truncation=True, max_length=MAX_LYRIC_TOKENS).input_ids
        assert where.stop - where.start == len(tokens) and where.stop <= len(ids)
        assert pipe.tokenizer.decode(ids[: where.start]).endswith("# Lyric\n")
        written = pipe.tokenizer.decode(ids[where]).removesuffix("<|endoftext|>")
        assert lyrics.startswith(written) or written.strip() == lyrics.strip()
        lines = tokens[tokens >= 0].tolist()
        assert lines == sorted(lines)
        for number, line in enumerate(lyrics.split("\n")):
            sung, reached = number in lines, number <= lines[-1]
            assert sung == (bool(re.sub(r"\[[^\]]*\]", "", line).strip()) and reached)


def test_the_warp_is_the_cheapest_way():
    for rows, columns in [(1, 9), (7, 1), (6, 11), (11, 6)]:
        cost = np.random.default_rng(rows * columns).normal(size=(rows, columns))
        found = song_align.warp(cost)
        assert (found[0][0], found[1][0]) == (0, 0) and (found[0][-1], found[1][-1]) == (
            rows - 1,
            columns - 1,
        )
        steps = set(zip(np.diff(found[0]), np.diff(found[1]), strict=True))
        assert steps <= {(0, 1), (1, 0), (1, 1)}
        assert cost[found].sum() == pytest.approx(_cheapest(cost))


def test_lines_are_timed_where_the_attention_is():
    lyrics = "[Verse]\nfirst line\nsecond line"
    tokens = np.array([-1, 1, 1, -1, 2, 2])
    borders = [0, 5, 10, 20, 22, 30, 40]
    heads = np.random.default_rng(0).uniform(0, 0.02, (3, 6, 40))
    for row, (start, end) in enumerate(itertools.pairwise(borders)):
        heads[:, row, start:end] += 0.9
    lines = song_align.timed_lines(heads, tokens, lyrics, 8.0)
    assert [tuple(line.values()) for line in lines] == [
        (1.0, 4.0, "first line"),
        (4.4, 8.0, "second line"),
    ]
    assert song_align.lrc(lines) == "[00:01.00]first line\n[00:04.40]second line\n"


def test_the_score_tells_singing_from_noise():
    tokens = np.array([-1, *[1] * 9])
    diagonal = np.full((2, 10, 200), 0.01)
    for row in range(10):
        diagonal[:, row, row * 20 : row * 20 + 20] = 0.8
    noise = np.random.default_rng(0).uniform(0, 1, (2, 10, 200))
    assert song_align.score(diagonal, tokens) > 0.9
    assert song_align.score(diagonal[:, ::-1], tokens) < 0.2
    assert song_align.score(noise, tokens) < song_align.score(diagonal, tokens) - 0.2
    assert song_align.score(diagonal, np.full(10, -1)) == 0.0
    assert song_align.score(np.zeros((1, 10, 200)), tokens) == 0.0


def _song(pipe, frames):
    words = {"prompt": "piano", "lyrics": LYRICS, "audio_duration": frames / 25}
    condition = song_conditions.encode_condition(
        pipe, words, song_conditions.silent_context(pipe, frames)
    )
    generators = song_loop.generators_for((1, 2))
    channels = pipe.transformer.config.audio_acoustic_hidden_dim
    latents, noise = song_loop.draw_noise(generators, frames, channels).split(1)
    return condition, latents, noise


def _forward(pipe, condition, latents, t=0.02):
    time = torch.full((1,), t)
    with torch.no_grad():
        return pipe.transformer(
            latents, time, time, condition.states, condition.context, return_dict=False
        )[0]


def _eager(pipe, condition, latents, noise, t, monkeypatch):
    """Run the transformer with attention written out; return each layer's weights [heads, F, L]."""
    from diffusers.models.transformers import ace_step_transformer as module

    weights = []

    def dispatch(query, key, value, attn_mask=None, scale=None, **_):
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        logits = query @ key.transpose(-1, -2) * scale
        a = (logits if attn_mask is None else logits + attn_mask).softmax(-1)
        weights.append(a[0].numpy())
        return (a @ value).transpose(1, 2)

    monkeypatch.setattr(module, "dispatch_attention_fn", dispatch)
    _forward(pipe, condition, song_loop.noised(latents, noise, t), t)
    return weights[1::2]  # self-attention and cross-attention take turns


def _cheapest(cost):
    total = np.full_like(cost, np.inf)
    for i, j in np.ndindex(cost.shape):
        before = (
            [total[i - 1, j - 1]] * (i > 0 and j > 0)
            + [total[i - 1, j]] * (i > 0)
            + [total[i, j - 1]] * (j > 0)
        )
        total[i, j] = cost[i, j] + (min(before) if before else 0)
    return total[-1, -1]


# --- through the backend ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studio(tiny, tmp_path_factory):
    """Return a backend on a copy of the tiny checkpoint whose transformer names the heads that follow the lyrics."""
    copy = shutil.copytree(tiny, tmp_path_factory.mktemp("checkpoints") / "with-heads")
    place = copy / "transformer" / "config.json"
    place.write_text(
        json.dumps({**json.loads(place.read_text()), song_align.CONFIG_KEY: {"0": [1], "1": [0]}})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_STUDIO_MODEL", str(copy))
        fresh = backend.Backend()
        patch.setattr(backend, "_backend", fresh)
        yield fresh


@pytest.fixture(scope="module")
def take(tmp_path_factory):
    path = tmp_path_factory.mktemp("songs") / "take.wav"
    times = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.4 * np.sin(2 * np.pi * (200 + 20 * times) * times)
    write_song(np.stack([tone * (times < 6), tone * (times >= 6)]), path, "wav")
    return str(path)


def ask(take, **values):
    words = {
        "source": take,
        "prompt": "calm piano",
        "lyrics": LYRICS,
        "language": "en",
        "bpm": 90,
        "seed": 7,
    }
    return parse_request("align", {**words, **values})


def timed(studio, take, **values):
    *progress, last = studio.stream(ask(take, **values))
    assert {"preparing", "aligning"} <= {
        event.stage for event in progress if isinstance(event, Progress)
    }
    assert isinstance(last, Done) and not last.files, last
    return json.loads(json.dumps(last.record))


@pytest.mark.parametrize("planned", [False, True])
def test_every_sung_line_has_its_time(studio, take, planned):
    record = timed(studio, take, planned=planned, steps=20)
    lines = record["lines"]
    assert [line["text"] for line in lines] == ["slow light on the window", "stay (ooh) a while"]
    assert 0 <= lines[0]["start"] <= lines[0]["end"] <= lines[1]["end"] <= SECONDS
    assert lines[0]["start"] <= lines[1]["start"]
    assert record["lrc"].splitlines()[1].endswith("]stay (ooh) a while")
    assert 0 <= record["score"] <= 1
    assert record["seconds"]["aligning"] > 0 and record["model"]["id"]
    assert not {"source", "path"} & set(record["request"])


def test_the_times_repeat_and_follow_the_song(studio, take, tmp_path):
    first, again = (timed(studio, take) for _ in range(2))
    assert (first["lines"], first["score"]) == (again["lines"], again["score"])
    backwards = str(tmp_path / "backwards.wav")
    write_song(audio.decode(take)[:, ::-1], backwards, "wav")
    other = timed(studio, backwards)
    assert (other["lines"], other["score"]) != (first["lines"], first["score"])


def test_what_is_heard_are_the_heads_of_the_noisy_song(studio, take, monkeypatch):
    heard = {}

    def attention(pipe, condition, latents, noise, t, heads, tokens):
        heard.update(t=t, heads=heads, latents=latents, noise=noise, tokens=tokens)
        return whole(pipe, condition, latents, noise, t, heads, tokens)

    whole = song_align.attention
    monkeypatch.setattr(song_align, "attention", attention)
    timed(studio, take, steps=25)
    pipe = studio.models.pipeline()
    assert (heard["t"], heard["heads"]) == (1 / 25, {0: (1,), 1: (0,)})
    assert heard["latents"].shape[1] == song_codec.frames_for(pipe, SECONDS)
    drawn = song_loop.draw_noise(song_loop.generators_for((7,)), *heard["latents"].shape[1:])
    assert bool((heard["noise"] == drawn).all())
    assert heard["tokens"] == song_align.lyric_slice(pipe, LYRICS.strip(), "en")[0]


def test_a_song_is_timed_while_it_is_scored(studio, output):
    """Its lines and its alignment score are there at once, from one pass over its own latents."""
    done = song(studio, lyrics=LYRICS, language="en", bpm=90, takes=2)
    takes = done.record["takes"]
    for entry in takes:
        assert [line["text"] for line in entry["lines"]] == [
            "slow light on the window",
            "stay (ooh) a while",
        ]
        assert 0 <= entry["lines"][0]["start"] <= entry["lines"][1]["end"] <= 10
        assert entry["score_parts"]["lyrics"] == pytest.approx(100 * entry["alignment"], abs=0.06)
    assert takes[0]["lines"] != takes[1]["lines"]
    later = timed(studio, done.files[0], steps=2, prompt="calm piano")
    # A VAE of random weights does not give back the latents, so the two scores need not be near each other.
    assert 0 < later["score"] < 1
    assert [line["text"] for line in later["lines"]] == [line["text"] for line in entry["lines"]]
    off = song(studio, lyrics=LYRICS, options={"score": ["noise"]}).record["takes"][0]
    assert not {"lines", "alignment"} & set(off)
    assert "lines" not in song(studio, lyrics="").record["takes"][0]


def test_a_song_without_words_cannot_be_asked_for(take):
    for values in ({"lyrics": ""}, {"instrumental": True}, {"lyrics": "[Instrumental]"}):
        with pytest.raises(InvalidRequest, match="sung text"):
            ask(take, **values)


def test_a_checkpoint_without_heads_says_so(studio, take, monkeypatch):
    assert studio.status().timed_lyrics == TimedLyrics(available=True, reason="")
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    fresh = backend.Backend()
    monkeypatch.setattr(backend, "_backend", fresh)
    facts = fresh.capabilities()["timed_lyrics"]
    assert not facts["available"] and "no attention heads" in facts["reason"]
    *_, last = fresh.stream(ask(take))
    assert isinstance(last, Failed) and last.problem.code == "unsupported"


@pytest.mark.parametrize(
    ("line", "sung"),
    [
        ("[Verse] hello", " hello"),
        ("[[Verse]] hello", "] hello"),
        ("hello [whispered] again", "hello  again"),
        ("[not closed", "[not closed"),
        ("[two\nlines]", "[two\nlines]"),
    ],
)
def test_a_tag_is_what_stands_in_brackets_on_a_line(line, sung):
    assert song_align.TAG.sub("", line) == sung


def test_brackets_that_never_close_take_no_longer_than_their_length():
    # The square of their length would take an hour.
    for text in ("[" * 1_000_000, "[a" * 1_000_000):
        assert song_align.TAG.sub("", text) == text
