"""A film of a first visit: python -m tools.film FOLDER

Starts the studio on the built-in engine and uses it in Chromium (ACE_STUDIO_CHROMIUM names another one) as a new
visitor would: a brief, a song with words, a second one while the first is being made, one heard, one shared, and one
found again the next day. A picture is taken every two seconds, whatever the visitor does or waits for, and after each
click. Those of one width and theme become a strip, with the time and what was clicked below each:
first-visit-light-1280.webp. What equals the picture before it is left out, and the time below that one becomes a span:
0:14 to 0:20. Prints how many clicks each goal took, and how late the latest picture was.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import datetime
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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
TITLE = 36
GREY = "#857C73"
MOST_BYTES = 250_000
# WebP's.
QUALITIES = (60, 50, 40, 30, 20)
TOMORROW = datetime.timedelta(days=1)


@dataclass
class Shot:
    """A picture, from when to when (in seconds) the page looked like that, and what was clicked just before it."""

    since: float
    until: float
    what: str
    picture: Image.Image

    @property
    def label(self) -> str:
        """Return the time or the span, and the click in a line of its own."""
        first = tooltips.clock(self.since)
        last = tooltips.clock(self.until)
        span = first if first == last else f"{first} to {last}"
        return f"{span}\n{self.what}"


class Film:
    """The pictures of one visit, and the clicks of each of its goals."""

    def __init__(self, width: int):
        picture_width, self.columns = SMALL[width]
        self.size = (picture_width, picture_width * screenshots.WIDTHS[width] // width)
        self.shots: list[Shot] = []
        self.clicks: Counter[str] = Counter()
        # How late the latest of the pictures was that are taken every two seconds.
        self.delay = 0.0
        self.page: Any = None
        self._goal = ""
        self._begun = time.monotonic()
        self._devtools: Any = None
        self._camera = asyncio.Lock()
        self._opened = asyncio.Event()

    async def open(self, context: Any, url: str, now: datetime.datetime | None = None) -> Any:
        """Open the studio in a new page, by a clock that shows `now`."""
        page = await context.new_page()
        if now:
            await page.clock.install(time=now)
        self.page = page
        self._devtools = await context.new_cdp_session(page)
        self._opened.set()
        await page.goto(url)
        return page

    async def close(self) -> None:
        async with self._camera:
            self._devtools = None
            await self.page.close()

    def goal(self, name: str) -> None:
        self._goal = name
        self.clicks[name] = 0

    async def click(self, target: Any, what: str) -> None:
        await target.click()
        self.clicks[self._goal] += 1
        await asyncio.sleep(LOOK_SECONDS)
        await self._shoot(self._seconds(), f"{what} ({self.clicks[self._goal]})")

    async def watch(
        self, ended: Callable[[], Awaitable[bool]], least_seconds: float = EVERY_SECONDS
    ) -> None:
        """Let time pass until `ended`, and for `least_seconds`."""
        begun = time.monotonic()
        while time.monotonic() - begun < least_seconds or not await ended():
            await asyncio.sleep(LOOK_SECONDS)

    async def roll(self) -> None:
        """Take a picture every two seconds from the first opening on, until cancelled; the visit goes on meanwhile."""
        await self._opened.wait()
        self._begun = time.monotonic()
        for number in itertools.count():
            mark = EVERY_SECONDS * number
            await asyncio.sleep(max(mark - self._seconds(), 0))
            if await self._shoot(mark):
                self.delay = max(self.delay, self._seconds() - mark)

    def strip(self) -> Image.Image:
        """Return the pictures in rows, each with its time."""
        width, height = self.size
        shots = without_repeats(self.shots)
        rows = -(-len(shots) // self.columns)
        across = self.columns * (width + MARGIN) + MARGIN
        down = rows * (height + TITLE + MARGIN) + MARGIN
        strip = Image.new("RGB", (across, down), "white")
        draw = ImageDraw.Draw(strip)
        font = ImageFont.load_default(12)
        for number, shot in enumerate(shots):
            row, column = divmod(number, self.columns)
            left = MARGIN + column * (width + MARGIN)
            top = MARGIN + row * (height + TITLE + MARGIN)
            strip.paste(shot.picture, (left, top))
            draw.multiline_text((left, top + height + 3), shot.label, GREY, font)
        return strip

    def _seconds(self) -> float:
        return time.monotonic() - self._begun

    async def _shoot(self, seconds: float, what: str = "") -> bool:
        """Add a picture of the open page; returns False if there is none."""
        async with self._camera:
            if not self._devtools:
                return False
            # Playwright's own screenshot would wait for fonts and hide the caret.
            answer = await self._devtools.send("Page.captureScreenshot")
        shot = Image.open(BytesIO(base64.b64decode(answer["data"]))).convert("RGB")
        picture = shot.resize(self.size, Image.Resampling.LANCZOS)
        self.shots.append(Shot(seconds, seconds, what, picture))
        return True


def without_repeats(shots: list[Shot]) -> list[Shot]:
    """Return the pictures in the order of their times; one that equals the one before lengthens its span instead."""
    kept: list[Shot] = []
    for shot in sorted(shots, key=lambda each: each.since):
        if kept and not shot.what and same(shot.picture, kept[-1].picture):
            last = kept.pop()
            shot = Shot(last.since, shot.until, last.what, last.picture)
        kept.append(shot)
    return kept


def same(one: Image.Image, other: Image.Image) -> bool:
    """Tell whether two pictures of one size are equal."""
    return ImageChops.difference(one, other).getbbox() is None


async def now() -> bool:
    """Tell that there is nothing to wait for."""
    return True


async def visit(film: Film, context: Any, url: str) -> None:
    """Be a new visitor who makes two songs, hears and shares one, and comes back the next day."""
    page = await film.open(context, url)
    go = screenshots.part(page, "generate", "go")
    songs = page.locator("#generate-takes-made .song")

    def shown(target: Any, count: int = 1) -> Callable[[], Awaitable[bool]]:
        async def there() -> bool:
            return await target.count() >= count

        return there

    await film.watch(shown(page.get_by_text("Model:")))

    film.goal("a song with words")
    await screenshots.part(page, "generate", "prompt").locator("textarea").fill(BRIEF)
    await film.watch(now)
    words = screenshots.part(page, "generate", "words-choice")
    await film.click(words.get_by_role("button", name=tooltips.WORDS["write"]), "Write them")
    await film.watch(now)
    await film.click(go, "Generate")
    await film.watch(shown(page.get_by_text("step")))

    film.goal("a second song while the first is made")
    await film.click(go, "Generate")
    await film.watch(shown(songs, 2))

    film.goal("hearing a song")
    await film.click(songs.first.locator("button.cover"), "play")
    await film.watch(now)

    film.goal("sharing a song")
    await film.click(songs.first.locator(".menu summary").first, "menu")
    await film.click(page.get_by_role("button", name=tooltips.TAKES["link"]), "link")
    await film.watch(now)
    await film.close()

    page = await film.open(context, url, datetime.datetime.now() + TOMORROW)
    film.goal("yesterday's song")
    yesterday = page.locator("#generate-takes-made .song button.cover")
    await film.watch(shown(yesterday))
    await film.click(yesterday.first, "play")
    await film.watch(now)
    await film.close()


async def film_of(browser: Any, theme: str, width: int) -> Film:
    """Film a visit to a studio of its own."""
    film = Film(width)
    window = {"width": width, "height": screenshots.WIDTHS[width]}
    context = await browser.new_context(viewport=window, color_scheme=theme)
    context.set_default_timeout(screenshots.TIMEOUT)
    with screenshots.Studio(fresh=True) as url:
        camera = asyncio.create_task(film.roll())
        await visit(film, context, url)
        camera.cancel()
    await context.close()
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
    arguments.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(film_all(arguments))


async def film_all(arguments: argparse.Namespace) -> None:
    """Film the visits one after another, write their strips and print what they took."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=screenshots.chromium(), args=list(screenshots.FLAGS)
        )
        for theme, width in itertools.product(arguments.themes, arguments.widths):
            film = await film_of(browser, theme, width)
            path = arguments.folder / f"first-visit-{theme}-{width}.webp"
            write(film.strip(), path)
            counted = ", ".join(f"{goal} {clicks}" for goal, clicks in film.clicks.items())
            print(
                f"{path.name}: {len(film.shots)} pictures, at most {film.delay:.1f} s late; clicks: {counted}",
                flush=True,
            )
        await browser.close()


if __name__ == "__main__":
    main()
