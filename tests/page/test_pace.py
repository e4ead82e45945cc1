"""Slow machines: the page keeps up with a stream, so Cancel acts at once. Slow lines: a visit costs little."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from events import Draft, Event, Progress
from tests.waiting import until

SLOW, MATRIX = pytest.mark.slow, pytest.mark.matrix
# Song tabs stream two things: the song, and help with the words.
STREAMS = [
    pytest.param("generate", "go", "cancel", marks=SLOW),
    *(pytest.param(mode, "go", "cancel", marks=MATRIX) for mode in ("cover", "extend", "edit")),
    pytest.param("generate", "inspire", "assist-cancel", marks=MATRIX),
    pytest.param("cover", "describe", "assist-cancel", marks=MATRIX),
    pytest.param("lyrics", "go", "cancel", marks=SLOW),
]


@pytest.mark.parametrize("rate", [4, pytest.param(6, marks=MATRIX)])
@pytest.mark.parametrize(("mode", "go", "cancel"), STREAMS, ids=lambda value: value)
@pytest.mark.alters_page
def test_the_page_keeps_up(page: Page, fake, tab, song: Path, mode, go, cancel, rate: int):
    def drafts(request: Any) -> Iterator[Event]:
        """Write a word every 20 ms until closed."""
        yield Progress("loading")
        for fake.taken in itertools.count(1):
            words = (f"word {each}" for each in range(max(1, fake.taken - 200), fake.taken + 1))
            yield Draft("[Verse]\n" + "\n".join(words), fake.taken)
            time.sleep(0.02)

    opened = tab(page, mode)
    if mode in ("cover", "extend", "edit"):
        opened.set("source", "upload", song)
    opened.text("brief" if mode == "lyrics" else "prompt").fill("a song")
    fake.pause = 0.05
    fake.script = drafts if mode == "lyrics" else fake.endless
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": rate})
    opened.part(go).click()
    line = opened.part("assist-progress") if cancel == "assist-cancel" else opened.progress
    expect(line).to_contain_text("tokens" if mode == "lyrics" else "step 3 of 50")
    # A page that cannot keep up has fallen behind for good by then.
    until(lambda: fake.taken > (200 if mode == "lyrics" else 80))
    clicked = time.monotonic()
    opened.part(cancel).click()
    assert fake.closed.wait(100)
    print(f"{mode} {go} at {rate}x: closed after {time.monotonic() - clicked:.1f} s")
    expect(opened.part(go)).to_be_enabled()


@pytest.mark.slow
def test_a_first_visit_transfers_at_most_650_kb(browser, fake_address):
    context = browser.new_context()
    page = context.new_page()
    cdp, sizes = context.new_cdp_session(page), []
    cdp.send("Network.enable")
    cdp.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(fake_address[0])
    expect(page.locator("#studio-status")).to_contain_text("Model:")
    # Two rests of the page: nothing more is to be loaded.
    page.evaluate("new Promise((done) => requestIdleCallback(() => requestIdleCallback(done)))")
    context.close()
    print(f"a first visit transfers {sum(sizes) / 1000:.0f} kB")
    assert 200_000 < sum(sizes) <= 650_000


# Gradio's own record of which components show the progress of an event.
STATUSES = """async () => {
  const files = performance.getEntriesByType("resource").map((each) => each.name);
  const tracker = await import(files.find((name) => name.includes("/statustracker-")));
  const { prototype } = Object.values(tracker).find((each) => each.prototype?.resolve_args);
  const { update } = prototype;
  window.statuses = [];
  prototype.update = function (...given) {
    update.apply(this, given);
    window.statuses.push(Object.keys(this.current).length);
  };
}"""


@pytest.mark.alters_page
def test_no_component_gets_a_status_that_each_later_event_would_search_the_page_for(
    page: Page, fake, tab
):
    generate = tab(page, "generate")
    page.evaluate(STATUSES)
    generate.set("prompt", "type", "a song")
    generate.made(fake)
    page.wait_for_function("statuses.length > 5")
    assert {*page.evaluate("statuses")} == {0}


# Frames are numbered in the order in which they are asked for. What moves at first has 20 stretches of 30 to end.
RESTS = """async () => {
  const frame = () => new Promise((drawn) => {
    const number = requestAnimationFrame(() => drawn(number));
  });
  for (let stretch = 0; stretch < 20; stretch++) {
    const first = await frame();
    let last;
    for (let count = 0; count < 30; count++) last = await frame();
    if (last - first === 30) return true;
  }
  return false;
}"""


def test_a_page_at_rest_asks_for_no_frames(page: Page, fake, tab):
    assert page.evaluate(RESTS)
    generate = tab(page, "generate")
    generate.set("prompt", "type", "a song")
    generate.made(fake)
    assert page.evaluate(RESTS)


def test_the_cost_of_a_visit_and_of_a_key_does_not_grow_with_the_page(fake_address):
    # Nothing is shown before it has come. In Brotli 88 kB were measured, and 131 kB in gzip, which a browser asks for
    # at an address of the network without https; a component takes about 200 bytes of them. Without compression it
    # would be a megabyte.
    for encoding, most_bytes in (("br", 100_000), ("gzip", 150_000)):
        sent = httpx.get(fake_address[0], headers={"Accept-Encoding": encoding}, timeout=300)
        assert sent.headers["content-encoding"] == encoding
        assert sent.num_bytes_downloaded < most_bytes < len(sent.content) / 4
    page = httpx.get(f"{fake_address[0]}config", timeout=300).raise_for_status().json()

    def ids(part: dict[str, Any]) -> set[int]:
        return {part["id"]}.union(*map(ids, part.get("children", ())))

    built = ids(page["layout"])
    assert 500 < len(built) <= 600
    by_id = {each["id"]: each for each in page["components"]}
    # Nothing is built for the API.
    public = [each for each in page["dependencies"] if each["api_visibility"] == "public"]
    assert len(public) == 8 and not built & {
        part for each in public for part in [*each["inputs"], *each["outputs"]]
    }
    # What is not built must be hidden: the page waits for everything else.
    assert all(
        each["props"].get("visible") is False
        for number, each in by_id.items()
        if number not in built
    )
    # Gradio searches the whole page for each input of an event, so a letter in the prompt sends none.
    (prompt,) = [
        number
        for number, each in by_id.items()
        if each["props"].get("elem_id") == "generate-prompt"
    ]
    listening = [each for each in page["dependencies"] if [prompt, "change"] in each["targets"]]
    assert len(listening) == 1 and not listening[0]["inputs"] and not listening[0]["backend_fn"]
