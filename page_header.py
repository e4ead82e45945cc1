"""The top of the page: what the studio runs on, and the banner that offers the real model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.events import Dependency

import gpu_ray
import theme
import tooltips
from backend import Backend
from events import StudioError
from limits import MODELS
from page_fields import SongTab
from page_form import AT_ONCE, Form, Updates, html, only
from page_lyrics import LyricsTab
from page_run import cancelled_box, connect_download, download_bar
from status import UNKNOWN, SongModelStatus, Status


class Header:
    """The status, and a banner whose button for the real model is a run bar of its own."""

    def __init__(self, studio: Backend):
        self._studio = studio
        self.status = html(
            theme.heading(), elem_id="studio-status", js_on_load=theme.script("folds")
        )
        cancelled = cancelled_box("download")
        with gr.Row(visible=False, elem_id="studio-banner") as self.banner:
            self.notice = html(elem_id="studio-notice", js_on_load=theme.script("folds"))
            self.bar = download_bar("download", tooltips.GET_MODEL.format(gb=0), cancelled)
        # The name of the song model that the button gets; "" is the real model.
        self.wanted = gr.State("")
        # The name of the song model whose size the hub has told last.
        self.asked = gr.State("")
        self.offered = [self.banner, self.notice, self.bar.go, self.wanted]
        self.outputs = [self.status, *self.offered]

    def show(self, status: Status) -> Updates:
        get_model = tooltips.GET_MODEL.format(gb=status.download_gb)
        return {
            self.status: theme.heading(status),
            self.banner: gr.update(visible=status.is_built_in or status.problem is not None),
            self.notice: theme.banner(status),
            self.bar.go: gr.update(visible=status.is_built_in, value=get_model),
            self.wanted: "",
        }

    def offer(self, model: SongModelStatus, is_asked: bool) -> Updates:
        """Return the updates that offer a song model; `is_asked` if its size is the hub's answer."""
        button = tooltips.GET_SONG_MODEL if is_asked else tooltips.GET_SONG_MODEL_AT_MOST
        name = MODELS[model.name]
        return {
            self.banner: gr.update(visible=True),
            self.notice: theme.offer(name, tooltips.MODEL_USES[model.name]),
            self.bar.go: gr.update(
                visible=True, value=button.format(name=name, gb=model.download_gb)
            ),
            self.wanted: model.name,
        }

    def show_ended(self, status: Status, wanted: str) -> Updates:
        """Return the updates after a download; what is `wanted` and still missing stays offered, beside the reason."""
        if status.to_get(wanted) is not None:
            return {self.status: theme.heading(status)}
        return self.show(status)

    def offer_chosen(self, name: str, wanted: str, is_running: bool) -> Updates:
        """Return the updates for the chosen model `name`, if `wanted` is offered so far.

        While a download is running, the bar shows what is on its way.
        """
        status = self._studio.status()
        found = status.to_get(name)
        is_offered = found is not None and name == wanted
        if is_running or is_offered:
            return gr.skip()
        if found is not None:
            return self.offer(found, is_asked=False)
        return self.take_back(status) if wanted else gr.skip()

    def ask(self, name: str) -> str:
        """Ask the hub how much of a song model is missing; return its name, "" if that is not known."""
        if self._studio.status().to_get(name) is not None:
            with contextlib.suppress(StudioError):  # pressed, the button says why
                self._studio.ask_size(name)
                return name
        return ""

    def offer_exactly(self, name: str, wanted: str, asked: str) -> Updates:
        """Return the updates for the size of the chosen model `name`, if it is both `wanted` and `asked`."""
        found = self._studio.status().to_get(name)
        if found is None or not name == wanted == asked:
            return gr.skip()
        return self.offer(found, is_asked=True)

    def take_back(self, status: Status) -> Updates:
        """Return the updates that end an offer."""
        return only(self.show(status), self.offered)


