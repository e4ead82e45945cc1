"""The tools for assistants, called with the official MCP client over HTTP: listed, called, their audio fetched."""

import ast
import asyncio
import base64
import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
import soundfile
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

import app
import backend
import endpoints

RATE = 48_000
FAST = {"steps": 2}
TOOLS = {"generate", "cover", "extend", "edit", "lyrics", "capabilities"}


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_MCP_SERVER", "true")
        patch.setenv("ACE_STUDIO_LYRICS", "preview")
        backend.get_backend().refresh()
        demo = app.build_app()
        url = app.launch(demo)
        yield url.rstrip("/")
        demo.close()
    backend.get_backend().refresh()


def finished(coroutine):
    """Run a coroutine to its end in a thread of its own: the browser's driver leaves a running loop in the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@asynccontextmanager
async def connected(server):
    """Open a session as an assistant does."""
    address = f"{server}/gradio_api/mcp/"
    async with streamable_http_client(address) as (read, write, *_), ClientSession(read, write) as session:
        await session.initialize()
        yield session


@pytest.fixture(scope="module")
def call(server):
    """Return a function that calls a tool and returns whether it failed and the texts of its answer."""

    def called(tool, progress=None, **arguments):
        async def go():
            async with connected(server) as session:
                return await session.call_tool(tool, arguments, progress_callback=progress)

        answer = finished(go())
        return answer.isError, [part.text for part in answer.content]

    return called


@pytest.fixture(scope="module")
def song(call):
    """Return a function that calls a song's tool and returns its files and its record."""

    def made(tool, **arguments):
        failed, texts = call(tool, **{"prompt": "calm piano", "seed": 7, "options": FAST, **arguments})
        assert not failed, texts
        # One text with both, or one for each where the client asked for progress.
        found = [ast.literal_eval(text) for text in texts]
        return found[0] if len(found) == 1 else found

    return made


def tune(kind="FLAC", seconds=3):
    """Return a file of noise as bytes."""
    file = io.BytesIO()
    noise = np.random.default_rng(1).standard_normal((seconds * RATE, 2)) * 0.05
    soundfile.write(file, noise, RATE, format=kind)
    return file.getvalue()


