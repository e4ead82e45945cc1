"""The linter's advice on lyrics, and the tidying of what a chat model wrote."""

from __future__ import annotations

import random
import time

import pytest

from limits import STRUCTURES
from lint import MOST_ADVICE, Advice, lint, parse_heading, syllables
from tests.program import python
from tidy import Tidy, tidy_line, tidy_lyrics

GOOD = """\
[Intro]

[Verse 1]
The rain is falling on the town
I leave my umbrella behind

[Pre-Chorus]
And every window knows my name

[Chorus - anthemic]
Let it rain, let it rain (let it rain)
UNTIL THE RIVER COMES ALIVE

[Guitar Solo]

[Verse 2]
The street is a mirror of lights

[Chorus]
Let it rain, let it rain

[Outro]
[Fade Out]"""


def lines(advice: list[Advice], *words: str) -> list[int]:
    """Return the lines of the advice that has all of `words`."""
    return [entry.line for entry in advice if all(word in entry.message for word in words)]


def test_well_made_lyrics_get_no_advice():
    assert lint(GOOD, seconds=60, language="en", tokens=200) == []


@pytest.mark.parametrize("text", ["", " \n\n", "[Instrumental]", "[inst]", "[Verse]\n[whispered]\nCome closer"])
def test_nothing_to_say(text):
    assert lint(text, seconds=10, tokens=5) == []


def test_nothing_at_all_is_no_error():
    assert lint(None) == []


def test_an_unknown_tag_is_named():
    advice = lint("[Verse]\nHello\n\n[Guitarish thing]\nHello again")
    assert [entry.line for entry in advice] == [4]
    assert "[Guitarish thing]" in advice[0].message


@pytest.mark.parametrize(
    "tag",
    ["[Verse]", "[verse 2]", "[Chorus x2]", "[Bridge: soft]", "[Verse 1 (Male)]", "[Final Chorus]", "[rap verse]"],
)
def test_known_sections_in_all_their_spellings(tag):
    assert lint(f"{tag}\nA line of words") == []


@pytest.mark.parametrize("tag", ["[Drop]", "[Build-Up]", "[Piano Interlude]", "[SAXOPHONE SOLO]", "[Strings]", "[End]"])
def test_played_sections_may_be_empty(tag):
    assert lint(f"[Verse]\nA line\n\n{tag}\n\n[Chorus]\nA line") == []


def test_an_empty_section_is_marked_where_it_stands():
    advice = lint("[Verse 1]\n\n[Chorus]\nSing it\n\n[Bridge]")
    assert lines(advice, "has no lines") == [1, 6]
    assert "[Verse 1]" in advice[0].message


def test_a_tag_of_delivery_does_not_fill_a_section():
    assert lines(lint("[Verse]\n[whispered]\n[Chorus]\nSing"), "has no lines") == [1]


def test_a_doubled_tag_is_told_once():
    advice = lint("[Chorus]\n[chorus]\nSing it")
    assert [entry.line for entry in advice] == [2]
    assert "twice" in advice[0].message


def test_a_repeated_number_is_told_and_a_repeated_chorus_is_not():
    text = "[Verse 1]\nOne\n\n[Chorus]\nTwo\n\n[Verse 1]\nThree\n\n[Chorus]\nTwo"
    advice = lint(text)
    assert [entry.line for entry in advice] == [7]
    assert "line 1" in advice[0].message


@pytest.mark.parametrize("line", ["**Verse 1:**", "(Chorus)", "### Bridge", "Outro:", "Verse 2", "Chorus"])
def test_a_heading_that_would_be_sung(line):
    advice = lint(f"{line}\nThe words")
    assert lines(advice, "would be sung", "[") == [1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[Chorus] Let it rain", "line of its own"),
        ("[Chorus][Anthemic]", "Several tags"),
        ("[Chorus Let it rain", "no partner"),
        ("Let it  rain", "Two spaces"),
    ],
)
def test_slips_within_a_line(line, words):
    assert lines(lint(f"[Verse]\nOne\n{line}\nTwo"), words) == [3]


