"""How the studio looks: warm stone neutrals with one jade accent, as a Gradio theme and a few rules of our own.

Every colour stands once, in `TOKENS`; theme variables and the style sheet take them from there. Fonts come with Gradio,
so that no page asks another machine for one. Every text passes through `html.escape` here, whoever wrote it.
"""

from __future__ import annotations

import json
import time
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
from limits import FORMATS, LANGUAGES, TIME_SIGNATURES
from lint import Advice

STATIC = Path(__file__).with_name("static")
# Those in the page's head; the first one makes the object that the others add to.
SCRIPTS = (
    *("studio", "folds", "changes", "faces", "progress", "advice", "loras", "player", "takes", "examples"),
    *("latest", "listen", "zoom", "beats"),
)

# name: (light, dark)
TOKENS = {
    "bg": ("#FAF8F5", "#131211"),
    "surface": ("#FFFFFF", "#1C1A18"),
    "raised": ("#F3EFEA", "#26231F"),
    "ink": ("#1C1917", "#F4F1ED"),
    "ink-2": ("#453F39", "#C9C2BA"),
    "muted": ("#665E57", "#A8A097"),
    "line": ("#DED7CF", "#3A3630"),
    "line-strong": ("#857C73", "#7C746B"),
    "accent": ("#0B6B5D", "#5CC8B4"),
    "accent-hover": ("#095A4E", "#7BD8C7"),
    "on-accent": ("#FFFFFF", "#06211C"),
    "danger": ("#B42318", "#FF8F80"),
    "warn": ("#8A5A00", "#F2C14E"),
    "ok": ("#12703F", "#7FD69B"),
    "focus": ("#0B6B5D", "#9BE7D8"),
}

# Theme variables by the token that colours them, in light and dark.
COLOURS = {
    "bg": "body_background_fill background_fill_secondary",
    "surface": """
        background_fill_primary block_background_fill block_label_background_fill panel_background_fill
        table_even_background_fill error_background_fill
    """,
    "raised": """
        input_background_fill input_background_fill_focus input_background_fill_hover
        checkbox_background_color checkbox_background_color_focus checkbox_background_color_hover
        checkbox_label_background_fill checkbox_label_background_fill_hover
        checkbox_label_background_fill_selected button_secondary_background_fill
        button_cancel_background_fill code_background_fill color_accent_soft table_odd_background_fill
        table_row_focus
    """,
    "ink": """
        body_text_color accordion_text_color table_text_color button_secondary_text_color
        button_secondary_text_color_hover checkbox_label_text_color checkbox_label_text_color_selected
    """,
    "ink-2": "block_title_text_color block_label_text_color",
    # neutral_400 is the players' buttons and times, neutral_200 the sliders' tracks.
    "muted": "body_text_color_subdued block_info_text_color input_placeholder_color neutral_400",
    "line": """
        neutral_200 border_color_primary block_border_color block_label_border_color panel_border_color
        table_border_color button_secondary_background_fill_hover button_cancel_background_fill_hover
    """,
    "line-strong": """
        input_border_color input_border_color_hover checkbox_border_color checkbox_border_color_hover
        checkbox_label_border_color checkbox_label_border_color_hover button_secondary_border_color
        button_secondary_border_color_hover
    """,
    "accent": """
        color_accent border_color_accent border_color_accent_subdued link_text_color link_text_color_active
        link_text_color_visited loader_color slider_color stat_background_fill
        checkbox_background_color_selected checkbox_border_color_selected
        checkbox_label_border_color_selected button_primary_background_fill button_primary_border_color
    """,
    "accent-hover": "link_text_color_hover button_primary_background_fill_hover button_primary_border_color_hover",
    "on-accent": "button_primary_text_color button_primary_text_color_hover",
    "danger": """
        error_border_color error_icon_color error_text_color button_cancel_border_color
        button_cancel_border_color_hover button_cancel_text_color button_cancel_text_color_hover
    """,
    "focus": "input_border_color_focus checkbox_border_color_focus",
}


def _scale(name: str, colours: str) -> Color:
    return Color(*colours.split(), name=name)


STONE = _scale("stone", "#FAF8F5 #F3EFEA #DED7CF #C9C2BA #A8A097 #857C73 #665E57 #453F39 #26231F #1C1A18 #131211")
JADE = _scale("jade", "#E7F4F1 #CDEBE4 #9BE7D8 #7BD8C7 #5CC8B4 #0B6B5D #095A4E #08493F #063A32 #06211C #041712")
# Players draw on a canvas, which knows no theme: these two stand out from either surface.
WAVEFORM = gr.WaveformOptions(waveform_color="#857C73", waveform_progress_color="#2E9485", skip_length=5)
SPACING = Size("2px", "4px", "4px", "8px", "8px", "12px", "16px", name="studio_spacing")
RADIUS = Size("2px", "4px", "8px", "8px", "12px", "12px", "16px", name="studio_radius")
TEXT = Size("12px", "13px", "14px", "16px", "17px", "22px", "28px", name="studio_text")


