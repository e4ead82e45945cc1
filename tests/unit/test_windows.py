"""A clone by Git for Windows, whose usual settings write Windows' line ends."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.program import ROOT

SCRIPTS = ("run.sh", "test.sh", ".ci/run", "tools/setup.sh", "Dockerfile", "requirements.txt")
BINARY = ("song.mp3", "weights.safetensors", "picture.webp", "engine.gguf", "page.png")


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=true")
    command = ["git", *name, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_scripts_run_and_files_are_whole_in_a_clone_with_autocrlf(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "-q")
    for name in (".gitattributes", *SCRIPTS):
        (origin / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, origin / name)
    content = b"RIFF\r\n\0data\n\r\n"
    for name in BINARY:
        (origin / name).write_bytes(content)
    # as an editor of Windows saves it
    (origin / "notes.md").write_bytes(b"one\r\ntwo\r\n")
    git(origin, "add", ".")
    git(origin, "commit", "-q", "-m", "all")
    git(tmp_path, "clone", "-q", "origin", "clone")
    clone = tmp_path / "clone"
    for name in SCRIPTS:
        assert (clone / name).read_bytes() == (ROOT / name).read_bytes(), name
        assert b"\r" not in (clone / name).read_bytes(), name
    for name in BINARY:
        assert (clone / name).read_bytes() == content, name
    assert (clone / "notes.md").read_bytes() == b"one\ntwo\n"
    assert git(clone, "status", "--porcelain") == ""
    for name in ("run.sh", "test.sh", "tools/setup.sh"):
        subprocess.run(["bash", "-n", name], cwd=clone, check=True)
