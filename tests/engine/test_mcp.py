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
import modes
from tests.engine.calls import FAST, RATE
from tests.waiting import until


def finished(coroutine):
    """Run a coroutine in a new thread: the browser's driver leaves a running loop in the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@asynccontextmanager
async def connected(server, **headers):
    address = f"{server}/gradio_api/mcp/"
    async with (
        httpx.AsyncClient(headers=headers, timeout=300) as web,
        streamable_http_client(address, http_client=web) as (read, write, *_),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield session


def call(server, tool, progress=None, headers=None, **arguments):
    """Call a tool; return whether it failed, and its texts."""

    async def go():
        async with connected(server, **(headers or {})) as session:
            return await session.call_tool(tool, arguments, progress_callback=progress)

    answer = finished(go())
    return answer.isError, [part.text for part in answer.content]


def song(server, tool, **arguments):
    """Make a song; return its files and its record."""
    failed, texts = call(
        server, tool, **{"prompt": "calm piano", "seed": 7, "options": FAST, **arguments}
    )
    assert not failed, texts
    # One text with both, or one each if the client asked for progress.
    found = [ast.literal_eval(text) for text in texts]
    return found[0] if len(found) == 1 else found


def tune(kind="FLAC"):
    file = io.BytesIO()
    soundfile.write(
        file, np.random.default_rng(1).standard_normal((3 * RATE, 2)) * 0.05, RATE, format=kind
    )
    return file.getvalue()


def data_uri(content, kind="audio/flac"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def fetched(file):
    """Return the samples behind the URL in an answer, float64 [n, 2]."""
    answer = httpx.get(file["url"], timeout=300)
    samples, rate = soundfile.read(io.BytesIO(answer.content), always_2d=True)
    assert rate == RATE
    return samples


def test_no_tools_are_served_by_default(server):
    assert httpx.post(f"{server}/gradio_api/mcp/", json={}, timeout=300).status_code in (404, 405)


def test_a_song_is_made_and_its_audio_fetched(mcp_server):
    async def tools():
        async with connected(mcp_server) as session:
            return [tool.name for tool in (await session.list_tools()).tools]

    assert set(finished(tools())) == {*api.ENDPOINTS, "capabilities", "run", "cancel_run"}
    options = {**FAST, "format": "flac", "best_of": 2, "score": ["noise", "silence"]}
    (file,), record = song(mcp_server, "generate", duration=10, bpm=None, key="Am", options=options)
    assert len(fetched(file)) == 10 * RATE
    assert file["orig_name"] == record["takes"][0]["name"]
    assert record["request"]["key"] == "A minor"
    # The better one of two songs.
    (take,) = record["takes"]
    (other,) = record["passed_over"]
    assert {take["seed"], other["seed"]} == {7, 8} and take["score"] >= other["score"]
    assert set(take["score_parts"]) == {"noise", "silence"}


def test_a_tool_wants_the_key(mcp_server, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_API_KEY", "secret")
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    message["params"] = {"name": "generate", "arguments": {"prompt": "x"}}
    kinds = {"accept": "application/json, text/event-stream"}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "wrong"}):
        refused = httpx.post(
            f"{mcp_server}/gradio_api/mcp/", json=message, headers=kinds | headers, timeout=300
        )
        assert refused.status_code == 401 and "detail" in refused.json()
    for key in ("Bearer secret", "secret"):
        for tool, arguments in (("run", {"run": "x"}), ("generate", {"prompt": "x", "bpm": 1})):
            _, (text,) = call(mcp_server, tool, headers={"authorization": key}, **arguments)
            assert "no_run" in text or "bpm" in text


def nodes(schema):
    """Yield each part of a schema that is an object."""
    if isinstance(schema, dict):
        yield schema
        for part in schema.values():
            yield from nodes(part)
    if isinstance(schema, list):
        for part in schema:
            yield from nodes(part)


def test_each_tool_has_a_schema_that_any_assistant_takes(mcp_server):
    async def tools():
        async with connected(mcp_server) as session:
            return {tool.name: tool.inputSchema for tool in (await session.list_tools()).tools}

    schemas = finished(tools())
    files = {
        f"{tool}.{name}"
        for tool, schema in schemas.items()
        for name in api.UPLOADS
        if name in schema["properties"]
    }
    assert files == {
        *("generate.reference", "cover.source", "cover.reference"),
        *("extend.source", "edit.source"),
    }
    for place in files:
        tool, name = place.split(".")
        described = schemas[tool]["properties"][name]
        assert described.keys() <= {"type", "description"} and described["type"] == "string", place
        assert "data:audio/...;base64,..." in described["description"]
        assert "http" not in str(described)
    for tool, schema in schemas.items():
        for node in nodes(schema):
            if isinstance(node.get("required"), list):
                assert node["type"] == "object", tool
                assert set(node["required"]) <= node["properties"].keys(), tool
            assert not str(node.get("format", "")).startswith("Gradio"), tool


def test_a_song_is_started_and_asked_for_by_an_assistant(mcp_server):
    given = {"prompt": "calm piano", "duration": 10, "seed": 7}
    _, started = song(mcp_server, "generate", **given, options={**FAST, "detach": True})
    run = started["run"]
    facts = {}

    def ended():
        failed, (text,) = call(mcp_server, "run", run=run)
        facts.update(ast.literal_eval(text))
        return not failed and facts["state"] not in ("waiting", "running")

    until(ended)
    assert facts["state"] == "finished" and facts["record"]["seeds"] == [7]
    (take,) = facts["takes"]
    assert len(fetched({"url": f"{mcp_server}{take}"})) == 10 * RATE
    _, (text,) = call(mcp_server, "cancel_run", run=run)
    assert ast.literal_eval(text) == {"run": run, "cancelled": False}


def test_a_source_goes_in_as_a_data_uri_and_a_repaint_keeps_the_rest(mcp_server):
    heard = []

    async def progress(done, total, message):
        heard.append(message)

    source = tune("WAV")
    given = {"source": data_uri(source, "audio/wav"), "start": 1, "end": 2}
    (file,), record = song(mcp_server, "edit", **given, progress=progress)
    old, _ = soundfile.read(io.BytesIO(source), always_2d=True)
    new = fetched(file)
    kept = RATE - round(0.05 * RATE)
    assert len(new) == len(old) == 3 * RATE
    assert np.array_equal(new[:kept], old[:kept])
    assert len(record["audio"]["source"]["sha256"]) == 64
    assert "Processing" in heard


def test_an_error_is_a_text(mcp_server):
    for source, words, more in (
        (data_uri(tune()), "- strength: ", {"strength": 5}),
        (data_uri(tune()[:20_000]), "- source: The file is damaged", {}),
        *((source, "", {}) for source in ("/etc/hostname", "bGEgbGEgbGE=", "file:///etc/hosts")),
        ("https://example.com/song.wav", "source: The studio does not fetch URLs.", {}),
    ):
        failed, (text,) = call(
            mcp_server, "cover", prompt="calm piano", options=FAST, source=source, **more
        )
        assert failed and words in text, (source[:40], text)


@pytest.mark.slow
def test_a_client_that_hangs_up_cancels_its_song_and_no_other(mcp_server, monkeypatch):
    song(mcp_server, "generate", duration=10)
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
                other = asyncio.ensure_future(
                    patient.call_tool("generate", {**long, "duration": 10, "options": FAST})
                )
                assert not left.done()
            return await other

    assert not finished(go()).isError
    assert ended == [10]
