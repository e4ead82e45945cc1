"""Pictures of the page: every state of every tab, dark and light, wide and narrow: python -m tools.screenshots FOLDER

Starts the studio on the built-in engine and uses it in Chromium as a visitor would (ACE_STUDIO_CHROMIUM names another
one). The names of the files say what they show: generate-result-dark-1280.webp.
"""

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABS = ("generate", "cover", "extend", "edit", "lyrics")
THEMES = ("dark", "light")
WIDTHS = {1280: 900, 390: 844}
"""Widths of the window with the height of each, in CSS pixels."""
NARROW = 640
"""Below this width the window is that of a phone, which is touched."""
NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
FLAGS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
)
TIMEOUT = 180_000
_QUIET = """() => new Promise((done) => {
  let timer = setTimeout(done, 400);
  new MutationObserver(() => {
    clearTimeout(timer);
    timer = setTimeout(done, 400);
  }).observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
})"""
# The example chip that fills each tab.
CHIPS = {
    "generate": "Folk duet",
    "cover": "As a lo-fi piece",
    "extend": "Another verse",
    "edit": "A solo in the middle",
    "lyrics": "A lighthouse",
}
# The source of Cover, Extend and Edit: music that the built-in engine goes on with.
SOURCE = ROOT / "assets" / "examples" / "first-warm-day.mp3"
FOLDS = ("details", "sound", "plan-fold", "engine", "advanced", "loras-fold")


def main() -> None:
    """Take every picture that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tabs", nargs="+", choices=TABS, default=TABS)
    parser.add_argument(
        "--seen",
        action="store_true",
        help="also what the window shows at that moment, with its foot: generate-result-dark-1280-seen.webp",
    )
    add_looks(parser)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    arguments.folder.mkdir(parents=True, exist_ok=True)
    with Studio(fresh=True) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        looks = itertools.product(arguments.themes, arguments.widths, arguments.tabs)
        for theme, width, mode in looks:
            # A visitor of its own, who has no songs of another tab.
            window = {"width": width, "height": WIDTHS[width]}
            page = browser.new_page(viewport=window, has_touch=width < NARROW)
            page.set_default_timeout(TIMEOUT)
            page.goto(f"{url}?__theme={theme}")
            page.get_by_text("Model:").wait_for(state="attached")
            for state in walk(page, mode, SOURCE, slow_down, speed_up):
                name = f"{mode}-{state}-{theme}-{width}"
                if arguments.seen:
                    save(page, arguments.folder / f"{name}-seen.webp", seen=True)
                save(page, arguments.folder / f"{name}.webp")
                print(name, flush=True)
            page.close()
        browser.close()


def add_looks(parser: argparse.ArgumentParser) -> None:
    """Add the choice of themes and widths."""
    parser.add_argument("--themes", nargs="+", choices=THEMES, default=THEMES)
    parser.add_argument("--widths", nargs="+", type=int, choices=WIDTHS, default=list(WIDTHS))


# --- the states of a tab ------------------------------------------------------------------------------------------


def walk(
    page: Any,
    mode: str,
    song: Path,
    slow: Callable[[Any, str], None] = lambda page, mode: None,
    fast: Callable[[Any, str], None] = lambda page, mode: None,
) -> Iterator[str]:
    """Take a tab from state to state; yields the name of each once the page shows it.

    `slow` sees to it that the next run lasts until it is cancelled, `fast` that the one after it is made.
    """
    page.locator(f'#studio-tabs [data-tab-id="{mode}"]').click()
    part(page, mode, "go").wait_for()
    yield from _empty(page, mode)
    _fill(page, mode, song)
    settle(page)
    yield "filled"
    fold(page, mode)
    settle(page)
    yield "open"
    slow(page, mode)
    yield from _cancelled_run(page, mode)
    fast(page, mode)
    yield from _finished_run(page, mode)


def part(page: Any, mode: str, name: str) -> Any:
    return page.locator(f"#{mode}-{name}")


def _empty(page: Any, mode: str) -> Iterator[str]:
    """Show a tab as it is on a first visit, and what it says when it is sent like that."""
    if mode == "generate":
        part(page, mode, "faces").get_by_role("button", name="Simple").click()
        settle(page)
        yield "simple"
        part(page, mode, "faces").get_by_role("button", name="Custom").click()
    settle(page)
    yield "empty"
    part(page, mode, "go").click()
    part(page, mode, "problems").get_by_role("alert").wait_for()
    settle(page)
    yield "problems"


def _fill(page: Any, mode: str, song: Path) -> None:
    """Fill the tab with its source and an example."""
    if mode not in ("generate", "lyrics"):
        source = part(page, mode, "source")
        source.locator("input[type=file]").set_input_files(song)
        source.locator("time").last.wait_for(state="attached")
    if mode != "lyrics":
        fold(page, mode, opened=False)
    chip = CHIPS[mode]
    if mode == "generate":
        shelf = part(page, mode, "shelf")
        shelf.get_by_role("button", name=f"Play {chip}").click()
        shelf.get_by_role("button", name=f"Make one like “{chip}”").click()
    else:
        part(page, mode, "panel").get_by_role("button", name=chip, exact=True).click()
    words = part(page, mode, "brief" if mode == "lyrics" else "prompt").locator("textarea")
    words.and_(page.locator(":not(:placeholder-shown)")).wait_for()
    if mode == "edit":
        # The example's region comes after its words.
        settle(page)
        part(page, mode, "fine").locator("summary").click()
        part(page, mode, "start").locator("input").fill("1")
        part(page, mode, "end").locator("input").fill("2.5")


def _cancelled_run(page: Any, mode: str) -> Iterator[str]:
    """Start a run and cancel it; a quick writer may be done by then."""
    part(page, mode, "go").click()
    progress = part(page, mode, "progress")
    running = progress.locator('[data-state="running"]').get_by_text(re.compile("step|tokens"))
    running.first.wait_for(state="attached")  # in a wide window the song's card says it
    fold(page, mode, opened=False)
    yield "running"
    page.keyboard.press("Escape")
    ended = progress.locator('[data-state="stopped"], [data-state="done"]')
    ended.wait_for()
    if ended.get_attribute("data-state") == "stopped":
        settle(page)
        yield "cancelled"


def _finished_run(page: Any, mode: str) -> Iterator[str]:
    """Start a run and show what it has made."""
    progress = part(page, mode, "progress")
    was_done = progress.locator('[data-state="done"]').count() > 0
    part(page, mode, "go").click()
    if was_done:  # by the run before
        progress.locator('[data-state="running"]').wait_for()
    ended = progress.locator('[data-state="done"], [data-state="failed"]')
    ended.wait_for()
    if ended.get_attribute("data-state") == "failed":
        raise RuntimeError(f"{mode}: {part(page, mode, 'message').inner_text()}")
    fold(page, mode, opened=False)
    settle(page)
    yield "result"
    if mode != "lyrics":
        part(page, mode, "record").locator("summary").click()
        settle(page)
        yield "record"


def fold(page: Any, mode: str, opened: bool = True) -> None:
    """Open the folded groups of a tab, or close them; the inner ones last, and first."""
    for name in FOLDS if opened else FOLDS[::-1]:
        button = page.locator(f"#{mode}-{name} > button")
        if (
            button.count()
            and button.is_visible()
            and ("open" in (button.get_attribute("class") or "")) != opened
        ):
            button.click()


def settle(page: Any) -> None:
    """Wait until nothing has changed on the page for a while; Gradio's connection stays open, so ask the page."""
    page.evaluate(_QUIET)


