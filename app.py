"""Entry point: prepares the process, builds the page, connects its events, and serves it."""

from __future__ import annotations

import gc
import importlib.util
import sys

from bootstrap import bootstrap
from cli import (
    check,
    is_port,
    prove,
    read_arguments,
    run_command,
    serve_lines,
    shorten_errors,
    why_not_listening,
)

# Arguments become environment variables, and the libraries below read theirs while they are
# imported.
if __name__ == "__main__":
    run_command(sys.argv[1:])
    _arguments = read_arguments()
    if _arguments.check:
        raise SystemExit(check())
    if _arguments.selfcheck:
        raise SystemExit(prove())
    if _arguments.daemon:
        serve_lines()
    shorten_errors()
    # Nearly all that is loaded from here on stays; `main` switches the collector on again.
    gc.disable()
bootstrap()


def _load_gradio() -> None:
    """Import gradio without the interface files that it writes for editors, which take two fifths of the import."""
    spec = None if "gradio" in sys.modules else importlib.util.find_spec("gradio")
    if spec and spec.loader:
        # Empty until the function is gone that its first component would call.
        sys.modules["gradio"] = importlib.util.module_from_spec(spec)
    from gradio import component_meta

    component_meta.create_or_modify_pyi = lambda *_: None
    if spec and spec.loader:
        spec.loader.exec_module(sys.modules["gradio"])


_load_gradio()

import asyncio
import contextlib
import io
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, NoReturn

import gradio as gr
from gradio import http_server

import api_chat
import api_guard
import api_link
import api_official
import audio_export
import calm_log
import connections
import gpu_ray
import jobs
import page_queue
import page_sessions
import page_tabs
import served
import takes
import theme
import tooltips
from api import add_endpoints, describe_files
from backend import Backend, get_backend, worker_status
from lora_format import MAX_FILE_BYTES
from page_header import Header, connect_model, connect_status
from page_settings import connect_memory
from runs import runs_of

log = logging.getLogger("studio")

# events that wait in Gradio's queue, all of them short; songs wait in that of runs.py
QUEUE_SIZE = 100
# Open pages that Gradio remembers. An older one loses Undo, and the buttons of its takes answer
# that the studio no longer has the take.
SESSIONS = 500
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_SECONDS = 3  # for running songs to end when the studio stops
CLOSE_SECONDS = 1  # for the workers, and then for the server, to close after that


def build_app(studio: Backend | None = None) -> gr.Blocks:
    """Build the page and the public endpoints without looking for or loading any model."""
    studio = studio or get_backend()
    with gr.Blocks(
        title=tooltips.TITLE,
        analytics_enabled=False,
        elem_id="studio",
        fill_width=True,
    ) as demo:
        header = Header(studio)
        tabs = page_tabs.build_tabs(studio)
        forms = [tab.form for tab in tabs]
        runs = [run for tab in tabs for run in tab.runs]
        download = connect_model(studio, header, tabs)
        connect_status(studio, demo, header, forms, runs, download)
        connect_memory(demo, forms)
        # Never rendered, so that the page does not build it; compact, so that it adds no groups.
        with gr.Column(variant="compact", render=False):
            demo.studio = studio
            demo.runs = runs_of(studio)  # api_runs.py and api.py find them here
            add_endpoints(studio, demo.runs)
    served.files_in_use[:] = [demo.runs.files, partial(_shown, demo)]
    # With api_open a program could start songs past the queue and its validation.
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=4, api_open=False)
    page_queue.be_patient(demo._queue)
    return demo


def launch(demo: Any, port: int | None = None) -> str:
    """Serve `demo` and return its URL; raises OSError. `port` None means the first free port from 7860."""
    # Gradio tries ports with an IPv4 socket, bound to the name that was in the environment when it was imported.
    http_server.LOCALHOST_NAME = "127.0.0.1"
    # Gradio prints its own lines about MCP and the public link; `main` prints ours.
    with contextlib.redirect_stdout(io.StringIO()):
        _, url, _ = demo.launch(
            server_name=_address(),
            server_port=port,
            theme=theme.theme(),
            css=theme.css(),
            head=theme.head(),
            footer_links=["api", "gradio", "settings"],
            run_history=False,
            show_error=False,
            enable_monitoring=False,
            # LoRAs may be larger than songs, which have their own limit in audio.py
            max_file_size=MAX_FILE_BYTES,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            # else Gradio gives up if the page does not answer in 3 seconds, as on a busy machine
            _frontend=False,
            state_session_capacity=SESSIONS,
            app_kwargs={
                "middleware": api_guard.middleware(),
                "lifespan": _tidying,
                "routes": [
                    api_link.route(),
                    *api_official.routes(demo.studio, demo.runs, api_chat.add_routes),
                ],
            },
        )
    connections.limit(demo.server.config)
    page_sessions.use_for(demo)
    if demo.mcp_server_obj:
        describe_files(demo.mcp_server_obj)
    return url


