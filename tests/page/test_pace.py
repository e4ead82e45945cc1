"""A slow machine: the page keeps up with what streams, so that Cancel and Stop act at once in every tab."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from events import Draft, Event, Progress

SLOW = pytest.mark.slow
# Two things stream in a tab for songs: the song, and help with the words.
STREAMS = [
    ("generate", "go", "cancel"),
    *(pytest.param(mode, "go", "cancel", marks=pytest.mark.long) for mode in ("cover", "extend")),
    pytest.param("edit", "go", "cancel", marks=SLOW),
    pytest.param("generate", "inspire", "assist-cancel", marks=pytest.mark.long),
    pytest.param("cover", "describe", "assist-cancel", marks=pytest.mark.long),
    ("lyrics", "go", "cancel"),
]


def drafts(request: Any) -> Iterator[Event]:
    """Write a word every 20 ms until somebody closes it."""
    yield Progress("loading")
    for count in range(1, 100_000):
        yield Draft("[Verse]\n" + "\n".join(f"word {each}" for each in range(max(1, count - 200), count + 1)), count)
        time.sleep(0.02)


def busy(page: Page, cdp: Any, seconds: float) -> float:
    """Return the share of the next `seconds` for which the page's main thread had the processor."""

    def spent() -> tuple[float, float]:
        found = {each["name"]: each["value"] for each in cdp.send("Performance.getMetrics")["metrics"]}
        return time.monotonic(), found["TaskDuration"]

    began, task = spent()
    page.wait_for_function("(end) => performance.now() >= end", arg=page.evaluate("performance.now()") + 1000 * seconds)
    ended, now = spent()
    return (now - task) / (ended - began)


@pytest.mark.parametrize("rate", [4, pytest.param(6, marks=pytest.mark.long)])
@pytest.mark.parametrize(("mode", "go", "cancel"), STREAMS, ids=lambda value: value)
def test_the_page_keeps_up(page: Page, fake, tab, song: Path, mode, go, cancel, rate: int):
    opened = tab(page, mode)
    if mode in ("cover", "extend", "edit"):
        opened.set("source", "upload", song)
    opened.text("brief" if mode == "lyrics" else "prompt").fill("a song")
    fake.script = drafts if mode == "lyrics" else fake.endless
    cdp = page.context.new_cdp_session(page)
    cdp.send("Performance.enable", {"timeDomain": "threadTicks"})
    cdp.send("Emulation.setCPUThrottlingRate", {"rate": rate})
    opened.part(go).click()
    line = opened.part("assist-progress") if cancel == "assist-cancel" else opened.progress
    expect(line).to_contain_text("tokens" if mode == "lyrics" else "step 3 of 50")
    share = busy(page, cdp, 4)
    clicked = time.monotonic()
    opened.part(cancel).click()
    assert fake.closed.wait(60)
    closed = time.monotonic() - clicked
    expect(opened.part(go)).to_be_enabled()
    print(f"{mode} {go} at {rate}x: busy {share:.0%}, closed after {closed:.1f} s")
    # The throttle stretches what the page does as it stretches all else.
    assert share < rate / 8
