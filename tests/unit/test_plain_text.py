"""Text from clipboards, chat models and other scripts, as every field reads it."""

from __future__ import annotations

import pytest

import page_form
import planner
from lyrics_lint import lint
from lyrics_tags import as_read, parse_tag
from lyrics_tidy import is_mendable, mended
from params import parse_request
from plain_text import plain, plain_number

PERSIAN = "می\u200cخواهم"
KHMER = "ខ្ញុំ\u200bស្រឡាញ់"
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"


def sung(lyrics: str) -> str:
    return parse_request("generate", {"lyrics": lyrics}).sung_lyrics()


@pytest.mark.parametrize(
    "end",
    [
        *("\n", "\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029", "\x1d"),
        *("\\n", "\\r\\n", "\\\\n", "<br>", "<br />\n", "<BR>"),
    ],
)
def test_each_kind_of_line_break_in_lyrics_is_one(end: str) -> None:
    text = f"[Verse]{end}The window{end}Rain"
    assert sung(text) == "[Verse]\nThe window\nRain"
    assert lint(text) == []
    long = f"[Verse]{end}" + end.join(["one two three four five"] * 5)
    assert lint(long) == []


@pytest.mark.parametrize("end", ["\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029", "\\n"])
@pytest.mark.parametrize(
    ("mode", "name"),
    [("generate", "prompt"), ("edit", "source_prompt"), ("lyrics", "brief"), ("inspire", "idea")],
)
def test_each_kind_of_line_break_in_other_words_is_one(mode: str, name: str, end: str) -> None:
    given = {"source": "a.wav"} if mode == "edit" else {}
    request = parse_request(mode, {**given, name: f"soft piano{end}slow drums"})
    assert getattr(request, name) == "soft piano\nslow drums"


@pytest.mark.parametrize(
    "mark",
    [
        *("\ufeff", "\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u2060", "\u00ad"),
        *("\u202a", "\u202c", "\u2066", "\u2069", "\u061c", "\u00a0", "\u202f", "\U000e0041"),
    ],
)
def test_what_cannot_be_seen_does_not_hide_a_tag(mark: str) -> None:
    text = f"{mark}[Verse 1]{mark}\nHello{mark}\n{mark}{mark}[Chorus]\nSing"
    assert lint(text) == []
    assert [line.strip() for line in sung(text).split("\n")] == [
        "[Verse 1]",
        "Hello",
        "[Chorus]",
        "Sing",
    ]


def test_zero_width_characters_stay_where_words_need_them() -> None:
    for word in (PERSIAN, KHMER, FAMILY, "क\u094d\u200dष"):
        assert plain(word) == word
        assert plain(f"\u200b{word}\u200d \u200c") == f"{word} "
    assert plain("win\u200bdow, Лу\u00adна, a\u200db") == "window, Луна, ab"
    assert plain("夜\u200bに") == "夜に"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("［Verse 1］", "[Verse 1]"),
        ("［Ｖｅｒｓｅ　１］", "[Verse 1]"),
        ("【Chorus】", "[Chorus]"),
        ("〔Bridge - soft〕", "[Bridge - soft]"),
        ("【主歌】", "[Verse]"),
        ("【主歌1】", "[Verse 1]"),
        ("[副歌]", "[Chorus]"),
        ("〖间奏〗", "[Interlude]"),
        ("[Aメロ]", "[Verse]"),
        ("【サビ】", "[Chorus]"),
        ("[2절]", "[Verse 2]"),
        ("[후렴]", "[Chorus]"),
        ("[Куплет 2]", "[Verse 2]"),
        ("[2 куплет]", "[Verse 2]"),
        ("[Припев: тихо]", "[Chorus - тихо]"),
        ("[Estribillo]", "[Chorus]"),
        ("[Couplet 1]", "[Verse 1]"),
        ("[Strophe 2]", "[Verse 2]"),
        ("[פזמון]", "[Chorus]"),
        ("[मुखड़ा]", "[Chorus]"),
        ("【温柔地】", "[温柔地]"),
        ("<b>[Verse 1]</b>", "[Verse 1]"),
        ("<p>[Chorus]</p>", "[Chorus]\n"),
        ('<span class="tag">[Verse]</span>', "[Verse]"),
    ],
)
def test_tags_of_other_scripts_and_of_web_pages_are_understood(given: str, read: str) -> None:
    assert as_read(given) == read
    assert not any("line of its own" in each.message for each in lint(f"{given}\nla la"))


