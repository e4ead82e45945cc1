"""What callers from outside get: hosts, refusals, security headers, and that no address is fetched for them."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
from gradio import Blocks
from gradio.route_utils import get_root_url
from PIL import Image
from starlette.requests import Request
from starlette.responses import HTMLResponse

import api_guard
import api_hosts
import audio
import served
import tooltips
from bootstrap import page_folder
from tests.waiting import result_of, until

FILE = {"meta": {"_type": "gradio.FileData"}}
DEEP = '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}"


get = functools.partial(httpx.get, timeout=300)


def post(server: str, route: str, body: object = None, **headers: str) -> httpx.Response:
    """Post JSON, or text as it is, to a route of the API."""
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"content-type": "application/json", **headers}
    return httpx.post(f"{server}/gradio_api/{route}", content=content, headers=headers, timeout=300)


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """Return an address of this machine that must not be asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/song.wav"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("field", ["source", "nested"])
def test_an_address_inside_a_call_is_refused_and_never_asked(server, elsewhere, field):
    file = {**FILE, "path": elsewhere}
    values = {"prompt": "x", "source": None, "action": "layer"}
    values |= (
        {"options": {"loras": [{"source": file, "weight": 1}]}}
        if field == "nested"
        else {field: file}
    )
    answer = post(server, "call/v2/edit", values)
    assert answer.status_code == 422
    assert "does not fetch URLs" in answer.json()["detail"]


def test_gradio_fetches_no_address_from_a_path(server, elsewhere):
    for route in ("file=", "file/", "proxy="):
        answer = get(f"{server}/gradio_api/{route}{elsewhere.replace('http', 'HTTP')}")
        assert (answer.status_code, answer.json()) == (404, {"detail": "There is nothing here."}), (
            route
        )


def test_a_name_that_a_stranger_points_here_is_not_answered(server):
    for path in ("/", "/config", "/gradio_api/info", "/gradio_api/mcp/"):
        assert get(f"{server}{path}", headers={"host": "evil.example:7860"}).status_code == 400, (
            path
        )


def test_each_caller_reads_the_address_it_came_by_and_nobody_sets_that_of_others(server):
    for name, value in (
        ("x-forwarded-host", "evil.example"),
        ("x-gradio-server", "http://evil.example"),
    ):
        for path in ("/gradio_api/info", "/config", "/"):
            assert "evil.example" not in get(f"{server}{path}", headers={name: value}).text, (
                name,
                path,
            )
    port = server.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        info = get(f"{server}/gradio_api/info", headers={"host": f"{host}:{port}"}).text
        assert f"http://{host}:{port}" in info
        assert f"http://{'localhost' if host == '127.0.0.1' else '127.0.0.1'}:{port}" not in info


# What the page is opened as, what a proxy makes of it, and whether the studio believes the page.
BEHIND = [
    ("https://music.example", {"host": "music.example"}, True),
    ("https://music.example", {"host": "127.0.0.1:7860"}, True),
    ("https://music.example:8443", {"host": "music.example"}, True),
    ("https://music.example", {"host": "music.example", "x-forwarded-proto": "http"}, True),
    (
        "https://music.example",
        {"host": "127.0.0.1", "x-forwarded-host": "music.example:80", "forwarded": "proto=https"},
        True,
    ),
    ("https://evil.example", {"host": "music.example"}, False),
]


@pytest.mark.parametrize(("page", "headers", "believed"), BEHIND)
@pytest.mark.parametrize("name", ["origin", "referer"])
def test_behind_a_proxy_the_pages_own_address_counts(page, headers, believed, name):
    seen = {}

    async def app(scope, *_):
        seen["root"] = get_root_url(Request(scope), "/gradio_api/queue/join", None)

    hosts = api_hosts.KnownHosts(app, {"ACE_STUDIO_HOSTS": "music.example"})
    value = page if name == "origin" else f"{page}/?view=1"
    given = {**headers, "sec-fetch-site": "same-origin", name: value}
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/gradio_api/queue/join",
        "query_string": b"",
        "root_path": "",
        "server": ("127.0.0.1", 7860),
        "headers": [(key.encode(), value.encode()) for key, value in given.items()],
    }
    result_of(hosts(scope, None, None))
    assert (seen["root"] == page) is believed
    # A program, or a page of another site, is answered as before.
    scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"sec-fetch-site"]
    result_of(hosts(scope, None, None))
    assert seen["root"].startswith("http://")


