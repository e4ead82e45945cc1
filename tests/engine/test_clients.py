"""What programs made for ACE-Step call, in their order, restated on the real engine: songs are as long as asked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import soundfile

from tests.engine.calls import RATE, SECONDS
from tests.waiting import until

QUICK = {"inference_steps": "9", "batch_size": "1"}  # over 8: the steps that were sent


@pytest.fixture
def web(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=120) as client:
        yield client


@pytest.fixture
def wav(tune) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tune, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def result(web, answer) -> list[dict]:
    """Poll a task until its end; return its entries."""
    task = answer.raise_for_status().json()["data"]["task_id"]

    def item():
        return web.post("/query_result", json={"task_id_list": [task]}).json()["data"][0]

    until(lambda: item()["status"] != 0)
    found = item()
    assert found["status"] == 1, found
    return json.loads(found["result"])


def seconds(web, entry) -> float:
    """Fetch a take; return how long it is, and fail if it is silent."""
    song = web.get(entry["file"]).raise_for_status()
    samples, rate = soundfile.read(io.BytesIO(song.content))
    assert rate == RATE and np.abs(samples).max() > 0.01
    return len(samples) / rate


def test_the_skill_and_the_script_make_a_song(web):
    assert web.get("/health").json()["data"]["models_initialized"]
    body = {"caption": "calm piano", "duration": 10, "thinking": "false", **QUICK}
    (entry,) = result(web, web.post("/release_task", json=body))
    assert seconds(web, entry) == 10
    assert entry["metas"]["duration"] == 10 and entry["prompt"] == "calm piano"


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({"task_type": "lego", "track_name": "drums", "repainting_end": "-1"}, SECONDS),
        ({"task_type": "extract", "track_name": "bass", "caption": ""}, SECONDS),
        ({"task_type": "cover-nofsq", "audio_cover_strength": "0.3"}, SECONDS),
        ({"task_type": "complete", "track_classes": "drums,bass"}, SECONDS),
        ({"task_type": "repaint", "repainting_start": "3.0", "repainting_end": "5"}, 5),
        ({"task_type": "repaint", "repainting_start": "1", "repainting_end": "2"}, SECONDS),
    ],
    ids=lambda value: value["task_type"] if isinstance(value, dict) else None,
)
def test_the_remix_server_sends_text_and_audio_in_a_form(web, wav, fields, length):
    web.post("/v1/lora/unload").raise_for_status()
    data = {"caption": "jazz", "lyrics": "", "language": "en", "bpm": "120", "key_scale": "Am"}
    data |= {"audio_format": "wav", "thinking": "false", **QUICK, **fields}
    files = {"ctx_audio": ("a.wav", wav, "audio/wav"), "ref_audio": ("a.wav", wav, "audio/wav")}
    (entry,) = result(web, web.post("/release_task", data=data, files=files))
    assert seconds(web, entry) == pytest.approx(length, abs=0.001)


def test_the_daw_sends_a_source_with_every_song_and_an_earlier_take_by_its_path(web, wav):
    assert web.get("/v1/model_inventory").json()["data"]["models"][0]["is_loaded"]
    data = {"task_type": "text2music", "prompt": "jazz", "audio_duration": "10", **QUICK}
    files = {"src_audio": ("src_audio.wav", wav, "audio/wav")}
    (entry,) = result(web, web.post("/release_task", data=data, files=files))
    assert seconds(web, entry) == 10
    body = {**QUICK, "task_type": "cover", "prompt": "jazz", "src_audio_path": entry["file"]}
    (cover,) = result(web, web.post("/release_task", json=body))
    assert seconds(web, cover) == 10


def test_a_former_task_is_told_from_its_files(web, monkeypatch):
    body = {"prompt": "calm piano", "duration": 10, "bpm": 90, "key": "A minor", **QUICK}
    answer = web.post("/release_task", json=body)
    (before,) = result(web, answer)
    monkeypatch.setattr("runs.Runs.find", lambda runs, run_id: None)
    (after,) = result(web, answer)
    for name in ("file", "prompt", "lyrics", "metas", "seed_value", "dit_model"):
        assert after[name] == before[name], name


def test_the_chat_client_gets_a_song_in_an_envelope_of_its_own(web):
    content = "<prompt>lo-fi</prompt><lyrics>[inst]</lyrics>"
    body = {
        "messages": [{"role": "user", "content": content}],
        "audio_config": {"bpm": 85, "duration": 10, "instrumental": True},
        "inference_steps": 9,
    }
    answer = web.post("/v1/chat/completions", json=body).raise_for_status().json()
    assert "**BPM:** 85" in answer["choices"][0]["message"]["content"]
    assert web.get("/api/v1/models").json()["data"][0]["id"]