def main() -> None:
    """Serve the studio until it is stopped; exits with a sentence and status 1 if the port is not available."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    port = os.environ.get("GRADIO_SERVER_PORT", "").strip()
    if port and not is_port(port):
        sys.exit(tooltips.BAD_PORT.format(port=port))
    jobs.sweep()
    takes.sweep_songs()
    demo = build_app()
    try:
        url = launch(demo, int(port) if port else None)
    except OSError as error:
        log.debug("cannot listen", exc_info=error)
        sys.exit(why_not_listening(_address(), port))
    gc.enable()
    calm_log.install()
    gpu_ray.pool.start(worker_status, runs_of(get_backend()).allow)
    stopped = _stop_signal()
    _announce(demo, url)
    # Python may miss a signal that arrives just before a wait without an end
    while not stopped.wait(1):
        pass
    stop(demo)


def stop(demo: Any) -> NoReturn:
    """Cancel running songs, clean up, and end the process within 5 seconds with status 0."""
    print(tooltips.STOPPING, flush=True)
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, signal.SIG_DFL)  # a second Ctrl+C ends the process at once
    demo.runs.stop(0)  # marks them; each ends as its job does
    jobs.stop(STOP_SECONDS)
    audio_export.stop()
    demo.server.config.timeout_graceful_shutdown = 1
    closing = [
        threading.Thread(target=gpu_ray.pool.dismiss, daemon=True),
        threading.Thread(target=demo.close, args=(False,), daemon=True),
    ]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(CLOSE_SECONDS)
    for worker in multiprocessing.active_children():  # ZeroGPU's workers would outlive this process
        worker.kill()
    logging.shutdown()
    os._exit(0)  # a thread inside torch would abort a normal exit


def _shown(demo: gr.Blocks) -> Iterator[str]:
    """Yield the files that the page itself shows, such as its examples."""
    for block in demo.blocks.values():
        yield from getattr(block, "keep_in_cache", ())


@contextlib.asynccontextmanager
async def _tidying(app: Any) -> AsyncIterator[None]:
    """Sweep the folder that Gradio serves, at once and every hour, while the server runs."""

    async def sweep() -> None:
        while True:
            await asyncio.to_thread(served.sweep)
            for _ in range(int(served.SWEEP_SECONDS // served.USING_SECONDS)):
                await asyncio.sleep(served.USING_SECONDS)
                await asyncio.to_thread(served.touch_used)

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()
        served.delete_own()


def _address() -> str:
    """Return the name or number to listen on, an IPv6 number in the brackets that an address needs."""
    name = os.environ.get("GRADIO_SERVER_NAME", "").strip("[] ") or "127.0.0.1"
    return f"[{name}]" if ":" in name else name


def _stop_signal() -> threading.Event:
    """Return an event that is set once the process is asked to end, by Ctrl+C or by another process."""
    stopped = threading.Event()
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, lambda *_: stopped.set())
    return stopped


def _announce(demo: Any, url: str) -> None:
    """Print where the page is, and whether it has an MCP server and a public link if they were asked for."""
    print(tooltips.READY.format(url=url), flush=True)
    if _is_wanted("GRADIO_MCP_SERVER"):
        sentence = tooltips.MCP_MISSING
        if demo.mcp_server:
            sentence = tooltips.MCP_READY.format(url=url)
        print(sentence, flush=True)
    if _is_wanted("GRADIO_SHARE"):
        sentence = tooltips.NOT_SHARED
        if demo.share_url:
            sentence = tooltips.SHARED.format(url=demo.share_url)
        print(sentence, flush=True)


def _is_wanted(variable: str) -> bool:
    """Tell whether a variable of the environment is "true", as Gradio reads it."""
    return os.environ.get(variable, "").lower() == "true"


if __name__ == "__main__":
    main()
