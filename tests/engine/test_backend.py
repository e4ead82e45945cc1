"""Whole songs through the backend on random weights: files, records, cancel, errors, memory."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import soundfile

import audio_export
import audio_levels
import backend
import models
import page_cover
import record
import takes
from events import Done, DraftOffer, Failed, Progress
from model_hub import INDEX
from model_weights import MODEL_VARIABLE, OPTIONAL_PARTS
from params import parse_request
from tests.engine.songs import assert_no_files, samples_of, song_request, wait_for_turn
from tests.files import sha256_of


def run(studio, **values):
    *progress, last = studio.stream(song_request(**values))
    assert all(isinstance(event, Progress | DraftOffer) for event in progress)
    return last


def is_in(stage, event):
    return isinstance(event, Progress) and event.stage == stage


@pytest.fixture
def hooked(studio):
    """Return a function that hooks a module of the pipeline until the test ends."""
    hooks = []
    yield lambda part, hook: hooks.append(
        part(studio.models.pipeline()).register_forward_hook(hook)
    )
    for hook in hooks:
        hook.remove()


# --- a song -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(studio):
    """Return the song of `song_request()`."""
    return run(studio)


def test_a_song_is_a_file_of_the_asked_length_and_a_record_with_progress_on_the_way(studio, output):
    *events, done = studio.stream(
        song_request(duration=12.345, options={"steps": 4, "guidance": 3})
    )
    progress = [event for event in events if isinstance(event, Progress)]
    info = soundfile.info(done.files[0])
    assert (info.frames, info.channels, info.samplerate, info.subtype) == (
        592_560,
        2,
        48_000,
        "PCM_24",
    )
    assert audio_levels.peak_dbfs(samples_of(done)[0]) == pytest.approx(-1.0, abs=0.01)
    record = done.record
    (take,) = record["takes"]
    assert take["seed"] == 7
    assert take["duration"] == pytest.approx(12.345)
    assert [path.name for path in output.iterdir()] == [take["name"]]
    assert take["sha256"] == sha256_of(output / take["name"])
    assert (record["sampling"]["steps"], record["sampling"]["guidance"]) == (4, 3)
    assert record["request"]["options"]["guidance"] == 3
    assert (record["model"]["engine"], record["device"], record["dtype"]) == (
        "preview",
        "cpu",
        "float32",
    )
    assert set(record["versions"]) >= {"python", "torch", "diffusers", "gradio"}
    assert set(record["seconds"]) >= {"loading", "reading", "steps", "decoding", "finishing"}
    assert_no_files(record)
    assert [event.step for event in progress if event.stage == "steps" and event.step][-1] == 4
    stages = list(
        dict.fromkeys(
            event.stage for event in progress if event.stage not in ("waiting", "loading")
        )
    )
    assert stages == ["preparing", "reading", "steps", "decoding", "finishing"]
    elapsed = [event.elapsed for event in progress]
    assert elapsed == sorted(elapsed)
    shares = [event.share for event in progress]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] < 1
    outlines = {event.outline for event in progress if event.stage == "steps" and event.step}
    assert len(outlines) == 4 and {len(outline) for outline in outlines} == {100}


def test_the_record_in_each_file_repeats_the_song(studio, output):
    first = run(
        studio,
        takes=2,
        seed=-1,
        bpm=95,
        key="Am",
        options={"shift": 2.0, "sampler": "sde", "format": "flac"},
    )
    for path, take in zip(first.files, first.record["takes"], strict=True):
        tags = audio_export.read_record(path)
        assert tags["request"] == first.record["request"]
        assert [t["seed"] for t in tags["takes"]] == [take["seed"]]
    again = run(studio, **{**tags["request"], "seed": first.record["seeds"][0]})
    assert all(
        np.array_equal(a, b) for a, b in zip(samples_of(first), samples_of(again), strict=True)
    )
    assert {Path(path).suffix for path in again.files} == {".flac"}
    names = {take["name"] for done in (first, again) for take in done.record["takes"]}
    assert {path.name for path in output.iterdir()} == names and len(names) == 4


@pytest.mark.numbers
def test_a_takes_seed_used_alone_gives_the_same_song(studio, plain):
    done = run(studio, takes=3)
    songs = samples_of(done)
    assert done.record["seeds"] == [7, 8, 9]
    for alone, take in ((plain, songs[0]), (run(studio, seed=9), songs[2])):
        # A batch of three and one alone round differently: 1e-4 of full scale is far below hearing.
        assert np.allclose(take, samples_of(alone)[0], atol=1e-4)
    assert not np.allclose(songs[0], songs[1], atol=1e-2)


def test_loudness_and_fade_out_shape_the_file_and_a_long_prompt_is_trimmed(studio, output):
    prompt = "bright acoustic guitar with strings " * 55
    done = run(studio, prompt=prompt, bpm=90, options={"loudness": -20, "fade_out": 3})
    (samples,) = samples_of(done)
    assert audio_levels.loudness_lufs(samples) == pytest.approx(-20, abs=0.3)
    assert done.record["takes"][0]["gain_reduction_db"] >= 0
    assert np.abs(samples[:, -50:]).max() < 0.01
    assert any("cut before" in note for note in done.record["notes"])
    assert (
        done.record["prompt_used"].startswith("bright acoustic") and done.record["prompt_dropped"]
    )


CHANGES = [
    *({"lyrics": "[Verse]\nla la"}, {"language": "de", "lyrics": "[Verse]\nla la"}),
    *({"bpm": 140}, {"key": "Am"}, {"time_signature": "3"}),
    *({"options": {"steps": 3}}, {"options": {"guidance": 2.0}}, {"options": {"shift": 3.0}}),
    *(
        {"options": {"sampler": "sde"}},
        {"options": {"cfg_start": 0.4}},
        {"options": {"cfg_end": 0.4}},
    ),
    {"options": {"variation": 0.3, "variation_seed": 5}},
]


@pytest.mark.parametrize(
    "change",
    [{"prompt": "harsh techno"}, *(pytest.param(one, marks=pytest.mark.slow) for one in CHANGES)],
    ids=str,
)
def test_each_setting_changes_the_song(studio, plain, change):
    (before,), (changed,) = samples_of(plain), samples_of(run(studio, **change))
    assert before.shape == changed.shape
    assert not np.allclose(before, changed, atol=1e-5)


@pytest.fixture
def tone(tmp_path):
    wave = 0.4 * np.sin(np.arange(96_000) * 2 * np.pi * 330 / 48_000)
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.stack([wave, wave], axis=1), 48_000)
    return path


def test_a_reference_changes_the_song_a_silent_one_is_left_out_and_a_broken_one_is_a_problem(
    studio, plain, tone
):
    done = run(studio, reference=str(tone))
    assert not np.array_equal(samples_of(done)[0], samples_of(plain)[0])
    assert done.record["audio"]["reference"] == {"name": "tone.wav", "sha256": sha256_of(tone)}
    soundfile.write(tone, np.zeros((96_000, 2)), 48_000)
    done = run(studio, reference=str(tone))
    assert any("silent" in note for note in done.record["notes"])
    assert np.array_equal(samples_of(done)[0], samples_of(plain)[0])
    tone.write_text("not a sound")
    problem = run(studio, reference=str(tone)).problem
    assert problem.field == "reference" and problem.message.startswith("The reference audio")


# --- bad takes ----------------------------------------------------------------------------------------------------


def test_a_take_that_is_not_finite_is_named_and_the_others_are_kept(studio, output, hooked):
    def spoil(module, inputs, output):
        output[0][1] = float("nan")
        return output

    hooked(lambda pipe: pipe.transformer, spoil)
    done = run(studio, takes=3, options={"guidance": 1})
    assert [take["seed"] for take in done.record["takes"]] == [7, 9] and len(done.files) == 2
    (error,) = done.record["errors"]
    assert (error["take"], error["seed"]) == (2, 8) and "Take 2" in error["message"]


def test_a_silent_take_is_an_error(studio, output, hooked):
    hooked(lambda pipe: pipe.vae.decoder, lambda module, inputs, output: output * 1e-6)
    failed = run(studio)
    assert isinstance(failed, Failed) and "silent" in failed.problem.message
    assert not list(output.iterdir())


# --- cancel and turns ---------------------------------------------------------------------------------------------

STOPS = {
    "a step": (
        "steps",
        3,
        lambda pipe: pipe.transformer,
        {"options": {"steps": 50, "guidance": 1}},
    ),
    "a tile": (
        "decoding",
        1,
        lambda pipe: pipe.vae.decoder,
        {"duration": 60, "options": {"steps": 1, "guidance": 1}},
    ),
}


@pytest.mark.parametrize("within", ["a step", pytest.param("a tile", marks=pytest.mark.slow)])
def test_cancel_stops_at_once_frees_the_studio_and_leaves_nothing(
    studio, output, hooked, tmp_path, monkeypatch, within
):
    stage, step, part, values = STOPS[within]
    passes, left = [], threading.Event()

    def count(*_):
        passes.append(1)
        assert len(passes) <= step or left.wait(100)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    hooked(part, count)
    events = studio.stream(song_request(**values))
    event = next(event for event in events if is_in(stage, event) and event.step >= step)
    events.close()
    left.set()
    assert event.steps > step + 1
    wait_for_turn(studio)
    assert len(passes) <= step + 1
    found = [*output.iterdir(), *(tmp_path / "temporary").rglob("*")]
    assert [path for path in found if path.is_file() and "gradio" not in path.parts] == []


def test_events_come_while_the_model_is_silent(studio, output, hooked):
    """A slow step must not keep a closed page's song alive: there is an event to close at."""
    begun, enough = threading.Event(), threading.Event()

    def silent(*_):
        begun.set()
        assert enough.wait(100)

    hooked(lambda pipe: pipe.transformer, silent)
    heard = 0
    for _ in studio.stream(song_request(options={"steps": 1, "guidance": 1})):
        heard += begun.is_set() and not enough.is_set()
        if heard == 4:
            enough.set()
    assert heard == 4


