"""The five tabs put together, and the ways between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

import page_form
import theme
import tooltips
from audio import AudioError
from backend import Backend
from events import StudioError
from page_cover import cover_tab, extend_tab
from page_edit import EditForm, edit_tab
from page_fields import SongTab
from page_form import AT_ONCE, Form, Updates
from page_generate import generate_tab
from page_lyrics import LyricsTab, lyrics_tab
from page_takes import Made, ResultPanel, cut_at, take_of
from page_widgets import WantedRegion

TO_TOP = "() => document.querySelector('#studio-tabs').scrollIntoView()"


def build_tabs(studio: Backend) -> list[SongTab | LyricsTab]:
    with gr.Tabs(elem_id="studio-tabs", overflow_behavior="wrap") as tabs:
        generate = generate_tab(studio)
        cover = cover_tab(studio)
        extend = extend_tab(studio)
        edit = edit_tab(studio)
        lyrics = lyrics_tab(studio)
    song_tabs = [generate, cover, extend, edit]
    forms = {tab.form.mode: tab.form for tab in song_tabs}
    for tab in song_tabs:
        connect_uses(tab.result, forms, tabs)
    connect_lyrics(lyrics, generate, tabs)
    return [*song_tabs, lyrics]


def connect_uses(result: ResultPanel, forms: Mapping[str, Form], tabs: gr.Tabs) -> None:
    """Make a take's buttons use it as the source in another tab, with its words and musical facts."""
    edit = forms["edit"]
    assert isinstance(edit, EditForm)

    def hand_over(pressed: gr.EventData) -> Updates:
        form = forms.get(pressed.use)
        if form is None:
            return {tabs: gr.skip()}
        try:
            take = take_of(pressed, result)
            source = _source_of(pressed, take, result)
        except (StudioError, AudioError) as error:
            return {result.message: theme.notice("", str(error))}
        filled = form.show(page_form.words_for(form.mode, take.record))
        filled[form.fields["source"]] = source
        region = _region_of(pressed, source)
        if region and form is edit:
            part = {"action": "repaint", "start": region.start, "end": region.end, "regions": ()}
            filled |= {**form.show(part), edit.wanted: region}
        return {**filled, tabs: gr.Tabs(selected=form.mode)}

    song = (*page_form.SONG, "source", "source_prompt", "source_lyrics")
    names = (*song, "action", "start", "end", "regions")
    fields: list[Any] = []
    for mode in tooltips.USE_IN:
        fields += forms[mode].components(names).values()
    outputs = [tabs, *fields, edit.wanted, result.message]
    opened = result.takes.select(hand_over, None, outputs, **AT_ONCE)
    opened.then(None, js=TO_TOP, **AT_ONCE)


def _source_of(pressed: gr.EventData, take: Made, result: ResultPanel) -> str:
    """Return the file of the take, or of what of it comes before the moment that was chosen."""
    until = getattr(pressed, "until", None)
    if isinstance(until, int | float) and 0 < until < take.take["duration"]:
        return cut_at(take, until, result)
    return take.file


def _region_of(pressed: gr.EventData, source: str) -> WantedRegion | None:
    match getattr(pressed, "region", None):
        case [int() | float() as start, int() | float() as end]:
            return WantedRegion(Path(source).name, start, end)
    return None


def connect_lyrics(lyrics: LyricsTab, generate: SongTab, tabs: gr.Tabs) -> None:
    """Connect the buttons that take lyrics and language to Generate, or make the song at once.

    Undo there restores the former lyrics.
    """
    panel = lyrics.panel
    undo = generate.assist.undo
    names = ("lyrics", "language", "instrumental", "words")
    fields = list(generate.form.components(names).values())

    def use(text: str, language: str, former: list[dict[str, Any]], *held: Any) -> Updates:
        values = {"lyrics": text, "language": language, "instrumental": False, "words": ""}
        kept = undo.keep(former, dict(zip(names, held, strict=True)))
        return {**generate.form.show(values), **kept, tabs: gr.Tabs(selected="generate")}

    inputs = [panel.text, lyrics.form.fields["language"], undo.former, *fields]
    outputs = [tabs, *fields, *undo.outputs]
    panel.use.click(use, inputs, outputs, **AT_ONCE).then(None, js=TO_TOP, **AT_ONCE)
    filled = panel.sing.click(use, inputs, outputs, **AT_ONCE)
    filled.success(None, js="() => document.getElementById('generate-go').click()", **AT_ONCE)
