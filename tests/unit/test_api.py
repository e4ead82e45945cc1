"""The public endpoints without a model: names, defaults, schemas, what a wrong value gets, how a run is passed on."""

import asyncio
import inspect
import io
import re
import threading
import time
from pathlib import Path

import anyio.to_thread
import gradio as gr
import numpy as np
import pytest
import soundfile
from gradio.mcp import GradioMCPServer
from gradio.utils import get_upload_folder
from starlette.requests import Request

import api
import api_runs
import events
import params
import runs
import runs_journal
import takes
from events import Done, Draft, Failed, Problem, Progress
from tests.waiting import result_of, until

REQUIRED = inspect.Parameter.empty
SONG = {
    **{
        "prompt": REQUIRED,
        "lyrics": "",
        "instrumental": False,
        "bpm": None,
        "key": "",
        "time_signature": "",
    },
    **{"language": "unknown", "takes": 1, "quality": "standard", "seed": -1, "options": {}},
}
CONTRACT = {
    "generate": {**SONG, "duration": 60, "reference": None},
    "cover": {**SONG, "source": REQUIRED, "reference": None, "strength": 0.8},
    "extend": {**SONG, "source": REQUIRED, "before": 0, "after": 30},
    "edit": {
        **{**SONG, "prompt": "", "source": REQUIRED, "action": "repaint", "start": 0, "end": 0},
        **{"source_prompt": "", "source_lyrics": "", "tracks": [], "regions": []},
    },
    "lyrics": {
        "brief": REQUIRED,
        "structure": "",
        "language": "en",
        "tone": "",
        "seed": -1,
        "options": {},
    },
}
GIVEN = {"prompt": "calm piano", "source": "song.wav", "brief": "rain"}


@pytest.fixture(scope="module")
def blocks():
    with gr.Blocks(analytics_enabled=False) as demo:
        studio = Studio()
        api.add_endpoints(
            studio,
            runs.Runs(studio.stream, lambda request: 1.0, runs_journal.Journal(lambda: Path())),
        )
    return demo


@pytest.fixture(scope="module")
def info(blocks):
    return blocks.get_api_info()["named_endpoints"]


def upload(name="song.wav", seconds=4.0, rate=48_000):
    """Put an audio file into the upload cache and return what a client names it by."""
    path = Path(get_upload_folder(), "unit", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * rate)), rate)
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def values(mode="generate", **given):
    """Return the values of a call in the order of the endpoint; a required one that is not given is None."""
    full = {
        name: None if default is REQUIRED else default for name, default in CONTRACT[mode].items()
    }
    full |= {"brief": "rain"} if mode == "lyrics" else {"prompt": "calm piano"}
    full |= given
    return [full[name] for name in api.ENDPOINTS[mode].names]


def verdicts(mode="generate", **given):
    """Return what the validator of an endpoint says against each parameter."""
    found = api.validator_of(mode, Studio())(*values(mode, **given))
    return {
        name: one["message"]
        for name, one in zip(api.ENDPOINTS[mode].names, found, strict=True)
        if not one["is_valid"]
    }


@pytest.mark.parametrize("mode", CONTRACT)
def test_an_endpoint_is_that_of_the_contract_and_there_is_no_other(info, mode):
    assert set(info) == {*(f"/{mode}" for mode in CONTRACT), "/capabilities", "/run", "/cancel_run"}
    assert info["/capabilities"]["parameters"] == []
    offered = {
        one["parameter_name"]: one["parameter_default"]
        if one["parameter_has_default"]
        else REQUIRED
        for one in info[f"/{mode}"]["parameters"]
    }
    assert offered == CONTRACT[mode]
    # The defaults mean what the request means by them.
    given = {name: value for name, value in GIVEN.items() if name in CONTRACT[mode]}
    assert params.parse_request(mode, {**CONTRACT[mode], **given}) == params.parse_request(
        mode, given
    )
    returns = [("text", "Textbox")] if mode == "lyrics" else [("files", "File"), ("record", "Json")]
    assert [(one["label"], one["component"]) for one in info[f"/{mode}"]["returns"]] == returns


