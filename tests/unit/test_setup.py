"""The set-up of run.sh and test.sh among fake programs: which Python, what is installed when, one at a time."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.clone import BASH, Clone
from tests.waiting import until


def test_run_installs_once_then_starts_the_studio_with_its_arguments(
    clone: Clone, tmp_path: Path
) -> None:
    place = f"cwd {clone.root}"
    code, said = clone.run("run.sh", "--port", "two words", "", cwd=tmp_path)
    assert code == 0 and "Set-up took" in said
    set_up = ["venv python3.12", clone.installing(), "compileall"]
    assert clone.log() == [*set_up, place, "app <app.py> <--port> <two words> <>"]
    assert clone.run("run.sh") == (0, "Running on http://127.0.0.1:7860\n")
    assert clone.log() == [place, "app <app.py>"]
    # The tests share the environment, and install everything that the studio may need.
    clone.run("test.sh")
    assert clone.log()[0] == clone.installing("ray", "dev")
    for arguments in ([], ["--ray"]):
        clone.run("run.sh", *arguments)
        assert "pip" not in str(clone.log())
    (clone.root / "requirements.txt").write_text("another\n")
    clone.run("run.sh")
    assert clone.log()[0] == clone.installing()


def test_only_what_is_imported_often_is_compiled_wherever_the_clone_lies(clone: Clone) -> None:
    clone.replace("echo compileall >>", 'echo "compileall $7" >>')
    code, said = clone.run("run.sh")
    assert code == 0, said
    (compiled,) = (line for line in clone.log() if line.startswith("compileall"))
    seldom = re.compile(compiled.partition(" ")[2])
    packages = "/home/ray/tests/testing/.venv/lib/python3.12/site-packages"
    for name in ("torch/nn/modules.py", "gradio/blocks.py", "transformers/modeling_utils.py"):
        assert not seldom.search(f"{packages}/{name}"), name
    for name in ("ray/actor.py", "scipy/io/tests/test_wav.py", "transformers/models/bert/x.py"):
        assert seldom.search(f"{packages}/{name}"), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environ"),
    [(["--ray"], {}), (["--ray=auto"], {}), ([], {"ACE_STUDIO_RAY": "local"})],
)
def test_ray_is_installed_on_request_only(
    clone: Clone, arguments: list[str], environ: dict[str, str]
) -> None:
    clone.run("run.sh")
    assert clone.log()[1] == clone.installing()
    clone.run("run.sh", *arguments, **environ)
    assert clone.log()[0] == clone.installing("ray")
    for kept in (arguments, []):
        clone.run("run.sh", *kept)
        assert "pip" not in str(clone.log())


def test_the_songwriter_is_installed_where_it_is_shipped_and_never_stops_the_studio(
    clone: Clone,
) -> None:
    clone.run("run.sh")
    assert "requirements-songwriter" not in str(clone.log())
    installing = clone.ship_songwriter()
    clone.switch("fail-songwriter")
    code, said = clone.run("run.sh")
    assert code == 0 and "could not be installed" in said and "Running on" in said
    assert clone.log()[0] == installing
    clone.run("run.sh")
    assert "pip" not in str(clone.log())
    clone.switch("fail-songwriter", on=False)
    for changed in ("requirements-songwriter.txt", "requirements.txt"):
        (clone.root / changed).write_text("another\n")
        code, said = clone.run("run.sh")
        assert code == 0 and installing in clone.log() and "could not be installed" not in said


def test_what_reads_recordings_of_phones_is_installed_on_request_and_once(clone: Clone) -> None:
    installing = f"pip install -q --no-compile -r {clone.root}/requirements-media.txt"
    clone.run("run.sh")
    assert installing not in clone.log()
    clone.switch("fail-pip")
    code, said = clone.run("run.sh", "--media")
    assert code == 1 and "Without --media" in said
    clone.switch("fail-pip", on=False)
    clone.log()
    clone.run("run.sh", "--media")
    assert clone.log()[0] == installing
    for arguments in (["--media"], []):
        clone.run("run.sh", *arguments)
        assert "pip" not in str(clone.log())


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        ({"python3.11": "3.11.9", "python3.12": "3.12.4", "python3": "3.13.1"}, "python3.12"),
        ({"python3": "3.13.1", "python3.14": "3.14.0"}, "python3"),
        ({"python3": "3.9.6", "python3.13": "3.13.1"}, "python3.13"),
        ({"python": "3.11.2"}, "python"),
    ],
)
def test_the_best_python_is_chosen(bare: Clone, installed: dict[str, str], chosen: str) -> None:
    for name, version in installed.items():
        bare.python(name, version)
    bare.run("run.sh")
    assert bare.log()[0] == f"venv {chosen}"


def test_without_a_fit_python_each_one_is_named_with_its_reason(
    bare: Clone, tmp_path: Path
) -> None:
    code, said = bare.run("run.sh")
    assert code == 1 and "3.11 to 3.14" in said
    bare.command("apt-get", "exit 1")
    unfit = {
        bare.python("python3", "3.9.6"): "too old",
        bare.python("python3.14", "3.15.0"): "too new",
        bare.python("python3.11", "3.11.2", lacks=("ensurepip",)): "python3-venv",
        bare.command("python3.12", "exit 127"): "does not run",
    }
    code, said = bare.run("run.sh")
    assert code == 1 and bare.log() == []
    for path, reason in unfit.items():
        assert str(path) in said and reason in said
    # They are passed over for one that fits.
    bare.python("python3.12", "3.12.4", folder=tmp_path / "later")
    code, said = bare.run("run.sh", path=f"{bare.bin}:{tmp_path / 'later'}")
    assert code == 0 and bare.log()[0] == "venv python3.12" and str(bare.bin) not in said


@pytest.mark.slow
def test_mac_needs_apple_silicon_and_a_python_for_it(clone: Clone) -> None:
    clone.mac("x86_64")
    clone.python("python3.12", "3.12.4", machine="x86_64")
    code, said = clone.run("run.sh")
    assert code == 1 and "Intel Mac" in said
    assert clone.log() == []
    # Rosetta on Apple silicon reports x86_64 too.
    clone.command("sysctl", "echo 1")
    clone.python("python3.11", "3.11.9", machine="arm64")
    code, _ = clone.run("run.sh")
    assert code == 0 and clone.log()[0] == "venv python3.11"


def test_a_windows_shell_is_sent_to_wsl(clone: Clone) -> None:
    clone.command("uname", "echo MINGW64_NT-10.0")
    code, said = clone.run("run.sh")
    assert code == 1 and "WSL" in said


def test_a_named_python_wins_or_is_an_error(clone: Clone, tmp_path: Path) -> None:
    clone.python("python3.9", "3.9.6")
    for named, reason in (("nowhere", "no such program"), ("python3.9", "too old")):
        code, said = clone.run("run.sh", ACE_STUDIO_PYTHON=named)
        assert code == 1 and f"'{named}'" in said and reason in said
    assert clone.log() == []
    # A path may be relative to the current folder.
    clone.python("mine", "3.13.1", folder=tmp_path / "elsewhere")
    clone.run("run.sh")
    clone.log()
    _, said = clone.run("run.sh", cwd=tmp_path, ACE_STUDIO_PYTHON="elsewhere/mine")
    assert "ACE_STUDIO_PYTHON is 3.13.1" in said
    assert clone.log()[:2] == ["venv mine", clone.installing()]


def test_a_failed_installation_is_an_error_and_is_retried(clone: Clone) -> None:
    clone.switch("fail-pip")
    code, said = clone.run("run.sh")
    assert code == 1 and "Installing the packages failed" in said and "GB free" in said
    clone.switch("fail-pip", False)
    clone.log()
    clone.run("run.sh")
    # pip ended by itself, so the environment is kept.
    assert clone.log()[:3] == [clone.installing(), "compileall", f"cwd {clone.root}"]


def test_a_newer_pip_is_asked_for_with_the_packages_and_not_needed(clone: Clone) -> None:
    asked = clone.log_file.with_name("log.newer-pip")
    for _ in range(2):
        code, said = clone.run("run.sh")
        assert code == 0, said
        assert asked.read_text() == "install -q --no-compile --retries 1 pip>=25\n"
    (clone.root / "requirements.txt").write_text("another\n")
    clone.run("run.sh")
    assert len(asked.read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("mishap", ["stop-venv", "interrupt-pip"])
def test_an_interrupted_set_up_begins_again(clone: Clone, mishap: str) -> None:
    clone.switch(mishap)
    assert clone.run("run.sh")[0] != 0
    clone.switch(mishap, False)
    leftover = clone.root / ".venv" / "half a package"
    leftover.touch()
    clone.log()
    code, said = clone.run("run.sh")
    assert code == 0 and "interrupted" in said
    assert clone.log()[:2] == ["venv python3.12", clone.installing()]
    assert not leftover.exists() and not list(clone.root.glob(".venv-*"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["dangling", "no pip"])
def test_a_damaged_environment_is_rebuilt(clone: Clone, damage: str) -> None:
    clone.run("run.sh")
    clone.log()
    python = clone.root / ".venv" / "bin" / "python"
    python.unlink()
    if damage == "dangling":
        python.symlink_to("/nowhere/python3.12")
    else:
        clone.python("python", "3.12.4", lacks=("pip",), folder=python.parent)
    code, said = clone.run("run.sh")
    assert code == 0 and "Making .venv again" in said
    assert clone.log()[:2] == ["venv python3.12", clone.installing()]


@pytest.mark.slow
def test_two_at_once_install_once(clone: Clone) -> None:
    clone.switch("hold-pip")
    first = clone.start("run.sh")
    until(lambda: "pip" in clone.log_file.read_text())
    second = clone.start("run.sh")
    assert second.stdout is not None
    assert f"process {first.pid}" in second.stdout.readline()
    clone.switch("hold-pip", False)
    for process in (first, second):
        process.communicate(timeout=300)
        assert process.returncode == 0
    log = [line.split()[0] for line in clone.log()]
    assert (log.count("pip"), log.count("app")) == (1, 2)


def test_the_lock_of_a_dead_process_is_taken_over(clone: Clone) -> None:
    dead = subprocess.Popen([BASH, "-c", "exit 0"])
    dead.wait()
    lock = clone.root / ".venv-lock"
    lock.mkdir()
    (lock / "pid").write_text(f"{dead.pid}\n")
    assert clone.run("run.sh")[0] == 0
    assert not lock.exists()


def test_it_starts_with_sh_too(clone: Clone) -> None:
    command = [shutil.which("sh") or "/bin/sh", str(clone.root / "run.sh"), "--help"]
    subprocess.run(
        command, env={"PATH": str(clone.bin), "LOG": str(clone.log_file)}, timeout=120, check=True
    )
    assert clone.log()[-1] == "app <app.py> <--help>"


def test_a_command_stays_where_its_files_are(clone: Clone, tmp_path: Path) -> None:
    clone.run("run.sh")
    clone.log()
    clone.run("run.sh", "make", "calm piano", "--out", "song.wav", cwd=tmp_path)
    called = f"app <{clone.root}/app.py> <make> <calm piano> <--out> <song.wav>"
    assert clone.log() == [f"cwd {tmp_path}", called]
