"""ZeroGPU without the platform: the real `spaces` package, a fake device API, the studio in a process of its own."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError, ValidationError
from playwright.sync_api import expect

import estimate
import gpu_zero
import tooltips
from limits import AUTOMATIC_GPU_SECONDS
from model_weights import CHECKPOINTS
from params import parse_request, settle
from runs import GONE_SECONDS
from tests.engine.adapters import write_adapter
from tests.engine.fake_device_api import STREAM, Answer, Queued, no_quota
from tests.engine.space import Space, open_space
from tests.engine.zerogpu_studio import MADE_FOR, digest
from tests.page.steps import Tab, fits, violations
from tests.program import ROOT
from tests.waiting import until

TOKEN = "e30.e30.e30"
PLAN_SEED = 16
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ZeroGPU's workers need Linux"
)
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def space(tmp_path_factory, tiny) -> Iterator[Space]:
    yield from open_space(tmp_path_factory.mktemp("space"), tiny)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory, tiny, shelf) -> Iterator[Space]:
    """A Space with two models that asks for 4 seconds a song, and for 8 at the second try, which never end."""
    models = {"ACE_STUDIO_MODEL": CHECKPOINTS["sft"], "ACE_STUDIO_MODELS": "sft, turbo"}
    environ = {"ZEROGPU_SHELF": str(shelf), "ZEROGPU_LEAST_SECONDS": "4", **models}
    for space in open_space(tmp_path_factory.mktemp("hasty"), tiny, **environ):
        space.api.endless = {8.0}
        yield space


def values(prompt: str = "calm piano", **changed) -> dict:
    options = {"steps": 2, **changed.pop("options", {})}
    return {"prompt": prompt, "duration": 10, "instrumental": True, **changed, "options": options}


def song(client: Client, prompt: str = "calm piano", **changed):
    """Ask for a song; returns the job."""
    return client.submit(**values(prompt, **changed), api_name="/generate")


def made(job) -> tuple[list[dict], dict]:
    """Return the files and the record of a song that is done."""
    return job.result(timeout=800)


def failed(job) -> AppError:
    """Return the error that a song ended with."""
    with pytest.raises(AppError) as raised:
        job.result(timeout=800)
    return raised.value


def samples(files: list[dict]):
    return soundfile.read(files[0]["path"])[0]


# --- the page, on a Space that has made no song yet ---------------------------------------------------------------

# A visitor's changes in order: the first two cost more, the last one less.
CHANGES = {
    "duration": ("type", "240", 240),
    "takes": ("pick", "3", 3),
    "quality": ("pick", "Draft, 20 steps", "draft"),
}


def sentence(**values: Any) -> str:
    """Return the sentence with the seconds that the call itself asks for."""
    request = parse_request("generate", values)
    work = estimate.work_of(request, settle(request, "sft"), planner=True)
    return tooltips.GPU_SECONDS.format(seconds=gpu_zero.gpu_seconds(work))


@slow
def test_the_seconds_are_shown_before_the_click_and_follow_the_form(space: Space, visit, tab):
    page = visit(space.url, 390)
    opened: Tab = tab(page, "generate")
    line, values = opened.part("seconds"), {"prompt": "a song", "duration": 60}
    opened.unfold()
    opened.set("duration", "type", "60")
    sentences = [sentence(**values)]
    expect(line).to_have_text(sentences[0])
    for name, (how, shown, value) in CHANGES.items():
        opened.set(name, how, shown)
        values[name] = value
        sentences.append(sentence(**values))
        expect(line).to_have_text(sentences[-1])
    assert len({*sentences}) == len(sentences), sentences
    # It is beside the button, inside the window.
    assert 0 < opened.go.bounding_box()["y"] - line.bounding_box()["y"] < 100
    assert fits(page)
    # Too much for one call is announced before the click and refused after it, without asking for a GPU.
    asked = len(space.api.asked)
    opened.set("duration", "type", "600")
    opened.set("quality", "pick", "Best, 80 steps")
    expect(line).to_contain_text("seconds of GPU time; one call gets up to 300. It fits with")
    opened.set("prompt", "type", "a song")
    opened.go.click()
    expect(opened.field("duration")).to_contain_text("one call gets up to 300")
    assert violations(page) == []
    assert len(space.api.asked) == asked
    # Nothing is shown while a field is wrong; kept settings have their seconds after a reload.
    opened.set("duration", "type", "9")
    expect(line.locator(".shown")).to_have_count(0)
    opened.set("duration", "type", "240")
    opened.set("quality", "pick", "Draft, 20 steps")
    page.reload()
    expect(opened.text("duration")).to_have_value("240")
    expect(line).to_have_text(sentences[-1])


# --- a song -------------------------------------------------------------------------------------------------------


@slow
def test_a_song_arrives_with_the_packed_weights_and_the_visitors_token(space, pipe):
    job = song(space.client(TOKEN), seed=7)
    files, record = made(job)
    assert soundfile.info(files[0]["path"]).frames == 480_000
    assert record["seeds"] == [7]
    # The page and the API were told of every step on the way, across the border of the process.
    told = [output[1]["progress"] for output in job.outputs()[:-1]]
    assert {"lending", "steps", "decoding"} <= {progress["stage"] for progress in told}
    assert ("steps", 2, 2) in {
        (progress["stage"], progress["step"], progress["steps"]) for progress in told
    }
    assert space.api.asked[-1]["token"] == TOKEN
    # In the main process the weights are gone after packing, so these can only be the packed ones.
    (facts,) = (facts for facts in space.facts() if facts["seed"] == 7)
    assert facts["transformer"] == digest(pipe.transformer)
    assert space.api.reports == 1
    (lease,) = space.api.leases
    assert lease.ended and not lease.failed


@slow
def test_the_declared_seconds_are_those_of_the_estimator_and_too_many_are_refused_unasked(space):
    changed = {"duration": 240, "takes": 4, "options": {"steps": 50, "plan": False}}
    space.api.answers.append(no_quota(wait=-1))
    failed(song(space.client(TOKEN), **changed))
    request = parse_request("generate", values(**changed))
    expected = gpu_zero.gpu_seconds(estimate.work_of(request, settle(request, "sft"), planner=True))
    assert expected > 60
    assert int(space.api.asked[-1]["durationSeconds"]) == expected
    before = len(space.api.asked)
    with pytest.raises(ValidationError, match=r"duration: .* 300[.] It fits with"):
        song(space.client(), duration=600, takes=4, options={"steps": 200}).result(timeout=800)
    assert len(space.api.asked) == before


@slow
def test_a_song_of_automatic_length_asks_for_the_longest_that_the_seconds_allow(space):
    """The planner decides within that, and the song is as long as it says."""
    # With this seed the random planner chooses a short song.
    options = {"steps": 50, "plan_seed": PLAN_SEED}
    changed = {"duration": None, "takes": 4, "options": options}
    request = parse_request("generate", values(**changed))
    work = estimate.work_of(request, settle(request, "sft"), planner=True)
    longest = estimate.longest(work, AUTOMATIC_GPU_SECONDS)
    assert longest < work.duration  # it is the seconds that bound it
    files, record = made(song(space.client(TOKEN), **changed))
    assert int(space.api.asked[-1]["durationSeconds"]) == gpu_zero.gpu_seconds(
        replace(work, duration=longest)
    )
    assert record["length"]["source"] == "planner"
    assert 10 <= record["length"]["seconds"] <= longest
    for file in files:
        assert soundfile.info(file["path"]).duration == record["length"]["seconds"]


@slow
def test_every_mode_and_the_lyrics_writer_use_one_task(space, tmp_path):
    client = space.client()
    path = tmp_path / "tone.wav"
    wave = 0.3 * np.sin(np.arange(480_000) * 0.05)
    soundfile.write(path, np.stack([wave, wave], axis=1), 48_000)
    source = {
        "source": handle_file(path),
        "prompt": "calm piano",
        "instrumental": True,
        "options": {"steps": 2},
    }
    before = len(space.api.asked)
    made(song(client))
    made(client.submit(**source, api_name="/cover"))
    made(client.submit(**source, after=5, api_name="/extend"))
    made(client.submit(**source, action="repaint", start=2, end=5, api_name="/edit"))
    assert made(client.submit(brief="rain in May", options={"max_tokens": 16}, api_name="/lyrics"))
    asked = space.api.asked[before:]
    assert len(asked) == 5 and len({each["taskId"] for each in asked}) == 1


# --- visitors side by side ----------------------------------------------------------------------------------------


@slow
def test_four_visitors_at_once_get_four_songs_side_by_side(space):
    before = len(space.facts())
    jobs = [song(space.client(), "together 4") for _ in range(4)]
    sounds = [samples(made(job)[0]) for job in jobs]
    facts = space.facts()[before:]
    assert len({each["pid"] for each in facts}) == len({each["seed"] for each in facts}) == 4
    assert max(each["begun"] for each in facts) < min(each["ended"] for each in facts)
    assert not any(np.allclose(a, b, atol=1e-2) for a, b in combinations(sounds, 2))


@slow
def test_visitors_with_different_loras_at_once_hear_their_own(space, pipe, tmp_path):
    uploads = [write_adapter(tmp_path / f"{seed}.safetensors", pipe, seed) for seed in (1, 2)]

    def options(upload):
        return {"loras": [{"source": handle_file(str(upload)), "weight": 1.0}]} if upload else {}

    def together(*choices):
        jobs = [song(space.client(), seed=7, options=options(upload)) for upload in choices]
        return [made(job) for job in jobs]

    found = together(*uploads, None)
    names = [[lora["name"] for lora in record["loras"]] for _, record in found]
    assert names == [["1.safetensors"], ["2.safetensors"], []]
    songs = [samples(files) for files, _ in found]
    assert not any(np.array_equal(a, b) for a, b in combinations(songs, 2))
    # Again one by one, in workers that another visitor's LoRA may have passed through.
    for upload, before in zip((*uploads, None), songs, strict=True):
        assert np.array_equal(samples(together(upload)[0][0]), before)


# --- what goes wrong ----------------------------------------------------------------------------------------------


@slow
def test_an_error_in_the_worker_is_a_sentence_and_the_worker_stays_warm(space):
    client = space.client()
    made(song(client))
    error = failed(song(client, "raise"))
    assert "unexpected error occurred (ValueError)" in str(error) and "secret" not in str(error)
    made(song(client))
    before, after = space.facts()[-2:]
    assert before["pid"] == after["pid"]


@slow
def test_a_crash_is_a_sentence_and_not_tried_again_even_if_nobody_reports_it(space):
    before = len(space.api.asked)
    assert "ended unexpectedly" in str(failed(song(space.client(), "crash")))
    assert space.api.leases[-1].failed
    space.api.faults["release"].append(Answer(500))
    assert failed(song(space.client(), "crash")).title == "gpu_silent"
    assert len(space.api.asked) == before + 2
    made(song(space.client()))


# Whatever else `spaces` cannot read ends like these (tests/unit/test_gpu_zero.py).
UNREAD = "could not be asked for a GPU"
REFUSALS = {
    "quota": (no_quota(30, 3723), True, "seconds, and 30 are left. Try again in 1:02:03"),
    "visitors": (no_quota(0, 100), False, "for visitors without an account"),
    "credits": (no_quota(wait=5, result="pending-overquota-exceeded"), True, "credits"),
    "no card": (Answer(503), True, "No GPU is free"),
    "session": (Answer(401), True, "Reload the page"),
    "queue": (
        Answer(body="event: failed\n\n", type=STREAM),
        True,
        "No GPU became free within 60 seconds",
    ),
    "200 with a page": (Answer(body="<html>", type="text/html"), True, UNREAD),
    "429 without a body": (Answer(429), True, UNREAD),
    "an unknown event": (Answer(body="event: news\n\n", type=STREAM), True, UNREAD),
    "a connection that drops": (Answer(0), True, UNREAD),
    "a minute of silence": (Queued(silent=7), True, UNREAD),
}


@slow
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_card_that_is_not_lent_is_a_sentence_and_not_tried_again(space, refusal):
    answer, signed_in, words = REFUSALS[refusal]
    before = len(space.api.asked)
    space.api.answers.append(answer)
    assert words in str(failed(song(space.client(TOKEN if signed_in else ""))))
    assert len(space.api.asked) == before + 1


@slow
def test_a_card_comes_through_the_queue_even_after_a_drop_and_goes_back_if_the_visitor_leaves(
    space,
):
    space.api.answers += [Queued(drops=True), Queued()]
    assert made(song(space.client(TOKEN)))[0]
    space.api.answers.append(Queued(pings=1, silent=2))
    before = len(space.api.leases)
    job = song(space.client())
    until(lambda: not space.api.answers)
    job.cancel()
    until(lambda: len(space.api.leases) > before and space.api.leases[-1].ended)
    assert made(song(space.client()))[0]


@slow
def test_a_card_that_cannot_be_handed_back_costs_nobody_a_song(space):
    space.api.faults["release"].append(Answer(500))
    # `spaces` waits 20 minutes for this card.
    assert made(song(space.client()))[0]
    assert not space.api.faults["release"]
    assert made(song(space.client()))[0]


@slow
def test_a_warm_worker_that_is_evicted_is_replaced_and_one_that_may_not_have_the_card_is_a_sentence(
    space,
):
    client = space.client()
    for answer in (None, Answer(500), Answer(0)):
        made(song(client))
        space.api.evict()  # or the worker would have the card already
        if answer:
            space.api.faults["allow"].append(answer)
            assert failed(song(client)).title == "gpu_failed"
            assert not space.api.faults["allow"]
    made(song(client))


@slow
def test_cancel_frees_the_card_in_mid_song(space):
    job = song(space.client(), "slowly 1", options={"steps": 200, "plan": False})
    until(lambda: any(out[1].get("progress", {}).get("step", 0) >= 2 for out in job.outputs()))
    lease = space.api.leases[-1]
    assert lease.ended is None
    job.cancel()
    until(lambda: lease.ended, 150)  # the song itself would take longer
    assert not lease.failed and not lease.killed
    made(song(space.client()))


# --- visitors who leave -------------------------------------------------------------------------------------------


def left(space: Space, prompt: str, token: str = TOKEN, **changed) -> str:
    """Start a song and close the connection; return the id of its run."""
    client = space.client(token)
    options = {"detach": True, "plan": False, **changed.pop("options", {})}
    _, facts = client.predict(**values(prompt, options=options, **changed), api_name="/generate")
    client.close()
    return facts["run"]


def asked(space: Space, run: str) -> dict:
    return httpx.get(f"{space.url}/runs/{run}", timeout=300).raise_for_status().json()


@slow
def test_a_visitor_who_leaves_before_the_card_and_stays_away_costs_nothing(space):
    lent, made_before = len(space.api.leases), len(space.facts())
    waiting = Queued(free=threading.Event())
    space.api.answers.append(waiting)
    run = left(space, "gone")
    until(lambda: not space.api.answers)
    space.let_pass(GONE_SECONDS + 1)
    until(lambda: space.noted(run) == "cancelled")
    facts = asked(space, run)
    assert facts["state"] == "cancelled" and "left before a GPU was free" in facts["sentence"]
    # What ZeroGPU's queue lends then goes back at once, without a song.
    waiting.free.set()
    until(lambda: len(space.api.leases) == lent + 1 and space.api.leases[-1].ended)
    assert not space.api.leases[-1].killed and len(space.facts()) == made_before
    assert not [*(space.folder / "output").glob("gone-*")]


@slow
def test_a_visitor_who_leaves_before_the_card_and_comes_back_in_time_gets_the_song(space):
    waiting = Queued(free=threading.Event())
    space.api.answers.append(waiting)
    run = left(space, "back")
    until(lambda: not space.api.answers)
    for _ in range(3):  # longer than a minute in all
        space.let_pass(0.8 * GONE_SECONDS)
        assert asked(space, run)["state"] == "running"
    waiting.free.set()
    until(lambda: space.noted(run) == "finished")
    assert space.api.asked[-1]["token"] == TOKEN
    (take,) = asked(space, run)["takes"]
    file = httpx.get(f"{space.url}{take}", timeout=300).content
    assert soundfile.info(io.BytesIO(file)).frames == 480_000


@slow
def test_a_visitor_who_leaves_a_song_that_has_its_card_finds_it_finished_on_coming_back(space):
    lent = len(space.api.leases)
    run = left(space, "held")
    until(lambda: (asked(space, run)["progress"] or {}).get("stage") == "steps")
    (lease,) = space.api.leases[lent:]
    space.let_pass(100 * GONE_SECONDS)
    assert lease.ended is None
    (space.folder / "facts" / "go").touch()
    until(lambda: space.noted(run) == "finished")
    facts = asked(space, run)
    assert space.api.asked[-1]["token"] == TOKEN
    assert facts["record"]["gpu"]["tries"] == 1 and len(facts["takes"]) == 1
    until(lambda: lease.ended)
    assert not lease.failed and not lease.killed


@slow
def test_a_song_that_runs_into_its_limit_gets_twice_the_seconds_once(hasty):
    hasty.api.second = 1
    lent = len(hasty.api.leases)
    job = song(hasty.client(), "held", options={"steps": 10, "plan": False})
    until(lambda: any(lease.killed for lease in hasty.api.leases[lent:]))
    (hasty.folder / "facts" / "go").touch()
    files, record = made(job)
    first, second = hasty.api.leases[-2:]
    assert (first.seconds, second.seconds) == (4, 8)
    assert first.killed and not second.killed
    assert soundfile.info(files[0]["path"]).frames == 480_000
    assert record["gpu"].pop("used") > 0
    assert record["gpu"] == {"estimated": 4, "asked": 8, "tries": 2}
    notes = [out[1]["progress"]["note"] for out in job.outputs()[:-1]]
    assert any("tries again with 8" in note for note in notes)


# --- several models -----------------------------------------------------------------------------------------------


@slow
def test_two_models_are_placed_at_the_start_and_a_third_one_is_refused(hasty):
    hasty.api.second = 30
    client = hasty.client()
    states = client.predict(api_name="/capabilities")["models"]
    assert [(each["name"], each["state"]) for each in states] == [
        ("sft", "loaded"),
        ("turbo", "loaded"),
        ("base", "missing"),
    ]
    before = len(hasty.facts())
    for model in ("turbo", "sft", "turbo"):
        _, record = made(song(client, options={"model": model, "plan": False}))
        assert record["model"]["id"] == CHECKPOINTS[model]
        assert record["sampling"]["turbo"] == (model == "turbo")
    first, second, third = [facts["transformer"] for facts in hasty.facts()[before:]]
    assert first == third != second
    with pytest.raises(ValidationError, match="is not loaded on this Space"):
        made(song(client, options={"model": "base"}))


def test_the_patches_are_made_for_the_spaces_version_that_is_named():
    assert f"spaces=={MADE_FOR}" in (ROOT / "requirements-dev.txt").read_text().splitlines()
