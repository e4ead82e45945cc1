"""The GPU seconds shown before the click on a Space: the real `spaces` package on a fake device API."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

import estimate
import gpu_zero
import tooltips
from params import parse_request, settle
from tests.engine.space import Space, open_space
from tests.page.steps import Tab, fits, violations

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ZeroGPU's workers need Linux"
)
# A visitor's changes in order: the first two cost more, the last one less.
CHANGES = {
    "duration": ("type", "240", 240),
    "takes": ("pick", "3", 3),
    "quality": ("pick", "Draft, 20 steps", "draft"),
}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, tiny) -> Iterator[Space]:
    yield from open_space(tmp_path_factory.mktemp("space"), tiny)


def sentence(**values: Any) -> str:
    """Return the sentence with the seconds that the call itself asks for."""
    request = parse_request("generate", values)
    work = estimate.work_of(request, settle(request, "sft"), planner=True)
    return tooltips.GPU_SECONDS.format(seconds=gpu_zero.gpu_seconds(work))


@pytest.mark.slow
def test_the_seconds_are_shown_before_the_click_and_follow_the_form(space: Space, visit, tab):
    page = visit(space.url, 390)
    opened: Tab = tab(page, "generate")
    line, values = opened.part("seconds"), {"prompt": "a song", "duration": 60}
    opened.unfold()
    opened.set("duration", "type", "60")
    sentences = [sentence(**values)]
    expect(line).to_have_text(sentences[0])
    for name, (how, shown, value) in CHANGES.items():
        opened.set(name, how, shown)
        values[name] = value
        sentences.append(sentence(**values))
        expect(line).to_have_text(sentences[-1])
    assert len({*sentences}) == len(sentences), sentences
    # It is beside the button, inside the window.
    assert 0 < opened.go.bounding_box()["y"] - line.bounding_box()["y"] < 100
    assert fits(page)
    # Too much for one call is announced before the click and refused after it, without asking for a GPU.
    asked = len(space.api.asked)
    opened.set("duration", "type", "600")
    opened.set("quality", "pick", "Best, 80 steps")
    expect(line).to_contain_text("seconds of GPU time; one call gets up to 300. It fits with")
    opened.set("prompt", "type", "a song")
    opened.go.click()
    expect(opened.field("duration")).to_contain_text("one call gets up to 300")
    assert violations(page) == []
    assert len(space.api.asked) == asked
    # Nothing is shown while a field is wrong; kept settings have their seconds after a reload.
    opened.set("duration", "type", "9")
    expect(line.locator(".shown")).to_have_count(0)
    opened.set("duration", "type", "240")
    opened.set("quality", "pick", "Draft, 20 steps")
    page.reload()
    expect(opened.text("duration")).to_have_value("240")
    expect(line).to_have_text(sentences[-1])