@pytest.mark.slow
def test_two_first_requests_build_one_pipeline(output, monkeypatch):
    built, build = [], models.build_pipeline
    monkeypatch.setattr(models, "build_pipeline", lambda *args: built.append(1) or build(*args))
    fresh = backend.Backend()
    monkeypatch.setattr(backend, "_backend", fresh)
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda seed: run(fresh, seed=seed), (1, 2)))
    assert len(built) == 1
    assert all(isinstance(result, Done) for result in results)


class Turn:
    """The models' lock; somebody else has it at the first `failures` tries, and lets the load end during the first."""

    def __init__(self, models, failures):
        self.models, self.failures, self.preparing = models, failures, []

    def acquire(self, blocking=True, timeout=-1):
        self.preparing.append(self.models.preparing)
        self.failures -= 1
        self.models.preparing &= self.failures < 0
        return self.failures < 0

    def release(self):
        self.preparing.append(self.models.preparing)

    def locked(self):
        return True


def test_a_first_song_waits_for_the_engine_that_is_being_loaded_and_not_for_another_song(
    output, monkeypatch
):
    studio = backend.Backend()
    monkeypatch.setattr(backend, "_backend", studio)
    turn = studio.models.turn = Turn(studio.models, 0)
    studio.models.prepare()
    assert turn.preparing == [True, True] and studio.models.loaded and not studio.models.preparing
    studio.models.turn, studio.models.preparing = Turn(studio.models, 1), True
    assert not studio.status().workers[0].busy
    *progress, done = studio.stream(song_request(options={"steps": 1}))
    stages = [event.stage for event in progress]
    assert isinstance(done, Done) and "loading" in stages and "waiting" not in stages


