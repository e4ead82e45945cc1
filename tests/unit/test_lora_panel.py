"""The LoRA panel without a browser: what it offers, what goes to a request and comes from a record."""

from __future__ import annotations

import json

import gradio as gr
import pytest

import lora_panel
import lora_sources
import markup
import tooltips
from events import Problem
from form import Form
from params import parse_request

PRESET = {"name": "Jazz voice", "id": "org/jazz:a.safetensors", "for": "a smoky voice", "licence": "MIT", "fits": "XL"}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def preset(tmp_path, monkeypatch):
    path = tmp_path / "loras.json"
    path.write_text(json.dumps({"loras": [PRESET]}))
    monkeypatch.setattr(lora_sources, "PRESETS_FILE", path)


def built():
    with gr.Blocks() as demo:
        form = Form("cover")
        lora_panel.lora_panel(form)
    return form, {block.elem_id for block in demo.blocks.values() if block.elem_id}


def test_the_panel_is_a_field_in_a_fold_with_a_line_of_its_own():
    form, _ = built()
    assert list(form.fields) == ["options.loras"] and form.label("options.loras") == "LoRAs"
    assert ("options.loras",) in form.folds.values()
    told = form.point_at(Problem("lora_unknown", HOSTILE, "options.loras", "Look again."))
    assert set(told) == {*form.folds, form.lines["options.loras"]}
    assert "&lt;script&gt;" in told[form.lines["options.loras"]]
    assert form.point_at(Problem("out_of_memory", "No memory.")) == {}


def test_presets_and_the_hub_are_offered_where_there_are_some(preset, monkeypatch, tmp_path):
    assert {"cover-lora-preset", "cover-lora-preset-add"} <= built()[1]
    monkeypatch.setattr(lora_sources, "PRESETS_FILE", tmp_path / "loras.json")
    (tmp_path / "loras.json").write_text('{"loras": []}')
    offered = {"cover-lora-file", "cover-lora-hub", "cover-lora-preset"}
    assert offered & built()[1] == {"cover-lora-file", "cover-lora-hub"}
    monkeypatch.setenv("SPACE_ID", "org/space")
    monkeypatch.delenv(lora_sources.HUB_VARIABLE, raising=False)
    assert offered & built()[1] == {"cover-lora-file"}
    monkeypatch.setenv(lora_sources.HUB_VARIABLE, "1")
    assert "cover-lora-hub" in built()[1]


def test_a_list_from_the_browser_is_what_a_request_holds():
    sent = [{"source": "org/a", "weight": 0.5, "name": HOSTILE, "facts": [HOSTILE], "note": ""}]
    form, _ = built()
    assert form.parse("options.loras", sent) == [{"source": "org/a", "weight": 0.5}]
    assert lora_panel.parse(None) == lora_panel.parse("") == []
    assert lora_panel.parse(["org/a"]) == ["org/a"]
    sent = lora_panel.parse([*sent, {"source": "org/b", "weight": 2, "path": "/x"}])
    request = parse_request("generate", {"prompt": "x", "options": {"loras": sent}})
    assert [(lora.source, lora.weight) for lora in request.options.loras] == [("org/a", 0.5), ("org/b", 2.0)]


def test_a_list_from_a_record_says_what_each_one_is(preset):
    form, _ = built()
    given = [{"source": source, "weight": 0.25} for source in ("org/other", "jazz voice", "org/jazz:a.safetensors")]
    ((field, update),) = form.show({"options.loras": given}).items()
    other, *same = update["value"]
    assert field is form.fields["options.loras"]
    assert (other["source"], other["name"], other["weight"]) == ("org/other", "org/other", 0.25)
    assert other["facts"] == [tooltips.LORA_LATER]
    # A Space that fetches no repository fetches its presets: what the record has is the preset again.
    expected = {"source": "Jazz voice", "name": "Jazz voice", "facts": ["a smoky voice", "MIT", "for XL"]}
    assert same == [{**expected, "weight": 0.25, "note": ""}] * 2
    assert lora_panel.show(None) == lora_panel.show([]) == []


def test_what_undo_brings_back_keeps_what_is_known_of_it():
    known = lora_panel.entry(
        "/uploads/mine.safetensors", 0.5, lora_sources.LoraInfo("mine.safetensors", "PEFT", (4,), (), 3)
    )
    assert lora_panel.show([known]) == [known] and known["name"] == "mine.safetensors"


def test_the_uploads_of_a_record_are_counted_whatever_it_is():
    for record, count in [
        ({"request": {"options": {"loras": [{"source": "upload"}, {"source": "a/b"}, {"source": "upload"}]}}}, 2),
        ({"request": {"options": {"loras": "upload"}}}, 0),
        (None, 0),
    ]:
        assert lora_panel.uploads_in(record) == count


def test_a_preset_must_be_chosen_before_it_is_added(preset):
    assert lora_panel.add_preset(None)[0] == [] and "alert" in lora_panel.add_preset(None)[1]
    (added,), line, field = lora_panel.add_preset("Jazz voice")
    assert (added["source"], added["weight"], line, field) == ("Jazz voice", 1, "", None)


def test_what_is_known_of_a_file_is_shown_in_few_words():
    info = lora_sources.LoraInfo("a", "PEFT", (8, 64), (128.0,), 192, 85_300_000, "", "XL", True)
    assert tooltips.lora_facts(info) == [
        *("PEFT", "rank 8 to 64", "alpha 128", "192 layers", "85.3 MB", "for XL", "fits this model")
    ]


def test_the_result_says_what_acted():
    acted = [{"name": HOSTILE, "weight": 0.8, "modules": 192}, {"name": "b", "weight": 0.0, "modules": 192}]
    told = markup.messages({"errors": [], "notes": ["A note."], "loras": acted})
    assert "LoRA &lt;script&gt;" in told and "weight 0.8, acted on 192 layers." in told
    assert "LoRA b: weight 0, so it had no effect." in told
