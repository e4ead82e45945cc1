"""A film of a first visit: python -m tools.film FOLDER

Starts the studio on the built-in engine and uses it in Chromium (ACE_STUDIO_CHROMIUM names another one) as a new
visitor would: a brief, a song with words, a second one while the first is being made, one heard, one shared, and one
found again the next day. A picture is taken every two seconds and after each click, unless nothing has changed.
Those of one width and theme become a strip, with the time and what was clicked below each: first-visit-light-1280.webp.
Prints how many clicks each of these took.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFont

import tooltips
from tools import screenshots

BRIEF = "a slow song about a lighthouse, piano and strings"
EVERY_SECONDS = 2.0
LOOK_SECONDS = 0.2
# How wide a picture of the strip is, and how many are side by side, by the width of the window.
SMALL = {1280: (300, 6), 390: (128, 12)}
MARGIN = 8
TITLE = 20
GREY = "#857C73"
MOST_PICTURES = 36
MOST_BYTES = 150_000
# WebP's.
QUALITIES = (60, 50, 40, 30, 20)
TOMORROW = datetime.timedelta(days=1)


class Film:
    """The pictures of one visit, and the clicks of each of its goals."""

    def __init__(self, width: int):
        picture_width, self.columns = SMALL[width]
        self.size = (picture_width, picture_width * screenshots.WIDTHS[width] // width)
        self.pictures: list[tuple[str, Image.Image]] = []
        self.clicks: Counter[str] = Counter()
        self.page: Any = None
        self._goal = ""
        self._begun = time.monotonic()
        self._next = 0.0

    def goal(self, name: str) -> None:
        self._goal = name
        self.clicks[name] = 0

    def click(self, target: Any, what: str) -> None:
        target.click()
        self.clicks[self._goal] += 1
        self.page.wait_for_timeout(1000 * LOOK_SECONDS)
        self._shoot(f"{what} ({self.clicks[self._goal]})")

    def watch(self, ended: Callable[[], bool], least_seconds: float = EVERY_SECONDS) -> None:
        """Take pictures until `ended`, and for `least_seconds`."""
        begun = time.monotonic()
        while time.monotonic() - begun < least_seconds or not ended():
            self.page.wait_for_timeout(1000 * LOOK_SECONDS)
            if time.monotonic() >= self._next:
                self._shoot()

    def strip(self) -> Image.Image:
        """Return the pictures in rows, each with its time."""
        width, height = self.size
        pictures = thinned(self.pictures)
        rows = -(-len(pictures) // self.columns)
        across = self.columns * (width + MARGIN) + MARGIN
        down = rows * (height + TITLE + MARGIN) + MARGIN
        strip = Image.new("RGB", (across, down), "white")
        draw = ImageDraw.Draw(strip)
        font = ImageFont.load_default(12)
        for number, (label, picture) in enumerate(pictures):
            row, column = divmod(number, self.columns)
            left = MARGIN + column * (width + MARGIN)
            top = MARGIN + row * (height + TITLE + MARGIN)
            strip.paste(picture, (left, top))
            draw.text((left, top + height + 3), label, GREY, font)
        return strip

    def _shoot(self, what: str = "") -> None:
        now = time.monotonic()
        self._next = now + EVERY_SECONDS
        shot = Image.open(BytesIO(self.page.screenshot())).convert("RGB")
        picture = shot.resize(self.size, Image.Resampling.LANCZOS)
        if what or not self._is_shown(picture):
            clock = tooltips.clock(now - self._begun)
            self.pictures.append((f"{clock}  {what}", picture))

    def _is_shown(self, picture: Image.Image) -> bool:
        """Tell whether the picture equals the last one."""
        if not self.pictures:
            return False
        _, last = self.pictures[-1]
        return ImageChops.difference(picture, last).getbbox() is None


def thinned(pictures: list[tuple[str, Image.Image]]) -> list[tuple[str, Image.Image]]:
    """Return at most MOST_PICTURES: of those without a click every second one is left out, as often as it takes.

    There are more of them where the machine is slow.
    """
    while len(pictures) > MOST_PICTURES:
        waiting = [number for number, (label, _) in enumerate(pictures) if label.endswith("  ")]
        left_out = set(waiting[1::2])
        if not left_out:
            break
        pictures = [each for number, each in enumerate(pictures) if number not in left_out]
    return pictures


def visit(film: Film, context: Any, url: str) -> None:
    """Be a new visitor who makes two songs, hears and shares one, and comes back the next day."""
    page = film.page = context.new_page()
    page.goto(url)
    film.watch(lambda: page.get_by_text("Model:").count() > 0)
    go = screenshots.part(page, "generate", "go")
    songs = page.locator("#generate-takes-made .song")

    film.goal("a song with words")
    screenshots.part(page, "generate", "prompt").locator("textarea").fill(BRIEF)
    film.watch(lambda: True)
    words = screenshots.part(page, "generate", "words-choice")
    film.click(words.get_by_role("button", name=tooltips.WORDS["write"]), "Write them")
    film.watch(lambda: True)
    film.click(go, "Generate")
    film.watch(lambda: page.get_by_text("step").count() > 0)

    film.goal("a second song while the first is made")
    film.click(go, "Generate")
    film.watch(lambda: songs.count() == 2)

    film.goal("hearing a song")
    film.click(songs.first.locator("button.cover"), "play")
    film.watch(lambda: True)

    film.goal("sharing a song")
    film.click(songs.first.locator(".menu summary").first, "menu")
    film.click(page.get_by_role("button", name=tooltips.TAKES["link"]), "link")
    film.watch(lambda: True)
    page.close()

    page = film.page = context.new_page()
    page.clock.install(time=datetime.datetime.now() + TOMORROW)
    page.goto(url)
    film.goal("yesterday's song")
    yesterday = page.locator("#generate-takes-made .song button.cover")
    film.watch(lambda: yesterday.count() > 0)
    film.click(yesterday.first, "play")
    film.watch(lambda: True)
    page.close()


def film_of(browser: Any, theme: str, width: int) -> Film:
    """Film a visit to a studio of its own."""
    film = Film(width)
    window = {"width": width, "height": screenshots.WIDTHS[width]}
    context = browser.new_context(viewport=window, color_scheme=theme)
    context.set_default_timeout(screenshots.TIMEOUT)
    with screenshots.Studio(fresh=True) as url:
        visit(film, context, url)
    context.close()
    return film


def write(strip: Image.Image, path: Path) -> None:
    """Write a strip as good as MOST_BYTES allow; raises ValueError if it is too long for them."""
    for quality in QUALITIES:
        strip.save(path, quality=quality, method=6)
        if path.stat().st_size <= MOST_BYTES:
            return
    raise ValueError(f"{path.name} does not fit into {MOST_BYTES:,} bytes.")


def main() -> None:
    """Film a visit for each width and theme that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    screenshots.add_looks(parser)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=screenshots.chromium(), args=list(screenshots.FLAGS)
        )
        for theme, width in itertools.product(arguments.themes, arguments.widths):
            film = film_of(browser, theme, width)
            path = arguments.folder / f"first-visit-{theme}-{width}.webp"
            write(film.strip(), path)
            counted = ", ".join(f"{goal} {clicks}" for goal, clicks in film.clicks.items())
            print(f"{path.name}: {len(film.pictures)} pictures; clicks: {counted}", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
