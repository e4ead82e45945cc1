"""The process environment and the model caches, set before any library that reads them is imported.

gradio, huggingface_hub, transformers and torch look at their variables while they are imported, so `app.py` calls
`bootstrap` ahead of its other imports. What the user has set is left as it is. Nothing here ends the studio: what
could not be done is a line in the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path

log = logging.getLogger("studio")

DEFAULTS = {
    # Operations that Apple's GPU lacks run on the CPU instead of failing.
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",
    # Nothing is reported to anybody.
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Spaces switch this on; it would make songs at start.
    "GRADIO_CACHE_EXAMPLES": "false",
    # Gradio asks matplotlib for its backend around every call; unnamed, it is looked for by importing, and two calls
    # that do so at once fail.
    "MPLBACKEND": "agg",
    # Seconds; a proxy that closes a silent connection must not meet one.
    "GRADIO_HEARTBEAT_INTERVAL": "10",
}

# Variable -> the repositories that its model is looked for in, where the variable is not set.
REPOSITORIES = {
    "ACE_STUDIO_MODEL": ("ACE-Step/acestep-v15-xl-sft-diffusers",),
    "ACE_STUDIO_PLANNER": ("ACE-Step/Ace-Step1.5",),
    "ACE_STUDIO_LYRICS": ("Qwen/Qwen2.5-7B-Instruct", "mlx-community/Qwen2.5-7B-Instruct-4bit"),
}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WRITABLE_CACHE = "hf-cache-rw"
NO_REPOSITORY = ("preview", "off")


def bootstrap(
    environ: MutableMapping[str, str] = os.environ, home: Path | None = None, studio: Path | None = None
) -> None:
    """Set our defaults in `environ`, make the caches usable, and link the models that are in them beside `app.py`.

    `home` and `studio` are the user's home and the folder of `app.py`. Running it again changes nothing.
    """
    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
    _spare_loopback_the_proxy(environ)
    if not environ.get("GRADIO_TEMP_DIR"):
        environ["GRADIO_TEMP_DIR"] = str(private_folder("page"))
    home, studio = home or Path.home(), studio or Path(__file__).resolve().parent
    # A Space preloads into this one, whatever HF_HOME says.
    caches = list(dict.fromkeys([hub_cache(environ, home), home / ".cache" / "huggingface" / "hub"]))
    if not _writable(caches[0]):
        caches.insert(0, _use_writable_cache(environ, home, caches))
    environ.setdefault("HF_MODULES_CACHE", str(_modules_folder(environ, home)))
    for repository in wanted_repositories(environ):
        with _logged(f"the model {repository} was not linked beside app.py"):
            _link_snapshot(repository, caches, studio / "models")


def private_folder(purpose: str) -> Path:
    """Return a temporary folder of this user's own, made where missing, that no other account may look into.

    "page" is where Gradio keeps uploads and the copies of takes that the page plays. A name that another account has
    taken is left to it.
    """
    usual = _own_temporary(purpose)
    try:
        usual.mkdir(mode=0o700, exist_ok=True)
        facts = usual.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
            return Path(tempfile.mkdtemp(prefix=f"{usual.name}-"))
        usual.chmod(0o700)
    except OSError as error:
        log.warning("%s cannot be used: %s", usual, error)
    return usual


def _spare_loopback_the_proxy(environ: MutableMapping[str, str]) -> None:
    """Let no proxy be asked for this machine itself: Gradio calls its own server while it starts."""
    if not any(environ.get(name) or environ.get(name.lower()) for name in PROXIES):
        return
    names = ("NO_PROXY", "no_proxy")
    spared = [*(environ.get(name, "") for name in names), *LOOPBACK, environ.get("GRADIO_SERVER_NAME", "")]
    parts = [part.strip() for text in spared for part in text.split(",")]
    for name in names:
        environ[name] = ",".join(dict.fromkeys(filter(None, parts)))


def hub_cache(environ: MutableMapping[str, str], home: Path) -> Path:
    """Return the folder in which huggingface_hub keeps repositories, by its own rules."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return _expanded(environ[name], home)
    return _hf_home(environ, home) / "hub"


def wanted_repositories(environ: MutableMapping[str, str]) -> list[str]:
    """Return the repositories on the hub that the studio may load from: those named in its variables, or its own."""
    wanted: list[str] = []
    for variable, standard in REPOSITORIES.items():
        asked = environ.get(variable, "").strip()
        parts = asked.split("/")
        if not asked:
            wanted += standard
        elif asked.lower() not in NO_REPOSITORY and len(parts) > 1 and all(parts) and parts[0][0] not in ".~":
            wanted.append("/".join(parts[:2]))
    return wanted


# --- a cache that can be written to -------------------------------------------------------------------------------


