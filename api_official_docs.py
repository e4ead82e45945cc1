"""The description of ACE-Step's official REST API: OpenAPI's facts, and a page that shows them."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from starlette.responses import HTMLResponse

from api_official_fields import FIELDS, Field


def _described(field: Field) -> dict[str, Any]:
    description = field.ours
    if field.aliases:
        description = f"{', '.join(field.aliases)}: {field.ours}"
    default = field.default
    if isinstance(default, tuple):
        default = list(default)
    return {"description": description, "default": default}


TASK_SCHEMA = {
    "title": "Task",
    "type": "object",
    "additionalProperties": True,
    "properties": {field.name: _described(field) for field in FIELDS},
}


def described_body(**fields: str) -> dict[str, Any]:
    """Return OpenAPI's description of a leniently read body, from a description of each field."""
    properties = {name: {"description": text} for name, text in fields.items()}
    schema = {"type": "object", "additionalProperties": True, "properties": properties}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


QUERY = described_body(task_id_list="a list of task ids, or one as JSON text", ai_token="a key")
SAMPLE = described_body(
    query="the idea of a song",
    instrumental="whether nobody sings",
    vocal_language="a code such as en; unknown leaves it open",
    ai_token="a key",
)
EXAMPLE = described_body(sample_type="simple_mode, or custom_mode (default)", ai_token="a key")


def _fields_of(call: Mapping[str, Any]) -> list[str]:
    """Return a line for each field of a route's body; those of a task have a table of their own."""
    content = call.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    if schema.get("title") == TASK_SCHEMA["title"]:
        return ["any field of a task, below"]
    properties = schema.get("properties", {})
    return [f"{name}: {facts.get('description', '')}" for name, facts in properties.items()]


def docs_page(described: Mapping[str, Any]) -> HTMLResponse:
    """Return a plain page about the routes, which loads nothing from other sites."""
    parts = ["<!doctype html><html lang='en'><meta charset='utf-8'><title>ACE-Step API</title>"]
    parts.append("<h1>ACE-Step API</h1><p>The same as <a href='openapi.json'>openapi.json</a>.</p>")
    for path, calls in described["paths"].items():
        for method, call in calls.items():
            description = html.escape(call.get("description", ""))
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{description}</p>"
            )
            parts += [f"<li>{html.escape(line)}</li>" for line in _fields_of(call)]
    parts.append("<h2>Fields of a task</h2><table><tr><th>field<th>also<th>default<th>here</tr>")
    for field in FIELDS:
        cells = (field.name, ", ".join(field.aliases), repr(field.default), field.ours)
        row = "".join(f"<td>{html.escape(cell)}" for cell in cells)
        parts.append(f"<tr>{row}</tr>")
    return HTMLResponse("\n".join([*parts, "</table></html>"]))
