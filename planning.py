"""Plan the song first: the controls of the Generate tab, what the result says about a plan, and keeping one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr

import markup
import restore
import tooltips
from backend import get_backend
from form import AT_ONCE, Form, Updates, add, add_number, add_slider, available, help_text, reason
from result import Made, ResultPanel

OPTIONS = ("options.rewrite", "options.plan_temperature", "options.plan_cfg", "options.plan_seed")


class GenerateForm(Form):
    """The form of the Generate tab. Its request says nothing about how to plan where nothing is planned."""

    def __init__(self):
        super().__init__("generate")

    def read(self, values: Iterable[Any]) -> dict[str, Any]:
        read = super().read(values)
        unused = () if read["options.plan"] else OPTIONS
        return {name: value for name, value in read.items() if name not in unused}

    def show(self, values: Mapping[str, Any]) -> Updates:
        """Return the updates that put checked values into their fields; a plan is asked for where one can be made."""
        if values.get("options.plan") and not available(get_backend().status()["planner"]):
            values = {**values, "options.plan": False}
        return super().show(values)


def add_plan(form: Form) -> None:
    add(form, "options.plan", gr.Checkbox, value=True)


def add_plan_options(form: Form) -> None:
    """Add how a plan is made, which has an effect where one is."""
    add(form, "options.rewrite", gr.Checkbox, value=False)
    with gr.Row(equal_height=True):
        add_slider(form, "options.plan_temperature")
        add_slider(form, "options.plan_cfg")
    add_number(form, "options.plan_seed")
    fields = [form.fields[name] for name in OPTIONS]
    plan = form.fields["options.plan"]
    plan.change(lambda on: [gr.update(interactive=on) for _ in fields], plan, fields, **AT_ONCE)
    form.watchers.append(lambda facts: plan_updates(form, facts["planner"]))


def plan_updates(form: Form, planner: Mapping[str, Any]) -> Updates:
    """Return what the form says about the planner: without one nothing is planned, and each control says why."""
    names = ("options.plan", *OPTIONS)
    if not available(planner):
        why = {"options.plan": tooltips.NO_PLAN.format(reason=reason(planner))}
        updates = {name: {"info": why.get(name, tooltips.NO_PLANNER), "interactive": False} for name in names}
        updates["options.plan"]["value"] = False
    else:
        updates = {name: {"info": help_text(name.rpartition(".")[2])} for name in names}
        updates["options.plan"]["interactive"] = True
    return {form.fields[name]: gr.update(**changes) for name, changes in updates.items()}


def connect_keep(form: Form, fold: gr.Accordion, result: ResultPanel) -> None:
    """Let the next song have this one's plan: its seed goes into the form, and the group that holds it unfolds."""
    plan = result.plan

    def keep(made: list[Made]) -> Updates:
        seed = (made[-1].record.get("plan") or {}).get("seed") if made else None
        options = {"plan": True, "plan_seed": seed}
        found = restore.settings("generate", {"request": {"options": options}}).values
        if "options.plan_seed" not in found:
            return {plan.kept: ""}
        said = tooltips.PLAN_KEPT.format(seed=found["options.plan_seed"])
        return {**form.show(found), fold: gr.Accordion(open=True), plan.kept: markup.said(said)}

    plan.keep.click(keep, result.made, [*form.settings, fold, plan.kept], **AT_ONCE)
