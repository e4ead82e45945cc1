"""The Cover and Extend tabs: a song in another sound, and a song made longer."""

from __future__ import annotations

from typing import Any

import gradio as gr

import page_fields
import page_form
import page_hints
import page_widgets
import theme
import tooltips
from backend import Backend
from limits import DETAILS
from page_assist import Assist
from page_fields import Examples, SongTab, swapped
from page_form import Form, Updates, html
from page_run import tab_run_bar
from status import Status


def cover_tab(studio: Backend) -> SongTab:
    form = Form("cover", studio)
    with page_fields.tab(form) as tab, page_fields.columns(form):
        with page_fields.form_column():
            offer = page_fields.add_source(form, tab)
            waveform = page_widgets.region_selector("cover-region")
            assist = Assist(form, "describe")
            examples = Examples(form)
            page_fields.add_prompt(form)
            page_fields.add_lyrics(form)
            form.add_slider("strength")
            with page_fields.details_column():
                with page_fields.fold(form, tooltips.DETAILS, "details"):
                    page_fields.add_song_details(form)
                with page_fields.fold(form, tooltips.SOUND, "sound") as sound:
                    form.add("options.detail", gr.Radio, choices=swapped(DETAILS), value="codes")
                    form.add_slider("options.noise_strength")
                    page_fields.add_reference(form, sound)
                    page_fields.add_sound(form)
                with page_fields.fold(form, tooltips.ENGINE, "engine"):
                    page_fields.add_engine(form)
                page_fields.add_reset(form)
            with page_fields.foot():
                why = html(elem_id="cover-why")
                page_hints.add_seconds(form)
                bar = tab_run_bar(form)
        result = page_fields.add_result(form)

    def show(status: Status) -> Updates:
        if "cover" not in status.unsupported:
            return {bar.go: gr.update(interactive=True), why: ""}
        reason = theme.remark(status.unsupported["cover"])
        return {bar.go: gr.update(interactive=False), why: reason}

    page_widgets.connect_waveform(waveform, form.trigger("source"))
    examples.connect()
    offer.connect()
    form.on_status(show)
    return page_fields.connect_song_tab(form, bar, assist, result)


def extend_tab(studio: Backend) -> SongTab:
    form = Form("extend", studio)
    with page_fields.tab(form) as tab, page_fields.columns(form):
        with page_fields.form_column():
            offer = page_fields.add_source(form, tab)
            timeline = page_widgets.timeline("extend-timeline")
            form.add_numbers("before", "after")
            total = html(elem_id="extend-total")
            assist = Assist(form, "describe")
            examples = Examples(form, kept=["prompt"])
            page_fields.add_prompt(form)
            page_fields.add_lyrics(form)
            with page_fields.details_column():
                with page_fields.fold(form, tooltips.DETAILS, "details"):
                    page_fields.add_song_details(form)
                with page_fields.fold(form, tooltips.SOUND, "sound"):
                    form.add_slider("options.overlap")
                    page_fields.add_sound(form)
                with page_fields.fold(form, tooltips.ENGINE, "engine"):
                    page_fields.add_engine(form)
                page_fields.add_reset(form)
            with page_fields.foot():
                page_hints.add_seconds(form)
                bar = tab_run_bar(form)
        result = page_fields.add_result(form)

    def say_length(values: dict[str, Any]) -> str:
        lengths = page_form.lengths(values)
        source = lengths["source"]
        before = lengths["before"]
        after = lengths["after"]
        if source is None or before is None or after is None:
            return ""
        return theme.answer(tooltips.length_in_all(source, before, after))

    before = form.fields["before"]
    after = form.fields["after"]
    page_widgets.connect_timeline(timeline, form.trigger("source"), before, after)
    form.follow(total, ("source", "before", "after"), say_length)
    examples.connect()
    offer.connect()
    return page_fields.connect_song_tab(form, bar, assist, result)
