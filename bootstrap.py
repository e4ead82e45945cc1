"""The process environment and the model caches, prepared before any library reads them.

gradio, huggingface_hub, transformers and torch read their variables when they are imported, so
`app.py` calls `bootstrap` before its other imports. The user's own settings win, and failures are
only logged.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

log = logging.getLogger("studio")

DEFAULTS = {
    # operations that Apple's GPU lacks run on the CPU instead of failing
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_CACHE_EXAMPLES": "false",  # Spaces enable it, which would make songs at start
    # Gradio asks matplotlib for its backend around every call; unset, that tries imports, and two
    # calls at once fail.
    "MPLBACKEND": "agg",
    "GRADIO_HEARTBEAT_INTERVAL": "10",  # seconds: proxies close connections that stay silent
}

# The official song models by what they were trained for.
CHECKPOINTS = {
    "sft": "ACE-Step/acestep-v15-xl-sft-diffusers",
    "turbo": "ACE-Step/acestep-v15-xl-turbo-diffusers",
    "base": "ACE-Step/acestep-v15-xl-base-diffusers",
}
REPOSITORIES = {  # variable -> the default repositories of its model
    "ACE_STUDIO_MODEL": (CHECKPOINTS["sft"],),
    "ACE_STUDIO_MODELS": (CHECKPOINTS["sft"], CHECKPOINTS["turbo"]),
    "ACE_STUDIO_PLANNER": ("ACE-Step/Ace-Step1.5",),
    "ACE_STUDIO_LYRICS": ("Qwen/Qwen2.5-7B-Instruct", "mlx-community/Qwen2.5-7B-Instruct-4bit"),
}


def bootstrap(
    environ: MutableMapping[str, str] = os.environ,
    home: Path | None = None,
    studio: Path | None = None,
) -> None:
    """Set defaults in `environ`, make the model caches writable, and link cached models below `models/`; idempotent."""
    _tidy_values(environ)
    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
    _drop_unusable_proxies(environ)
    _bypass_proxy_for_loopback(environ)
    if not environ.get("GRADIO_TEMP_DIR"):
        environ["GRADIO_TEMP_DIR"] = str(private_folder("page"))
    home = home or Path.home()
    studio = studio or Path(__file__).resolve().parent
    # A Space preloads into the second one, whatever HF_HOME says.
    caches = list(
        dict.fromkeys([hub_cache(environ, home), home / ".cache" / "huggingface" / "hub"])
    )
    if not _writable(caches[0]):
        caches.insert(0, _use_writable_cache(environ, home, caches))
    modules = _hf_home(environ, home) / "modules"
    environ.setdefault(
        "HF_MODULES_CACHE", str(modules if _writable(modules) else private_folder("modules"))
    )
    for repository in wanted_repositories(environ):
        with _logged(f"cannot link the model {repository} beside app.py"):
            _link_snapshot(repository, caches, studio / "models")


def page_folder() -> Path:
    """Return the folder of uploads and of what the page gets, the only one whose files Gradio serves."""
    return Path(os.environ["GRADIO_TEMP_DIR"])


def private_folder(purpose: str) -> Path:
    """Return a temporary folder that only this user can read; a random one if another account owns the usual name."""
    usual = Path(tempfile.gettempdir(), f"ace-music-studio-{purpose}-{os.getuid()}")
    with _logged(f"cannot use {usual}"):
        usual.mkdir(mode=0o700, exist_ok=True)
        if usual.is_symlink() or usual.lstat().st_uid != os.getuid():
            return Path(tempfile.mkdtemp(prefix=f"{usual.name}-"))
        usual.chmod(0o700)
    return usual


def _tidy_values(environ: MutableMapping[str, str]) -> None:
    # An environment file that was written on Windows leaves a carriage return behind each value,
    # and Docker keeps the quotes around it.
    for name, value in list(environ.items()):
        if name.startswith(("ACE_STUDIO_", "GRADIO_", "HF_")):
            tidy = value.strip("\ufeff \t\r\n")
            if len(tidy) > 1 and tidy[0] == tidy[-1] and tidy[0] in "\"'":
                tidy = tidy[1:-1].strip()
            if tidy != value:
                environ[name] = tidy


_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def _drop_unusable_proxies(environ: MutableMapping[str, str]) -> None:
    """Take out what httpx cannot use: it would refuse to start, and the page needs no proxy."""
    for name in (each for usual in _PROXIES for each in (usual, usual.lower())):
        value = environ.get(name, "")
        if not value:
            continue
        # as GNOME writes it
        if value.startswith("socks://"):
            value = value.replace("socks://", "socks5://", 1)
            environ[name] = value
        reason = _why_unusable(value)
        if reason:
            log.warning("the proxy in %s is not used: %s", name, reason)
            del environ[name]
    for name in ("NO_PROXY", "no_proxy"):
        if name in environ:
            hosts = (host.strip() for host in environ[name].split(","))
            environ[name] = ",".join(filter(_is_host, (host.strip("[]") for host in hosts)))


def _why_unusable(proxy: str) -> str:
    """Return why httpx cannot use the address of a proxy, "" if it can."""
    scheme, separator, _ = proxy.partition("://")
    if not separator:
        scheme = "http"
    try:
        parts = urlsplit(proxy if separator else f"http://{proxy}")
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        named = False
    if not named:
        return "its address is not valid"
    if scheme.lower() in ("http", "https"):
        return ""
    if scheme.lower() not in ("socks5", "socks5h"):
        return f"only http, https, socks5 and socks5h are known here, not {scheme}"
    if importlib.util.find_spec("socksio") is None:
        return "SOCKS needs the package socksio, which ./run.sh installs"
    return ""


def _is_host(text: str) -> bool:
    """Tell whether httpx understands an entry of NO_PROXY: it stumbles over IPv6 networks."""
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    return bool(re.fullmatch(r"(\w+://)?[\w.*-]+(:\d{1,5})?(/\d{1,2})?", text))


def _bypass_proxy_for_loopback(environ: MutableMapping[str, str]) -> None:
    # Gradio calls its own server while it starts.
    if any(environ.get(name) or environ.get(name.lower()) for name in _PROXIES):
        own = [environ.get(name, "") for name in ("NO_PROXY", "no_proxy")]
        hosts = ",".join(
            [*own, "127.0.0.1", "localhost", "::1", environ.get("GRADIO_SERVER_NAME", "")]
        )
        bypassed = dict.fromkeys(host.strip() for host in hosts.split(",") if host.strip())
        environ["NO_PROXY"] = ",".join(bypassed)
        environ["no_proxy"] = environ["NO_PROXY"]


def hub_cache(environ: MutableMapping[str, str], home: Path) -> Path:
    """Return the folder of huggingface_hub's cache by its own rules."""
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return _expanded(named, home)
    return _hf_home(environ, home) / "hub"


