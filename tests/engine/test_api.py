"""The API as a client meets it: a running server, files on disk, wrong values, cancel, and what must stay closed."""

import json
import os
import re
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError, ValidationError

import app
import backend
from tests.unit.sounds import NO_AUDIO

FAST = {"steps": 2}
RATE = 48_000
SECONDS = 3.0
# What each task takes besides a source; the result lasts as long as the source, `before` and `after`.
TASKS = {
    "cover": ("/cover", {}),
    "extend": ("/extend", {"before": 0.75, "after": 1.25}),
    "repaint": ("/edit", {"start": 1, "end": 2}),
    "morph": ("/edit", {"action": "morph", "source_prompt": "an old piano"}),
    "layer": ("/edit", {"action": "layer", "tracks": ["drums"]}),
    "mix": ("/edit", {"action": "layer", "tracks": ["bass"], "options": {"mix": True}}),
    "extract": ("/edit", {"action": "extract", "tracks": ["vocals"]}),
    "complete": ("/edit", {"action": "complete", "tracks": ["strings", "bass"]}),
}


@pytest.fixture(scope="module")
def server():
    demo = app.build_app()
    url = app.launch(demo)
    yield url.rstrip("/")
    demo.close()


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    client = Client(server, verbose=False, analytics_enabled=False, download_files=tmp_path_factory.mktemp("downloads"))
    yield client
    client.close()


@pytest.fixture
def caller(server):
    """Return a client for a call that is cancelled: gradio_client then closes the stream that all its calls share."""
    client = Client(server, verbose=False, analytics_enabled=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def generate(client):
    """Return a function that makes 10 s of a song in two steps, unless told otherwise."""

    def call(prompt="calm piano", **given):
        options = {**FAST, **given.pop("options", {})}
        return client.predict(prompt, options=options, api_name="/generate", **{"duration": 10, "seed": 7, **given})

    call()  # loads the model
    return call


@pytest.fixture(scope="module")
def tune():
    """Three quiet seconds of a chord with a little noise, as a 16-bit file holds them, int16 [n, 2]."""
    time = np.arange(round(SECONDS * RATE)) / RATE
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (220.0, 277.2, 329.6)) / 30
    noise = np.random.default_rng(1).standard_normal((time.size, 2)) * 0.005
    return np.round((chord[:, None] + noise) * 2**15).astype(np.int16)


@pytest.fixture
def source(tune, tmp_path):
    """A source as gradio_client takes it: a file on disk."""
    soundfile.write(tmp_path / "tune.wav", tune, RATE, subtype="PCM_16")
    return handle_file(str(tmp_path / "tune.wav"))


@pytest.fixture(scope="module")
def work(client, generate):
    """Return a function that runs a task of `TASKS` in two steps, unless told otherwise."""

    def call(task, source, **given):
        endpoint, own = TASKS[task]
        options = {**FAST, **own.get("options", {}), **given.pop("options", {})}
        values = {"prompt": "calm piano", "seed": 7, **own, **given, "options": options}
        return client.predict(source=source, **values, api_name=endpoint)

    return call


@pytest.fixture
def output(tmp_path, monkeypatch):
    folder = tmp_path / "songs"
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(folder))
    return folder


def samples(path):
    """Return a file's samples, float64 [n, 2]."""
    found, rate = soundfile.read(path, always_2d=True)
    assert rate == RATE
    return found


def bits(path):
    """Return a file's samples as whole numbers of 32 bits, int32 [n, 2]."""
    return soundfile.read(path, dtype="int32", always_2d=True)[0]


def post(server, endpoint="generate", **named):
    """Start a song over plain HTTP as curl does; numbers that JSON does not know go out as NaN and Infinity."""
    length = {"duration": 10} if endpoint == "generate" else {}
    return httpx.post(
        f"{server}/gradio_api/call/v2/{endpoint}",
        content=json.dumps({"prompt": "calm piano", **length, "options": FAST, **named}),
        headers={"content-type": "application/json"},
    )