@pytest.mark.parametrize("path", ["/", "/?view=api"])
def test_the_page_names_no_address_that_a_proxy_made_up(server, path):
    port = server.rpartition(":")[2]
    answer = get(f"{server}{path}", headers={"host": f"localhost:{port}"})
    assert answer.status_code == 200 and '"root":"."' in answer.text
    assert f'"root":"http://localhost:{port}' not in answer.text
    assert 'const root = "."' in answer.text
    # A program asks for the configuration, and needs an address.
    assert get(f"{server}/config").json()["root"] == server


def shown_of(page: str) -> dict[str, str]:
    """Return what a link to a page shows where it is shared; each tag is there once."""
    head = page.partition("<script")[0]
    tags = re.findall(r'<meta\s[^>]*"((?:og|twitter):[\w:]+)"\s+content="([^"]*)"', head)
    names = [name for name, _ in tags]
    assert len(names) == len(set(names)) == len(re.findall("(?:og|twitter):", head))
    return dict(tags)


def test_a_link_shows_what_the_studio_is_with_a_picture_of_its_own(server):
    port = server.rpartition(":")[2]
    forwarded = {"x-forwarded-host": "localhost", "x-forwarded-proto": "https"}
    for address, headers in (
        (server, {}),
        (f"http://localhost:{port}", {"host": f"localhost:{port}"}),
        ("https://localhost", forwarded),
    ):
        shown = shown_of(get(f"{server}/", headers=headers).text)
        assert shown["og:title"] == tooltips.TITLE
        assert shown["og:description"] == tooltips.DESCRIPTION
        assert shown["og:url"] == f"{address}/"
        assert shown["og:image"] == f"{address}/link.webp"
        assert shown["twitter:card"] == "summary_large_image"
    picture = get(f"{server}/link.webp")
    assert picture.headers["content-type"] == "image/webp"
    assert len(picture.content) <= 60_000
    drawn = Image.open(io.BytesIO(picture.content))
    said = int(shown["og:image:width"]), int(shown["og:image:height"])
    assert drawn.format == "WEBP" and drawn.size == said == (1200, 630)


def test_a_link_below_a_path_has_its_picture_there():
    """As on a proxy that serves the studio under a path of its own."""
    page = '<head></head><script>{"root":"https://music.example/a&b"}</script>'

    async def sent() -> bytes:
        bodies = []

        async def send(message):
            bodies.append(message.get("body", b""))

        async def app(scope, receive, send):
            await HTMLResponse(page)(scope, receive, send)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await api_hosts.RelativePage(app)(scope, None, send)
        return b"".join(bodies)

    answer = result_of(sent()).decode()
    assert shown_of(answer)["og:image"] == "https://music.example/a&amp;b/link.webp"
    assert '"root":"/a&b"' in answer


def test_a_file_that_is_gone_and_one_that_is_nobodys_business_get_one_answer(server):
    folder = page_folder()
    there = folder / "there.wav"
    there.parent.mkdir(exist_ok=True)
    there.write_bytes(b"RIFF")
    assert get(f"{server}/gradio_api/file={there}").status_code == 200
    for path in (folder / "gone.wav", f"{folder}/../../etc/x", "/etc/passwd", "/etc/nothing"):
        for ask in (get, functools.partial(httpx.head, timeout=300)):
            answer = ask(f"{server}/gradio_api/file={path}")
            assert answer.status_code == 404, path
        assert get(f"{server}/gradio_api/file={path}").json()["detail"].startswith("There is no")