@pytest.mark.parametrize("mode", CONTRACT)
def test_an_mcp_tool_has_a_described_typed_schema(blocks, mode):
    server = GradioMCPServer(blocks)
    assert set(server.tool_to_endpoint) == {*CONTRACT, "capabilities", "run", "cancel_run"}
    about, described = server.get_fn_description(
        server.get_block_fn_from_endpoint_name(f"/{mode}"), mode
    )
    schema, files = server.get_input_schema(mode, described)
    properties = schema["properties"]
    assert about.startswith(api.ENDPOINTS[mode].description)
    assert set(schema["required"]) == {
        name for name, default in CONTRACT[mode].items() if default is REQUIRED
    }
    assert set(properties) == set(CONTRACT[mode])
    assert all(
        one["description"] and (one.get("type") or one["anyOf"]) for one in properties.values()
    )
    assert (properties["options"]["type"], properties["options"]["additionalProperties"]) == (
        "object",
        True,
    )
    assert mode == "lyrics" or {"type": "null"} in properties["bpm"]["anyOf"]
    assert {name for (name,) in files} == {"source", "reference"} & set(properties)


def test_the_text_about_options_names_those_of_the_mode_and_no_other():
    own = {
        mode: set(params.REQUESTS[mode].model_fields["options"].annotation.model_fields)
        for mode in CONTRACT
    }
    for mode, names in own.items():
        (about,) = (
            one.description for one in api.ENDPOINTS[mode].parameters if one.name == "options"
        )
        assert set(re.findall(r"\w+", about)) & set().union(*own.values()) == names


def test_each_wrong_value_gets_its_sentence_under_its_name(monkeypatch):
    assert verdicts() == verdicts("lyrics") == {}
    assert (
        verdicts(time_signature=4, key="Am", bpm=120, prompt="", lyrics="la la", options=None) == {}
    )
    said = verdicts(bpm=0, seed=-2, takes=float("nan"), duration=float("inf"), lyrics=["verse"])
    assert set(said) == {"bpm", "seed", "takes", "duration", "lyrics"}
    assert "from 30 to 300" in said["bpm"] and "must be text" in said["lyrics"]
    said = verdicts(options={"steps": 500, "wobble": 1})
    assert set(said) == {"options"}
    assert "options.steps: Steps must be a whole number from 1 to 200, not 500." in said["options"]
    assert "options.wobble" in said["options"]
    assert set(verdicts("lyrics", brief="", seed=1.5, options={"max_tokens": 0})) == {
        "brief",
        "seed",
        "options",
    }
    for name in ("x" * 100_000, "\ud800", "a\0b", "path"):
        (quoted,) = verdicts(options={name: 1}).values()
        assert len(quoted) < 500 and quoted.isprintable() and quoted.encode()
    # A problem with no parameter in particular is reported too.
    wrong = events.InvalidRequest(Problem("invalid", "This cannot be."))
    monkeypatch.setattr(api, "parse_request", lambda *_: (_ for _ in ()).throw(wrong))
    assert verdicts() == {"prompt": "This cannot be."}


def test_a_source_is_measured_before_anything_is_queued():
    song, text = upload(), upload("text.wav")
    Path(text["path"]).write_text("la la la")
    assert (
        verdicts("cover", source=song)
        == verdicts("edit", source=song, prompt="", start=1, end=4)
        == {}
    )
    assert "from 0 to 4 seconds" in verdicts("edit", source=song, start=1, end=4.1)["end"]
    assert "is missing" in verdicts("cover")["source"]
    assert set(verdicts("cover", source=text, reference=text)) == {"source", "reference"}


def test_a_region_may_reach_the_length_that_a_client_measured():
    # 100,006 samples at 44.1 kHz become 108,850 at 48 kHz, which is a little shorter.
    song = upload("odd.wav", seconds=100_006 / 44_100, rate=44_100)
    assert verdicts("edit", source=song, start=1, end=100_006 / 44_100) == {}
    assert set(verdicts("edit", source=song, start=0, end=100_006 / 44_100)) == {"end"}
    # 2.3 - 1.8 is a little less than 0.5 in floating point.
    assert verdicts("edit", source=upload(), start=1.8, end=2.3) == {}


