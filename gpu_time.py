"""The GPU seconds that ZeroGPU will be asked for, shown beside the button before the click.

Elsewhere nobody is asked, so there is no line. The numbers are zerogpu.py's.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

import bootstrap
import markup
import tooltips
import uploads
import zerogpu
from backend import get_backend
from events import InvalidRequest
from form import Form
from params import Request

# Fields without a say in how long it takes, of which some may still be empty: any words do, and any file.
WORDS = {"prompt": "a song", "brief": "a song"}
NO_FILE = "none yet"


def seconds_text(form: Form, values: Any) -> str:
    """Return what the line says for a tab's values: the seconds, or why there are too many; "" while one is wrong."""
    read = dict(zip(form.fields, values, strict=True))
    read |= {name: text for name, text in WORDS.items() if name in read and not (read[name] or "").strip()}
    if "source" in read and not read["source"]:
        read["source"] = NO_FILE
    try:
        request = form.request(read.values())
        work = get_backend().work_of(request, _source_seconds(request))
    except InvalidRequest:
        return ""
    problem = zerogpu.refusal(work)
    return problem.text() if problem else tooltips.GPU_SECONDS.format(seconds=zerogpu.gpu_seconds(work))


def connect_seconds(form: Form, line: gr.HTML) -> None:
    """Keep the line up to date with the form, on ZeroGPU."""
    if not bootstrap.on_zerogpu():
        return

    def say(there: dict[str, Any]) -> str:
        text = seconds_text(form, there.values())
        return markup.remark(text) if text else ""

    blank = {name: field.value for name, field in form.fields.items()}
    form.watchers.append(lambda facts: {line: say(blank)})
    form.follow(line, form.fields, say, unheard=WORDS)


def _source_seconds(request: Request) -> float:
    source = getattr(request, "source", "")
    return uploads.seconds_of(source) if source and source != NO_FILE else 0.0
