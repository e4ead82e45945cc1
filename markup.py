"""The few pieces of HTML that the page shows. Every text goes through `html.escape` here, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import tooltips
from params import Progress


def progress(event: Progress, note: str = "") -> str:
    """Return the line of a running job: where it is, a bar, and what the run had to say so far."""
    share = min(100 * event.step // event.steps, 100) if event.steps else 0
    bar = f'<div class="bar"><div style="width:{share}%"></div></div>' if event.steps else ""
    said = f"<span>{escape(note)}</span>" if note else ""
    return line("running", tooltips.progress_sentence(event), bar + said)


def line(state: str, sentence: str, more: str = "") -> str:
    """Return a progress line; `state` is running, done, failed or stopped, and the script asks for it on leaving."""
    return f'<div class="shown progress-line" data-state="{state}"><span>{escape(sentence)}</span>{more}</div>'


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


def take(number: int, facts: Mapping[str, Any]) -> str:
    """Return a take's heading, its seed to copy, its measured facts and its warnings."""
    seed = int(facts["seed"])
    warnings = "".join(f'<p class="warning">{escape(warning)}</p>' for warning in facts["warnings"])
    return (
        f'<div class="shown take-head"><h3>{escape(tooltips.take_title(number))}</h3>'
        f'<button type="button" class="copy" data-copy="{seed}" data-copied="{escape(tooltips.COPIED)}">'
        f"{escape(tooltips.COPY_SEED.format(seed=seed))}</button></div>"
        f'<p class="facts">{_spans(tooltips.take_facts(dict(facts)))}</p>{warnings}'
    )


def messages(record: Mapping[str, Any]) -> str:
    """Return a run's failed takes and notes as a list, or nothing."""
    failed = [tooltips.TAKE_FAILED.format(**error) for error in record["errors"]]
    items = "".join(f"<li>{escape(text)}</li>" for text in [*failed, *record["notes"]])
    return f'<ul class="shown notes" role="status">{items}</ul>' if items else ""


def notice(title: str, message: str, hint: str = "") -> str:
    """Return a message that is read out at once: a title, what happened, what to try."""
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in (message, hint) if text)
    return f'<div class="shown notice" role="alert">{f"<h3>{escape(title)}</h3>" if title else ""}{paragraphs}</div>'


def _spans(texts: list[str]) -> str:
    return "".join(f"<span>{escape(text)}</span>" for text in texts)
