"""The form of lyrics: structures as people write them, syllables and rhymes, and what a brief is about."""

from __future__ import annotations

import pytest

import lyrics_form
import lyrics_rhymes
from limits import STRUCTURES
from lyrics_form import content_words, count_syllables, mentions, parse_structure, rhymes
from lyrics_lines import emptiness, repeats, rhyme_scheme, says_something_new
from lyrics_passage import Passage, shorter

needs_dictionary = pytest.mark.skipif(
    not lyrics_form.dictionary_file(), reason="the dictionary is not installed"
)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_preset_gives_its_own_sections(name):
    asked = [part.partition("]")[0] for part in STRUCTURES[name].split("[")[1:]]
    assert [str(section.tag).strip("[]") for section in parse_structure(name.upper())] == asked


@pytest.mark.parametrize(
    ("written", "tags", "lines"),
    [
        (
            "two verses, a chorus and a bridge",
            "[Verse 1] [Verse 2] [Chorus] [Bridge]",
            [4, 4, 4, 4],
        ),
        ("verse / chorus / verse / chorus", "[Verse 1] [Chorus] [Verse 2] [Chorus]", [4, 4, 4, 4]),
        ("[Verse] with 8 lines, [Hook]", "[Verse] [Hook]", [8, 4]),
        ("Verse 1 with six lines then chorus", "[Verse 1] [Chorus]", [6, 4]),
        ("[intro] [drop - huge]", "[Intro] [Drop - huge]", [0, 2]),
        ("[Verse] with 999 lines", "[Verse]", [4]),
        ("[Verse] with 99 lines", "[Verse]", [lyrics_form.MOST_LINES]),
    ],
)
def test_a_structure_in_anybodys_words(written, tags, lines):
    sections = parse_structure(written)
    assert " ".join(str(section.tag) for section in sections) == tags
    assert [section.lines for section in sections] == lines


def test_without_a_section_there_is_a_usual_form_and_never_too_many():
    assert (
        parse_structure("") == parse_structure("something sad") == parse_structure("Verse-Chorus")
    )
    assert len(parse_structure("[Verse]" * 100)) == lyrics_form.MOST_SECTIONS


def test_a_final_chorus_returns_as_the_chorus():
    by_tag = {
        str(section.tag): section.returns_as
        for section in parse_structure("[Chorus] [Verse] [Final Chorus]")
    }
    assert by_tag == {"[Chorus]": "Chorus", "[Verse]": "", "[Final Chorus]": "Chorus"}


@pytest.mark.parametrize("scheme", ["AABB", "ABAB"])
@pytest.mark.parametrize("lines", range(17))
def test_each_line_has_its_place_in_the_rhyme_and_answers_an_earlier_one(lines, scheme):
    found = rhyme_scheme(lines, scheme)
    assert len(found) == lines
    answering = [place for place, partner in enumerate(found) if partner is not None]
    assert all(place - 3 <= found[place] < place for place in answering)
    assert len(answering) >= lines // 2


@needs_dictionary
@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("night", "light", True),
        ("sill", "until", True),
        ("runnin'", "gunnin'", True),
        ("ocean", "motion", True),
        ("light", "light", False),
        ("love", "move", False),
        ("xqzt", "brxt", False),
    ],
)
def test_rhymes_are_heard_not_seen(one, other, expected):
    assert rhymes(one, other) is expected


@needs_dictionary
@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("Flour on the window sill", 7),
        ("Every fire", 5),
        ("(ooh) Stay with me (stay)", 3),
        ("(Hey, hey)", 2),
        ("", 0),
    ],
)
def test_syllables_are_those_of_the_dictionary(line, count):
    assert count_syllables(line) == pytest.approx(count, abs=1 if "fire" in line else 0)


def test_what_a_brief_is_about():
    assert content_words("a song about my grandmother's kitchen") == ["grandmother", "kitchen"]
    assert content_words("Write lyrics about it") == []
    assert mentions("The kitchens are cold", "kitchen") and mentions("Hopes were carried", "carry")
    assert not mentions("The kitten sleeps", "kitchen")


def test_a_word_that_comes_again_in_its_line_is_counted_unless_it_says_nothing():
    assert repeats(["rain", "rain", "rain"]) == 2
    assert repeats(["you", "and", "you", "and", "the", "rain"]) == 0


def test_a_line_says_something_new_by_a_telling_word_that_the_old_one_lacks():
    assert says_something_new("Hold the river", "Hold my hand")
    assert not says_something_new("You and me and you", "Stay with me")
    assert not says_something_new("Holding the hands", "Hold my hand")


def test_a_line_written_again_costs_most_where_it_repeats_itself_and_says_nothing_new():
    new, again, empty, both = (
        emptiness(line, "Hold my hand")
        for line in ("Hold the river", "River, hold the river", "Hold the hand", "Hold on, hold on")
    )
    assert new == 0 < min(again, empty) <= max(again, empty) < both


@needs_dictionary
def test_the_words_that_lyrics_use_most_are_the_first_rhymes():
    found = lyrics_rhymes.rhymes_with("Night,")
    assert found[:2] == ["light", "right"] and "night" not in found
    assert len(found) <= lyrics_rhymes.MOST_RHYMES
    assert all(rhymes("night", word) for word in found)
    # Rare words where there are few others, and none for what the dictionary lacks.
    assert "bowling" in lyrics_rhymes.rhymes_with("rolling")
    assert lyrics_rhymes.rhymes_with("xyzzy") == lyrics_rhymes.rhymes_with("...") == []


SONG = "[Verse]\none\n  two\n\n[Chorus]\n(three)\n[whispered]\nfour"


def test_only_the_sung_lines_of_a_passage_are_replaced():
    passage = Passage(SONG, 3, 7)
    assert passage.lines == ["two", "(three)"]
    assert passage.with_lines(["2"]) == SONG.replace("  two", "2")
    changed = passage.with_lines(["2", "3", "and one too many"])
    assert changed == SONG.replace("  two", "2").replace("(three)", "3")
    assert Passage(SONG, 4, 5).lines == [] and Passage(SONG, 8, 99).lines == ["four"]


def test_a_line_s_neighbor_is_in_its_own_section():
    assert Passage(SONG, 3, 3).neighbor == "one"
    assert Passage(SONG, 2, 2).neighbor == "two"
    assert Passage(SONG, 6, 6).neighbor == ""


def test_a_shorter_line_has_a_quarter_less_and_never_as_much():
    assert [shorter(count) for count in (12, 8, 5, 3, 2, 1)] == [9, 6, 4, 2, 1, 1]
