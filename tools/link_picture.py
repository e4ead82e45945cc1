"""Make the picture that a link to the studio shows where it is shared: python -m tools.link_picture

Chromium draws it (ACE_STUDIO_CHROMIUM names another one) with the page's colours, fonts and texts, the covers of its
examples, and the waveform of one of them.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
from html import escape
from pathlib import Path

import gradio
import numpy as np
from PIL import Image

import audio
import theme
import tooltips
from api_link import PICTURE, SIZE
from page_generate import SOUNDS
from tools import make_examples, screenshots

MOST_BYTES = 60_000
QUALITY = 82
BARS = 50
TOKENS = theme.LOOK["tokens"]
# How much of the waveform has been played.
PLAYED = 0.36
FONTS = Path(gradio.__file__).parent / "templates" / "frontend" / "static" / "fonts" / "IBMPlexSans"

PAGE = """<!doctype html>
<meta charset="utf-8">
<style>
{fonts}
:root {{ {colours} }}
* {{ box-sizing: border-box; margin: 0; }}
body {{
  --light: color-mix(in srgb, var(--studio-accent) 16%, var(--studio-bg));
  display: grid; grid-template: 1fr auto / 1fr auto; gap: 44px 56px;
  width: {width}px; height: {height}px; padding: 60px 64px 56px;
  background: radial-gradient(circle at 88% 0%, var(--light), var(--studio-bg) 60%);
  color: var(--studio-ink); font-family: "IBM Plex Sans";
}}
h1 {{ margin-top: 8px; font-size: 76px; line-height: 1.05; letter-spacing: -0.015em; }}
p {{ margin-top: 28px; font-size: 30px; line-height: 1.4; color: var(--studio-ink-2); }}
.covers {{ display: grid; grid-template-columns: repeat(3, 172px); gap: 20px; align-content: start; }}
.covers img {{ width: 172px; height: 172px; border-radius: 20px; }}
.player {{ grid-column: 1 / -1; display: flex; align-items: center; gap: 28px; }}
.player i {{ display: grid; place-items: center; width: 88px; height: 88px; border-radius: 50%; }}
.player i {{ background: var(--studio-accent); }}
.player i svg {{ width: 44px; height: 44px; fill: var(--studio-on-accent); }}
.player > svg {{ flex: 1; height: 88px; }}
path {{ stroke: var(--studio-line-strong); stroke-width: 8; stroke-linecap: round; }}
path.played {{ stroke: var(--studio-accent); }}
</style>
<div><h1>{title}</h1><p>{sentence}</p></div>
<div class="covers">{covers}</div>
<div class="player"><i><svg viewBox="0 0 24 24"><path style="stroke: none" d="M8 5v14l11-7z"/></svg></i>{wave}</div>
"""


def page() -> str:
    """Return the picture as a page, in the dark colours."""
    width, height = SIZE
    return PAGE.format(
        fonts="".join(_font(name, weight) for name, weight in (("Regular", 400), ("Bold", 700))),
        colours=";".join(f"--studio-{name}:{dark}" for name, (_, dark) in TOKENS.items()),
        width=width,
        height=height,
        title=escape(tooltips.TITLE),
        sentence=escape(tooltips.DESCRIPTION),
        covers="".join(map(_cover, make_examples.SONGS)),
        wave=_wave(next(iter(make_examples.SONGS))),
    )


def _font(name: str, weight: int) -> str:
    data = base64.b64encode((FONTS / f"IBMPlexSans-{name}.woff2").read_bytes()).decode()
    source = f"url(data:font/woff2;base64,{data})"
    return f'@font-face{{font-family:"IBM Plex Sans";font-weight:{weight};src:{source}}}\n'


def _cover(name: str) -> str:
    samples = audio.decode(make_examples.sound_of(name))
    data = io.BytesIO()
    make_examples.cover_of(name, samples).save(data, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _wave(name: str) -> str:
    """Return the bars of an example, as the page's player draws them."""
    card = json.loads((SOUNDS / "cards.json").read_text(encoding="utf-8"))[name]
    peaks = np.frombuffer(base64.b64decode(card["peaks"]), np.int8).astype(int)
    heights = [max(6, int(np.abs(part).max())) for part in np.array_split(peaks, BARS)]
    paths = ""
    for kind, numbers in (
        ("played", range(int(PLAYED * BARS))),
        ("", range(int(PLAYED * BARS), BARS)),
    ):
        lines = "".join(f"M{20 * at + 10},{-heights[at]}V{heights[at]}" for at in numbers)
        paths += f'<path class="{kind}" d="{lines}"/>'
    return f'<svg viewBox="0 -132 {20 * BARS} 264" preserveAspectRatio="none">{paths}</svg>'


def main() -> None:
    """Draw the picture and write it where the studio serves it from."""
    from playwright.sync_api import sync_playwright

    width, height = SIZE
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        drawing = Path(folder, "picture.html")
        drawing.write_text(page(), encoding="utf-8")
        browser = playwright.chromium.launch(
            executable_path=screenshots.chromium(), args=list(screenshots.FLAGS)
        )
        shown = browser.new_page(viewport={"width": width, "height": height})
        shown.goto(drawing.as_uri())
        shown.evaluate("document.fonts.ready")
        drawn = shown.screenshot()
        browser.close()
    picture = Image.open(io.BytesIO(drawn)).convert("RGB")
    picture.save(PICTURE, quality=QUALITY, method=6)
    written = PICTURE.stat().st_size
    if written > MOST_BYTES:
        raise ValueError(f"{PICTURE.name} has {written:,} bytes, more than {MOST_BYTES:,}.")


if __name__ == "__main__":
    main()
