"""Downloading a model from a hub of our own: what is fetched, what breaks, what the hub refuses, and where it ends."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download

import backend
import model_hub
import models
from events import Done, Progress, StudioError
from limits import size_text
from model_weights import find_planner, find_weights
from params import parse_request
from tests.unit.fake_hub import COMMIT, PIECE, FakeHub, serving, use_hub
from tests.weights import CPU, PLANNER

REPO = "studio/tiny"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
OTHERS = {
    "README.md": b"# Tiny",
    "silence_latent.pt": b"pickle",
    "transformer/diffusion_pytorch_model.bin": b"twice",
    "transformer/diffusion_pytorch_model.fp16.safetensors": b"variant",
    "onnx/model.onnx": b"other format",
}


@pytest.fixture
def server(home, tiny, monkeypatch) -> Iterator[FakeHub]:
    """A hub that holds the tiny checkpoint and, next to it, what nobody needs."""
    files = {
        path.relative_to(tiny).as_posix(): path.read_bytes()
        for path in tiny.rglob("*")
        if path.is_file()
    }
    monkeypatch.setattr(model_hub, "RETRY_SECONDS", 0.05)
    with serving(monkeypatch, REPO, files | OTHERS) as server:
        yield server


def fetch(repo: str = REPO, **selection) -> list[Progress]:
    return list(model_hub.download(repo, **selection))


def failure(**more):
    """Run a download that fails and return its problem."""
    with pytest.raises(StudioError) as caught:
        fetch(**more)
    return caught.value.problem


def ended() -> None:
    """Wait until no download works any more."""
    for thread in threading.enumerate():
        if thread.name == "download":
            thread.join(60)
            assert not thread.is_alive()


def test_a_download_brings_what_the_pipeline_needs_and_is_found(server, home, monkeypatch):
    events = fetch()
    names = set(server.fetched)
    assert {
        TRANSFORMER,
        "tokenizer/tokenizer.json",
        "model_index.json",
    } <= names and not names & OTHERS.keys()
    assert events[-1].step == events[-1].steps > 0
    assert [event.step for event in events] == sorted(event.step for event in events)
    (note,) = [event.note for event in events if event.note]
    assert "MB" in note and str(home / "hub") in note
    monkeypatch.setenv("ACE_STUDIO_MODEL", REPO)
    weights = find_weights()
    assert (weights.source, weights.revision, weights.problem) == ("cache", COMMIT, None)
    assert models.build_pipeline(weights, CPU).transformer.config.model_version == "sft"
    assert Path(snapshot_download(REPO, local_files_only=True)) == weights.folder
    asked = len(server.asked)
    assert not any(event.note for event in fetch())
    assert len(server.asked) == asked  # nothing is fetched twice


def test_a_second_model_fetches_only_what_the_first_one_does_not_have(server, home, monkeypatch):
    fetch()
    own = {TRANSFORMER: server.files[TRANSFORMER] + b"of its own"}
    with serving(monkeypatch, "studio/turbo", server.files | own) as other:
        assert model_hub.missing_bytes("studio/turbo") == len(own[TRANSFORMER])
        assert not other.asked
        events = fetch(repo="studio/turbo")
        assert model_hub.missing_bytes("studio/turbo") == 0
        assert other.fetched == [TRANSFORMER]
        size = sum(len(content) for name, content in server.files.items() if name not in OTHERS)
        known = size_text(size - len(server.files[TRANSFORMER]))
        assert any(f"{known} of it are already here" in event.note for event in events)
    # Both stay whole without the other one.
    first, second = (model_hub.storage_of(repo) for repo in (REPO, "studio/turbo"))
    whole = model_hub.storage_of(REPO) / "snapshots" / COMMIT / "vae"
    vae = sum(path.stat().st_size for path in whole.iterdir())
    shutil.rmtree(first)
    left = second / "snapshots" / COMMIT / "vae"
    assert sum(path.stat().st_size for path in left.iterdir()) == vae


@pytest.fixture
def planner_on_the_hub(server, monkeypatch) -> FakeHub:
    """Put a planner into a folder of the hub's repository, next to what nobody needs."""
    folder = PLANNER
    server.files |= {
        f"lm/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()
    }
    server.files |= {"lm/README.md": b"# LM", "lm/onnx/model.onnx": b"", "lmx/config.json": b"{}"}
    monkeypatch.setenv("ACE_STUDIO_PLANNER", f"{REPO}/lm")
    return server