def theme() -> gr.themes.Base:
    made = gr.themes.Base(
        primary_hue=JADE,
        secondary_hue=JADE,
        neutral_hue=STONE,
        spacing_size=SPACING,
        radius_size=RADIUS,
        text_size=TEXT,
        # Not 600: the semibold files that Gradio brings lack most letters.
        font=(fonts.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(fonts.LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace"),
    )
    made.name = "ace-music-studio"
    made.set(
        block_radius="*radius_lg",
        block_title_text_size="*text_sm",
        block_title_text_weight="600",
        block_label_text_size="*text_sm",
        block_info_text_size="*text_xs",
        checkbox_border_radius="4px",
        checkbox_label_text_size="*text_sm",
        checkbox_label_padding="11px 14px",
        input_radius="*radius_sm",
        input_border_width="1px",
        button_border_width="1px",
        button_large_radius="*radius_sm",
        button_large_text_size="*text_md",
        button_medium_radius="*radius_sm",
        button_medium_padding="11px 16px",
        button_medium_text_size="*text_sm",
        button_small_radius="*radius_sm",
        button_small_padding="8px 14px",
        button_small_text_size="*text_sm",
    )
    for token, names in COLOURS.items():
        light, dark = TOKENS[token]
        for name in names.split():
            # Not through set(): it knows no dark twin of some variables, and every attribute becomes a CSS variable.
            setattr(made, name, light)
            setattr(made, f"{name}_dark", dark)
    return made


def static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def script(name: str) -> str:
    """Return what a component runs when it is built, for one of our scripts in the page's head."""
    return f"studio.{name}(element, props, trigger, watch)"


def css() -> str:
    """Return our style sheet: the tokens as --studio-* variables, then the rules in static/."""
    sides = [";".join(f"--studio-{name}:{pair[side]}" for name, pair in TOKENS.items()) for side in (0, 1)]
    rules = "\n".join(static(name) for name in ("studio.css", "faces.css", "takes.css", "latest.css"))
    return f":root{{{sides[0]}}}\n:root.dark,:root .dark{{{sides[1]}}}\n{rules}"


def head() -> str:
    """Return what goes into the page's head: our scripts, inlined, so that they are there before anything is clicked.

    With them go the styles that Gradio must not change, and that of the player, which stands outside its frame.
    """
    scripts = "\n".join(static(f"{name}.js") for name in SCRIPTS)
    styles = "\n".join(static(f"{name}.css") for name in ("player", "motion"))
    return f"<script>\n{scripts}\n</script>\n<style>\n{styles}</style>"


# --- small pieces of HTML -------------------------------------------------------------------------------------------

# Of the linter's advice; what is longer folds.
MOST_UNFOLDED = 2


def progress(event: Progress, note: str = "") -> str:
    """Return the line of a running job: where it is, a bar, and what the run had to say so far."""
    share = min(100 * event.step // event.steps, 100) if event.steps else 0
    bar = f'<div class="bar"><div style="width:{share}%"></div></div>' if event.steps else ""
    said = f"<span>{escape(note)}</span>" if note else ""
    heard = f"{event.stage} {share // 25} {note}"
    return line("running", tooltips.progress_sentence(event), bar + said, heard, event.elapsed)


def line(state: str, sentence: str, more: str = "", heard: str = "", elapsed: float | None = None) -> str:
    """Return a progress line; `state` is running, done, failed or stopped, and the script asks for it on leaving.

    The sentence is read out where `heard` differs from the line before, for which a running job has its stage, the
    quarter of it that is done, and the note. `elapsed` are the seconds that the sentence says, which tick on the page.
    """
    marks = f'data-state="{state}" data-heard="{escape(heard or sentence)}"'
    text = escape(sentence)
    if elapsed is not None:
        time = tooltips.clock(elapsed)
        text = text.replace(f"{time} so far", f'<span data-elapsed="{elapsed:.1f}">{time}</span> so far')
    return f'<div class="shown progress-line" {marks}><span>{text}</span>{more}</div>'


def heading(status: Mapping[str, Any] | None = None) -> str:
    """Return the page's one h1 and, beside it, engine and device, which unfold into all that `status` says."""
    title = f"<h1>{escape(tooltips.TITLE)}</h1>"
    if status is None:
        return f'<div class="heading">{title}<p>{escape(tooltips.STATUS_PENDING)}</p></div>'
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in tooltips.status_parts(status))
    summary = f"<summary><span>{escape(tooltips.status_line(status))}</span></summary>"
    return f'<div class="heading">{title}<details>{summary}<ul>{facts}</ul></details></div>'


def faces() -> str:
    """Return the choice between Generate's two faces, for static/faces.js."""
    buttons = "".join(
        f'<button type="button" data-face="{face}" aria-pressed="false">{escape(name)}</button>'
        for face, name in tooltips.FACES.items()
    )
    return f'<div class="faces" role="group" aria-label="{escape(tooltips.FACES_LABEL)}">{buttons}</div>'


def lengths() -> str:
    """Return the chips that set the length, the last one for a length that has none of its own."""
    chip = '<button type="button" data-seconds="{}" aria-pressed="{}"{}>{}</button>'
    chips = [chip.format(seconds, "false", "", escape(name)) for seconds, name in tooltips.LENGTHS.items()]
    other = chip.format("", "true", ' class="other" hidden', "")
    label = escape(tooltips.LENGTH)
    return f'<div class="lengths" role="group" aria-label="{label}"><p>{label}</p>{"".join(chips)}{other}</div>'


def also(defaults: Mapping[str, tuple[str, Any]]) -> str:
    """Return the line that names what is not at its default; `defaults` are label and value by name."""
    known = escape(json.dumps(defaults))
    return f'<p class="remark also" data-text="{escape(tooltips.ALSO)}" data-defaults="{known}"></p>'


def section(title: str) -> str:
    return f"<h2>{escape(title)}</h2>"


def caption(text: str) -> str:
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


def songs(text: str, cards: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Return the caption of examples that play, with what static/examples.js has to know of their songs in `folder`."""
    played = {
        name: {
            **card,
            "id": f"example {name}",
            "path": str(folder / card["sound"]),
            "art": str(folder / card["picture"]),
        }
        for name, card in cards.items()
    }
    data = escape(json.dumps({"cards": played, "where": tooltips.EXAMPLE_SONG}, ensure_ascii=False))
    return f'<div data-songs="{data}">{caption(text)}</div>'


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
    """Return what each action of the Edit tab does; the style sheet shows the paragraph of the chosen one.

    Experiments are shown while the fold, which holds nothing itself, is open.
    """
    paragraphs = []
    for action, text in tooltips.ACTION_HELP.items():
        warning = tooltips.EXPERIMENTAL_HELP if tasks.get(action) == "experimental" else ""
        paragraphs.append(
            f'<p class="{action}-only">{escape(text)}'
            f"{f' <span class=warning>{escape(warning)}</span>' if warning else ''}</p>"
        )
    experiments = " ".join(action for action in tooltips.ACTION_HELP if tasks.get(action) == "experimental")
    fold = f'<details class="more {experiments}"><summary>{escape(tooltips.MORE_ACTIONS)}</summary></details>'
    return f'<div class="shown">{fold if experiments else ""}{"".join(paragraphs)}</div>'


def banner(facts: Mapping[str, Any]) -> str:
    """Return why the real model is not in use: a line that is cut where it is too long, and on a click all of it.

    The built-in engine says what it is; what is wrong, and how to get the weights, comes after it.
    """
    problem = facts["problem"]
    preview = facts["engine"] == "preview"
    texts = [tooltips.PREVIEW_TEXT] if preview else []
    if problem:
        texts.append(f"{problem['message']} {problem['hint']}".strip())
    title = tooltips.PREVIEW_TITLE if preview else tooltips.PROBLEM_TITLE
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in texts[1:])
    line = f"<span><strong>{escape(title)}:</strong> <span>{escape(''.join(texts[:1]))}</span></span>"
    return f'<details class="shown"><summary>{line}</summary>{paragraphs}</details>'


def takes(mode: str) -> str:
    """Return the frame of a tab's takes, for static/takes.js; it names no value, so that Gradio leaves it alone."""
    texts = {**tooltips.TAKES, "empty": tooltips.EMPTY_RESULTS[mode], "player": tooltips.PLAYER}
    facts = {"texts": texts, "tab": tooltips.TABS[mode], "uses": tooltips.USE_IN, "formats": list(FORMATS)}
    settings = json.dumps(facts, ensure_ascii=False)
    return f"""
<div class="takes" data-mode="{mode}" data-settings="{escape(settings)}">
  <p class="empty" aria-live="polite"></p>
  <div class="take making" aria-hidden="true" hidden>
    <div class="cover"></div>
    <div class="what"><p class="name">{escape(tooltips.MAKING)}</p><p class="stage"></p></div>
    <div class="wave"></div>
  </div>
  <div class="list"></div>
  <div class="level" hidden>
    <label><input type="checkbox" checked> {escape(tooltips.LEVEL)}</label>
    <p class="remark">{escape(tooltips.LEVEL_HELP)} <span class="keys">{escape(tooltips.DIGITS_HELP)}</span></p>
  </div>
  <details class="earlier" hidden>
    <summary></summary>
    <p class="remark">{escape(tooltips.EARLIER_HELP)}</p>
    <ol></ol>
    <button type="button" class="clear">{escape(tooltips.FORGET)}</button>
  </details>
  <details class="record" id="{mode}-record" hidden>
    <summary>{escape(tooltips.RECORD)}</summary>
    <pre tabindex="0"></pre>
  </details>
</div>
"""


def latest() -> str:
    """Return the frame of the latest takes to choose a source from, for static/latest.js."""
    settings = json.dumps({"texts": {"use": tooltips.USE_TAKE}, "modes": list(tooltips.GO)}, ensure_ascii=False)
    return f"""
<section class="latest" data-settings="{escape(settings)}" hidden>
  <p>{escape(tooltips.LATEST_TAKES)}</p>
  <ul></ul>
</section>
"""


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
