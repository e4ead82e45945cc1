"""What ZeroGPU's errors become, and when a job is tried again."""

from __future__ import annotations

import json
import queue
import threading
import time

import gradio as gr
import httpx
import pytest

import zerogpu
from events import Progress, StudioError


def said(title: str, message: str) -> gr.Error:
    return gr.Error(message, title=title, print_exception=False)


ABORTED = said("ZeroGPU worker error", "GPU task aborted")
QUOTA = "ZeroGPU quota exceeded"
NO_GPU = "No GPU was available after 60s. <a>Retry later</a>"
# Every row of the reference's table: the error, the code, and words that its sentence must have.
ROWS = [
    (ABORTED, "gpu_aborted", "ended unexpectedly"),
    (said("ZeroGPU worker error", "OutOfMemoryError"), "gpu_failed", "OutOfMemoryError"),
    (said("ZeroGPU illegal duration", "The requested GPU duration (300s) is larger"), "gpu_duration", "300 seconds"),
    (said(QUOTA, "Space app has reached its GPU limit. Try re-running outside of examples"), "gpu_quota", "Sign in"),
    (
        said(QUOTA, "You have exceeded your free ZeroGPU quota (90s requested vs. 30s left). Try again in 1:02:03. "),
        "gpu_quota",
        "needs 90 seconds, and 30 are left. Try again in 1:02:03,",
    ),
    (said(QUOTA, "You have exceeded your ZeroGPU runs limit. "), "gpu_quota", "runs"),
    (said(QUOTA, NO_GPU), "gpu_busy", "60 seconds"),
    (said("ZeroGPU pending credits exceeded", "You have too many ZeroGPU credits"), "gpu_credits", "credits"),
    (said("ZeroGPU queue timeout", NO_GPU), "gpu_busy", "60 seconds"),
    (said("ZeroGPU client error", "No GPU was available"), "gpu_busy", "No GPU is free"),
    (said("ZeroGPU client error", "Expired ZeroGPU proxy token"), "gpu_session", "Reload the page"),
    (said("ZeroGPU client error", "Internal Gradio error"), "gpu_unreachable", "Reload the page"),
    (RuntimeError("ZeroGPU API /schedule error: 500"), "gpu_unreachable", "could not be asked"),
    (RuntimeError("Unexpected end of stream"), "gpu_queue", "queue was lost"),
    (RuntimeError("Error while re-trying after queue disconnect"), "gpu_queue", "queue was lost"),
    (RuntimeError("Connection closed by visitor while queueing"), "cancelled", "closed"),
    (httpx.ConnectError("refused"), "gpu_unreachable", "could not be asked"),
    (queue.Empty(), "gpu_silent", "stopped answering"),
]


def test_every_error_has_a_sentence_of_its_own():
    for error, code, words in ROWS:
        problem = zerogpu.problem_of(error)
        assert problem.code == code, error
        assert words in problem.text() and "<" not in problem.text()


def test_other_errors_are_nobodys():
    for error in (RuntimeError("x"), gr.Error("ours", title="too_loud")):
        assert zerogpu.problem_of(error) is None


class Card:
    """A card whose calls end one after the other in `endings`: an error, or None for a song."""

    def __init__(self, folder, *endings, lived=0.0):
        self.folder, self.endings, self.lived, self.asked = folder, list(endings), lived, []

    def call(self, seconds):
        self.asked.append(seconds)
        ending = self.endings.pop(0)
        yield Progress("steps", len(self.asked))
        if self.lived:
            beat = {"began": time.time() - self.lived * seconds}
            (self.folder / zerogpu.BEAT).write_text(json.dumps(beat))
        if ending:
            raise ending
        yield "song"


def lend(card, seconds=100):
    lending = zerogpu.Lending(card.call, card.folder, seconds)
    return lending, list(lending.events())


def test_a_job_that_ran_into_its_limit_is_tried_once_more_with_twice_the_seconds(tmp_path):
    card = Card(tmp_path, ABORTED, None, lived=1.0)
    lending, events = lend(card)
    assert card.asked == [100, 200]
    assert (lending.asked, lending.tries) == (200, 2)
    assert events[-1] == "song"
    (note,) = (event.note for event in events if isinstance(event, Progress) and event.note)
    assert "100 seconds" in note and "200" in note
    card = Card(tmp_path, ABORTED, None, lived=1.0)
    lend(card, 200)
    assert card.asked == [200, 300]


