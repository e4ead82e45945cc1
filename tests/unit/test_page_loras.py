"""The list of LoRAs without a browser."""

from __future__ import annotations

import gradio as gr
import pytest

import lora_sources
import page_loras
import theme
import tooltips
from backend import get_backend
from events import Problem
from page_form import Form
from params import parse_request

HOSTILE = "<script>alert(1)</script>"


def built() -> tuple[Form, set[str]]:
    with gr.Blocks() as demo:
        form = Form("cover", get_backend())
        page_loras.add_loras(form)
    return form, {block.elem_id for block in demo.blocks.values() if block.elem_id}


def test_a_problem_of_a_run_opens_the_panel_and_is_shown_in_it():
    form, _ = built()
    assert list(form.fields) == ["options.loras"] and form.label("options.loras") == "LoRAs"
    told = form.point_at(Problem("lora_unknown", HOSTILE, "options.loras", "Look again."))
    (line,) = form.error_lines
    assert set(told) == {*form.folds, line}
    assert "&lt;script&gt;" in told[line]
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
    parse = page_loras.parse_loras
    assert parse(sent) == [{"source": "org/a", "weight": 0.5}]
    assert (parse(None), parse(""), parse(["org/a"])) == ([], [], ["org/a"])
    sent = parse([*sent, {"source": "org/b", "weight": 2, "path": "/x"}])
    request = parse_request("generate", {"prompt": "x", "options": {"loras": sent}})
    assert [(lora.source, lora.weight) for lora in request.options.loras] == [
        ("org/a", 0.5),
        ("org/b", 2.0),
    ]


def test_a_list_from_a_record_or_from_undo_says_what_each_one_is():
    form, _ = built()
    info = lora_sources.LoraInfo("mine.safetensors", "PEFT", (4,), (), 3)
    known = page_loras.lora_entry("/uploads/mine.safetensors", 0.5, info)
    ((field, update),) = form.show(
        {"options.loras": [{"source": "org/a", "weight": 0.25}, known]}
    ).items()
    other = {
        "source": "org/a",
        "name": "org/a",
        "weight": 0.25,
        "facts": [tooltips.LORA_LATER],
        "note": "",
    }
    assert field is form.fields["options.loras"]
    assert update["value"] == [other, known] and known["name"] == "mine.safetensors"
    assert page_loras.show_loras(None) == []


def test_facts_and_effect_of_a_lora_are_told_in_few_words():
    info = lora_sources.LoraInfo(
        "a", "PEFT", (8, 64), (128.0,), 192, size=85_300_000, made_for="XL", fits=True
    )
    facts = [
        "PEFT",
        "rank 8 to 64",
        "alpha 128",
        "192 layers",
        "85.3 MB",
        "for XL",
        "fits this model",
    ]
    assert tooltips.lora_facts(info) == facts
    acted = [
        {"name": HOSTILE, "weight": 0.8, "modules": 192},
        {"name": "b", "weight": 0.0, "modules": 192},
    ]
    told = theme.messages({"errors": [], "notes": ["A note."], "loras": acted})
    assert "LoRA &lt;script&gt;" in told and "weight 0.8, acted on 192 layers." in told
    assert "LoRA b: weight 0, so it had no effect." in told
