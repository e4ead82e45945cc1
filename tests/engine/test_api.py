"""The API as a client meets it: a running server, files on disk, songs, lyrics, records."""

import json
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio_client import handle_file
from gradio_client.exceptions import AppError, ValidationError

import backend
from tests.engine.calls import RATE, SECONDS, TASKS, bits, listen, post, samples, told
from tests.engine.songs import assert_no_files, wait_for_turn
from tests.waiting import until

# --- songs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["/generate", "/cover", "/extend"])
def test_each_endpoint_answers_to_its_required_names_alone(caller, source, endpoint):
    # Half a minute or more in 50 steps would be slow: the first progress is the answer.
    required = {"prompt": "calm piano"} | ({} if endpoint == "/generate" else {"source": source})
    job = caller.submit(**required, api_name=endpoint)
    until(job.outputs, 60)
    assert job.outputs()[0][1]["progress"]["stage"] == "waiting"
    job.cancel()


def test_an_edit_of_a_source_alone_is_told_to_choose_a_region(client, source):
    assert set(told(client, "/edit", source=source)) == {"end"}


def test_capabilities_need_nothing(client):
    assert client.predict(api_name="/capabilities")["engine"] == "preview"


def test_a_song_has_the_asked_length_and_the_same_seed_gives_the_same_song(generate):
    (path,), record = generate(duration=12.345, seed=7)
    info = soundfile.info(path)
    assert (info.frames, info.channels, info.samplerate) == (592_560, 2, 48_000)
    first = samples(path)
    assert np.sqrt(np.mean(first**2)) > 0.001
    assert Path(path).name == record["takes"][0]["name"]

    (again,), _ = generate(duration=12.345, seed=7)
    assert np.array_equal(first, samples(again))
    (other,), _ = generate(duration=12.345, seed=8)
    assert not np.allclose(first, samples(other), atol=0.01)


def test_the_seed_of_each_take_gives_that_song_alone(generate):
    files, record = generate(takes=3, seed=7)
    assert [take["seed"] for take in record["takes"]] == [7, 8, 9]
    together = [samples(path) for path in files]
    assert len(together) == 3
    assert not any(np.allclose(together[0], other, atol=0.01) for other in together[1:])
    for take, song in zip(record["takes"], together, strict=True):
        (path,), _ = generate(seed=take["seed"])
        # The noise is the same to the bit; matrix products of another batch size are summed in another order, which
        # moves float32 by about 1e-7 and the samples by some 1e-6. 1e-4 of full scale, -80 dB, leaves other CPUs room.
        assert np.max(np.abs(song - samples(path))) < 1e-4


def test_the_record_holds_what_was_understood_and_no_files(generate):
    _, record = generate(bpm=120, key="Am", time_signature="4/4")
    assert_no_files(record)
    understood = {name: record["request"][name] for name in ("bpm", "key", "time_signature")}
    assert understood == {"bpm": 120, "key": "A minor", "time_signature": "4"}


@pytest.mark.slow
def test_a_reference_is_taken_and_named_in_the_record(generate, tmp_path):
    soundfile.write(tmp_path / "voice.wav", 0.1 * np.random.default_rng(0).standard_normal((96_000, 2)), 48_000)
    (with_reference,), record = generate(reference=handle_file(str(tmp_path / "voice.wav")))
    assert_no_files(record)
    assert record["audio"]["reference"]["name"] == "voice.wav"
    (without,), _ = generate()
    assert not np.allclose(samples(with_reference), samples(without), atol=0.001)


def test_a_streaming_client_sees_progress(client):
    job = client.submit("calm piano", duration=10, options={"steps": 3}, api_name="/generate")
    *early, last = list(job)
    progress = [record["progress"] for files, record in early if files is None]
    assert [one["step"] for one in progress if one["stage"] == "steps"][-1] == 3
    assert {"stage", "step", "steps", "elapsed", "left", "note"} == set(progress[-1])
    assert len(last[0]) == 1


def test_plain_http_makes_a_song(server):
    *early, (name, data) = listen(server, post(server).json()["event_id"])
    assert name == "complete"
    assert "progress" in early[0][1][1]
    (file,), record = data
    song = httpx.get(file["url"])
    assert song.status_code == 200
    assert file["orig_name"] == record["takes"][0]["name"]
    assert song.content[:4] == b"RIFF"


# --- work on existing audio ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
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
    assert {name: record["request"][name] for name in given} == given
    assert record["errors"] == []


def test_a_repaint_keeps_every_sample_outside_its_region(work, source, tune):
    (path,), record = work("repaint", source, options={"format": "flac"})
    old, new = tune.astype(np.int32) << 16, bits(path)
    crossfade = round(0.05 * RATE)
    assert np.array_equal(new[: RATE - crossfade], old[: RATE - crossfade])
    assert np.array_equal(new[2 * RATE + crossfade :], old[2 * RATE + crossfade :])
    assert np.abs(new[RATE : 2 * RATE] - old[RATE : 2 * RATE]).max() > 0.01 * 2**31
    assert record["request"]["action"] == "repaint"


def test_an_extension_keeps_the_source_but_for_the_overlap(work, source, tune):
    (path,), _ = work("extend", source, options={"overlap": 0.5})
    old, new = tune.astype(np.int32) << 16, bits(path)
    before, after, overlap = round(0.75 * RATE), round(1.25 * RATE), RATE // 2
    assert len(new) == before + len(old) + after
    assert np.array_equal(new[before + overlap : -after - overlap], old[overlap:-overlap])
    assert np.abs(new[:before]).max() > 0.01 * 2**31
    assert np.abs(new[-after:]).max() > 0.01 * 2**31