def _use_writable_cache(environ: MutableMapping[str, str], home: Path, caches: list[Path]) -> Path:
    """Mirror `caches` into a cache of our own and point the libraries there; returns its hub folder."""
    before, ours = _hf_home(environ, home), home / WRITABLE_CACHE
    for cache in caches:
        with _logged(f"the cache {cache} was not mirrored"):
            mirror(cache, ours / "hub")
    if not (ours / "hub").is_dir() or not _writable(ours / "hub"):
        log.warning("%s cannot be written to, so nothing can be downloaded", ours)
        return ours / "hub"
    # The token stays where it is: a copy would be one more place to guard.
    environ.setdefault("HF_TOKEN_PATH", str(before / "token"))
    environ["HF_HOME"], environ["HF_HUB_CACHE"] = str(ours), str(ours / "hub")
    return ours / "hub"


def mirror(cache: Path, into: Path) -> None:
    """Make `into` a cache that shows what `cache` holds: blobs hard-linked, or symlinked where that is not allowed.

    Snapshots keep their own relative links, and refs are copied. What is there already stays.
    """
    into.mkdir(parents=True, exist_ok=True)
    if not cache.is_dir() or cache.resolve() == into.resolve():
        return
    for repository in sorted(cache.iterdir()):
        if "--" in repository.name and repository.is_dir():
            with _logged(f"{repository} was mirrored in part"):
                _mirror_repository(repository, into / repository.name)


def _mirror_repository(source: Path, target: Path) -> None:
    broken = 0
    for kind in ("blobs", "snapshots", "refs"):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for path, place in _files(source / kind, target / kind):
            if place.exists():
                continue
            if not path.exists():
                broken += 1
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):
                if path.is_symlink():
                    place.symlink_to(os.readlink(path))
                elif kind == "refs":
                    shutil.copyfile(path, place)
                else:
                    _link(path, place)
    if broken:
        log.warning("%s has %d broken links, which were left out", source, broken)


def _files(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """Yield every file and link under `source` with its place under `target`, but not what was cut off."""
    for folder, _, names in os.walk(source):
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix != ".incomplete":
                yield path, target / path.relative_to(source)


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except FileExistsError:
        raise
    except OSError:
        # Another device, or a system that lets only the owner link.
        place.symlink_to(path.resolve())


def _modules_folder(environ: MutableMapping[str, str], home: Path) -> Path:
    """Return where transformers may keep Python modules that come with models."""
    usual = _hf_home(environ, home) / "modules"
    return usual if _writable(usual) else private_folder("modules")


# --- models beside app.py -----------------------------------------------------------------------------------------


def _link_snapshot(repository: str, caches: list[Path], models: Path) -> None:
    """Let models/<org>/<repo> lead to the newest snapshot in the first of `caches` that has one.

    A folder, and a link that leads to something that is no snapshot, are the user's own and stay.
    """
    place = models.joinpath(*repository.split("/"))
    if place.is_symlink():
        if Path(os.readlink(place)).parent.name != "snapshots":
            return
    elif place.exists():
        return
    folder = f"models--{repository.replace('/', '--')}"
    snapshot = next(filter(None, (newest_snapshot(cache / folder) for cache in caches)), None)
    if snapshot is None:
        if place.is_symlink() and not place.exists():
            place.unlink()
        return
    if place.is_symlink() and os.readlink(place) == str(snapshot):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed: another process that starts at the same time never finds a gap.
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(snapshot, target_is_directory=True)
    aside.replace(place)


def newest_snapshot(storage: Path) -> Path | None:
    """Return the snapshot of `storage` that its branch main names, otherwise the youngest; None where there is none."""
    with contextlib.suppress(OSError):
        named = storage / "snapshots" / (storage / "refs" / "main").read_text().strip()
        if named.is_dir() and named.parent.name == "snapshots":
            return named.absolute()
    with contextlib.suppress(OSError):
        return max((storage / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, default=None)
    return None


# --- places -------------------------------------------------------------------------------------------------------


def _hf_home(environ: MutableMapping[str, str], home: Path) -> Path:
    if environ.get("HF_HOME"):
        return _expanded(environ["HF_HOME"], home)
    if environ.get("XDG_CACHE_HOME"):
        return _expanded(environ["XDG_CACHE_HOME"], home) / "huggingface"
    return home / ".cache" / "huggingface"


def _expanded(text: str, home: Path) -> Path:
    return home / text[2:] if text.startswith("~/") else Path(os.path.expandvars(text)).absolute()


def _own_temporary(purpose: str) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir(), f"ace-music-studio-{purpose}-{user}")


def _writable(folder: Path) -> bool:
    """Tell whether files can be made in `folder`, or in the first folder above it that exists.

    Of a cache the repositories count as well: what another user preloaded cannot be added to.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    with contextlib.suppress(OSError):
        repositories = [path for path in folder.glob("models--*") if path.is_dir()]
        inner = [path / kind for path in repositories for kind in ("blobs", "snapshots", "refs")]
        return all(os.access(path, os.W_OK | os.X_OK) for path in (*repositories, *inner) if path.exists())
    return False


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("%s: %s", what, error)


def on_zerogpu() -> bool:
    """Tell whether this is a ZeroGPU Space, by the rule of the `spaces` package."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
