"""The chat endpoint of ACE-Step's servers, in OpenRouter's form: a message in, a song as base64 out.

The body becomes a task of the official REST API, so that both read fields in the same way. Only the
user's last message counts, and only the first take is returned.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import APIRouter
from gradio.context import LocalContext
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

import api_official_results as results
import api_official_tasks as tasks
import served
from api_official import MEDIA, Official
from api_official_bodies import BUSY, json_object, new_upload, read_body
from api_official_docs import described_body
from events import StudioError
from runs import Run

MOST_BYTES = 96 * 1024**2  # a song in base64
DOT_SECONDS = 2.0  # between two dots, the words of a song that is being made
# A text of at least so many lines, which on average have fewer characters than this, counts as lyrics.
LYRIC_LINES = 4
LYRIC_CHARACTERS = 60
SECTION = re.compile(r"^\s*\[[^\]\n]{1,60}\]\s*$", re.MULTILINE)
PROMPT_TAG = re.compile(r"<prompt>(.*?)</prompt>", re.DOTALL | re.IGNORECASE)
LYRICS_TAG = re.compile(r"<lyrics>(.*?)</lyrics>", re.DOTALL | re.IGNORECASE)
# Field of audio_config -> field of a task.
CONFIG = {
    "duration": "audio_duration",
    "bpm": "bpm",
    "key_scale": "key_scale",
    "time_signature": "time_signature",
    "vocal_language": "vocal_language",
    "format": "audio_format",
}


@dataclass(frozen=True)
class Message:
    """The user's last message: its text, and its sounds, each as base64 with its format."""

    text: str
    sounds: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Started:
    run: Run
    model: str  # as the caller names it
    streams: bool


def add_routes(router: APIRouter, official: Official) -> None:
    body = described_body(
        messages="the user's last one counts: text, and input_audio",
        audio_config=", ".join((*CONFIG, "instrumental")),
        stream="true sends the answer in pieces",
        model="repeated in the answer; the studio has one model",
        and_more="any field of a task",
    )
    router.post("/v1/chat/completions", openapi_extra=body)(Chat(official).completions)


class Chat:
    def __init__(self, official: Official):
        self.official = official

    async def completions(self, request: Request) -> Response:
        """Make a song from a chat message, which may contain audio; stream true sends it in pieces."""
        self.official.check(request)
        try:
            started = await self._started(request)
        except StudioError as error:
            busy = error.problem.code in BUSY
            return _refusal(429 if busy else 400, error.problem.text())
        answer = ChatAnswer(self.official, started.run, started.model)
        if started.streams:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            stream = answer.pieces()
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
        try:
            return JSONResponse(await answer.whole())
        except StudioError as error:
            return _refusal(500, error.problem.text())

    async def _started(self, request: Request) -> Started:
        """Start the run of a message. What this returns does not hold the body, which may be large."""
        body = json_object(await read_body(request, MOST_BYTES))
        message = message_in(body)
        if not message.text.strip() and not message.sounds:
            raise HTTPException(400, "The last user message is empty.")
        LocalContext.request.set(gr.Request(request))
        owner = self.official.owner(request)
        run = await asyncio.to_thread(self._start, body, message, owner)
        return Started(run, str(body.get("model") or ""), body.get("stream") is True)

    def _start(self, body: Mapping[str, Any], message: Message, owner: str) -> Run:
        fields = fields_of(body, message.text)
        files: list[str] = []
        try:
            for sound in message.sounds[:2]:  # a source and a reference
                files.append(_file_of(*sound))
            uploads = tasks.TaskUploads(*files)
            if fields.get("task_type") in (None, "", "text2music"):
                uploads = tasks.TaskUploads(reference=uploads.source)
            return self.official.start_run(fields, uploads, owner)
        finally:
            served.discard(files)


def message_in(body: Mapping[str, Any]) -> Message:
    """Return the user's last message; raises HTTPException if there is none."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise HTTPException(400, "messages must be a list with a user message.")
    for message in reversed(messages):
        if isinstance(message, Mapping) and message.get("role") == "user":
            return _message(message.get("content"))
    raise HTTPException(400, "messages has no user message.")


def _message(content: Any) -> Message:
    if isinstance(content, str):
        return Message(content)
    if not isinstance(content, list):
        return Message("")
    texts = []
    sounds = []
    for part in content:
        if not isinstance(part, Mapping):
            continue
        sound = part.get("input_audio")
        if isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(sound, Mapping) and isinstance(sound.get("data"), str):
            sounds.append((sound["data"], str(sound.get("format", ""))))
    return Message("\n".join(texts), tuple(sounds))


def fields_of(body: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return the fields of a task for the body of a chat and the text of its message."""
    fields = {name: value for name, value in body.items() if name not in ("messages", "prompt")}
    config = body.get("audio_config")
    if not isinstance(config, Mapping):
        config = {}
    for theirs, ours in CONFIG.items():
        if config.get(theirs) is not None:
            fields[ours] = config[theirs]
    fields.setdefault("batch_size", 1)
    if body.get("seed") is not None:
        fields["use_random_seed"] = False
    if body.get("temperature") is not None:
        fields.setdefault("lm_temperature", body["temperature"])
    fields |= _words(body, text)
    if config.get("instrumental") is True:
        fields["lyrics"] = "[inst]"
    return fields


