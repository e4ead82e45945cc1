"""The banner that offers a song model, without a browser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

import theme
import tooltips
from events import StudioError
from model_weights import task_support
from page_header import Header
from status import LanguageModelStatus, SongModelStatus, SongwriterStatus
from tests.unit.forms import STATUS, Studio


def missing(name: str) -> SongModelStatus:
    tasks = task_support(name)
    state: Any = "missing"
    return SongModelStatus(name, name, f"org/{name}", state, False, 11.5, tasks, download_gb=11.5)


class Shop(Studio):
    """A studio whose own model is here, and two that can be downloaded."""

    def __init__(self):
        self.missing = {name: missing(name) for name in ("turbo", "base")}
        self.answers = True

    def status(self):
        return replace(STATUS, song_models=tuple(self.missing.values()))

    def ask_size(self, name: str) -> None:
        if not self.answers:
            raise StudioError("hub_unreachable", "The hub did not answer.")
        self.missing[name] = replace(self.missing[name], download_gb=8.3)


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def header(shop: Any) -> Header:
    with gr.Blocks():
        return Header(shop)


def test_a_model_is_offered_with_its_size_once_the_hub_has_told_it(header, shop):
    offered = header.offer_chosen("turbo", "", False)
    assert offered[header.bar.go]["value"] == "Get Fast (at most 11.5 GB)"
    wanted = offered[header.wanted]
    assert header.offer_chosen("turbo", wanted, False) == gr.skip()
    assert header.ask("turbo") == "turbo"
    exact = header.offer_exactly("turbo", wanted, "turbo")
    assert exact[header.bar.go]["value"] == "Get Fast (8.3 GB)"
    # An answer that comes when another model is chosen does not bring the first one back.
    other = header.offer_chosen("base", wanted, False)
    assert other[header.wanted] == "base"
    assert header.offer_exactly("base", "base", "turbo") == gr.skip()
    taken_back = header.offer_chosen("", "base", False)
    assert taken_back[header.wanted] == "" and not taken_back[header.banner]["visible"]
    assert header.offer_chosen("", "", False) == gr.skip()
    # A hub that is silent leaves the offer as it is.
    shop.answers = False
    assert header.ask("base") == ""
    assert header.offer_exactly("base", "base", "") == gr.skip()


def test_what_is_being_downloaded_is_not_replaced_by_another_offer(header):
    assert header.offer_chosen("base", "turbo", True) == gr.skip()


def test_a_download_that_failed_stays_offered_beside_its_reason(header, shop):
    failed = header.show_ended(shop.status(), "turbo")
    assert set(failed) == {header.status}
    del shop.missing["turbo"]
    done = header.show_ended(shop.status(), "turbo")
    assert done[header.wanted] == "" and not done[header.banner]["visible"]


def test_the_banner_says_what_each_of_the_small_models_can_and_cannot_do():
    small = {"model": "preview", "source": "preview"}
    status = replace(
        STATUS,
        planner=LanguageModelStatus("ready", **small),
        songwriter=SongwriterStatus("ready", **small, engine="small"),
    )
    assert status.planner.is_built_in and status.songwriter.is_built_in
    for text in (tooltips.BUILT_IN_PLANNER, tooltips.BUILT_IN_SONGWRITER):
        assert text in theme.banner(status)
        assert text not in theme.banner(STATUS)
