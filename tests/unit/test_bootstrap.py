"""The environment and the model caches, on temporary homes."""

from __future__ import annotations

import ast
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import httpx2
import pytest

import bootstrap
from bootstrap import CHECKPOINTS
from model_weights import DEFAULT_MLX_SONGWRITER, DEFAULT_SONGWRITER, UMBRELLA, snapshot_revision
from tests.program import ROOT

REPO, COMMIT, BLOB = "ACE-Step/acestep-v15-xl-sft-diffusers", "a" * 40, "b" * 64
FOLDER = f"models--{REPO.replace('/', '--')}"


def preload(hub: Path, repo: str = REPO, commit: str = COMMIT) -> Path:
    """Put a repository with two files into `hub` as huggingface_hub does; returns its snapshot."""
    storage = hub / f"models--{repo.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{commit}/vae"):
        (storage / folder).mkdir(parents=True, exist_ok=True)
    (storage / "blobs" / BLOB).write_text("weights")
    (storage / "refs" / "main").write_text(commit)
    snapshot = storage / "snapshots" / commit
    (snapshot / "model_index.json").symlink_to(f"../../blobs/{BLOB}")
    (snapshot / "vae" / "config.json").symlink_to(f"../../../blobs/{BLOB}")
    return snapshot


def tree(folder: Path) -> dict[str, tuple]:
    """Return everything in `folder`: links with their targets, files with inode and time."""
    facts = {path: path.lstat() for path in folder.rglob("*")}
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else (fact.st_ino, fact.st_mtime_ns)
        for path, fact in facts.items()
    }


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "studio").mkdir()
    return tmp_path


@pytest.fixture
def hub(home) -> Path:
    return home / ".cache" / "huggingface" / "hub"


def run(home: Path, **environ: str) -> dict[str, str]:
    environ = dict(environ)
    bootstrap.bootstrap(environ, home, home / "studio")
    return environ


@pytest.fixture
def closed(monkeypatch):
    """Make a home's .cache unwritable, also for root, who ignores permissions."""
    access = os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: (
            access(path, mode) and not (mode & os.W_OK and ".cache" in Path(path).parts)
        ),
    )


def test_the_environment_is_set_before_anything_reads_it_and_the_users_settings_win(home):
    environ = run(home)
    assert environ.items() >= bootstrap.DEFAULTS.items()
    assert Path(environ["GRADIO_TEMP_DIR"]).is_absolute()
    assert environ["HF_MODULES_CACHE"] == str(home / ".cache" / "huggingface" / "modules")
    assert not {"HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH"} & environ.keys()
    assert tree(home).keys() == {"studio"}
    mine = {
        "HF_MODULES_CACHE": "/mine",
        "HF_HOME": str(home / "mine"),
        "GRADIO_TEMP_DIR": "/somewhere",
    }
    mine |= {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}
    assert run(home, **mine).items() >= mine.items()


def test_a_proxy_is_not_asked_for_this_machine(home):
    assert not {"NO_PROXY", "no_proxy"} & run(home).keys()
    environ = run(home, https_proxy="http://proxy.example:3128", no_proxy="internal.example")
    for name in ("NO_PROXY", "no_proxy"):
        assert environ[name].split(",") == ["internal.example", "127.0.0.1", "localhost", "::1"]


PROXIES = {  # and whether the studio can use them
    "socks5://127.0.0.1:1080": "socks5://127.0.0.1:1080",
    "socks5h://user:word@127.0.0.1:1080": "socks5h://user:word@127.0.0.1:1080",
    "socks://127.0.0.1:1080/": "socks5://127.0.0.1:1080/",
    "http://proxy.example:3128": "http://proxy.example:3128",
    "proxy.example:3128": "proxy.example:3128",
    "socks4://127.0.0.1:1080": None,
    "socks4a://127.0.0.1:1080": None,
    "ftp://proxy.example": None,
    "http://proxy.example:port": None,
    "http://": None,
}
NO_PROXY = "localhost, .corp.example,10.0.0.0/8,::1/128,fe80::/10,[::1],host:8080,*.test,::1"


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "http_proxy"])
@pytest.mark.parametrize("given", PROXIES)
def test_any_proxy_lets_the_studio_start(home, monkeypatch, caplog, name, given):
    environ = run(home, **{name: given, "NO_PROXY": NO_PROXY})
    assert environ.get(name) == PROXIES[given]
    assert (PROXIES[given] is None) == (f"the proxy in {name} is not used" in caplog.text)
    for each in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(each, raising=False)
        monkeypatch.delenv(each.lower(), raising=False)
    for each, value in environ.items():
        if each.lower().endswith("proxy"):
            monkeypatch.setenv(each, value)
    for library in (httpx, httpx2):  # Gradio's and huggingface_hub's
        library.Client().close()


