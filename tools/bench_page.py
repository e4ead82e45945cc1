"""How long the page takes until it can be used, and what it transfers. Called by python -m tools.bench page.

Chromium opens the studio on the built-in engine, first with an empty cache, then once more with what it kept. The page
is usable when the prompt has taken a letter, and ready when it shows what the studio runs on. Until it is usable, the
processor time of the page's own thread is counted, and the longest of its tasks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from tools.bench_rows import Row
from tools.screenshots import FLAGS, Studio, chromium, settle

# Keeps the seconds of the longest task so far.
LONGEST = """studioLongest = 0;
new PerformanceObserver((list) => {
  for (const task of list.getEntries()) studioLongest = Math.max(studioLongest, task.duration / 1000);
}).observe({ type: "longtask", buffered: true });"""


def bench(runs: int) -> Iterator[Row]:
    """Yield a row for a first visit and one for a second, the medians of `runs`."""
    from playwright.sync_api import sync_playwright

    with Studio() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        rows: dict[str, list[tuple[float, ...]]] = {"first": [], "second": []}
        for _ in range(runs + 1):
            context = browser.new_context()
            for visit in rows:
                rows[visit].append(measured(context, url))
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


def measured(context: Any, url: str) -> tuple[float, ...]:
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