# --- the output folder --------------------------------------------------------------------------------------------


def test_an_unwritable_output_folder_is_a_sentence_before_anything_runs(
    studio, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path / "file" / "songs"))
    (event,) = studio.stream(song_request())
    assert event.problem.code == "disk" and "ACE_STUDIO_OUTPUT" in event.problem.text()


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
    encode, both, second_is_saved = audio_export.encode, threading.Barrier(2), threading.Event()
    names, claim = [], audio_export.claim

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
    monkeypatch.setattr(audio_export, "encode", wait_for_both)
    monkeypatch.setattr(audio_export, "claim", second_first)
    *progress, done = studio.stream(song_request(takes=2))
    assert isinstance(done, Done), done
    assert names == ["calm-piano-seed-8.wav", "calm-piano-seed-7.wav"]
    assert [Path(path).name for path in done.files] == names[::-1]
    assert [(take["seed"], take["name"]) for take in done.record["takes"]] == [
        (7, names[1]),
        (8, names[0]),
    ]
    steps = [(event.step, event.steps) for event in progress if is_in("finishing", event)]
    assert set(steps) <= {(1, 2), (2, 2)} and steps == sorted(steps)


@pytest.mark.parametrize(
    ("seconds", "at_once"), [(60, 4), (150, 4), (151, 3), (240, 2), (301, 1), (900, 1)]
)
def test_no_more_is_in_memory_at_once_than_the_longest_song(monkeypatch, seconds, at_once):
    for cores, expected in ((8, at_once), (1, 1)):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda process, cores=cores: range(cores), raising=False
        )
        assert takes.takes_at_once(4, seconds) == expected


