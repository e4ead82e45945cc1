"""Text as its author sees it, whatever the program that it was copied from put into it.

Word, Notes, browsers, phones and language models write line breaks, spaces and marks of their own,
most of which nobody can see. A song model would read them: a line break that is not "\\n" is gone,
and two lines become one.
"""

from __future__ import annotations

import html
import re
import unicodedata

# Windows, old Macs, Word's soft return, form feeds, separators of records, NEL, and Unicode's own.
_BREAK = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# The characters that programs write for a line break when they quote a text.
_WRITTEN_BREAK = re.compile(r"(?:\\{1,4}r)?\\{1,4}n")
# Byte order marks, soft hyphens, marks of direction, invisible operators, notes, tags.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
# Spaces that are not line breaks, except the ideographic one, which is as wide as a letter.
_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u2800\u3164\uffa0]")
_JOINERS = re.compile("[\u200b-\u200d]+")
_WORD_SPACE = "\u200b"
# Thai to Myanmar, Khmer, Tai Tham: written without spaces, which U+200B stands for.
_UNSPACED = ((0x0E00, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x1AAF))
# Latin, Greek and Cyrillic, which need no joiners.
_SIMPLE = ((0x0000, 0x052F), (0x1E00, 0x1FFF), (0xA640, 0xA69F), (0xAB30, 0xAB6F))

_HTML_BREAK = re.compile(r"<(?:br\b[^<>]{0,200}|/p|/div|/li|/h[1-6])\s*/?>[ \t]*\n?", re.IGNORECASE)
_HTML_TAG = re.compile(
    r"</?(?:a|b|body|center|code|div|em|font|h[1-6]|html|i|li|ol|p|pre|small|span|strong|u|ul)\b"
    r"(?:\s[^<>]{0,500})?/?>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,8}\d{0,2});", re.IGNORECASE)
_MINUS = re.compile("[\u2010-\u2015\u2212]")


def plain(text: str) -> str:
    """Return `text` with "\\n" for each kind of line break, and without what cannot be seen.

    Zero-width characters stay inside words of scripts that need them, such as Khmer and Persian.
    """
    text = _WRITTEN_BREAK.sub("\n", _BREAK.sub("\n", text))
    text = _SPACE.sub(" ", _UNSEEN.sub("", text))
    return _JOINERS.sub(_kept_joiner, text)


def without_html(text: str) -> str:
    """Return `text` without the tags and entities of a web page that it was copied from."""
    text = _HTML_TAG.sub("", _HTML_BREAK.sub("\n", text))
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text)


def plain_number(text: str) -> str:
    """Return a typed number in ASCII: digits of any script, and dashes that stand for a minus."""
    text = _MINUS.sub("-", unicodedata.normalize("NFKC", plain(text))).replace("\u2044", "/")
    digits = (unicodedata.decimal(character, None) for character in text)
    pairs = zip(text, digits, strict=True)
    return "".join(letter if digit is None else str(digit) for letter, digit in pairs).strip()


def _kept_joiner(found: re.Match[str]) -> str:
    """Return the first of some zero-width characters if it belongs to a word, else nothing."""
    text = found.string
    before = text[found.start() - 1 : found.start()]
    after = text[found.end() : found.end() + 1]
    joiner = found[0][0]
    if joiner == _WORD_SPACE:
        needed = _within(before, _UNSPACED) and _within(after, _UNSPACED)
    else:
        needed = _may_join(before) and _may_join(after)
    return joiner if needed else ""


def _may_join(character: str) -> bool:
    """Tell whether a letter, mark or emoji takes part in words that need joiners."""
    if not character or _within(character, _SIMPLE):
        return False
    return unicodedata.category(character)[0] in "LMS"


def _within(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    if not character:
        return False
    return any(first <= ord(character) <= last for first, last in ranges)
