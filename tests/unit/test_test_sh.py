"""What test.sh and .ci/run run, in which order, on which browser, and what they say at the end."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.clone import BASH, Clone

PYTEST = "pytest -rsR -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder"


def test_tests_run_after_the_linter_and_say_what_ran(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    code, said = clone.run("test.sh")
    assert code == 0
    assert clone.log()[1:] == [
        clone.installing(tests=True),
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
