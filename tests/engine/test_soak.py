"""A small soak: what a visit leaves behind once Gradio remembers as many as it may, and what a song leaves."""

import pytest

from tools import soak


@pytest.mark.matrix
def test_visits_leave_no_memory_behind():
    lines = soak.main(["--songs", "0", "--visits", "60", "--sessions", "10"])
    half, last = lines[5], lines[-1]
    assert (last["MB"] - half["MB"]) / (last["visits"] - half["visits"]) < 0.2
    assert (
        last["threads"] <= half["threads"] + 5
        and last["files"] <= half["files"] + 5
        and last["jobs"] == 0
    )


@pytest.mark.matrix
def test_songs_leave_no_memory_behind():
    lines = soak.main(["--songs", "40", "--visits", "0"])
    # One 10 s take is 3.7 MB of samples: a leak of one a song would be 74 MB.
    assert lines[-1]["MB"] - lines[5]["MB"] < 40


@pytest.mark.matrix
def test_runs_that_are_left_in_every_way_leave_nothing_behind():
    lines = soak.main(["--songs", "0", "--visits", "0", "--runs", "200"])
    half, last = lines[5], lines[-1]
    assert last["MB"] - half["MB"] < 40
    assert (
        last["threads"] <= half["threads"] + 5
        and last["files"] <= half["files"] + 5
        and last["jobs"] == 0
    )
