"""Our widgets without a browser: what the waveform of a source is made of, and the list of LoRAs."""

from __future__ import annotations

import base64
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile

import lora_sources
import page_widgets
import theme
import tooltips
from events import Problem
from limits import LEAST_REGION_SECONDS
from page_form import Form
from params import parse_request

RATE = 8_000
HOSTILE = "<script>alert(1)</script>"


def drawn(path: Path, samples: np.ndarray, **encoding: str) -> np.ndarray:
    """Write samples [samples] or [samples, channels] and return their picture as int [columns, 2]."""
    soundfile.write(path, samples, RATE, **encoding)
    data = base64.b64decode(page_widgets.peaks(path)["peaks"])
    return np.frombuffer(data, np.int8).reshape(-1, 2).astype(int)


def burst(level: float = 1.0) -> np.ndarray:
    """Return eight seconds of silence with a tone from 2 to 4."""
    samples = np.zeros(8 * RATE)
    samples[2 * RATE : 4 * RATE] = level * np.sin(np.arange(2 * RATE) * 0.7)
    return samples


# --- the waveform -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["wav", "mp3"])
def test_what_is_loud_is_drawn_where_it_is(tmp_path: Path, ending: str):
    path = tmp_path / f"burst.{ending}"
    columns = drawn(path, burst())
    assert page_widgets.peaks(path)["seconds"] == pytest.approx(8, abs=0.1)
    quarter, margin = len(columns) // 4, 20  # coded files smear and shift a little
    loud = columns[quarter + margin : 2 * quarter - margin]
    assert loud[:, 1].min() > 60 and loud[:, 0].max() < -60
    assert np.abs(columns[: quarter - margin]).max() <= 2
    assert np.abs(columns[2 * quarter + margin :]).max() <= 2


def test_a_sound_in_any_channel_and_a_click_of_one_sample_are_seen(tmp_path: Path):
    surround = np.zeros((RATE * 2, 6))
    surround[:, 4] = 0.5 * np.sin(np.arange(len(surround)))
    assert drawn(tmp_path / "surround.wav", surround)[:, 1].max() == 127
    click = np.zeros(RATE * 60)
    click[RATE * 30] = -0.8
    columns = drawn(tmp_path / "click.wav", click)
    assert columns[len(columns) // 2, 0] == -127 and np.count_nonzero(columns) == 1


def test_a_quiet_recording_fills_the_picture_but_noise_and_silence_do_not(tmp_path: Path):
    assert drawn(tmp_path / "quiet.wav", burst(0.02), subtype="FLOAT").max() == 127
    assert drawn(tmp_path / "noise.wav", burst(0.0005), subtype="FLOAT").max() <= 7
    silence = drawn(tmp_path / "silence.wav", np.zeros(RATE * 2))
    assert len(silence) == page_widgets.COLUMNS and not silence.any()
    broken = burst()
    broken[:3] = np.nan, np.inf, -np.inf
    assert drawn(tmp_path / "broken.wav", broken, subtype="FLOAT").max() == 127


def test_what_cannot_be_read_has_no_waveform(tmp_path: Path):
    (tmp_path / "words.wav").write_bytes(b"just some words")
    for name in ("words.wav", "missing.wav"):
        assert page_widgets.peaks(tmp_path / name) == {"seconds": 0.0, "peaks": ""}


def test_a_new_source_begins_with_a_middle_part():
    for seconds in (1.0, 1.04, 12.3456, 600.0):
        start, end = page_widgets.middle(seconds)
        assert 0 < start < end < seconds and end - start >= LEAST_REGION_SECONDS - 1e-9
        assert (start, end) == (round(start, 1), round(end, 1))
    assert page_widgets.middle(60) == (20, 30)


def test_a_closer_look_has_more_columns_and_onsets_where_it_gets_louder(tmp_path: Path):
    samples = np.zeros(RATE * 90)
    for second in (0.5, 1.25, 2.02):
        samples[round(second * RATE) :][:800] = 0.5 * np.sin(np.arange(800) * 0.7)
    assert len(drawn(tmp_path / "beats.wav", samples)) == page_widgets.COLUMNS
    found = page_widgets.waveform(tmp_path / "beats.wav")
    assert len(base64.b64decode(found["peaks"])) == 2 * 90 * page_widgets.CLOSE_COLUMNS
    onsets = np.frombuffer(base64.b64decode(found["onsets"]), np.uint8)
    assert len(onsets) == 90 * page_widgets.ONSETS
    assert [round(at / page_widgets.ONSETS, 2) for at in np.flatnonzero(onsets > 200)] == [0.5, 1.24, 2.02]


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


# --- LoRAs --------------------------------------------------------------------------------------------------------


def built() -> tuple[Form, set[str]]:
    with gr.Blocks() as demo:
        form = Form("cover")
        page_widgets.lora_panel(form)
    return form, {block.elem_id for block in demo.blocks.values() if block.elem_id}


def test_a_problem_of_a_run_opens_the_panel_and_is_shown_in_it():
    form, _ = built()
    assert list(form.fields) == ["options.loras"] and form.label("options.loras") == "LoRAs"
    told = form.point_at(Problem("lora_unknown", HOSTILE, "options.loras", "Look again."))
    assert set(told) == {*form.folds, form.lines["options.loras"]}
    assert "&lt;script&gt;" in told[form.lines["options.loras"]]
    assert form.point_at(Problem("out_of_memory", "No memory.")) == {}


def test_the_hub_is_offered_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch):
    offered = {"cover-lora-file", "cover-lora-hub"}
    assert offered & built()[1] == offered
    monkeypatch.setenv("SPACE_ID", "org/space")
    monkeypatch.delenv(lora_sources.HUB_VARIABLE, raising=False)
    assert offered & built()[1] == {"cover-lora-file"}
    monkeypatch.setenv(lora_sources.HUB_VARIABLE, "1")
    assert offered & built()[1] == offered


