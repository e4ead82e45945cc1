"""The set-up scripts, run for real on a copy in a temporary folder whose PATH holds nothing but fakes and plain tools.

A fake Python answers for the version it is said to have, makes virtual environments that hold a copy of itself, and
writes down what pip, app.py, ruff and pytest were asked to do. The choices are those of the scripts.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PYTEST = "pytest -rsR -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder"
REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = ("run.sh", "test.sh", ".ci/run", "tools/setup.sh")
TOOLS = (
    "cat",
    "chmod",
    "cksum",
    "cp",
    "dirname",
    "env",
    "grep",
    "id",
    "ln",
    "mkdir",
    "mv",
    "rm",
    "rmdir",
    "sleep",
    "touch",
)
BASH = shutil.which("bash") or "/bin/bash"

# $here is the fake's own folder: bin/ or .venv/bin. The probe runs in the Python of these tests, told what to be.
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
    echo "pip ${{*:3}}" >>"$LOG"
    while [ -e "$LOG.hold-pip" ]; do sleep 0.1; done
    [ ! -e "$LOG.stop-pip" ] || kill -9 $PPID
    [ ! -e "$LOG.interrupt-pip" ] || {{ kill -INT $PPID; exit 1; }}
    [ ! -e "$LOG.fail-pip" ] ;;
"-m ruff" | "-m pytest")
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
    """A copy of the scripts in `root`, with a PATH of its own and a log of what the fakes were asked to do."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone with spaces"
        self.bin = folder / "bin"
        self.log_file = folder / "log"
        for script in SCRIPTS:
            target = self.root / script
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / script, target)
        (self.root / "requirements.txt").write_text("torch\n")
        (self.root / "requirements-dev.txt").write_text("pytest\n")
        self.bin.mkdir()
        self.log_file.touch()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        (self.bin / "bash").symlink_to(BASH)
        self.command("uname", 'case "$1" in -s) echo Linux ;; *) echo x86_64 ;; esac')
        self.command("chromium", "exit 0")

    def command(self, name: str, body: str) -> Path:
        """Put a fake program on the PATH."""
        path = self.bin / name
        path.write_text(f"#!{BASH}\n{body}\n")
        path.chmod(0o755)
        return path

    def python(
        self,
        name: str,
        version: str,
        *,
        lacks: tuple[str, ...] = (),
        machine: str = "x86_64",
        folder: Path | None = None,
    ) -> Path:
        """Put a fake Python on the PATH, or into `folder`."""
        path = (folder or self.bin) / name
        path.parent.mkdir(exist_ok=True)
        numbers = tuple(int(part) for part in version.split("."))
        text = FAKE_PYTHON.format(
            bash=BASH, real=shlex.quote(sys.executable), version=numbers, machine=machine, lacks=lacks, name=path.name
        )
        path.write_text(text)
        path.chmod(0o755)
        return path

    def mac(self, machine: str) -> None:
        """Make this a Mac with that processor."""
        self.command("uname", f'case "$1" in -s) echo Darwin ;; *) echo {machine} ;; esac')
        self.command("sysctl", "exit 1")
        self.command("xcode-select", "exit 2")

    def start(self, script: str, *args: str, cwd: Path | None = None, path: str = "", **env: str) -> subprocess.Popen:
        """Start a script with nothing of this process's environment."""
        return subprocess.Popen(
            [str(self.root / script), *args],
            cwd=cwd or self.root,
            env={"PATH": path or str(self.bin), "HOME": str(self.root.parent), "LOG": str(self.log_file), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Tests that run in the background inherit an ignored SIGINT, which no script could trap.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, script: str, *args: str, **options) -> tuple[int, str]:
        """Run a script to its end; its exit status and what it said."""
        process = self.start(script, *args, **options)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def switch(self, name: str, on: bool = True) -> None:
        """Turn one of the fakes' mishaps on or off."""
        flag = self.log_file.with_name(f"{self.log_file.name}.{name}")
        if on:
            flag.touch()
        else:
            flag.unlink()

    def log(self) -> list[str]:
        """What the fakes were asked to do since the last call."""
        lines = self.log_file.read_text().splitlines()
        self.log_file.write_text("")
        return lines


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "nothing came of it in 30 s"
        time.sleep(0.02)


def requirements(clone: Clone, *, tests: bool = False) -> str:
    run = f"pip install -q -r {clone.root}/requirements.txt"
    return f"{run} -r {clone.root}/requirements-dev.txt" if tests else run


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_and_executable(script: str) -> None:
    assert subprocess.run([BASH, "-n", str(REPOSITORY / script)], check=False).returncode == 0
    sourced = script == "tools/setup.sh"
    assert bool((REPOSITORY / script).stat().st_mode & stat.S_IXUSR) is not sourced


def test_run_installs_then_starts_the_studio_with_its_arguments(clone: Clone, tmp_path: Path) -> None:
    clone.python("python3.12", "3.12.4")
    code, said = clone.run("run.sh", "--port", "two words", "", cwd=tmp_path)
    assert code == 0
    assert clone.log() == [
        "venv python3.12",
        requirements(clone),
        f"cwd {clone.root}",
        "app <app.py> <--port> <two words> <>",
    ]
    assert "Set-up took" in said
    assert said.endswith("Running on http://127.0.0.1:7860\n")


def test_second_run_installs_nothing(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.run("run.sh")
    clone.log()
    code, said = clone.run("run.sh")
    assert (code, said) == (0, "Running on http://127.0.0.1:7860\n")
    assert clone.log() == [f"cwd {clone.root}", "app <app.py>"]


def test_changed_requirements_are_installed_into_the_same_environment(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.run("run.sh")
    clone.log()
    (clone.root / "requirements.txt").write_text("torch\nanother\n")
    clone.run("run.sh")
    assert clone.log()[0] == requirements(clone)


def test_going_back_to_earlier_requirements_installs_them_again(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.run("test.sh")
    (clone.root / "requirements.txt").write_text("another\n")
    clone.run("run.sh")
    (clone.root / "requirements.txt").write_text("torch\n")
    clone.log()
    clone.run("test.sh")
    assert clone.log()[0] == requirements(clone, tests=True)


def test_run_and_test_share_the_environment(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.run("run.sh")
    clone.log()
    clone.run("test.sh")
    assert clone.log()[0] == requirements(clone, tests=True)
    clone.run("run.sh")
    assert clone.log() == [f"cwd {clone.root}", "app <app.py>"]


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        ({"python3.11": "3.11.9", "python3.12": "3.12.4", "python3": "3.13.1"}, "python3.12"),
        ({"python3.11": "3.11.9", "python3.13": "3.13.1", "python3": "3.13.1"}, "python3.11"),
        ({"python3": "3.13.1", "python3.14": "3.14.0"}, "python3"),
        ({"python3": "3.15.0", "python3.14": "3.14.0"}, "python3.14"),
        ({"python3": "3.9.6", "python3.13": "3.13.1"}, "python3.13"),
        ({"python": "3.11.2"}, "python"),
    ],
)
def test_python_that_is_chosen(clone: Clone, installed: dict[str, str], chosen: str) -> None:
    for name, version in installed.items():
        clone.python(name, version)
    clone.run("run.sh")
    assert clone.log()[0] == f"venv {chosen}"


def test_shim_that_does_not_run_is_passed_over(clone: Clone) -> None:
    shim = clone.command("python3.12", 'echo "pyenv: python3.12: command not found" >&2; exit 127')
    clone.python("python3.11", "3.11.9")
    code, said = clone.run("run.sh")
    assert code == 0
    assert clone.log()[0] == "venv python3.11"
    assert str(shim) not in said


def test_python_behind_a_shim_of_the_same_name_is_found(clone: Clone, tmp_path: Path) -> None:
    clone.command("python3.12", "exit 127")
    clone.python("python3.12", "3.12.4", folder=tmp_path / "later")
    clone.run("run.sh", path=f"{clone.bin}:{tmp_path / 'later'}")
    assert clone.log()[0] == "venv python3.12"


def test_no_python_at_all(clone: Clone) -> None:
    code, said = clone.run("run.sh")
    assert code == 1
    assert "there is no Python here" in said
    assert "3.11 to 3.14" in said
    assert not (clone.root / ".venv").exists()
    assert not (clone.root / ".venv-lock").exists()


def test_only_unfit_pythons_are_named_with_their_reasons(clone: Clone) -> None:
    old = clone.python("python3", "3.9.6")
    ancient = clone.python("python", "2.7.18")
    new = clone.python("python3.14", "3.15.0")
    broken = clone.command("python3.13", "exit 127")
    code, said = clone.run("run.sh")
    assert code == 1
    assert f"{old} is Python 3.9.6, which is too old" in said
    assert f"{ancient} is Python 2.7.18, which is too old" in said
    assert f"{new} is Python 3.15.0, which is too new" in said
    assert f"{broken} does not run" in said
    assert "Install one" in said
    assert clone.log() == []


def test_python_without_ensurepip_names_the_package(clone: Clone) -> None:
    clone.command("apt-get", "exit 1")
    clone.python("python3", "3.11.2", lacks=("ensurepip",))
    code, said = clone.run("run.sh")
    assert code == 1
    assert "python3-venv" in said


def test_python_without_ensurepip_is_passed_over(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4", lacks=("venv", "ensurepip"))
    clone.python("python3.11", "3.11.9")
    clone.run("run.sh")
    assert clone.log()[0] == "venv python3.11"


def test_intel_mac_is_told_so(clone: Clone) -> None:
    clone.mac("x86_64")
    clone.python("python3.12", "3.12.4")
    code, said = clone.run("run.sh")
    assert code == 1
    assert "Intel Mac" in said
    assert clone.log() == []


def test_mac_passes_over_an_intel_python(clone: Clone) -> None:
    clone.mac("arm64")
    clone.python("python3.12", "3.12.4", machine="x86_64")
    clone.python("python3.11", "3.11.9", machine="arm64")
    code, _ = clone.run("run.sh")
    assert code == 0
    assert clone.log()[0] == "venv python3.11"


def test_apple_silicon_under_rosetta_is_no_intel_mac(clone: Clone) -> None:
    clone.mac("x86_64")
    clone.command("sysctl", "echo 1")
    clone.python("python3.12", "3.12.4", machine="arm64")
    code, _ = clone.run("run.sh")
    assert code == 0


def test_windows_shell_is_sent_to_wsl(clone: Clone) -> None:
    clone.command("uname", "echo MINGW64_NT-10.0")
    clone.python("python3.12", "3.12.4")
    code, said = clone.run("run.sh")
    assert code == 1
    assert "WSL" in said


def test_named_python_wins(clone: Clone, tmp_path: Path) -> None:
    clone.python("python3.12", "3.12.4")
    named = clone.python("mine", "3.13.1", folder=tmp_path / "elsewhere")
    clone.run("run.sh", ACE_STUDIO_PYTHON=str(named))
    assert clone.log()[0] == "venv mine"


def test_named_python_may_be_relative_to_where_one_stands(clone: Clone, tmp_path: Path) -> None:
    clone.python("mine", "3.13.1", folder=tmp_path / "elsewhere")
    code, _ = clone.run("run.sh", cwd=tmp_path, ACE_STUDIO_PYTHON="elsewhere/mine")
    assert code == 0
    assert clone.log()[0] == "venv mine"


def test_named_python_of_another_version_makes_the_environment_again(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.python("python3.11", "3.11.9")
    clone.run("run.sh")
    clone.log()
    _, said = clone.run("run.sh", ACE_STUDIO_PYTHON="python3.11")
    assert "ACE_STUDIO_PYTHON is 3.11.9" in said
    assert clone.log()[:2] == ["venv python3.11", requirements(clone)]


@pytest.mark.parametrize(("named", "reason"), [("nowhere", "no such program"), ("python3.9", "too old")])
def test_named_python_that_does_not_do(clone: Clone, named: str, reason: str) -> None:
    clone.python("python3.9", "3.9.6")
    clone.python("python3.12", "3.12.4")
    code, said = clone.run("run.sh", ACE_STUDIO_PYTHON=named)
    assert code == 1
    assert f"'{named}'" in said
    assert reason in said
    assert clone.log() == []


def test_python_of_an_active_but_broken_environment_is_not_chosen(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.run("run.sh")
    own = clone.root / ".venv" / "bin"
    shutil.copy2(own / "python", own / "python3.12")
    (own / "python").unlink()
    clone.log()
    code, _ = clone.run("run.sh", path=f"{own}:{clone.bin}")
    assert code == 0
    assert clone.log()[0] == "venv python3.12"


def test_failed_install_says_so_and_is_tried_again(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.switch("fail-pip")
    code, said = clone.run("run.sh")
    assert code == 1
    assert "Installing the packages failed" in said
    assert "GB free" in said
    clone.switch("fail-pip", False)
    clone.log()
    code, _ = clone.run("run.sh")
    assert code == 0
    # pip ended in order, so what it had installed is kept.
    assert clone.log()[:2] == [requirements(clone), f"cwd {clone.root}"]


@pytest.mark.parametrize("mishap", ["stop-pip", "stop-venv", "interrupt-pip"])
def test_interrupted_set_up_begins_again(clone: Clone, mishap: str) -> None:
    clone.python("python3.12", "3.12.4")
    clone.switch(mishap)
    code, _ = clone.run("run.sh")
    assert code != 0
    clone.switch(mishap, False)
    leftover = clone.root / ".venv" / "half a package"
    leftover.touch()
    clone.log()
    code, said = clone.run("run.sh")
    assert code == 0
    assert "interrupted" in said
    assert clone.log()[:2] == ["venv python3.12", requirements(clone)]
    assert not leftover.exists()
    assert not list(clone.root.glob(".venv-*"))


@pytest.mark.parametrize("damage", ["gone", "dangling", "no pip", "a file"])
def test_damaged_environment_is_made_again(clone: Clone, damage: str) -> None:
    clone.python("python3.12", "3.12.4")
    clone.run("run.sh")
    python = clone.root / ".venv" / "bin" / "python"
    python.unlink()
    if damage == "dangling":
        python.symlink_to("/nowhere/python3.12")
    elif damage == "no pip":
        clone.python("python", "3.12.4", lacks=("pip",), folder=python.parent)
    elif damage == "a file":
        shutil.rmtree(clone.root / ".venv")
        (clone.root / ".venv").touch()
    clone.log()
    code, said = clone.run("run.sh")
    assert code == 0
    assert "Making .venv again" in said
    assert clone.log()[:2] == ["venv python3.12", requirements(clone)]


def test_environment_made_by_hand_is_kept(clone: Clone) -> None:
    clone.python("python", "3.11.9", folder=clone.root / ".venv").rename(clone.root / ".venv" / "p")
    (clone.root / ".venv" / "bin").mkdir()
    (clone.root / ".venv" / "p").rename(clone.root / ".venv" / "bin" / "python")
    code, _ = clone.run("run.sh")
    assert code == 0
    assert clone.log()[0] == requirements(clone)


def test_two_at_once_install_once(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.switch("hold-pip")
    first = clone.start("run.sh")
    wait_for(lambda: "pip" in clone.log_file.read_text())
    second = clone.start("run.sh")
    assert second.stdout is not None
    assert f"process {first.pid}" in second.stdout.readline()
    clone.switch("hold-pip", False)
    for process in (first, second):
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert said.endswith("Running on http://127.0.0.1:7860\n")
    log = clone.log()
    assert [line.split()[0] for line in log].count("pip") == 1
    assert [line.split()[0] for line in log].count("app") == 2


def test_lock_of_a_dead_process_is_taken_over(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    dead = subprocess.Popen([BASH, "-c", "exit 0"])
    dead.wait()
    (clone.root / ".venv-lock").mkdir()
    (clone.root / ".venv-lock" / "pid").write_text(f"{dead.pid}\n")
    code, _ = clone.run("run.sh")
    assert code == 0
    assert not (clone.root / ".venv-lock").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.root.chmod(0o555)
    try:
        code, said = clone.run("run.sh")
    finally:
        clone.root.chmod(0o755)
    assert code == 1
    assert "cannot be written" in said


def test_sh_is_as_good_as_bash(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    process = subprocess.run(
        [shutil.which("sh") or "/bin/sh", str(clone.root / "run.sh"), "--help"],
        env={"PATH": str(clone.bin), "LOG": str(clone.log_file)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert clone.log()[-1] == "app <app.py> <--help>"


def test_tests_run_after_the_linter_and_say_what_ran(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    code, said = clone.run("test.sh")
    assert code == 0
    assert clone.log()[1:] == [
        requirements(clone, tests=True),
        "ruff check .",
        "ruff format --check .",
        PYTEST,
    ]
    assert "the fast tests. Not the slow tests" in said


def test_slow_tests_and_other_arguments_reach_pytest(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    code, said = clone.run("test.sh", "--slow", "-k", "key or bpm")
    assert code == 0
    assert clone.log()[-1] == f"{PYTEST} --slow -k key or bpm"
    assert "the fast tests and the slow tests" in said
    assert "these may not be all of them" in said


@pytest.mark.parametrize(("part", "named"), [("fail-ruff", "ruff check"), ("fail-pytest", "pytest")])
def test_failure_of_one_part_runs_the_others_and_is_told(clone: Clone, part: str, named: str) -> None:
    clone.python("python3.12", "3.12.4")
    clone.switch(part)
    code, said = clone.run("test.sh")
    assert code == 1
    assert clone.log()[-1] == PYTEST
    assert f"Failed: {named}" in said


def test_continuous_integration_runs_everything_without_a_terminal(clone: Clone, tmp_path: Path) -> None:
    clone.python("python3.12", "3.12.4")
    command = [BASH, "-c", 'exec bash "$0" <&-', str(clone.root / ".ci" / "run")]
    options = {"cwd": tmp_path, "env": {"PATH": str(clone.bin), "LOG": str(clone.log_file)}}
    assert subprocess.run(command, **options, timeout=60, check=False, capture_output=True).returncode == 0
    assert clone.log()[-1] == f"{PYTEST} --slow"
    clone.switch("fail-pytest")
    assert subprocess.run(command, **options, timeout=60, check=False, capture_output=True).returncode == 1


def show_browser(clone: Clone) -> None:
    """Let the fakes tell the browser that pytest was given."""
    path = clone.bin / "python3.12"
    path.write_text(path.read_text().replace('echo "${*:2}"', 'echo "${*:2} browser=${ACE_STUDIO_CHROMIUM:-none}"'))


def test_browser_that_runs_is_handed_to_the_tests(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    show_browser(clone)
    clone.command("chromium", "exit 1")
    chrome = clone.command("google-chrome", "exit 0")
    clone.run("test.sh")
    assert clone.log()[-1] == f"{PYTEST} browser={chrome}"


def test_named_browser_is_left_alone(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    show_browser(clone)
    clone.run("test.sh", ACE_STUDIO_CHROMIUM="/my/browser")
    assert clone.log()[-1] == f"{PYTEST} browser=/my/browser"


def test_root_on_debian_installs_chromium(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    show_browser(clone)
    (clone.bin / "chromium").unlink()
    (clone.bin / "id").unlink()
    clone.command("id", "echo 0")
    clone.command(
        "apt-get",
        f"""echo "apt-get $*" >>"$LOG"
[[ "$*" != *" install "* ]] || ln -s {shutil.which("true")} {clone.bin}/chromium""",
    )
    clone.run("test.sh")
    log = clone.log()
    assert [line for line in log if line.startswith("apt-get") and "install" in line and "chromium" in line]
    assert log[-1] == f"{PYTEST} browser={clone.bin}/chromium"


@pytest.mark.parametrize(
    ("user", "apt", "hint"),
    [("0", True, "apt-get could not install"), ("1000", True, "install"), ("1000", False, "package manager")],
)
def test_tests_go_on_without_a_browser(clone: Clone, user: str, apt: bool, hint: str) -> None:
    clone.python("python3.12", "3.12.4")
    show_browser(clone)
    (clone.bin / "chromium").unlink()
    (clone.bin / "id").unlink()
    clone.command("id", f"echo {user}")
    # grep reads /etc/os-release: whatever this machine is, the fake one is not Ubuntu.
    (clone.bin / "grep").unlink()
    clone.command("grep", "exit 1")
    if apt:
        clone.command("apt-get", "exit 100")
    code, said = clone.run("test.sh")
    assert code == 0
    assert clone.log()[-1] == f"{PYTEST} browser=none"
    assert hint in said
    assert "The page tests had no browser" in said


def test_mac_without_a_browser_is_told_what_to_install(clone: Clone) -> None:
    if any(Path("/Applications").glob("*Chrom*")):
        pytest.skip("a browser is installed where no fake reaches")
    clone.mac("arm64")
    clone.python("python3.12", "3.12.4", machine="arm64")
    (clone.bin / "chromium").unlink()
    code, said = clone.run("test.sh")
    assert code == 0
    assert "brew install --cask chromium" in said
