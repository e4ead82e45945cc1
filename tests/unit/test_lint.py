"""The linter's advice on lyrics, and the tidying of what a chat model wrote."""

from __future__ import annotations

import random

import pytest

from limits import STRUCTURES
from lint import MOST_ADVICE, Advice, Tidy, lint, parse_heading, syllables, tidy_line, tidy_lyrics

GOOD = """\
[Intro]

[Verse 1]
The rain is falling on the town
And every window knows my name

[Chorus - anthemic]
Let it rain, let it rain (let it rain)
UNTIL THE RIVER COMES ALIVE

[Guitar Solo]

[Outro]
[Fade Out]"""


def lines(advice: list[Advice], *words: str) -> list[int]:
    """Return the lines of the advice that has all of `words`."""
    return [entry.line for entry in advice if all(word in entry.message for word in words)]


def test_well_made_lyrics_and_empty_ones_get_no_advice():
    assert lint(GOOD, seconds=60, language="en", tokens=200) == []
    for text in (None, " \n\n", "[Instrumental]", "[Verse]\n[whispered]\nCome closer"):
        assert lint(text, seconds=10, tokens=5) == []


def test_an_unknown_tag_is_named():
    assert lines(lint("[Verse]\nHello\n\n[Guitarish thing]\nHello again"), "[Guitarish thing]") == [4]


def test_known_sections_in_all_their_spellings():
    for tag in ["[verse 2]", "[Chorus x2]", "[Bridge: soft]", "[Verse 1 (Male)]", "[Final Chorus]"]:
        assert lint(f"{tag}\nA line of words") == []
    for tag in ["[Build-Up]", "[Piano Interlude]", "[SAXOPHONE SOLO]", "[Strings]"]:  # nobody sings in these
        assert lint(f"[Verse]\nA line\n\n{tag}\n\n[Chorus]\nA line") == []


def test_an_empty_section_is_marked_where_it_stands():
    advice = lint("[Verse 1]\n\n[Chorus]\nSing it\n\n[Bridge]")
    assert lines(advice, "has no lines") == [1, 6]
    assert "[Verse 1]" in advice[0].message
    # A tag of delivery does not fill it.
    assert lines(lint("[Verse]\n[whispered]\n[Chorus]\nSing"), "has no lines") == [1]


def test_a_doubled_tag_and_a_repeated_number_are_told_and_a_repeated_chorus_is_not():
    (entry,) = lint("[Chorus]\n[chorus]\nSing it")
    assert entry.line == 2 and "twice" in entry.message
    (entry,) = lint("[Verse 1]\nOne\n\n[Chorus]\nTwo\n\n[Verse 1]\nThree\n\n[Chorus]\nTwo")
    assert entry.line == 7 and "line 1" in entry.message


def test_a_heading_that_would_be_sung():
    for line in ["**Verse 1:**", "(Chorus)", "### Bridge", "Outro:", "Chorus"]:
        advice = lint(f"{line}\nThe words")
        assert lines(advice, "would be sung", "[") == [1]


def test_slips_within_a_line():
    for line, words in [
        ("[Chorus] Let it rain", "line of its own"),
        ("[Chorus][Anthemic]", "Several tags"),
        ("[Chorus Let it rain", "no partner"),
        ("Let it  rain", "Two spaces"),
    ]:
        assert lines(lint(f"[Verse]\nOne\n{line}\nTwo"), words) == [3]


def test_every_structure_that_is_offered_passes_the_linter():
    for structure in STRUCTURES.values():
        tags = [part[: part.index("]") + 1] for part in structure.split(", ") if part.startswith("[")]
        assert tags
        # The songs' own words come after each tag; the numbers of repeated sections are the writer's.
        assert lint("\n".join(f"{tag}\nla la" for tag in tags)) == [], structure


def test_syllables():
    for line, language, count in [
        ("The fire keeps burning through the night", "en", 8),
        ("Mi corazón late por ti", "es", 8),
        ("trời mưa", "vi", 2),
        ("Привет мой друг", "ru", 4),
        ("夜に駆ける", "ja", 5),
        ("我爱你", "zh", 3),
        ("사랑해요 baby", "ko", 6),
        ("We rise (we rise up)", "en", 2),
    ]:
        assert syllables(line, language) == pytest.approx(count, abs=1 if language in ("en", "es") else 0)


def test_scripts_that_we_cannot_judge():
    for line in ["ฉันรักเธอมากกว่าใครในโลกนี้", "hello שלום"]:
        assert syllables(line) is None
        assert lint(f"[Verse]\n{line * 5}") == []


def test_a_line_far_over_ten_syllables():
    long = "I never could imagine that the melody would carry us so far beyond the river"
    advice = lint(f"[Verse]\nA short line\n{long}")
    assert lines(advice, "syllables") == [3]
    assert lint("[Verse]\nThe window that you opened in the morning light") == []
    # Chinese lines are counted by characters.
    assert lines(lint("[Verse]\n" + "夜" * 20, language="zh"), "About 20") == [2]


