"""How the studio looks, as a Gradio theme, style sheets and pieces of HTML.

The colours are in static/theme.toml, for Gradio's theme and the style sheets. The fonts are
Gradio's own, so that no page asks another machine for one. Every text that goes into HTML is
escaped here, wherever it comes from.
"""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr
from gradio.themes.utils import fonts
from gradio.themes.utils.colors import Color
from gradio.themes.utils.sizes import Size

import tooltips
from events import Progress
from limits import FORMATS, LANGUAGES, TIME_SIGNATURES
from lyrics_lint import Advice
from status import Status
from tooltips import TimedSentence

STATIC = Path(__file__).with_name("static")
# In the head of the page; the first one makes the object that the others add to.
SCRIPTS = (
    "studio",
    "tools",
    "words",
    "desk",
    "uploads",
    "spans",
    "folds",
    "changes",
    "faces",
    "progress",
    "runs",
    "advice",
    "loras",
    "player",
    "recipes",
    "takes",
    "stage",
    "examples",
    "source",
    "latest",
    "listen",
    "zoom",
    "beats",
    "media",
    "drops",
)
WIDGETS = ("region", "timeline")  # each the body of a function in the head
STYLES = ("studio", "faces", "takes", "latest")  # in Gradio's style sheet
# In the head of the page, where Gradio leaves them alone.
HEAD_STYLES = ("player", "stage", "motion")

LOOK = tomllib.loads((STATIC / "theme.toml").read_text(encoding="utf-8"))
# Players draw on a canvas, which ignores the theme: these two stand out from either surface.
WAVEFORM = gr.WaveformOptions(
    waveform_color="#857C73", waveform_progress_color="#2E9485", skip_length=5
)

# The share of the tokens from which a prompt's count is shown.
NEARLY_FULL = 0.8

# as Gradio names them
SHADES = ("c50", "c100", "c200", "c300", "c400", "c500", "c600", "c700", "c800", "c900", "c950")


