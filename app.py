"""The door: prepares the process, builds the page, connects its events, and serves it."""

from __future__ import annotations

from bootstrap import bootstrap as _bootstrap
from cli import check as _check
from cli import read_arguments as _read_arguments
from cli import say_why_it_cannot_start as _say_why_it_cannot_start

# Arguments are variables, too, and the libraries below read theirs while they are imported.
_arguments = _read_arguments() if __name__ == "__main__" else None
if _arguments and _arguments.check:
    raise SystemExit(_check())
if _arguments:
    _say_why_it_cannot_start()
_bootstrap()

import contextlib
import functools
import io
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

import cluster
import guard
import jobs
import page_markup
import page_panels
import page_tabs
import theme
import tooltips
from api import add_endpoints
from backend import GPU_CONCURRENCY, get_backend, start_workers
from cli import is_port
from events import Done, Problem, StudioError
from lora_files import MAX_FILE_BYTES
from page_form import AT_ONCE, QUIET, Form, Updates
from page_panels import Header
from page_runs import connect_cancel, page_updates, unexpected
from page_settings import connect_memory

log = logging.getLogger("studio")

# Songs that may wait at once, those of the API included; the next visitor is told that the studio is busy.
QUEUE_SIZE = 32
# Visits and API calls that Gradio remembers at once; who comes back after so many others has lost Undo, nothing else.
SESSIONS = 150
# Seconds that running songs have to end when the studio is stopped.
STOP_SECONDS = 3
# Seconds: how often Gradio looks for old uploads and copies of takes, and how old they get.
DELETE_CACHE = (3600, 24 * 3600)
# A status in which nothing is here; it tells which parts of the page follow the status.
NOTHING = {"state": "none", "model": "", "problem": None}
NOTHING_KNOWN = {
    "kind": "sft",
    "tasks": {},
    "unsupported": {},
    "planner": NOTHING,
    "lyrics": NOTHING,
    "memory_plans": (),
}


def build_app() -> gr.Blocks:
    """Build the page and the public endpoints; nothing is loaded or looked for before a visitor comes."""
    with gr.Blocks(
        title=tooltips.TITLE, analytics_enabled=False, delete_cache=DELETE_CACHE, elem_id="studio", fill_width=True
    ) as demo:
        header = page_panels.header()
        forms = page_tabs.build_tabs()
        connect_status(demo, header, forms)
        connect_download(header, forms)
        connect_memory(demo, forms)
        # Never rendered, so that the page builds nothing for it; a compact one adds no groups of its own.
        with gr.Column(variant="compact", render=False):
            add_endpoints()
    # Without api_open a program cannot start a song past the queue and its validation.
    return demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=4, api_open=False)


# --- events -------------------------------------------------------------------------------------------------------


def connect_download(header: Header, forms: list[Form]) -> None:
    """Let the banner's button fetch the real model and show what the studio runs on afterwards."""
    bar = header.bar

    def failed(problem: Problem) -> Updates:
        return bar.idle(page_markup.line("failed", problem.text()))

    def done(_: Done) -> Updates:
        still_preview = get_backend().status()["engine"] == "preview"
        text = tooltips.DOWNLOAD_UNUSED if still_preview else tooltips.DOWNLOAD_DONE
        return {**status_updates(header, forms), **bar.idle(page_markup.line("done", text))}

    def fetch() -> Iterator[Updates]:
        yield bar.running(page_markup.line("running", tooltips.DOWNLOAD_STARTING))
        try:
            with contextlib.closing(get_backend().download()) as events:
                yield from page_updates(bar, events, done, failed)
        except Exception:
            log.exception("the download failed unexpectedly")
            yield failed(unexpected())

    outputs = [*bar.outputs, *status_outputs(header, forms)]
    run = bar.go.click(fetch, outputs=outputs, concurrency_id="download", concurrency_limit=1, **QUIET)
    connect_cancel(bar, run, run, tooltips.DOWNLOAD_CANCELLED)


def connect_status(demo: gr.Blocks, header: Header, forms: list[Form]) -> None:
    """Show, whenever a page is opened, what the studio runs on: at once what is known, then the device."""
    outputs = status_outputs(header, forms)
    known = demo.load(lambda: status_updates(header, forms), outputs=outputs, **AT_ONCE)

    def look() -> Updates:
        return header.show(get_backend().look())

    def prepare() -> None:
        # What cannot be loaded is told with the first song.
        with contextlib.suppress(StudioError):
            if not cluster.wanted():
                get_backend().models.prepare()

    # The header alone: this takes seconds where torch is not loaded yet, and the visitor is filling in the form.
    seen = known.then(look, outputs=header.outputs, **AT_ONCE)
    seen.then(prepare, **AT_ONCE)
    # A run may have loaded something, or have found that it cannot be loaded.
    for run in (run for form in forms for run in form.runs):
        run.then(lambda: page_markup.heading(get_backend().status()), outputs=header.status, **AT_ONCE)


def status_outputs(header: Header, forms: list[Form]) -> list[Any]:
    """Return what the status of the backend changes on the page."""
    return [*header.outputs, *(each for form in forms for each in form.show_status(NOTHING_KNOWN))]


