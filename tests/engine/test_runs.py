"""Runs over HTTP on the real engine: detached, followed, cancelled, fetched, side by side, and after a restart."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import soundfile
from mutagen.mp3 import MP3

import backend
import limits
import runs
import song_codec
from events import StudioError
from params import parse_request
from tests.engine.calls import RATE, listen, post
from tests.waiting import until

ONE_STEP = {"steps": 1, "plan": False}


@pytest.fixture
def web(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=120) as client:
        yield client


def detached(server, **named):
    """Start a song that goes on by itself; return its id."""
    options = {**ONE_STEP, **named.pop("options", {}), "detach": True}
    event = post(server, options=options, **named).json()["event_id"]
    *_, (name, data) = listen(server, event)
    assert name == "complete", data
    files, facts = data
    assert files is None and facts["state"] in ("waiting", "running")
    return facts["run"]


def state(web, run):
    return web.get(f"/runs/{run}").raise_for_status().json()


def finished(web, run):
    until(lambda: state(web, run)["state"] not in ("waiting", "running"))
    return state(web, run)


def streamed(web, run, after=0):
    """Return (number, name, data) of each event of a run until its end."""
    heard = []
    with web.stream("GET", f"/runs/{run}/events", params={"after": after}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            kind, _, value = line.partition(": ")
            if kind == "id":
                heard.append([int(value)])
            elif kind in ("event", "data"):
                heard[-1].append(json.loads(value) if kind == "data" else value)
    return [tuple(each) for each in heard]


def test_a_detached_song_is_followed_and_fetched_by_its_id_alone(server, web):
    run = detached(server, takes=2, seed=7)
    heard = streamed(web, run)
    names = [name for _, name, _ in heard]
    assert names[-1] == "finished" and "progress" in names
    assert [number for number, *_ in heard] == sorted({number for number, *_ in heard})
    assert streamed(web, run, after=heard[-2][0]) == heard[-1:]
    facts = state(web, run)
    assert (facts["state"], facts["sentence"]) == ("finished", "Finished.")
    assert facts["record"] == heard[-1][2]["record"] and facts["record"]["seeds"] == [7, 8]
    assert facts["takes"] == [f"/runs/{run}/takes/1", f"/runs/{run}/takes/2"]
    songs = [web.get(address).raise_for_status() for address in facts["takes"]]
    for song, take in zip(songs, facts["record"]["takes"], strict=True):
        assert soundfile.info(io.BytesIO(song.content)).frames == 10 * RATE
        assert take["name"] in song.headers["content-disposition"]
        assert song.headers["content-type"].startswith("audio/")
    part = web.get(facts["takes"][0], headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, songs[0].content[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(songs[0].content)}"
    assert web.get(f"/runs/{run}/takes/3").status_code == 404
    converted = web.get(facts["takes"][1], params={"format": "mp3", "title": "Rain"})
    assert converted.raise_for_status().headers["content-type"] == "audio/mpeg"
    name = quote(f"{Path(facts['record']['takes'][1]['name']).stem}.mp3")
    assert name in converted.headers["content-disposition"]
    file = MP3(io.BytesIO(converted.content))
    assert file.tags["TIT2"].text == ["Rain"]
    assert file.info.length == pytest.approx(10, abs=0.1)  # a frame is 0.024 s
    refused = web.get(facts["takes"][1], params={"format": "exe"})
    assert refused.status_code == 400
    assert "format must be one of wav, flac, mp3, ogg" in refused.json()["detail"]
    missing = web.get(f"/runs/{run}/takes/3", params={"format": "mp3"})
    assert (missing.status_code, missing.json()["code"]) == (404, "no_take")
    (brief,) = web.get("/runs", params={"id": run}).json()
    assert brief["state"] == "finished" and brief["record"] is None


class Stops:
    """Holds the song model at the start of chosen steps, counted from 1, until each is let through."""

    def __init__(self, *steps):
        self.begun = 0
        self.passes = {step: threading.Event() for step in steps}

    def __call__(self, module, inputs):
        self.begun += 1
        if self.begun in self.passes:
            assert self.passes[self.begun].wait(300)


def test_a_song_is_heard_half_way_and_is_the_same_as_without(server, web):
    four = {"steps": 4}
    plain = finished(web, detached(server, seed=7, options=four))
    stops = Stops(2, 3, 4)
    hook = backend.get_backend().models.pipeline().transformer.register_forward_pre_hook(stops)
    try:
        run = detached(server, seed=7, options=four)
        until(lambda: stops.begun == 2)
        assert state(web, run)["song_draft"] is None
        early = web.post(f"/runs/{run}/draft")
        assert (early.status_code, early.json()["code"]) == (404, "no_draft")
        stops.passes[2].set()
        until(lambda: state(web, run)["song_draft"])
        offer = state(web, run)["song_draft"]
        assert offer == {
            "state": "offered",
            "step": 0,
            "url": f"/runs/{run}/draft",
            "problem": None,
        }
        assert web.get(offer["url"]).status_code == 404
        for _ in range(2):  # a second press asks for nothing more
            assert web.post(offer["url"]).raise_for_status().json()["state"] == "asked"
        stops.passes[3].set()
        until(lambda: state(web, run)["song_draft"]["state"] == "ready")
        assert state(web, run)["song_draft"]["step"] == 3
        heard = web.get(offer["url"]).raise_for_status()
        assert heard.headers["content-type"] in ("audio/flac", "audio/x-flac")
        part = web.get(offer["url"], headers={"Range": "bytes=0-99"})
        assert (part.status_code, part.content) == (206, heard.content[:100])
        progress = state(web, run)["progress"]
        assert progress["stage"] == "steps" and len(progress["outline"]) == 100
    finally:
        for passes in stops.passes.values():
            passes.set()
        hook.remove()
    facts = finished(web, run)
    draft, rate = soundfile.read(io.BytesIO(heard.content))
    assert (rate, len(draft)) == (RATE, 10 * RATE) and np.abs(draft).max() > 0.1
    songs = [
        soundfile.read(io.BytesIO(web.get(each["takes"][0]).content))[0] for each in (plain, facts)
    ]
    assert np.array_equal(*songs) and not np.array_equal(songs[0], draft)
    assert facts["record"]["seconds"]["draft"] > 0 and "draft" not in plain["record"]["seconds"]
    assert facts["song_draft"] is None
    for answer in (web.get(f"/runs/{run}/draft"), web.post(f"/runs/{run}/draft")):
        assert (answer.status_code, answer.json()["code"]) == (404, "no_draft")


def test_without_memory_for_a_draft_the_song_continues(server, web, monkeypatch):
    decode = song_codec.decode_latents

    def runs_out(*_):
        monkeypatch.setattr(song_codec, "decode_latents", decode)
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(song_codec, "decode_latents", runs_out)
    stops = Stops(3, 4)
    hook = backend.get_backend().models.pipeline().transformer.register_forward_pre_hook(stops)
    try:
        run = detached(server, options={"steps": 4})
        until(lambda: state(web, run)["song_draft"])
        web.post(f"/runs/{run}/draft").raise_for_status()
        stops.passes[3].set()
        until(lambda: state(web, run)["song_draft"]["state"] == "failed")
        assert "could not be heard" in state(web, run)["song_draft"]["problem"]["message"]
    finally:
        for passes in stops.passes.values():
            passes.set()
        hook.remove()
    facts = finished(web, run)
    assert facts["state"] == "finished" and len(facts["takes"]) == 1


def test_a_wrong_id_gets_the_answer_of_one_that_never_was(web):
    answers = [
        web.get(f"/runs/{run}{more}")
        for run in ("0" * 32, "../etc")
        for more in ("", "/events", "/takes/1")
    ]
    answers += [web.post(f"/runs/{'0' * 32}/cancel")]
    known = [answer for answer in answers if answer.url.path.startswith("/runs/0")]
    assert {answer.status_code for answer in known} == {404}
    assert {answer.json()["code"] for answer in known} == {"no_run"}
    assert (
        web.get("/runs").status_code == 400
        and web.get("/runs", params={"id": ["a"] * 21}).status_code == 400
    )
    assert web.get(f"/runs/{'0' * 32}/events", params={"after": "x"}).status_code == 400
    assert web.get(f"/runs/{'0' * 32}/cancel").status_code == 405
    (facts,) = web.get("/runs", params={"id": "<b>"}).json()
    assert facts["state"] == "unknown"


def test_a_song_is_cancelled_by_its_id_within_a_step_and_one_that_waits_at_once(server, web):
    long = detached(server, duration=60, options={"steps": 200})
    until(lambda: (state(web, long)["progress"] or {}).get("stage") == "steps")
    waiting = detached(server)
    facts = state(web, waiting)
    assert (facts["state"], facts["place"]) == ("waiting", 1)
    assert "Next in the queue" in facts["sentence"]
    answer = web.post(f"/runs/{waiting}/cancel").json()
    assert (answer["cancelled"], answer["state"]) == (True, "cancelled")
    assert web.post(f"/runs/{long}/cancel").json()["cancelled"]
    assert finished(web, long)["problem"]["code"] == "cancelled"
    until(lambda: not backend.get_backend().models.turn.locked())
    assert streamed(web, long)[-1][1] == "cancelled"
    assert web.post(f"/runs/{long}/cancel").json() == {
        "run": long,
        "cancelled": False,
        "state": "cancelled",
    }


@pytest.mark.slow
def test_fifty_owners_with_three_songs_each_take_turns_and_the_33rd_gets_its_sentence(
    server, web, capsys
):
    """Whoever asked first for three songs still waits for everybody's first one."""
    found = runs.runs_of(backend.get_backend())
    asked = parse_request("generate", {"prompt": "calm piano", "duration": 10, "options": ONE_STEP})
    refused: list[str] = []
    # The first song is being made for as long as the turn is held.
    with backend.get_backend().models.turn:
        first = found.start(asked, "before them")
        for number in range(150):
            try:
                found.start(asked, f"owner {number // 3}", limits.MOST_WAITING_OF_A_PAGE)
            except StudioError as error:
                refused.append(error.problem.code)
        order = found.waiting()
        assert len(order) == limits.MOST_WAITING
        answer = web.post("/gradio_api/run/capabilities", json={"data": []}, timeout=2)
        assert answer.json()["data"][0]["studio"]
        busy = post(server)
        assert busy.status_code == 503 and "32 runs are waiting" in busy.json()["detail"]
        # Everybody's first song and two second ones are made.
        everyone = [first, *order[:13]]
        for run in order[13:]:
            assert found.cancel(run.id)
    assert refused == ["queue_full"] * (150 - limits.MOST_WAITING)
    for run in [*order, first]:
        until(lambda run=run: run.ended)
    assert [run for run in (first, *order) if run.state == "finished"] == everyone
    assert sorted(everyone, key=lambda run: run.started_at) == everyone
    rounds = [[run.owner for run in part] for part in (order[:11], order[11:22], order[22:])]
    owners = [f"owner {number}" for number in range(11)]
    assert rounds == [owners, owners, owners[:10]]
    with capsys.disabled():
        for number, part in enumerate(rounds, 1):
            print(f"\nround {number}: a song of each of {part[0]} to {part[-1]}", end="")
