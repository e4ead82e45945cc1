"""Advice on lyrics, and the tidying of a chat model's reply."""

from __future__ import annotations

import json
import random

import pytest

from limits import LANGUAGES, STRUCTURES
from lyrics_letters import syllables, written_language
from lyrics_lint import MOST_ADVICE, lint
from lyrics_tags import TAG, as_read, parse_heading
from lyrics_tidy import tidy_draft, tidy_line, tidy_lyrics, with_fixed_tags
from tests.program import ROOT

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
LONG_LINE = "I never could imagine that the melody would carry us so far beyond the river"
TAGS = ("[verse 2]", "[Chorus x2]", "[Bridge: soft]", "[Verse 1 (Male)]", "[Final Chorus]")
PLAYED = ("[Build-Up]", "[Piano Interlude]", "[SAXOPHONE SOLO]", "[Strings]")
FORMS = [
    [part[: part.index("]") + 1] for part in form.split(", ") if part[0] == "["]
    for form in STRUCTURES.values()
]


def test_well_made_lyrics_get_no_advice():
    for text in (
        *(GOOD, None, " \n\n", "[Instrumental]", "[Verse]\n[whispered]\nCome closer"),
        *(f"{tag}\nA line of words" for tag in TAGS),
        *(f"[Verse]\nA line\n\n{tag}\n\n[Chorus]\nA line" for tag in PLAYED),
        *("\n".join(f"{tag}\nla la" for tag in form) for form in FORMS),
        "[Verse]\nThe window that you opened in the morning light",
        # Scripts whose syllables we cannot count.
        *(f"[Verse]\n{line * 5}" for line in ("ฉันรักเธอมากกว่าใครในโลกนี้", "hello שלום")),
    ):
        assert lint(text, seconds=60, language="en", tokens=200) == [], text


def test_advice_names_the_line_and_the_reason():
    for text, *expected in (
        ("[Verse]\nHello\n\n[Guitarish thing]\nHello again", (4, "[Guitarish thing]")),
        (
            "[Verse 1]\n\n[Chorus]\nSing it\n\n[Bridge]",
            (1, "[Verse 1] has no lines"),
            (6, "has no lines"),
        ),
        ("[Verse]\n[whispered]\n[Chorus]\nSing", (1, "has no lines")),
        ("[Chorus]\n[chorus]\nSing it", (2, "twice")),
        (
            "[Verse 1]\nOne\n\n[Chorus]\nTwo\n\n[Verse 1]\nThree\n\n[Chorus]\nTwo",
            (7, "line 1 already"),
        ),
        *(
            (f"{line}\nThe words", (1, "sung; write"))
            for line in ("**Verse 1:**", "(Chorus)", "### Bridge", "Outro:")
        ),
        ("Chorus\nThe words", (1, "as [Chorus]")),
        ("[Verse]\nOne\n[Chorus] Let it rain", (3, "line of its own")),
        ("[Verse]\nOne\n[Chorus][Anthemic]\nTwo", (3, "Several tags")),
        ("[Verse]\nOne\n[Chorus Let it rain", (3, "no partner")),
        ("[Verse]\nOne\nLet it  rain", (3, "Two spaces")),
        (f"[Verse]\nA short line\n{LONG_LINE}", (3, "syllables")),
        ("[Verse]\n" + "夜" * 20, (2, "About 20")),
    ):
        advice = lint(text, language="en")
        assert [entry.line for entry in advice] == [line for line, _ in expected], text
        for entry, (_, words) in zip(advice, expected, strict=True):
            assert words in entry.message


def test_more_words_or_tokens_than_the_song_can_hold():
    words = "[Verse]\n" + "la la la la\n" * 30
    assert lint(words, seconds=120) == []
    (entry,) = lint(words, seconds=20)
    assert entry.line == 0 and "120 words" in entry.message and "20 seconds" in entry.message
    for unknown in (None, 0, float("nan"), float("inf")):
        assert lint(words * 10, seconds=unknown) == []
    assert lint("[Verse]\nla", tokens=2_048) == []
    (entry,) = lint("[Verse]\nla", tokens=2_049)
    assert entry.line == 0 and "2,049" in entry.message and "2,048" in entry.message