def wanted_repositories(environ: MutableMapping[str, str]) -> list[str]:
    wanted: list[str] = []
    for variable, standard in REPOSITORIES.items():
        asked = environ.get(variable, "").strip()
        if not asked:
            wanted += standard
        names = asked.split(",") if variable == "ACE_STUDIO_MODELS" else [asked]
        for name in names:
            name = name.strip()
            name = CHECKPOINTS.get(name.lower(), name)
            parts = name.split("/")
            if len(parts) > 1 and all(parts) and parts[0][0] not in ".~":
                wanted.append("/".join(parts[:2]))
    return list(dict.fromkeys(wanted))


def _use_writable_cache(environ: MutableMapping[str, str], home: Path, caches: list[Path]) -> Path:
    """Mirror `caches` into our own cache and point the libraries to it; returns its hub folder."""
    before = _hf_home(environ, home)
    ours = home / "hf-cache-rw"
    hub = ours / "hub"
    for cache in caches:
        with _logged(f"cannot mirror the cache {cache}"):
            for repository in sorted(cache.iterdir() if cache.is_dir() else ()):
                with _logged(f"{repository} was mirrored only in part"):
                    if "--" in repository.name and repository.is_dir():
                        _mirror(repository, hub / repository.name)
    if not _writable(hub):
        log.warning("%s is not writable, so nothing can be downloaded", ours)
        return hub
    # The token stays in its place: a copy would be one more secret to protect.
    environ.setdefault("HF_TOKEN_PATH", str(before / "token"))
    environ["HF_HOME"] = str(ours)
    environ["HF_HUB_CACHE"] = str(hub)
    return hub


def _mirror(source: Path, target: Path) -> None:
    """Link blobs and snapshots of a cached repository into `target`, where existing files stay; copy its refs."""
    broken = 0
    for kind in ("blobs", "snapshots", "refs"):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted((source / kind).rglob("*")):
            place = target / path.relative_to(source)
            folder = path.is_dir() and not path.is_symlink()
            if folder or place.exists() or path.suffix == ".incomplete":
                continue
            if not path.exists():
                broken += 1
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):  # another process was faster
                if path.is_symlink():
                    place.symlink_to(os.readlink(path))
                elif kind == "refs":  # copied, because huggingface_hub overwrites them in place
                    shutil.copyfile(path, place)
                else:
                    try:
                        os.link(path, place)
                    except OSError:  # another file system, or one that lets only the owner link
                        place.symlink_to(path.resolve())
    if broken:
        log.warning("%s has %d broken links, which were skipped", source, broken)


def _link_snapshot(repository: str, caches: list[Path], models: Path) -> None:
    """Link models/<org>/<repo> to the newest snapshot in the first of `caches` that has one."""
    place = models.joinpath(*repository.split("/"))
    linked = Path(os.readlink(place)) if place.is_symlink() else None
    if linked.parent.name != "snapshots" if linked else place.exists():
        return  # a folder, or a link to something other than a snapshot, belongs to the user
    folder = f"models--{repository.replace('/', '--')}"
    snapshot = next(filter(None, (newest_snapshot(cache / folder) for cache in caches)), None)
    if snapshot is None and linked and not place.exists():
        place.unlink()
    if snapshot is None or snapshot == linked:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place, so that another process that starts at the same time always finds a link.
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(snapshot, target_is_directory=True)
    aside.replace(place)


def newest_snapshot(storage: Path) -> Path | None:
    """Return the snapshot of `storage` that its branch main names, or else the youngest, if any."""
    with contextlib.suppress(OSError):
        named = storage / "snapshots" / (storage / "refs" / "main").read_text().strip()
        if named.is_dir() and named.parent.name == "snapshots":
            return named.absolute()
    with contextlib.suppress(OSError):
        return max(
            (storage / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, default=None
        )
    return None


def _hf_home(environ: MutableMapping[str, str], home: Path) -> Path:
    named = environ.get("HF_HOME")
    return _expanded(named or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface", home)


def _expanded(text: str, home: Path) -> Path:
    if text.startswith("~/"):
        return home / text[2:]
    return Path(os.path.expandvars(text)).absolute()


def existing(folder: Path) -> Path:
    return next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )


def _writable(folder: Path) -> bool:
    folder = existing(folder)
    with contextlib.suppress(OSError):
        # In a cache every repository must be writable too, because another user may have preloaded
        # it.
        places = (folder, *folder.glob("models--*/"), *folder.glob("models--*/*/"))
        return all(os.access(place, os.W_OK | os.X_OK) for place in places)
    return False


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("%s: %s", what, error)


def on_zerogpu() -> bool:
    # as `spaces` decides it
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