def theme() -> gr.themes.Base:
    accent = _palette("jade")
    made = gr.themes.Base(
        primary_hue=accent,
        secondary_hue=accent,
        neutral_hue=_palette("stone"),
        spacing_size=Size("2px", "4px", "4px", "8px", "8px", "12px", "16px", name="studio_spacing"),
        radius_size=Size("2px", "4px", "8px", "8px", "12px", "12px", "16px", name="studio_radius"),
        text_size=Size("12px", "13px", "14px", "16px", "17px", "22px", "28px", name="studio_text"),
        # Not 600: Gradio's semibold files lack most letters.
        font=(
            fonts.LocalFont("IBM Plex Sans", weights=(400, 700)),
            "ui-sans-serif",
            "system-ui",
            "sans-serif",
        ),
        font_mono=(fonts.LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace"),
    )
    made.name = "ace-music-studio"
    # Not through set(), which does not know the dark twin of some variables. Attributes become CSS
    # variables.
    for value, names in LOOK["values"].items():
        for name in names.split():
            setattr(made, name, value)
    for token, names in LOOK["variables"].items():
        light, dark = LOOK["tokens"][token]
        for name in names.split():
            setattr(made, name, light)
            setattr(made, f"{name}_dark", dark)
    return made


def _palette(name: str) -> Color:
    """Return the eleven shades of a palette, from the lightest to the darkest."""
    shades = dict(zip(SHADES, LOOK["palettes"][name].split(), strict=True))
    return Color(name=name, **shades)


def static(name: str) -> str:
    """Return a file of static/ as it is sent: scripts and style sheets without comments and indents.

    No text in a script goes over several lines or has " // " in it, so that neither an indent nor a
    comment is ever part of one.
    """
    text = (STATIC / name).read_text(encoding="utf-8")
    if name.endswith(".css"):
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    if name.endswith(".js"):
        text = re.sub(r"(^|\s)// .*", "", text, flags=re.MULTILINE)
    if name.endswith((".css", ".js")):
        text = "\n".join(filter(None, map(str.strip, text.splitlines())))
    return text


def script(name: str) -> str:
    """Return the JavaScript that starts one of the head's scripts for a component."""
    return f"studio.{name}(element, props, trigger, watch)"


def css() -> str:
    """Return the style sheet: the colours of both sides and two texts as variables, then the rules."""
    drop = f":root{{--studio-drop:{json.dumps(tooltips.DROP)}}}"
    drop_loras = f".lora-file{{--studio-drop:{json.dumps(tooltips.LORA_DROP)}}}"
    rules = f"{drop}\n{drop_loras}\n{_style_sheets(STYLES)}"
    dark = f"color-scheme:dark;{_variables(1)}"
    return f":root{{{_variables(0)}}}\n:root.dark,:root .dark{{{dark}}}\n{rules}"


def _style_sheets(names: Sequence[str]) -> str:
    return "\n".join(static(f"{name}.css") for name in names)


def _variables(side: int) -> str:
    """Return the CSS variables of the light (0) or the dark (1) side."""
    return ";".join(f"--studio-{name}:{colours[side]}" for name, colours in LOOK["tokens"].items())


def head() -> str:
    """Return the scripts, inlined to be there before the first click, and styles for the head."""
    songs = {"takes": tooltips.TAKES, "player": tooltips.PLAYER, "uses": tooltips.USE_IN}
    texts = json.dumps({**tooltips.SCRIPT_TEXTS, **songs, "formats": list(FORMATS)})
    parts = [*(static(f"{name}.js") for name in SCRIPTS), *map(_widget, WIDGETS)]
    scripts = "\n".join([*parts, f"studio.texts = {texts};"])
    styles = _style_sheets(HEAD_STYLES)
    return f"<script>\n{scripts}\n</script>\n<style>\n{styles}</style>"


def _widget(name: str) -> str:
    """Return the function that `script` calls for a widget: two tabs may have one."""
    return f"studio.{name} = (element, props, trigger, watch) => {{\n{static(f'{name}.js')}\n}};"


# --- texts ----------------------------------------------------------------------------------------


def section(title: str) -> str:
    return f"<h2>{escape(title)}</h2>"


def caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>'


def remark(text: str) -> str:
    return f'<p class="shown remark">{escape(text)}</p>'


def answer(text: str) -> str:
    """Return an answer to what the visitor did; a screen reader speaks it when it is free."""
    return f'<p class="shown said" role="status">{escape(text)}</p>'


def notice(title: str, message: str, hint: str = "") -> str:
    """Return a message with title and hint; a screen reader speaks it at once."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="shown notice" role="alert">{heading}{_paragraphs([message, hint])}</div>'


def _paragraphs(texts: Sequence[str]) -> str:
    return _wrapped("p", filter(None, texts))


def _wrapped(tag: str, texts: Iterable[str]) -> str:
    """Return each text in an element of its own."""
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _list(texts: Sequence[str], attributes: str = "") -> str:
    if not texts:
        return ""
    return f"<ul{attributes}>{_wrapped('li', texts)}</ul>"


def wrong_fields(message: str, at_fields: Mapping[str, str]) -> str:
    """Return the message at the button, and for static/studio.js what is wrong, by element id.

    The timestamp makes each message unique, so the page treats it as new.
    """
    sentences = escape(json.dumps(at_fields))
    data = f'data-told="{sentences}" data-at="{time.monotonic_ns()}"'
    return f'{notice("", message)}<div hidden class="telling" {data}></div>'


# --- a run ----------------------------------------------------------------------------------------


def progress(event: Progress, note: str = "", done: float | None = None) -> str:
    """Return the line of a run under way, with a bar if the number of steps is known.

    The bar is that of all stages if it is known how much of them is `done`, from 0 to 1.
    """
    share = 0
    if event.steps:
        share = min(100 * event.step // event.steps, 100)
    bar = ""
    if done is not None or event.steps:
        percent = share if done is None else int(100 * done)
        bar = f'<div class="bar"><div style="--done:{percent / 100}"></div></div>'
    noted = f"<span>{escape(note)}</span>" if note else ""
    spoken_when = f"{event.stage} {share // 25} {note}"
    return line("running", tooltips.progress_sentence(event), bar + noted, spoken_when)


def line(state: str, sentence: str | TimedSentence, more: str = "", spoken_when: str = "") -> str:
    """Return a progress line; `state` is running, done, failed or stopped.

    While it is running, leaving the page asks first. A screen reader speaks the sentence when
    `spoken_when` changes, by default the sentence itself: for a job its stage, the quarter it has
    reached, and its note. It finds the sentence in the live region alone (static/progress.js).
    The time in a `TimedSentence` ticks on the page.
    """
    spoken_when = escape(spoken_when or str(sentence))
    if isinstance(sentence, TimedSentence):
        text = _ticking(sentence)
    else:
        text = escape(sentence)
    marks = f'data-state="{state}" data-heard="{spoken_when}"'
    seen = f'<span aria-hidden="true">{text}</span>'
    return f'<div class="shown progress-line" {marks}>{seen}{more}</div>'


def _ticking(sentence: TimedSentence) -> str:
    clock = f'<span data-elapsed="{sentence.seconds:.1f}">{tooltips.clock(sentence.seconds)}</span>'
    return f"{escape(sentence.before)}{clock}{escape(sentence.after)}"


# --- the form -------------------------------------------------------------------------------------


def budget(used: int, dropped: str, most: int) -> str:
    """Return which words of the prompt are not read; "" while it is far from its `most` tokens."""
    text = tooltips.TOKENS.format(used=used, most=most)
    if dropped:
        return f'<p class="shown remark over">{escape(f"{text} {tooltips.unread(dropped)}")}</p>'
    if used < NEARLY_FULL * most:
        return ""
    return remark(text)


def hint(text: str, button: str, field: str, value: str) -> str:
    """Return a remark that is seen in the short form as well.

    Its button, if there is one, puts a value into the field with this element id (static/advice.js).
    """
    act = ""
    if button and field:
        act = (
            f' <button type="button" class="fix" data-fix="{escape(field)}" '
            f'data-value="{escape(value)}">{escape(button)}</button>'
        )
    return f'<p class="shown remark over">{escape(text)}{act}</p>'


def advice(found: Sequence[Advice]) -> str:
    """Return the advice on lyrics as a list, folded if it is longer than two."""
    texts = [_at_line(each) for each in found]
    if len(texts) <= 2:
        return _list(texts, ' class="shown advice"')
    title = escape(tooltips.REMARKS.format(count=len(texts)))
    return f'<details class="shown advice"><summary>{title}</summary>{_list(texts)}</details>'


def _at_line(advice: Advice) -> str:
    if not advice.line:
        return advice.message
    return tooltips.AT_LINE.format(line=advice.line, message=advice.message)


def keys(go: str, cancel: str) -> str:
    """Return the hint at the keys of a tab, with what they do."""
    first = f"<span>{_key(tooltips.KEY_GO)} {escape(go)}</span>"
    second = f"<span>{_key(tooltips.KEY_CANCEL)} {escape(cancel)}</span>"
    return f'<p class="shown remark keys">{first}{second}</p>'


def _key(name: str) -> str:
    return f"<kbd>{escape(name)}</kbd>"


def faces() -> str:
    """Return the two buttons that switch between the short and the long form."""
    buttons = [_toggle(f'data-face="{face}"', name) for face, name in tooltips.FACES.items()]
    label = escape(tooltips.FACES_LABEL)
    return f'<div class="faces" role="group" aria-label="{label}">{"".join(buttons)}</div>'


def _toggle(attributes: str, name: str, pressed: str = "false") -> str:
    return f'<button type="button" {attributes} aria-pressed="{pressed}">{escape(name)}</button>'


def explain() -> str:
    """Return the button that shows the help of every field."""
    return _toggle("data-explain", f"\N{INFORMATION SOURCE} {tooltips.EXPLAIN}")


def strip(labels: Mapping[str, str], element_id: Callable[[str], str]) -> str:
    """Return the chips that open the fields with these `labels`; static/faces.js adds what is set."""
    chips = []
    for name, label in labels.items():
        opens = f'data-opens="{name}" aria-controls="{element_id(name)}" aria-expanded="false"'
        chips.append(f'<button type="button" {opens}>{escape(label)} <span></span></button>')
    group = f'role="group" aria-label="{escape(tooltips.STRIP)}"'
    return f'<div class="strip shown" {group}>{"".join(chips)}</div>'


def lengths() -> str:
    """Return the buttons that set the length; the last one, hidden at first, is for any other."""
    chips = [
        _toggle(f'data-seconds="{seconds}"', name) for seconds, name in tooltips.LENGTHS.items()
    ]
    chips.append(_toggle('data-seconds="" class="other" hidden', "", pressed="true"))
    label = escape(tooltips.LENGTH)
    group = f'<div class="lengths" role="group" aria-label="{label}">'
    return f"{group}<p>{label}</p>{''.join(chips)}</div>"


def words(names: Mapping[str, str], notes: Mapping[str, str], usual: str) -> str:
    """Return the buttons that choose a song's words, with a remark about the chosen one.

    `usual` is what holds without a choice and without words.
    """
    buttons = "".join(_toggle(f'data-words="{value}"', name) for value, name in names.items())
    label = escape(tooltips.WORDS_LABEL)
    data = f'data-usual="{usual}" data-notes="{escape(json.dumps(notes))}"'
    group = f'<div class="segments" role="group" aria-label="{label}">{buttons}</div>'
    return f'<div class="song-words" {data}><p>{label}</p>{group}<p class="remark note"></p></div>'


def also(folded: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the place for the fields not at their default, each with a button that takes it back.

    `folded` has label, default and names of the choices by field, for static/faces.js.
    """
    texts = escape(json.dumps(tooltips.ALSO))
    fields = escape(json.dumps(folded))
    label = escape(tooltips.ALSO["title"])
    group = f'role="group" aria-label="{label}"'
    return f'<div class="also" {group} data-texts="{texts}" data-fields="{fields}"></div>'


def styles() -> str:
    """Return the chips that each put a style into the prompt, or take it out again (static/faces.js)."""
    chips = "".join(_toggle(f'data-style="{escape(name)}"', name) for name in tooltips.STYLES)
    label = escape(tooltips.STYLES_LABEL)
    return f'<div class="styles" role="group" aria-label="{label}">{chips}</div>'


def tags(box: str, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the buttons that put a section tag into the text of `box`, an element id (static/desk.js).

    `more` has further buttons, by what they do. They come first: on a phone the line goes on to the right.
    """
    chips = [_chip(f'data-desk="{act}"', name) for act, name in more.items()]
    chips += [_chip(f'data-tag="{escape(name)}"', f"[{name}]") for name in tooltips.TAG_BAR]
    label = escape(tooltips.TAG_BAR_LABEL)
    group = f'role="group" aria-label="{label}" data-into="{box}"'
    return f'<div class="styles tags" {group}>{"".join(chips)}</div>'


def _chip(attributes: str, name: str) -> str:
    return f'<button type="button" {attributes}>{escape(name)}</button>'


def rhyming(word: str, found: Sequence[str], box: str) -> str:
    """Return the words that rhyme with a word, each with a button that puts it into the text of `box`."""
    if not found:
        return answer(tooltips.NO_RHYMES.format(word=word))
    title = (
        f'<p class="shown said" role="status">{escape(tooltips.RHYMES_WITH.format(word=word))}</p>'
    )
    chips = "".join(_chip(f'data-rhyme="{escape(each)}"', each) for each in found)
    return f'{title}<div class="styles" data-into="{box}">{chips}</div>'


def dice(ideas: Sequence[str]) -> str:
    """Return the button that writes one of the `ideas` into the prompt (static/examples.js)."""
    data = escape(json.dumps(ideas, ensure_ascii=False))
    return (
        f'<button type="button" class="dice" data-ideas="{data}">{escape(tooltips.DICE)}</button>'
    )


def shelf(cards: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Return the place for examples that can be heard, which static/examples.js draws."""
    played = {}
    for name, card in cards.items():
        path = str(folder / card["sound"])
        art = str(folder / card["picture"])
        played[name] = {**card, "path": path, "art": art, "id": f"example {name}"}
    settings = {"cards": played, "where": tooltips.EXAMPLE_SONG, "texts": tooltips.SHELF}
    data = escape(json.dumps(settings, ensure_ascii=False))
    title = caption(tooltips.SONGS_LABEL)
    return f'<div class="shelf" data-songs="{data}">{title}<div class="covers"></div></div>'


def actions(tasks: Mapping[str, str], more: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return what each action of the Edit tab does; the style sheet shows that of the chosen one.

    The choices of experimental actions are shown while the fold, which is empty itself, is open. `more`
    has a remark on some of the actions.
    """
    experiments = [action for action in tooltips.ACTION_HELP if tasks.get(action) == "experimental"]
    warning = f" <span class=warning>{escape(tooltips.EXPERIMENTAL_HELP)}</span>"
    paragraphs = []
    for action, text in tooltips.ACTION_HELP.items():
        remark = f" <span class=warning>{escape(more[action])}</span>" if action in more else ""
        unsure = warning if action in experiments else ""
        paragraphs.append(f'<p class="{action}-only">{escape(text)}{unsure}{remark}</p>')
    fold = ""
    if experiments:
        summary = f"<summary>{escape(tooltips.MORE_ACTIONS)}</summary>"
        fold = f'<details class="more {" ".join(experiments)}">{summary}</details>'
    return f'<div class="shown">{fold}{"".join(paragraphs)}</div>'


def fine() -> str:
    """Return a fold, empty itself: while it is open, the style sheet shows Edit's exact settings."""
    summary = f"<summary>{escape(tooltips.FINE)}</summary>"
    return f'<details class="fine region-only">{summary}</details>'


# --- a song ---------------------------------------------------------------------------------------


def messages(record: Mapping[str, Any]) -> str:
    """Return a run's failed takes, the effect of its LoRAs, and its notes: a list, or one paragraph."""
    failed = [tooltips.take_left_out(**error) for error in record["errors"]]
    loras = [tooltips.lora_acted(lora) for lora in record.get("loras", [])]
    texts = [*failed, *loras, *record["notes"]]
    attributes = ' class="shown notes" role="status"'
    if len(texts) == 1:
        return f"<p{attributes}>{escape(texts[0])}</p>"
    return _list(texts, attributes)


def plan(facts: Mapping[str, Any]) -> str:
    """Return how a song was planned, or why it was not, from the record's "plan"."""
    if not facts["used"]:
        return remark(tooltips.UNPLANNED.format(reason=facts["reason"]))
    metre = TIME_SIGNATURES.get(facts["time_signature"], facts["time_signature"])
    language = LANGUAGES.get(facts["language"], facts["language"])
    if facts["language"] == "unknown":
        language = ""
    parts = [tooltips.PLANNED, *tooltips.song_facts(facts["bpm"], facts["key"], metre, language)]
    line = f'<p class="shown facts">{_wrapped("span", parts)}</p>'
    if not facts["rewritten"]:
        return line
    rewritten = tooltips.REWRITTEN.format(caption=facts["caption"])
    return f"{line}<p class=remark>{escape(rewritten)}</p>"


# --- the top of the page --------------------------------------------------------------------------


def heading(status: Status | None = None) -> str:
    """Return the page's only h1 beside engine and device, which unfold into the whole `status`."""
    title = f"<h1>{escape(tooltips.TITLE)}</h1>"
    skip = f'<a class="skip" href="#studio-tabs">{escape(tooltips.SKIP)}</a>'
    title = skip + title
    if status is None:
        return f'<div class="heading">{title}<p>{escape(tooltips.STATUS_PENDING)}</p></div>'
    summary = f"<summary><span>{escape(tooltips.status_line(status))}</span></summary>"
    parts = _list(tooltips.status_parts(status))
    return f'<div class="heading">{title}<details>{summary}{parts}</details></div>'


def offer(name: str, use: str) -> str:
    """Return the line of the banner that offers a song model, by its `name` and what it is for."""
    title = escape(tooltips.OFFER_TITLE.format(name=name))
    line = f"<span><strong>{title}.</strong> {escape(tooltips.OFFER_TEXT)}</span>"
    fold = f"<details><summary>{line}</summary>{_paragraphs([use])}</details>"
    return f'<div class="shown line offer">{fold}</div>'


def banner(status: Status) -> str:
    """Return why the real model is not in use: one line that unfolds into the rest.

    A phone shows the title, and of the line no more than what the built-in engine does.
    """
    title = tooltips.PROBLEM_TITLE
    short = ""
    texts = []
    if status.is_built_in:
        title = tooltips.BUILT_IN_TITLE
        short = f"<span class=short>{escape(tooltips.BUILT_IN_SHORT)}</span>"
        texts.append(tooltips.BUILT_IN_TEXT)
    if status.planner.is_built_in:
        texts.append(tooltips.BUILT_IN_PLANNER)
    if status.songwriter.is_built_in:
        texts.append(tooltips.BUILT_IN_SONGWRITER)
    if status.problem:
        texts.append(status.problem.text())
    first = escape(texts[0]) if texts else ""
    line = f"<span><strong>{escape(title)}:</strong> {short}<span class=long>{first}</span></span>"
    fold = f"<details><summary>{line}</summary>{_paragraphs(texts[1:])}</details>"
    if status.problem:
        return f'<div class="shown line">{fold}</div>'
    label = escape(tooltips.DISMISS)
    button = f'<button type="button" class="dismiss" aria-label="{label}">&times;</button>'
    return f'<div class="shown line">{fold}{button}</div>'
