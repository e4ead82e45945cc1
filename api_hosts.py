"""Which hosts the studio answers to, and under which address its page finds it.

A page of another site must not reach the studio through a DNS name of its own (DNS rebinding). A
proxy may report the wrong scheme, host or port, or none; the browser knows them, so its word counts.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatch
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import api_link

API = "/gradio_api"
ANY_ADDRESS = ("0.0.0.0", "::", "[::]")
# The last is what a container calls the machine that it runs on.
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1", "host.docker.internal")
HOST = re.compile(r"(\[[^][@/?#]+\]|[^][@/?#:]+)(:[0-9]+)?")
FOREIGN = "Only the studio's own page may upload from a browser."


class KnownHosts:
    """Answers only to the hosts that the studio was started for, as protection against DNS rebinding.

    "*.example.com" stands for every name under example.com. A studio that listens on every address
    answers to any IP address.
    """

    def __init__(self, app: ASGIApp, environ: Mapping[str, str]):
        address = environ.get("GRADIO_SERVER_NAME", "")
        self.app = app
        self.any_address = address in ANY_ADDRESS
        hosts = [*LOCAL_HOSTS, *_configured_hosts(environ)]
        if self.any_address:
            hosts += [socket.gethostname(), f"{socket.gethostname()}.local"]
        else:
            hosts.append(address)
        if environ.get("SPACE_ID"):
            hosts.append("*.hf.space")
        if environ.get("GRADIO_SHARE", "").lower() == "true":
            hosts.append("*.gradio.live")
        self.hosts = [host.lower().strip("[]") for host in hosts if host]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = self._without_unknown_hosts(scope)
        scope = self._with_the_pages_address(scope)
        host = Headers(scope=scope).get("host", "")
        answer: ASGIApp = PlainTextResponse("Invalid host header", 400)
        if HOST.fullmatch(host) and self.knows(host_of(host)):
            answer = self.app
        await answer(scope, receive, send)

    def knows(self, host: str) -> bool:
        with suppress(ValueError):
            if self.any_address and ipaddress.ip_address(host):
                return True
        return any(fnmatch(host, pattern) for pattern in self.hosts)

    def _without_unknown_hosts(self, scope: Scope) -> Scope:
        """Drop the headers that name an unknown host: Gradio builds URLs from them."""
        for name in ("x-forwarded-host", "x-gradio-server"):
            for value in Headers(scope=scope).getlist(name):
                if not all(self.knows(host_of(part.strip())) for part in value.split(",")):
                    scope = without_header(scope, name)
        return scope

    def _with_the_pages_address(self, scope: Scope) -> Scope:
        """Replace what proxies forwarded with the address of the page that calls.

        Only the browser knows the scheme, host and port under which the page was opened, and only a
        browser writes Sec-Fetch-Site.
        """
        headers = Headers(scope=scope)
        if headers.get("sec-fetch-site") != "same-origin":
            return scope
        page = headers.get("origin") or headers.get("referer", "")
        scheme, separator, rest = page.partition("://")
        address = rest.split("/")[0]
        if scheme not in ("http", "https") or not separator or not self.knows(host_of(address)):
            return scope
        forwarded = "x-forwarded-host" in headers
        scope = with_header(scope, "x-forwarded-proto", scheme)
        if forwarded or address != headers.get("host"):
            scope = with_header(scope, "x-forwarded-host", address)
        return scope


class RelativePage:
    """Lets the page find the studio relative to its own address, which no proxy can get wrong.

    What a link shows alone has the address that Gradio finds, because its readers want a whole one.
    """

    # In the configuration, and in the script below it.
    ROOT = re.compile(rb'("root":|const root = )"(https?://[^/"]+)(/[^"]*)?"')

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or API in scope["path"]:
            await self.app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def send_relative(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_html(message):
                start = message
                return
            if not start or message["type"] != "http.response.body":
                await send(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            page = bytes(body)
            root = self.ROOT.search(page)
            if root:
                address = (root[2] + (root[3] or b"")).decode()
                page = api_link.with_tags(self.ROOT.sub(self._relative, page, count=2), address)
            body.clear()  # a slow client may keep this answer waiting for long
            MutableHeaders(scope=start)["content-length"] = str(len(page))
            await send(start)
            await send({"type": "http.response.body", "body": page, "more_body": False})

        await self.app(scope, receive, send_relative)

    @staticmethod
    def _relative(found: re.Match[bytes]) -> bytes:
        """Return the root's path without its host; a root without a path is where the page is."""
        return found[1] + b'"' + (found[3] or b".") + b'"'


def _is_html(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("text/html")


def check_upload_origin(scope: Scope, own: set[str]) -> None:
    """Raise HTTPException if the page of another site sends this request.

    A browser says so itself, except over plain HTTP, where the origin is compared with the host that
    the request is for and with the studio's `own` hosts. Programs send neither header.
    """
    headers = Headers(scope=scope)
    site = headers.get("sec-fetch-site", "").lower()
    if site in ("same-origin", "none"):
        return
    if site == "cross-site":
        raise HTTPException(403, FOREIGN)
    origin = headers.get("origin")
    if origin is None:
        return
    hosts = {host_of(headers.get(name, "")) for name in ("host", "x-forwarded-host")}
    if "//" not in origin or host_of(origin) not in (hosts | own) - {""}:
        raise HTTPException(403, FOREIGN)


def own_hosts(environ: Mapping[str, str]) -> set[str]:
    """Return the host names, without patterns, under which the studio was told that browsers find it."""
    return {host.lower() for host in _configured_hosts(environ) if "*" not in host}


def _configured_hosts(environ: Mapping[str, str]) -> list[str]:
    hosts = environ.get("ACE_STUDIO_HOSTS", "").replace(",", " ").split()
    for variable in ("SPACE_HOST", "GRADIO_ROOT_PATH"):
        hosts.append(host_of(environ.get(variable, "")))
    return [host for host in hosts if host]


def host_of(text: str) -> str:
    """Return the host of a URL or a Host header, without its port; "" if there is none."""
    try:
        return urlsplit(text if "//" in text else f"//{text}").hostname or ""
    except ValueError:
        return ""


def with_header(scope: Scope, name: str, value: str) -> Scope:
    """Return a request's `scope` with this header in place of any of the same name."""
    scope = without_header(scope, name)
    scope["headers"].append((name.encode(), value.encode()))
    return scope


def without_header(scope: Scope, name: str) -> Scope:
    headers = [pair for pair in scope["headers"] if pair[0].lower() != name.encode()]
    return {**scope, "headers": headers}
