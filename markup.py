"""The few pieces of HTML that the page shows. Every text goes through `html.escape` here, whoever wrote it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import tooltips
from events import Progress
from limits import LANGUAGES, TIME_SIGNATURES
from lint import Advice

# What the line of a running job has, and no other.
RUNNING = 'data-state="running"'
# Of the linter's advice; what is longer folds.
MOST_UNFOLDED = 2


def progress(event: Progress, note: str = "") -> str:
    """Return the line of a running job: where it is, a bar, and what the run had to say so far."""
    share = min(100 * event.step // event.steps, 100) if event.steps else 0
    bar = f'<div class="bar"><div style="width:{share}%"></div></div>' if event.steps else ""
    said = f"<span>{escape(note)}</span>" if note else ""
    return line("running", tooltips.progress_sentence(event), bar + said, f"{event.stage} {share // 25} {note}")


def line(state: str, sentence: str, more: str = "", heard: str = "") -> str:
    """Return a progress line; `state` is running, done, failed or stopped, and the script asks for it on leaving.

    The sentence is read out where `heard` differs from the line before, for which a running job has its stage, the
    quarter of it that is done, and the note.
    """
    marks = f'data-state="{state}" data-heard="{escape(heard or sentence)}"'
    return f'<div class="shown progress-line" {marks}><span>{escape(sentence)}</span>{more}</div>'


def heading() -> str:
    """Return the page's one h1 and the line that says what this is."""
    return f'<h1>{escape(tooltips.TITLE)}</h1><p class="tagline">{escape(tooltips.TAGLINE)}</p>'


def pending() -> str:
    """Return the status line before anything is known."""
    return f'<p class="status">{_spans([tooltips.STATUS_PENDING])}</p>'


def section(title: str) -> str:
    """Return the heading of a part of the page."""
    return f"<h2>{escape(title)}</h2>"


def caption(text: str) -> str:
    """Return the small heading of a group of buttons."""
    return f'<p class="caption">{escape(text)}</p>'


def said(text: str) -> str:
    """Return a sentence that answers what a visitor did, and is read out when there is time."""
    return f'<p class="shown said" role="status">{escape(text)}</p>'


def budget(used: int, dropped: str, most: int) -> str:
    """Return how many tokens the prompt takes of those that are read, and the words that are not."""
    if not dropped and used <= most:
        return remark(tooltips.TOKENS.format(used=used, most=most))
    return f'<p class="shown remark over">{escape(tooltips.tokens_over(used, most, dropped))}</p>'


def keys(go: str, cancel: str) -> str:
    """Return which keys press a tab's two buttons."""
    first, then = (f"<kbd>{escape(key)}</kbd>" for key in (tooltips.KEY_GO, tooltips.KEY_CANCEL))
    return f'<p class="shown remark keys"><span>{first} {escape(go)}</span><span>{then} {escape(cancel)}</span></p>'


def remark(text: str) -> str:
    """Return a sentence of help that stands by itself."""
    return f'<p class="shown remark">{escape(text)}</p>'


def advice(found: Sequence[Advice]) -> str:
    """Return the linter's advice as a list, folded where it is long; nothing where there is none."""
    items = "".join(f"<li>{escape(tooltips.advice(each.line, each.message))}</li>" for each in found)
    if len(found) <= MOST_UNFOLDED:
        return f'<ul class="shown advice">{items}</ul>' if found else ""
    title = escape(tooltips.remarks(len(found)))
    return f'<details class="shown advice"><summary>{title}</summary><ul>{items}</ul></details>'


def plan(facts: Mapping[str, Any]) -> str:
    """Return what the record says about the plan of a song: what was planned, or why nothing was."""
    if not facts["used"]:
        return f'<p class="shown remark">{escape(tooltips.UNPLANNED.format(reason=facts["reason"]))}</p>'
    metre = TIME_SIGNATURES.get(facts["time_signature"], facts["time_signature"])
    language = LANGUAGES.get(facts["language"], facts["language"]) if facts["language"] != "unknown" else ""
    parts = [tooltips.PLANNED, *tooltips.plan_facts(facts["bpm"], facts["key"], metre, language)]
    caption = tooltips.REWRITTEN.format(caption=facts["caption"]) if facts["rewritten"] else ""
    rewritten = f'<p class="remark">{escape(caption)}</p>' if caption else ""
    return f'<p class="shown facts">{_spans(parts)}</p>{rewritten}'