def test_a_mix_is_the_source_and_the_stem(work, source, tune):
    (mix,), _ = work("mix", source)
    (stem,), _ = work("mix", source, options={"mix": False})
    # Stem and mix are each rounded to 24 bits.
    assert np.allclose(samples(mix), samples(stem) + tune / 2**15, atol=3 / 2**24)


def test_a_source_of_another_kind_counts_in_its_own_seconds(work, tmp_path):
    soundfile.write(tmp_path / "mono.mp3", 0.1 * np.random.default_rng(0).standard_normal(88_200), 44_100)
    (path,), _ = work("cover", handle_file(str(tmp_path / "mono.mp3")))
    assert soundfile.info(path).frames == 2 * RATE
    (path,), _ = work("extend", handle_file(str(tmp_path / "mono.mp3")), before=0, after=1.5)
    assert soundfile.info(path).frames == 3.5 * RATE


def test_the_strength_and_the_words_reach_the_model(work, source):
    songs = {}
    for strength in (0, 1):
        (path,), record = work("cover", source, strength=strength)
        assert record["switch_step"] == 2 * strength
        songs[strength] = samples(path)
    assert not np.allclose(songs[0], songs[1], atol=0.001)
    for track in ("drums", "vocals"):
        (path,), record = work("extract", source, tracks=[track], prompt="")
        assert track.upper() in record["instruction"]


def test_a_silent_reference_is_left_out_and_the_record_says_so(work, source, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros((2 * RATE, 2)), RATE)
    (path,), record = work("cover", source, reference=handle_file(str(tmp_path / "silence.wav")))
    assert any("reference audio is silent" in note for note in record["notes"])
    (without,), _ = work("cover", source)
    assert np.array_equal(bits(path), bits(without))


def test_an_experimental_task_says_so(client, work, source):
    tasks = client.predict(api_name="/capabilities")["tasks"]
    for task in ("repaint", "layer", "extract", "complete"):
        notes = work(task, source)[1]["notes"]
        assert any("experimental" in note for note in notes) == (tasks[task] == "experimental")


# --- lyrics and plans ---------------------------------------------------------------------------------------------


@pytest.fixture
def writers_on(monkeypatch):
    """Give the studio the tiny language models."""
    for name in ("ACE_STUDIO_PLANNER", "ACE_STUDIO_LYRICS"):
        monkeypatch.setenv(name, "preview")
    studio = backend.get_backend()
    studio.refresh()
    yield studio
    monkeypatch.undo()
    studio.refresh()


def test_lyrics_through_the_client_come_token_by_token(client, writers_on):
    given = {"brief": "a lighthouse", "seed": 3, "options": {"max_tokens": 24}, "api_name": "/lyrics"}
    text = client.predict(**given)
    assert isinstance(text, str) and text
    job = client.submit(**given)
    assert job.result() == text
    parts = job.outputs()
    assert parts[0] == "" and parts[-1] == text and len(set(parts)) > 5
    assert client.predict(api_name="/capabilities")["lyrics"]["state"] == "loaded"


def test_lyrics_over_plain_http_with_defaults(server, writers_on):
    answer = httpx.post(f"{server}/gradio_api/call/v2/lyrics", json={"brief": "x", "options": {"max_tokens": 16}})
    stream = httpx.get(f"{server}/gradio_api/call/v2/lyrics/{answer.json()['event_id']}", timeout=60)
    *_, last = [line for line in stream.text.splitlines() if line.startswith("data: ")]
    assert "event: complete" in stream.text
    assert isinstance(json.loads(last.removeprefix("data: "))[0], str)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"brief": ""}, "Brief must have from 1 to 2,000 characters"),
        ({"brief": "x" * 50_000}, "this has 50,000"),
        ({"brief": "x", "language": "klingon"}, "51 listed codes"),
        ({"brief": "x", "options": {"max_tokens": 0}}, "Max length must be a whole number from 16 to 2048 tokens"),
    ],
    ids=["empty", "long", "language", "length"],
)
def test_wrong_values_for_lyrics_are_told_before_anything_is_queued(client, given, part):
    with pytest.raises(ValidationError, match=part):
        client.predict(**given, api_name="/lyrics")


def test_without_a_writer_the_error_has_its_code(client):
    with pytest.raises(AppError) as caught:
        client.predict("rain", api_name="/lyrics")
    assert caught.value.title == "weights_missing"
    assert "is not on this machine" in str(caught.value)


def test_cancelled_lyrics_free_the_studio(caller, writers_on):
    hook = writers_on.lyrics.get()._model._model.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    try:
        job = caller.submit("rain", options={"max_tokens": 2_000}, api_name="/lyrics")
        until(lambda: any(job.outputs()))
        job.cancel()
        wait_for_turn(writers_on)
    finally:
        hook.remove()


def test_a_planned_song_through_the_client(generate, writers_on, output):
    _, planned = generate(options={"plan_seed": 5})
    _, plain = generate(options={"plan": False})
    assert planned["plan"]["used"] is True and planned["plan"]["seed"] == 5
    assert plain["plan"] == {"used": False, "reason": "Plan the song first was off."}
