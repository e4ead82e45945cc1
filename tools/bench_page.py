"""How long the page takes to open, and what a long list of songs costs it: the browser's part of tools/bench.py."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from tools.bench_rows import Row
from tools.screenshots import FLAGS, TIMEOUT, Studio, chromium, part, settle

# Keeps the seconds of the longest task so far.
LONGEST = """studioLongest = 0;
new PerformanceObserver((list) => {
  for (const task of list.getEntries()) studioLongest = Math.max(studioLongest, task.duration / 1000);
}).observe({ type: "longtask", buffered: true });"""
SONGS = 40
SONG_SECONDS = "10"
TITLES = ("rain", "river", "harbour", "winter", "morning", "engine", "garden", "letter")
# Runs what `act` does several times; returns the median of the milliseconds, with the layout that follows.
TIMED = """(act) => {
  const times = [];
  for (let round = 0; round < 9; round++) {
    const begun = performance.now();
    act(round);
    document.body.offsetHeight;
    times.push(performance.now() - begun);
  }
  return times.sort((one, other) => one - other)[4];
}"""
SEARCH = """(round) => {
  const box = document.querySelector(".library .search");
  box.value = "harbour".slice(0, 1 + (round % 7));
  box.dispatchEvent(new Event("input", { bubbles: true }));
}"""
FILTER = (
    """(round) => document.querySelector(`.library .${round % 2 ? "all" : "starred"}`).click()"""
)
OPEN = """(round) => document.querySelectorAll(".library .song .fold")[5].click()"""


def page_rows(runs: int) -> Iterator[Row]:
    """Yield a row for a first visit and one for a second, the medians of `runs`."""
    from playwright.sync_api import sync_playwright

    with Studio() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        rows: dict[str, list[tuple[float, ...]]] = {"first": [], "second": []}
        for _ in range(runs + 1):
            context = browser.new_context()
            for visit in rows:
                rows[visit].append(visited(context, url))
            context.close()
        browser.close()
    for visit, measures in rows.items():
        # The first run warms up.
        medians = map(statistics.median, zip(*measures[1:], strict=True))
        usable, working, longest, ready, requests, sent, unpacked = medians
        more = {"processor": f"{working:.2f} s", "longest task": f"{longest:.2f} s"}
        more |= {"ready": f"{ready:.2f} s", "requests": round(requests)}
        more |= {"transferred": f"{sent / 1e3:,.0f} kB", "unpacked": f"{unpacked / 1e3:,.0f} kB"}
        yield Row(f"page, {visit} visit, until usable", 0, usable, more=more)


def visited(context: Any, url: str) -> tuple[float, ...]:
    """Return seconds until usable, of work and of the longest task by then, until ready; requests, bytes, unpacked."""
    page = context.new_page()
    page.add_init_script(LONGEST)
    wire = {"requests": 0, "sent": 0, "unpacked": 0}
    devtools = context.new_cdp_session(page)
    devtools.send("Network.enable")
    devtools.send("Performance.enable")
    devtools.on("Network.requestWillBeSent", lambda event: _add(wire, requests=1))
    devtools.on(
        "Network.loadingFinished", lambda event: _add(wire, sent=event["encodedDataLength"])
    )
    devtools.on("Network.dataReceived", lambda event: _add(wire, unpacked=event["dataLength"]))
    started = time.perf_counter()
    page.goto(url, wait_until="commit")
    prompt = page.locator("#generate-prompt textarea")
    prompt.press_sequentially("a")
    usable = time.perf_counter() - started
    metrics = {
        each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]
    }
    longest = page.evaluate("studioLongest")
    page.locator("#studio-status").get_by_text("Model:").wait_for(state="attached")
    ready = time.perf_counter() - started
    settle(page)
    page.close()
    return (
        usable,
        metrics["TaskDuration"],
        longest,
        ready,
        wire["requests"],
        wire["sent"],
        wire["unpacked"],
    )


def _add(wire: dict[str, int], **counts: int) -> None:
    for name, count in counts.items():
        wire[name] += int(count)


# --- a long list of songs -------------------------------------------------------------------------


def library_rows(runs: int) -> Iterator[Row]:
    """Yield a row for a browser that keeps no songs and one for a browser that keeps SONGS, the medians of `runs`."""
    from playwright.sync_api import sync_playwright

    with Studio() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        kept = {0: None, SONGS: songs_made(browser, url)}
        measures: dict[int, list[dict[str, float]]] = {count: [] for count in kept}
        for _ in range(runs + 1):
            for count, state in kept.items():
                context = browser.new_context(storage_state=state)
                measures[count].append(looked_through(context, url, count))
                context.close()
        browser.close()
    for count, found in measures.items():
        # The first run warms up.
        medians = {name: statistics.median(each[name] for each in found[1:]) for name in found[0]}
        more = {name: f"{value:,.3g}" for name, value in medians.items()}
        yield Row(f"page, {count} songs kept", 0, medians["usable s"], more=more)


def songs_made(browser: Any, url: str) -> Any:
    """Make SONGS songs on the page; returns what the browser keeps of it."""
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    page.goto(url)
    page.get_by_text("Model:").wait_for(state="attached")
    part(page, "generate", "faces").get_by_role("button", name="Custom").click()
    page.locator('[aria-controls="generate-duration"]').click()
    part(page, "generate", "duration").locator("input").first.fill(SONG_SECONDS)
    prompt = part(page, "generate", "prompt").locator("textarea")
    for number in range(SONGS):
        prompt.fill(f"{TITLES[number % len(TITLES)]} song number {number + 1}")
        part(page, "generate", "go").click()
        songs = page.locator("#generate-takes-made .song")
        songs.nth(number).wait_for(state="attached")
    settle(page)
    state = context.storage_state()
    context.close()
    return state


def looked_through(context: Any, url: str, count: int) -> dict[str, float]:
    """Open the page, wait until its `count` songs are there, and use their list."""
    page = context.new_page()
    devtools = context.new_cdp_session(page)
    devtools.send("Performance.enable")
    page.goto(url, wait_until="commit")
    page.locator("#generate-prompt textarea").press_sequentially("a")
    usable = _metric(devtools, "TaskDuration")
    page.locator("#studio-status").get_by_text("Model:").wait_for(state="attached")
    songs = page.locator(".library .song")
    if count:
        songs.nth(count - 1).wait_for(state="attached")
    settle(page)
    found = {"usable s": usable, "at rest s": _metric(devtools, "TaskDuration")}
    devtools.send("HeapProfiler.collectGarbage")
    found["heap MB"] = _metric(devtools, "JSHeapUsedSize") / 1e6
    found["elements"] = page.evaluate("document.querySelectorAll('*').length")
    found["kept kB"] = page.evaluate("JSON.stringify(localStorage).length") / 1e3
    if count:
        for name, act in (("letter ms", SEARCH), ("filter ms", FILTER), ("open ms", OPEN)):
            found[name] = page.evaluate(f"({TIMED})({act})")
    page.close()
    return found


def _metric(devtools: Any, name: str) -> float:
    metrics = devtools.send("Performance.getMetrics")["metrics"]
    return next(each["value"] for each in metrics if each["name"] == name)
