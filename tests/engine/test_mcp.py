"""The tools for assistants, through the official MCP client over HTTP."""

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
from tests.engine.calls import FAST, RATE


def finished(coroutine):
    """Run a coroutine in a new thread: the browser's driver leaves a running loop in the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@asynccontextmanager
async def connected(server):
    address = f"{server}/gradio_api/mcp/"
    async with streamable_http_client(address) as (read, write, *_), ClientSession(read, write) as session:
        await session.initialize()
        yield session


@pytest.fixture(scope="module")
def call(mcp_server):
    """Return a function that calls a tool and returns whether it failed, and its texts."""

    def called(tool, progress=None, **arguments):
        async def go():
            async with connected(mcp_server) as session:
                return await session.call_tool(tool, arguments, progress_callback=progress)

        answer = finished(go())
        return answer.isError, [part.text for part in answer.content]

    return called


@pytest.fixture(scope="module")
def song(call):
    """Return a function that makes a song and returns its files and its record."""

    def made(tool, **arguments):
        failed, texts = call(tool, **{"prompt": "calm piano", "seed": 7, "options": FAST, **arguments})
        assert not failed, texts
        # One text with both, or one each if the client asked for progress.
        found = [ast.literal_eval(text) for text in texts]
        return found[0] if len(found) == 1 else found

    return made


def tune(kind="FLAC", seconds=3):
    file = io.BytesIO()
    noise = np.random.default_rng(1).standard_normal((seconds * RATE, 2)) * 0.05
    soundfile.write(file, noise, RATE, format=kind)
    return file.getvalue()


def data_uri(content, kind="audio/flac"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def fetched(file):
    """Return the samples behind the URL in an answer, float64 [n, 2]."""
    answer = httpx.get(file["url"])
    assert answer.status_code == 200
    samples, rate = soundfile.read(io.BytesIO(answer.content), always_2d=True)
    assert rate == RATE
    return samples


def test_the_tools_are_the_public_endpoints(mcp_server):
    async def go():
        async with connected(mcp_server) as session:
            return [tool.name for tool in (await session.list_tools()).tools]

    assert set(finished(go())) == {*api.ENDPOINTS, "capabilities"}


def test_no_tools_are_served_by_default(monkeypatch):
    monkeypatch.delenv("GRADIO_MCP_SERVER", raising=False)
    demo = app.build_app()
    url = app.launch(demo)
    try:
        assert httpx.post(f"{url}gradio_api/mcp/", json={}).status_code in (404, 405)
    finally:
        demo.close()


def test_a_song_is_made_and_its_audio_fetched(song):
    (file,), record = song("generate", duration=10, bpm=None, key="Am", options={**FAST, "format": "flac"})
    assert len(fetched(file)) == 10 * RATE
    assert file["orig_name"] == record["takes"][0]["name"]
    assert record["request"]["key"] == "A minor"
    assert record["takes"][0]["seed"] == 7


def test_a_source_goes_in_as_a_data_uri_and_a_repaint_keeps_the_rest(song):
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


WRONG = {
    "a wrong value": ({"source": data_uri(tune()), "strength": 5}, "- strength: "),
    "a damaged file": ({"source": data_uri(tune()[:20_000])}, "The source: The file is damaged"),
    "a path": ({"source": "/etc/hostname"}, ""),
    "bare base64": ({"source": "bGEgbGEgbGE="}, ""),
    "a file's address": ({"source": "file:///etc/hosts"}, ""),
    "an address": ({"source": "https://example.com/song.wav"}, "source: The studio does not fetch URLs."),
}


@pytest.mark.parametrize(("given", "words"), WRONG.values(), ids=WRONG)
def test_an_error_is_a_text(call, given, words):
    failed, (text,) = call("cover", prompt="calm piano", options=FAST, **given)
    assert failed and words in text


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
