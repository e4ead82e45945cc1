"""The environment and the caches before anything is imported, on homes made up for it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import bootstrap
import checkpoints
import lyrics
import plan_weights
from tests.program import ROOT

REPO, COMMIT, BLOB = "ACE-Step/acestep-v15-xl-sft-diffusers", "a" * 40, "b" * 64
FOLDER = f"models--{REPO.replace('/', '--')}"
SHM = Path("/dev/shm")


def preload(hub: Path, repo: str = REPO, commit: str = COMMIT, text: str = "weights") -> Path:
    """Lay a repository with two files into `hub` as huggingface_hub does; returns its snapshot."""
    storage = hub / f"models--{repo.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{commit}/vae"):
        (storage / folder).mkdir(parents=True, exist_ok=True)
    (storage / "blobs" / BLOB).write_text(text)
    (storage / "refs" / "main").write_text(commit)
    snapshot = storage / "snapshots" / commit
    (snapshot / "model_index.json").symlink_to(f"../../blobs/{BLOB}")
    (snapshot / "vae" / "config.json").symlink_to(f"../../../blobs/{BLOB}")
    return snapshot


def tree(folder: Path) -> dict[str, tuple]:
    """Return everything below `folder`: links with their target, files with their inode and time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        found[str(path.relative_to(folder))] = (
            os.readlink(path) if path.is_symlink() else (facts.st_ino, facts.st_mtime_ns, path.is_dir())
        )
    return found


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "studio").mkdir()
    return tmp_path


def run(home: Path, **environ: str) -> dict[str, str]:
    environ = dict(environ)
    bootstrap.bootstrap(environ, home, home / "studio")
    return environ


@pytest.fixture
def closed(monkeypatch):
    """Make everything below a home's .cache unwritable, for root as well, to whom permissions mean nothing."""
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: access(path, mode) and not (mode & os.W_OK and ".cache" in Path(path).parts)
    )


# --- where nothing has to be done ---------------------------------------------------------------------------------


def test_the_repositories_are_those_that_the_studio_loads_from():
    assert bootstrap.REPOSITORIES == {
        checkpoints.VARIABLE: (checkpoints.DEFAULT_MODEL,),
        plan_weights.VARIABLE: (plan_weights.UMBRELLA,),
        lyrics.VARIABLE: (lyrics.DEFAULT_WRITER, lyrics.DEFAULT_MLX_WRITER),
    }


def test_a_home_without_any_cache_stays_as_it_is(home):
    environ = run(home)
    assert environ["HF_MODULES_CACHE"] == str(home / ".cache" / "huggingface" / "modules")
    assert not {"HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH"} & environ.keys()
    assert tree(home).keys() == {"studio"}


def test_a_cache_that_can_be_written_to_is_not_mirrored(home):
    preload(home / ".cache" / "huggingface" / "hub")
    assert not {"HF_HOME", "HF_HUB_CACHE"} & run(home).keys()
    assert not (home / "hf-cache-rw").exists()


def test_what_the_user_set_stays(home):
    environ = run(home, HF_MODULES_CACHE="/mine", HF_HOME=str(home / "mine"))
    assert environ["HF_MODULES_CACHE"] == "/mine"
    assert environ["HF_HOME"] == str(home / "mine")


# --- models beside app.py -----------------------------------------------------------------------------------------


def test_a_cached_snapshot_stands_beside_the_app(home):
    snapshot = preload(home / ".cache" / "huggingface" / "hub")
    run(home)
    link = home / "studio" / "models" / REPO
    assert os.readlink(link) == str(snapshot)
    assert (link / "vae" / "config.json").read_text() == "weights"


def test_another_cache_by_the_rules_of_the_hub_and_the_preloaded_one_are_both_looked_in(home):
    elsewhere = preload(home / "disk" / "hub")
    preloaded = preload(home / ".cache" / "huggingface" / "hub", plan_weights.UMBRELLA)
    run(home, HF_HOME=str(home / "disk"))
    assert os.readlink(home / "studio" / "models" / REPO) == str(elsewhere)
    assert os.readlink(home / "studio" / "models" / plan_weights.UMBRELLA) == str(preloaded)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_place_of_the_cache_is_that_of_huggingface_hub(tmp_path, variable):
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE", "XDG"))}
    environ |= {"HOME": str(tmp_path), variable: str(tmp_path / "x")}
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert str(bootstrap.hub_cache(environ, tmp_path)) == theirs.stdout.strip()