def test_syllables():
    for line, language, count in (
        ("The fire keeps burning through the night", "en", 8),
        ("Mi corazón late por ti", "es", 8),
        ("trời mưa", "vi", 2),
        ("Привет мой друг", "ru", 4),
        ("夜に駆ける", "ja", 5),
        ("我爱你", "zh", 3),
        ("사랑해요 baby", "ko", 6),
        ("We rise (we rise up)", "en", 2),
    ):
        assert syllables(line, language) == pytest.approx(
            count, abs=1 if language in ("en", "es") else 0
        ), line


def test_syllables_are_those_that_the_page_counts():
    # tests/javascript/words.test.js has the same lines.
    lines = json.loads((ROOT / "tests" / "syllables.json").read_text(encoding="utf-8"))
    for line, language, count in lines:
        assert syllables(TAG.sub(" ", line), language) == count, line


def test_advice_on_anything_points_at_a_line():
    parts = [
        *(
            "[",
            "]",
            "(",
            ")",
            "【",
            "verse",
            "Verse 1",
            "chorus",
            " - ",
            ":",
            "**",
            "#",
            "\n",
            "\r\n",
            "  ",
            "\t",
        ),
        *(
            "é",
            "夜",
            "한",
            "ا",
            "\u0301",
            "\ud800",
            "\x00",
            "\u2028",
            "🎵",
            "1999",
            "x2",
            "a" * 300,
            "🏳️‍🌈",
            "ﬁ",
        ),
    ]
    chance = random.Random(4)
    for _ in range(300):
        text = "".join(chance.choices(parts, k=chance.randrange(60)))
        for entry in lint(
            text,
            seconds=chance.choice([None, 10]),
            language="en",
            tokens=chance.choice([None, 9_999]),
        ):
            assert 0 <= entry.line <= as_read(text).count("\n") + 1
            assert entry.message
        tidy_lyrics(text)


def test_a_very_long_text_is_read_in_one_pass():
    for part in (
        *"[(a -é夜",
        "[a\n",
        "a-",
        "[verse] a  b\n",
        "[Verse 1]\n",
        "**a",
        "aa ",
        "#1",
        "```\n",
    ):
        # A pattern that looks back at every character would take minutes here and run into the suite's time-out.
        text = (part * 100_000)[:100_000]
        tidy_lyrics(text)
        assert len(lint(text, seconds=10)) <= MOST_ADVICE
    assert "31 more" in lint("[foo]\n" * 80)[-1].message


def test_headings_are_written_as_the_model_reads_them():
    for line, tidied in (
        ("**Verse 1:**", "[Verse 1]"),
        ("(Chorus)", "[Chorus]"),
        ("[VERSE 2: soft]", "[Verse 2 - soft]"),
        ("### Pre-Chorus", "[Pre-Chorus]"),
        ("**[Outro]**", "[Outro]"),
        ("[Chorus (x2)]", "[Chorus - x2]"),
        (" let  it\train ", "let it rain"),
    ):
        assert tidy_line(line) == tidied == tidy_line(tidied)
    for line in (
        *(
            "[Kyrie 1]",
            "[whispered]",
            "(drop)",
            "(ooh, ooh)",
            "(Chorus of angels)",
            "*Chorus, oh chorus*",
            "Chorus",
        ),
        *(
            "Bridge over the water",
            "I said: verse",
            "[Verse] and more",
            "Let it rain (let it rain)",
        ),
    ):
        assert tidy_line(line) == line
        assert parse_heading(line) is None, line


