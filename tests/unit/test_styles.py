"""The style sheets: what would make the page slow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from theme import STATIC

COMBINATORS = " >+~"


def selectors(sheet: str) -> Iterator[str]:
    """Yield each selector of each rule, also those in @media."""
    without_comments = " ".join(re.sub(r"/\*.*?\*/", "", sheet, flags=re.DOTALL).split())
    for prelude in re.findall(r"([^{};]+)\{", without_comments):
        if not prelude.strip().startswith("@"):
            yield from parts(prelude, ",")


def parts(text: str, separators: str) -> list[str]:
    """Split `text` at each of the separators that stands in no bracket and in no string."""
    depth, found = 0, [""]
    for token in re.findall(r'"[^"]*"|.', text):
        depth += (token in "([") - (token in ")]")
        if depth == 0 and token in separators:
            found.append("")
        else:
            found[-1] += token
    return [part.strip() for part in found if part.strip()]


def named(compound: str) -> bool:
    """Say whether each element that `compound` selects has a class, an id or an attribute which it names."""
    for pseudo in parts(compound, ":"):
        name, _, arguments = pseudo.partition("(")
        if re.search(r"[.#\[]", name):
            return True
        each_one = [parts(each, COMBINATORS)[-1] for each in parts(arguments[:-1], ",")]
        if name in ("is", "where") and all(named(last) for last in each_one):
            return True
    return False


def restyles_all(selector: str) -> bool:
    """Say whether a change below any :has() styles every element of a kind, or all of them, again.

    Chromium keeps one set of what may change for all :has() of a page. What that cannot tell apart by a class, an id or
    an attribute is styled again wherever it stands.
    """
    *before, last = parts(selector, COMBINATORS)
    if named(last):
        return False
    if ":has(" in " ".join(before):
        return True
    pseudos = [pseudo.partition("(") for pseudo in parts(last, ":")]
    lists = [arguments[:-1] for name, _, arguments in pseudos if name in ("is", "where", "not")]
    return any(restyles_all(each) for inner in lists for each in parts(inner, ","))


@pytest.mark.parametrize(
    "selector", ["#a:has(b) label:has(c)", ".a:not(:has(b)) > *", ":is(.a, .b:has(c) *):hover"]
)
def test_what_would_restyle_the_page_is_found(selector: str) -> None:
    assert restyles_all(selector)


@pytest.mark.parametrize(
    "selector", ["#a:has(b) .c", "label:has(b)", ":is(.a *, .b):hover", ".a:has(b) [c]::before"]
)
def test_what_would_not_is_let_be(selector: str) -> None:
    assert not restyles_all(selector)


@pytest.mark.parametrize("sheet", sorted(STATIC.glob("*.css")), ids=lambda sheet: sheet.name)
def test_no_change_restyles_the_whole_page(sheet: Path) -> None:
    assert [each for each in selectors(sheet.read_text()) if restyles_all(each)] == []
