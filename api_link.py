"""What a link to the studio shows where it is shared: a title, a sentence and a picture.

Gradio's page has two sets of such tags, of which one describes Gradio, and readers want absolute
addresses, which only a request tells.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

import tooltips

# tools/link_picture.py draws it.
PICTURE = Path(__file__).with_name("assets") / "link.webp"
SIZE = (1200, 630)
KEPT_SECONDS = 24 * 3600
_GRADIOS = re.compile(rb'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')


def with_tags(page: bytes, root: str) -> bytes:
    """Return the page with our tags in place of Gradio's; `root` is its own address, without a slash."""
    head, script, rest = page.partition(b"<script")
    tags = "\n".join(_tags(root)).encode()
    return b"".join([_GRADIOS.sub(b"", head), tags, b"\n", script, rest])


def _tags(root: str) -> list[str]:
    width, height = SIZE
    about = {
        "og:type": "website",
        "og:url": f"{root}/",
        "og:title": tooltips.TITLE,
        "og:description": tooltips.DESCRIPTION,
        "og:image": f"{root}/{PICTURE.name}",
        "og:image:width": width,
        "og:image:height": height,
        "og:image:alt": tooltips.LINK_PICTURE,
    }
    tags = [
        f'<meta property="{name}" content="{escape(str(value))}">' for name, value in about.items()
    ]
    description = escape(tooltips.DESCRIPTION)
    return [
        f'<meta name="description" content="{description}">',
        *tags,
        '<meta name="twitter:card" content="summary_large_image">',
    ]


def route() -> Route:
    """Return the route of the picture, which only those ask for who read the tags."""
    return Route(f"/{PICTURE.name}", _picture, include_in_schema=False)


async def _picture(request: Request) -> Response:
    headers = {"Cache-Control": f"public, max-age={KEPT_SECONDS}"}
    return FileResponse(PICTURE, media_type="image/webp", headers=headers)