def test_a_list_from_the_browser_is_what_a_request_holds():
    sent = [{"source": "org/a", "weight": 0.5, "name": HOSTILE, "facts": [HOSTILE], "note": ""}]
    parse = built()[0].parsers["options.loras"]
    assert parse(sent) == [{"source": "org/a", "weight": 0.5}]
    assert (parse(None), parse(""), parse(["org/a"])) == ([], [], ["org/a"])
    sent = parse([*sent, {"source": "org/b", "weight": 2, "path": "/x"}])
    request = parse_request("generate", {"prompt": "x", "options": {"loras": sent}})
    assert [(lora.source, lora.weight) for lora in request.options.loras] == [("org/a", 0.5), ("org/b", 2.0)]


def test_a_list_from_a_record_or_from_undo_says_what_each_one_is():
    form, _ = built()
    info = lora_sources.LoraInfo("mine.safetensors", "PEFT", (4,), (), 3)
    known = page_widgets.lora_entry("/uploads/mine.safetensors", 0.5, info)
    ((field, update),) = form.show({"options.loras": [{"source": "org/a", "weight": 0.25}, known]}).items()
    other = {"source": "org/a", "name": "org/a", "weight": 0.25, "facts": [tooltips.LORA_LATER], "note": ""}
    assert field is form.fields["options.loras"]
    assert update["value"] == [other, known] and known["name"] == "mine.safetensors"
    assert page_widgets.show_loras(None) == []


def test_facts_and_effect_of_a_lora_are_told_in_few_words():
    info = lora_sources.LoraInfo("a", "PEFT", (8, 64), (128.0,), 192, 85_300_000, "", "XL", True)
    facts = ["PEFT", "rank 8 to 64", "alpha 128", "192 layers", "85.3 MB", "for XL", "fits this model"]
    assert tooltips.lora_facts(info) == facts
    acted = [{"name": HOSTILE, "weight": 0.8, "modules": 192}, {"name": "b", "weight": 0.0, "modules": 192}]
    told = theme.messages({"errors": [], "notes": ["A note."], "loras": acted})
    assert "LoRA &lt;script&gt;" in told and "weight 0.8, acted on 192 layers." in told
    assert "LoRA b: weight 0, so it had no effect." in told
