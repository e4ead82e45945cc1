"""Visits to the page in a real Chromium, which ACE_STUDIO_CHROMIUM names: the fixtures of every test that has a page.

Such a test is skipped without a browser. A request to another machine fails it, and so does an error in the browser's
console.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tools import screenshots

if TYPE_CHECKING:
    from tests.page.steps import Tab

FLAGS = [
    *screenshots.FLAGS,
    # Other machines have no address.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # The workers share the cores, so threads and processes that help each other only cost more.
    "--in-process-gpu",
    "--js-flags=--single-threaded",
]
LOCAL = re.compile(r"^(https?|wss?)://127\.0\.0\.1[:/]|^(data|blob|about):")
# Chromium logs a rejected field (HTTP 422), and Gradio the stream that a reload cuts.
FORGIVEN = ("status of 422", "signal is aborted", "Connection errored out")
FIRST_VISIT = """(face) => {
  for (const storage of [localStorage, sessionStorage]) storage.clear();
  localStorage.setItem("ace-music-studio-face", face);
  localStorage.setItem("ace-music-studio-plays", "false");
}"""
# Only what never comes is given up: a machine may be several times slower than the one that a test was written on.
WAIT_MS = 300_000
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = screenshots.find_chromium()
    if not path:
        pytest.skip("no Chromium: install it, or name it in ACE_STUDIO_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def look(pytestconfig: pytest.Config) -> dict[str, Any]:
    width = pytestconfig.getoption("width")
    return {
        "width": width,
        "height": 900 if width > 640 else 844,
        "theme": pytestconfig.getoption("theme"),
    }


class Visits:
    """Opens pages as first-time visitors, who share what the browser knows of the page's files alone; fails on leaving
    if anything went wrong.

    `forgiven` lists texts allowed in the console; `look` is the default window. Later visits go on in the pages of
    earlier ones, whose scripts are compiled already, unless these visits `alter` them.
    """

    free: ClassVar[list[BrowserContext]] = []

    def __init__(
        self, browser: Browser, forgiven: list[str], look: dict[str, Any], alter: bool = False
    ):
        self.browser, self.forgiven, self.look, self.alter = browser, forgiven, look, alter
        self.wrong: list[str] = []
        self.pages: list[Page] = []

    def __call__(self, url: str, width: int = 0, height: int = 0, face: str = "custom") -> Page:
        page = self._blank_page()
        self.pages.append(page)
        page.set_viewport_size(
            {"width": width or self.look["width"], "height": height or self.look["height"]}
        )
        page.goto("/".join([*url.split("/")[:3], "theme.css"]))
        page.evaluate(FIRST_VISIT, face)
        for event, listener in self._listeners().items():
            page.on(event, listener)
        page.goto(url)
        expect(page.locator("#studio-status")).to_contain_text("Model:")
        return page

    def _blank_page(self) -> Page:
        if not self.free:
            self.free.append(self.browser.new_context(color_scheme=self.look["theme"]))
        context = self.free.pop()
        context.set_default_timeout(WAIT_MS)
        if context.pages:
            return context.pages[0]
        return context.new_page()

    def _listeners(self) -> dict[str, Callable[[Any], None]]:
        return {"request": self._asked, "console": self._said, "pageerror": self._failed}

    def _asked(self, request: Any) -> None:
        if not LOCAL.match(request.url):
            self.wrong.append(f"asked another machine: {request.url}")

    def _said(self, message: Any) -> None:
        forgiven = any(allowed in message.text for allowed in self.forgiven)
        if message.type == "error" and not forgiven:
            self.wrong.append(f"console: {message.text}")

    def _failed(self, error: Any) -> None:
        self.wrong.append(f"script: {error}")

    def __enter__(self) -> Visits:
        return self

    def __exit__(self, *_: object) -> None:
        for page in self.pages:
            self._leave(page)
        assert not self.wrong, self.wrong

    def _leave(self, page: Page) -> None:
        context = page.context
        for other in context.pages:
            if other is not page or self.alter:
                other.close()
        if context.pages:
            for event, listener in self._listeners().items():
                page.remove_listener(event, listener)
            page.unroute_all(behavior="ignoreErrors")
            page.emulate_media(reduced_motion="null")
            page.goto("about:blank")
        context.clear_permissions()
        context.clear_cookies()
        self.free.append(context)


@pytest.fixture
def forgiven() -> list[str]:
    """Return the texts allowed in the console; a test may add to it."""
    return [*FORGIVEN]


@pytest.fixture
def visit(
    browser: Browser, forgiven: list[str], look: dict[str, Any], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Page]]:
    alter = bool(request.node.get_closest_marker("alters_page"))
    with Visits(browser, forgiven, look, alter) as visit:
        yield visit


@pytest.fixture
def tab() -> type[Tab]:
    from tests.page.steps import Tab

    return Tab
