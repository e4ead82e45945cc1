"""A Space on ZeroGPU without the platform: the studio in its own process, and the fake API that lends it cards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gradio_client import Client

import runs_journal
from tests.engine.fake_device_api import DeviceAPI
from tests.program import ROOT
from tests.waiting import until


class Space:
    def __init__(self, url: str, api: DeviceAPI, folder: Path):
        self.url, self.api, self.folder = url, api, folder

    def client(self, token: str = "") -> Client:
        """Return a visitor, signed in if there is a `token`."""
        return Client(
            self.url,
            verbose=False,
            headers={"x-ip-token": token} if token else {},
            download_files=False,
        )

    def let_pass(self, seconds: float) -> None:
        """Let so much time pass at once for the studio's patience with visitors who are gone."""
        passed = self.folder / "facts" / "passed"
        before = float(passed.read_text()) if passed.exists() else 0.0
        new = passed.with_suffix(".new")
        new.write_text(str(before + seconds))
        new.replace(passed)

    def noted(self, run: str) -> str:
        """Return the state of a run from the journal, which is not asking for it as a visitor does."""
        path = self.folder / "output" / runs_journal.FOLDER / f"{run}.json"
        return json.loads(path.read_text())["state"]

    def facts(self) -> list[dict]:
        """Return what the workers noted for each song, in the order of their ends."""
        return [
            json.loads(path.read_text()) for path in sorted((self.folder / "facts").glob("*.json"))
        ]


def open_space(folder: Path, model: Path, **environ: str) -> Iterator[Space]:
    """Yield a Space on `model` whose files are in `folder`, and end it with its workers."""
    (folder / "facts").mkdir()
    log = folder / "log"
    with DeviceAPI() as api, log.open("w") as output:
        # Generous, for busy machines; the tests of the limit set their own.
        api.second = 30
        environ = {
            **os.environ,
            **{
                "ACE_STUDIO_LYRICS": "random",
                "ACE_STUDIO_PLANNER": "random",
                "GRADIO_SERVER_NAME": "127.0.0.1",
            },
            **{
                "ACE_STUDIO_OUTPUT": str(folder / "output"),
                "GRADIO_TEMP_DIR": str(folder / "page"),
            },
            **{"HOME": str(folder), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
            **{"SPACES_ZERO_DEVICE_API_URL": api.url, "SPACES_ZERO_GPU": "true"},
            **{"ZEROGPU_FACTS": str(folder / "facts"), "ZEROGPU_MODEL": str(model)},
            **{"ZEROGPU_OFFLOAD_DIR": str(folder / "packed")},
            **environ,
        }
        command = [sys.executable, "-m", "tests.engine.zerogpu_studio"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=output, stderr=output, start_new_session=True
        )
        try:
            until(lambda: "ready at " in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield Space(re.search(r"ready at (http://[\d.:]+)", log.read_text())[1], api, folder)
        finally:
            # Its workers would outlive it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(300)
