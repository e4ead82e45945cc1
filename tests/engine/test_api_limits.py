"""What the API refuses, how a call is cancelled, and what must stay closed."""

import os
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio.utils import get_upload_folder
from gradio_client import handle_file
from gradio_client.exceptions import AppError, ValidationError

import app
import backend
from tests.engine.calls import RATE, TASKS, post, refused, steps_seen, told
from tests.unit.sounds import NO_AUDIO
from tests.waiting import until

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
