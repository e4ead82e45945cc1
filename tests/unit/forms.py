"""A studio with a status and without an engine, for the forms of the page's tabs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

import page_tabs
from page_form import Form
from status import UNKNOWN, LanguageModelStatus, Status

STATUS = replace(
    UNKNOWN, memory_plans=("resident", "swap"), planner=LanguageModelStatus("ready", "preview")
)


class Studio:
    """Has a status, and makes nothing."""

    def status(self) -> Status:
        return STATUS

    def stream(self, request: Any) -> Iterator[Any]:
        return iter(())


STUDIO: Any = Studio()


def build_forms() -> dict[str, Form]:
    """Return the forms of new tabs, by their mode."""
    with gr.Blocks():
        return {tab.form.mode: tab.form for tab in page_tabs.build_tabs(STUDIO)}
