"""Whole songs through the backend on the built-in checkpoint: files, records, cancel, errors, memory."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile

import backend
import export
import jobs
import levels
import models
import page_tabs
from events import Done, Failed, Progress
from hub import INDEX
from params import parse_request
from tests.engine.songs import assert_no_files, samples_of, song_request, wait_for_turn
from weights import MODEL_VARIABLE, OPTIONAL_PARTS


def run(studio, **values):
    *progress, last = studio.stream(song_request(**values))
    assert all(isinstance(event, Progress) for event in progress)
    return last


# --- a song -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(studio):
    """Return the song of `song_request()`."""
    return run(studio)


def test_a_song_is_a_file_of_the_asked_length_and_a_record(studio, output):
    done = run(studio, duration=12.345, options={"guidance": 3})
    info = soundfile.info(done.files[0])
    assert (info.frames, info.channels, info.samplerate, info.subtype) == (592_560, 2, 48_000, "PCM_24")
    (samples,) = samples_of(done)
    assert levels.peak_dbfs(samples) == pytest.approx(-1.0, abs=0.01)
    record = done.record
    (take,) = record["takes"]
    assert take["seed"] == 7
    assert take["duration"] == pytest.approx(12.345)
    assert [path.name for path in output.iterdir()] == [take["name"]]
    assert take["sha256"] == jobs.sha256(output / take["name"])
    assert (record["sampling"]["steps"], record["sampling"]["guidance"]) == (2, 3)
    assert record["request"]["options"]["guidance"] == 3
    assert (record["model"]["engine"], record["device"], record["dtype"]) == ("preview", "cpu", "float32")
    assert set(record["versions"]) >= {"python", "torch", "diffusers", "gradio"}
    assert set(record["seconds"]) >= {"loading", "reading", "steps", "decoding", "finishing"}
    assert_no_files(record)


def test_the_record_in_each_file_repeats_the_song(studio, output):
    first = run(studio, takes=2, seed=-1, bpm=95, key="Am", options={"shift": 2.0, "sampler": "sde", "format": "flac"})
    for path, take in zip(first.files, first.record["takes"], strict=True):
        tags = export.read_record(path)
        assert tags["request"] == first.record["request"]
        assert [t["seed"] for t in tags["takes"]] == [take["seed"]]
    again = run(studio, **{**tags["request"], "seed": first.record["seeds"][0]})
    assert all(np.array_equal(a, b) for a, b in zip(samples_of(first), samples_of(again), strict=True))
    assert {Path(path).suffix for path in again.files} == {".flac"}
    names = {take["name"] for done in (first, again) for take in done.record["takes"]}
    assert {path.name for path in output.iterdir()} == names and len(names) == 4


def test_a_takes_seed_used_alone_gives_the_same_song(studio, plain):
    done = run(studio, takes=3)
    takes = samples_of(done)
    assert done.record["seeds"] == [7, 8, 9]
    for alone, take in ((plain, takes[0]), (run(studio, seed=9), takes[2])):
        # A batch of three and one alone round differently: 1e-4 of full scale is far below hearing.
        assert np.allclose(take, samples_of(alone)[0], atol=1e-4)
    assert not np.allclose(takes[0], takes[1], atol=1e-2)


def test_loudness_and_fade_out_shape_the_file(studio, output):
    done = run(studio, options={"loudness": -20, "fade_out": 3})
    (samples,) = samples_of(done)
    assert levels.loudness_lufs(samples) == pytest.approx(-20, abs=0.3)
    assert np.abs(samples[:, -50:]).max() < 0.01


CHANGES = [
    {"lyrics": "[Verse]\nla la"},
    {"language": "de", "lyrics": "[Verse]\nla la"},
    {"bpm": 140},
    {"key": "Am"},
    {"time_signature": "3"},
    {"options": {"steps": 3}},
    {"options": {"guidance": 2.0}},
    {"options": {"shift": 3.0}},
    {"options": {"sampler": "sde"}},
    {"options": {"cfg_start": 0.4}},
    {"options": {"cfg_end": 0.4}},
    {"options": {"variation": 0.3, "variation_seed": 5}},
]


@pytest.mark.parametrize(
    "change", [{"prompt": "harsh techno"}, *(pytest.param(one, marks=pytest.mark.slow) for one in CHANGES)], ids=str
)
def test_each_setting_changes_the_song(studio, plain, change):
    (before,), (changed,) = samples_of(plain), samples_of(run(studio, **change))
    assert before.shape == changed.shape
    assert not np.allclose(before, changed, atol=1e-5)


# --- reference and notes ------------------------------------------------------------------------------------------


@pytest.fixture
def tone(tmp_path):
    wave = 0.4 * np.sin(np.arange(96_000) * 2 * np.pi * 330 / 48_000)
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.stack([wave, wave], axis=1), 48_000)
    return path


def test_a_reference_changes_the_song_and_stands_in_the_record(studio, plain, tone):
    done = run(studio, reference=str(tone))
    assert not np.array_equal(samples_of(done)[0], samples_of(plain)[0])
    assert done.record["audio"]["reference"] == {"name": "tone.wav", "sha256": jobs.sha256(tone)}


def test_a_silent_reference_is_left_out_and_a_broken_one_is_a_sentence_at_its_field(studio, plain, tmp_path):
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros((96_000, 2)), 48_000)
    done = run(studio, reference=str(path))
    assert any("silent" in note for note in done.record["notes"])
    assert np.array_equal(samples_of(done)[0], samples_of(plain)[0])
    path.write_text("not a sound")
    failed = run(studio, reference=str(path))
    assert failed.problem.field == "reference"
    assert failed.problem.message.startswith("The reference audio")


def test_a_long_prompt_is_trimmed_and_said_so(studio, output):
    done = run(studio, prompt="bright acoustic guitar with strings " * 55, bpm=90)
    assert any("cut before" in note for note in done.record["notes"])
    assert done.record["prompt_used"].startswith("bright acoustic")
    assert done.record["prompt_dropped"]


# --- bad takes ----------------------------------------------------------------------------------------------------


def test_a_take_that_is_not_finite_is_named_and_the_others_are_kept(studio, output):
    def spoil(module, inputs, output):
        output[0][1] = float("nan")
        return output

    hook = studio.models.pipeline().transformer.register_forward_hook(spoil)
    try:
        done = run(studio, takes=3, options={"guidance": 1})
    finally:
        hook.remove()
    assert [take["seed"] for take in done.record["takes"]] == [7, 9]
    assert len(done.files) == 2
    (error,) = done.record["errors"]
    assert (error["take"], error["seed"]) == (2, 8)
    assert "Take 2" in error["message"]


def test_a_silent_take_is_an_error(studio, output):
    decoder = studio.models.pipeline().vae.decoder
    hook = decoder.register_forward_hook(lambda module, inputs, output: output * 1e-6)
    try:
        failed = run(studio)
    finally:
        hook.remove()
    assert isinstance(failed, Failed) and "silent" in failed.problem.message
    assert not list(output.iterdir())


# --- cancel and turns ---------------------------------------------------------------------------------------------


@pytest.fixture
def slow_steps(studio):
    """Make each step take 0.1 s longer; returns a list that grows by one a step."""
    calls = []
    hook = studio.models.pipeline().transformer.register_forward_pre_hook(lambda *_: calls.append(1) or time.sleep(0.1))
    yield calls
    hook.remove()


def test_cancel_at_step_3_of_50_stops_within_one_step_and_frees_the_studio(studio, output, slow_steps):
    events = studio.stream(song_request(options={"steps": 50, "guidance": 1}))
    for event in events:
        if event.stage == "steps" and event.step == 3:
            break
    begun = len(slow_steps)
    events.close()
    wait_for_turn(studio)
    assert 3 <= begun <= 5
    assert len(slow_steps) <= begun + 1
    assert list(output.iterdir()) == []
    assert isinstance(run(studio), Done)


@pytest.mark.slow
def test_cancel_while_decoding_stops_between_two_tiles(studio, output):
    tiles = []
    hook = studio.models.pipeline().vae.decoder.register_forward_hook(lambda *_: tiles.append(1))
    try:
        events = studio.stream(song_request(duration=120, options={"steps": 1, "guidance": 1}))
        for event in events:
            if event.stage == "decoding":
                break
        decoded = len(tiles)
        events.close()
        wait_for_turn(studio)
        assert len(tiles) <= decoded + 2 < 8
    finally:
        hook.remove()


def test_a_song_leaves_nothing_in_the_temporary_folder(studio, output, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    run(studio)
    events = studio.stream(song_request(options={"steps": 50}))
    next(event for event in events if event.stage == "steps")
    events.close()
    wait_for_turn(studio)
    left = [p for p in (tmp_path / "temporary").rglob("*") if p.is_file() and "gradio" not in p.parts]
    assert left == []


@pytest.mark.slow
def test_two_first_requests_build_one_pipeline(output, monkeypatch):
    built, build = [], models.build_pipeline
    monkeypatch.setattr(models, "build_pipeline", lambda *args: built.append(1) or build(*args))
    fresh = backend.Backend()
    monkeypatch.setattr(backend, "_backend", fresh)
    results = []
    threads = [threading.Thread(target=lambda s=s: results.append(run(fresh, seed=s))) for s in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert all(isinstance(result, Done) for result in results)


def test_events_come_while_the_model_is_silent(studio, output):
    """A slow step must not keep a closed page's song alive: there is an event to close at."""
    begun, enough = threading.Event(), threading.Event()

    def silent(*_):
        begun.set()
        assert enough.wait(100)

    hook = studio.models.pipeline().transformer.register_forward_hook(silent)
    heard = 0
    try:
        for _ in studio.stream(song_request(options={"steps": 1, "guidance": 1})):
            heard += begun.is_set() and not enough.is_set()
            if heard == 4:
                enough.set()
    finally:
        hook.remove()
    assert heard == 4