def test_words_in_brackets_and_signs_that_are_no_tags_stay() -> None:
    for line in ("I <3 you", "「夜」と", "a [soft] word", "[Verse 1]", "[verse]", "R&B; soul"):
        assert as_read(line) == line
    assert as_read("【副歌】我爱你") == "[Chorus]我爱你"
    assert "line of its own" in lint("【副歌】我爱你")[0].message
    assert as_read("Rock &amp; roll, it&#39;s <i>mine</i>") == "Rock & roll, it's mine"
    assert parse_tag("Refrain").name == "Refrain"


@pytest.mark.parametrize(
    ("given", "number"),
    [("１２０", 120), ("−1", -1), ("–1", -1), ("١٢٠", 120), ("۱۲۰", 120), ("120\u200f", 120)],
)
def test_numbers_of_other_keyboards_are_numbers(given: str, number: int) -> None:
    assert page_form.number(given, None) == number


def test_musical_facts_of_other_keyboards_are_understood() -> None:
    given = {"prompt": "x", "key": "Ａ\u00a0minor\u200e", "time_signature": "６／８"}
    request = parse_request("generate", given)
    assert (request.key, request.time_signature) == ("A minor", "6")
    assert page_form.seconds("２：３０", None) == 150
    assert plain_number(" \ufeff") == ""


@pytest.mark.parametrize(
    ("raw", "lyrics"),
    [
        ("# Languages\nen\n\n[Verse]\nHello", "[Verse]\nHello"),
        ("# Languages\nen\n\n[Verse]\nHello #1 fan", "[Verse]\nHello #1 fan"),
        ("# Language\nEnglish\n\n# Lyrics\n[Verse]\nHello", "[Verse]\nHello"),
        ("# Languages\n\n[Verse]\nHello", "[Verse]\nHello"),
        ("# Languages\nHello\nagain", "Hello\nagain"),
        ("# Languages\r\nen\r\n# Lyric\r\nHello", "Hello"),
        ("# Languages\nen", ""),
        ("", ""),
    ],
)
def test_the_planners_headers_take_no_lyrics_with_them(raw: str, lyrics: str) -> None:
    assert planner.clean_lyrics(raw) == lyrics


@pytest.mark.parametrize(
    ("pasted", "line", "said", "better"),
    [
        ("CHORUS (x2)", 1, "[Chorus - x2]", "[Chorus - x2]"),
        ("Chorus x2:", 1, "[Chorus - x2]", "[Chorus - x2]"),
        ("Verse 1 (2x)", 1, "[Verse 1 - x2]", "[Verse 1 - x2]"),
        ("[Verse]\nLet it rain (x2)", 2, "repeat count", "[Verse]\nLet it rain\nLet it rain"),
        ("[Verse]\nLet it rain (3x)", 2, "repeat count", "[Verse]" + "\nLet it rain" * 3),
        ("[Verse]\n• Let it rain", 2, "bullet", "[Verse]\nLet it rain"),
        ("[Verse]\n\uf0b7\tLet it rain", 2, "bullet", "[Verse]\nLet it rain"),
        ("[Verse]\n- Let it rain", 2, "bullet", "[Verse]\nLet it rain"),
        ("[Verse]\nLet  it rain", 2, "Two spaces", "[Verse]\nLet it rain"),
        ("Verse 1:\nLet it rain", 1, "[Verse 1]", "[Verse 1]\nLet it rain"),
    ],
)
def test_what_word_processors_add_is_advised_on_and_mended(
    pasted: str, line: int, said: str, better: str
) -> None:
    assert any(each.line == line and said in each.message for each in lint(pasted)), lint(pasted)
    assert mended(pasted) == better == mended(better)
    assert is_mendable(pasted) is ("  " not in pasted) and not is_mendable(better)
    assert not any(
        "bullet" in each.message or "repeat count" in each.message for each in lint(better)
    )


def test_mending_leaves_what_is_sung() -> None:
    for text in (
        "*Chorus, oh chorus*",
        "I said: (oh, oh)",
        "—¿Qué?",
        "x2 is a robot",
        "Route 66 x",
    ):
        assert mended(text) == text and not is_mendable(text)