def actions(tasks: Mapping[str, str]) -> str:
    """Return what each action of the Edit tab does; the style sheet shows the paragraph of the chosen one."""
    paragraphs = []
    for action, text in tooltips.ACTION_HELP.items():
        warning = tooltips.EXPERIMENTAL_HELP if tasks.get(action) == "experimental" else ""
        paragraphs.append(
            f'<p class="{action}-only">{escape(text)}'
            f"{f' <span class=warning>{escape(warning)}</span>' if warning else ''}</p>"
        )
    return f'<div class="shown">{"".join(paragraphs)}</div>'


def empty(text: str) -> str:
    """Return what stands where there is nothing yet."""
    return f'<p class="empty">{escape(text)}</p>'


def status(facts: Mapping[str, Any]) -> str:
    """Return the status line for what the backend says about itself."""
    return f'<p class="status">{_spans(tooltips.status_parts(dict(facts)))}</p>'


def banner(facts: Mapping[str, Any]) -> str:
    """Return why the real model is not in use: what the preview engine is, what is wrong, how to get the weights."""
    problem = facts["problem"]
    preview = facts["engine"] == "preview"
    texts = [tooltips.PREVIEW_TEXT.format(gb=facts["download_gb"])] if preview else []
    if problem:
        texts.append(f"{problem['message']} {problem['hint']}".strip())
    title = tooltips.PREVIEW_TITLE if preview else tooltips.PROBLEM_TITLE
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in texts[1:])
    return f"<p class='shown'><strong>{escape(title)}:</strong> {escape(''.join(texts[:1]))}</p>{paragraphs}"


def take(number: int, facts: Mapping[str, Any], made_with: Sequence[str] = (), several: bool = False) -> str:
    """Return a take's heading, its seed to copy, its facts and its warnings; one of `several` has a button to compare.

    The script that plays takes reads the loudness from here.
    """
    seed, title, loudness = int(facts["seed"]), tooltips.take_title(number), facts.get("loudness_lufs")
    level = "" if loudness is None else f' data-lufs="{float(loudness)}"'
    listen = f'<button type="button" class="listen" aria-pressed="false">{escape(tooltips.LISTEN)}</button>'
    warnings = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in facts["warnings"])
    return (
        f'<div class="shown take-head"{level}><h3>{escape(title)}</h3>{listen if several else ""}'
        f'<button type="button" class="copy" data-copy="{seed}" data-copied="{escape(tooltips.COPIED)}">'
        f"{escape(tooltips.COPY_SEED.format(seed=seed))}</button></div>"
        f'<p class="facts">{_spans([*tooltips.take_facts(dict(facts)), *made_with])}</p>{warnings}'
    )


def timed(number: int, lines: Sequence[Mapping[str, Any]], score: float) -> str:
    """Return a take's lyrics, a button a line that plays from there; the script marks the line that is sung."""
    items = "".join(
        f'<li><button type="button" data-start="{float(line["start"])}" data-end="{float(line["end"])}">'
        f"<span>{escape(tooltips.clock(line['start']))}</span> {escape(line['text'])}</button></li>"
        for line in lines
    )
    title = escape(tooltips.TIMED_TITLE.format(number=number))
    return f'<ol class="shown timed" aria-label="{title}">{items}</ol>{remark(tooltips.alignment(score))}'


def messages(record: Mapping[str, Any]) -> str:
    """Return a run's failed takes, the LoRAs that acted, and its notes as a list, or nothing."""
    failed = [tooltips.TAKE_FAILED.format(**error) for error in record["errors"]]
    loras = [tooltips.lora_acted(lora) for lora in record.get("loras", [])]
    items = "".join(f"<li>{escape(text)}</li>" for text in [*failed, *loras, *record["notes"]])
    return f'<ul class="shown notes" role="status">{items}</ul>' if items else ""


def notice(title: str, message: str, hint: str = "") -> str:
    """Return a message that is read out at once: a title, what happened, what to try."""
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in (message, hint) if text)
    return f'<div class="shown notice" role="alert">{f"<h3>{escape(title)}</h3>" if title else ""}{paragraphs}</div>'


def wrong_fields(message: str, at_fields: Mapping[str, str]) -> str:
    """Return the message at a button that started nothing, with what is wrong by element id for static/studio.js.

    No two are equal, so that the page takes each one for news.
    """
    told = escape(json.dumps(at_fields))
    return f'{notice("", message)}<div hidden class="telling" data-told="{told}" data-at="{time.monotonic_ns()}"></div>'


def _spans(texts: list[str]) -> str:
    return "".join(f"<span>{escape(text)}</span>" for text in texts)
