"""The container's files, read as a builder would, since no builder runs here; its programs run for real."""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.program import ROOT, free_port, python

INSTRUCTIONS = {
    *("FROM", "RUN", "CMD", "LABEL", "EXPOSE", "ENV", "ADD", "COPY", "ENTRYPOINT", "VOLUME", "USER", "WORKDIR", "ARG"),
    *("ONBUILD", "STOPSIGNAL", "HEALTHCHECK", "SHELL"),
}


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


STEPS = instructions()
NAMES = [name for name, _ in STEPS]


def of(name: str) -> list[str]:
    return [text for step, text in STEPS if step == name]


def environment() -> dict[str, str]:
    return dict(part.split("=", 1) for text in of("ENV") for part in shlex.split(text))


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def python_version() -> str:
    return re.fullmatch(r"python:(3\.\d+)-slim-\w+", of("FROM")[0])[1]


def test_every_instruction_is_one_and_the_program_is_last():
    assert set(NAMES) <= INSTRUCTIONS
    assert NAMES[0] == "FROM" and NAMES.count("FROM") == 1
    assert json.loads(of("ENTRYPOINT")[0]) == ["python", "app.py"]


# --- packages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_python_version_chooses_the_torch_of_the_constraints(machine):
    place = {"python_version": python_version(), "sys_platform": "linux", "platform_machine": machine}
    chosen = [
        each
        for each in requirements("requirements.txt")
        if each.name == "torch" and (each.marker is None or each.marker.evaluate(place))
    ]
    (torch,), (constraint,) = chosen, requirements("docker/constraints.txt")
    assert (constraint.name, constraint.specifier, constraint.marker) == ("torch", torch.specifier, None)
    (pin,) = constraint.specifier
    assert pin.operator == "=="
    assert f"torch {pin.version}" in (ROOT / "Dockerfile").read_text()


def pip_calls() -> list[list[str]]:
    """Return the arguments of every `pip install`, in order."""
    commands = [part for text in of("RUN") for part in text.split("&&")]
    return [shlex.split(part)[2:] for part in commands if part.split()[:2] == ["pip", "install"]]


def test_torch_comes_first_and_every_pip_call_is_held_to_it():
    first, *rest = pip_calls()
    assert first == ["-c", "constraints.txt", "torch"]
    assert rest == [["-c", "constraints.txt", "-r", "requirements.txt"]]
    copied = NAMES.index("COPY")
    assert copied < NAMES.index("RUN")
    assert {"requirements.txt", "docker/constraints.txt"} == set(STEPS[copied][1].split()[:-1])
    # From the usual index: its packages of this torch are those for CUDA 13 on both machines.
    assert "--index-url" not in " ".join(of("RUN"))


# --- files --------------------------------------------------------------------------------------------------------


def sources() -> list[tuple[str, str]]:
    """Return (source, destination) of every COPY."""
    pairs = []
    for text in of("COPY"):
        *froms, to = [part for part in text.split() if not part.startswith("--")]
        pairs += [(source, to) for source in froms]
    return pairs


def ignored(path: str) -> bool:
    """Tell whether .dockerignore keeps a path from the builder: the last pattern that fits it or a folder above."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    verdict = False
    parts = path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    for rule in rules:
        pattern = rule.lstrip("!").removeprefix("**/")
        candidates = above + (parts if "**/" in rule else [])
        # "*" of Docker ends at a slash, so it is tried on each level by itself.
        fits = any(fnmatch.fnmatch(one, pattern) and one.count("/") <= pattern.count("/") for one in candidates)
        verdict = not rule.startswith("!") if fits else verdict
    return verdict


@pytest.mark.parametrize("source", sorted({source for source, _ in sources()}))
def test_what_is_copied_is_here_and_reaches_the_builder(source):
    found = sorted(ROOT.glob(source))
    assert found, source
    for path in found:
        assert not ignored(str(path.relative_to(ROOT))), path


def test_what_is_no_part_of_the_program_stays_out():
    for name in (".git/HEAD", ".venv/bin/python", "outputs/song.wav", "models/a/b/c", "tests/conftest.py", "README.md"):
        assert ignored(name), name
    assert ignored("static/__pycache__/x.pyc")


def imported(path: Path) -> set[str]:
    """Return the modules of this repository that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    first = {name.split(".")[0] for name in names}
    return {name for name in first if (ROOT / f"{name}.py").exists() or (ROOT / name).is_dir()}


