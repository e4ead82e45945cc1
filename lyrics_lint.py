"""Advice on lyrics that the song model would stumble over. It never blocks, and never raises on any
text.

ACE-Step reads section tags on lines of their own, sings best at 6 to 10 syllables a line, and takes
2,048 tokens of lyrics (its guide's "Tutorial.md"; ACE-Step-1.5 #1153: odd tags and double spaces
make it skip lines).

`tidy_lyrics` turns a chat model's reply into lyrics as ACE-Step reads them. Only headings that are
known sections are rewritten; every other bracket stays. What surrounds the lyrics (a greeting, code
fences, a title, an offer to change them) is removed only if it clearly is no part of them.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from limits import MAX_LYRIC_TOKENS, preset, shown
from plain_text import plain, without_html

MOST_SYLLABLES = 15  # half as much again as the 10 that are sung best
# fast rap reaches four, but no song is sung from its first second to its last
MOST_WORDS_A_SECOND = 3.0
MOST_ADVICE = 50

# SUNG: sections with words. PLAYED: sections that need none. INSTRUMENTS: sections by themselves,
# or before a played one ("Guitar Solo"). DELIVERY: how something is sung; these tags may stand
# anywhere and open no section. HEADINGS: all that count without square brackets, since "(drop)" and
# "(break)" are backing vocals. In the order of the file.
SUNG, PLAYED, INSTRUMENTS, DELIVERY, HEADINGS = preset("sections").values()
# Our names to those that sections have in other languages.
SECTION_NAMES: dict[str, list[str]] = preset("section_names")
LONGEST_HEADING = 120


@dataclass(frozen=True)
class Advice:
    """One thing to look at: `line` counts from 1, 0 means the whole text."""

    line: int
    message: str


@dataclass(frozen=True)
class Tag:
    """A section tag: its `name` in the usual spelling, and a `number` ("2") and a `modifier` ("anthemic"), or ""."""

    name: str
    number: str = ""
    modifier: str = ""

    def __str__(self) -> str:
        """Return the tag as ACE-Step reads it, such as "[Verse 2 - whispered]"."""
        words = f"{self.name} {self.number}".strip()
        if self.modifier:
            return f"[{words} - {self.modifier}]"
        return f"[{words}]"


def lint(
    lyrics: str,
    *,
    seconds: float | None = None,
    language: str = "unknown",
    tokens: int | None = None,
) -> list[Advice]:
    """Return up to 50 pieces of advice on `lyrics`: first on the whole text, then line by line.

    `seconds` is the length of the song and `tokens` that of the lyrics in the song model's own
    tokens; None leaves them out. `language` is a code of `limits.LANGUAGES`.
    """
    lines = as_read(lyrics or "").split("\n")
    advice = [
        *_whole(lines, seconds, tokens),
        *sorted(_lines(lines, language), key=lambda found: found.line),
    ]
    if len(advice) > MOST_ADVICE:
        left = len(advice) - MOST_ADVICE + 1
        advice = [
            *advice[: MOST_ADVICE - 1],
            Advice(advice[MOST_ADVICE - 1].line, f"And {left} more from here on."),
        ]
    return advice


def as_read(lyrics: str) -> str:
    """Return lyrics as the model reads them, whatever they were copied from.

    Line breaks are "\\n", what nobody sees and a web page's marks are gone, and a tag in brackets or
    words of another script, such as "【主歌】", is in the model's own.
    """
    lines = plain(without_html(plain(lyrics))).split("\n")
    return "\n".join(map(_with_our_tags, lines))


def _with_our_tags(line: str) -> str:
    """Return `line` with square brackets and English words in place of other scripts' tags."""
    line = line.translate(_WIDE_BRACKETS)
    bare = line.strip()
    if _BRACKETED.fullmatch(bare):
        line = f"[{bare[1:-1].strip()}]"

    def ours(found: re.Match[str]) -> str:
        tag = parse_tag(found[1])
        if tag is None:
            return found[0]
        wide = unicodedata.normalize("NFKC", found[0]) != found[0]
        if found[0][0] == "[" and not wide and parse_tag(found[1], _OUR_SECTIONS):
            return found[0]
        return str(tag)

    return _ANY_TAG.sub(ours, line)


def mended(lyrics: str) -> str:
    """Return lyrics as the model sings them best, without what word processors and web pages add.

    Bullets and spaces at the ends go, a heading becomes a tag ("CHORUS (x2)" is "[Chorus - x2]"),
    and a sung line with "(x2)" behind it stands there twice.
    """
    lines: list[str] = []
    for line in as_read(lyrics).split("\n"):
        text = tidy_line(_BULLET.sub("", line, count=1) if _BULLET.match(line) else line)
        heading = _counted_heading(text)
        sung, times = _repeated(text)
        lines += [str(heading)] if heading else [sung] * times
    return "\n".join(lines).strip()


