"""What is told before a click: the tokens that the words take, advice on the lyrics, the GPU seconds on ZeroGPU.

The model reads 256 tokens of the prompt, in which its instruction, BPM, key, metre and length count, and 2,048 of the
lyrics. `TokenCounter` stands in for the pipeline in the functions of `conditions` that cut the prompt, so that the page
names exactly what the song leaves out; neither torch nor transformers is loaded for it. Advice blocks nothing. Only on
ZeroGPU is there a line of seconds; the numbers are zerogpu.py's.
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
import conditions
import lint
import theme
import tooltips
import zerogpu
from backend import get_backend
from events import InvalidRequest
from limits import MAX_TEXT_TOKENS, TEXT_LIMITS, parse_key
from page_form import Form, html, lengths, number
from params import Request, upload_seconds

# --- the tokens that the words take -----------------------------------------------------------------------------------

# What the rendered prompt depends on, where a tab has it.
BUDGET_FOLLOWS = (
    *("prompt", "bpm", "key", "time_signature", "duration", "before", "after", "source"),
    *("action", "track", "tracks", "options.plan"),
)
# Stands in until there is a source; a length counts by its digits alone.
SOME_SECONDS = 60.0


class TokenCounter:
    """Counts tokens as the pipeline whose `tokenizer.json` is read; has the parts of it that `conditions` asks for."""

    def __init__(self, file: Path):
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokenizer(self, text: str) -> Any:
        return SimpleNamespace(input_ids=self._tokenizer.encode(text).ids)

    def _format_prompt(
        self,
        prompt: str,
        lyrics: str = "",
        vocal_language: str = "en",
        audio_duration: float = 60.0,
        instruction: str = conditions.TEXT2MUSIC,
        bpm: int | None = None,
        keyscale: str = "",
        timesignature: str = "",
    ) -> tuple[str, str]:
        """Return prompt and lyrics as the text encoder reads them (diffusers 0.42.1, AceStepPipeline)."""
        metas = (
            f"- bpm: {bpm or 'N/A'}\n- timesignature: {timesignature or 'N/A'}\n- keyscale: {keyscale or 'N/A'}\n"
            f"- duration: {int(audio_duration)} seconds\n"
        )
        text = f"# Instruction\n{instruction}\n\n# Caption\n{prompt}\n\n# Metas\n{metas}<|endoftext|>\n"
        return text, f"# Languages\n{vocal_language}\n\n# Lyric\n{lyrics}<|endoftext|>"


def token_counter() -> TokenCounter | None:
    """Return the counter of the checkpoint in use, None before its tokenizer is here or where it cannot be read."""
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
    """Return the tokens of the rendered prompt of a tab's values `there`, and what of the prompt is not read."""
    words = conditions.Words(
        prompt=(there.get("prompt") or "")[: TEXT_LIMITS["prompt"]].strip(),
        lyrics="",
        language="en",
        seconds=_seconds(there),
        instruction=_instruction(mode, there),
        bpm=_checked(lambda: int(number(there.get("bpm"), None) or 0)) or None,
        key=_checked(lambda: parse_key(there.get("key"))) or "",
        time_signature=there.get("time_signature") or "",
    )
    _, dropped = conditions.fit_prompt(counter, words)
    return conditions.prompt_tokens(counter, words, words.prompt), dropped


def lyric_tokens(lyrics: str, language: str) -> int | None:
    """Return the tokens of the rendered lyrics, None before there is a tokenizer."""
    counter = token_counter()
    if counter is None:
        return None
    words = conditions.Words("", lyrics[: TEXT_LIMITS["lyrics"]], language, SOME_SECONDS, "")
    return conditions.lyric_tokens(counter, words)


def _instruction(mode: str, there: Mapping[str, Any]) -> str:
    """Return what the model is told to do, as `modes` does."""
    action = there.get("action", mode)
    tracks = there.get("tracks") or ()
    by_action = {
        "generate": conditions.COVER if there.get("options.plan") else conditions.TEXT2MUSIC,
        "cover": conditions.COVER,
        "extend": conditions.REPAINT,
        "repaint": conditions.REPAINT,
        "morph": conditions.TEXT2MUSIC,
        "layer": conditions.LAYER.format((there.get("track") or "").upper()),
        "extract": conditions.EXTRACT.format((there.get("track") or "").upper()),
        "complete": conditions.COMPLETE.format(" | ".join(track.upper() for track in tracks)),
    }
    return by_action[action]


