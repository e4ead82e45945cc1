"""The order in which waiting runs start: one of each owner in turn, so that one owner's fifty songs delay nobody else.

Nothing here knows what a run does: it has an owner, and takes some seconds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol


class Owned(Protocol):
    owner: str


class FairQueue:
    """Round robin between owners; the runs of one owner start in the order in which they came."""

    def __init__(self):
        # By owner, and the owner whose turn is next comes first.
        self._lines: dict[str, deque[Any]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def add(self, run: Owned) -> None:
        self._lines.setdefault(run.owner, deque()).append(run)

    def take(self) -> Any:
        """Take out the next run and return it, None if nothing waits. Its owner goes to the end of the line."""
        if not self._lines:
            return None
        owner = next(iter(self._lines))
        line = self._lines.pop(owner)
        run = line.popleft()
        if line:
            self._lines[owner] = line
        return run

    def remove(self, run: Owned) -> bool:
        """Take `run` out of the queue; return whether it was waiting."""
        line = self._lines.get(run.owner)
        if line is None or run not in line:
            return False
        line.remove(run)
        if not line:
            del self._lines[run.owner]
        return True

    def waiting_of(self, owner: str) -> list[Any]:
        """Return the waiting runs of `owner`, the next one first."""
        return list(self._lines.get(owner, ()))

    def order(self) -> list[Any]:
        """Return all waiting runs in the order in which they will start."""
        return list(_in_turn(list(self._lines.values())))


def _in_turn(lines: Sequence[Iterable[Any]]) -> Iterator[Any]:
    remaining = [deque(line) for line in lines]
    while remaining:
        for line in remaining:
            yield line.popleft()
        remaining = [line for line in remaining if line]


def starts_in(running: Iterable[float], waiting: Iterable[float], at_once: int) -> list[float]:
    """Return in how many seconds each waiting run will start.

    `running` has the seconds that each running one still takes, `waiting` those that each waiting
    one will take, in their order; `at_once` is how many run at the same time.
    """
    free_in = sorted(running)[-at_once:]
    free_in += [0.0] * (at_once - len(free_in))
    heapq.heapify(free_in)
    found = []
    for seconds in waiting:
        start = heapq.heappop(free_in)
        found.append(start)
        heapq.heappush(free_in, start + seconds)
    return found