def slow_down(page: Any, mode: str) -> None:
    """Ask the built-in engine for so much that the run is seen; lyrics are long by themselves."""
    if mode != "lyrics":
        page.locator(f"#{mode}-steps input").fill("200")


def speed_up(page: Any, mode: str) -> None:
    """Ask for two takes with few steps."""
    if mode != "lyrics":
        fold(page, mode)
        page.locator(f"#{mode}-steps input").fill("8")
        if mode == "edit":
            # Of some seeds the built-in engine leaves so short a region silent.
            page.locator("#edit-seed input").fill("8")
        chip = page.locator(f'[aria-controls="{mode}-takes"]')
        if chip.count() and chip.get_attribute("aria-expanded") == "false":
            chip.click()
        page.locator(f"#{mode}-takes").get_by_label("2", exact=True).check()


# --- around them --------------------------------------------------------------------------------------------------


class Studio:
    """The studio on the built-in engine, in a process and with songs of its own; a context that is its address.

    Its planner and songwriter are random, or those that a fresh copy of the studio has.
    """

    def __init__(self, fresh: bool = False):
        self._fresh = fresh

    def __enter__(self) -> str:
        self._songs = tempfile.TemporaryDirectory()
        words = "" if self._fresh else "random"
        models = {
            "ACE_STUDIO_MODEL": "preview",
            "ACE_STUDIO_PLANNER": words,
            "ACE_STUDIO_LYRICS": words,
        }
        environ = {
            **os.environ,
            **models,
            "ACE_STUDIO_OUTPUT": self._songs.name,
            "GRADIO_SERVER_NAME": "127.0.0.1",
        }
        environ.pop("GRADIO_SERVER_PORT", None)
        self._process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        ready = self._process.stdout.readline()
        if "http" not in ready:
            self.__exit__()
            sys.exit("The studio did not start.")
        return ready.split()[-1]

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        self._songs.cleanup()


def find_chromium() -> str | None:
    """Return the path of the Chromium that ACE_STUDIO_CHROMIUM names, or of the first one that is found."""
    return os.environ.get("ACE_STUDIO_CHROMIUM") or next(
        filter(None, map(shutil.which, NAMES)), None
    )


def chromium() -> str:
    """Return the path of Chromium; exits with a sentence where there is none."""
    return find_chromium() or sys.exit(
        "There is no Chromium: install it, or name it in ACE_STUDIO_CHROMIUM."
    )


def save(page: Any, path: Path, seen: bool = False) -> None:
    """Write the whole page as it looks from its top, or what is `seen` of it in the window now."""
    from PIL import Image

    window = page.viewport_size
    if not seen:
        # What stays at the foot of the window is at the foot of the page.
        height = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size({**window, "height": height})
        page.evaluate("scrollTo(0, 0)")
    Image.open(BytesIO(page.screenshot())).convert("RGB").save(path, quality=85)
    page.set_viewport_size(window)


if __name__ == "__main__":
    main()
