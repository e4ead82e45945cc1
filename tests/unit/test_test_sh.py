"""test.sh and .ci/run: what they run, in which order, in which browser, and what they report."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.clone import BASH, Clone

PYTEST = "pytest -rs --durations 10 -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder"


def test_the_linter_runs_first_and_the_size_and_other_arguments_reach_pytest(clone: Clone) -> None:
    code, fast = clone.run("test.sh")
    assert code == 0
    assert clone.log()[1:] == [clone.installing("ray", "dev"), "ruff check .", "ruff format --check .", PYTEST]
    reports = {fast}
    for asked, given in ((["--slow", "-k", "key or bpm"], "--slow -k key or bpm"), (["--all"], "--slow -m not gpu")):
        code, said = clone.run("test.sh", *asked)
        assert code == 0 and clone.log()[-1] == f"{PYTEST} {given}"
        reports.add(said)
    assert len(reports) == 3


@pytest.mark.parametrize(("part", "named"), [("fail-ruff", "ruff check"), ("fail-pytest", "pytest")])
def test_a_failure_is_reported_after_all_parts_ran(clone: Clone, part: str, named: str) -> None:
    clone.switch(part)
    code, said = clone.run("test.sh")
    assert code == 1
    assert clone.log()[-1] == PYTEST
    assert f"Failed: {named}" in said


def test_ci_runs_the_slow_tests_without_a_terminal(clone: Clone, tmp_path: Path) -> None:
    command = [BASH, "-c", 'exec bash "$0" <&-', str(clone.root / ".ci" / "run")]
    env = {"PATH": str(clone.bin), "LOG": str(clone.log_file)}
    for status in (0, 1):
        assert subprocess.run(command, cwd=tmp_path, env=env, timeout=120, capture_output=True).returncode == status
        assert clone.log()[-1] == f"{PYTEST} --slow"
        clone.switch("fail-pytest")


def show_browser(clone: Clone) -> None:
    """Log the browser that pytest was given."""
    path = clone.bin / "python3.12"
    path.write_text(path.read_text().replace('echo "${*:2}"', 'echo "${*:2} browser=${ACE_STUDIO_CHROMIUM:-none}"'))


def test_the_named_browser_or_one_that_runs_is_passed_to_the_tests(clone: Clone) -> None:
    show_browser(clone)
    clone.command("chromium", "exit 1")
    chrome = clone.command("google-chrome", "exit 0")
    clone.run("test.sh")
    assert clone.log()[-1] == f"{PYTEST} browser={chrome}"
    clone.run("test.sh", ACE_STUDIO_CHROMIUM="/my/browser")
    assert clone.log()[-1] == f"{PYTEST} browser=/my/browser"


def test_root_on_debian_installs_chromium(clone: Clone) -> None:
    show_browser(clone)
    (clone.bin / "chromium").unlink()
    (clone.bin / "id").unlink()
    clone.command("id", "echo 0")
    install = f"ln -s {shutil.which('true')} {clone.bin}/chromium"
    clone.command("apt-get", f'echo "apt-get $*" >>"$LOG"; [[ "$*" != *" install "*chromium* ]] || {install}')
    clone.run("test.sh")
    assert clone.log()[-1] == f"{PYTEST} browser={clone.bin}/chromium"


@pytest.mark.parametrize(("user", "hint"), [("0", "apt-get could not install"), ("1000", "install")])
def test_the_tests_run_without_a_browser_too(clone: Clone, user: str, hint: str) -> None:
    show_browser(clone)
    # Without an answer from grep, which reads /etc/os-release, this machine is not Ubuntu.
    for name in ("chromium", "id", "grep"):
        (clone.bin / name).unlink()
    for name, body in (("id", f"echo {user}"), ("grep", "exit 1"), ("apt-get", "exit 100")):
        clone.command(name, body)
    code, said = clone.run("test.sh")
    assert code == 0 and hint in said and "The page tests had no browser" in said
    assert clone.log()[-1] == f"{PYTEST} browser=none"
