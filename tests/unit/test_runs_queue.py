"""The order of waiting runs, without any run."""

from types import SimpleNamespace

import pytest

from runs_queue import FairQueue, starts_in


def queued(*owners):
    """Return a queue to which these owners added a run each, in this order, with the names A1, B1, A2."""
    queue = FairQueue()
    counts = {}
    for owner in owners:
        counts[owner] = counts.get(owner, 0) + 1
        queue.add(SimpleNamespace(owner=owner, name=f"{owner}{counts[owner]}"))
    return queue


def names(runs):
    return [run.name for run in runs]


def emptied(queue):
    taken = []
    while run := queue.take():
        taken.append(run.name)
    return taken


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        ("", ""),
        ("AAA", "A1 A2 A3"),
        ("AAAB", "A1 B1 A2 A3"),
        ("AABBBC", "A1 B1 C1 A2 B2 B3"),
        ("ABAB", "A1 B1 A2 B2"),
    ],
)
def test_owners_take_turns_and_the_order_that_is_told_is_the_order_that_comes(owners, expected):
    queue = queued(*owners)
    assert len(queue) == len(owners)
    assert names(queue.order()) == emptied(queue) == expected.split()
    assert len(queue) == 0


def test_a_visitor_waits_for_one_of_fifty():
    queue = queued(*"A" * 50)
    assert queue.take().name == "A1"
    queue.add(SimpleNamespace(owner="B", name="B1"))
    assert names(queue.order())[:3] == ["A2", "B1", "A3"]
    # Who has just had a turn goes behind who waits.
    assert queue.take().name == "A2"
    queue.add(SimpleNamespace(owner="C", name="C1"))
    assert names(queue.order())[:3] == ["B1", "A3", "C1"]


def test_a_run_leaves_without_changing_the_others():
    queue = queued(*"AABB")
    (first, second) = queue.waiting_of("A")
    assert queue.remove(first) and not queue.remove(first)
    assert names(queue.order()) == ["A2", "B1", "B2"]
    assert queue.remove(second) and queue.waiting_of("A") == []
    assert names(queue.order()) == ["B1", "B2"]


def test_the_start_of_each_is_when_a_place_becomes_free():
    assert starts_in([30], [10, 20, 5], at_once=1) == [30, 40, 60]
    assert starts_in([30, 5], [10, 20], at_once=2) == [5, 15]
    assert starts_in([], [10, 20, 5], at_once=2) == [0, 0, 10]
    assert starts_in([7], [], at_once=1) == []