def test_a_trailing_double_space_does_no_harm():
    assert lint("[Verse]  \nLet it rain  ") == []


def test_every_structure_that_is_offered_passes_the_linter():
    for structure in STRUCTURES.values():
        tags = [part[: part.index("]") + 1] for part in structure.split(", ") if part.startswith("[")]
        assert tags
        # The songs' own words come after each tag; the numbers of repeated sections are the writer's.
        assert lint("\n".join(f"{tag}\nla la" for tag in tags)) == [], structure


# --- length -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "language", "count"),
    [
        ("The fire keeps burning through the night", "en", 8),
        ("I loved the table that you wanted me to make", "en", 12),
        ("roses and horses", "en", 5),
        ("Mi corazón late por ti", "es", 8),
        ("Schöne Straße", "de", 4),
        ("trời mưa", "vi", 2),
        ("Привет мой друг", "ru", 4),
        ("夜に駆ける", "ja", 5),
        ("きょう", "ja", 2),
        ("我爱你", "zh", 3),
        ("사랑해요 baby", "ko", 6),
        ("We rise (we rise up)", "en", 2),
        ("(oh oh oh)", "en", 3),
        ("", "en", 0),
    ],
)
def test_syllables(line, language, count):
    assert syllables(line, language) == pytest.approx(count, abs=1 if language in ("en", "es") else 0)


@pytest.mark.parametrize("line", ["שלום עולם", "ฉันรักเธอมากกว่าใครในโลกนี้", "मैं तुमसे प्यार करता हूँ", "hello שלום"])
def test_scripts_that_we_cannot_judge(line):
    assert syllables(line) is None
    assert lint(f"[Verse]\n{line * 5}") == []


def test_a_line_far_over_ten_syllables():
    long = "I never could imagine that the melody would carry us so far beyond the river"
    advice = lint(f"[Verse]\nA short line\n{long}")
    assert lines(advice, "syllables") == [3]


def test_ten_syllables_and_a_few_more_are_fine():
    assert lint("[Verse]\nThe window that you opened in the morning light") == []


def test_chinese_lines_are_counted_by_characters():
    assert lines(lint("[Verse]\n" + "夜" * 20, language="zh"), "About 20") == [2]


def test_more_words_than_the_song_can_hold():
    words = "[Verse]\n" + "la la la la\n" * 30
    assert lint(words, seconds=120) == []
    advice = lint(words, seconds=20)
    assert lines(advice, "120 words", "20 seconds") == [0]


def test_chinese_words_count_too():
    assert lines(lint("[Verse]\n" + "夜夜夜夜夜夜\n" * 50, seconds=20), "words") == [0]


@pytest.mark.parametrize("seconds", [None, 0, -5, float("nan"), float("inf")])
def test_an_unknown_length_is_not_judged(seconds):
    assert lint("[Verse]\n" + "la la la la\n" * 300, seconds=seconds) == []


def test_too_many_tokens():
    assert lint("[Verse]\nla", tokens=2_048) == []
    assert lines(lint("[Verse]\nla", tokens=2_049), "2,049", "2,048") == [0]


# --- any text -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "part",
    ["[verse] a  b\n", "[", "(", "a", " ", "-", "[a\n", "a-", "é", "夜", "[Verse 1]\n", "**a", "aa ", "#1", "```\n"],
)
def test_ten_thousand_characters_take_no_time(part):
    text = (part * 10_000)[:10_000]
    started = time.process_time()
    advice = lint(text, seconds=10)
    tidy_lyrics(text)
    # A pattern that looks back at every character would take minutes.
    assert time.process_time() - started < 1
    assert len(advice) <= MOST_ADVICE


def test_a_long_list_says_that_there_is_more():
    advice = lint("[foo]\n" * 80)
    assert len(advice) == MOST_ADVICE
    assert "31 more" in advice[-1].message