def test_cancel_while_takes_are_saved_leaves_no_file_and_no_thread(studio, output, monkeypatch):
    rows_of, begun = audio_export.rows_of, threading.Event()

    def slowly(block):
        if threading.current_thread().name.startswith("take"):
            begun.set()
            time.sleep(0.1)
        return rows_of(block)

    monkeypatch.setattr(audio_export, "rows_of", slowly)
    events = studio.stream(song_request(takes=3, duration=30))
    next(event for event in events if is_in("finishing", event) and begun.is_set())
    events.close()
    assert list(output.iterdir()) == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("take")]


def test_songs_that_claim_one_name_at_once_each_get_their_own(tmp_path):
    def claim(number):
        part = tmp_path / f"{number}.part"
        part.write_text(str(number))
        together.wait(100)
        return audio_export.claim(part, tmp_path / "song.wav")

    together = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(claim, range(8)))
    assert [path.read_text() for path in paths] == list("01234567")
    assert {path.name for path in paths} == {
        "song.wav",
        *(f"song-{number}.wav" for number in range(2, 9)),
    }


# --- a checkpoint without audio codes -----------------------------------------------------------------------------


def test_without_audio_tokenizer_there_is_no_cover_and_nothing_is_loaded(
    tiny, output, tone, tmp_path, monkeypatch
):
    folder = tmp_path / "codeless"
    folder.mkdir()
    for part in tiny.iterdir():
        (folder / part.name).symlink_to(part)
    index = json.loads((tiny / INDEX).read_text())
    (folder / INDEX).unlink()
    (folder / INDEX).write_text(
        json.dumps({**index, **{part: [None, None] for part in OPTIONAL_PARTS}})
    )
    monkeypatch.setenv(MODEL_VARIABLE, str(folder))
    codeless = backend.Backend()
    facts = codeless.capabilities()
    assert (facts["tasks"]["cover"], facts["tasks"]["extend"]) == ("unsupported", "official")
    assert "audio tokenizer" in facts["unsupported"]["cover"]
    *_, failed = codeless.stream(
        parse_request("cover", {"prompt": "calm piano", "source": str(tone)})
    )
    assert failed.problem.code == "unsupported" and "audio tokenizer" in failed.problem.message
    assert not codeless.models.loaded
    # The tab says so too.
    with gr.Blocks():
        form = page_cover.cover_tab(codeless).form
    updates = {part.elem_id: update for part, update in form.show_status(codeless.status()).items()}
    assert not updates["cover-go"]["interactive"] and "audio tokenizer" in updates["cover-why"]


def test_the_first_look_for_a_device_is_loading_and_is_counted(studio, output, monkeypatch):
    """It imports torch: seconds that a record would otherwise not explain."""
    late = [0.0]
    pick, clock = models.pick_device, time.monotonic

    def slowly(weights):
        late[0] += 1000.0
        return pick(weights)

    studio.models.pipeline()
    monkeypatch.setattr(studio.models, "known_device", None)
    monkeypatch.setattr(models, "pick_device", slowly)
    monkeypatch.setattr(record, "time", SimpleNamespace(monotonic=lambda: clock() + late[0]))
    for counted in (True, False):
        *progress, done = studio.stream(song_request())
        assert any(is_in("loading", event) for event in progress) == counted
        assert (done.record["seconds"].get("loading", 0.0) >= 1000.0) == counted