@pytest.mark.parametrize(
    ("environ", "known", "unknown"),
    [
        ({}, ["localhost", "127.0.0.1", "::1"], ["192.168.1.5", "studio.local", "a.hf.space"]),
        ({"GRADIO_SERVER_NAME": "192.168.1.5"}, ["192.168.1.5", "localhost"], ["192.168.1.6"]),
        ({"GRADIO_SERVER_NAME": "[2001:db8::1]"}, ["2001:db8::1", "::1"], ["2001:db8::2"]),
        ({"GRADIO_SERVER_NAME": "0.0.0.0"}, ["192.168.1.5", "2001:db8::1"], ["evil.example"]),
        (
            {"SPACE_ID": "me/song", "SPACE_HOST": "me-song.hf.space"},
            ["me-song.hf.space"],
            ["hf.space.evil.example"],
        ),
        (
            {"ACE_STUDIO_HOSTS": "a.example, *.b.example"},
            ["a.example", "x.b.example"],
            ["b.example.org"],
        ),
        ({"GRADIO_ROOT_PATH": "https://music.example/studio"}, ["music.example"], ["example"]),
    ],
    ids=str,
)
def test_the_names_that_are_answered_are_those_it_was_started_for(environ, known, unknown):
    hosts = api_hosts.KnownHosts(lambda *_: None, environ)
    assert [host for host in known if not hosts.knows(host)] == []
    assert [host for host in unknown if hosts.knows(host)] == []


def test_a_container_reaches_the_studio_of_its_host(server):
    port = server.rpartition(":")[2]
    for host, status in (("host.docker.internal", 200), ("other.docker.internal", 400)):
        headers = {"host": f"{host}:{port}"}
        assert get(f"{server}/health", headers=headers).status_code == status
        assert post(server, "call/capabilities", {"data": []}, **headers).status_code == status


def test_a_host_header_is_a_name_and_a_port_and_nothing_else(server):
    for host in (
        "evil@localhost",
        "localhost/evil",
        "http://localhost",
        "localhost#a",
        "localhost?b",
        "localhost:evil",
    ):
        assert get(f"{server}/config", headers={"host": host}).status_code == 400, host


def test_a_browser_gets_text_and_the_page_in_brotli(server):
    accepting = {"accept-encoding": "gzip, deflate, br"}
    for path in ("", "config", "theme.css"):
        assert get(f"{server}/{path}", headers=accepting).headers["content-encoding"] == "br", path