def data_uri(content, kind="audio/flac"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def fetched(file):
    """Fetch the audio behind the URL in an answer; float64 [n, 2]."""
    answer = httpx.get(file["url"])
    assert answer.status_code == 200
    samples, rate = soundfile.read(io.BytesIO(answer.content), always_2d=True)
    assert rate == RATE
    return samples


# --- what is offered ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tools(server):
    async def go():
        async with connected(server) as session:
            return {tool.name: tool for tool in (await session.list_tools()).tools}

    return finished(go())


def test_the_tools_are_the_public_endpoints(tools):
    assert set(tools) == TOOLS
    for name, endpoint in endpoints.ENDPOINTS.items():
        assert tools[name].description.startswith(endpoint.about)


@pytest.mark.parametrize("name", sorted(TOOLS - {"capabilities"}))
def test_a_schema_names_describes_and_types_every_parameter(tools, name):
    schema = tools[name].inputSchema
    assert tuple(schema["properties"]) == endpoints.ENDPOINTS[name].names
    for parameter in endpoints.ENDPOINTS[name].parameters:
        found = schema["properties"][parameter.name]
        assert found["description"] == parameter.about
        assert found.get("type") or found["anyOf"]
    required = [
        parameter.name for parameter in endpoints.ENDPOINTS[name].parameters if parameter.default is endpoints.REQUIRED
    ]
    assert schema.get("required", []) == required
    assert name == "lyrics" or {"type": "null"} in schema["properties"]["bpm"]["anyOf"]


def test_nothing_is_served_unless_it_is_asked_for(monkeypatch):
    monkeypatch.delenv("GRADIO_MCP_SERVER", raising=False)
    demo = app.build_app()
    url = app.launch(demo)
    try:
        assert httpx.post(f"{url}gradio_api/mcp/", json={}).status_code in (404, 405)
    finally:
        demo.close()


# --- calls --------------------------------------------------------------------------------------------------------


def test_a_song_is_made_and_its_audio_fetched(song):
    files, record = song("generate", duration=10, bpm=None, key="Am", options={**FAST, "format": "flac"})
    (file,) = files
    assert len(fetched(file)) == 10 * RATE
    assert file["orig_name"] == record["takes"][0]["name"]
    assert record["request"]["key"] == "A minor"
    assert record["takes"][0]["seed"] == 7


def test_a_source_goes_in_as_a_data_uri(song):
    heard = []

    async def progress(done, total, message):
        heard.append(message)

    (file,), record = song("cover", source=data_uri(tune()), progress=progress)
    assert len(fetched(file)) == 3 * RATE
    assert len(record["audio"]["source"]["sha256"]) == 64
    assert "Processing" in heard


@pytest.mark.slow
def test_a_repaint_keeps_what_lies_outside(song):
    source = tune("WAV")
    (file,), _ = song("edit", source=data_uri(source, "audio/wav"), start=1, end=2)
    old, _ = soundfile.read(io.BytesIO(source), always_2d=True)
    new = fetched(file)
    crossfade = round(0.05 * RATE)
    assert len(new) == len(old)
    assert np.array_equal(new[: RATE - crossfade], old[: RATE - crossfade])


@pytest.mark.slow
def test_lyrics_are_written(call):
    failed, texts = call("lyrics", brief="a ferry in the morning fog", seed=1, options={"max_tokens": 20})
    assert not failed, texts
    assert "".join(texts).strip()


def test_capabilities_answer_without_a_song(call):
    failed, (text,) = call("capabilities")
    assert not failed
    assert ast.literal_eval(text)["engine"] == "preview"


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("generate", {"duration": 5}, "- duration: Length must be from 10 to 600 seconds, not 5."),
        ("generate", {"options": {"wobble": 1}}, "options.wobble"),
        ("cover", {"source": "data:audio/wav;base64,bGEgbGEgbGE="}, "- source: "),
    ],
)
def test_a_wrong_value_is_an_error_with_its_name_and_sentence(call, tool, arguments, sentence):
    failed, (text,) = call(tool, **{"prompt": "calm piano", **arguments})
    assert failed
    assert sentence in text


@pytest.mark.slow
def test_any_other_error_has_its_message_and_hint(call):
    torn = tune()
    failed, (text,) = call("cover", prompt="calm piano", source=data_uri(torn[: len(torn) // 2]), options=FAST)
    assert failed
    assert text.startswith("The source: The file is damaged")
    assert text.endswith("Export or download it again.")


@pytest.mark.parametrize(
    "source", ["/etc/hostname", "bGEgbGEgbGE=", "http://127.0.0.1:1/song.wav", "file:///etc/hostname"]
)
def test_only_data_uris_and_web_addresses_are_taken_as_files(call, source):
    failed, (text,) = call("cover", prompt="calm piano", source=source, options=FAST)
    assert failed
    assert "root:" not in text


def test_what_is_over_4_mib_is_refused_as_the_document_says(server):
    answer = httpx.post(
        f"{server}/gradio_api/mcp/",
        content=b'{"jsonrpc": "2.0", "id": 1, "method": "' + b"x" * (4 << 20) + b'"}',
        headers={"Accept": "application/json, text/event-stream", "Content-Type": "application/json"},
    )
    assert answer.status_code == 413


@pytest.mark.slow
def test_a_client_that_hangs_up_leaves_the_studio_to_finish_and_go_on(server, song):
    song("generate", duration=10)
    long = {"prompt": "calm piano", "duration": 60, "options": {"steps": 60}}

    async def go():
        async with connected(server) as session:
            call = asyncio.ensure_future(session.call_tool("generate", long))
            while not backend.get_backend().turn.locked():
                await asyncio.sleep(0.05)
            call.cancel()

    finished(go())
    # Gradio's own client waits for the song on the assistant's behalf, so it is made to its end.
    assert backend.get_backend().turn.locked()
    assert song("generate", duration=10)[0]
