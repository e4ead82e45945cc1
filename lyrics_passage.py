"""A passage of lyrics that is rewritten: which of its lines are sung, and the lyrics with other lines in their place.

Section tags and blank lines are never replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lyrics_tags import TAG, heading_of


@dataclass(frozen=True)
class Passage:
    """The lines from `first` to `last` of `lyrics`, counted from 1."""

    lyrics: str
    first: int
    last: int

    @cached_property
    def all_lines(self) -> list[str]:
        return self.lyrics.split("\n")

    @cached_property
    def places(self) -> list[int]:
        """Return where the passage's sung lines are among `all_lines`, counted from 0."""
        passage = range(self.first - 1, min(self.last, len(self.all_lines)))
        return [place for place in passage if is_sung(self.all_lines[place])]

    @property
    def lines(self) -> list[str]:
        """Return the sung lines of the passage."""
        return [self.all_lines[place].strip() for place in self.places]

    @property
    def neighbor(self) -> str:
        """Return the sung line before the passage, else that after it; "" if it stands alone."""
        before = self.section_lines(self.places[0], -1)
        after = self.section_lines(self.places[-1], 1)
        for place in (*before, *after):
            return self.all_lines[place].strip()
        return ""

    def section_lines(self, place: int, step: int) -> list[int]:
        """Return the places of the sung lines before (-1) or after (1) that at `place`, the nearest first.

        They end at a section tag or a blank line.
        """
        found = []
        at = place + step
        while 0 <= at < len(self.all_lines) and is_sung(self.all_lines[at]):
            found.append(at)
            at += step
        return found

    def with_lines(self, lines: Sequence[str]) -> str:
        """Return the lyrics with `lines` in place of the first sung ones; what is too many is left out."""
        changed = list(self.all_lines)
        for place, line in zip(self.places, lines, strict=False):
            changed[place] = line
        return "\n".join(changed)


def shorter(syllables: int) -> int:
    """Return how many syllables a line of `syllables` has once it is shorter: a quarter less."""
    return max(syllables - max(syllables // 4, 1), 1)


def is_sung(line: str) -> bool:
    """Tell whether a line has words to sing: it opens no section, and is not made of tags alone."""
    text = line.strip()
    return heading_of(text) is None and any(map(str.isalnum, TAG.sub(" ", text)))