def is_mendable(lyrics: str) -> bool:
    """Tell whether there is a bullet, a heading without brackets, or a "(x2)" in lyrics."""
    for line in as_read(lyrics).split("\n"):
        text = line.strip()
        heading = parse_heading(text) if not _TAG.fullmatch(text) else None
        if heading or _BULLET.match(text) or _counted_heading(text) or _repeated(text)[1] > 1:
            return True
    return False


def _repeated(line: str) -> tuple[str, int]:
    """Return a sung line without the "(x2)" behind it, and how often it comes."""
    at = line.rfind("(")
    found = _TIMES_IN_BRACKETS.fullmatch(line, at) if at > 0 else None
    sung = line[:at].strip()
    if found is None or not sung or _TAG.fullmatch(sung):
        return line, 1
    return sung, int(found[1] or found[2])


def _counted_heading(line: str) -> Tag | None:
    """Parse a heading that says how often it comes, such as "CHORUS (x2)"; None if it is none."""
    found = _COUNTED_HEADING.fullmatch(line) if len(line) <= LONGEST_HEADING else None
    tag = parse_tag(found[1]) if found else None
    if found is None or tag is None or tag.name not in HEADINGS:
        return None
    return replace(tag, modifier=f"x{found[2] or found[3]}")


def parse_tag(text: str, sections: Mapping[str, str] | None = None) -> Tag | None:
    """Parse what is inside a tag's brackets, such as "verse 1: soft"; None if it is no known section.

    `sections` are the names that are known, by default ours and those of other languages.
    """
    if sections is None:
        sections = _SECTIONS
    if len(text) > LONGEST_HEADING:
        return None
    text = unicodedata.normalize("NFKC", text)
    name = text
    modifier = ""
    number = ""
    found = _MODIFIER.search(text)
    if found:
        name = text[: found.start()]
        modifier = found[0].lstrip(" -–—:|,(").rstrip(" )")
    words = " ".join(name.replace("_", " ").split()).lower()
    numbered = _NUMBERED.fullmatch(words)
    if numbered and _key(words) not in sections:
        words, number = numbered.groups()
    first = _NUMBER_FIRST.fullmatch(words)
    if first and _key(words) not in sections:
        number, words = first.groups()
    known = sections.get(_key(words))
    if known:
        return Tag(known, number.upper(), modifier)
    return None


def parse_heading(line: str) -> Tag | None:
    """Parse a line that is nothing but a heading, in any of the ways chat models write one, else
    return None.

    Examples: "[verse 1]", "**Verse 1:**", "### Chorus", "(Chorus)", "Bridge:", "[Chorus]:",
    "**[Outro]**", "Verse 2".
    """
    text = line.strip()
    bare = text.strip("*_#:： \t")
    tag = None
    if bare[:1] in ("[", "【") and bare[-1:] in ("]", "】"):
        inner = bare[1:-1]
        if set(inner) & set("[]【】"):
            return None
        return parse_tag(inner.strip("*_: \t"))
    if bare[:1] in ("(", "（") and bare[-1:] in (")", "）"):
        tag = parse_tag(bare[1:-1])
    elif bare != text or bare[-1:].isdecimal():
        tag = parse_tag(bare)
    # A comma continues a sung line, as in "*Chorus, oh chorus*"; only square brackets make it a
    # modifier.
    if tag and tag.name in HEADINGS and "," not in bare:
        return tag
    return None


def syllables(line: str, language: str = "unknown") -> int | None:
    """Estimate the syllables of a sung line; None if any of it is in a script whose syllables we
    cannot count.

    A Latin word counts its groups of vowels and a Cyrillic one its vowels; a Chinese or Japanese
    character and a Korean block count one. Words in parentheses are backing vocals and do not count
    unless they are the whole line.
    """
    without_asides = _ASIDE.sub(" ", line)
    text = line
    if any(map(str.isalpha, without_asides)):
        text = without_asides
    if any(character.isalpha() and not _script(character) for character in set(text)):
        return None
    characters = sum(
        _script(character) == "cjk" and character not in _SMALL_KANA for character in text
    )
    return characters + sum(_word_syllables(word, language) for word in _WORD.findall(text))