def test_a_socks_proxy_without_its_package_is_left_out_with_a_true_sentence(
    home, monkeypatch, caplog
):
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None)
    assert "ALL_PROXY" not in run(home, ALL_PROXY="socks5://127.0.0.1:1080")
    assert "socksio, which ./run.sh installs" in caplog.text
    assert "socksio" in (ROOT / "requirements.txt").read_text().split()


def test_values_from_windows_and_from_docker_lose_what_is_around_them(home):
    given = {
        "ACE_STUDIO_MODEL": "preview\r",
        "GRADIO_SERVER_PORT": '"7870"',
        "HF_HOME": "\ufeff/a ",
    }
    environ = run(home, **given, OTHER="x\r")
    assert [environ[name] for name in given] == ["preview", "7870", "/a"]
    assert environ["OTHER"] == "x\r"


def test_a_writable_cache_is_not_mirrored_and_its_snapshot_is_linked(home, hub):
    snapshot = preload(hub)
    assert not {"HF_HOME", "HF_HUB_CACHE"} & run(home).keys()
    assert not (home / "hf-cache-rw").exists()
    link = home / "studio" / "models" / REPO
    assert os.readlink(link) == str(snapshot)
    assert (link / "vae" / "config.json").read_text() == "weights"
    assert snapshot_revision(link) == COMMIT


def test_both_the_users_cache_and_the_preloaded_one_are_searched(home, hub):
    elsewhere, preloaded = preload(home / "disk" / "hub"), preload(hub, UMBRELLA)
    run(home, HF_HOME=str(home / "disk"))
    assert os.readlink(home / "studio" / "models" / REPO) == str(elsewhere)
    assert os.readlink(home / "studio" / "models" / UMBRELLA) == str(preloaded)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"]
)
def test_the_cache_folder_is_that_of_huggingface_hub(tmp_path, variable):
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGINGFACE", "XDG"))
    }
    environ |= {"HOME": str(tmp_path), variable: str(tmp_path / "x")}
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    theirs = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert str(bootstrap.hub_cache(environ, tmp_path)) == theirs.stdout.strip()


def test_the_link_follows_main_or_the_youngest_snapshot_until_all_are_gone(home, hub):
    link = home / "studio" / "models" / REPO
    old = preload(hub)
    run(home)
    newer = preload(hub, commit="c" * 40)
    run(home)
    assert os.readlink(link) == str(newer)
    os.utime(old, (1, 1))
    (hub / FOLDER / "refs" / "main").unlink()
    run(home)
    assert os.readlink(link) == str(newer)
    shutil.rmtree(hub)
    run(home)
    assert not os.path.lexists(link)


def test_the_users_own_models_stay(home, hub):
    preload(hub)
    preload(hub, DEFAULT_SONGWRITER)
    models = home / "studio" / "models"
    (models / REPO).mkdir(parents=True)
    (models / DEFAULT_SONGWRITER).parent.mkdir()
    (models / DEFAULT_SONGWRITER).symlink_to(home)
    before = tree(home / "studio")
    run(home)
    assert tree(home / "studio") == before


def test_models_named_in_the_variables_are_linked_unless_switched_off(home, hub):
    for repo in (REPO, "me/other", "me/planners", DEFAULT_SONGWRITER):
        preload(hub, repo)
    run(
        home,
        ACE_STUDIO_MODEL="me/other",
        ACE_STUDIO_MODELS="turbo, preview",
        ACE_STUDIO_PLANNER="me/planners/small",
        ACE_STUDIO_LYRICS="off",
    )
    models = home / "studio" / "models"
    assert sorted(models.glob("*/*")) == [models / "me" / "other", models / "me" / "planners"]
    assert DEFAULT_MLX_SONGWRITER in bootstrap.wanted_repositories({})
    named = {"ACE_STUDIO_MODELS": "base, me/third"}
    assert {CHECKPOINTS["base"], "me/third"} <= {*bootstrap.wanted_repositories(named)}
    assert CHECKPOINTS["turbo"] in bootstrap.wanted_repositories({})
    for value in ("preview", "off", "~/model", "/model", "model", "a//b"):
        assert bootstrap.wanted_repositories(dict.fromkeys(bootstrap.REPOSITORIES, value)) == []