def test_more_words_or_tokens_than_the_song_can_hold():
    words = "[Verse]\n" + "la la la la\n" * 30
    assert lint(words, seconds=120) == []
    assert lines(lint(words, seconds=20), "120 words", "20 seconds") == [0]
    for seconds in (None, 0, float("nan"), float("inf")):  # not known
        assert lint(words * 10, seconds=seconds) == []
    assert lint("[Verse]\nla", tokens=2_048) == []
    assert lines(lint("[Verse]\nla", tokens=2_049), "2,049", "2,048") == [0]


def test_advice_on_anything_is_quick_and_points_at_a_line():
    parts = [
        *("[", "]", "(", ")", "【", "verse", "Verse 1", "chorus", " - ", ":", "**", "#", "\n", "\r\n", "  ", "\t"),
        *("é", "夜", "한", "ا", "\u0301", "\ud800", "\x00", "\u2028", "🎵", "1999", "x2", "a" * 300, "🏳️‍🌈", "ﬁ"),
    ]
    chance = random.Random(4)
    for _ in range(300):
        text = "".join(chance.choices(parts, k=chance.randrange(60)))
        for entry in lint(text, seconds=chance.choice([None, 10]), language="en", tokens=chance.choice([None, 9_999])):
            assert 0 <= entry.line <= text.count("\n") + 1
            assert entry.message
        tidy_lyrics(text)


def test_a_very_long_text_is_read_in_one_pass():
    for part in (*"[(a -é夜", "[a\n", "a-", "[verse] a  b\n", "[Verse 1]\n", "**a", "aa ", "#1", "```\n"):
        # A pattern that looks back at every character would take minutes here and run into the suite's time-out.
        text = (part * 100_000)[:100_000]
        tidy_lyrics(text)
        assert len(lint(text, seconds=10)) <= MOST_ADVICE
    assert "31 more" in lint("[foo]\n" * 80)[-1].message


def test_known_headings_get_the_form_that_the_model_reads():
    for line, tidied in [
        ("**Verse 1:**", "[Verse 1]"),
        ("(Chorus)", "[Chorus]"),
        ("[VERSE 2: soft]", "[Verse 2 - soft]"),
        ("### Pre-Chorus", "[Pre-Chorus]"),
        ("**[Outro]**", "[Outro]"),
        ("[Chorus (x2)]", "[Chorus - x2]"),
    ]:
        assert tidy_line(line) == tidied
        assert tidy_line(tidied) == tidied
    assert tidy_line(" let  it\train ") == "let it rain"


def test_other_lines_stay_as_they_are():
    lines_kept = (
        "[Strophe 1] | [whispered] | (drop) | (ooh, ooh) | (Chorus of angels) | *Chorus, oh chorus* | Chorus"
        " | Bridge over the water | I said: verse | [Verse] and more | Let it rain (let it rain)"
    )
    for line in lines_kept.split(" | "):
        assert tidy_line(line) == line
        assert parse_heading(line) is None


BODY = "[Verse 1]\nLet it rain\n\n[Chorus]\nOh"


def test_the_frame_of_a_reply_goes():
    for reply in [
        BODY,
        f"Sure! Here's a song about the rain:\n\n---\n\n{BODY}",
        f"Here are your lyrics:\n```text\n{BODY}\n```\nLet me know if you would like changes!",
        f"# The Rain\n\n{BODY}\n\n---\n\nI hope you like these lyrics!",
        f"{BODY}\n\nFeel free to adjust the words.\nThey are yours.",
        "**Verse 1:**\nLet it rain\n\n\n\n(Chorus)\nOh\n\n",
    ]:
        assert tidy_lyrics(reply) == BODY


def test_what_may_be_sung_stays():
    for reply in [
        "Sure, I'll be fine\n\n[Verse 1]\nLet it rain",
        "Here is my heart\n[Chorus]\nTake it",
        "[Verse 1]\nLet it rain\n\n[Outro]\nLet me know your song",
        "Here are the days we lost\nAnd here the nights",
    ]:
        assert tidy_lyrics(reply) == reply


def test_a_reply_in_pieces_is_tidied_like_a_whole():
    for size in [1, 7, 1_000]:
        reply = f"Here are the lyrics:\n\n**Verse 1:**\nLet  it rain\n\n(Chorus)\nOh\n\n```\n{BODY[:9]}"
        tidy, shown = Tidy(), ""
        for start in range(0, len(reply), size):
            shown = tidy.add(reply[start : start + size])
            if "Let it rain\n" in shown:
                assert "[Verse 1]\nLet it rain" in shown  # whole lines are tidied while the rest comes
        assert tidy.end() == tidy_lyrics(reply)
        assert Tidy().end() == ""
