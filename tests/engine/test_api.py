"""Songs, lyrics and records through the API of a running server."""

from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import handle_file
from gradio_client.exceptions import AppError

import backend
import lyrics_small
from tests.engine.calls import FAST, RATE, SECONDS, TASKS, listen, post, refused, samples
from tests.engine.songs import assert_no_files


def test_a_song_has_the_requested_length_and_a_record_without_files(generate, tmp_path):
    soundfile.write(
        tmp_path / "voice.wav", 0.1 * np.random.default_rng(0).standard_normal((96_000, 2)), RATE
    )
    reference = handle_file(str(tmp_path / "voice.wav"))
    prompt = "<img src=x onerror=alert(1)>"
    (path,), record = generate(
        prompt, duration=12.345, bpm=120, key="Am", time_signature="4/4", reference=reference
    )
    info = soundfile.info(path)
    assert (info.frames, info.channels, info.samplerate) == (592_560, 2, RATE)
    assert np.sqrt(np.mean(samples(path) ** 2)) > 0.001
    assert Path(path).name == record["takes"][0]["name"] and not set("<>()=") & set(Path(path).name)
    assert_no_files(record)
    asked = record["request"]
    assert (asked["prompt"], asked["bpm"], asked["key"], asked["time_signature"]) == (
        prompt,
        120,
        "A minor",
        "4",
    )
    assert record["audio"]["reference"]["name"] == "voice.wav"


def test_plain_http_makes_a_song(server):
    options = {**FAST, "best_of": 2, "score": ["clipping"]}
    *early, (name, data) = listen(server, post(server, options=options).json()["event_id"])
    assert name == "complete" and "progress" in early[0][1][1]
    (file,), record = data
    song = httpx.get(file["url"], timeout=300)
    assert song.status_code == 200 and song.content[:4] == b"RIFF"
    (take,) = record["takes"]
    assert file["orig_name"] == take["name"]
    assert set(take["score_parts"]) == {"clipping"} and 0 <= take["score"] <= 100
    assert len(record["seeds"]) == 2 and len(record["passed_over"]) == 1
    # As many as are to be returned, and something to compare them by.
    for wrong, said in (
        ({"best_of": 1}, "Best of must be from 2 (Takes)"),
        ({"best_of": 2, "score": []}, "at least one part of the score"),
        ({"score": ["charm"]}, "charm"),
    ):
        (message,) = refused(post(server, takes=2, options={**FAST, **wrong})).values()
        assert said in message, wrong


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=() if task in ("extend", "mix") else pytest.mark.slow)
        for task in TASKS
    ],
)
def test_every_task_makes_its_takes_in_the_exact_length(work, source, task):
    files, record = work(task, source, takes=2)
    longer = TASKS[task][1].get("before", 0) + TASKS[task][1].get("after", 0)
    assert [soundfile.info(path).frames for path in files] == [round((SECONDS + longer) * RATE)] * 2
    first, second = (samples(path) for path in files)
    assert not np.allclose(first, second, atol=0.001)
    assert min(np.sqrt(np.mean(song**2)) for song in (first, second)) > 0.001
    assert [take["seed"] for take in record["takes"]] == [7, 8]
    assert [take["name"] for take in record["takes"]] == [Path(path).name for path in files]
    assert_no_files(record)
    endpoint, own = TASKS[task]
    assert record["mode"] == endpoint.strip("/")
    assert record["audio"]["source"]["name"] == "tune.wav"
    given = {name: value for name, value in own.items() if name != "options"}
    assert given.items() <= record["request"].items() and record["errors"] == []


@pytest.fixture
def writers_on(monkeypatch):
    for name in ("ACE_STUDIO_PLANNER", "ACE_STUDIO_LYRICS"):
        monkeypatch.setenv(name, "random")
    backend.get_backend().models.refresh()
    yield
    monkeypatch.undo()
    backend.get_backend().models.refresh()


def test_lyrics_come_token_by_token_or_the_error_has_its_code(client, request, monkeypatch):
    monkeypatch.setattr(lyrics_small, "missing", lambda: "its packages are not installed")
    backend.get_backend().models.refresh()
    with pytest.raises(AppError, match="is not on this machine") as caught:
        client.predict("rain", api_name="/lyrics")
    assert caught.value.title == "weights_missing"
    monkeypatch.undo()
    request.getfixturevalue("writers_on")
    given = {
        "brief": "a lighthouse",
        "seed": 3,
        "options": {"max_tokens": 24},
        "api_name": "/lyrics",
    }
    text = client.predict(**given)
    assert isinstance(text, str) and text
    job = client.submit(**given)
    assert job.result() == text
    parts = job.outputs()
    assert parts[0] == "" and parts[-1] == text and len(set(parts)) > 5
    assert client.predict(api_name="/capabilities")["lyrics"]["state"] == "loaded"