def test_a_closed_cache_is_replaced_by_a_mirror_which_keeps_later_downloads(home, hub, closed):
    preload(hub)
    environ, ours = run(home), home / "hf-cache-rw"
    expected = {"HF_HOME": ours, "HF_HUB_CACHE": ours / "hub", "HF_MODULES_CACHE": ours / "modules"}
    expected |= {"HF_TOKEN_PATH": home / ".cache" / "huggingface" / "token"}
    assert environ.items() >= {name: str(path) for name, path in expected.items()}.items()
    blob = ours / "hub" / FOLDER / "blobs" / BLOB
    assert blob.samefile(hub / FOLDER / "blobs" / BLOB) and not blob.is_symlink()
    snapshot = ours / "hub" / FOLDER / "snapshots" / COMMIT
    assert os.readlink(snapshot / "vae" / "config.json") == f"../../../blobs/{BLOB}"
    assert (snapshot / "vae" / "config.json").read_text() == "weights"
    reference = ours / "hub" / FOLDER / "refs" / "main"
    assert reference.read_text() == COMMIT and not reference.samefile(
        hub / FOLDER / "refs" / "main"
    )
    assert os.readlink(home / "studio" / "models" / REPO) == str(snapshot)
    # A second run changes nothing.
    before = tree(home)
    assert run(home) == run(home, **environ) == environ
    assert tree(home) == before
    reference.write_text("d" * 40)
    assert run(home, HF_TOKEN_PATH="/secret")["HF_TOKEN_PATH"] == "/secret"
    assert reference.read_text() == "d" * 40


def test_broken_links_and_partial_downloads_are_skipped_with_a_warning(home, hub, closed, caplog):
    snapshot = preload(hub)
    (snapshot / "lost.json").symlink_to("../../blobs/gone")
    (hub / FOLDER / "blobs" / "half.incomplete").write_text("half")
    run(home)
    ours = home / "hf-cache-rw" / "hub" / FOLDER
    assert not os.path.lexists(ours / "snapshots" / COMMIT / "lost.json")
    assert [path.name for path in (ours / "blobs").iterdir()] == [BLOB]
    assert f"{hub / FOLDER} has 1 broken links, which were skipped" in caplog.messages


@pytest.mark.parametrize("trouble", ["models is a file", "the mirror is a file"])
def test_a_failure_is_a_line_in_the_log(home, hub, closed, caplog, trouble):
    preload(hub)
    (home / ("hf-cache-rw" if "mirror" in trouble else "studio/models")).write_text("")
    environ = run(home)
    assert [record for record in caplog.records if record.levelname == "WARNING"]
    assert ("HF_HOME" in environ) == ("models" in trouble)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run as another user")
def test_a_cache_that_belongs_to_another_user():
    """As on a Space: the cache is readable but not writable, with real permissions."""
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="ace-studio-home-") as folder:
        home = Path(folder)
        preload(home / ".cache" / "huggingface" / "hub")
        (home / "studio").mkdir()
        shutil.copy(ROOT / "bootstrap.py", home / "studio")
        for path in (home, home / "studio"):
            path.chmod(0o777)
        code = "import os, bootstrap; bootstrap.bootstrap(); bootstrap.bootstrap(); print(os.environ['HF_HUB_CACHE'])"
        result = subprocess.run(
            [shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable, "-c", code],
            **{"cwd": home / "studio", "capture_output": True, "text": True, "check": False},
            env={"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home / "studio")},
            **{"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []},
        )
        if result.returncode in (126, 127) or "PermissionError" in result.stderr:
            pytest.skip("the other user cannot run this Python")
        hub = home / "hf-cache-rw" / "hub"
        assert (result.returncode, result.stdout.strip(), result.stderr) == (0, str(hub), "")
        link = home / "studio" / "models" / REPO
        assert link.resolve() == hub / FOLDER / "snapshots" / COMMIT
        assert (link / "model_index.json").read_text() == "weights"


def test_nothing_that_reads_the_environment_is_imported_before_it_is_set():
    body = ast.parse((ROOT / "app.py").read_text()).body
    imports = []
    for statement in body:
        if ast.unparse(statement) == "bootstrap()":
            break
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports.append(ast.unparse(statement))
    assert "from bootstrap import bootstrap" in imports
    libraries = ["gradio", "huggingface_hub", "torch", "transformers", "diffusers", "spaces"]
    program = [
        *imports,
        "import sys",
        f"print([each for each in {libraries} if each in sys.modules])",
    ]
    answer = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.stdout == "[]\n", answer