def test_what_surrounds_the_lyrics_is_removed_and_what_may_be_sung_stays():
    body = "[Verse 1]\nLet it rain\n\n[Chorus]\nOh"
    for reply in (
        body,
        f"Sure! Here's a song about the rain:\n\n---\n\n{body}",
        f"Here are your lyrics:\n```text\n{body}\n```\nLet me know if you would like changes!",
        f"# The Rain\n\n{body}\n\n---\n\nI hope you like these lyrics!",
        f"{body}\n\nFeel free to adjust the words.\nThey are yours.",
        "**Verse 1:**\nLet it rain\n\n\n\n(Chorus)\nOh\n\n",
    ):
        assert tidy_lyrics(reply) == body, reply
    for reply in (
        "Sure, I'll be fine\n\n[Verse 1]\nLet it rain",
        "Here is my heart\n[Chorus]\nTake it",
        "[Verse 1]\nLet it rain\n\n[Outro]\nLet me know your song",
        "Here are the days we lost\nAnd here the nights",
    ):
        assert tidy_lyrics(reply) == reply
    # While it is written, complete lines are tidied and the last one is left.
    assert tidy_draft("\n**Verse 1:**\nLet  it rain\n(Cho") == "[Verse 1]\nLet it rain\n(Cho"


@pytest.mark.parametrize(
    ("lyrics", "language"),
    [
        ("[Verse]\n창가에 비가 내린다", "ko"),
        ("[Verse]\n窓に雨が降る", "ja"),
        ("[Verse]\n雨落在窗上", "zh"),
        ("[Verse]\nДождь стучит в окно", "ru"),
        ("[Verse]\nДощ стукає у вікно, її голос", "uk"),
        ("[Verse]\nЂурђевак на прозору", "sr"),
        ("[Verse]\nالمطر على النافذة", "ar"),
        ("[Verse]\nباران روی پنجره می‌چکد", "fa"),
        ("[Verse]\nکھڑکی پر بارش", "ur"),
        ("[Verse]\nגשם על החלון", "he"),
        ("[Verse]\nฝนตกที่หน้าต่าง", "th"),
        ("[Verse]\nखिड़की पर बारिश", "hi"),
        ("[Verse]\nΗ βροχή στο παράθυρο", "el"),
        ("[Verse]\nRain on the window", "unknown"),
        ("[Verse]\nRain on the window, said 雨", "unknown"),
        ("[Chorus]\n사랑해 사랑해 oh baby", "ko"),
        ("[Instrumental]", "unknown"),
        ("[主歌]\nla la la", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_script_names_its_language(lyrics, language):
    assert written_language(lyrics) == language
    assert language in LANGUAGES


@pytest.mark.parametrize(
    ("written", "fixed"),
    [
        ("Chorus:", "[Chorus]"),
        ("(verse 2)", "[Verse 2]"),
        ("**Bridge**", "[Bridge]"),
        ("### Outro", "[Outro]"),
        ("Chorus", "[Chorus]"),
        ("[chorus]", "[Chorus]"),
        ("[verse 1: whispered]", "[Verse 1 - whispered]"),
        ("CHORUS (x2)", "[Chorus - x2]"),
        ("【主歌】", "[Verse]"),
        ("[Chorus] oh, sing", "[Chorus]\noh, sing"),
        ("[Verse 2]: oh", "[Verse 2]\noh"),
        # What is sung, and tags that open no section, stay.
        ("the bridge over water", "the bridge over water"),
        ("  (chorus of angels)", "  (chorus of angels)"),
        ("(drop)", "(drop)"),
        ("[whispered] come closer", "[whispered] come closer"),
        ("[Foo]", "[Foo]"),
        ("bridge", "bridge"),
    ],
)
def test_section_tags_are_fixed(written, fixed):
    assert with_fixed_tags(f"la\n\n{written}\nla") == f"la\n\n{fixed}\nla"
    assert with_fixed_tags(fixed) == fixed
