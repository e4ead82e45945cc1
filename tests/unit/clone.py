"""A copy of the set-up scripts in a temporary folder whose PATH holds only fakes and plain tools.

A fake Python has the version and modules that a test gives it, makes virtual environments with a copy of itself, and
logs the calls of pip, compileall, app.py, ruff, mypy and pytest. It finds no newer pip, and logs that aside.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.program import ROOT

SCRIPTS = ("run.sh", "test.sh", ".ci/run", "tools/setup.sh", "tools/processors.sh")
TOOLS = "cat chmod cksum cp dirname env grep id ln mkdir mktemp mv nice rm rmdir sleep touch"
BASH = shutil.which("bash") or "/bin/bash"

# The probe of the scripts runs in these tests' Python, with another version, machine and set of modules.
FAKE_PYTHON = """#!{bash}
case "$1 ${{2:-}}" in
"-c "*)
    exec {real} -c "
import importlib.util, platform, sys
sys.version_info = {version!r}
platform.machine = lambda: '{machine}'
missing = {lacks!r}
real_find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in missing else real_find(name)
code, sys.argv = sys.argv[1], ['-c', *sys.argv[2:]]
exec(code)" "${{@:2}}" ;;
"-m venv")
    echo "venv {name}" >>"$LOG"
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    [ ! -e "$LOG.stop-venv" ] || kill -9 $PPID ;;
"-m pip")
    case "$*" in *"pip>="*) echo "${{*:3}}" >>"$LOG.newer-pip"; exit 1 ;; esac
    echo "pip ${{*:3}}" >>"$LOG"
    while [ -e "$LOG.hold-pip" ]; do sleep 0.1; done
    [ ! -e "$LOG.stop-pip" ] || kill -9 $PPID
    [ ! -e "$LOG.interrupt-pip" ] || {{ kill -INT $PPID; exit 1; }}
    [ ! -e "$LOG.fail-pip" ] || exit 1
    [ ! -e "$LOG.fail-songwriter" ] || case "$*" in *songwriter*) exit 1 ;; esac ;;
"-m compileall")
    echo compileall >>"$LOG" ;;
"-m ruff" | "-m mypy" | "-m pytest")
    echo "${{*:2}}" >>"$LOG"
    [ ! -e "$LOG.fail-$2" ] ;;
*)
    echo "cwd $PWD" >>"$LOG"
    printf 'app' >>"$LOG"
    printf ' <%s>' "$@" >>"$LOG"
    echo >>"$LOG"
    echo "Running on http://127.0.0.1:7860" ;;
esac
"""


class Clone:
    """A copy of the scripts in `root`, with its own PATH and a log of the fakes' calls."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone with spaces"
        self.bin = folder / "bin"
        self.log_file = folder / "log"
        for script in SCRIPTS:
            target = self.root / script
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / script, target)
        self.javascript = self.root / "tests" / "javascript"
        self.javascript.mkdir(parents=True)
        (self.javascript / "package-lock.json").write_text("{}\n")
        (self.root / "tests" / "test_sums.py").write_text("@pytest.mark.numbers\n")
        for name in ("", "-ray", "-dev", "-songwriter", "-media"):
            (self.root / f"requirements{name}.txt").write_text("torch\n")
        self.bin.mkdir()
        self.log_file.touch()
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(shutil.which(tool))
        (self.bin / "bash").symlink_to(BASH)
        self.command("uname", 'case "$1" in -s) echo Linux ;; *) echo x86_64 ;; esac')
        self.command("chromium", "exit 0")

    def command(self, name: str, body: str) -> Path:
        """Put a fake program on the PATH."""
        path = self.bin / name
        path.unlink(missing_ok=True)  # it may be a link to the real one
        path.write_text(f"#!{BASH}\n{body}\n")
        path.chmod(0o755)
        return path

    def python(
        self,
        name: str,
        version: str,
        *,
        lacks: Sequence[str] = (),
        machine: str = "x86_64",
        folder: Path | None = None,
    ) -> Path:
        """Put a fake Python without the modules `lacks` on the PATH, or into `folder`; return its path."""
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "version": tuple(map(int, version.split("."))),
            "machine": machine,
            "lacks": tuple(lacks),
            "name": name,
        }
        path.write_text(FAKE_PYTHON.format(bash=BASH, real=shlex.quote(sys.executable), **facts))
        path.chmod(0o755)
        return path

    def node(self, version: str) -> None:
        """Put a fake Node of a major `version` with its npm on the PATH."""
        self.command("node", f'case "$2" in *"< 20"*) exit {int(int(version) < 20)} ;; esac')
        self.command("npm", 'echo "npm $*" >>"$LOG"; [ "$1" != ci ] || mkdir -p node_modules')

    def replace(self, old: str, new: str) -> None:
        """Change what the fake Python 3.12 does."""
        path = self.bin / "python3.12"
        path.write_text(path.read_text().replace(old, new))

    def mac(self, machine: str) -> None:
        self.command("uname", f'case "$1" in -s) echo Darwin ;; *) echo {machine} ;; esac')
        self.command("sysctl", "exit 1")
        self.command("xcode-select", "exit 2")

    def start(
        self, script: str, *args: str, cwd: Path | None = None, path: str = "", **env: str
    ) -> subprocess.Popen:
        """Start a script without this process's environment."""
        return subprocess.Popen(
            [str(self.root / script), *args],
            cwd=cwd or self.root,
            env={
                "PATH": path or str(self.bin),
                "HOME": str(self.root.parent),
                "LOG": str(self.log_file),
                **env,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # In the background tests inherit an ignored SIGINT, which no script can trap.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, script: str, *args: str, **options) -> tuple[int, str]:
        """Run a script to its end; return its exit status and its output."""
        process = self.start(script, *args, **options)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

    def switch(self, name: str, on: bool = True) -> None:
        """Turn one of the fakes' mishaps on or off."""
        flag = self.log_file.with_name(f"{self.log_file.name}.{name}")
        flag.touch() if on else flag.unlink()

    def log(self) -> list[str]:
        """Return the fakes' calls since the last look at the log."""
        lines = self.log_file.read_text().splitlines()
        self.log_file.write_text("")
        return lines

    def ship_songwriter(self) -> str:
        """Put the built-in songwriter's LoRA into the copy; return the log's line for installing its packages."""
        lora = self.root / "assets" / "songwriter" / "lora.safetensors"
        lora.parent.mkdir(parents=True)
        lora.touch()
        options = "-q --no-compile --no-deps --require-hashes --retries 1"
        return f"pip install {options} -r {self.root}/requirements-songwriter.txt"

    def installing(self, *more: str) -> str:
        """Return the log's line for installing the studio's requirements and `more` ("ray", "dev")."""
        names = ["requirements.txt", *(f"requirements-{each}.txt" for each in more)]
        return " ".join(
            ["pip install -q --no-compile", *(f"-r {self.root}/{name}" for name in names)]
        )
