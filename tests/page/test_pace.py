"""A slow machine: the page keeps up with what streams, so that Cancel and Stop act at once in every tab.

And a slow line: what a first visit transfers is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from events import Draft, Event, Progress

SLOW = pytest.mark.slow
# Two things stream in a tab for songs: the song, and help with the words.
STREAMS = [
    pytest.param("generate", "go", "cancel", marks=SLOW),
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


@pytest.mark.slow
def test_a_first_visit_transfers_at_most_700_kb(browser, fake_address):
    context = browser.new_context()
    page = context.new_page()
    cdp, sizes = context.new_cdp_session(page), []
    cdp.send("Network.enable")
    cdp.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(fake_address[0])
    expect(page.locator("#studio-status")).to_contain_text("Model:")
    page.wait_for_timeout(1000)
    context.close()
    assert 200_000 < sum(sizes) <= 700_000


@pytest.mark.parametrize("rate", [4, pytest.param(6, marks=pytest.mark.long)])
@pytest.mark.parametrize(("mode", "go", "cancel"), STREAMS, ids=lambda value: value)
def test_the_page_keeps_up(page: Page, fake, tab, song: Path, mode, go, cancel, rate: int):
    opened = tab(page, mode)
    if mode in ("cover", "extend", "edit"):
        opened.set("source", "upload", song)
    opened.text("brief" if mode == "lyrics" else "prompt").fill("a song")
    fake.script = drafts if mode == "lyrics" else fake.endless
    cdp = page.context.new_cdp_session(page)
    cdp.send("Emulation.setCPUThrottlingRate", {"rate": rate})
    opened.part(go).click()
    line = opened.part("assist-progress") if cancel == "assist-cancel" else opened.progress
    expect(line).to_contain_text("tokens" if mode == "lyrics" else "step 3 of 50")
    # Long enough for a page that cannot keep up to fall behind for good.
    page.wait_for_timeout(4000)
    clicked = time.monotonic()
    opened.part(cancel).click()
    assert fake.closed.wait(60)
    closed = time.monotonic() - clicked
    expect(opened.part(go)).to_be_enabled()
    print(f"{mode} {go} at {rate}x: closed after {closed:.1f} s")


def test_what_a_visit_and_a_key_cost_does_not_grow_with_the_page(fake_address):
    page = httpx.get(f"{fake_address[0]}config").raise_for_status().json()

    def ids(part: dict[str, Any]) -> set[int]:
        return {part["id"]}.union(*map(ids, part.get("children", ())))

    built = ids(page["layout"])
    by_id = {each["id"]: each for each in page["components"]}
    # Nothing is built for the API.
    public = [each for each in page["dependencies"] if each["api_visibility"] == "public"]
    assert len(public) == 6 and not built & {part for each in public for part in [*each["inputs"], *each["outputs"]]}
    # And what is not built must be hidden: the page waits for everything else.
    assert all(each["props"].get("visible") is False for number, each in by_id.items() if number not in built)
    # Gradio searches the whole page for each input of an event: a letter in the prompt asks for none.
    (prompt,) = [
        number for number in built if by_id.get(number, {}).get("props", {}).get("elem_id") == "generate-prompt"
    ]
    heard = [each for each in page["dependencies"] if [prompt, "change"] in each["targets"]]
    assert len(heard) == 1 and not heard[0]["inputs"] and not heard[0]["backend_fn"]
