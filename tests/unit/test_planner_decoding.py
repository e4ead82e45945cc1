"""What the planner may write: every line it was trained on, nothing outside the limits, and typed values as typed."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer

import planner
import planner_decoding
from limits import KEYS, LANGUAGES, LIMITS
from planner_decoding import Draw, MetadataGrammar, Vocabulary, tidy_caption
from tests.weights import PLANNER

CAPTIONS = (
    "A warm acoustic folk song with fingerpicked guitar, soft brushes and a close, breathy voice. It builds slowly "
    "to a wide chorus with strings; 90s production, tape hiss, a little out of tune.",
    "80s synthwave: gated drums, 'neon' arpeggios",
    '"Quoted" from the start, and don\'t stop',
    "中国风 钢琴 与 弦乐",
)


@pytest.fixture(scope="module")
def grammar() -> MetadataGrammar:
    """Return the grammar of a tokenizer with 1,000 audio codes."""
    tokenizer = AutoTokenizer.from_pretrained(PLANNER)
    return MetadataGrammar(Vocabulary(tokenizer, len(tokenizer), "cpu"))


def written(run, choose) -> tuple[list[int], object]:
    """Run a grammar with `choose(allowed ids)` as the model; returns the tokens and its result."""
    tokens, send = [], None
    try:
        while True:
            demand = run.send(send)
            send = None
            if isinstance(demand, tuple):
                tokens += demand
            else:
                send = choose(demand.tolist(), len(tokens))
                tokens.append(send)
    except StopIteration as end:
        return tokens, end.value


def at_random(seed: int):
    """Return a model for `written` that draws any allowed token."""
    luck = random.Random(seed)
    return lambda allowed, _: luck.choice(allowed)


def test_it_accepts_what_the_model_was_trained_on(grammar):
    for caption in CAPTIONS:
        song = {
            "bpm": 124,
            "duration": 183,
            "keyscale": "Eb minor",
            "language": "en",
            "timesignature": 6,
        }
        thoughts = yaml.dump({**song, "caption": caption}, allow_unicode=True, sort_keys=True)
        target = grammar.vocabulary.encode(f"<think>\n{thoughts}</think>")

        def choose(allowed: list[int], place: int, target: tuple[int, ...] = target) -> int:
            assert target[place] in allowed, grammar.vocabulary.decode(target[: place + 1])
            return target[place]

        tokens, found = written(grammar.thoughts({}, caption=True), choose)
        assert tuple(tokens) == target
        assert found == {name: str(value) for name, value in song.items()} | {"caption": caption}


def test_any_choice_is_within_the_limits_and_in_the_tokenizers_own_spelling(grammar):
    choose = at_random(1)
    for _ in range(60):
        tokens, found = written(grammar.thoughts({}, caption=False), choose)
        assert LIMITS["bpm"].low <= int(found["bpm"]) <= LIMITS["bpm"].high
        assert LIMITS["duration"].low <= int(found["duration"]) <= LIMITS["duration"].high
        assert (
            found["keyscale"] in KEYS
            and found["language"] in LANGUAGES
            and found["timesignature"] in "2346"
        )
        text = grammar.vocabulary.decode(tokens)
        assert grammar.vocabulary.encode(text) == tuple(tokens)
        lines = [f"{name}: {found[name]}" for name in planner_decoding.FIELDS if name != "caption"]
        assert text == "\n".join(["<think>", *lines, "</think>"])


@pytest.mark.parametrize(
    "given",
    [
        {"keyscale": "Cb major", "language": "no"},
        {
            "bpm": "300",
            "duration": "12",
            "keyscale": "F# minor",
            "language": "yue",
            "timesignature": "3",
        },
    ],
    ids=lambda given: " ".join(given),
)
def test_given_values_are_written_as_they_are(grammar, given):
    tokens, found = written(grammar.thoughts(given, caption=True), at_random(2))
    assert found.items() >= given.items() and set(found) == set(planner_decoding.FIELDS)
    text = grammar.vocabulary.decode(tokens)
    assert all(f"\n{name}: {value}\n" in text for name, value in given.items())


def test_a_caption_ends_and_holds_neither_codes_nor_marks(grammar, monkeypatch):
    monkeypatch.setattr(planner_decoding, "MAX_CAPTION_TOKENS", 40)
    choose, vocabulary = at_random(3), grammar.vocabulary
    special = set(vocabulary.tokenizer.get_added_vocab().values())
    for _ in range(40):
        tokens, found = written(grammar.thoughts({}, caption=True), choose)
        assert special.isdisjoint(set(tokens) - {vocabulary.think, vocabulary.think_end})
        assert "\n" not in found["caption"] and "`" not in found["caption"]
        assert len(tokens) < 40 + 60


def test_free_text_stops_where_the_model_ends_it(grammar):
    vocabulary = grammar.vocabulary
    script = [*vocabulary.encode("[Verse 1]\nhello\n\nrain"), vocabulary.end]
    tokens, text = written(grammar.text(99), lambda allowed, place: script[place])
    assert text == "[Verse 1]\nhello\n\nrain" and tokens == script
    _, text = written(grammar.text(3), lambda allowed, place: script[place])
    assert text == vocabulary.decode(script[:3])
    assert set(vocabulary.code_ids.tolist()).isdisjoint(next(grammar.text(1)).tolist())


def test_captions_lose_their_yaml():
    for raw, text in [
        (" A warm\n  song ", "A warm song"),
        (" 'it''s: fine'", "it's: fine"),
        (' "so \\"loud\\""', 'so "loud"'),
        (" 'half", "half"),
        (" '\n", ""),
    ]:
        assert tidy_caption(raw) == text


# --- codes and draws ------------------------------------------------------------------------------------------------


def test_only_codes_of_the_codebook_are_drawn():
    names = [
        "<think>",
        "</think>",
        "<|im_end|>",
        "a",
        "Ġb",
        "<|audio_code_63999|>",
        "<|audio_code_64000|>",
    ]
    names += ["<|audio_code_2|>", "<|audio_code_65534|>", "<|audio_code_7|>"]
    tokenizer = SimpleNamespace(
        get_vocab=lambda: {name: number for number, name in enumerate(names)},
        get_added_vocab=lambda: {
            name: number for number, name in enumerate(names) if name[0] == "<"
        },
        all_special_tokens=["<|im_end|>"],
    )
    # The last token has no row in the model: vocabulary and weights may differ in size.
    vocabulary = Vocabulary(tokenizer, len(names) - 1, "cpu")
    assert vocabulary.codes.tolist() == [2, 63_999] and vocabulary.code_ids.tolist() == [7, 5]


def test_draws_follow_the_shares_and_the_nucleus():
    logits = torch.tensor([[0.5, 0.2, 0.25, 0.05]]).log()
    chances = torch.linspace(0.001, 1, 1_000)[:, None]
    drawn = Draw(1.0, 1.0)(logits.expand(1_000, 4), chances)
    assert np.allclose(
        torch.bincount(drawn, minlength=4) / 1_000, [0.5, 0.2, 0.25, 0.05], atol=0.002
    )
    drawn = Draw(1.0, 0.7)(logits.expand(1_000, 4), chances)
    assert np.allclose(
        torch.bincount(drawn, minlength=4) / 1_000, [0.6667, 0, 0.3333, 0], atol=0.002
    )
    assert Draw(0, 0.1)(logits, chances[:1]).tolist() == [0]
    # The ends of the range never fall on what has no share.
    lone = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    for chance in (2.0**-24, 1.0):
        assert Draw(0.85, 0.9)(lone, torch.tensor([[chance]])).tolist() == [1]
    # Damaged weights draw something: a plan never costs a song.
    assert Draw()(torch.full((1, 4), torch.nan), chances[:1]).tolist() == [0]


def test_lyrics_lose_their_headers():
    for raw, lyrics in [
        ("\n\n# Languages\nen\n\n# Lyric\n[Verse]\nhi\n", "[Verse]\nhi"),
        ("# Lyric\n[Verse]\nhi", "[Verse]\nhi"),
        ("\n[Verse]\n# 1 fan\n", "[Verse]\n# 1 fan"),
    ]:
        assert planner.clean_lyrics(raw) == lyrics
