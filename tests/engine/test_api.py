"""The API as a client meets it: a running server, files on disk, wrong values, cancel, and what must stay closed."""

import json
import os
import re
import shutil
import subprocess
import sys
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

FAST = {"steps": 2}
DOCS = Path(__file__).parents[2] / "docs" / "api.md"


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


@pytest.fixture(scope="module")
def generate(client):
    """Return a function that makes 10 s of a song in two steps, unless told otherwise."""

    def call(prompt="calm piano", **given):
        options = {**FAST, **given.pop("options", {})}
        return client.predict(prompt, options=options, api_name="/generate", **{"duration": 10, "seed": 7, **given})

    call()  # loads the model
    return call


@pytest.fixture
def output(tmp_path, monkeypatch):
    folder = tmp_path / "songs"
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(folder))
    return folder


def samples(path):
    """Return a file's samples, float64 [n, 2]."""
    found, rate = soundfile.read(path, always_2d=True)
    assert rate == 48_000
    return found


def post(server, **named):
    """Start /generate over plain HTTP as curl does; numbers that JSON does not know go out as NaN and Infinity."""
    return httpx.post(
        f"{server}/gradio_api/call/v2/generate",
        content=json.dumps({"prompt": "calm piano", "duration": 10, "options": FAST, **named}),
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


def test_each_endpoint_answers_to_its_required_names_alone(client, monkeypatch):
    # A whole minute in 50 steps would be slow: the first progress is the answer.
    job = client.submit(prompt="calm piano", api_name="/generate")
    until(job.outputs, 60)
    assert job.outputs()[0][1]["progress"]["stage"] == "waiting"
    job.cancel()
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


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_get_the_sentence(server, number):
    said = refused(post(server, bpm=number, duration=number, takes=number, seed=number, options={"guidance": number}))
    assert set(said) == {"bpm", "duration", "takes", "seed", "options"}
    assert said["options"].startswith("options.guidance: Guidance must be from 1 to 15, not ")


def test_markup_in_the_prompt_is_just_text(generate):
    (path,), record = generate("<img src=x onerror=alert(1)>")
    assert record["request"]["prompt"] == "<img src=x onerror=alert(1)>"
    assert not set("<>()=") & set(Path(path).name)


def test_any_other_error_has_a_code_a_message_and_a_hint(generate, tmp_path):
    (tmp_path / "notes.wav").write_text("this is no audio")
    with pytest.raises(AppError) as caught:
        generate(reference=handle_file(str(tmp_path / "notes.wav")))
    assert caught.value.title == "bad_audio"
    assert caught.value.message.startswith("The reference audio: ")


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


def test_cancel_frees_the_studio_and_the_next_call_works(client, generate):
    job = client.submit("calm piano", duration=60, options={"steps": 200}, api_name="/generate")
    until(lambda: steps_seen(job), 60)
    job.cancel()
    until(lambda: not backend.get_backend().turn.locked(), 5)
    assert generate()[0]


def test_hanging_up_frees_the_studio(server, generate):
    event = post(server, duration=60, options={"steps": 200}).json()["event_id"]
    with httpx.stream("GET", f"{server}/gradio_api/call/generate/{event}", timeout=60) as stream:
        assert any('"steps"' in line and '"step": 2' in line for line in stream.iter_lines())
    until(lambda: not backend.get_backend().turn.locked(), 10)
    assert generate()[0]


def test_capabilities_do_not_wait_for_songs(server, client):
    client.predict(api_name="/capabilities")  # the first one imports torch
    job = client.submit("calm piano", duration=60, options={"steps": 200}, api_name="/generate")
    until(lambda: steps_seen(job), 60)
    answer = httpx.post(f"{server}/gradio_api/run/capabilities", json={"data": []}, timeout=10)
    assert backend.get_backend().turn.locked()
    assert answer.json()["data"][0]["limits"]["duration"]["high"] == 600
    job.cancel()
    until(lambda: not backend.get_backend().turn.locked(), 5)


# --- what stays closed --------------------------------------------------------------------------------------------


def test_only_the_endpoints_of_the_contract_are_listed(client):
    listed = client.view_api(return_format="dict", print_info=False)
    assert set(listed["named_endpoints"]) == {"/generate", "/capabilities"}
    assert listed["unnamed_endpoints"] == {}


def test_everything_else_on_the_page_is_private():
    functions = app.build_app().fns.values()
    public = {one.api_name for one in functions if one.api_visibility == "public"}
    assert public == {"generate", "capabilities"}
    assert {one.api_visibility for one in functions} == {"public", "private"}


def test_a_file_that_was_not_uploaded_is_refused(server, tmp_path):
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, np.zeros((96_000, 2)), 48_000)
    meta = {"meta": {"_type": "gradio.FileData"}}
    # With gradio's mark, gradio refuses it; without, the studio does.
    answer = post(server, reference={"path": str(secret), **meta})
    assert answer.status_code == 400
    assert "was not uploaded" in answer.text
    assert set(refused(post(server, reference={"path": str(secret)}))) == {"reference"}
    around = os.path.join(get_upload_folder(), os.path.relpath(secret, get_upload_folder()))
    assert post(server, reference={"path": around, **meta}).status_code == 400
    assert set(refused(post(server, reference={"path": around}))) == {"reference"}
    link = {"path": "http://127.0.0.1/secret.wav", **meta}
    assert post(server, reference=link).status_code == 400


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


# --- the document -------------------------------------------------------------------------------------------------

BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BLOCKS)])
def test_the_snippets_of_the_document_run(server, tmp_path, language, code):
    if language == "bash" and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    soundfile.write(tmp_path / "voice.wav", 0.1 * np.random.default_rng(0).standard_normal((96_000, 2)), 48_000)
    code = code.replace("http://127.0.0.1:7860", server)
    program = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    env = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": str(tmp_path / "downloads")}
    done = subprocess.run([*program, code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if "song.wav" in code:
        assert len(samples(tmp_path / "song.wav")) == 480_000
    elif "reference" in code:
        assert "event_id" in done.stdout
        assert listen(server, json.loads(done.stdout)["event_id"])[-1][0] == "complete"
    else:
        assert "preview" in done.stdout or ".wav" in done.stdout