def test_everything_the_program_needs_is_copied():
    copied = {path.relative_to(ROOT) for source, _ in sources() for path in ROOT.glob(source)}
    for path in copied:
        if path.suffix == ".py":
            missing = {name for name in imported(ROOT / path) if Path(f"{name}.py") not in copied}
            assert not missing, path
    # Folders that the code reads beside itself.
    code = "".join(path.read_text() for path in ROOT.glob("*.py"))
    beside = set(re.findall(r'Path\(__file__\)(?:\.with_name\(|\.parent / )"(\w+)"', code)) - {"models", "outputs"}
    assert beside
    assert {Path(name) for name in beside} <= copied


def test_a_folder_keeps_its_name():
    for source, to in sources():
        if (ROOT / source).is_dir():
            assert Path(to).name == Path(source).name


# --- running ------------------------------------------------------------------------------------------------------


def test_it_runs_as_a_user_who_owns_the_volumes_alone():
    (user,) = of("USER")
    made = next(text for text in of("RUN") if "useradd" in text)
    assert f" {user}" in made and user != "root"
    assert NAMES.index("USER") > max(i for i, name in enumerate(NAMES) if name in ("RUN", "COPY"))
    owned = re.search(rf"chown {user}:{user} (.*)$", made)[1].split()
    assert set(json.loads(of("VOLUME")[0])) <= set(owned)


def test_weights_and_songs_lie_in_the_volumes():
    env, volumes = environment(), json.loads(of("VOLUME")[0])
    for name in ("HF_HOME", "ACE_STUDIO_CACHE", "ACE_STUDIO_OUTPUT"):
        assert any(Path(env[name]).is_relative_to(volume) for volume in volumes), name


def test_it_is_reached_from_outside_the_container():
    env = environment()
    assert env["GRADIO_SERVER_NAME"] == "0.0.0.0"
    assert of("EXPOSE") == [env["GRADIO_SERVER_PORT"]]
    assert env["NVIDIA_REQUIRE_CUDA"] == "cuda>=13.0"


def health(**environ: str) -> subprocess.CompletedProcess:
    """Run the HEALTHCHECK's command as Docker does."""
    (text,) = of("HEALTHCHECK")
    program, *arguments = json.loads(text.split(" CMD ")[1])
    assert program == "python"
    return python(*arguments, **environ)


def test_without_a_studio_it_is_not_healthy():
    told = health(GRADIO_SERVER_PORT=str(free_port()))
    assert told.returncode == 1
    assert told.stdout.startswith("no answer: ")
    assert told.stderr == ""


@pytest.mark.slow
def test_with_a_studio_it_is_healthy(server):
    told = health(GRADIO_SERVER_PORT=server.rsplit(":", 1)[1])
    assert told.returncode == 0, told.stdout
    assert told.stdout.startswith("preview on ")


def smoke(*arguments: str) -> subprocess.CompletedProcess:
    program = ["bash", str(ROOT / "docker" / "smoke.sh"), *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=120)


def test_the_smoke_test_has_three_calls_and_no_mistake_of_syntax():
    script = ROOT / "docker" / "smoke.sh"
    assert os.access(script, os.X_OK)
    assert len(re.findall(r"^\s*curl ", script.read_text(), re.MULTILINE)) == 3
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_smoke_test_makes_and_fetches_a_song(server):
    told = smoke(server)
    assert told.returncode == 0, told.stderr
    # Ten seconds of 24-bit stereo at 48 kHz, and the tags.
    assert 0 < int(re.search(r"(\d+) bytes", told.stdout)[1]) - 10 * 48_000 * 6 < 20_000


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_smoke_test_says_where_there_is_no_studio():
    address = f"http://127.0.0.1:{free_port()}"
    told = smoke(address)
    assert told.returncode == 1
    assert f"No song could be started at {address}." in told.stderr
