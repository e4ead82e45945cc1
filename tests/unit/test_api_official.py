"""The official REST API on scripted runs: envelope, content types, refusals, keys, files, LoRAs, odd bodies, polls."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import soundfile

import api_official_bodies
import api_uploads
import limits
import runs
import served as served_files
from api_official_fields import FIELDS
from events import Progress
from params import parse_request
from tests.official import SKETCH, Served, called, served
from tests.unit.lora_bytes import attention
from tests.unit.sounds import tone
from tests.waiting import result_of, until


@pytest.fixture
def api(tmp_path) -> Served:
    with served(tmp_path) as found:
        yield found


@pytest.fixture
def wav(tmp_path) -> Path:
    path = tmp_path / "demo.wav"
    soundfile.write(path, tone(3.0).T, 48_000)
    return path


# --- a task -------------------------------------------------------------------------------------------------------


def test_a_task_is_queued_polled_and_fetched_in_their_envelope(api):
    answer = api.web.post("/release_task", json={"prompt": "tango", "batch_size": 2})
    envelope = answer.json()
    assert set(envelope) == {"data", "code", "error", "timestamp", "extra"}
    assert (envelope["code"], envelope["error"]) == (200, None)
    data = envelope["data"]
    assert data["status"] == "queued" and data["queue_position"] >= 1
    assert len(data["task_id"]) == 36
    item, entries = api.ended(data["task_id"])
    assert (item["task_id"], item["status"], item["error"]) == (data["task_id"], 1, None)
    assert isinstance(item["result"], str) and len(entries) == 2
    for number, entry in enumerate(entries, 1):
        assert (entry["status"], entry["stage"], entry["progress"]) == (1, "succeeded", 1.0)
        assert entry["file"] == entry["url"] and entry["file"].endswith(f"{number}.mp3")
        assert entry["seed_value"] == "1,2" and entry["dit_model"] == "org/scripted"
        assert entry["metas"]["duration"] == 12.5 and entry["metas"]["bpm"] == "N/A"
        song = api.web.get(entry["file"])
        assert song.headers["content-type"] == "audio/mpeg"
        assert song.text == f"tango {number}"
        part = api.web.get(entry["file"], headers={"range": "bytes=0-4"})
        assert (part.status_code, part.text) == (206, "tango")


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_every_content_type_is_read(api, wav, prefix):
    web = api.web
    fields = {"prompt": "tango", "audio_duration": "12", "batch_size": "1"}
    calls = [
        {"json": fields},
        {"data": fields},
        {"data": fields, "files": {"unused": ("a.txt", b"x")}},
        {"content": json.dumps(fields), "headers": {"content-type": "text/plain"}},
        {"content": json.dumps(fields), "headers": {"content-type": "application/x+json"}},
        {"content": "prompt=tango&audio_duration=12&batch_size=1"},
    ]
    for call in calls:
        assert web.post(f"{prefix}/release_task", **call).status_code == 200, call
    until(lambda: len(api.songs.asked) == len(calls))
    assert {(each.prompt, each.duration, each.takes) for each in api.songs.asked} == {
        ("tango", 12, 1)
    }
    refused = web.post(f"{prefix}/release_task", content=b"tango")
    assert refused.status_code == 415 and "JSON" in refused.json()["detail"]
    for wrong in (b"[1, 2]", b"{", b"{" * 100_000):
        refused = web.post(
            f"{prefix}/release_task", content=wrong, headers={"content-type": "application/json"}
        )
        assert refused.status_code == 400
        assert refused.json()["detail"] == refused.json()["error"]


def test_an_upload_becomes_the_source(api, wav):
    with wav.open("rb") as file:
        files = {"ctx_audio": ("my song.wav", file, "audio/wav")}
        answer = api.web.post(
            "/release_task", data={"task_type": "cover", "caption": "jazz"}, files=files
        )
    api.ended(answer.json()["data"]["task_id"])
    (asked,) = api.songs.asked
    assert (asked.mode, asked.prompt) == ("cover", "jazz")
    assert Path(asked.source).read_bytes() == wav.read_bytes()


def test_the_upload_of_a_task_that_is_refused_is_not_kept(api, wav, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "page"))
    for key, kept in (("one", 0), ("", 1)):
        monkeypatch.setenv("ACE_STUDIO_API_KEY", key)
        with wav.open("rb") as file:
            api.web.post(
                "/release_task", data={"task_type": "cover"}, files={"ctx_audio": ("a.wav", file)}
            )
        assert len(list((tmp_path / "page").rglob("*.wav"))) == kept


def stored() -> set[Path]:
    return {file.path for file in served_files.files()}


def form(*parts: tuple[str, str | None, bytes], end: bytes = b"--x--\r\n") -> bytes:
    """Return a multipart body of (field, file name or None, content)."""
    whole = b""
    for name, filename, content in parts:
        called = "" if filename is None else f'; filename="{filename}"'
        head = f'--x\r\nContent-Disposition: form-data; name="{name}"{called}\r\n\r\n'
        whole += head.encode() + content + b"\r\n"
    return whole + end


def send(api, content, **headers):
    headers = {"content-type": "multipart/form-data; boundary=x", **headers}
    return api.web.post("/release_task", content=content, headers=headers)


def test_uploads_of_a_form_go_to_the_disk_as_those_of_the_page_do(api, wav, monkeypatch):
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", None)
    monkeypatch.setattr("tempfile.TemporaryFile", None)
    before = stored()
    sound = wav.read_bytes()
    parts = [("caption", None, "jazz \u266d".encode()), ("task_type", None, b"cover")]
    parts += [("src_audio", "other.wav", b"x" * 9), ("ctx_audio", "a/my song.wav", sound)]
    parts += [("ref_audio", "", b""), ("reference_audio", "b.wav", sound), ("unused", "c", sound)]
    answer = send(api, form(*parts))
    api.ended(answer.json()["data"]["task_id"])
    (asked,) = api.songs.asked
    assert asked.prompt == "jazz \u266d"
    source = Path(asked.source)
    assert (source.name, source.read_bytes()) == ("my song.wav", sound)
    assert Path(asked.reference).name == "b.wav"
    assert {path.name for path in stored() - before} == {"my song.wav", "b.wav", "other.wav"}


@pytest.mark.parametrize(
    ("parts", "end", "headers", "status"),
    [
        ([("src_audio", "a.wav", bytes(1_001))], b"--x--", {}, 413),
        ([("src_audio", "a.wav", bytes(900)), ("ref_audio", "b", bytes(900))], b"--x--", {}, 200),
        ([(f"note {i}", f"{i}.txt", bytes(900)) for i in range(5)], b"--x--", {}, 413),
        ([("prompt", None, bytes(1_001))], b"--x--", {}, 413),
        ([("src_audio", "a.wav", bytes(900))], b"", {}, 400),
        ([(str(i), None, b"") for i in range(6)], b"--x--", {}, 400),
        ([("src_audio", "a.wav", bytes(900))], b"--x--", {"origin": "https://evil.example"}, 403),
        ([("src_audio", "a.wav", bytes(900))], b"--x--", {"authorization": "wrong"}, 401),
    ],
    ids=["a file", "two files", "all files", "text", "no end", "fields", "origin", "key"],
)
def test_a_form_that_breaks_a_limit_leaves_nothing(api, monkeypatch, parts, end, headers, status):
    limits_of = {"most_bytes": lambda name: 1_000, "most_bytes_in_all": lambda: 4_000}
    few = {"most_text_bytes": 1_000, "most_texts": 5}
    monkeypatch.setattr(
        api_official_bodies, "RULES", replace(api_official_bodies.RULES, **limits_of, **few)
    )
    if "authorization" in headers:
        monkeypatch.setenv("ACE_STUDIO_API_KEY", "secret")
    before = stored()
    answer = send(api, form(*parts, end=end), **headers)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.json()["detail"] == answer.json()["error"]
        assert stored() == before


def test_a_form_waits_for_no_room_and_no_turn(api, monkeypatch):
    before = stored()
    body = form(("src_audio", "a.wav", bytes(900)))
    monkeypatch.setattr(api_uploads, "MOST_AT_ONCE", 0)
    assert send(api, body).status_code == 503
    monkeypatch.undo()
    monkeypatch.setattr(served_files, "make_room", lambda *_: False)
    assert send(api, body).status_code == 507
    assert stored() == before


def test_a_task_that_cannot_be_done_fails_where_clients_look(api):
    for fields, words in (
        ({"task_type": "cover", "prompt": "x"}, "needs audio"),
        ({"task_type": "stem_separation"}, "There is no task"),
        ({"extract_codes_only": True}, "audio codes"),
        ({"prompt": "fail"}, "The disk is full. Free some."),
    ):
        item, (entry,) = api.ended(api.release(**fields))
        assert item["status"] == entry["status"] == 2
        assert words in item["error"] == item["progress_text"] == entry["error"]


def test_several_are_asked_for_in_order_and_a_stranger_is_waiting_without_a_result(api):
    known = [api.release(prompt=f"song {number}") for number in range(3)]
    asked = [known[2], "00000000-0000-4000-8000-000000000000", known[0], "nonsense", 7]
    for body in (
        {"json": {"task_id_list": asked}},
        {"data": {"task_id_list": json.dumps(asked)}},
    ):
        items = api.web.post("/query_result", **body).json()["data"]
        assert [item["task_id"] for item in items] == [str(each) for each in asked]
        for place in (1, 3, 4):
            assert (items[place]["status"], items[place]["result"]) == (0, "[]")
    too_many = api.web.post("/query_result", json={"task_id_list": ["x"] * 201})
    assert too_many.status_code == 400


def test_the_words_of_a_sample_and_a_description(api, wav):
    made = api.web.post("/v1/create_sample", json={"query": "a tango", "vocal_language": "es"})
    assert made.json()["data"]["keyscale"] == SKETCH["key"]
    assert (api.songs.asked[-1].idea, api.songs.asked[-1].language) == ("a tango", "es")
    settings = json.dumps({"bpm": 97, "duration": 30, "key": "A minor"})
    polished = api.web.post("/format_input", json={"prompt": "x", "param_obj": settings}).json()
    assert polished["data"]["caption"] == SKETCH["prompt"]
    assert polished["data"]["duration"] == SKETCH["duration"]
    asked = api.songs.asked[-1]
    assert (asked.bpm, asked.duration, asked.key) == (97, 30, "A minor")
    soft = api.web.post("/format_input", json={}).json()
    assert soft["data"] is None and soft["code"] == 400 and soft["error"]
    with wav.open("rb") as file:
        task = api.web.post(
            "/release_task", data={"full_analysis_only": "true"}, files={"src_audio": file}
        )
    _, (entry,) = api.ended(task.json()["data"]["task_id"])
    assert (entry["bpm"], entry["prompt"]) == (97, SKETCH["prompt"])
    assert entry["metas"]["keyscale"] == "D minor" and "file" not in entry
    simple = api.web.post("/create_random_sample", json={"sample_type": "simple_mode"}).json()
    assert set(simple["data"]) == {"description", "instrumental", "vocal_language"}
    custom = api.web.post("/create_random_sample").json()["data"]
    assert {"think", "caption", "lyrics", "keyscale", "timesignature"} <= set(custom)


def test_what_there_is(api):
    health = api.web.get("/health").json()["data"]
    assert (health["status"], health["service"]) == ("ok", "ACE-Step API")
    models = api.web.get("/v1/models").json()
    assert models["data"][0]["id"].startswith("acestep/") and models["default_model"]
    assert api.web.get("/api/v1/models").json() == models
    inventory = api.web.get("/v1/model_inventory").json()["data"]
    assert "lego" in inventory["models"][0]["supported_task_types"]
    api.ended(api.release(prompt="tango"))
    api.ended(api.release(prompt="fail"))
    stats = api.web.get("/v1/stats").json()["data"]
    assert stats["jobs"] == {"total": 2, "queued": 0, "running": 0, "succeeded": 1, "failed": 1}
    assert stats["queue_maxsize"] == limits.MOST_WAITING
    assert api.web.post("/v1/init", json={"model": "another"}).json()["data"]["loaded_model"]
    assert api.web.post("/v1/init").status_code == 200
    for path in ("/v1/training/start", "/v1/dataset/scan", "/v1/transcribe"):
        absent = api.web.post(path, json={})
        assert absent.status_code == 501 and "This studio" in absent.json()["detail"]
    described = api.web.get("/openapi.json").json()["paths"]
    assert {"/health", "/release_task", "/v1/lora/scale"} <= set(described)
    for path, calls in described.items():
        for method, call in calls.items():
            assert call["description"], path
            nothing = ("unload", "cancel", "reinitialize")
            assert method == "get" or "requestBody" in call or path.endswith(nothing), path
    page = api.web.get("/docs").text
    assert "audio_config" in page and "task_id_list" in page
    assert (
        "inference_steps" in page and "http" not in page.replace("https", "http").split("<h1>")[1]
    )


# --- who may ------------------------------------------------------------------------------------------------------

POSTS = ("/release_task", "/query_result", "/format_input", "/v1/create_sample")
GETS = ("/v1/models", "/v1/model_inventory", "/v1/stats", "/v1/lora/status", "/v1/audio")


def test_a_key_is_wanted_as_token_bearer_or_bare(api, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_API_KEY", "one, two")
    web = api.web
    for path in POSTS:
        assert web.post(path, json={"prompt": "x"}).status_code == 401, path
        assert web.post(path, json={"ai_token": "wrong"}).json()["detail"] == "Invalid ai_token"
        assert web.post(path, json={"ai_token": "two", "prompt": "x"}).status_code == 200, path
    for path in GETS:
        assert web.get(path).status_code == 401, path
        for header in ("Bearer wrong", "wrong"):
            refused = web.get(path, headers={"authorization": header})
            assert (refused.status_code, refused.json()["detail"]) == (401, "Invalid API key")
        for header in ("Bearer one", "two"):
            answer = web.get(path, headers={"authorization": header})
            assert answer.status_code == (403 if "audio" in path else 200), path
    assert web.get("/health").status_code == 200


def test_a_page_of_another_site_is_refused(api):
    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        refused = api.web.post("/release_task", json={}, headers={"origin": origin})
        assert refused.status_code == 403, origin
    here = ("http://localhost:5173", "http://127.0.0.1:3000", "http://127.0.0.1:7860")
    for origin in (*here, "http://[::1]:5173", "tauri://localhost"):
        assert api.web.get("/v1/models", headers={"origin": origin}).status_code == 200


def test_only_takes_are_served(api, tmp_path):
    secret = tmp_path / "secret.mp3"
    secret.write_text("secret")
    task = api.release(prompt="tango", batch_size=1)
    _, (entry,) = api.ended(task)
    run = task.replace("-", "")
    wrong = [
        str(secret),
        "../secret.mp3",
        f"/acestep/{run}/../secret.mp3",
        f"/acestep/{run}/1.exe",
        f"/acestep/{run}/1.mp3\0",
        "/etc/passwd",
        "",
    ]
    for path in wrong:
        assert api.web.get(f"/v1/audio?path={quote(path)}").status_code == 403, path
    for path in (f"/acestep/{run}/2.mp3", f"/acestep/{'0' * 32}/1.mp3"):
        assert api.web.get(f"/v1/audio?path={quote(path)}").status_code == 404, path
    assert api.web.get(entry["file"]).text == "tango 1"


def test_a_path_is_a_take_or_a_file_in_the_temporary_folder_of_this_machine(
    api, wav, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cover = {"task_type": "cover", "prompt": "x"}

    def status(path, **headers):
        fields = {**cover, "src_audio_path": path}
        return api.web.post("/release_task", json=fields, headers=headers).status_code

    assert status(str(wav)) == 200
    until(lambda: api.songs.asked)
    assert api.songs.asked[0].source == str(wav)
    other = tmp_path / "ace-music-studio-page-0"
    other.mkdir()
    (other / "a.wav").write_bytes(wav.read_bytes())
    (tmp_path / "link.wav").symlink_to("/etc/passwd")
    for path in (
        "/etc/passwd",
        "../demo.wav",
        f"{tmp_path}/../{tmp_path.name}/demo.wav",
        str(other / "a.wav"),
        str(tmp_path / "link.wav"),
        str(tmp_path / "none.wav"),
        "demo.wav",
        "\0",
    ):
        assert status(path) == 400, path
    assert status(str(wav), **{"x-forwarded-for": "10.0.0.9"}) == 400
    assert status(str(wav), host="studio.example") == 400
    _, (entry,) = api.ended(api.release(prompt="tango", batch_size=1))
    # One program serves nothing that lies outside the temporary folder.
    path = parse_qs(urlsplit(entry["file"]).query)["path"][0]
    assert path.startswith("/tmp/acestep/")
    for named in (entry["file"], path):
        fields = {**cover, "src_audio_path": named}
        assert api.web.post("/release_task", json=fields).status_code == 200
    assert status(f"/tmp/acestep/{'0' * 32}/1.mp3") == 404


def test_a_stranger_may_not_name_files(tmp_path, wav, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with served(tmp_path, client=("10.0.0.9", 1)) as api:
        fields = {"task_type": "cover", "prompt": "x", "src_audio_path": str(wav)}
        assert api.web.post("/release_task", json=fields).status_code == 400


def test_the_switch(monkeypatch, tmp_path):
    for space, switch, on in (
        ("", "", True),
        ("", "off", False),
        ("me/studio", "", False),
        ("me/studio", "1", True),
    ):
        monkeypatch.setenv("SPACE_ID", space)
        monkeypatch.setenv("ACE_STUDIO_OFFICIAL_API", switch)
        with served(tmp_path) as api:
            assert (api.web.get("/health").status_code == 200) is on, (space, switch)


# --- LoRAs --------------------------------------------------------------------------------------------------------


def test_each_client_has_its_own_lora(api, monkeypatch, tmp_path, lora):
    monkeypatch.setenv("ACE_STUDIO_API_KEY", "one,two")
    monkeypatch.setenv("ACE_STUDIO_LORAS", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "page"))
    file = lora(attention())
    one = {"authorization": "Bearer one"}
    two = {"authorization": "Bearer two"}

    def post(path, body=None, headers=one):
        return api.web.post(f"/v1/lora/{path}", json=body, headers=headers)

    assert post("unload").status_code == 200
    assert post("scale", {"scale": 0.5}).json()["code"] == 400
    assert post("load", {"lora_path": str(file)}).status_code == 200
    assert post("scale", {"scale": 0.5}).json()["code"] == 200
    assert post("scale", {"scale": 1.5}).status_code == 422
    for path in ("/etc/passwd", "../my-lora.safetensors", "none.safetensors", "", "\0"):
        assert post("load", {"lora_path": path}).status_code == 400, path
    status = api.web.get("/v1/lora/status", headers=one).json()["data"]
    assert (status["lora_loaded"], status["lora_scale"]) == (True, 0.5)
    assert not api.web.get("/v1/lora/status", headers=two).json()["data"]["lora_loaded"]
    for headers, weights in ((one, [0.5]), (two, [])):
        api.web.post("/release_task", json={"prompt": "x"}, headers=headers)
        until(lambda: api.songs.asked)
        assert [each.weight for each in api.songs.asked.pop().options.loras] == weights
    api.runs.start(parse_request("generate", {"prompt": "of the page"}), "address 127.0.0.1")
    until(lambda: api.songs.asked)
    assert api.songs.asked.pop().options.loras == ()
    chat = {"messages": [{"role": "user", "content": "x"}]}
    api.web.post("/v1/chat/completions", json=chat, headers=one)
    assert [each.weight for each in api.songs.asked.pop().options.loras] == [0.5]
    assert post("toggle", {"use_lora": False}).status_code == 200
    api.web.post("/release_task", json={"prompt": "x"}, headers=one)
    until(lambda: api.songs.asked)
    assert api.songs.asked.pop().options.loras == ()


# --- many, odd and cut off ----------------------------------------------------------------------------------------


def test_a_full_queue_is_busy_and_a_task_is_cancelled(tmp_path):
    gate = threading.Event()

    def wait(request):
        while not gate.wait(0.01):
            yield Progress("steps", 4, 8)

    with served(tmp_path, wait) as api:
        first = api.release(prompt="first")
        until(lambda: "4/8" in api.item(first)["progress_text"])
        (entry,) = json.loads(api.item(first)["result"])
        assert entry["status"] == 0 and 0.5 < entry["progress"] < 0.6
        waiting = [api.release(prompt="x") for _ in range(limits.MOST_WAITING_OF_AN_ADDRESS)]
        busy = api.web.post("/release_task", json={"prompt": "x"})
        assert busy.status_code == 429 and "waiting already" in busy.json()["error"]
        chat = {"messages": [{"role": "user", "content": "x"}]}
        assert api.web.post("/v1/chat/completions", json=chat).status_code == 429
        (entry,) = json.loads(api.item(waiting[3])["result"])
        assert entry["stage"] == "queued" and "Place 4" in api.item(waiting[3])["progress_text"]
        cancelled = api.web.post(f"/v1/tasks/{waiting[0]}/cancel").json()["data"]
        assert cancelled == {"task_id": waiting[0], "cancelled": True, "success": True}
        assert api.item(waiting[0])["status"] == 2
        gate.set()


def test_tasks_of_a_studio_that_was_killed_have_failed(tmp_path, monkeypatch):
    forever = threading.Event()

    def wait(request):
        while not forever.wait(0.01):
            yield Progress("steps", 1, 8)

    with served(tmp_path) as api:
        done = api.release(prompt="done", batch_size=1)
        api.ended(done)
    with served(tmp_path, wait) as api:
        left = [api.release(prompt="left") for _ in range(3)]
        monkeypatch.setattr("runs_journal.PROCESS", "another process")
        with served(tmp_path) as after:
            for task in left:
                item = after.item(task)
                assert item["status"] == 2 and "restarted" in item["error"]
            item, (entry,) = after.ended(done)
            assert item["status"] == 1 and after.web.get(entry["file"]).text == "done 1"
        forever.set()


@pytest.mark.slow
def test_five_hundred_tasks_of_fifty_clients_reach_their_own(tmp_path, monkeypatch):
    """The queue takes 32 at a time; a client that finds it full tries again, as they do."""
    monkeypatch.setattr(limits, "MOST_WAITING_OF_AN_ADDRESS", 32)
    # After that the tags of the files tell, and these are no songs.
    monkeypatch.setattr(runs, "MOST_ENDED", 500)
    with served(tmp_path) as api:

        async def post(path, **fields):
            status, body = await called(api.app, "POST", path, json.dumps(fields).encode())
            return status, json.loads(body).get("data")

        async def queued(prompt):
            while True:
                status, data = await post("/release_task", prompt=prompt, batch_size=1)
                if status == 200:
                    return data["task_id"]
                assert status == 429
                await asyncio.sleep(0.01)

        async def client(number):
            prompts = [f"client {number} song {song}" for song in range(10)]
            left = {await queued(prompt): prompt for prompt in prompts}
            while left:
                _, items = await post("/query_result", task_id_list=list(left))
                for item in items:
                    assert item["status"] != 2, item
                    if item["status"] == 1:
                        (entry,) = json.loads(item["result"])
                        prompt = left.pop(item["task_id"])
                        assert entry["prompt"] == prompt
                        status, song = await called(api.app, "GET", entry["file"])
                        assert (status, song.decode()) == (200, f"{prompt} 1")
                await asyncio.sleep(0)
            return len(prompts)

        async def everybody():
            return await asyncio.gather(*(client(number) for number in range(50)))

        assert sum(result_of(everybody())) == 500


def test_odd_bodies_never_end_as_an_error_of_ours(api):
    chosen = random.Random(36)
    names = [*_names(), "param_obj", "metas", "task_id_list", "ai_token", "query", "wobble"]
    values = [
        *(None, True, False, 0, -1, 1, 8, 2**70, -(2**70), 1.5, 1e308, -0.0, 10**400),
        *("", " ", "0", "-1", "1e999", "nan", "NaN", "true", "x" * 50_000, "\0", "\ud800", "é♭"),
        *([], [1, "a", None], {}, {"a": {}}, [[[]]], "[1", '["a"]', "{", '{"bpm": 1}', "1,2,3"),
        *("cover", "repaint", "lego", "complete", "Bbm", "4/4", "en", "/etc/passwd", "../a"),
    ]
    paths = [*POSTS, "/create_random_sample", "/v1/init", "/v1/lora/load", "/v1/lora/toggle"]
    paths += ["/v1/lora/scale", "/v1/lora/unload", "/v1/reinitialize"]
    kinds = ["application/json", "application/x-www-form-urlencoded", "text/plain", "", "a/b"]
    kinds += ["multipart/form-data", "multipart/form-data; boundary=x", "application/a+json"]

    def odd():
        count = chosen.randrange(6)
        body = {chosen.choice(names): chosen.choice(values) for _ in range(count)}
        content = json.dumps(body)
        if chosen.random() < 0.3:
            place = chosen.randrange(len(content) + 1)
            content = content[:place] + chosen.choice(["", "{", "\x00", "]", "=", "&a=b"])
        if chosen.random() < 0.1:
            part = f'--x\r\nContent-Disposition: form-data; name="bpm"\r\n\r\n{content}'
            content = f"{part}\r\n--x--"
        return content.encode("utf-8", "ignore")

    async def send():
        statuses = set()
        for _ in range(2_000):
            content = odd()
            path = chosen.choice(paths)
            status, _ = await called(api.app, "POST", path, content, chosen.choice(kinds))
            assert status < 500, (status, path, content[:300])
            statuses.add(status)
        return statuses

    assert {200, 400, 422} <= result_of(send())


def _names():
    return [name for field in FIELDS for name in (field.name, *field.aliases)]
