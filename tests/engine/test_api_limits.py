"""What the API refuses, how a call is cancelled, and what stays private."""

import os
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from gradio.utils import get_upload_folder
from gradio_client import handle_file
from gradio_client.exceptions import AppError

import backend
from tests.engine.calls import RATE, post, refused, told
from tests.waiting import until


def test_a_wrong_value_is_a_validation_error_with_name_and_message(server, client, source):
    wrong = {"duration": 601, "bpm": 0, "options": {"path": "/etc/passwd"}}
    for said in (told(client, "/generate", prompt="x", **wrong), refused(post(server, **wrong))):
        assert set(said) == set(wrong) and "options.path" in said["options"]
        assert "from 10 to 600 seconds, not 601." in said["duration"]
    said = told(client, "/extend", prompt="x", source=source, before=299, after=300)
    assert set(said) == {"after"} and "from 0 to 597 for a source of 3 seconds" in said["after"]
    assert set(told(client, "/cover", prompt="x", source="/etc/passwd")) == {"source"}
    # JSON does not allow these, but clients send them.
    for number in (float("nan"), float("inf"), float("-inf")):
        numbers = dict.fromkeys(("bpm", "duration", "takes", "seed"), number)
        said = refused(post(server, **numbers, options={"guidance": number}))
        assert set(said) == {*numbers, "options"}
        assert said["options"].startswith("options.guidance: Guidance must be from 1 to 15, not ")


def test_a_file_that_is_damaged_behind_a_whole_header_is_refused_before_the_queue(
    client, tune, tmp_path
):
    soundfile.write(tmp_path / "torn.flac", tune, RATE)
    data = (tmp_path / "torn.flac").read_bytes()
    (tmp_path / "torn.flac").write_bytes(data[: len(data) // 2])
    said = told(client, "/cover", prompt="x", source=handle_file(str(tmp_path / "torn.flac")))
    assert set(said) == {"source"} and said["source"].startswith("The file is damaged")
    assert said["source"].endswith("Export or download it again.")


def test_any_other_error_has_a_code_a_message_and_a_hint(client):
    with pytest.raises(AppError) as caught:
        options = {"loras": ["/nowhere/mine.safetensors"]}
        client.predict("calm piano", duration=10, options=options, api_name="/generate")
    assert caught.value.title == "lora_missing"
    said = "options.loras: An uploaded LoRA is no longer here. Add it again."
    assert caught.value.message == said


def test_cancel_and_hanging_up_free_the_studio(server, caller, generate):
    job = caller.submit("calm piano", duration=60, options={"steps": 200}, api_name="/generate")
    until(
        lambda: any(
            record.get("progress", {}).get("stage") == "steps" for _, record in job.outputs()
        )
    )
    job.cancel()
    until(lambda: not backend.get_backend().models.turn.locked())
    event = post(server, duration=60, options={"steps": 200}).json()["event_id"]
    with httpx.stream("GET", f"{server}/gradio_api/call/generate/{event}", timeout=300) as stream:
        assert any('"steps"' in line and '"step": 2' in line for line in stream.iter_lines())
    until(lambda: not backend.get_backend().models.turn.locked())
    assert generate()[0]


def test_everything_else_on_the_page_is_private(server):
    functions = httpx.get(f"{server}/config", timeout=300).json()["dependencies"]
    public = {one["api_name"] for one in functions if one["api_visibility"] == "public"}
    assert public == {
        "generate",
        "cover",
        "extend",
        "edit",
        "lyrics",
        "capabilities",
        "run",
        "cancel_run",
    }
    assert {one["api_visibility"] for one in functions} == {"public", "private"}


@pytest.mark.parametrize(("endpoint", "field"), [("generate", "reference"), ("edit", "source")])
def test_a_file_that_was_not_uploaded_is_refused(server, tmp_path, endpoint, field):
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, np.zeros((96_000, 2)), RATE)
    mark = {"meta": {"_type": "gradio.FileData"}}
    around = os.path.join(get_upload_folder(), os.path.relpath(secret, get_upload_folder()))
    # With Gradio's mark Gradio refuses it; without, the studio does.
    for path in (str(secret), around):
        answer = post(server, endpoint, **{field: {"path": path, **mark}})
        assert answer.status_code == 400 and "was not uploaded" in answer.text
        assert set(refused(post(server, endpoint, **{field: {"path": path}}))) == {field}


def test_the_output_folder_is_not_served(server, generate, output):
    (path,), record = generate()
    kept = output / record["takes"][0]["name"]
    assert kept.read_bytes() == Path(path).read_bytes()
    for address in (kept, output):
        assert httpx.get(f"{server}/gradio_api/file={address}", timeout=300).status_code in (
            403,
            404,
        )


def test_a_call_past_the_queue_starts_no_song(server):
    body = {
        "data": ["calm piano", "", False, None, "", "", "unknown", 1, "draft", -1, {}, 600, None]
    }
    answer = httpx.post(f"{server}/gradio_api/run/generate", json=body, timeout=300)
    assert answer.status_code == 404 or answer.json()["data"][0] is None
    assert not backend.get_backend().models.turn.locked()
