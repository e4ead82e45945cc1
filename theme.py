"""How the studio looks: warm stone neutrals with one jade accent, as a Gradio theme, style sheets and pieces of HTML.

The colours are in static/theme.toml, for Gradio's theme and the style sheets. The fonts are Gradio's own, so that no
page asks another machine for one. Every text that goes into HTML is escaped here, wherever it comes from.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils import fonts
from gradio.themes.utils.colors import Color
from gradio.themes.utils.sizes import Size

import tooltips
from events import Progress
from limits import LANGUAGES, TIME_SIGNATURES
from lyrics_lint import Advice
from status import Status

STATIC = Path(__file__).with_name("static")
# In the head of the page; the first one makes the object that the others add to.
SCRIPTS = (
    *("studio", "folds", "changes", "faces", "progress", "advice", "loras", "player", "takes", "examples"),
    *("latest", "listen", "zoom", "beats"),
)

LOOK = tomllib.loads((STATIC / "theme.toml").read_text(encoding="utf-8"))
# Players draw on a canvas, which ignores the theme: these two stand out from either surface.
WAVEFORM = gr.WaveformOptions(waveform_color="#857C73", waveform_progress_color="#2E9485", skip_length=5)


def theme() -> gr.themes.Base:
    accent = Color(*LOOK["palettes"]["jade"].split(), name="jade")
    made = gr.themes.Base(
        primary_hue=accent,
        secondary_hue=accent,
        neutral_hue=Color(*LOOK["palettes"]["stone"].split(), name="stone"),
        spacing_size=Size("2px", "4px", "4px", "8px", "8px", "12px", "16px", name="studio_spacing"),
        radius_size=Size("2px", "4px", "8px", "8px", "12px", "12px", "16px", name="studio_radius"),
        text_size=Size("12px", "13px", "14px", "16px", "17px", "22px", "28px", name="studio_text"),
        # Not 600: Gradio's semibold files lack most letters.
        font=(fonts.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(fonts.LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace"),
    )
    made.name = "ace-music-studio"
    # Not through set(), which does not know the dark twin of some variables. Attributes become CSS variables.
    for value, names in LOOK["values"].items():
        for name in names.split():
            setattr(made, name, value)
    for token, names in LOOK["variables"].items():
        light, dark = LOOK["tokens"][token]
        for name in names.split():
            setattr(made, name, light)
            setattr(made, f"{name}_dark", dark)
    return made


def static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def script(name: str) -> str:
    """Return the JavaScript that starts one of the head's scripts for a component."""
    return f"studio.{name}(element, props, trigger, watch)"


def css() -> str:
    sides = [";".join(f"--studio-{name}:{pair[side]}" for name, pair in LOOK["tokens"].items()) for side in (0, 1)]
    rules = "\n".join(static(name) for name in ("studio.css", "faces.css", "takes.css", "latest.css"))
    return f":root{{{sides[0]}}}\n:root.dark,:root .dark{{{sides[1]}}}\n{rules}"


def head() -> str:
    """Return the scripts, inlined to be there before the first click, and the styles that Gradio must leave alone."""
    scripts = "\n".join(static(f"{name}.js") for name in SCRIPTS)
    styles = "\n".join(static(f"{name}.css") for name in ("player", "motion"))
    return f"<script>\n{scripts}\n</script>\n<style>\n{styles}</style>"


def section(title: str) -> str:
    return f"<h2>{escape(title)}</h2>"


def caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>'


def remark(text: str) -> str:
    return f'<p class="shown remark">{escape(text)}</p>'


def said(text: str) -> str:
    """Return an answer to what the visitor did; a screen reader speaks it when it is free."""
    return f'<p class="shown said" role="status">{escape(text)}</p>'


def notice(title: str, message: str, hint: str = "") -> str:
    """Return a message with title and hint; a screen reader speaks it at once."""
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in (message, hint) if text)
    return f'<div class="shown notice" role="alert">{f"<h3>{escape(title)}</h3>" if title else ""}{paragraphs}</div>'