def _whole(lines: list[str], seconds: float | None, tokens: int | None) -> Iterator[Advice]:
    if tokens is not None and tokens > MAX_LYRIC_TOKENS:
        yield Advice(
            0, f"The lyrics have {tokens:,} tokens; the model reads the first {MAX_LYRIC_TOKENS:,}."
        )
    if seconds is None or not 0 < seconds < math.inf:
        return
    words = round(sum(_words(line) for line in lines if not _heading(line.strip())))
    fit = int(seconds * MOST_WORDS_A_SECOND)
    if words > fit:
        yield Advice(
            0,
            f"{words:,} words are more than {seconds:g} seconds can hold (about {fit:,}): the model would rush or skip "
            "lines. Make the song longer or the lyrics shorter.",
        )


def _lines(lines: list[str], language: str) -> Iterator[Advice]:
    used: dict[Tag, int] = {}
    # the section that has had no words yet
    open_at = 0
    open_tag = None
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if _DOUBLE_SPACE.search(line):
            yield Advice(number, "Two spaces in a row make the model skip words; leave one.")
        tag = _heading(line)
        if tag is None:
            if any(map(str.isalnum, _TAG.sub("", line))):
                open_tag = None
            yield from _line(number, line, language)
            continue
        if not _TAG.fullmatch(line):
            yield Advice(number, f"{shown(line)} would be sung; write the section as {tag}.")
        if open_tag == tag:
            yield Advice(number, f"{tag} appears twice in a row; keep one.")
        else:
            yield from _empty(open_at, open_tag)
            if tag.number and tag in used:
                yield Advice(
                    number, f"{tag} is in line {used[tag]} already; give this one another number."
                )
        used.setdefault(tag, number)
        open_at = number
        open_tag = tag
    yield from _empty(open_at, open_tag)


def _empty(number: int, tag: Tag | None) -> Iterator[Advice]:
    if tag and tag.name in SUNG:
        yield Advice(number, f"{tag} has no lines; write some, or remove it.")


def _line(number: int, line: str, language: str) -> Iterator[Advice]:
    inside = _TAG.findall(line)
    alone = bool(inside) and not _TAG.sub("", line).strip()
    if alone and len(inside) > 1:
        yield Advice(
            number,
            "Several tags in one line; keep one and put the rest behind a dash: [Chorus - anthemic].",
        )
    elif alone and _key(inside[0]) not in _DELIVERY:
        yield Advice(
            number,
            f"The model does not know {shown(line)}; use tags such as [Verse], [Chorus], [Bridge].",
        )
    elif any(parse_tag(text) for text in inside):
        yield Advice(number, "A section tag needs a line of its own.")
    elif line.count("[") != line.count("]"):
        yield Advice(number, "A square bracket has no partner; the model may sing the tag.")
    elif (
        (tag := parse_tag(line)) and tag.name in HEADINGS and not tag.modifier and line[0].isupper()
    ):
        yield Advice(number, f"{shown(line)} would be sung; write the section as {tag}.")
    elif (counted := _counted_heading(line)) is not None:
        yield Advice(number, f"{shown(line)} would be sung; write the section as {counted}.")
    elif not inside and _repeated(line)[1] > 1:
        yield Advice(number, "How often a line comes would be sung; write it as often.")
    if _BULLET.match(line):
        yield Advice(number, "A bullet makes the model stumble; remove it.")
    count = syllables(_TAG.sub(" ", line), language)
    if count is not None and count > MOST_SYLLABLES:
        yield Advice(
            number, f"About {count} syllables in one line; 6 to 10 are sung best. Break it in two."
        )


def _heading(line: str) -> Tag | None:
    found = _TAG.fullmatch(line)
    if found:
        return parse_tag(found[1])
    return parse_heading(line)


def _words(line: str) -> float:
    """Count words; three Chinese or Japanese characters count as two."""
    text = _TAG.sub(" ", line)
    spaced = "".join(" " if _is_ideograph(character) else character for character in text)
    return (
        sum(any(map(str.isalnum, word)) for word in spaced.split())
        + sum(map(_is_ideograph, text)) / 1.5
    )


