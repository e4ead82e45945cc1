"""Calls of the API over gradio_client and plain HTTP, and their answers."""

import json
import re

import httpx
import pytest
import soundfile
from gradio_client.exceptions import ValidationError

FAST = {"steps": 2}
RATE = 48_000
SECONDS = 3.0
# What each task takes besides a source; the result is as long as the source, `before` and `after` together.
TASKS = {
    "cover": ("/cover", {}),
    "extend": ("/extend", {"before": 0.75, "after": 1.25}),
    "repaint": ("/edit", {"start": 1, "end": 2}),
    "mix": ("/edit", {"action": "layer", "tracks": ["bass"], "options": {"mix": True}}),
}


def samples(path):
    """Return a file's samples, float64 [n, 2]."""
    found, rate = soundfile.read(path, always_2d=True)
    assert rate == RATE
    return found


def post(server, endpoint="generate", **named):
    """Start a song over plain HTTP as curl does, with NaN and Infinity as JSON does not allow them."""
    length = {"duration": 10} if endpoint == "generate" else {}
    return httpx.post(
        f"{server}/gradio_api/call/v2/{endpoint}",
        content=json.dumps({"prompt": "calm piano", **length, "options": FAST, **named}),
        headers={"content-type": "application/json"},
        timeout=300,
    )


def refused(response):
    """Return the messages of a 422 by parameter."""
    assert response.status_code == 422, response.text
    return {
        one["parameter_name"]: one["message"]
        for one in response.json()["detail"]
        if not one["is_valid"]
    }


def listen(server, event):
    """Return the (event, data) pairs of a call until its end, without heartbeats."""
    heard = []
    with httpx.stream(
        "GET", f"{server}/gradio_api/call/v2/generate/{event}", timeout=300
    ) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                heard.append([line.removeprefix("event: "), None])
            elif line.startswith("data: "):
                heard[-1][1] = json.loads(line.removeprefix("data: "))
    return [(name, data) for name, data in heard if name != "heartbeat"]


def told(client, endpoint, **given):
    """Return the messages of a gradio_client's ValidationError by parameter."""
    with pytest.raises(ValidationError) as caught:
        client.predict(**given, api_name=endpoint)
    return dict(re.findall(r"^- (\w+): (.*)$", str(caught.value), re.MULTILINE))
