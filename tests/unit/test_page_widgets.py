"""Our widgets without a browser: the region of a new source, and the tempo to snap to."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import numpy as np
import pytest

import page_widgets
from limits import LEAST_REGION_SECONDS, SAMPLE_RATE
from page_fields import RestoreOffer
from page_form import Form
from page_widgets import AGAIN, WantedRegion
from tests.files import tag_file, write_song
from tests.unit.forms import STUDIO


def test_a_new_source_begins_with_a_middle_part():
    for seconds in (1.0, 1.04, 12.3456, 600.0):
        start, end = page_widgets.middle(seconds)
        assert 0 < start < end < seconds and end - start >= LEAST_REGION_SECONDS - 1e-9
        assert (start, end) == (round(start, 1), round(end, 1))
    assert page_widgets.middle(60) == (20, 30)


@pytest.fixture
def song(tmp_path: Path) -> str:
    path = tmp_path / "song.wav"
    tone = 0.3 * np.sin(np.arange(12 * SAMPLE_RATE) * 0.03).astype(np.float32)
    write_song(np.stack([tone, tone]), path, "wav")
    return str(path)


def test_a_wanted_region_is_for_one_drawing_and_a_reload_keeps_what_the_fields_hold(song):
    with gr.Blocks():
        selector = page_widgets.region_selector()
        start, end, bpm, more, chosen = (gr.Textbox() for _ in range(5))
        wanted = gr.State(None)
        drawn = page_widgets.connect_region(
            selector, gr.Audio(), start, end, bpm, more, wanted, chosen
        )
    region = WantedRegion("song.wav", 2.0, 5.0)
    shown = drawn.fn(song, None, region, "")
    assert (shown[start], shown[end], shown[more], shown[wanted]) == ("2", "5", "", None)
    # The same source keeps its region, and has no use for the wanted one any more.
    assert drawn.fn(song, shown[selector], region, "") == {wanted: None}
    assert drawn.fn(song, shown[selector], None, "") == gr.skip()
    # It is not that of another file.
    other = drawn.fn(song, None, WantedRegion("other.wav", 2.0, 5.0), "")
    assert (other[start], other[end]) == ("4", "6") and wanted not in other
    assert set(drawn.fn(song, None, None, AGAIN)) == {selector}
    assert drawn.fn(None, shown[selector], None, "")[selector] is None


@pytest.mark.parametrize("record", [None, {"request": {"prompt": "brass band"}}])
def test_after_a_reload_the_next_source_is_a_new_one(song, record):
    if record:
        tag_file(Path(song), "song", record)
    with gr.Blocks():
        chosen = gr.Textbox()
        offer = RestoreOffer(Form("cover", STUDIO), chosen)
    assert offer._look(song, AGAIN)[chosen] == ""
    Path(song).write_bytes(b"not audio")
    assert offer._look(song, AGAIN)[chosen] == ""


@pytest.mark.parametrize(
    ("record", "bpm"),
    [
        ({"request": {"bpm": 96}}, 96),
        ({"request": {"bpm": 96}, "plan": {"used": True, "bpm": 120}}, 120),
        ({"request": {"bpm": None}, "plan": None}, None),
        ({"request": {"bpm": 1e9}, "plan": {"bpm": "fast"}}, None),
        ({"request": [96]}, None),
        (None, None),
    ],
)
def test_the_tempo_of_a_record_is_checked(record: object, bpm: int | None):
    assert page_widgets.tempo(record) == bpm
