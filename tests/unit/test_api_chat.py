"""The chat endpoint on scripted runs: what a message means, whole and streamed answers, audio in and out, refusals."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path

import pytest
import soundfile

import api_chat
from events import Progress, StudioError
from params import InspireRequest
from tests.official import Served, served
from tests.unit.sounds import tone

LYRICS = "[Verse 1]\nWalking down the street\nFeeling the beat"
LINES = "one short line\nanother one\nand a third\nand the last"


@pytest.fixture
def api(tmp_path) -> Served:
    with served(tmp_path) as found:
        yield found


def ask(api, content, **body):
    body = {"messages": [{"role": "user", "content": content}], **body}
    return api.web.post("/v1/chat/completions", json=body)


def asked(api, content, **body):
    """Return the request that a chat becomes."""
    answer = ask(api, content, **body)
    assert answer.status_code == 200, answer.text
    return api.songs.asked[-1]


def test_a_completion_has_the_song_and_its_words(api):
    answer = ask(api, "calm piano", model="acestep/x", audio_config={"duration": 30}).json()
    assert (answer["object"], answer["model"]) == ("chat.completion", "acestep/x")
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    message = choice["message"]
    assert message["role"] == "assistant" and "**Caption:** calm piano" in message["content"]
    (sound,) = message["audio"]
    head, data = sound["audio_url"]["url"].split(",")
    assert head == "data:audio/mpeg;base64" and base64.b64decode(data) == b"calm piano 1"
    assert (api.songs.asked[0].duration, api.songs.asked[0].takes) == (30, 1)


def test_a_stream_ends_with_the_sound_and_done(api):
    text = ask(api, "calm piano", stream=True).text
    *events, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert last == "[DONE]"
    pieces = [json.loads(event)["choices"][0] for event in events]
    assert pieces[0]["delta"]["role"] == "assistant"
    assert [piece["finish_reason"] for piece in pieces][-1] == "stop"
    (sound,) = [piece["delta"]["audio"] for piece in pieces if "audio" in piece["delta"]]
    assert sound[0]["audio_url"]["url"].startswith("data:audio/mpeg;base64,")
    text = ask(api, "fail", stream=True).text
    assert "Error: The disk is full." in text and '"finish_reason": "error"' in text
    assert text.endswith("data: [DONE]\n\n")


def test_a_stream_says_that_it_is_still_there(tmp_path, monkeypatch):
    monkeypatch.setattr(api_chat, "DOT_SECONDS", 0.001)
    told = threading.Event()

    def slow(request):
        for step in range(20):
            yield Progress("steps", step, 20)
            told.wait(0.01)
        raise StudioError("disk", "The disk is full.")

    with served(tmp_path, slow) as api:
        *events, _ = ask(api, "calm piano", stream=True).text.removesuffix("\n\n").split("\n\n")
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events]
    contents = [delta.get("content", "") for delta in deltas]
    assert "." in contents and contents[-2] == "\n\nError: The disk is full."


def test_what_a_message_means(api):
    tagged = asked(api, f"<prompt>A ballad</prompt>\n<lyrics>{LYRICS}</lyrics>")
    assert (tagged.prompt, tagged.lyrics) == ("A ballad", LYRICS)
    for words in (LYRICS, LINES):
        assert asked(api, words).lyrics == words
    assert asked(api, "a song about rain").prompt == "a song about rain"
    assert asked(api, LINES, lyrics=LYRICS).prompt == LINES
    written = asked(api, "a song about rain", sample_mode=True)
    assert isinstance(written.words, InspireRequest) and written.words.idea == "a song about rain"
    silent = asked(api, LYRICS, audio_config={"instrumental": True})
    assert silent.instrumental
    settings = {"bpm": 85, "key_scale": "C Major", "vocal_language": "ja", "format": "flac"}
    full = asked(api, "x", audio_config=settings, seed="7,8", batch_size=2, wobble=1)
    assert (full.bpm, full.key, full.language) == (85, "C major", "ja")
    assert (full.seed, full.takes, full.options.format) == (7, 2, "flac")
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": [{"type": "text", "text": "last"}]},
    ]
    api.web.post("/v1/chat/completions", json={"messages": messages})
    assert api.songs.asked[-1].prompt == "last"


def test_sounds_in_a_message_are_source_and_reference(api, tmp_path):
    path = tmp_path / "demo.wav"
    soundfile.write(path, tone(2.0).T, 48_000)
    data = base64.b64encode(path.read_bytes()).decode()
    sound = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    content = [{"type": "text", "text": "jazz"}, sound, sound]
    cover = asked(api, content, task_type="cover")
    assert Path(cover.source).read_bytes() == Path(cover.reference).read_bytes()
    song = asked(api, content[:2])
    assert song.mode == "generate" and Path(song.reference).suffix == ".wav"


def test_refusals_are_sentences_in_both_places(api, monkeypatch):
    for body in ({"messages": []}, {}, {"messages": [{"role": "user", "content": ""}]}):
        answer = api.web.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400 and answer.json()["detail"]
    cover = ask(api, "jazz", task_type="cover")
    assert cover.status_code == 400 and "needs audio" in cover.json()["error"]["message"]
    failed = ask(api, "fail")
    assert failed.status_code == 500 and failed.json()["detail"] == "The disk is full. Free some."
    broken = [{"type": "input_audio", "input_audio": {"data": "&", "format": "wav"}}]
    assert ask(api, broken, task_type="cover").status_code == 400
    monkeypatch.setattr(api_chat, "MOST_BYTES", 50)
    assert ask(api, "x" * 100).status_code == 413
    monkeypatch.setenv("ACE_STUDIO_API_KEY", "one")
    assert ask(api, "x").status_code == 401


def test_the_sound_of_a_message_that_is_refused_is_not_kept(api, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "page"))
    sound = {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": sound}]
    assert ask(api, content, seed=[[]], task_type="cover").status_code == 400
    assert not list((tmp_path / "page").rglob("*.wav"))
    assert asked(api, content).reference
    assert len(list((tmp_path / "page").rglob("*.wav"))) == 1


def test_half_a_letter_is_refused_in_words(api):
    body = b'{"lora_path": "\\ud800"}'
    headers = {"content-type": "application/json"}
    answer = api.web.post("/v1/lora/load", content=body, headers=headers)
    assert answer.status_code == 400 and "half a character" in answer.json()["detail"]
