"""Soaks: what visits leave behind once Gradio remembers as many as it may, what songs leave, and runs that are left."""

import pytest

from tools import soak


def since_half(lines, name):
    """Return how much `name` has grown since the half, when everything that has a limit has reached it."""
    return lines[-1][name] - lines[len(lines) // 2][name]


@pytest.mark.matrix
def test_visits_leave_no_memory_behind():
    lines = soak.main(["--songs", "0", "--visits", "60", "--sessions", "10"])
    assert since_half(lines, "MB") / since_half(lines, "done") < 0.2
    assert since_half(lines, "threads") <= 5 and since_half(lines, "files") <= 5
    assert lines[-1]["jobs"] == 0 and since_half(lines, "other") == 0


@pytest.mark.matrix
def test_songs_leave_no_memory_behind():
    lines = soak.main(["--songs", "40", "--visits", "0"])
    # One 10 s take is 3.7 MB of samples: a leak of one a song would be 74 MB.
    assert since_half(lines, "MB") < 40


@pytest.mark.matrix
def test_runs_that_are_left_in_every_way_leave_nothing_behind():
    lines = soak.main(["--songs", "0", "--visits", "0", "--runs", "400", "--random"])
    # By the half the studio remembers its 200 ended runs; calls of programs take no place of a page.
    assert (lines[-1]["sessions"], lines[5]["ended"]) == (0, 200)
    assert 1_000 * since_half(lines, "objects") / since_half(lines, "done") < 10
    assert since_half(lines, "used") < 40
    assert since_half(lines, "threads") <= 5 and since_half(lines, "files") <= 5
    assert lines[-1]["jobs"] == 0 and since_half(lines, "other") == 0
