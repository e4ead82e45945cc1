"""The LoRA panel without a browser: what it offers, what goes to a request and comes from a record."""

from __future__ import annotations

import gradio as gr

import lora_sources
import page_widgets
import theme
import tooltips
from events import Problem
from page_form import Form
from params import parse_request

HOSTILE = "<script>alert(1)</script>"


def built():
    with gr.Blocks() as demo:
        form = Form("cover")
        page_widgets.lora_panel(form)
    return form, {block.elem_id for block in demo.blocks.values() if block.elem_id}


def test_the_panel_is_a_field_in_a_fold_with_a_line_of_its_own():
    form, _ = built()
    assert list(form.fields) == ["options.loras"] and form.label("options.loras") == "LoRAs"
    assert ("options.loras",) in form.folds.values()
    told = form.point_at(Problem("lora_unknown", HOSTILE, "options.loras", "Look again."))
    assert set(told) == {*form.folds, form.lines["options.loras"]}
    assert "&lt;script&gt;" in told[form.lines["options.loras"]]
    assert form.point_at(Problem("out_of_memory", "No memory.")) == {}


def test_the_hub_is_offered_where_it_is_allowed(monkeypatch):
    offered = {"cover-lora-file", "cover-lora-hub"}
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
    assert page_widgets.parse_loras(None) == page_widgets.parse_loras("") == []
    assert page_widgets.parse_loras(["org/a"]) == ["org/a"]
    sent = page_widgets.parse_loras([*sent, {"source": "org/b", "weight": 2, "path": "/x"}])
    request = parse_request("generate", {"prompt": "x", "options": {"loras": sent}})
    assert [(lora.source, lora.weight) for lora in request.options.loras] == [("org/a", 0.5), ("org/b", 2.0)]


def test_a_list_from_a_record_says_what_each_one_is():
    form, _ = built()
    ((field, update),) = form.show({"options.loras": [{"source": "org/other", "weight": 0.25}]}).items()
    (other,) = update["value"]
    assert field is form.fields["options.loras"]
    assert (other["source"], other["name"], other["weight"]) == ("org/other", "org/other", 0.25)
    assert other["facts"] == [tooltips.LORA_LATER]
    assert page_widgets.show_loras(None) == page_widgets.show_loras([]) == []


def test_what_undo_brings_back_keeps_what_is_known_of_it():
    known = page_widgets.lora_entry(
        "/uploads/mine.safetensors", 0.5, lora_sources.LoraInfo("mine.safetensors", "PEFT", (4,), (), 3)
    )
    assert page_widgets.show_loras([known]) == [known] and known["name"] == "mine.safetensors"


def test_the_uploads_of_a_record_are_counted_whatever_it_is():
    for record, count in [
        ({"request": {"options": {"loras": [{"source": "upload"}, {"source": "a/b"}, {"source": "upload"}]}}}, 2),
        ({"request": {"options": {"loras": "upload"}}}, 0),
        (None, 0),
    ]:
        assert page_widgets.uploads_in(record) == count


def test_what_is_known_of_a_file_is_shown_in_few_words():
    info = lora_sources.LoraInfo("a", "PEFT", (8, 64), (128.0,), 192, 85_300_000, "", "XL", True)
    assert tooltips.lora_facts(info) == [
        *("PEFT", "rank 8 to 64", "alpha 128", "192 layers", "85.3 MB", "for XL", "fits this model")
    ]


def test_the_result_says_what_acted():
    acted = [{"name": HOSTILE, "weight": 0.8, "modules": 192}, {"name": "b", "weight": 0.0, "modules": 192}]
    told = theme.messages({"errors": [], "notes": ["A note."], "loras": acted})
    assert "LoRA &lt;script&gt;" in told and "weight 0.8, acted on 192 layers." in told
    assert "LoRA b: weight 0, so it had no effect." in told