def test_progress_tells_stage_step_and_time(studio, output):
    *progress, _ = studio.stream(song_request(options={"steps": 4}))
    assert [event.step for event in progress if event.stage == "steps" and event.step][-1] == 4
    stages = list(dict.fromkeys(event.stage for event in progress))
    assert [s for s in stages if s not in ("waiting", "loading")] == [
        "preparing", "reading", "steps", "decoding", "finishing",
    ]  # fmt: skip
    elapsed = [event.elapsed for event in progress]
    assert elapsed == sorted(elapsed)


# --- the machine ---------------------------------------------------------------------------------------------------


def test_an_unwritable_output_folder_is_a_sentence_before_anything_runs(studio, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path / "file" / "songs"))
    events = list(studio.stream(song_request()))
    assert len(events) == 1
    assert events[0].problem.code == "disk"
    assert "ACE_STUDIO_OUTPUT" in events[0].problem.text()


@pytest.mark.slow
def test_old_songs_leave_with_the_next_one(studio, output, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_KEEP_GB", "0.000001")
    first = run(studio)
    (output / "mine.wav").write_bytes(b"mine")
    old = time.time() - 60
    for path in output.iterdir():
        os.utime(path, (old, old))
    second = run(studio, takes=2)
    kept = {take["name"] for take in second.record["takes"]}
    assert {path.name for path in output.iterdir()} == {"mine.wav", *kept}
    # What the page shows are copies.
    assert all(os.path.exists(path) for path in first.files)


# --- saving takes -------------------------------------------------------------------------------------------------


def test_takes_are_finished_side_by_side_and_come_in_their_order(studio, output, monkeypatch):
    encode, both, second_is_saved = export.encode, threading.Barrier(2), threading.Event()
    names, claim = [], export.claim

    def wait_for_both(*args):
        both.wait(100)
        return encode(*args)

    def second_first(part, path):
        if path.stem.endswith("seed-7"):
            assert second_is_saved.wait(100)
        names.append(path.name)
        try:
            return claim(part, path)
        finally:
            second_is_saved.set()

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(2), raising=False)
    monkeypatch.setattr(export, "encode", wait_for_both)
    monkeypatch.setattr(export, "claim", second_first)
    *progress, done = studio.stream(song_request(takes=2))
    assert isinstance(done, Done), done
    assert names == ["calm-piano-seed-8.wav", "calm-piano-seed-7.wav"]
    assert [Path(path).name for path in done.files] == names[::-1]
    assert [(take["seed"], take["name"]) for take in done.record["takes"]] == [(7, names[1]), (8, names[0])]
    steps = [(event.step, event.steps) for event in progress if event.stage == "finishing"]
    assert steps[0] == (1, 2) and steps == sorted(steps)