def test_the_linter_loads_nothing_heavy():
    code = "import sys, lint, tidy; print(sorted({'torch', 'transformers', 'numpy', 'gradio'} & set(sys.modules)))"
    done = python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


# --- tidying ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "tidied"),
    [
        ("**Verse 1:**", "[Verse 1]"),
        ("(Chorus)", "[Chorus]"),
        ("[verse 1]", "[Verse 1]"),
        ("[VERSE 2: soft]", "[Verse 2 - soft]"),
        ("### Pre-Chorus", "[Pre-Chorus]"),
        ("[prechorus]:", "[Pre-Chorus]"),
        ("**[Outro]**", "[Outro]"),
        ("Bridge:", "[Bridge]"),
        ("[chorus - anthemic]", "[Chorus - anthemic]"),
        ("[guitar solo]", "[Guitar Solo]"),
        ("[Chorus (x2)]", "[Chorus - x2]"),
    ],
)
def test_known_headings_get_the_form_that_the_model_reads(line, tidied):
    assert tidy_line(line) == tidied
    assert tidy_line(tidied) == tidied


@pytest.mark.parametrize(
    "line",
    [
        "[Strophe 1]",
        "[whispered]",
        "(drop)",
        "(ooh, ooh)",
        "(Chorus of angels)",
        "*Chorus, oh chorus*",
        "Chorus",
        "Bridge over the water",
        "I said: verse",
        "[Verse] and more",
        "Let it rain (let it rain)",
    ],
)
def test_other_lines_stay_as_they_are(line):
    assert tidy_line(line) == line
    assert parse_heading(line) is None


def test_extra_spaces_go():
    assert tidy_line(" let  it\train ") == "let it rain"


BODY = "[Verse 1]\nLet it rain\n\n[Chorus]\nOh"


@pytest.mark.parametrize(
    "reply",
    [
        BODY,
        f"Here are the lyrics:\n\n{BODY}",
        f"Sure! Here's a song about the rain:\n\n---\n\n{BODY}",
        f"```\n{BODY}\n```",
        f"Here are your lyrics:\n```text\n{BODY}\n```\nLet me know if you would like changes!",
        f"```lyrics\n{BODY}",
        f"**Title: The Rain**\n\n{BODY}",
        f"# The Rain\n\n{BODY}\n\n---\n\nI hope you like these lyrics!",
        f"{BODY}\n\nFeel free to adjust the words.\nThey are yours.",
        "**Verse 1:**\nLet it rain\n\n\n\n(Chorus)\nOh\n\n",
    ],
)
def test_the_frame_of_a_reply_goes(reply):
    assert tidy_lyrics(reply) == BODY


@pytest.mark.parametrize(
    "reply",
    [
        "Sure, I'll be fine\n\n[Verse 1]\nLet it rain",
        "Here is my heart\n[Chorus]\nTake it",
        "[Verse 1]\nLet it rain\n\n[Outro]\nLet me know your song",
        "[Verse 1]\nLet it rain\n\nI hope you feel the rain",
        "Here are the days we lost\nAnd here the nights",
        "[Drop]",
    ],
)
def test_what_may_be_sung_stays(reply):
    assert tidy_lyrics(reply) == reply


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_a_reply_in_pieces_is_tidied_like_a_whole(size):
    reply = f"Here are the lyrics:\n\n**Verse 1:**\nLet  it rain\n\n(Chorus)\nOh\n\n```\n{BODY[:9]}"
    tidy, shown = Tidy(), ""
    for start in range(0, len(reply), size):
        shown = tidy.add(reply[start : start + size])
        if "Let it rain\n" in shown:
            assert "[Verse 1]\nLet it rain" in shown  # whole lines are tidied while the rest comes
    assert tidy.end() == tidy_lyrics(reply)
    assert Tidy().end() == ""
