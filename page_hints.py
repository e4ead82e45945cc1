"""Hints before the click, which block nothing: the prompt's token count, advice on lyrics, GPU seconds on ZeroGPU.

The model reads 256 tokens of the prompt, including instruction, BPM, key, metre and length, and 2,048 of the lyrics.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from tokenizers import Tokenizer

import bootstrap
import gpu_zero
import lyrics_lint
import song_conditions
import theme
import tooltips
from backend import get_backend
from events import InvalidRequest
from limits import MAX_TEXT_TOKENS, TEXT_LIMITS
from page_form import Form, html, lengths, number, valid
from params import upload_seconds

BUDGET_FOLLOWS = (  # the fields that the rendered prompt depends on, where a tab has them
    *("prompt", "bpm", "key", "time_signature", "duration", "before", "after", "source"),
    *("action", "track", "tracks", "options.plan"),
)
SOME_SECONDS = 60.0  # stands in until there is a source; a length counts by its digits alone


class TokenCounter:
    """Stands in for the pipeline in `song_conditions`: the page finds the words that get cut, without loading torch."""

    def __init__(self, file: Path):
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokenizer(self, text: str) -> Any:
        return SimpleNamespace(input_ids=self._tokenizer.encode(text).ids)

    def _format_prompt(self, prompt: str, lyrics: str = "", vocal_language: str = "en", **song: Any) -> tuple[str, str]:
        """Return prompt and lyrics as the text encoder reads them (diffusers 0.42.1, AceStepPipeline)."""
        metas = "".join(f"- {name}: {song.get(name) or 'N/A'}\n" for name in ("bpm", "timesignature", "keyscale"))
        metas += f"- duration: {int(song.get('audio_duration', SOME_SECONDS))} seconds\n"
        text = f"# Instruction\n{song.get('instruction')}\n\n# Caption\n{prompt}\n\n# Metas\n{metas}<|endoftext|>\n"
        return text, f"# Languages\n{vocal_language}\n\n# Lyric\n{lyrics}<|endoftext|>"


def token_counter() -> TokenCounter | None:
    """Return the counter of the checkpoint in use, None if its tokenizer is missing or unreadable."""
    folder = get_backend().models.weights.folder
    file = Path(folder or "", "tokenizer", "tokenizer.json")
    try:
        return _load(file, file.stat().st_mtime_ns) if folder else None
    except Exception:  # the tokenizers package raises nothing more exact
        return None


@functools.lru_cache(maxsize=2)
def _load(file: Path, changed: int) -> TokenCounter:
    return TokenCounter(file)


def prompt_budget(counter: TokenCounter, mode: str, there: Mapping[str, Any]) -> tuple[int, str]:
    """Return the tokens of the rendered prompt of a tab's values, and the words of the prompt that are not read."""
    prompt, seconds = there.get("prompt") or "", lengths(there).values()
    facts = {name: there.get(name) for name in ("key", "time_signature")} | {"bpm": number(there.get("bpm"), None)}
    facts = valid("generate", facts)
    words = {
        "prompt": prompt[: TEXT_LIMITS["prompt"]].strip(),
        "audio_duration": SOME_SECONDS if None in seconds else sum(seconds) or SOME_SECONDS,
        "instruction": _instruction(mode, there),
        **{"bpm": facts.get("bpm"), "keyscale": facts.get("key"), "timesignature": facts.get("time_signature")},
    }
    _, dropped = song_conditions.fit_prompt(counter, words)
    return song_conditions.count_tokens(counter, words)[0], dropped


def _instruction(mode: str, there: Mapping[str, Any]) -> str:
    """Return the model's instruction, as `modes` does."""
    track, tracks = there.get("track") or "", there.get("tracks") or ()
    return {
        "generate": song_conditions.COVER if there.get("options.plan") else song_conditions.TEXT2MUSIC,
        "cover": song_conditions.COVER,
        "extend": song_conditions.REPAINT,
        "repaint": song_conditions.REPAINT,
        "morph": song_conditions.TEXT2MUSIC,
        "layer": song_conditions.LAYER.format(track.upper()),
        "extract": song_conditions.EXTRACT.format(track.upper()),
        "complete": song_conditions.COMPLETE.format(" | ".join(track.upper() for track in tracks)),
    }[there.get("action", mode)]


def add_budget(form: Form) -> None:
    def say(there: dict[str, Any]) -> str:
        if not (there["prompt"] or "").strip():
            return ""
        if counter := token_counter():
            return theme.budget(*prompt_budget(counter, form.mode, there), MAX_TEXT_TOKENS)
        return theme.remark(tooltips.TOKENS_UNKNOWN)

    form.follow(html(elem_id=f"{form.mode}-tokens"), BUDGET_FOLLOWS, say)


# Fields that do not affect the duration, and what stands in for them while they are empty.
STAND_INS = {"prompt": "a song", "brief": "a song", "source": "none yet"}


def seconds_text(form: Form, values: Any) -> str:
    """Return the GPU seconds of a tab's values, or why they are too many; "" while a value is wrong."""
    read = dict(zip(form.fields, values, strict=True))
    source = read.get("source")
    read |= {name: text for name, text in STAND_INS.items() if name in read and not (read[name] or "").strip()}
    try:
        work = get_backend().work_of(form.request(read.values()), upload_seconds(source) if source else 0.0)
    except InvalidRequest:
        return ""
    problem = gpu_zero.refusal(work)
    return problem.text() if problem else tooltips.GPU_SECONDS.format(seconds=gpu_zero.gpu_seconds(work))


def seconds_line(form: Form) -> gr.HTML:
    """Make the line with the GPU seconds, not rendered yet; on ZeroGPU it follows the fields, which all exist."""
    line = html(elem_id=f"{form.mode}-seconds", render=False)

    def say(there: dict[str, Any]) -> str:
        text = seconds_text(form, there.values())
        return theme.remark(text) if text else ""

    if bootstrap.on_zerogpu():
        blank = {name: field.value for name, field in form.fields.items()}
        form.watchers.append(lambda status: {line: say(blank)})
        form.follow(line, form.fields, say)
    return line


ADVICE_FOLLOWS = ("instrumental", "language", "duration", "before", "after", "source")  # where a tab has them


def add_advice(form: Form, box: str = "lyrics") -> None:
    def say(there: dict[str, Any]) -> str:
        # A source sings its own lyrics, Instrumental or not.
        if box == "lyrics" and there["instrumental"]:
            return ""
        seconds = lengths(there)
        # The lyrics of an extension are those of its new part, the others those of the whole song.
        if "after" in seconds:
            del seconds["source"]
        sung = None if None in seconds.values() else sum(seconds.values())
        return advise(there[box], there["language"], sung)

    name = form.mode if box == "lyrics" else form.identify(box)
    line = html(elem_id=f"{name}-advice", js_on_load=theme.script("advice"))
    form.follow(line, (box, *ADVICE_FOLLOWS), say)


def advise(lyrics: str | None, language: str | None, seconds: float | None = None) -> str:
    """Return the advice on lyrics as HTML; `seconds` are those that they are sung in."""
    text, language = (lyrics or "")[: TEXT_LIMITS["lyrics"]], language or "unknown"
    words, counter = {"prompt": "", "lyrics": text, "vocal_language": language}, token_counter()
    tokens = song_conditions.count_tokens(counter, words)[1] if counter else None
    return theme.advice(lyrics_lint.lint(text, seconds=seconds, language=language, tokens=tokens))
