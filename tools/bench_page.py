"""How long the page takes until it can be used, and what it transfers. Called by python -m tools.bench page.

Chromium opens the studio on the built-in engine, first with an empty cache, then once more with what it kept. The page
is usable when the prompt has taken a letter, and ready when it shows what the studio runs on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from tools.bench_rows import Row
from tools.screenshots import FLAGS, Studio, chromium, settle


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
        usable, ready, requests, sent, unpacked = map(statistics.median, zip(*measures[1:], strict=True))
        more = {"ready": f"{ready:.2f} s", "requests": round(requests)}
        more |= {"transferred": f"{sent / 1e3:,.0f} kB", "unpacked": f"{unpacked / 1e3:,.0f} kB"}
        yield Row(f"page, {visit} visit, until usable", 0, usable, more=more)


def measured(context: Any, url: str) -> tuple[float, ...]:
    """Return seconds until usable and ready, the requests, the bytes on the wire and those after unpacking."""
    page = context.new_page()
    wire = {"requests": 0, "sent": 0, "unpacked": 0}
    devtools = context.new_cdp_session(page)
    devtools.send("Network.enable")
    devtools.on("Network.requestWillBeSent", lambda event: _add(wire, requests=1))
    devtools.on("Network.loadingFinished", lambda event: _add(wire, sent=event["encodedDataLength"]))
    devtools.on("Network.dataReceived", lambda event: _add(wire, unpacked=event["dataLength"]))
    started = time.perf_counter()
    page.goto(url, wait_until="commit")
    prompt = page.locator("#generate-prompt textarea")
    prompt.press_sequentially("a")
    usable = time.perf_counter() - started
    page.locator("#studio-status").get_by_text("Model:").wait_for(state="attached")
    ready = time.perf_counter() - started
    settle(page)
    page.close()
    return usable, ready, wire["requests"], wire["sent"], wire["unpacked"]


def _add(wire: dict[str, int], **counts: int) -> None:
    for name, count in counts.items():
        wire[name] += int(count)
