"""The repository, and a fresh Python process in it with a free port."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments: str, seconds: int = 800, **environ: str) -> subprocess.CompletedProcess:
    """Run Python in the repository for up to `seconds`, with `environ` added to the test's environment."""
    command, env = [sys.executable, *arguments], {**os.environ, **environ}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds, check=False
    )


@contextlib.contextmanager
def serving(
    folder: Path,
    *arguments: str,
    prefix: tuple[str, ...] = (),
    program: tuple[str, ...] = ("app.py",),
    **environ: str,
) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start the studio with its files in `folder`, and its log in `folder`/log; yield its process and address.

    `program` is what Python runs, and its first arguments.
    """
    own = ("GRADIO_TEMP_DIR", "GRADIO_SERVER_PORT", "ACE_STUDIO_RAY", "ACE_STUDIO_RAY_WORKERS")
    env = {name: value for name, value in os.environ.items() if name not in own}
    env |= {
        "TMPDIR": str(folder / "tmp"),
        "ACE_STUDIO_OUTPUT": str(folder / "songs"),
        "OMP_NUM_THREADS": "1",
    } | environ
    (folder / "tmp").mkdir(exist_ok=True)
    command = [*prefix, sys.executable, *program, *arguments]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        ready = process.stdout.readline()
        assert "ready at http" in ready, (folder / "log").read_text()
        yield process, ready.split()[-1]
    finally:
        process.kill()
        process.stdout.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