def test_a_language_model_is_fetched_out_of_its_folder(planner_on_the_hub):
    weights = find_planner()
    fetch(
        repo=weights.repo, selection=model_hub.language_model("ACE_STUDIO_PLANNER", weights.inside)
    )
    names = set(planner_on_the_hub.fetched)
    assert {
        "lm/config.json",
        "lm/model.safetensors",
        "lm/tokenizer.json",
        "lm/chat_template.jinja",
    } <= names
    assert (
        all(name.startswith("lm/") for name in names)
        and not {"lm/README.md", "lm/onnx/model.onnx"} & names
    )
    weights = find_planner()
    assert (weights.source, weights.revision, weights.problem) == ("cache", COMMIT, None)


@pytest.mark.slow
def test_a_planner_named_on_purpose_is_fetched_by_the_first_planned_song(
    planner_on_the_hub, home, monkeypatch
):
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(home / "songs"))
    studio = backend.Backend()
    monkeypatch.setattr(backend, "_backend", studio)

    def song(plan: bool) -> tuple[set[str], dict]:
        values = {
            "prompt": "x",
            "duration": 10,
            "options": {"steps": 1, "guidance": 1, "plan": plan},
        }
        *events, done = studio.stream(parse_request("generate", values))
        return {event.stage for event in events}, done.record["plan"]

    stages, plan = song(plan=False)
    assert "downloading" not in stages and studio.status().planner.state == "ready"
    planner_on_the_hub.status = 500
    stages, plan = song(plan=True)
    error = "Hugging Face answered with error 500."
    assert plan == {"used": False, "reason": error, "missed": True}
    assert studio.status().planner.state == "failed"
    planner_on_the_hub.status = 200
    assert "downloading" not in song(plan=True)[0]  # not at every song
    studio.models.refresh()
    stages, plan = song(plan=True)
    assert "downloading" in stages and plan["used"] is True and plan["model"] == f"{REPO}/lm"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_resumed_where_it_broke_if_the_server_can(server, home, ranges):
    server.ranges = ranges
    server.breaks[TRANSFORMER] = [300_000, 400_000] if ranges else [300_000]
    events = fetch()
    assert events[-1].step == events[-1].steps
    starts = [start for name, start in server.asked if name == TRANSFORMER]
    if ranges:
        assert len(starts) == 3 and starts[0] == 0 < starts[1] <= 300_000 < starts[2] <= 700_000
    assert next((home / "hub").rglob(TRANSFORMER)).read_bytes() == server.files[TRANSFORMER]


def test_a_network_that_fails_for_good_is_an_error_and_the_next_download_continues(
    server, monkeypatch
):
    monkeypatch.setattr(model_hub, "RETRIES", 2)
    server.breaks[TRANSFORMER] = [300_000] + [0] * 10
    problem = failure()
    assert problem.code == "download_broken" and "MB" in problem.message
    server.breaks.clear()
    server.asked.clear()
    events = fetch()
    assert 0 < dict(server.asked)[TRANSFORMER] <= 300_000
    assert "are already here" in "".join(event.note for event in events)
    assert (
        find_weights().engine == "preview"
    )  # another model than the one that is wanted by default


def test_closing_stops_within_one_chunk_and_the_next_download_continues(server, home):
    def kept() -> int:
        return sum(path.stat().st_size for path in (home / "hub").rglob("*.incomplete"))

    server.pause = 0.05
    server.files[TRANSFORMER] = server.files[TRANSFORMER] * 4
    events = model_hub.download(REPO)
    next(event for event in events if kept() > 100_000)
    events.close()
    there = kept()
    ended()
    assert 0 < there <= kept() <= there + 2 * PIECE
    asked = len(server.asked)
    events = model_hub.download(REPO)
    next(event for event in events if len(server.asked) > asked)
    events.close()
    ended()
    assert server.asked[asked][1] > 0
    server.pause = 0.0
    fetch()


def test_a_download_that_is_stopped_does_not_go_on_hashing(tmp_path):
    whole = tmp_path / "whole.incomplete"
    whole.write_bytes(b"what arrived")
    running = model_hub.Fetch(REPO, lambda there, guarded: there, "a variable")
    running.stop.set()
    with pytest.raises(StudioError) as caught:
        running._check(model_hub.RepoFile("model.safetensors", 12, "0" * 64), whole)
    # It would be damaged if it had been hashed to its end.
    assert caught.value.problem.code == "cancelled" and whole.exists()


def test_the_bar_of_a_download_goes_on_while_a_song_has_the_models(server, home, monkeypatch):
    studio = backend.Backend()
    monkeypatch.setattr(studio.models, "weights", find_weights())
    fetched = studio.models.weights.wanted

    def nothing(wanted):
        assert wanted == fetched
        monkeypatch.setattr(models, "find_weights", lambda: "others")
        yield from ()

    monkeypatch.setattr(model_hub, "download", nothing)
    with studio.models.turn:
        events = studio.download()
        assert [next(events).stage for _ in range(2)] == ["waiting", "waiting"]
        events.close()
        events = studio.download()
        assert next(events).stage == "waiting"
    assert isinstance([*events][-1], Done)
    assert studio.models.weights == "others" and not studio.models.turn.locked()