def status_updates(header: Header, forms: list[Form]) -> Updates:
    facts = get_backend().status()
    updates = header.show(facts)
    for form in forms:
        updates |= form.show_status(facts)
    return updates


# --- serving ------------------------------------------------------------------------------------------------------


class CompressedPage:
    """Compresses the page and its description, the largest of all, which Gradio does not."""

    # Songs do not shrink, and streams must not wait.
    pages = ("", "/", "/config", "/gradio_api/info")

    def __init__(self, app: ASGIApp):
        self.app, self.compressed = app, GZipMiddleware(app, minimum_size=1000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = scope["type"] == "http" and scope["path"].removeprefix(scope.get("root_path", "")) in self.pages
        await (self.compressed if page else self.app)(scope, receive, send)


def launch(demo: gr.Blocks, port: int | None = None) -> str:
    """Serve `demo` on GRADIO_SERVER_NAME (127.0.0.1 unless set) and return its address; raises OSError.

    `port` None takes the first free port from 7860 on. The output folder is not served: only copies in Gradio's cache.
    """
    # Gradio announces its MCP server and public link in its own way; `main` says what came of both.
    with contextlib.redirect_stdout(io.StringIO()):
        _, url, _ = demo.launch(
            server_name=os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1",
            server_port=port,
            theme=theme.theme(),
            css=theme.css(),
            head=theme.head(),
            footer_links=["api", "gradio", "settings"],
            run_history=False,
            show_error=False,
            enable_monitoring=False,
            # A LoRA may be larger than a song, for which audio.py has a limit of its own.
            max_file_size=MAX_FILE_BYTES,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            # Gradio would give the page 3 seconds to answer, which a busy machine may not keep.
            _frontend=False,
            # Gradio keeps a copy of the whole page's settings for every session: about 2 MB each.
            state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [*guard.middleware(), Middleware(CompressedPage)]},
        )
    return url


def wanted_port() -> int | None:
    """Return the port that GRADIO_SERVER_PORT names, None where it names none; exits with a sentence on nonsense."""
    port = os.environ.get("GRADIO_SERVER_PORT", "").strip()
    if not port:
        return None
    if not is_port(port):
        sys.exit(tooltips.BAD_PORT.format(port=port))
    return int(port)


def main() -> None:
    """Serve the studio until it is stopped; a port that cannot be had ends with a sentence and status 1."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopped = threading.Event()
    port = wanted_port()
    jobs.sweep()
    jobs.sweep_songs()
    demo = build_app()
    try:
        url = launch(demo, port)
    except OSError as error:
        log.debug("cannot listen", exc_info=error)
        host = os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
        sys.exit(tooltips.PORT_TAKEN.format(host=host, port=port) if port else tooltips.NO_PORT.format(host=host))
    start_workers(lambda count: let_run(demo, count))
    for text in announcements(demo, url):
        print(text, flush=True)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stopped.set())
    stopped.wait()
    stop(demo)


def let_run(demo: gr.Blocks, songs: int) -> None:
    """Let the queue of `demo` run that many songs at once, one at least."""
    name, songs = GPU_CONCURRENCY["concurrency_id"], max(songs, 1)
    # With every event Gradio lowers its queue's limit to that of the event's function.
    for each in demo.fns.values():
        if each.concurrency_id == name:
            each.concurrency_limit = songs
    if name in demo._queue.event_queue_per_concurrency_id:
        demo._queue.event_queue_per_concurrency_id[name].concurrency_limit = songs


def stop(demo: gr.Blocks) -> NoReturn:
    """End the process within 5 seconds, with status 0: running songs are cancelled, and nothing half-made is left.

    It leaves by os._exit: a thread inside torch would abort the interpreter's own way out.
    """
    print(tooltips.STOPPING, flush=True)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    jobs.stop(STOP_SECONDS)
    demo.server.config.timeout_graceful_shutdown = 1
    ways = (cluster.dismiss, functools.partial(demo.close, verbose=False))
    closing = [threading.Thread(target=way, daemon=True) for way in ways]
    for each in closing:
        each.start()
    for each in closing:
        each.join(1)
    # ZeroGPU's workers would outlive their parent.
    for worker in multiprocessing.active_children():
        worker.kill()
    logging.shutdown()
    os._exit(0)


def announcements(demo: gr.Blocks, url: str) -> Iterator[str]:
    """Yield what the terminal is told of a studio at `url`: its address, its MCP tools, its public link."""
    yield tooltips.READY.format(url=url)
    if _wanted("GRADIO_MCP_SERVER"):
        yield tooltips.MCP_READY.format(url=url) if demo.mcp_server else tooltips.MCP_MISSING
    if _wanted("GRADIO_SHARE"):
        yield tooltips.SHARED.format(url=demo.share_url) if demo.share_url else tooltips.NOT_SHARED


def _wanted(variable: str) -> bool:
    """Tell whether a switch of Gradio's is on, by its own rule."""
    return os.environ.get(variable, "").lower() == "true"


if __name__ == "__main__":
    main()