def connect_model(
    studio: Backend, header: Header, tabs: Sequence[SongTab | LyricsTab]
) -> Dependency:
    """Let the banner's button fetch the real model, or one that was chosen in a tab; returns the run."""

    def done(name: str) -> str:
        is_built_in = studio.status().is_built_in
        if name:
            sentence = tooltips.SONG_MODEL_DONE.format(name=MODELS[name])
        elif is_built_in:
            sentence = tooltips.DOWNLOAD_UNUSED
        else:
            sentence = tooltips.DOWNLOAD_DONE
        if not is_built_in:  # the banner, which has the line, closes now
            gr.Success(sentence)
        return sentence

    for tab in tabs:
        if isinstance(tab, SongTab):
            _connect_offer(header, tab)
    return connect_download(header.bar, lambda name: studio.download(name), done, header.wanted)


def _connect_offer(header: Header, tab: SongTab) -> None:
    """Offer the download of a model that is chosen in a tab, or asked for a song, and is not here."""
    model = tab.form.fields["options.model"]
    inputs = [model, header.wanted, header.bar.is_running]
    shown = model.input(header.offer_chosen, inputs, header.offered, **AT_ONCE)
    # The hub may take seconds to answer. By then another model may be chosen: its events offer it.
    asked = shown.then(header.ask, model, header.asked, **AT_ONCE)
    inputs = [model, header.wanted, header.asked]
    asked.then(header.offer_exactly, inputs, header.offered, **AT_ONCE)
    # A model that the browser kept, or that a record named, is offered when it is asked for.
    inputs = [model, header.wanted, header.bar.is_running]
    tab.bar.go.click(header.offer_chosen, inputs, header.offered, **AT_ONCE)


def connect_status(
    studio: Backend,
    demo: gr.Blocks,
    header: Header,
    forms: Sequence[Form],
    runs: Sequence[Dependency],
    download: Dependency,
) -> None:
    """Show the model and device on every visit: what is known at once, the device when torch is loaded.

    The status is refreshed after a download, and the heading after each of `runs`.
    """
    outputs = [*header.outputs]
    for form in forms:
        outputs += form.show_status(UNKNOWN)

    def show() -> Updates:
        status = studio.status()
        return {**header.show(status), **show_forms(status)}

    def show_ended(wanted: str) -> Updates:
        status = studio.status()
        return {**header.show_ended(status, wanted), **show_forms(status)}

    def show_forms(status: Status) -> Updates:
        shown: Updates = {}
        for form in forms:
            shown |= form.show_status(status)
        return shown

    known = demo.load(show, outputs=outputs, **AT_ONCE)
    shown_again = download.success(show_ended, header.wanted, outputs, **AT_ONCE)
    _connect_followers(forms, (known, shown_again))
    _connect_device(studio, header, known)

    def show_heading() -> str:
        return theme.heading(studio.status())

    for run in runs:  # a run may have loaded a model, or failed to
        run.then(show_heading, outputs=header.status, **AT_ONCE)


def _connect_followers(forms: Sequence[Form], shown: Sequence[Dependency]) -> None:
    """Let what depends on a field's value follow each time that the status is `shown`."""
    followers = [follower for form in forms for follower in form.followers]

    def follow(*values: Any) -> Updates:
        followed: Updates = {}
        for follower, value in zip(followers, values, strict=True):
            followed |= follower.show(value)
        return followed

    fields = [follower.field for follower in followers]
    outputs = [output for follower in followers for output in follower.outputs]
    for event in shown:
        event.then(follow, fields, outputs, **AT_ONCE)


def _connect_device(studio: Backend, header: Header, known: Dependency) -> None:
    """Load torch once the status is `known`, show the device, and prepare the models."""

    def show_device() -> str:
        return theme.heading(studio.full_status())

    def prepare() -> None:
        with contextlib.suppress(StudioError):  # the first song reports what could not be loaded
            if not gpu_ray.wanted():
                studio.models.prepare()

    # Only the heading: this takes seconds if torch is not loaded yet, while the visitor may already
    # be filling in the form, or be offered a model.
    complete = known.then(show_device, outputs=header.status, **AT_ONCE)
    complete.then(prepare, **AT_ONCE)
