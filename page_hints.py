"""Hints before the click, none of which blocks it: token count, advice on lyrics, GPU seconds.

The model reads 256 tokens of the prompt, including instruction, BPM, key, metre and length, and
2,048 of the lyrics.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from tokenizers import Tokenizer

import bootstrap
import gpu_zero
import lyrics_lint
import lyrics_passage
import lyrics_pasted
import lyrics_tags
import lyrics_tidy
import prompt_facts
import song_conditions
import song_length
import theme
import tooltips
from backend import Backend
from events import InvalidRequest
from limits import KEPT_TEXT, MAX_TEXT_TOKENS, TEXT_LIMITS
from page_form import Form, html, lengths, number, only, valid
from params import upload_seconds
from plain_text import plain

# The fields that the rendered prompt depends on, where a tab has them.
BUDGET_FOLLOWS = (
    "prompt",
    "bpm",
    "key",
    "time_signature",
    "duration",
    "before",
    "after",
    "source",
    "action",
    "track",
    "tracks",
    "options.plan",
    "options.model",
    "lyrics",
    "instrumental",
)
# The fields that the advice on lyrics depends on besides the lyrics, where a tab has them.
ADVICE_FOLLOWS = (
    "instrumental",
    "language",
    "duration",
    "bpm",
    "time_signature",
    "before",
    "after",
    "source",
)
SOME_SECONDS = 60.0  # assumed until there is a source; only the digits of a length cost tokens
# Fields that do not affect the duration, and what stands in for them while they are empty.
STAND_INS = {"prompt": "a song", "brief": "a song", "source": "none yet"}

# The whole song, not a part of it such as a break.
_INSTRUMENTAL = re.compile(
    r"\binstrumental\b(?!\s+(?:break|bridge|intro|interlude|outro|part|passage|section|solo))",
    re.IGNORECASE,
)
LONG_PROMPT = 300  # characters
CHECKED = "true"  # the value of a hint that ticks a box


class Hint(NamedTuple):
    """A sentence about something that often goes wrong; its button puts `value` into `field`."""

    text: str
    button: str = ""
    field: str = ""
    value: str = ""


class TokenCounter:
    """Stands in for the pipeline in `song_conditions`, so that the page finds cut words without torch."""

    def __init__(self, file: Path):
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokenizer(self, text: str) -> Any:
        return SimpleNamespace(input_ids=self._tokenizer.encode(text).ids)

    def _format_prompt(
        self, prompt: str, lyrics: str = "", vocal_language: str = "en", **song: Any
    ) -> tuple[str, str]:
        """Return prompt and lyrics as the text encoder reads them.

        This is AceStepPipeline._format_prompt of diffusers 0.42.1.
        """
        text = (
            f"# Instruction\n{song.get('instruction')}\n\n"
            f"# Caption\n{prompt}\n\n"
            "# Metas\n"
            f"- bpm: {song.get('bpm') or 'N/A'}\n"
            f"- timesignature: {song.get('timesignature') or 'N/A'}\n"
            f"- keyscale: {song.get('keyscale') or 'N/A'}\n"
            f"- duration: {int(song.get('audio_duration', SOME_SECONDS))} seconds\n"
            "<|endoftext|>\n"
        )
        return text, f"# Languages\n{vocal_language}\n\n# Lyric\n{lyrics}<|endoftext|>"


def token_counter(studio: Backend, model: str = "") -> TokenCounter | None:
    """Return the counter of a song model, None if it has no readable tokenizer here."""
    folder = studio.models.find(model).folder
    if not folder:
        return None
    file = Path(folder, "tokenizer", "tokenizer.json")
    try:
        return _load(file, file.stat().st_mtime_ns)
    except Exception:  # the tokenizers package raises nothing more exact
        return None


@functools.lru_cache(maxsize=2)
def _load(file: Path, changed: int) -> TokenCounter:
    return TokenCounter(file)


def prompt_budget(counter: TokenCounter, mode: str, values: Mapping[str, Any]) -> tuple[int, str]:
    """Return the number of tokens of a tab's rendered prompt, and those of its words that the model does not read."""
    prompt = plain(values.get("prompt") or "")
    facts = only(values, ["key", "time_signature"])
    facts["bpm"] = number(values.get("bpm"), None)
    facts = {**prompt_facts.named(prompt), **valid("generate", facts)}
    words = {
        "prompt": prompt[: TEXT_LIMITS["prompt"]].strip(),
        "audio_duration": _sum(lengths(values).values()) or SOME_SECONDS,
        "instruction": _instruction(mode, values),
        "bpm": facts.get("bpm"),
        "keyscale": facts.get("key"),
        "timesignature": facts.get("time_signature"),
    }
    _, dropped = song_conditions.fit_prompt(counter, words)
    used, _ = song_conditions.count_tokens(counter, words)
    return used, dropped