@pytest.mark.parametrize(
    ("endings", "seconds", "lived", "tries", "code"),
    [
        ((ABORTED, ABORTED), 100, 1.0, 2, "gpu_time"),
        ((ABORTED,), 300, 1.0, 1, "gpu_time"),
        ((ABORTED,), 100, 0.5, 1, "gpu_aborted"),
        ((said("ZeroGPU worker error", "ValueError"),), 100, 1.0, 1, "gpu_failed"),
    ],
)
def test_nothing_else_is_tried_again(tmp_path, endings, seconds, lived, tries, code):
    card = Card(tmp_path, *endings, lived=lived)
    with pytest.raises(StudioError) as raised:
        lend(card, seconds)
    assert raised.value.problem.code == code
    assert len(card.asked) == tries


def test_a_beat_of_the_first_try_says_nothing_about_the_second(tmp_path):
    def call(seconds):
        if not (tmp_path / "tried").exists():
            (tmp_path / zerogpu.BEAT).write_text(json.dumps({"began": time.time() - seconds}))
        (tmp_path / "tried").touch()
        yield Progress("steps", 1)
        raise ABORTED

    with pytest.raises(StudioError) as raised:
        list(zerogpu.Lending(call, tmp_path, 100).events())
    assert raised.value.problem.code == "gpu_aborted"


def test_an_error_of_the_studio_itself_passes(tmp_path):
    for error in (ValueError("ours"), StudioError("disk", "full")):
        with pytest.raises(type(error), match=str(error)):
            lend(Card(tmp_path, error))


def test_whatever_fails_before_the_first_event_is_an_answer_of_zerogpu_that_cannot_be_read(tmp_path):
    def call(seconds):
        yield Progress("lending")
        raise KeyError("content-type")

    with pytest.raises(StudioError) as raised:
        list(zerogpu.Lending(call, tmp_path, 60).events())
    assert raised.value.problem.code == "gpu_unreachable"


def test_a_worker_whose_death_nobody_tells_is_missed_by_its_beat(tmp_path, monkeypatch):
    monkeypatch.setattr(zerogpu, "SILENT_SECONDS", 0.2)
    dead = threading.Event()

    def call(seconds):
        yield Progress("steps", 1)
        zerogpu.Beat(tmp_path).at("steps", 1)
        dead.wait(100)

    lending = zerogpu.Lending(lambda seconds: zerogpu.watched(call(seconds), tmp_path), tmp_path, 60)
    with pytest.raises(StudioError) as raised:
        list(lending.events())
    assert raised.value.problem.code == "gpu_silent"
    assert not dead.is_set()
    dead.set()


def test_a_visitor_can_leave_while_the_card_is_being_lent(tmp_path):
    lent = threading.Event()
    ended = threading.Event()

    def call():
        lent.wait(100)
        try:
            yield Progress("steps", 1)
        finally:
            ended.set()

    events = zerogpu.watched(call(), tmp_path)
    assert next(events).stage == "lending"
    events.close()
    assert not ended.is_set()
    lent.set()
    assert ended.wait(100)


def test_a_beat_tells_when_the_time_began_and_where_the_work_is(tmp_path, monkeypatch):
    monkeypatch.setattr(zerogpu, "_forked_at", time.time() - 50)
    fresh = zerogpu.Beat(tmp_path)
    fresh.at("steps", 3)
    found = json.loads((tmp_path / zerogpu.BEAT).read_text())
    assert (found["stage"], found["step"]) == ("steps", 3)
    assert zerogpu.used_up(tmp_path, 50) and not zerogpu.used_up(tmp_path, 60)
    # The fork is long ago for the second job of a warm worker.
    zerogpu.Beat(tmp_path).at("steps")
    assert not zerogpu.used_up(tmp_path, 50)
    zerogpu.Beat(tmp_path / "gone").at("steps")  # nobody waits for it any more


def test_a_beat_that_cannot_be_read_counts_as_none(tmp_path):
    assert not zerogpu.used_up(tmp_path, 1)
    for text in ("{", "[]", '{"began": "x"}', '{"began": null}'):
        (tmp_path / zerogpu.BEAT).write_text(text)
        assert not zerogpu.used_up(tmp_path, 1)