def test_damaged_files_in_the_cache_are_downloaded_again(server, home):
    fetch()
    (pointer,) = (home / "hub").glob(f"models--*/snapshots/*/{TRANSFORMER}")
    blob, whole = pointer.resolve(), server.files[TRANSFORMER]
    pointer.unlink()
    pointer.write_bytes(whole[:1000])  # a copy of the cache without links
    fetch()
    assert pointer.read_bytes() == whole
    blob.rename(f"{blob}.incomplete")
    with open(f"{blob}.incomplete", "ab") as partial:
        partial.write(b"more")
    assert fetch()[-1].step == fetch()[-1].steps
    assert pointer.read_bytes() == whole


def test_two_downloads_at_once_share_the_work(server):
    server.pause = 0.002
    with ThreadPoolExecutor() as pool:
        last = [events[-1] for events in pool.map(lambda _: fetch(), range(2))]
    assert all(event.step == event.steps for event in last)
    assert server.fetched.count(TRANSFORMER) == 1


def test_bytes_that_changed_on_the_way_are_not_kept(server, home):
    right = server.model()
    server.model = lambda: right
    server.files[TRANSFORMER] = bytes(len(server.files[TRANSFORMER]))
    problem = failure()
    assert problem.code == "download_broken" and TRANSFORMER in problem.message
    assert not list((home / "hub").rglob("*.incomplete")) and not list(
        (home / "hub").rglob(TRANSFORMER)
    )


@pytest.mark.parametrize(
    ("status", "header", "code"),
    [
        (404, "RepoNotFound", "model_unknown"),
        (403, "GatedRepo", "model_guarded"),
        (500, "", "hub_refused"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(server, status, header, code):
    server.status, server.headers = status, {"X-Error-Code": header} if header else {}
    problem = failure(selection=model_hub.language_model("ACE_STUDIO_LYRICS"))
    assert problem.code == code
    assert REPO in problem.message or str(status) in problem.message
    assert status != 404 or "ACE_STUDIO_LYRICS" in problem.hint


def test_what_is_unfit_offline_or_too_large_is_known_before_anything_is_fetched(
    server, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(
            model_hub.shutil,
            "disk_usage",
            lambda path: SimpleNamespace(total=1, used=1, free=1_000_000),
        )
        problem = failure()
        assert problem.code == "disk_full" and "1.0 MB" in problem.message
    problem = failure(selection=model_hub.language_model("ACE_STUDIO_LYRICS", "nowhere"))
    assert problem.message == f"{REPO} holds no language model (nowhere/config.json is missing)."
    del server.files["model_index.json"]
    assert failure().code == "weights_unfit"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    problem = failure()
    assert problem.code == "offline" and "HF_HUB_OFFLINE" in problem.message
    assert failure(repo="no-repo").code == "model_unknown"
    assert not server.asked


def test_a_hub_that_hangs_holds_nobody_who_asks_for_a_size(home, monkeypatch):
    answers = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        answers.wait(20)
        raise ValueError

    monkeypatch.setattr(model_hub, "_silent_until", {})
    monkeypatch.setattr(model_hub, "ASK_SECONDS", 0.1)
    monkeypatch.setattr(model_hub.HfApi, "model_info", hang)
    try:
        with pytest.raises(StudioError, match="cannot be reached: no answer"):
            model_hub.missing_bytes("studio/turbo")
        with pytest.raises(StudioError, match="did not answer before"):
            model_hub.missing_bytes("studio/turbo")
    finally:
        answers.set()


@pytest.mark.parametrize("listens", [False, True])
def test_a_silent_hub_is_given_up_and_left_alone_for_ten_minutes(home, monkeypatch, listens):
    monkeypatch.setattr(model_hub, "ASK_SECONDS", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if listens:
            listener.listen()  # without it the port refuses
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        use_hub(monkeypatch, url)
        problem = failure()
        assert problem.code == "hub_unreachable" and url in problem.message
        assert re.search(r"\d\d:\d\d", problem.hint)
        assert 540 < model_hub._silent_until[url] - time.monotonic() <= 600
        with monkeypatch.context() as patch:
            patch.setattr(model_hub.threading, "Thread", None)  # nothing is started any more
            assert "did not answer before" in failure().message
        monkeypatch.setattr(model_hub, "_silent_until", {url: time.monotonic() - 1})
        assert "did not answer before" not in failure().message
