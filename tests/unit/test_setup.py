"""The set-up of run.sh and test.sh, run for real among fakes: which Python, what is installed when, one at a time."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.program import ROOT
from tests.unit.clone import BASH, SCRIPTS, Clone
from tests.waiting import until


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_valid_and_executable(script: str) -> None:
    assert subprocess.run([BASH, "-n", str(ROOT / script)], check=False).returncode == 0
    sourced = script == "tools/setup.sh"
    assert bool((ROOT / script).stat().st_mode & stat.S_IXUSR) is not sourced


def test_run_installs_then_starts_the_studio_with_its_arguments(clone: Clone, tmp_path: Path) -> None:
    clone.python("python3.12", "3.12.4")
    code, said = clone.run("run.sh", "--port", "two words", "", cwd=tmp_path)
    assert code == 0
    assert clone.log() == [
        "venv python3.12",
        clone.installing(),
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
    assert clone.log()[0] == clone.installing()


def test_going_back_to_earlier_requirements_installs_them_again(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.run("test.sh")
    (clone.root / "requirements.txt").write_text("another\n")
    clone.run("run.sh")
    (clone.root / "requirements.txt").write_text("torch\n")
    clone.log()
    clone.run("test.sh")
    assert clone.log()[0] == clone.installing(tests=True)


def test_run_and_test_share_the_environment(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.run("run.sh")
    clone.log()
    clone.run("test.sh")
    assert clone.log()[0] == clone.installing(tests=True)
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
    assert clone.log()[:2] == ["venv python3.11", clone.installing()]


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
    assert clone.log()[:2] == [clone.installing(), f"cwd {clone.root}"]


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
    assert clone.log()[:2] == ["venv python3.12", clone.installing()]
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
    assert clone.log()[:2] == ["venv python3.12", clone.installing()]


def test_environment_made_by_hand_is_kept(clone: Clone) -> None:
    clone.python("python", "3.11.9", folder=clone.root / ".venv" / "bin")
    code, _ = clone.run("run.sh")
    assert code == 0
    assert clone.log()[0] == clone.installing()


def test_two_at_once_install_once(clone: Clone) -> None:
    clone.python("python3.12", "3.12.4")
    clone.switch("hold-pip")
    first = clone.start("run.sh")
    until(lambda: "pip" in clone.log_file.read_text())
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