@pytest.mark.parametrize(("seconds", "at_once"), [(60, 4), (150, 4), (151, 3), (240, 2), (301, 1), (900, 1)])
def test_no_more_is_in_memory_at_once_than_the_longest_song(monkeypatch, seconds, at_once):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    assert jobs.takes_at_once(4, seconds) == at_once
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(1), raising=False)
    assert jobs.takes_at_once(4, seconds) == 1


def test_cancel_while_takes_are_saved_leaves_no_file_and_no_thread(studio, output, monkeypatch):
    write, begun = export._Remembering.write, threading.Event()

    def write_slowly(self, data):
        if output in Path(self.name).parents:
            begun.set()
            time.sleep(0.1)
        return write(self, data)

    monkeypatch.setattr(export._Remembering, "write", write_slowly)
    events = studio.stream(song_request(takes=3, duration=30))
    for event in events:
        if event.stage == "finishing" and begun.is_set():
            break
    events.close()
    assert list(output.iterdir()) == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("take")]


def test_songs_that_claim_one_name_at_once_each_get_their_own(tmp_path):
    def claim(number):
        part = tmp_path / f"{number}.part"
        part.write_text(str(number))
        together.wait(100)
        return export.claim(part, tmp_path / "song.wav")

    together = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(claim, range(8)))
    assert [path.read_text() for path in paths] == list("01234567")
    assert {path.name for path in paths} == {"song.wav", *(f"song-{number}.wav" for number in range(2, 9))}