def test_a_new_snapshot_takes_the_place_of_the_old_one(home):
    hub = home / ".cache" / "huggingface" / "hub"
    preload(hub)
    run(home)
    newer = preload(hub, commit="c" * 40)
    run(home)
    assert os.readlink(home / "studio" / "models" / REPO) == str(newer)


def test_a_linked_model_keeps_its_revision(home):
    snapshot = preload(home / ".cache" / "huggingface" / "hub")
    run(home)
    link = home / "studio" / "models" / REPO
    assert checkpoints.snapshot_revision(link) == checkpoints.snapshot_revision(snapshot / "vae") == COMMIT
    assert checkpoints.snapshot_revision(home / "snapshots" / "x") == ""


def test_without_a_branch_the_youngest_snapshot_counts(home):
    hub = home / ".cache" / "huggingface" / "hub"
    old, young = preload(hub), preload(hub, commit="c" * 40)
    os.utime(old, (1, 1))
    (hub / FOLDER / "refs" / "main").unlink()
    run(home)
    assert os.readlink(home / "studio" / "models" / REPO) == str(young)


def test_a_link_to_a_snapshot_that_is_gone_is_taken_away(home):
    hub = home / ".cache" / "huggingface" / "hub"
    preload(hub)
    run(home)
    shutil.rmtree(hub)
    run(home)
    assert not os.path.lexists(home / "studio" / "models" / REPO)


@pytest.mark.parametrize("own", ["folder", "link"])
def test_a_model_that_the_user_put_there_stays(home, own):
    preload(home / ".cache" / "huggingface" / "hub")
    place = home / "studio" / "models" / REPO
    place.parent.mkdir(parents=True)
    place.mkdir() if own == "folder" else place.symlink_to(home)
    before = tree(home / "studio")
    run(home)
    assert tree(home / "studio") == before


def test_models_named_in_the_variables_are_linked_and_switched_off_ones_are_not(home):
    hub = home / ".cache" / "huggingface" / "hub"
    preload(hub)
    preload(hub, "me/other")
    preload(hub, "me/planners")
    preload(hub, lyrics.DEFAULT_WRITER)
    run(home, ACE_STUDIO_MODEL="me/other", ACE_STUDIO_PLANNER="me/planners/small", ACE_STUDIO_LYRICS="off")
    assert sorted(str(p) for p in (home / "studio" / "models").glob("*/*")) == [
        str(home / "studio" / "models" / "me" / name) for name in ("other", "planners")
    ]


@pytest.mark.parametrize("value", ["preview", "off", "~/model", "./model", "/model", "model", "a//b", "/"])
def test_a_value_that_is_no_repository_is_not_looked_for(value):
    assert bootstrap.wanted_repositories(dict.fromkeys(bootstrap.REPOSITORIES, value)) == []


# --- a cache that cannot be written to ----------------------------------------------------------------------------


def test_a_closed_cache_is_mirrored_and_takes_its_place(home, closed):
    hub = home / ".cache" / "huggingface" / "hub"
    preload(hub)
    environ = run(home)
    ours = home / "hf-cache-rw"
    assert environ["HF_HOME"] == str(ours)
    assert environ["HF_HUB_CACHE"] == str(ours / "hub")
    assert environ["HF_MODULES_CACHE"] == str(ours / "modules")
    assert environ["HF_TOKEN_PATH"] == str(home / ".cache" / "huggingface" / "token")
    blob = ours / "hub" / FOLDER / "blobs" / BLOB
    assert blob.samefile(hub / FOLDER / "blobs" / BLOB) and not blob.is_symlink()
    snapshot = ours / "hub" / FOLDER / "snapshots" / COMMIT
    assert os.readlink(snapshot / "vae" / "config.json") == f"../../../blobs/{BLOB}"
    assert (snapshot / "vae" / "config.json").read_text() == "weights"
    reference = ours / "hub" / FOLDER / "refs" / "main"
    assert reference.read_text() == COMMIT and not reference.samefile(hub / FOLDER / "refs" / "main")
    assert os.readlink(home / "studio" / "models" / REPO) == str(snapshot)


def test_a_token_path_of_the_users_own_stays(home, closed):
    preload(home / ".cache" / "huggingface" / "hub")
    assert run(home, HF_TOKEN_PATH="/secret")["HF_TOKEN_PATH"] == "/secret"


def test_running_it_again_changes_nothing(home, closed):
    preload(home / ".cache" / "huggingface" / "hub")
    environ = run(home)
    before = tree(home)
    assert run(home) == environ
    assert run(home, **environ) == environ
    assert tree(home) == before