# "Pre-Chorus" has a hyphen of its own: a modifier follows a hyphen between spaces, a long dash, or
# other marks.
_MODIFIER = re.compile(r"(?: - | ?[–—:|,] ?| x ?\d| ?\().*")
_NUMBERED = re.compile(r"(.*[^\W\d])(?: ?[#.-]? ?(?=\d)| )(\d{1,2}|[ivx]{1,4}|[a-d])")
# As word processors make lists, with Symbol's bullets among them.
_BULLET = re.compile(r"\s*(?:[•◦▪▫‣⁃∙●○■□\uf0b7\uf0a7]\s*|[-+*]\s+)")
_TIMES = r"\(?(?:[x×]\s?([2-9])|([2-9])\s?[x×])\)?"
_COUNTED_HEADING = re.compile(rf"([^\W\d][\w -]*?):?\s+{_TIMES}:?", re.IGNORECASE)
_TIMES_IN_BRACKETS = re.compile(r"\((?:[x×]\s?([2-9])|([2-9])\s?[x×])\)", re.IGNORECASE)
# Verses that are counted before their name, as in "2절" and "2 куплет".
_NUMBER_FIRST = re.compile(r"(\d{1,2})[.\s]*([^\W\d].*)")
_TAG = re.compile(r"\[([^\[\]]*)\]")
_OPEN = "【〔〖〘〚⟦❲"
_SHUT = "】〕〗〙〛⟧❳"
_BRACKETED = re.compile(rf"[{_OPEN}][^\]\[{_OPEN}{_SHUT}]*[{_SHUT}]")
_ANY_TAG = re.compile(rf"[\[{_OPEN}]([^\]\[{_OPEN}{_SHUT}]*)[\]{_SHUT}]")
_WIDE_BRACKETS = str.maketrans("［］﹝﹞", "[][]")
_ASIDE = re.compile(r"\([^()]*\)|（[^（）]*）")
_DOUBLE_SPACE = re.compile("[ \u00a0]{2}")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SMALL_KANA = frozenset("ぁぃぅぇぉゃゅょゎァィゥェォャュョヮー・")
_CYRILLIC_VOWELS = frozenset("аеёиоуыэюяіїєў")
_VOWELS = re.compile("[aeiouyæøœı]+")
_SILENT_E = re.compile("[^aeiouy]e[ds]?$")
_SOUNDED_E = re.compile("(?:[^aeiouy]le|[td]ed|[sxz]es|[cs]hes|[cg]es)$")


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


_NAMES = (
    *SUNG,
    *PLAYED,
    *INSTRUMENTS,
    *(f"{who} {what}" for who in INSTRUMENTS for what in PLAYED),
)
_OUR_SECTIONS = {_key(name): name for name in _NAMES} | {"inst": "Instrumental"}
_SECTIONS = {
    _key(unicodedata.normalize("NFKC", name)): ours
    for ours, names in SECTION_NAMES.items()
    for name in names
} | _OUR_SECTIONS
_DELIVERY = frozenset(map(_key, DELIVERY))


def _script(character: str) -> str:
    """Return "latin", "cyrillic" or "cjk" for a letter whose syllables we can count, else ""."""
    point = ord(character)
    if point < 0x370 or 0x1E00 <= point <= 0x1EFF:
        return "latin"
    if 0x400 <= point <= 0x52F:
        return "cyrillic"
    if _is_ideograph(character) or "\uac00" <= character <= "\ud7a3":
        return "cjk"
    return ""


def _is_ideograph(character: str) -> bool:
    """Tell whether it is a kana or a Chinese character."""
    return (
        "\u3041" <= character <= "\u30ff"
        or "\u3400" <= character <= "\u9fff"
        or character >= "\U00020000"
    )


def _word_syllables(word: str, language: str) -> int:
    """Count what is not CJK in a word; digits are read out one by one."""
    letters = [character for character in word.lower() if _script(character) != "cjk"]
    count = sum(character.isdigit() or character in _CYRILLIC_VOWELS for character in letters)
    decomposed = unicodedata.normalize("NFD", "".join(letters))
    plain = "".join(
        letter for letter in decomposed if letter.isalpha() and _script(letter) == "latin"
    )
    if not plain:
        return count
    groups = len(_VOWELS.findall(plain))
    # "love" and "loved" have one syllable, "table", "wanted" and "roses" two.
    if (
        language in ("en", "fr", "unknown")
        and groups > 1
        and _SILENT_E.search(plain)
        and not _SOUNDED_E.search(plain)
    ):
        groups -= 1
    return count + max(groups, 1)


# --- tidying a reply ------------------------------------------------------------------------------


# Scripts that name their language, and letters by which another language of the same script is
# told.
_LANGUAGE_OF_SCRIPT = {
    "HANGUL": "ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "HEBREW": "he",
    "THAI": "th",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "GURMUKHI": "pa",
    "GREEK": "el",
}
_LETTERS_OF = {
    "uk": frozenset("іїєґ"),
    "sr": frozenset("ђјљњћџ"),
    "ur": frozenset("ٹڈڑںےھ"),
    "fa": frozenset("پچژگ"),
}
LEAST_SHARE = 1 / 3  # of the letters: songs in many languages borrow lines of English
_SAME_SCRIPT = {"ru": ("uk", "sr"), "ar": ("ur", "fa")}