def _words(body: Mapping[str, Any], text: str) -> dict[str, Any]:
    prompt = PROMPT_TAG.search(text)
    lyrics = LYRICS_TAG.search(text)
    if prompt or lyrics:
        found = {"prompt": prompt[1].strip() if prompt else ""}
        if lyrics:
            found["lyrics"] = lyrics[1].strip()
        return found
    if body.get("sample_mode") is True:
        return {"sample_query": text}
    if isinstance(body.get("lyrics"), str) and body["lyrics"].strip():
        return {"prompt": text}
    if is_lyrics(text):
        return {"prompt": "", "lyrics": text}
    return {"prompt": text}


def is_lyrics(text: str) -> bool:
    """Return whether a text looks like lyrics: it has section tags, or several short lines."""
    if SECTION.search(text):
        return True
    lines = [line for line in text.splitlines() if line.strip()]
    characters = sum(len(line) for line in lines)
    return len(lines) >= LYRIC_LINES and characters < LYRIC_CHARACTERS * len(lines)


def _file_of(data: str, kind: str) -> str:
    """Write a sound of a message to a file and return its path; raises StudioError for bad base64."""
    _, comma, encoded = data.partition(",")
    try:
        sound = base64.b64decode(encoded if comma else data, validate=False)
    except (binascii.Error, ValueError):
        raise StudioError("bad_audio", "The audio of the message is not base64.") from None
    place = new_upload(f".{kind}", len(sound))
    place.write_bytes(sound)
    return str(place)


class ChatAnswer:
    """The answer of a chat about its run, whole or in pieces."""

    def __init__(self, official: Official, run: Run, model: str):
        self.official = official
        self.run = run
        self.model = model or f"acestep/{official.model_name()}"
        self.id = f"chatcmpl-{results.task_of(run.id)}"
        self.created = int(time.time())

    async def whole(self) -> dict[str, Any]:
        """Return the completion at the end of the run; raises StudioError if it failed."""
        await self.official.end_of(self.run)
        message = await asyncio.to_thread(self._message)
        tokens = len(message["content"].split())
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens},
        }

    async def pieces(self) -> AsyncIterator[str]:
        """Yield server-sent events: a heartbeat while the song is made, its words, its sound."""
        runs = self.official.runs
        try:
            yield self._piece({"role": "assistant", "content": ""})
            latest_piece_at = time.monotonic()
            async with aclosing(runs.follow(self.run, patience=DOT_SECONDS)) as news:
                async for _ in news:
                    if time.monotonic() - latest_piece_at >= DOT_SECONDS:
                        latest_piece_at = time.monotonic()
                        yield self._piece({"content": "."})
            if self.run.problem:
                yield self._piece({"content": f"\n\nError: {self.run.problem.text()}"})
                yield self._piece({}, "error")
            else:
                message = await asyncio.to_thread(self._message)
                yield self._piece({"content": f"\n\n{message['content']}"})
                yield self._piece({"audio": message["audio"]})
                yield self._piece({}, "stop")
            yield "data: [DONE]\n\n"
        finally:
            if not self.run.ended:
                runs.cancel(self.run.id)

    def _piece(self, delta: dict[str, Any], reason: str | None = None) -> str:
        chunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
        return f"data: {json.dumps(chunk)}\n\n"

    def _message(self) -> dict[str, Any]:
        runs = self.official.runs
        item = results.item_of(runs, results.task_of(self.run.id))
        entry = json.loads(item["result"])[0]
        message = {"role": "assistant", "content": content_of(entry), "audio_codes": None}
        if not entry.get("file"):  # an analysis
            return {**message, "audio": []}
        path = runs.take(self.run.id, 1)
        kind = MEDIA.get(path.suffix.lstrip("."), "audio/mpeg")
        sound = base64.b64encode(path.read_bytes()).decode()
        url = f"data:{kind};base64,{sound}"
        return {**message, "audio": [{"type": "audio_url", "audio_url": {"url": url}}]}


def content_of(entry: Mapping[str, Any]) -> str:
    """Return the text of a chat's answer: the details of a song, and its lyrics."""
    metas = entry["metas"]
    named = {
        "Caption": entry["prompt"],
        "BPM": metas["bpm"],
        "Duration": f"{metas['duration']} s",
        "Key": metas["keyscale"],
        "Time signature": metas["timesignature"],
    }
    lines = [f"**{name}:** {value}" for name, value in named.items()]
    return "\n".join(["## Metadata", *lines, "", "## Lyrics", entry["lyrics"]])


def _refusal(status: int, sentence: str) -> JSONResponse:
    error = {"message": sentence, "code": status}
    return JSONResponse({"detail": sentence, "error": error}, status)
