"""The built-in songwriter's form, which holds whatever the model writes: here the tests' random one writes nonsense."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

import lyrics
import lyrics_form
import lyrics_lines
from events import Draft, StudioError
from lyrics_form import count_syllables, last_word, rhymes, words_of
from lyrics_lines import learnt_hashes, line_hashes
from lyrics_tags import parse_heading
from model_weights import Weights
from params import parse_request
from tests.weights import SONGWRITER
from training.songwriter import LYRICS, read_lyrics

pytestmark = pytest.mark.skipif(
    not lyrics_form.dictionary_file(), reason="the dictionary is not installed"
)


@pytest.fixture(scope="module")
def songwriter() -> lyrics_lines.SmallSongwriter:
    weights = Weights(
        SONGWRITER.name, SONGWRITER, "variable", "", "transformers", None, SONGWRITER.name
    )
    large = lyrics.load_songwriter(weights, "cpu")
    return lyrics_lines.SmallSongwriter(large.weights, large.tokenizer, large.model)


def write(
    songwriter: lyrics_lines.SmallSongwriter, structure: str, seed: int = 1, **fields: Any
) -> list[Draft]:
    asked = {"brief": "an old dog in the rain", "structure": structure, **fields}
    return list(songwriter.write(parse_request("lyrics", asked), seed))


def sections(text: str) -> list[tuple[str, list[str]]]:
    blocks = [block.split("\n") for block in text.split("\n\n")]
    return [(tag, lines) for tag, *lines in blocks]


def test_the_sections_are_those_that_were_asked_for_and_a_chorus_returns(songwriter):
    drafts = write(songwriter, "[Intro] [Verse 1] [Chorus] [Verse 2] [Final Chorus - loud] [Outro]")
    found = sections(drafts[-1].text)
    tags = ["[Intro]", "[Verse 1]", "[Chorus]", "[Verse 2]", "[Final Chorus - loud]", "[Outro]"]
    assert [tag for tag, _ in found] == tags and all(parse_heading(tag) for tag in tags)
    words = dict(found)
    assert [len(lines) for lines in words.values()] == [0, 4, 4, 4, 4, 2]
    assert (
        words["[Chorus]"]
        == words["[Final Chorus - loud]"]
        != words["[Verse 1]"]
        != words["[Verse 2]"]
    )
    assert drafts[-1].end == "stop" and {draft.end for draft in drafts[:-1]} == {""}


def test_lines_have_a_singable_length_and_rhyme(songwriter):
    for seed in (1, 2, 3):
        for _, lines in sections(write(songwriter, "[Verse] [Bridge]", seed)[-1].text):
            assert all(3 <= count_syllables(line) <= 12 for line in lines)
            ends = [last_word(line) for line in lines]
            pairs = [(0, 1), (2, 3)] if rhymes(ends[0], ends[1]) else [(0, 2), (1, 3)]
            assert all(rhymes(ends[one], ends[other]) for one, other in pairs)
            assert len(set(lines)) == len(lines)


def test_a_seed_means_the_same_lyrics_and_another_seed_others(songwriter):
    first, again, other = (write(songwriter, "[Verse]", seed)[-1].text for seed in (7, 7, 8))
    assert first == again != other
    cold = {"options": {"temperature": 0}}
    assert (
        write(songwriter, "[Verse]", 7, **cold)[-1].text
        == write(songwriter, "[Verse]", 7, **cold)[-1].text
    )


def test_a_line_that_it_was_trained_on_is_not_written(songwriter, monkeypatch):
    written = sections(write(songwriter, "[Verse] [Verse]", 7)[-1].text)
    lines = [line for _, lines in written for line in lines]
    learnt = next(line for line in lines if line_hashes(words_of(line)))
    monkeypatch.setattr(
        lyrics_lines, "learnt_hashes", lambda: frozenset(line_hashes(words_of(learnt)))
    )
    again = sections(write(songwriter, "[Verse] [Verse]", 7)[-1].text)
    assert learnt not in [line for _, lines in again for line in lines]


def test_the_lines_that_it_was_trained_on_are_known():
    lines = [
        words_of(line)
        for lyric in read_lyrics(LYRICS)
        for line in lyric["text"].split("\n")
        if not line.startswith("[")
    ]
    assert {number for line in lines for number in line_hashes(line)} == learnt_hashes()
    assert line_hashes(["he's", "at", "the", "end", "of", "the", "day"]) & learnt_hashes()
    assert (
        not line_hashes(["the", "lamp", "goes", "round", "the", "empty", "stairs", "at", "noon"])
        & learnt_hashes()
    )


def test_drafts_grow_line_by_line(songwriter):
    texts = [draft.text for draft in write(songwriter, "[Verse] [Chorus]")]
    assert all(after.startswith(before) for before, after in pairwise(texts))
    assert len(texts) > len(texts[-1].split("\n"))


def test_it_stops_at_max_length_and_says_so(songwriter):
    last = write(songwriter, "[Rap] [Rap] [Rap]", options={"max_tokens": 64})[-1]
    assert last.end == "length" and 64 <= last.tokens < 64 + lyrics_lines.LONGEST_LINE + 2


def test_what_it_cannot_do_is_an_error_at_its_field(songwriter, monkeypatch):
    with pytest.raises(StudioError, match="English only, not German") as caught:
        write(songwriter, "", language="de")
    assert caught.value.problem.field == "language"
    assert write(songwriter, "[Outro]", language="unknown")[-1].end == "stop"
    monkeypatch.setattr(songwriter.model, "context", 100)
    with pytest.raises(StudioError, match="up to 100 tokens"):
        write(songwriter, "")


def test_the_longer_a_song_says_nothing_of_the_brief_the_more_it_is_drawn_to_it():
    song = lyrics_lines.WrittenLyrics(subjects=["dog", "rain"], subject_count=2)
    bonuses = []
    for line in (
        "A cold grey morning",
        "Nobody on the road",
        "The dog is at the door",
        "Under the kitchen table",
    ):
        bonuses.append(song.subject_bonus)
        song.add_line(line)
    assert (
        bonuses[0]
        < bonuses[1]
        < bonuses[2]
        > bonuses[3]
        == lyrics_lines.SUBJECT_BONUS
        == song.subject_bonus
    )


def test_every_line_is_written_after_exactly_the_lines_before_it(songwriter, monkeypatch):
    read: list[int] = []
    line = lyrics_lines.Session._line

    def spied(session, *arguments):
        text = lyrics_lines.lyrics_small.user_prompt(session.request.brief, session.request.tone)
        ids = lyrics.prompt_ids(songwriter.tokenizer, lyrics_lines.lyrics_small.SYSTEM, text)
        ids += songwriter.tokenizer("[Verse]\n", add_special_tokens=False).input_ids + read
        again = lyrics_lines.BranchingLayers(songwriter.model.language_model)
        assert session.layers.length == len(ids)
        assert abs(again.read(ids) - session.scores).max() < 1e-4
        found = yield from line(session, *arguments)
        read.extend(kept.pop())
        return found

    kept: list[list[int]] = []
    keep = lyrics_lines.Rows.keep

    def keeping(rows, best):
        kept.append([best.end_token, rows.words.colon, *best.tokens])
        keep(rows, best)

    # Products in bytes are about right, and here the scores must be the same.
    monkeypatch.setattr(songwriter, "in_bytes", None)
    monkeypatch.setattr(lyrics_lines.Session, "_line", spied)
    monkeypatch.setattr(lyrics_lines.Rows, "keep", keeping)
    assert len(write(songwriter, "[Verse]")[-1].text.split("\n")) == 5


# --- lines that are rewritten -----------------------------------------------------------------------------------------

VERSE = [
    "[Verse]",
    "The old dog lies beside the door",
    "He dreams of sand along the shore",
    "The evening rain is coming down",
    "And all the lights are out in town",
]


def rewritten(
    songwriter: lyrics_lines.SmallSongwriter,
    task: str,
    lines: list[int],
    seed: int = 1,
    verse: list[str] = VERSE,
) -> list[str]:
    """Return the lines of `verse` with new ones in place of `lines`, a first and a last, counted from 1."""
    asked = {"task": task, "lyrics": "\n".join(verse), "lines": lines}
    drafts = list(songwriter.rewrite(parse_request("rewrite", asked), seed))
    assert drafts[-1].end == "stop"
    return drafts[-1].text.split("\n")


@pytest.mark.parametrize("lines", [[2, 2], [3, 4], [2, 5]])
def test_new_lines_take_the_place_of_the_old_ones_with_their_rhymes_and_lengths(songwriter, lines):
    found = rewritten(songwriter, "rewrite", lines)
    first, last = lines
    assert found[: first - 1] == VERSE[: first - 1] and found[last:] == VERSE[last:]
    for new, old in zip(found[first - 1 : last], VERSE[first - 1 : last], strict=True):
        assert new != old and last_word(new) != last_word(old)
        assert 3 <= count_syllables(new) <= count_syllables(old) + 2
    ends = [last_word(line) for line in found]
    assert rhymes(ends[1], ends[2]) and rhymes(ends[3], ends[4])


def test_shorter_lines_have_fewer_syllables(songwriter):
    for seed in (1, 2, 3):
        found = rewritten(songwriter, "shorter", [2, 5], seed)
        for new, old in zip(found[1:], VERSE[1:], strict=True):
            assert count_syllables(new) < count_syllables(old)


def test_lines_that_rhymed_with_nothing_rhyme_in_pairs(songwriter):
    plain = ["[Verse]", "The dog is old", "He sleeps all day", "The sun goes down", "I let him in"]

    def ends(lines: list[int]) -> list[str]:
        return [last_word(line) for line in rewritten(songwriter, "rhyme", lines, 1, plain)]

    _, first, second, third, fourth = ends([2, 5])
    assert rhymes(first, second) and rhymes(third, fourth)
    # A single line rhymes with its partner, which stays.
    assert rhymes(ends([2, 2])[1], "day") and rhymes(ends([5, 5])[4], "down")


def test_only_english_lines_are_rewritten(songwriter):
    for fields in ({"lyrics": "夜に駆ける"}, {"lyrics": "la", "language": "de"}):
        asked = parse_request("rewrite", {"lines": [1, 1], **fields})
        with pytest.raises(StudioError, match="writes English only"):
            list(songwriter.rewrite(asked, 1))