def written_language(lyrics: str) -> str:
    """Return the code of the language that the script of the letters names, or "unknown".

    Latin letters name none, and decide only where others are few. Kana among ideographs make them
    Japanese; letters that Ukrainian, Serbian, Urdu or Persian has and its neighbour has not make it
    that language. Section tags do not count.
    """
    letters = [character for character in _TAG.sub("", lyrics).lower() if character.isalpha()]
    named = [_LANGUAGE_OF_SCRIPT.get(_script_name(character)) for character in letters]
    counts = Counter(language for language in named if language is not None)
    if not counts:
        return "unknown"
    if counts["ja"]:
        counts["ja"] += counts.pop("zh", 0)
    language, count = counts.most_common(1)[0]
    if count < LEAST_SHARE * len(letters):
        return "unknown"
    for other in _SAME_SCRIPT.get(language, ()):
        if not _LETTERS_OF[other].isdisjoint(letters):
            return other
    return language


def _script_name(character: str) -> str:
    """Return the first word of a letter's Unicode name, which is its script's."""
    return unicodedata.name(character, "").partition(" ")[0]


def tidy_draft(text: str) -> str:
    *done, unfinished = text.split("\n")
    return "\n".join((*map(tidy_line, done), unfinished)).lstrip("\n")


@functools.lru_cache(maxsize=512)
def tidy_line(line: str) -> str:
    """Write a known section heading as ACE-Step reads it ("**Verse 1:**" as "[Verse 1]"); remove extra spaces."""
    tag = parse_heading(line)
    if tag:
        return str(tag)
    return re.sub("[ \t\u00a0]+", " ", line).strip()


def tidy_lyrics(text: str) -> str:
    """Tidy all lines, and remove what surrounds the lyrics: code fences, rules, a title, greeting and farewell."""
    lines = _unfenced([tidy_line(line) for line in text.split("\n")])
    kept = "\n".join(line for line in lines if not _RULE.fullmatch(line)).strip()
    lines = _without_farewell(_without_greeting(kept.split("\n")))
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip()


_RULE = re.compile(r"[-*_=]{3,}")
_FENCE = re.compile(r"```\w*")
_TITLE = re.compile(r"#{1,6} .+|\*\*[^*]+\*\*|(?i:[*_ ]*(?:song )?title[*_ ]*[:：]).*")
_GREETING = re.compile(
    r"(?i)(?:sure|certainly|of course|absolutely|okay|ok|great|here(?:['’]s| is| are)|below (?:is|are)|"
    r"i(?:['’]ve| have) (?:written|created|crafted))\b.*"
)
_FAREWELL = re.compile(
    r"(?i)(?:let me know|feel free|i hope (?:you|this|these)|hope (?:you|this|these)|would you like|if you(?:['’]d)? "
    r"(?:would )?(?:like|want|need)|(?:please )?note(?: that)?\b|this song|these lyrics).*"
)
_ABOUT_THE_LYRICS = re.compile(
    r"(?i)\b(?:lyrics?|songs?|let me know|feel free|adjust\w*|chang\w+|version)\b"
)


def _unfenced(lines: list[str]) -> list[str]:
    """Return what is between the code fences if all sections are there; without a closing fence the reply was cut."""
    fences = [place for place, line in enumerate(lines) if _FENCE.fullmatch(line)]
    if not fences or len(fences) > 2:
        return lines
    first = fences[0]
    last = fences[1] if len(fences) == 2 else len(lines)
    inside = lines[first + 1 : last]
    if not any(inside) or any(map(parse_heading, [*lines[:first], *lines[last + 1 :]])):
        return [line for line in lines if not _FENCE.fullmatch(line)]
    return inside


def _without_greeting(lines: list[str]) -> list[str]:
    start = next((place for place, line in enumerate(lines) if parse_heading(line)), None)
    if start is None:
        if _is_greeting(lines[0]):
            return lines[1:]
        return lines
    before = [line for line in lines[:start] if line]
    if all(_is_greeting(line) or _TITLE.fullmatch(line) for line in before):
        return lines[start:]
    return lines


def _is_greeting(line: str) -> bool:
    return bool(
        _GREETING.fullmatch(line) and (line.endswith(":") or _ABOUT_THE_LYRICS.search(line))
    )


def _without_farewell(lines: list[str]) -> list[str]:
    start = max((place for place, line in enumerate(lines) if not line), default=0)
    if (
        start
        and _FAREWELL.fullmatch(lines[start + 1])
        and _ABOUT_THE_LYRICS.search(" ".join(lines[start + 1 :]))
    ):
        return lines[:start]
    return lines
