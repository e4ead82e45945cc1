"""test.sh and .ci/run: what they run, in which order, in which browser, and what they report."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.clone import BASH, Clone


def pytest_with(workers: int) -> str:
    return f"pytest -rsfE --durations 10 -n {workers} --dist loadfile --no-loadscope-reorder"


PYTEST = pytest_with(3)  # the clone does not know how many cores there are
NUMBERS = "pytest --slow -m numbers and not gpu and not matrix -q"

ROOT = Path(__file__).parents[2]


def in_turn(clone: Clone) -> list[str]:
    """Return what ran one after the other: mypy runs beside it."""
    lines = clone.log()
    if "ruff check ." in lines:
        lines.remove("mypy")
    return lines


def test_the_linter_runs_first_and_the_size_and_other_arguments_reach_pytest(clone: Clone) -> None:
    code, fast = clone.run("test.sh")
    assert code == 0
    assert in_turn(clone)[1:] == [
        clone.installing("ray", "dev"),
        "compileall",
        "ruff check .",
        "ruff format --check .",
        PYTEST,
    ]
    code, chosen = clone.run("test.sh", "--slow", "-k", "key or bpm")
    assert code == 0 and in_turn(clone)[-1] == f"{PYTEST} --slow -k key or bpm"
    assert fast != chosen and "pytest was given -k key or bpm" in chosen


@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (2, 3), (64, 4)])
def test_there_is_a_worker_more_than_cores_and_four_at_most(
    clone: Clone, cores: int, workers: int
) -> None:
    clone.command("getconf", f"echo {cores}")
    clone.run("test.sh")
    assert in_turn(clone)[-1] == pytest_with(workers)


def test_beside_slow_tests_the_numbers_are_compared_as_on_three_other_processors(
    clone: Clone,
) -> None:
    names = (
        "ATEN_CPU_CAPABILITY",
        "ONEDNN_MAX_CPU_ISA",
        "MKL_ENABLE_INSTRUCTIONS",
        "OMP_NUM_THREADS",
    )
    shown = " ".join(f"${{{name}:-}}" for name in names)
    clone.replace('echo "${*:2}"', f'echo "${{*:2}} as {shown}${{PYTHONDONTWRITEBYTECODE+!}}"')
    code, said = clone.run("test.sh", "--slow", PYTHONDONTWRITEBYTECODE="1")
    assert code == 0, said
    lines = [line for line in clone.log() if line.startswith("pytest")]
    # The others run three times beside these.
    chosen = f"{PYTEST} --slow -m not gpu and not matrix and not numbers as"
    (all_tests,) = [line for line in lines if line.startswith(chosen)]
    runs = [line for line in lines if line != all_tests]
    assert len(runs) == 3 and all(run.startswith(NUMBERS) for run in runs)
    assert all("tests/test_sums.py" in run for run in runs)
    assert len({run.partition(" as ")[2] for run in runs}) == 3
    # What one of them compiled the next one reads.
    assert not [run for run in (all_tests, *runs) if run.endswith("!")]
    clone.switch("fail-pytest")
    code, said = clone.run("test.sh", "--slow")
    assert code == 1 and "Failed: pytest, pytest as on another processor." in said


@pytest.mark.parametrize(
    ("part", "named"),
    [("fail-ruff", "ruff check"), ("fail-mypy", "mypy"), ("fail-pytest", "pytest")],
)
def test_a_failure_is_reported_after_all_parts_ran(clone: Clone, part: str, named: str) -> None:
    clone.switch(part)
    code, said = clone.run("test.sh")
    assert code == 1
    assert in_turn(clone)[-1] == PYTEST
    assert f"Failed: {named}" in said


def test_the_javascript_is_checked_where_there_is_a_node(clone: Clone) -> None:
    checks = ["npm run --silent check", "npm run --silent test"]
    code, said = clone.run("test.sh")
    assert code == 0 and "The JavaScript was not checked" in said
    clone.node("18")
    code, said = clone.run("test.sh")
    assert code == 0 and "The JavaScript was not checked: that needs Node 20" in said
    assert not [line for line in clone.log() if line.startswith("npm")]
    clone.node("20")
    for installed in (
        ["npm ci --no-audit --no-fund --loglevel=error"],
        [],
    ):  # once for each lock file
        code, said = clone.run("test.sh")
        assert code == 0 and "not checked" not in said, said
        assert [line for line in clone.log() if line.startswith("npm")] == [*installed, *checks]
    (clone.javascript / "package-lock.json").write_text("{ }\n")
    for command, named in (
        ("ci --no-audit --no-fund --loglevel=error", "biome"),
        ("run --silent test", "node --test"),
    ):
        clone.command("npm", f'[ "$*" != "{command}" ]')
        code, said = clone.run("test.sh")
        assert code == 1 and f"Failed: {named}." in said, said
        assert in_turn(clone)[-1] == PYTEST


def test_ci_runs_the_slow_tests_without_a_terminal(clone: Clone, tmp_path: Path) -> None:
    command = [BASH, "-c", 'exec bash "$0" <&-', str(clone.root / ".ci" / "run")]
    env = {"PATH": str(clone.bin), "LOG": str(clone.log_file)}
    for status in (0, 1):
        assert (
            subprocess.run(
                command, cwd=tmp_path, env=env, timeout=120, capture_output=True
            ).returncode
            == status
        )
        assert f"{PYTEST} --slow -m not gpu and not matrix and not numbers" in clone.log()
        clone.switch("fail-pytest")


def browser(clone: Clone, **environ: str) -> tuple[str, str]:
    """Run test.sh; return the browser that pytest was given, and the output."""
    clone.replace('echo "${*:2}"', 'echo "${*:2} browser=${ACE_STUDIO_CHROMIUM:-none}"')
    code, said = clone.run("test.sh", **environ)
    assert code == 0, said
    return in_turn(clone)[-1].rpartition("browser=")[2], said


def test_the_named_browser_or_one_that_runs_is_passed_to_the_tests(clone: Clone) -> None:
    assert browser(clone, ACE_STUDIO_CHROMIUM="/my/browser")[0] == "/my/browser"
    clone.command("chromium", "exit 1")
    chrome = clone.command("google-chrome", "exit 0")
    assert browser(clone)[0] == str(chrome)


@pytest.mark.parametrize(
    ("offered", "installed"),
    [("chromium", "chromium-headless-shell"), ("'chromium '", "chromium")],
)
def test_root_on_debian_installs_chromium(clone: Clone, offered: str, installed: str) -> None:
    """An older Debian has `chromium` alone: apt-get refuses the package of the headless shell."""
    (clone.bin / "chromium").unlink()
    clone.command("id", "echo 0")
    install = f"ln -s {shutil.which('true')} {clone.bin}/{installed}"
    body = f'[[ "$*" != *" install "* ]] || {{ [[ "$*" == *{offered}* ]] && {install}; }}'
    clone.command("apt-get", body)
    assert browser(clone)[0] == f"{clone.bin}/{installed}"


@pytest.mark.parametrize(
    ("user", "hint"), [("0", "apt-get could not install"), ("1000", "install")]
)
def test_the_tests_run_without_a_browser_too(clone: Clone, user: str, hint: str) -> None:
    (clone.bin / "chromium").unlink()
    # Without an answer from grep, which reads /etc/os-release, this machine is not Ubuntu.
    for name, body in (("id", f"echo {user}"), ("grep", "exit 1"), ("apt-get", "exit 100")):
        clone.command(name, body)
    used, said = browser(clone)
    assert used == "none" and hint in said and "The page tests had no browser" in said


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="no Node here")
@pytest.mark.parametrize(("oldest", "found"), [(1, True), (10_000, False)])
def test_a_real_node_is_asked_for_its_version(oldest: int, found: bool) -> None:
    script = f"ROOT={shlex.quote(str(ROOT))}; . tools/setup.sh; OLDEST_NODE={oldest}; find_node"
    asked = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, timeout=300)
    assert (asked.returncode == 0) == found