def wrong_fields(message: str, at_fields: Mapping[str, str]) -> str:
    """Return the message at the button, and for static/studio.js what is wrong, by element id.

    The time makes no two alike, so that the page takes each one for news.
    """
    told = escape(json.dumps(at_fields))
    return f'{notice("", message)}<div hidden class="telling" data-told="{told}" data-at="{time.monotonic_ns()}"></div>'


def progress(event: Progress, note: str = "") -> str:
    share = min(100 * event.step // event.steps, 100) if event.steps else 0
    bar = f'<div class="bar"><div style="width:{share}%"></div></div>' if event.steps else ""
    said = f"<span>{escape(note)}</span>" if note else ""
    heard = f"{event.stage} {share // 25} {note}"
    return line("running", tooltips.progress_sentence(event), bar + said, heard, event.elapsed)


def line(state: str, sentence: str, more: str = "", heard: str = "", elapsed: float | None = None) -> str:
    """Return a progress line; `state` is running, done, failed or stopped. While running, leaving the page asks first.

    A screen reader speaks the sentence when `heard` changes: for a job its stage, the quarter it has reached, and its
    note. The `elapsed` seconds in the sentence tick on the page.
    """
    marks = f'data-state="{state}" data-heard="{escape(heard or sentence)}"'
    text = escape(sentence)
    if elapsed is not None:
        time = tooltips.clock(elapsed)
        text = text.replace(f"{time} so far", f'<span data-elapsed="{elapsed:.1f}">{time}</span> so far')
    return f'<div class="shown progress-line" {marks}><span>{text}</span>{more}</div>'


def budget(used: int, dropped: str, most: int) -> str:
    text = tooltips.TOKENS.format(used=used, most=most)
    if not dropped:
        return remark(text)
    unread = tooltips.UNREAD.format(dropped=dropped)
    return f'<p class="shown remark over">{escape(f"{text} {unread}")}</p>'


def keys(go: str, cancel: str) -> str:
    first, then = (f"<kbd>{escape(key)}</kbd>" for key in (tooltips.KEY_GO, tooltips.KEY_CANCEL))
    return f'<p class="shown remark keys"><span>{first} {escape(go)}</span><span>{then} {escape(cancel)}</span></p>'


def also(defaults: Mapping[str, tuple[str, Any]]) -> str:
    """Return the line that names the fields not at their default; `defaults` has label and value by name."""
    known = escape(json.dumps(defaults))
    return f'<p class="remark also" data-text="{escape(tooltips.ALSO)}" data-defaults="{known}"></p>'


def heading(status: Status | None = None) -> str:
    """Return the page's only h1 beside engine and device, which unfold into all that `status` says."""
    title = f"<h1>{escape(tooltips.TITLE)}</h1>"
    if status is None:
        return f'<div class="heading">{title}<p>{escape(tooltips.STATUS_PENDING)}</p></div>'
    summary = f"<summary><span>{escape(tooltips.status_line(status))}</span></summary>"
    return f'<div class="heading">{title}<details>{summary}{_list(tooltips.status_parts(status))}</details></div>'


def banner(status: Status) -> str:
    """Return why the real model is not in use: one line, cut if too long, that unfolds into the rest."""
    texts = []
    title = tooltips.PROBLEM_TITLE
    if status.is_preview:
        title = tooltips.PREVIEW_TITLE
        texts.append(tooltips.PREVIEW_TEXT)
    if status.problem:
        texts.append(status.problem.text())
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in texts[1:])
    line = f"<span><strong>{escape(title)}:</strong> <span>{escape(''.join(texts[:1]))}</span></span>"
    return f'<details class="shown"><summary>{line}</summary>{paragraphs}</details>'