REFUSALS = {
    "unknown parameter": (
        "call/v2/generate",
        {"prompt": "x", "wobble": 1},
        422,
        '"wobble" is not a parameter',
    ),
    "missing parameter": ("call/v2/generate", {}, 422, "prompt of /generate is missing"),
    "missing body": ("call/v2/generate", "", 400, "must be a JSON object"),
    "unknown endpoint": ("call/nope", {"data": []}, 404, "The endpoints are generate, cover"),
    "unknown function": (
        "queue/join",
        {"data": [], "fn_index": 9999, "session_hash": "a"},
        404,
        "no function 9999",
    ),
    "a function that is true": (
        "queue/join",
        {"data": [], "fn_index": True, "session_hash": "a"},
        400,
        "fn_index must be",
    ),
    "no function": ("queue/join", {"data": [], "session_hash": "a"}, 400, "fn_index must be"),
    "too few inputs": ("call/generate", {"data": ["x"]}, 422, "data must be a list"),
    "rather deep JSON": (
        "call/v2/generate",
        {"prompt": json.loads("[" * 40 + "]" * 40)},
        400,
        "levels deep",
    ),
    "deep JSON over MCP": ("mcp/", DEEP, 400, "levels deep"),
    "a long body": ("call/v2/generate", {"prompt": "x" * 5_000_000}, 413, "4 MiB"),
    "a strange cancel": ("cancel", {"event_id": {}}, 400, "could not be understood"),
    "a long path": (
        *("call/v2/edit", {"prompt": "x", "source": None, "tracks": {**FILE, "path": "x" * 5000}}),
        *(400, "could not be understood"),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_a_short_sentence_and_a_line_in_the_log(server, caplog, capfd, case):
    route, body, status, words = REFUSALS[case]
    with caplog.at_level(logging.INFO):
        answer = post(server, route, body)
    assert answer.status_code == status, answer.text
    found = answer.json()
    sentence = found["error"]["message"] if "error" in found else found["detail"]
    assert words in sentence
    assert len(sentence) < 300 and not any(
        word in sentence for word in ("Errno", "0x", "Traceback", "Error(")
    )
    logged = [record for record in caplog.records if record.name == "studio"]
    assert len(logged) == 1 and "\n" not in logged[0].getMessage() and logged[0].exc_info is None
    assert "Traceback" not in capfd.readouterr().err


def test_an_upload_without_a_name_is_a_sentence(server, capfd):
    body = '--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nRIFF\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{server}/gradio_api/upload", content=body, headers=headers, timeout=300)
    assert answer.status_code == 400 and "exactly one file" in answer.json()["detail"]
    assert "Traceback" not in capfd.readouterr().err


def test_every_answer_has_the_security_headers(server):
    for path in ("/", "/config", "/theme.css", "/gradio_api/file=/etc/passwd", "/nothing"):
        headers = get(f"{server}{path}").headers
        assert headers["x-content-type-options"] == "nosniff", path
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'" and policy["object-src"] == "'none'"
        assert policy["frame-ancestors"].split()[:2] == ["'self'", "https://huggingface.co"]
        assert not any("*" in source.replace("https://*.", "") for source in policy.values())


# --- the key for programs ------------------------------------------------------------------------------------------

CARRIED = [
    ({}, {"authorization": "Bearer secret"}),
    ({}, {"authorization": "secret"}),
    ({"ai_token": "secret"}, {}),
]
NOT_CARRIED = [
    ({}, {}),
    ({}, {"authorization": "Bearer wrong"}),
    ({}, {"authorization": "wrong"}),
    ({"ai_token": "wrong"}, {}),
    ({"ai_token": ["secret"]}, {}),
    ({}, {api_guard.CALL_HEADER: "secret"}),  # what only a tool's own call has
]


def ways_of_calling(page: Blocks, name: str) -> Iterator[tuple[str, dict]]:
    """Yield each route that leads to an endpoint, with a body that fits it."""
    functions = page.fns
    index, function = next(
        (i, each) for i, each in functions.items() if each.api_name == name and each.fn
    )
    data = {"data": [None] * len(function.inputs)}
    for kind in ("call", "run", "api"):
        yield f"{kind}/{name}", data
    yield f"call/v2/{name}", {"prompt": "x", "source": None, "brief": "x", "run": "x"}
    yield "queue/join", {**data, "fn_index": index, "session_hash": "a"}


@pytest.mark.parametrize("name", api_guard.GUARDED)
def test_an_endpoint_wants_the_key_by_every_route(server, served_page, monkeypatch, name):
    monkeypatch.setenv("ACE_STUDIO_API_KEY", "secret")
    for route, body in ways_of_calling(served_page, name):
        for more, headers in NOT_CARRIED:
            answer = post(server, route, {**body, **more}, **headers)
            assert answer.status_code == 401, (route, more, headers, answer.text)
            assert "ai_token" in answer.text or "API key" in answer.text


@pytest.mark.parametrize(("more", "headers"), CARRIED)
def test_an_endpoint_takes_the_key_in_three_places(server, monkeypatch, more, headers):
    monkeypatch.setenv("ACE_STUDIO_API_KEY", "secret")
    for route, body in (
        ("call/run", {"data": ["x"]}),
        ("call/v2/run", {"run": "x"}),
        ("run/run", {"data": ["x"]}),
    ):
        answer = post(server, route, {**body, **more}, **headers)
        assert answer.status_code == 200, (route, answer.text)
    refused = post(server, "call/v2/generate", {"prompt": "x", "duration": 5, **more}, **headers)
    assert refused.status_code == 422 and "duration" in refused.text


def test_the_page_and_what_there_is_need_no_key(server, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_API_KEY", "secret")
    for path in ("/", "/config", "/gradio_api/info", "/health"):
        assert get(f"{server}{path}").status_code == 200, path
    assert post(server, "call/capabilities", {"data": []}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        ("http://localhost:5173", True),
        ("http://127.0.0.1:3000", True),
        ("tauri://localhost", True),
        ("null", False),  # of a page from a file, and of any site's sandboxed frame
        ("https://evil.example", False),
    ],
)
def test_pages_of_this_machine_may_call_what_other_programs_do(server, origin, may):
    asked = {"access-control-request-method": "POST"}
    url = f"{server}/release_task"
    before = httpx.options(url, headers={"origin": origin, **asked}, timeout=300)
    answer = httpx.post(
        url, json={"extract_codes_only": True}, headers={"origin": origin}, timeout=300
    )
    assert answer.status_code == (200 if may else 403)
    for each in (before, answer):
        allowed = each.headers.get("access-control-allow-origin")
        assert allowed == (origin if may else None)


# --- cancelling ---------------------------------------------------------------------------------------------------


def test_a_strange_function_number_breaks_neither_a_call_nor_a_cancel(server, caplog, monkeypatch):
    # An error after the answer has begun shows in the server's own log alone, which does not propagate.
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [caplog.handler])
    for index in ([], {}, "x", None):
        assert (
            post(server, "call/capabilities", {"data": [], "fn_index": index}).status_code == 200
        ), index
        cancelled = post(
            server, "cancel", {"session_hash": "nobody", "fn_index": index, "event_id": None}
        )
        assert cancelled.status_code in (200, 400), index
    assert [record for record in caplog.records if record.exc_info] == []


# --- what is kept, and what is logged -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a" * 101, ["a"], {"a": 1}, 7], ids=["long", "list", "object", "number"]
)
def test_a_name_that_is_kept_is_short_and_text(server, served_page, name):
    kept = len(served_page.app.state_holder.session_data)
    for route in ("queue/join", "cancel", "call/capabilities", "run/predict", "component_server"):
        answer = post(server, route, {"data": [], "fn_index": 0, "session_hash": name})
        assert answer.status_code == 400, route
        assert "100 characters" in answer.json()["detail"]
    assert len(served_page.app.state_holder.session_data) == kept