def _sum(seconds: Iterable[float | None]) -> float | None:
    """Return the sum, None if one of them is unknown."""
    total = 0.0
    for each in seconds:
        if each is None:
            return None
        total += each
    return total


def _instruction(mode: str, values: Mapping[str, Any]) -> str:
    """Return the instruction that `modes` will give the model."""
    track = (values.get("track") or "").upper()
    tracks = " | ".join(values.get("tracks") or ()).upper()
    planned = values.get("options.plan")
    return {
        "generate": song_conditions.COVER if planned else song_conditions.TEXT2MUSIC,
        "cover": song_conditions.COVER,
        "extend": song_conditions.REPAINT,
        "repaint": song_conditions.REPAINT,
        "morph": song_conditions.TEXT2MUSIC,
        "layer": song_conditions.LAYER.format(track),
        "extract": song_conditions.EXTRACT.format(track),
        "complete": song_conditions.COMPLETE.format(tracks),
    }[values.get("action", mode)]


def contradictions(values: Mapping[str, Any]) -> list[Hint]:
    """Return up to two hints on a tempo or key in the prompt that differs from that in its field."""
    prompt = plain(values.get("prompt") or "")
    tempo = number(values.get("bpm"), None)
    key = values.get("key")
    found = []
    for tempo_named in prompt_facts.tempos(prompt):
        if isinstance(tempo, int) and not tempo_named.slowest <= tempo <= tempo_named.fastest:
            in_prompt = str(tempo_named.bpm)
            text = tooltips.BPM_DIFFERS.format(prompt=in_prompt, field=tempo)
            button = tooltips.USE_BPM.format(bpm=in_prompt)
            found.append(Hint(text, button, "bpm", in_prompt))
    for key_named in prompt_facts.keys(prompt):
        if key and key_named.value != key:
            text = tooltips.KEY_DIFFERS.format(prompt=key_named.value, field=key)
            shorter = _without(prompt, key_named.start, key_named.end)
            found.append(Hint(text, tooltips.REMOVE_KEY, "prompt", shorter))
    return found[:2]


def _without(prompt: str, start: int, end: int) -> str:
    """Return a prompt without its characters from `start` to `end`, and without a comma that is left over."""
    before = re.sub(r"(\s*,\s*|\s+in\s*|\s+)$", "", prompt[:start])
    after = re.sub(r"^\s*,?\s*", "", prompt[end:])
    return ", ".join(part for part in (before, after) if part)


def misunderstandings(values: Mapping[str, Any], kind: str) -> list[Hint]:
    """Return hints on what a checkpoint of this `kind` often misunderstands in a prompt."""
    prompt = values.get("prompt") or ""
    found = []
    sung = (values.get("lyrics") or "").strip() and not values.get("instrumental")
    if sung and _INSTRUMENTAL.search(prompt):
        found.append(
            Hint(tooltips.SAYS_INSTRUMENTAL, tooltips.MAKE_INSTRUMENTAL, "instrumental", CHECKED)
        )
    if kind == "sft" and len(prompt) > LONG_PROMPT:
        found.append(Hint(tooltips.LONG_PROMPT.format(count=len(prompt), most=LONG_PROMPT)))
    return found


def pasted(lyrics: str, field: str) -> list[Hint]:
    """Return hints on what was pasted into a field along with the `lyrics`, and how to remove it."""
    found = []
    if lyrics_pasted.has_times(lyrics):
        fixed = lyrics_pasted.without_times(lyrics)
        found.append(Hint(tooltips.HAS_TIMES, tooltips.REMOVE_TIMES, field, fixed))
    if lyrics_pasted.has_chords(lyrics):
        fixed = lyrics_pasted.without_chords(lyrics)
        found.append(Hint(tooltips.HAS_CHORDS, tooltips.REMOVE_CHORDS, field, fixed))
    if not found and lyrics_tidy.is_mendable(lyrics):
        fixed = lyrics_tidy.mended(lyrics)
        found.append(Hint(tooltips.FROM_A_WORD_PROCESSOR, tooltips.MEND, field, fixed))
    return found


def _shown(form: Form, hints: Sequence[Hint]) -> str:
    parts = []
    for hint in hints:
        field = form.element_id(hint.field) if hint.field in form.fields else ""
        parts.append(theme.hint(hint.text, hint.button, field, hint.value))
    return "".join(parts)


def add_budget(form: Form) -> None:
    """Add the line with the prompt's token count, and hints where it contradicts the fields."""

    def budget(values: dict[str, Any]) -> str:
        if not (values["prompt"] or "").strip():
            return ""
        model = values.get("options.model") or ""
        kind = form.studio.status().kind_of(model)
        hints = [*contradictions(values), *misunderstandings(values, kind)]
        remarks = _shown(form, hints)
        counter = token_counter(form.studio, model)
        if counter is None:
            return theme.remark(tooltips.TOKENS_UNKNOWN) + remarks
        used, dropped = prompt_budget(counter, form.mode, values)
        return theme.budget(used, dropped, MAX_TEXT_TOKENS) + remarks

    form.follow(html(elem_id=f"{form.mode}-tokens"), BUDGET_FOLLOWS, budget)


