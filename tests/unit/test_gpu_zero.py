"""ZeroGPU: what its errors become, when a job is tried again, and the seconds that it is asked for."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace

import gradio as gr
import httpx
import numpy as np
import pytest

import beat
import estimate
import gpu
import gpu_zero
from estimate import Work
from events import Outcome, Progress, StudioError
from gpu_job import Job
from limits import LIMITS
from params import SongRequest, parse_request, settle
from record import Ran

QUOTA = "ZeroGPU quota exceeded"
NO_GPU = "No GPU was available after 60s. <a>Retry later</a>"


def said(title: str, message: str) -> gr.Error:
    return gr.Error(message, title=title, print_exception=False)


ABORTED = said("ZeroGPU worker error", "GPU task aborted")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ABORTED, "gpu_aborted", "ended unexpectedly"),
        (said("ZeroGPU worker error", "OutOfMemoryError"), "gpu_failed", "OutOfMemoryError"),
        (
            said("ZeroGPU illegal duration", "The requested GPU duration (300s) is larger"),
            "gpu_duration",
            "300 sec",
        ),
        (
            said(QUOTA, "Space app has reached its GPU limit. Try re-running"),
            "gpu_quota",
            "Sign in",
        ),
        (
            *(
                said(
                    QUOTA,
                    "You have exceeded your quota (90s requested vs. 30s left). Try again in 1:02:03. ",
                ),
            ),
            *("gpu_quota", "needs 90 seconds, and 30 are left. Try again in 1:02:03,"),
        ),
        (said(QUOTA, "You have exceeded your ZeroGPU runs limit. "), "gpu_quota", "runs"),
        (said(QUOTA, "in words that nobody knows yet"), "gpu_quota", "used up"),
        (said(QUOTA, NO_GPU), "gpu_busy", "60 seconds"),
        (
            said("ZeroGPU pending credits exceeded", "You have too many ZeroGPU credits"),
            "gpu_credits",
            "credits",
        ),
        (said("ZeroGPU queue timeout", NO_GPU), "gpu_busy", "60 seconds"),
        (said("ZeroGPU client error", "No GPU was available"), "gpu_busy", "No GPU is free"),
        (
            said("ZeroGPU client error", "Expired ZeroGPU proxy token"),
            "gpu_session",
            "Reload the page",
        ),
        (
            said("ZeroGPU client error", "Internal Gradio error"),
            "gpu_unreachable",
            "Reload the page",
        ),
        (RuntimeError("ZeroGPU API /schedule error: 500"), "gpu_unreachable", "could not be asked"),
        (RuntimeError("Unexpected end of stream"), "gpu_queue", "queue was lost"),
        (
            RuntimeError("Error while re-trying after queue disconnect"),
            "gpu_queue",
            "queue was lost",
        ),
        (RuntimeError("Connection closed by visitor while queueing"), "cancelled", "closed"),
        (httpx.ConnectError("refused"), "gpu_unreachable", "could not be asked"),
        (RuntimeError("x"), None, ""),
        (gr.Error("ours", title="too_loud"), None, ""),
    ],
    ids=str,
)
def test_every_error_of_zerogpu_has_a_sentence_and_others_have_none(error, code, words):
    problem = gpu_zero.problem_of(error)
    assert (problem and problem.code) == code
    assert problem is None or (words in problem.text() and "<" not in problem.text())


# --- one job ------------------------------------------------------------------------------------------------------


def lend(folder, *endings, seconds=100, lived=0.0, stage="steps"):
    """Run a job whose calls end one after the other in `endings` (None: a song) after `lived` times their seconds.

    Returns the seconds of each call, the last event or error, and the notes.
    """
    asked, notes = [], []

    def call(seconds):
        asked.append(seconds)
        yield Progress(stage)
        if lived:
            (folder / gpu_zero.BEAT).write_text(str(time.time() - lived * seconds))
        if ending := endings[len(asked) - 1]:
            raise ending
        yield Outcome(Ran())

    try:
        for last in gpu_zero.lent(call, folder, seconds):
            notes += [last.note] if getattr(last, "note", "") else []
    except Exception as error:
        last = error
    return asked, last, notes


def test_a_job_that_used_up_its_seconds_is_tried_once_more_with_twice_of_them(tmp_path):
    asked, last, (note,) = lend(tmp_path, ABORTED, None, lived=1.0)
    assert asked == [100, 200] and "100 " in note and "200" in note
    used = last.ran.gpu.pop("used")
    assert 200 <= used < 300
    assert last.ran.gpu == {"estimated": 100, "asked": 200, "tries": 2}
    assert lend(tmp_path, ABORTED, None, seconds=200, lived=1.0)[0] == [200, 300]


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
    asked, error, _ = lend(tmp_path, *endings, seconds=seconds, lived=lived)
    assert (len(asked), error.problem.code) == (tries, code)


def test_an_error_of_the_studio_passes_but_not_one_before_the_work_began(tmp_path):
    for error in (ValueError("ours"), StudioError("disk", "full")):
        assert lend(tmp_path, error)[1] is error
    # An answer that `spaces` cannot read.
    assert (
        lend(tmp_path, KeyError("content-type"), stage="lending")[1].problem.code
        == "gpu_unreachable"
    )


def test_a_heartbeat_of_the_first_try_says_nothing_about_the_second(tmp_path):
    tried = []

    def call(seconds):
        if not tried:
            (tmp_path / gpu_zero.BEAT).write_text(str(time.time() - seconds))
        tried.append(seconds)
        yield Progress("steps", 1)
        raise ABORTED

    with pytest.raises(StudioError) as raised:
        list(gpu_zero.lent(call, tmp_path, 100))
    assert raised.value.problem.code == "gpu_aborted" and len(tried) == 2


def test_a_worker_whose_death_nobody_reports_is_missed_by_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(beat, "SILENT_SECONDS", 0.2)
    over = threading.Event()

    def call(seconds):
        yield Progress("steps", 1)
        gpu_zero.Beat(tmp_path).write()
        over.wait(100)

    with pytest.raises(StudioError) as raised:
        list(gpu_zero.lent(call, tmp_path, 60))
    assert raised.value.problem.code == "gpu_silent" and not over.is_set()
    over.set()


def test_the_heart_beats_before_the_work_begins(tmp_path, monkeypatch):
    """A worker that dies at once would else be waited for as if it had not started."""
    seen = []

    def studio():
        seen.append((tmp_path / gpu_zero.BEAT).exists())
        raise RuntimeError("the worker dies")

    monkeypatch.setattr(gpu, "ON_ZEROGPU", True)
    monkeypatch.setattr(gpu, "_studio", studio, raising=False)
    with pytest.raises(RuntimeError, match="dies"):
        list(gpu.entry(Job(None, (1,), (), str(tmp_path)), 60))
    assert seen == [True]


def test_a_visitor_can_leave_while_the_card_is_being_lent(tmp_path):
    lent, ended = threading.Event(), threading.Event()

    def call(seconds):
        lent.wait(100)
        try:
            yield Progress("steps", 1)
        finally:
            ended.set()

    events = gpu_zero.lent(call, tmp_path, 60)
    for _ in range(2):  # before it is asked for, and while it is waited for
        assert next(events).stage == "lending"
    events.close()
    assert not ended.is_set()
    lent.set()
    assert ended.wait(100)


def test_a_heartbeat_tells_when_the_time_began(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_zero, "_forked_at", [time.time() - 50])
    gpu_zero.Beat(tmp_path).write()
    assert gpu_zero.used_up(tmp_path, 50) and not gpu_zero.used_up(tmp_path, 60)
    # The fork is long ago for the second job of a warm worker.
    gpu_zero.Beat(tmp_path).write()
    assert not gpu_zero.used_up(tmp_path, 50)
    gpu_zero.Beat(tmp_path / "gone").write()  # nobody waits for it any more
    (tmp_path / gpu_zero.BEAT).write_text("")
    assert not gpu_zero.used_up(tmp_path, 1)


# --- the seconds --------------------------------------------------------------------------------------------------

SONG = Work("generate", duration=240, steps=100, takes=2, guidance=7.0)


def test_seconds_are_a_whole_number_from_60_to_300():
    for value in (-5, 59.9, 123.7, np.float64(123.7), 1e9):
        assert type(gpu_zero.clamped(value)) is int and 60 <= gpu_zero.clamped(value) <= 300


def test_more_work_takes_longer():
    needed = estimate.seconds_needed
    more = (
        {"duration": 300},
        {"steps": 120},
        {"takes": 3},
        {"planner": True},
        {"tokens": 500},
        {"source": 240},
    )
    for change in (*more, {"passes": 2}):
        assert needed(replace(SONG, **change)) > needed(SONG), change
    assert needed(replace(SONG, guidance=1.0)) < needed(SONG)


@pytest.mark.parametrize(
    "change", [{}, {"takes": 4}, {"steps": 100, "takes": 4}, {"planner": True}]
)
def test_an_automatic_song_is_as_long_as_the_seconds_allow(change):
    song = replace(SONG, duration=240.0, **change)
    longest = estimate.longest(song, 120)
    assert LIMITS["duration"].low <= longest <= 240 and longest % 5 == 0
    if longest > LIMITS["duration"].low:
        assert estimate.seconds_needed(replace(song, duration=longest)) <= 120
    if longest < 240:
        assert estimate.seconds_needed(replace(song, duration=longest + 5)) > 120


def work(mode, facts=None, **values):
    if mode in ("generate", "cover", "extend", "edit"):
        values = {
            "prompt": "x",
            **({} if mode == "generate" else {"source": "/source.wav"}),
            **values,
        }
    facts = dict(facts or {})
    kind = facts.pop("kind", "sft")
    request = parse_request(mode, values)
    settings = settle(request, kind) if isinstance(request, SongRequest) else None
    return estimate.work_of(request, settings, **facts)


@pytest.mark.parametrize(
    ("mode", "length"), [("generate", 60), ("cover", 90), ("extend", 120), ("edit", 90)]
)
def test_a_song_of_any_mode_has_its_length_steps_takes_and_guidance(mode, length):
    region = {"end": 5} if mode == "edit" else {}
    found = work(mode, {"source": 90.0}, takes=3, options={"steps": 42, "guidance": 5}, **region)
    assert (found.duration, found.steps, found.takes, found.guidance) == (length, 42, 3, 5)


def test_turbo_takes_8_steps_without_guidance_lyrics_their_tokens_and_a_plan_counts_if_wanted():
    turbo = work("generate", {"kind": "turbo"})
    assert (turbo.steps, turbo.guidance) == (8, 1.0)
    assert work("lyrics", brief="x", options={"max_tokens": 64}).tokens == 64
    assert work("generate", {"planner": True}).planner
    assert not work("generate", {"planner": False}).planner
    assert not work("generate", {"planner": True}, options={"plan": False}).planner
    assert not work("cover", {"planner": True, "source": 60.0}).planner


def test_a_morph_runs_source_and_target_in_every_draw():
    values = {"action": "morph", "source_prompt": "y"}
    assert work("edit", **values).passes == 2
    found = work("edit", **values, options={"n_min": 0.25, "n_max": 0.75, "n_avg": 4})
    assert found.passes == pytest.approx(0.5 * 8 + 0.25)


def test_every_standard_song_fits():
    for takes in (1, 4):
        assert (
            gpu_zero.refusal(work("generate", duration=LIMITS["duration"].high, takes=takes))
            is None
        )


ALONE = {"generate": {"takes", "steps", "duration"}, "cover": {"takes", "steps"}}


@pytest.mark.parametrize(("mode", "alone"), ALONE.items())
def test_what_does_not_fit_is_refused_with_the_most_that_would_fit(mode, alone):
    song = Work(
        mode,
        duration=600,
        source=0 if mode == "generate" else 600,
        steps=200,
        takes=4,
        guidance=7.0,
    )
    problem = gpu_zero.refusal(song)
    assert "300" in problem.message and f"{estimate.seconds_needed(song):,.0f}" in problem.message
    names = {"take": "takes", "seconds": "duration"}
    ways = {
        names.get(what, what): int(n)
        for n, what in re.findall(r"(\d+) (takes?|steps|seconds)", problem.hint)
    }
    assert set(ways) == alone
    for name, number in ways.items():
        assert estimate.seconds_needed(replace(song, **{name: number})) <= 300
        more = number + (5 if name == "duration" else 1)
        assert estimate.seconds_needed(replace(song, **{name: more})) > 300
    # Where nothing alone helps, what to lower together.
    song = Work("edit", duration=600, source=600, steps=200, takes=4, guidance=7.0, passes=16)
    steps = int(re.search(r"1 take and (\d+) steps", gpu_zero.refusal(song).hint)[1])
    assert estimate.seconds_needed(replace(song, takes=1, steps=steps)) <= 300
    assert "morph averages" in gpu_zero.refusal(replace(song, passes=80)).hint