def refused(response):
    """Return the sentences of a 422 by parameter."""
    assert response.status_code == 422, response.text
    return {one["parameter_name"]: one["message"] for one in response.json()["detail"] if not one["is_valid"]}


def listen(server, event):
    """Return the (event, data) pairs of a call until its end, heartbeats left out."""
    heard = []
    with httpx.stream("GET", f"{server}/gradio_api/call/v2/generate/{event}", timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                heard.append([line.removeprefix("event: "), None])
            elif line.startswith("data: "):
                heard[-1][1] = json.loads(line.removeprefix("data: "))
    return [(name, data) for name, data in heard if name != "heartbeat"]


def until(true, seconds):
    """Wait until `true()` holds, at most `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


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


def walk(value):
    """Assert that no object in a record looks like a file to a client, which would try to fetch it."""
    if isinstance(value, dict):
        assert not {"path", "url", "meta"} & value.keys()
        for each in value.values():
            walk(each)
    elif isinstance(value, list):
        for each in value:
            walk(each)


def test_the_record_holds_what_was_understood_and_no_files(generate):
    _, record = generate(bpm=120, key="Am", time_signature="4/4")
    walk(record)
    understood = {name: record["request"][name] for name in ("bpm", "key", "time_signature")}
    assert understood == {"bpm": 120, "key": "A minor", "time_signature": "4"}


@pytest.mark.slow
def test_a_reference_is_taken_and_named_in_the_record(generate, tmp_path):
    soundfile.write(tmp_path / "voice.wav", 0.1 * np.random.default_rng(0).standard_normal((96_000, 2)), 48_000)
    (with_reference,), record = generate(reference=handle_file(str(tmp_path / "voice.wav")))
    walk(record)
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
    walk(record)
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


# --- wrong values -------------------------------------------------------------------------------------------------

WRONG = [
    ({"prompt": "", "lyrics": ""}, "prompt", "from 1 to 2,000 characters"),
    ({"prompt": "", "lyrics": "la la", "instrumental": True}, "prompt", "switched off by Instrumental"),
    ({"duration": 9}, "duration", "from 10 to 600 seconds, not 9."),
    ({"duration": 601}, "duration", "from 10 to 600 seconds, not 601."),
    ({"bpm": 0}, "bpm", "from 30 to 300"),
    ({"key": "H major"}, "key", "from A to G"),
    ({"time_signature": 5}, "time_signature", "2, 3, 4 or 6"),
    ({"seed": -2}, "seed", "from -1 to 4294967295"),
    ({"takes": 5}, "takes", "from 1 to 4"),
    ({"quality": "superb"}, "quality", "draft, standard, best"),
    ({"language": "klingon"}, "language", "Language must be"),
    ({"options": {"wobble": 1}}, "options", "options.wobble"),
    ({"options": {"steps": 0}}, "options", "options.steps: Steps must be a whole number from 1 to 200"),
    ({"options": {"path": "/etc/passwd"}}, "options", "options.path"),
    ({"prompt": "x" * 100_000}, "prompt", "2,000 characters; this has 100,000"),
    ({"lyrics": "x" * 100_000}, "lyrics", "10,000 characters; this has 100,000"),
    ({"reference": "/etc/passwd"}, "reference", "must be an uploaded audio file"),
]


@pytest.mark.parametrize(
    ("given", "name", "sentence"), WRONG, ids=[f"{name}-{i}" for i, (_, name, _) in enumerate(WRONG)]
)
def test_a_wrong_value_is_a_validation_error_with_its_name_and_sentence(server, client, given, name, sentence):
    with pytest.raises(ValidationError) as caught:
        client.predict(**{"prompt": "calm piano", **given}, api_name="/generate")
    assert f"- {name}: " in str(caught.value)
    assert sentence in str(caught.value)
    said = refused(post(server, **given))
    assert set(said) == {name}
    assert sentence in said[name]


def told(client, endpoint, **given):
    """Return the sentences of a gradio_client's ValidationError by parameter."""
    with pytest.raises(ValidationError) as caught:
        client.predict(**given, api_name=endpoint)
    return dict(re.findall(r"^- (\w+): (.*)$", str(caught.value), re.MULTILINE))


MISFITS = [
    ("/cover", {"strength": 1.2}, {"strength": "from 0 to 1, not 1.2."}),
    ("/cover", {"options": {"overlap": 1}}, {"options": "options.overlap"}),
    ("/cover", {"prompt": ""}, {"prompt": "there are no lyrics either"}),
    ("/cover", {"source": None}, {"source": "Source must be an audio file of 1 to 600 seconds; none was given."}),
    ("/cover", {"source": "/etc/passwd"}, {"source": "must be an uploaded audio file"}),
    ("/extend", {"before": 0, "after": 0}, {"after": "must not both be 0"}),
    ("/extend", {"after": 301}, {"after": "from 0 to 300"}),
    ("/extend", {"before": 299, "after": 300}, {"after": "from 0 to 597 for a source of 3 seconds"}),
    ("/extend", {"options": {"mix": True}}, {"options": "options.mix"}),
    ("/edit", {"start": 50, "end": 10}, {"end": "after Start (50)"}),
    ("/edit", {"start": -5, "end": 9999}, {"start": "from 0 to 600", "end": "from 0 to 600"}),
    ("/edit", {"start": 1, "end": 1.4}, {"end": "at least 0.5 seconds"}),
    ("/edit", {"start": 1, "end": 3.1}, {"end": "from 0 to 3 seconds"}),
    ("/edit", {"start": 2.6}, {"start": "from 0 to 2.5 seconds"}),
    ("/edit", {"start": 0, "end": 3}, {"end": "must leave some of the source"}),
    ("/edit", {"action": "remix"}, {"action": "repaint, morph, layer, extract, complete"}),
    ("/edit", {"action": "layer"}, {"tracks": "exactly one track for layer, not 0"}),
    ("/edit", {"action": "layer", "tracks": ["kazoo"]}, {"tracks": '"kazoo"'}),
    ("/edit", {"action": "layer", "tracks": ["drums"], "start": 3}, {"start": "from 0 to 2.5 seconds"}),
    ("/edit", {"action": "extract", "tracks": ["drums", "bass"]}, {"tracks": "exactly one track"}),
    ("/edit", {"action": "complete", "tracks": 5}, {"tracks": "must be a list of names"}),
    ("/edit", {"action": "morph", "end": 2}, {"end": "morph takes the whole file"}),
    ("/edit", {"start": 1, "source_prompt": "x" * 3000}, {"source_prompt": "2,000 characters"}),
    ("/edit", {"start": 1, "options": {"n_min": 0.2}}, {"options": "belongs to the action morph"}),
]


@pytest.mark.parametrize(
    ("endpoint", "given", "expected"), MISFITS, ids=[f"{name[1:]}-{i}" for i, (name, _, _) in enumerate(MISFITS)]
)
def test_what_does_not_fit_the_source_or_the_action_is_told_at_its_field(client, source, endpoint, given, expected):
    said = told(client, endpoint, **{"prompt": "calm piano", "source": source, **given})
    assert set(said) == set(expected)
    for name, sentence in expected.items():
        assert sentence in said[name]


@pytest.mark.parametrize("kind", NO_AUDIO)
def test_a_file_that_is_no_audio_is_told_at_its_field(client, source, tmp_path, kind):
    data, sentence = NO_AUDIO[kind]
    (tmp_path / "bad.wav").write_bytes(data)
    bad = handle_file(str(tmp_path / "bad.wav"))
    calls = [
        ("/cover", "source", {}),
        ("/extend", "source", {}),
        ("/edit", "source", {"start": 1, "end": 2}),
        ("/cover", "reference", {"source": source}),
        ("/generate", "reference", {}),
    ]
    for endpoint, field, given in calls:
        said = told(client, endpoint, **{"prompt": "calm piano", **given, field: bad})
        assert set(said) == {field}
        assert said[field].startswith(sentence)


@pytest.mark.parametrize(("seconds", "sentence"), [(0.5, "too short: 0.5 seconds"), (601, "up to 10 minutes")])
def test_a_source_lasts_1_second_to_10_minutes(client, tmp_path, seconds, sentence):
    soundfile.write(tmp_path / "song.flac", np.zeros(round(seconds * 8_000)), 8_000)
    said = told(client, "/cover", prompt="calm piano", source=handle_file(str(tmp_path / "song.flac")))
    assert sentence in said["source"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_get_the_sentence(server, number):
    said = refused(post(server, bpm=number, duration=number, takes=number, seed=number, options={"guidance": number}))
    assert set(said) == {"bpm", "duration", "takes", "seed", "options"}
    assert said["options"].startswith("options.guidance: Guidance must be from 1 to 15, not ")


def test_markup_in_the_prompt_is_just_text(generate):
    (path,), record = generate("<img src=x onerror=alert(1)>")
    assert record["request"]["prompt"] == "<img src=x onerror=alert(1)>"
    assert not set("<>()=") & set(Path(path).name)


def test_any_other_error_has_a_code_a_message_and_a_hint(generate, work, tune, tmp_path):
    # The header is whole, so that the damage shows only when the file is read.
    soundfile.write(tmp_path / "torn.flac", tune, RATE)
    data = (tmp_path / "torn.flac").read_bytes()
    (tmp_path / "torn.flac").write_bytes(data[: len(data) // 2])
    torn = handle_file(str(tmp_path / "torn.flac"))
    for make, what in (
        (lambda: generate(reference=torn), "The reference audio: "),
        (lambda: work("cover", torn), "The source: "),
    ):
        with pytest.raises(AppError) as caught:
            make()
        assert caught.value.title == "bad_audio"
        assert caught.value.message.startswith(what + "The file is damaged")
        assert caught.value.message.endswith("Export or download it again.")


def test_a_mix_over_full_scale_is_an_error_with_a_hint(work, tmp_path):
    soundfile.write(tmp_path / "loud.wav", np.random.default_rng(0).uniform(-1, 1, (2 * RATE, 2)), RATE)
    with pytest.raises(AppError) as caught:
        work("mix", handle_file(str(tmp_path / "loud.wav")))
    assert caught.value.title == "too_loud"
    assert "Take the stem alone" in caught.value.message


def test_a_broken_output_folder_is_told_and_the_next_song_works(generate, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with monkeypatch.context() as patch:
        patch.setenv("ACE_STUDIO_OUTPUT", str(tmp_path / "file" / "songs"))
        with pytest.raises(AppError) as caught:
            generate()
    assert caught.value.title == "disk"
    assert "output folder" in caught.value.message
    assert generate()[0]


# --- cancel -------------------------------------------------------------------------------------------------------


def steps_seen(job):
    return any(record["progress"]["stage"] == "steps" for files, record in job.outputs() if files is None)


def test_cancel_frees_the_studio_and_the_next_call_works(caller, generate):
    job = caller.submit("calm piano", duration=60, options={"steps": 200}, api_name="/generate")
    until(lambda: steps_seen(job), 60)
    job.cancel()
    until(lambda: not backend.get_backend().turn.locked(), 5)
    assert generate()[0]


@pytest.mark.parametrize("task", ["cover", "extend", "repaint", "morph"])
def test_cancel_stops_work_on_existing_audio(caller, work, source, task):
    endpoint, own = TASKS[task]
    values = {**own, "prompt": "calm piano", "source": source, "options": {"steps": 200}}
    job = caller.submit(**values, api_name=endpoint)
    until(lambda: steps_seen(job), 60)
    job.cancel()
    until(lambda: not backend.get_backend().turn.locked(), 5)
    assert work(task, source)[0]


def test_hanging_up_frees_the_studio(server, generate):
    event = post(server, duration=60, options={"steps": 200}).json()["event_id"]
    with httpx.stream("GET", f"{server}/gradio_api/call/generate/{event}", timeout=60) as stream:
        assert any('"steps"' in line and '"step": 2' in line for line in stream.iter_lines())
    until(lambda: not backend.get_backend().turn.locked(), 10)
    assert generate()[0]


def test_capabilities_do_not_wait_for_songs(server, client, caller):
    client.predict(api_name="/capabilities")  # the first one imports torch
    job = caller.submit("calm piano", duration=60, options={"steps": 200}, api_name="/generate")
    until(lambda: steps_seen(job), 60)
    answer = httpx.post(f"{server}/gradio_api/run/capabilities", json={"data": []}, timeout=10)
    assert backend.get_backend().turn.locked()
    assert answer.json()["data"][0]["limits"]["duration"]["high"] == 600
    job.cancel()
    until(lambda: not backend.get_backend().turn.locked(), 5)


# --- what stays closed --------------------------------------------------------------------------------------------


def test_only_the_endpoints_of_the_contract_are_listed(client):
    listed = client.view_api(return_format="dict", print_info=False)
    endpoints = {"/generate", "/cover", "/extend", "/edit", "/lyrics", "/capabilities"}
    assert set(listed["named_endpoints"]) == endpoints
    assert listed["unnamed_endpoints"] == {}


def test_everything_else_on_the_page_is_private():
    functions = app.build_app().fns.values()
    public = {one.api_name for one in functions if one.api_visibility == "public"}
    assert public == {"generate", "cover", "extend", "edit", "lyrics", "capabilities"}
    assert {one.api_visibility for one in functions} == {"public", "private"}


@pytest.mark.parametrize(
    ("endpoint", "field"), [("generate", "reference"), ("cover", "source"), ("extend", "source"), ("edit", "source")]
)
def test_a_file_that_was_not_uploaded_is_refused(server, tmp_path, endpoint, field):
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, np.zeros((96_000, 2)), 48_000)
    meta = {"meta": {"_type": "gradio.FileData"}}
    around = os.path.join(get_upload_folder(), os.path.relpath(secret, get_upload_folder()))
    # With gradio's mark, gradio refuses it; without, the studio does.
    for path in (str(secret), around):
        answer = post(server, endpoint, **{field: {"path": path, **meta}})
        assert answer.status_code == 400
        assert "was not uploaded" in answer.text
        assert set(refused(post(server, endpoint, **{field: {"path": path}}))) == {field}
    assert post(server, endpoint, **{field: {"path": "http://127.0.0.1/secret.wav", **meta}}).status_code == 400


def test_the_output_folder_is_not_served(server, generate, output):
    (path,), record = generate()
    kept = output / record["takes"][0]["name"]
    assert kept.read_bytes() == Path(path).read_bytes()
    for address in (kept, output):
        assert httpx.get(f"{server}/gradio_api/file={address}").status_code in (403, 404)


def test_a_call_past_the_queue_starts_no_song(server):
    body = {"data": ["calm piano", "", False, None, "", "", "unknown", 1, "draft", -1, {}, 600, None]}
    answer = httpx.post(f"{server}/gradio_api/run/generate", json=body)
    assert answer.status_code == 404 or answer.json()["data"][0] is None
    assert not backend.get_backend().turn.locked()


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
        while not any(job.outputs()):
            time.sleep(0.05)
        job.cancel()
        assert writers_on.turn.acquire(timeout=10)
        writers_on.turn.release()
    finally:
        hook.remove()


def test_a_planned_song_through_the_client(generate, writers_on, output):
    _, planned = generate(options={"plan_seed": 5})
    _, plain = generate(options={"plan": False})
    assert planned["plan"]["used"] is True and planned["plan"]["seed"] == 5
    assert plain["plan"] == {"used": False, "reason": "Plan the song first was off."}