def test_a_long_name_in_an_address_is_refused(server):
    for route in (f"heartbeat/{'a' * 101}", f"queue/data?session_hash={'a' * 101}"):
        assert get(f"{server}/gradio_api/{route}").status_code == 400, route


def test_answers_that_nobody_fetches_do_not_pile_up(server, served_page, monkeypatch):
    waiting = served_page._queue.pending_messages_per_session
    monkeypatch.setattr(api_guard, "MOST_UNREAD", 6)
    call = {"data": [], "session_hash": "nobody reads this"}
    statuses = [post(server, "call/capabilities", call).status_code for _ in range(9)]
    assert statuses[0] == 200 and statuses[-1] == 503
    monkeypatch.setattr(api_guard, "MOST_UNREAD_IN_ALL", 1)
    assert post(server, "call/capabilities", {"data": []}).status_code == 200
    assert "nobody reads this" not in waiting


def test_sessions_are_forgotten_once_their_answers_are_read_or_left(
    server, served_page, monkeypatch
):
    queue = served_page._queue
    ids, messages = queue.pending_event_ids_session, queue.pending_messages_per_session
    read = []
    for session in ({}, {"session_hash": "again"}, {"session_hash": "again"}):
        event = post(server, "call/capabilities", {"data": [], **session}).json()["event_id"]
        assert "event: complete" in get(f"{server}/gradio_api/call/capabilities/{event}").text
        read.append(session.get("session_hash", event))
        until(lambda event=event: event not in queue.event_ids_to_events)
    for name, events in {"left": {"ended"}, "busy": {"going on"}, "unread": {"over"}}.items():
        monkeypatch.setitem(ids, name, events)
    going_on = SimpleNamespace(session_hash="busy")
    monkeypatch.setitem(queue.event_ids_to_events, "going on", going_on)
    monkeypatch.setitem(messages, "unread", asyncio.Queue())
    post(server, "call/capabilities", {"data": []})
    assert not {*read, "left"} & {*ids, *messages}
    assert {"busy", "unread"} <= {*ids}


def test_what_only_the_browser_does_is_no_function(server, served_page):
    functions = served_page.fns
    index = next(i for i, each in functions.items() if each.fn is None and not each.cancels)
    data = [None] * len(functions[index].inputs)
    answer = post(server, "queue/join", {"data": data, "fn_index": index, "session_hash": "a"})
    assert answer.status_code == 404 and "no function" in answer.json()["detail"]