# --- a checkpoint without audio codes -----------------------------------------------------------------------------


@pytest.fixture
def codeless(tiny, tmp_path, monkeypatch):
    """Return a studio whose checkpoint came without audio tokenizer and detokenizer."""
    folder = tmp_path / "codeless"
    folder.mkdir()
    for part in tiny.iterdir():
        (folder / part.name).symlink_to(part)
    index = json.loads((tiny / INDEX).read_text())
    (folder / INDEX).unlink()
    (folder / INDEX).write_text(json.dumps({**index, **{part: [None, None] for part in OPTIONAL_PARTS}}))
    monkeypatch.setenv(MODEL_VARIABLE, str(folder))
    return backend.Backend()


def test_without_audio_tokenizer_there_is_no_cover_and_nothing_is_loaded(codeless, output, tone):
    facts = codeless.capabilities()
    assert (facts["tasks"]["cover"], facts["tasks"]["extend"]) == ("unsupported", "official")
    assert "audio tokenizer" in facts["unsupported"]["cover"]
    failed = list(codeless.stream(parse_request("cover", {"prompt": "calm piano", "source": str(tone)})))[-1]
    assert failed.problem.code == "unsupported" and "audio tokenizer" in failed.problem.message
    assert not codeless.models.loaded
    # The tab says so too.
    with gr.Blocks():
        form = page_tabs.cover_tab().form
    updates = {part.elem_id: update for part, update in form.show_status(codeless.status()).items()}
    assert not updates["cover-go"]["interactive"] and "audio tokenizer" in updates["cover-why"]