def test_only_files_of_the_upload_cache_are_taken(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(api, "get_upload_folder", lambda: str(cache))
    inside, outside, link = cache / "a.wav", tmp_path / "b.wav", cache / "link.wav"
    inside.touch()
    outside.touch()
    link.symlink_to(outside)
    assert api.uploaded_path("reference", {"path": str(inside)}) == str(inside.resolve())
    paths = [
        str(link),
        str(cache),
        str(cache / ".." / "b.wav"),
        "a\0b",
        "a" * 100_000,
        "\ud800",
        None,
    ]
    for value in (str(inside), {}, *({"path": path} for path in paths)):
        with pytest.raises(events.InvalidRequest, match="Reference must be an uploaded audio file"):
            api.uploaded_path("reference", value)


class Studio:
    """Stands in for the backend: plays `events`, then waits to be closed if it is `endless`."""

    request, closed = None, False

    def __init__(self, *events, endless=False):
        self.events, self.endless = events, endless

    def stream(self, request):
        self.request = request
        try:
            yield from self.events
            while self.endless:
                time.sleep(0.01)
                yield self.events[-1]
        finally:
            self.closed = True


@pytest.fixture
def generate(tmp_path):
    """Return a function that calls an endpoint of a studio that plays `events`; returns the studio and the call."""

    def call(*events, mode="generate", endless=False, **given):
        studio = Studio(*events, endless=endless)
        journal = runs_journal.Journal(lambda: tmp_path)
        found = runs.Runs(studio.stream, lambda request: 1.0, journal)
        studio.runs = found
        return studio, api.handler_of(mode, found)(*values(mode, **given))

    return call


def heard(call):
    """Return all that a call says."""

    async def listen():
        return [answer async for answer in call]

    return result_of(listen())


def error_of(call):
    with pytest.raises(gr.Error) as caught:
        heard(call)
    assert not caught.value.print_exception
    return caught.value.title, caught.value.message


def test_progress_comes_first_and_the_song_last(generate):
    record = {"mode": "generate", "takes": []}
    studio, call = generate(Progress("steps", 3, 50, 1.5, 20.0), Done(("a.wav",), record))
    waiting, progress, last = heard(call)
    assert waiting[1]["progress"]["stage"] == "waiting"
    assert progress == (
        None,
        {
            "progress": {
                "stage": "steps",
                "step": 3,
                "steps": 50,
                "elapsed": 1.5,
                "left": 20.0,
                "note": "",
                "share": None,
                "outline": (),
            }
        },
    )
    assert last == (["a.wav"], record)
    assert studio.closed


def test_lyrics_come_as_they_are_written_or_are_an_error(generate):
    events = (
        Progress("loading"),
        Draft("[Verse", 1),
        Draft("[Verse]\nRain", 2),
        Done((), {"text": "[Verse]\nRain!"}),
    )
    studio, call = generate(*events, mode="lyrics", seed=3, options={"temperature": 0})
    first, *_, draft, last = heard(call)
    assert (first, draft, last) == ("", "[Verse]\nRain", "[Verse]\nRain!")
    assert (studio.request.mode, studio.request.seed, studio.request.options.temperature) == (
        "lyrics",
        3,
        0.0,
    )
    assert studio.closed
    _, call = generate(Failed(Problem("writer_off", "It is off.")), mode="lyrics")
    assert error_of(call) == ("writer_off", "It is off.")


def test_hanging_up_cancels_the_run(generate):
    studio, call = generate(Progress("steps", 1, 50), endless=True)

    async def hang_up():
        async for answer in call:
            if answer[1]["progress"]["stage"] == "steps":
                break
        await call.aclose()

    result_of(hang_up())
    until(lambda: studio.closed)


def test_a_call_that_waits_is_told_its_place_and_is_cancelled_as_a_running_one(generate):
    studio, first = generate(Progress("steps", 1, 50), endless=True)
    second = api.handler_of("generate", studio.runs)(*values())

    async def look():
        await anext(first)
        await anext(second)
        told = await anext(second)
        await second.aclose()
        left = studio.runs.counts()["waiting"]
        await first.aclose()
        return told, left

    told, left = result_of(look())
    assert told[1]["progress"]["note"] == "Next in the queue." and left == 0
    until(lambda: studio.closed)


@pytest.mark.parametrize("mode", ["generate", "lyrics"])
def test_a_detached_call_returns_the_id_at_once_and_the_run_goes_on(generate, mode):
    studio, call = generate(
        Progress("steps", 1, 50), endless=True, mode=mode, options={"detach": True}
    )
    (answer,) = heard(call)
    run = answer if mode == "lyrics" else answer[1]["run"]
    assert mode == "lyrics" or answer[0] is None
    ask, cancel = api_runs.handlers_of(studio.runs)
    assert ask(run)["state"] == "running" and not studio.closed
    until(lambda: ask(run)["progress"])
    assert "1 of 50" in ask(run)["sentence"]
    assert cancel(run) == {"run": run, "cancelled": True}
    until(lambda: ask(run)["state"] == "cancelled")
    assert cancel(run)["cancelled"] is False
    assert ask("another")["problem"]["code"] == "no_run"


def test_detach_is_true_or_false_and_no_other_option_is_lost(generate):
    assert verdicts(options={"detach": "yes"}) == {
        "options": 'options.detach: Detach must be true or false, not "yes".'
    }
    assert verdicts(options={"detach": True}) == {}
    _, call = generate(options={"detach": 1})
    assert error_of(call)[0] == "invalid"


def test_a_failure_is_an_error_with_code_message_and_hint(generate):
    _, call = generate(Failed(Problem("disk", "The <b>disk</b> is full.", hint="Free some space.")))
    assert error_of(call) == ("disk", "The &lt;b&gt;disk&lt;/b&gt; is full. Free some space.")
    # A value that slips past the validator starts nothing.
    studio, call = generate(bpm=0)
    code, text = error_of(call)
    assert code == "invalid" and "BPM must be" in text and studio.request is None
    studio, call = generate()
    studio.events = (1 / 0 for _ in range(1))
    code, text = error_of(call)
    assert code == "internal" and "unexpected error" in text


def test_calls_of_one_address_are_one_owner_and_a_space_believes_its_proxy(monkeypatch):
    def caller(host, **headers):
        scope = {
            "type": "http",
            "client": (host, 1),
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        }
        return gr.Request(Request(scope))

    forwarded = {"x-forwarded-for": "1.2.3.4, 5.6.7.8"}
    assert api_runs.owner_of(caller("10.0.0.1")) == api_runs.owner_of(
        caller("10.0.0.1", **forwarded)
    )
    assert api_runs.owner_of(caller("10.0.0.1")) != api_runs.owner_of(caller("10.0.0.2"))
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    assert api_runs.owner_of(caller("10.0.0.1", **forwarded)) == api_runs.owner_of(
        caller("10.0.0.2", **forwarded)
    )
    assert api_runs.owner_of(None)


def test_songs_that_wait_to_be_converted_hold_no_thread_of_the_server(monkeypatch):
    go_on = threading.Event()

    def slow(path: Path, kind: str, title: str) -> io.BytesIO:
        assert go_on.wait(100)
        return io.BytesIO(title.encode())

    monkeypatch.setattr(takes, "as_download", slow)

    async def ask_for_many() -> list[bytes]:
        query = {"type": "http", "query_string": b"format=mp3&title=a"}
        asked = [
            asyncio.create_task(api_runs._converted(Path("song.wav"), Request(query)))
            for _ in range(5)
        ]
        try:
            for _ in range(20):  # until each has begun
                await asyncio.sleep(0)
            assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        finally:
            go_on.set()
        return [bytes((await each).body) for each in asked]

    assert result_of(ask_for_many()) == [b"a"] * 5