def test_an_unknown_session_or_event_is_told_so_without_a_traceback(server, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [caplog.handler])
    answer = get(f"{server}/gradio_api/queue/data?session_hash=unknown")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-encoding" not in answer.headers
    news = json.loads(answer.text.removeprefix("data: "))
    assert news["msg"] == "unexpected_error" and news["session_not_found"] is True
    answer = get(f"{server}/gradio_api/call/generate/unknown")
    assert answer.status_code == 404 and "no such event" in answer.json()["detail"]
    assert [record for record in caplog.records if record.exc_info] == []


RANGES = {
    "a part": ({"range": "bytes=2-4"}, 206, b"cde"),
    "to the end": ({"range": "bytes=7-"}, 206, b"hij"),
    "the last": ({"range": "bytes=-2"}, 206, b"ij"),
    "of another version": ({"range": "bytes=2-4", "if-range": '"other"'}, 200, b"abcdefghij"),
    "of this version": ({"range": "bytes=2-4", "if-range": "{etag}"}, 206, b"cde"),
    "beyond the end": ({"range": "bytes=20-30"}, 416, None),
    "backwards": ({"range": "bytes=4-2"}, 400, None),
    "no number": ({"range": "bytes=a-b"}, 400, None),
}


@pytest.mark.parametrize("case", RANGES)
def test_a_part_of_a_file_is_that_of_the_version_that_is_meant(server, case):
    path = served.new_place("letters.wav")
    path.write_bytes(b"abcdefghij")
    url = f"{server}/gradio_api/file={path}"
    asked, status, content = RANGES[case]
    etag = get(url).headers["etag"]
    answer = get(
        url, headers={name: value.replace("{etag}", etag) for name, value in asked.items()}
    )
    assert answer.status_code == status
    assert content is None or answer.content == content


def test_nobody_waits_for_the_check_of_anothers_file(server, monkeypatch):
    begun = threading.Event()
    go_on = threading.Event()
    measured = audio._measured

    def measure(path):
        begun.set()
        assert go_on.wait(300)
        return measured(path)

    monkeypatch.setattr(audio, "_measured", measure)
    path = served.new_place("large.wav")
    path.write_bytes(b"RIFF")
    file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    values = {"prompt": "x", "source": file}
    with ThreadPoolExecutor(1) as other:
        refused = other.submit(post, server, "call/v2/cover", values)
        assert begun.wait(300)
        assert post(server, "call/capabilities", {"data": []}).status_code == 200
        go_on.set()
        assert refused.result(300).status_code == 422


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_the_page_of_another_site_calls_nothing_without_asking_first(server, kind):
    """A browser asks before it sends JSON for another site, but not before it sends text."""
    headers = {"content-type": kind, "origin": "https://evil.example"}
    for route in ("call/capabilities", "call/v2/generate", "queue/join", "cancel", "mcp/"):
        assert post(server, route, {"data": [], "prompt": "x"}, **headers).status_code >= 400, route


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.xhtml", "a.js", "a.xml", "a"])
def test_a_page_that_somebody_uploaded_is_not_shown(server, name):
    path = served.new_place(name)
    path.write_bytes(b"<script>alert(1)</script>")
    answer = get(f"{server}/gradio_api/file={path}")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "host", ["localhost:99999999", "localhost:0", "LOCALHOST", "[::1]:80", "localhost:00080"]
)
def test_an_odd_host_of_ours_is_answered_or_refused(server, host):
    for path in ("/", "/config", "/gradio_api/info"):
        assert get(f"{server}{path}", headers={"host": host}).status_code in (200, 400)


def test_a_path_that_a_caller_made_up_is_one_short_line_in_the_log(server, caplog):
    path = "call/v2/generate%0aERROR studio: forged" + "a" * 500
    assert post(server, path, "[]").status_code == 400
    (line,) = [record.getMessage() for record in caplog.records if record.name == "studio"]
    assert "\n" not in line and len(line) < 250