def add_advice(form: Form, box: str = "lyrics") -> None:
    """Add the line with advice on the lyrics in the field `box`."""
    is_source = box != "lyrics"

    def advice(values: dict[str, Any]) -> str:
        # A source sings its own lyrics, Instrumental or not.
        if values["instrumental"] and not is_source:
            return ""
        seconds = lengths(values)
        # The lyrics of an extension are those of its new part, the others those of the whole song.
        if "after" in seconds:
            del seconds["source"]
        lyrics = values[box] or ""
        found = _shown(form, pasted(lyrics, box))
        if lyrics.strip() and not is_source and form.studio.status().is_built_in:
            found = theme.remark(tooltips.DOES_NOT_SING) + found
        if form.mode == "generate":
            found += sung_length(lyrics, values["language"], values, seconds.get("duration"))
        return found + advise(form.studio, lyrics, values["language"], _sum(seconds.values()))

    name = form.element_id(box) if is_source else form.mode
    line = html(elem_id=f"{name}-advice", js_on_load=theme.script("advice"))
    form.follow(line, (box, *ADVICE_FOLLOWS), advice)


def advise(
    studio: Backend, lyrics: str | None, language: str | None, seconds: float | None = None
) -> str:
    """Return advice on lyrics that are sung within `seconds`, as HTML."""
    text = lyrics_tags.as_read((lyrics or "")[:KEPT_TEXT])[: TEXT_LIMITS["lyrics"]]
    language = language or "unknown"
    counter = token_counter(studio)
    tokens = None
    if counter:
        words = {"prompt": "", "lyrics": text, "vocal_language": language}
        _, tokens = song_conditions.count_tokens(counter, words)
    return theme.advice(lyrics_lint.lint(text, seconds=seconds, language=language, tokens=tokens))


def advise_for(
    studio: Backend, lyrics: str | None, language: str | None, song: Mapping[str, Any]
) -> str:
    """Return how long lyrics take beside what is set for a `song` (duration, bpm, time_signature), and advice, as HTML.

    What is set is a visitor's, and may be wrong or missing.
    """
    chosen = lengths({"duration": song.get("duration")}).get("duration")
    found = sung_length(lyrics or "", language, song, chosen)
    return found + advise(studio, lyrics, language, chosen)


def sung_length(
    lyrics: str, language: str | None, song: Mapping[str, Any], chosen: float | None
) -> str:
    """Return how long lyrics take in a song of `chosen` seconds, as HTML; "" without a sung line."""
    text = lyrics_tags.as_read(lyrics[:KEPT_TEXT])
    if not any(map(lyrics_passage.is_sung, text.split("\n"))):
        return ""
    facts = prompt_facts.named(plain(str(song.get("prompt") or "")))
    given = {"bpm": number(song.get("bpm"), None), "time_signature": song.get("time_signature")}
    facts |= {name: value for name, value in valid("generate", given).items() if value}
    sung = song_length.sung_length(
        text, facts.get("bpm"), facts.get("time_signature") or "", language or "unknown"
    )
    return theme.remark(tooltips.sung_length(sung.seconds, sung.least, sung.bpm, chosen))


def add_seconds(form: Form) -> None:
    """Add the line with the GPU seconds, which follows the fields on ZeroGPU; call it once all fields exist."""
    line = html(elem_id=f"{form.mode}-seconds")

    def seconds(values: dict[str, Any]) -> str:
        text = seconds_text(form, values.values())
        if text:
            return theme.remark(text)
        return ""

    if bootstrap.on_zerogpu():
        blank = {name: component.value for name, component in form.fields.items()}
        form.on_status(lambda status: {line: seconds(blank)})
        form.follow(line, form.fields, seconds)


def seconds_text(form: Form, values: Iterable[Any]) -> str:
    """Return the GPU seconds of a tab's values, or why they are too many; "" while a value is wrong."""
    held = dict(zip(form.fields, values, strict=True))
    source = held.get("source")
    for name, stand_in in STAND_INS.items():
        if name in held and not (held[name] or "").strip():
            held[name] = stand_in
    try:
        seconds = upload_seconds(source) if source else 0.0
        work = form.studio.work_of(form.request(held.values()), seconds)
    except InvalidRequest:
        return ""
    problem = gpu_zero.refusal(work)
    if problem:
        return problem.text()
    return tooltips.GPU_SECONDS.format(seconds=gpu_zero.gpu_seconds(work))
