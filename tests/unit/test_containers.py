"""The container's files, read as a builder would, since no builder runs here; its programs run for real."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.program import ROOT, free_port, python
from tests.unit.test_space import requirements


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


def test_every_pip_call_is_held_to_the_torch_that_the_python_version_chooses():
    assert re.findall(r"pip install (.*?) *(?:&&|$)", "\n".join(of("RUN")), re.MULTILINE) == [
        "-c constraints.txt torch",
        "-c constraints.txt -r requirements.txt",
    ]
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", of("FROM")[0])[1]
    (constraint,) = requirements("docker/constraints.txt", version)
    for machine in ("x86_64", "aarch64"):
        (torch,) = [
            each
            for each in requirements("requirements.txt", version, machine)
            if each.name == "torch"
        ]
        assert (constraint.name, constraint.specifier, constraint.marker) == (
            "torch",
            torch.specifier,
            None,
        )


def sources() -> list[tuple[str, str]]:
    """Return (source, destination) of every COPY."""
    pairs = []
    for text in of("COPY"):
        *froms, to = [part for part in text.split() if not part.startswith("--")]
        pairs += [(source, to) for source in froms]
    return pairs


def test_everything_the_program_needs_is_copied_and_nothing_else_reaches_the_builder():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    assert {rule[1:] for rule in rules if rule.startswith("!")} == {
        source for source, _ in sources()
    }
    for source, to in sources():
        assert list(ROOT.glob(source)), source
        assert not (ROOT / source).is_dir() or Path(to).name == Path(source).name
    copied = {str(path.relative_to(ROOT)) for source, _ in sources() for path in ROOT.glob(source)}
    code = {path.stem: path.read_text() for path in ROOT.glob("*.py")}
    for name in code.keys() & {name.removesuffix(".py") for name in copied}:
        used = set(re.findall(r"^\s*(?:from|import) (\w+)", code[name], re.MULTILINE)) & code.keys()
        assert {f"{each}.py" for each in used} <= copied, name
    # Folders that the code reads beside itself.
    beside = set(
        re.findall(r'Path\(__file__\)(?:\.with_name\(|\.parent / )"(\w+)"', "".join(code.values()))
    )
    assert beside - {"models", "outputs", "loras"} <= copied


def test_it_runs_as_a_user_who_owns_the_volumes_alone():
    (user,) = of("USER")
    made = next(text for text in of("RUN") if "useradd" in text)
    assert f" {user}" in made and user != "root"
    assert NAMES.index("USER") > max(i for i, name in enumerate(NAMES) if name in ("RUN", "COPY"))
    owned = re.search(rf"chown {user}:{user} (.*)$", made)[1].split()
    assert set(json.loads(of("VOLUME")[0])) <= set(owned)


def test_weights_and_songs_lie_in_the_volumes_and_it_is_reached_from_outside():
    env = dict(part.split("=", 1) for text in of("ENV") for part in shlex.split(text))
    volumes = json.loads(of("VOLUME")[0])
    for name in ("HF_HOME", "ACE_STUDIO_OUTPUT"):
        assert any(Path(env[name]).is_relative_to(volume) for volume in volumes), name
    assert env["GRADIO_SERVER_NAME"] == "0.0.0.0"
    assert of("EXPOSE") == [env["GRADIO_SERVER_PORT"]]
    assert json.loads(of("ENTRYPOINT")[0]) == ["python", "app.py"]


def health(**environ: str) -> subprocess.CompletedProcess:
    """Run the HEALTHCHECK's command as Docker does."""
    (text,) = of("HEALTHCHECK")
    program, *arguments = json.loads(text.split(" CMD ")[1])
    assert program == "python"
    return python(*arguments, **environ)


def test_without_a_studio_it_is_not_healthy():
    told = health(GRADIO_SERVER_PORT=str(free_port()))
    assert (told.returncode, told.stderr) == (1, "")
    assert told.stdout.startswith("no answer: ")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_with_a_studio_it_is_healthy_and_the_smoke_test_makes_and_fetches_a_song(server):
    told = health(GRADIO_SERVER_PORT=server.rsplit(":", 1)[1])
    assert told.returncode == 0 and told.stdout.startswith("preview on "), told.stdout
    program = ["bash", str(ROOT / "docker" / "smoke.sh"), server]
    told = subprocess.run(program, capture_output=True, text=True, timeout=800)
    assert told.returncode == 0, told.stderr
    # Ten seconds of 24-bit stereo at 48 kHz, and the tags with the cover picture.
    assert 0 < int(re.search(r"(\d+) bytes", told.stdout)[1]) - 10 * 48_000 * 6 < 100_000