def _seconds(there: Mapping[str, Any]) -> float:
    found = lengths(there).values()
    return SOME_SECONDS if None in found else sum(found) or SOME_SECONDS


def _checked(read: Any) -> Any:
    """Return what `read` finds, None where a field holds what it may not: validation says so elsewhere."""
    try:
        found = read()
        int(found) if isinstance(found, float) else None  # not for nan and inf
        return found
    except (ValueError, OverflowError, TypeError, InvalidRequest):
        return None


def budget_line(form: Form) -> gr.HTML:
    return html(elem_id=f"{form.mode}-tokens")


def connect_budget(form: Form, line: gr.HTML) -> None:
    """Keep the budget up to date with all that the rendered prompt holds."""

    def say(there: dict[str, Any]) -> str:
        if not (there["prompt"] or "").strip():
            return ""
        counter = token_counter()
        if counter is None:
            return theme.remark(tooltips.TOKENS_UNKNOWN.format(most=MAX_TEXT_TOKENS))
        return theme.budget(*prompt_budget(counter, form.mode, there), MAX_TEXT_TOKENS)

    form.follow(line, BUDGET_FOLLOWS, say)


# --- GPU seconds ------------------------------------------------------------------------------------------------------

# Fields without a say in how long it takes, of which some may still be empty: any words do, and any file.
WORDS = {"prompt": "a song", "brief": "a song"}
NO_FILE = "none yet"


def seconds_text(form: Form, values: Any) -> str:
    """Return what the line says for a tab's values: the seconds, or why there are too many; "" while one is wrong."""
    read = dict(zip(form.fields, values, strict=True))
    read |= {name: text for name, text in WORDS.items() if name in read and not (read[name] or "").strip()}
    if "source" in read and not read["source"]:
        read["source"] = NO_FILE
    try:
        request = form.request(read.values())
        work = get_backend().work_of(request, _source_seconds(request))
    except InvalidRequest:
        return ""
    problem = zerogpu.refusal(work)
    return problem.text() if problem else tooltips.GPU_SECONDS.format(seconds=zerogpu.gpu_seconds(work))


def connect_seconds(form: Form, line: gr.HTML) -> None:
    """Keep the line up to date with the form, on ZeroGPU."""
    if not bootstrap.on_zerogpu():
        return

    def say(there: dict[str, Any]) -> str:
        text = seconds_text(form, there.values())
        return theme.remark(text) if text else ""

    blank = {name: field.value for name, field in form.fields.items()}
    form.watchers.append(lambda facts: {line: say(blank)})
    form.follow(line, form.fields, say)


def _source_seconds(request: Request) -> float:
    source = getattr(request, "source", "")
    return upload_seconds(source) if source and source != NO_FILE else 0.0


# --- advice on lyrics -------------------------------------------------------------------------------------------------

# What the advice on a box of lyrics depends on, where a tab has it; a source sings its own, Instrumental or not.
ADVICE_FOLLOWS = {
    "lyrics": ("instrumental", "language", "duration", "before", "after", "source"),
    "source_lyrics": ("language", "source"),
}


def advice_line(name: str) -> gr.HTML:
    """Make the place for advice; `name` begins its element id."""
    return html(elem_id=f"{name}-advice", js_on_load=theme.script("advice"))


def advise(lyrics: str | None, language: str | None, seconds: float | None = None, tokens: int | None = None) -> str:
    """Return the advice on lyrics as HTML; what is longer than lyrics may be is looked at up to there."""
    text = (lyrics or "")[: TEXT_LIMITS["lyrics"]]
    return theme.advice(lint.lint(text, seconds=seconds, language=language or "unknown", tokens=tokens))


def connect_advice(form: Form, line: gr.HTML, box: str = "lyrics") -> None:
    """Keep the advice on the lyrics in a song tab's `box` up to date; lyrics that are switched off get none."""

    def say(there: dict[str, Any]) -> str:
        if there.get("instrumental"):
            return ""
        counted = lyric_tokens(there[box] or "", there["language"])
        return advise(there[box], there["language"], sung_seconds(there), counted)

    form.follow(line, (box, *ADVICE_FOLLOWS[box]), say)


def sung_seconds(there: dict[str, Any]) -> float | None:
    """Return the seconds that a tab's lyrics are sung in, None where they are not known (yet).

    The lyrics of an extension are those of its new part, the others those of the whole song.
    """
    found = lengths(there)
    source = found.pop("source", None)
    if not found:
        return source
    return None if None in found.values() else sum(found.values())