def faces() -> str:
    buttons = "".join(
        f'<button type="button" data-face="{face}" aria-pressed="false">{escape(name)}</button>'
        for face, name in tooltips.FACES.items()
    )
    return f'<div class="faces" role="group" aria-label="{escape(tooltips.FACES_LABEL)}">{buttons}</div>'


def lengths() -> str:
    """Return the buttons that set the length; the last one, hidden at first, is for any other length."""
    chip = '<button type="button" data-seconds="{}" aria-pressed="{}"{}>{}</button>'
    chips = [chip.format(seconds, "false", "", escape(name)) for seconds, name in tooltips.LENGTHS.items()]
    other = chip.format("", "true", ' class="other" hidden', "")
    label = escape(tooltips.LENGTH)
    return f'<div class="lengths" role="group" aria-label="{label}"><p>{label}</p>{"".join(chips)}{other}</div>'


def songs(text: str, cards: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Return the caption of examples that play, with the songs in `folder` for static/examples.js."""
    played = {}
    for name, card in cards.items():
        files = {"path": str(folder / card["sound"]), "art": str(folder / card["picture"])}
        played[name] = {**card, **files, "id": f"example {name}"}
    data = escape(json.dumps({"cards": played, "where": tooltips.EXAMPLE_SONG}, ensure_ascii=False))
    return f'<div data-songs="{data}">{caption(text)}</div>'


def advice(found: Sequence[Advice]) -> str:
    texts = [tooltips.AT_LINE.format(**vars(each)) if each.line else each.message for each in found]
    if len(texts) <= 2:  # longer advice is folded
        return _list(texts, ' class="shown advice"')
    title = escape(tooltips.REMARKS.format(count=len(texts)))
    return f'<details class="shown advice"><summary>{title}</summary>{_list(texts)}</details>'


def plan(facts: Mapping[str, Any]) -> str:
    if not facts["used"]:
        return remark(tooltips.UNPLANNED.format(reason=facts["reason"]))
    metre = TIME_SIGNATURES.get(facts["time_signature"], facts["time_signature"])
    language = LANGUAGES.get(facts["language"], facts["language"]) if facts["language"] != "unknown" else ""
    parts = [tooltips.PLANNED, *tooltips.song_facts(facts["bpm"], facts["key"], metre, language)]
    spans = "".join(f"<span>{escape(text)}</span>" for text in parts)
    rewritten = tooltips.REWRITTEN.format(caption=facts["caption"]) if facts["rewritten"] else ""
    return f'<p class="shown facts">{spans}</p>{f"<p class=remark>{escape(rewritten)}</p>" if rewritten else ""}'


def actions(tasks: Mapping[str, str]) -> str:
    """Return what each action of the Edit tab does; the style sheet shows the paragraph of the chosen one.

    The choices of experimental actions are shown while the fold, which is empty itself, is open.
    """
    experiments = [action for action in tooltips.ACTION_HELP if tasks.get(action) == "experimental"]
    warning = f" <span class=warning>{escape(tooltips.EXPERIMENTAL_HELP)}</span>"
    paragraphs = "".join(
        f'<p class="{action}-only">{escape(text)}{warning if action in experiments else ""}</p>'
        for action, text in tooltips.ACTION_HELP.items()
    )
    summary = f"<summary>{escape(tooltips.MORE_ACTIONS)}</summary>"
    fold = f'<details class="more {" ".join(experiments)}">{summary}</details>' if experiments else ""
    return f'<div class="shown">{fold}{paragraphs}</div>'


def messages(record: Mapping[str, Any]) -> str:
    """Return a run's failed takes, the effect of its LoRAs, and its notes as a list."""
    failed = [tooltips.TAKE_FAILED.format(**error) for error in record["errors"]]
    loras = [tooltips.lora_acted(lora) for lora in record.get("loras", [])]
    return _list([*failed, *loras, *record["notes"]], ' class="shown notes" role="status"')


def _list(texts: Sequence[str], attributes: str = "") -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul{attributes}>{items}</ul>" if items else ""