def test_what_was_downloaded_since_stays(home, closed):
    preload(home / ".cache" / "huggingface" / "hub")
    run(home)
    reference = home / "hf-cache-rw" / "hub" / FOLDER / "refs" / "main"
    reference.write_text("d" * 40)
    run(home)
    assert reference.read_text() == "d" * 40


def test_broken_links_and_half_files_are_left_out_and_said(home, closed, caplog):
    hub = home / ".cache" / "huggingface" / "hub"
    snapshot = preload(hub)
    (snapshot / "lost.json").symlink_to("../../blobs/gone")
    (hub / FOLDER / "blobs" / "half.incomplete").write_text("half")
    run(home)
    ours = home / "hf-cache-rw" / "hub" / FOLDER
    assert not os.path.lexists(ours / "snapshots" / COMMIT / "lost.json")
    assert [path.name for path in (ours / "blobs").iterdir()] == [BLOB]
    assert [record.message for record in caplog.records if "broken" in record.message] == [
        f"{hub / FOLDER} has 1 broken links, which were left out"
    ]


def test_a_blob_of_the_mirror_that_broke_is_linked_anew(home, closed):
    hub = home / ".cache" / "huggingface" / "hub"
    preload(hub)
    run(home)
    blob = home / "hf-cache-rw" / "hub" / FOLDER / "blobs" / BLOB
    blob.unlink()
    blob.symlink_to("/nowhere")
    run(home)
    assert blob.read_text() == "weights"


@pytest.mark.skipif(
    not SHM.is_dir() or SHM.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev, reason="one device"
)
def test_blobs_on_another_device_become_symlinks(home):
    cache = Path(tempfile.mkdtemp(dir=SHM))
    try:
        preload(cache)
        bootstrap.mirror(cache, home / "ours")
        blob = home / "ours" / FOLDER / "blobs" / BLOB
        assert os.readlink(blob) == str(cache / FOLDER / "blobs" / BLOB)
        assert (home / "ours" / FOLDER / "snapshots" / COMMIT / "vae" / "config.json").read_text() == "weights"
        before = tree(home / "ours")
        bootstrap.mirror(cache, home / "ours")
        assert tree(home / "ours") == before
    finally:
        shutil.rmtree(cache)


@pytest.mark.parametrize("trouble", ["models is a file", "the mirror is a file"])
def test_trouble_is_a_line_in_the_log_and_not_the_end(home, closed, caplog, trouble):
    preload(home / ".cache" / "huggingface" / "hub")
    (home / ("hf-cache-rw" if "mirror" in trouble else "studio/models")).write_text("")
    environ = run(home)
    assert [record for record in caplog.records if record.levelname == "WARNING"]
    assert ("HF_HOME" in environ) == ("models" in trouble)


def test_a_tree_that_belongs_to_the_build_user(tmp_path_factory):
    """Run by a user who may read but not write it, as on a Space: the whole door is opened, gradio included."""
    base = Path(tempfile.mkdtemp(prefix="ace-studio-home-"))
    user = {}
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    try:
        hub = base / ".cache" / "huggingface" / "hub"
        preload(hub)
        (base / "studio").mkdir()
        shutil.copy(ROOT / "bootstrap.py", base / "studio")
        for path in (base, base / "studio"):
            path.chmod(0o777)
        if not user:
            for path in (hub, *hub.rglob("*")):
                if path.is_dir():
                    path.chmod(0o555)
        code = (
            "import json, os, bootstrap\n"
            "bootstrap.bootstrap(); bootstrap.bootstrap()\n"
            "print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('HF_')}))"
        )
        python = Path(sys.executable).resolve()
        result = subprocess.run(
            [shutil.which("python3", path="/usr/bin:/usr/local/bin") or str(python), "-c", code],
            cwd=base / "studio",
            env={"HOME": str(base), "PATH": os.environ["PATH"], "TMPDIR": str(base / "studio")},
            capture_output=True,
            text=True,
            check=False,
            **user,
        )
        if result.returncode in (126, 127) or "PermissionError" in result.stderr:
            pytest.skip("the other user cannot run this Python")
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        environ = json.loads(result.stdout)
        assert environ["HF_HUB_CACHE"] == str(base / "hf-cache-rw" / "hub")
        link = base / "studio" / "models" / REPO
        assert link.resolve() == base / "hf-cache-rw" / "hub" / FOLDER / "snapshots" / COMMIT
        assert (link / "model_index.json").read_text() == "weights"
    finally:
        for path in base.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o777)
        shutil.rmtree(base, ignore_errors=True)
