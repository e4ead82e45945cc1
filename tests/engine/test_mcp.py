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

import api
import app
import modes

RATE = 48_000
FAST = {"steps": 2}


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
def call(mcp_server):
    """Return a function that calls a tool and returns whether it failed and the texts of its answer."""

    def called(tool, progress=None, **arguments):
        async def go():
            async with connected(mcp_server) as session:
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


def test_the_tools_are_the_public_endpoints(mcp_server):
    async def go():
        async with connected(mcp_server) as session:
            return [tool.name for tool in (await session.list_tools()).tools]

    assert set(finished(go())) == {*api.ENDPOINTS, "capabilities"}


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
    (file,), record = song("generate", duration=10, bpm=None, key="Am", options={**FAST, "format": "flac"})
    assert len(fetched(file)) == 10 * RATE
    assert file["orig_name"] == record["takes"][0]["name"]
    assert record["request"]["key"] == "A minor"
    assert record["takes"][0]["seed"] == 7


def test_a_source_goes_in_as_a_data_uri_and_a_repaint_keeps_what_lies_outside(song):
    heard = []

    async def progress(done, total, message):
        heard.append(message)

    source = tune("WAV")
    (file,), record = song("edit", source=data_uri(source, "audio/wav"), start=1, end=2, progress=progress)
    old, _ = soundfile.read(io.BytesIO(source), always_2d=True)
    new = fetched(file)
    kept = RATE - round(0.05 * RATE)
    assert len(new) == len(old) == 3 * RATE
    assert np.array_equal(new[:kept], old[:kept])
    assert len(record["audio"]["source"]["sha256"]) == 64
    assert "Processing" in heard


def test_a_wrong_value_is_an_error_with_its_name_and_sentence(call):
    failed, (text,) = call("generate", prompt="calm piano", duration=5)
    assert failed
    assert "- duration: Length must be from 10 to 600 seconds, not 5." in text


def test_any_other_error_has_its_message_and_hint(call):
    torn = tune()
    failed, (text,) = call("cover", prompt="calm piano", source=data_uri(torn[: len(torn) // 2]), options=FAST)
    assert failed
    assert text.startswith("The source: The file is damaged")
    assert text.endswith("Export or download it again.")


def test_only_data_uris_are_taken_as_files(call):
    for source in ("/etc/hostname", "bGEgbGEgbGE=", "file:///etc/hosts"):
        failed, _ = call("cover", prompt="calm piano", source=source, options=FAST)
        assert failed
    failed, (text,) = call("cover", prompt="calm piano", source="https://example.com/song.wav", options=FAST)
    assert failed
    assert text.startswith("source: The studio does not fetch URLs.")


@pytest.mark.slow
def test_a_client_that_hangs_up_cancels_its_song_and_no_other(mcp_server, song, monkeypatch):
    song("generate", duration=10)
    begun, ended = [], []
    work = modes.run

    def watched(pipe, job, *args):
        begun.append(job.request.duration)
        yield from work(pipe, job, *args)
        ended.append(job.request.duration)

    monkeypatch.setattr(modes, "run", watched)

    async def go():
        async with connected(mcp_server) as patient:
            async with connected(mcp_server) as session:
                long = {"prompt": "calm piano", "duration": 20, "options": {"steps": 200}}
                left = asyncio.ensure_future(session.call_tool("generate", long))
                while not begun:
                    await asyncio.sleep(0.05)
                other = asyncio.ensure_future(patient.call_tool("generate", {**long, "duration": 10, "options": FAST}))
                assert not left.done()
            return await other

    assert not finished(go()).isError
    assert ended == [10]
