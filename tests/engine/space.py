"""A Space on ZeroGPU without the platform: the studio in its own process, and the fake API that lends it cards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gradio_client import Client

from tests.engine.fake_device_api import DeviceAPI
from tests.program import ROOT


class Space:
    def __init__(self, url: str, api: DeviceAPI, folder: Path):
        self.url, self.api, self.folder = url, api, folder

    def client(self, token: str = "") -> Client:
        """Return a visitor, signed in if there is a `token`."""
        return Client(self.url, verbose=False, headers={"x-ip-token": token} if token else {}, download_files=False)

    def facts(self) -> list[dict]:
        """Return what the workers noted for each song, in the order of their ends."""
        return [json.loads(path.read_text()) for path in sorted((self.folder / "facts").glob("*.json"))]


def start(folder: Path, api: DeviceAPI, **environ: str) -> tuple[subprocess.Popen, str]:
    """Start the studio on ZeroGPU; return its process and its address."""
    (folder / "facts").mkdir()
    environ = {
        **os.environ,
        "ACE_STUDIO_LYRICS": "preview",
        "ACE_STUDIO_PLANNER": "preview",
        "ACE_STUDIO_OUTPUT": str(folder / "output"),
        "GRADIO_TEMP_DIR": str(folder / "page"),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "SPACES_ZERO_DEVICE_API_URL": api.url,
        "SPACES_ZERO_GPU": "true",
        "TMPDIR": str(folder),
        "ZEROGPU_FACTS": str(folder / "facts"),
        "ZEROGPU_OFFLOAD_DIR": str(folder / "packed"),
        **environ,
    }
    log = (folder / "log").open("w")
    command = [sys.executable, "-m", "tests.engine.zerogpu_studio"]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        text = (folder / "log").read_text()
        if found := re.search(r"http://127\.0\.0\.1:\d+", text.split("Ready")[-1] if "Ready" in text else text):
            return process, found[0]
        assert process.poll() is None, text
        time.sleep(0.1)
    process.kill()
    raise AssertionError((folder / "log").read_text())


def open_space(folder: Path, **environ: str) -> Iterator[Space]:
    """Yield a Space whose files are in `folder`, and end it with its workers."""
    with DeviceAPI() as api:
        # Generous, for busy machines; the tests of the limit set their own.
        api.second = 30
        process, url = start(folder, api, **environ)
        try:
            yield Space(url, api, folder)
        finally:
            # Its workers would outlive it.
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(120)
