"""A LoRA in a repository on the Hugging Face hub: who may name one, which file it is, and fetching it.

Repositories are untrusted: nothing is taken but one safetensors file and its json, of known size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from huggingface_hub import constants

import hub
from events import Progress, StudioError
from limits import shown, size_text
from lora_files import FIELD, MAX_FILE_BYTES, is_inside
from lora_layout import CONFIG_FILE, MAX_CONFIG_BYTES

HUB_VARIABLE = "ACE_STUDIO_HUB_LORAS"
PEFT_FILE = "adapter_model.safetensors"
SUFFIX = ".safetensors"


def hub_id(text: str) -> tuple[str, str] | None:
    """Split "org/repo" or "org/repo:file" into repository and file ("" where none is named); None if it is neither."""
    repo, _, file = text.strip().partition(":")
    if not hub.is_repo_id(repo) or (":" in text and not is_inside(file)):
        return None
    return repo, file


def hub_allowed() -> bool:
    """Tell whether visitors may name repositories: always, but on a Space only with ACE_STUDIO_HUB_LORAS=1."""
    return not _on_space() or os.environ.get(HUB_VARIABLE, "") == "1"


def check_hub_allowed() -> None:
    """Raise StudioError where visitors may not name repositories."""
    if not hub_allowed():
        raise StudioError(
            "lora_hub_off",
            "This Space does not fetch LoRAs from Hugging Face.",
            FIELD,
            f"Upload the file, or set {HUB_VARIABLE}=1 in the Space's settings if it is yours.",
        )


def fetch(wanted: str, cancelled: Callable[[], bool]) -> Iterator[Progress]:
    """Fetch one LoRA into the Hugging Face cache; returns (its path, "org/repo:file", the commit).

    Where the hub cannot be reached, what the cache has is used.
    """
    repo_id, file = hub_id(wanted)
    try:
        running = LoraFetch(repo_id, file)
        yield from hub.watched(running, cancelled)
        name, commit = running.chosen, running.commit
    except StudioError as error:
        cached = _in_cache(repo_id, file) if error.problem.code in ("hub_unreachable", "offline") else None
        if cached is None:
            problem = error.problem
            raise StudioError(problem.code, problem.message, FIELD, problem.hint) from None
        name, commit = cached
    return hub.storage_of(repo_id) / "snapshots" / commit / name, f"{repo_id}:{name}", commit


# --- fetching -----------------------------------------------------------------------------------------------------


class LoraFetch(hub.Fetch):
    """The download of one safetensors file and the adapter_config.json beside it; `chosen` is the former's name."""

    def __init__(self, repo_id: str, file: str):
        super().__init__(repo_id, hub.Selection(sorted, "", "LoRA", "its name"))
        self._wanted = file
        self.chosen = ""
        # On a Space, visitors must not reach what only the owner's token opens.
        self.token = False if _on_space() else None

    def choose(self, there: list[hub.RepoFile], guarded: bool) -> list[hub.RepoFile]:
        """Choose the file that is wanted and its config; raises StudioError."""
        if guarded and _on_space():
            raise StudioError(
                "model_guarded", f"{self.repo_id} is not open to everybody, so this Space does not fetch it."
            )
        files = {file.name: file for file in there if is_inside(file.name)}
        self.chosen = _choose_file(self.repo_id, list(files), self._wanted)
        config = PurePosixPath(self.chosen).with_name(CONFIG_FILE).as_posix()
        chosen = [files[self.chosen], *([files[config]] if config in files else [])]
        for file, most in zip(chosen, (MAX_FILE_BYTES, MAX_CONFIG_BYTES), strict=False):
            if file.size > most:
                raise StudioError(
                    "lora_too_large",
                    f"{file.name} in {self.repo_id} is {size_text(file.size)}; up to {size_text(most)} are fetched.",
                )
        return chosen

    def plan(self, files: list[hub.RepoFile]) -> None:
        """Add up what there is to do; what is here already needs no announcement."""
        super().plan(files)
        if self.done():
            self.note = ""

    def explained(self, error: Exception) -> StudioError:
        """Put what went wrong into words; a LoRA is named in a form, not in a variable."""
        explained = super().explained(error)
        if explained.problem.code != "model_unknown":
            return explained
        return StudioError(
            "lora_unknown",
            f"Hugging Face knows no repository {self.repo_id}, or it is private.",
            hint="Check its spelling; a private one needs HF_TOKEN.",
        )


def _choose_file(repo_id: str, names: list[str], wanted: str) -> str:
    """Choose the safetensors file of a repository: the one that is named, the only one, or PEFT's own."""
    found = sorted(name for name in names if name.endswith(SUFFIX))
    if wanted in found:
        return wanted
    if not wanted and (len(found) == 1 or PEFT_FILE in found):
        return PEFT_FILE if PEFT_FILE in found else found[0]
    listed = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    if not found:
        raise StudioError(
            "lora_unknown", f"{repo_id} has no safetensors file in it.", hint="Only safetensors files are read."
        )
    if wanted:
        raise StudioError(
            "lora_unknown", f"{repo_id} has no safetensors file {shown(wanted)}.", hint=f"It has {listed}."
        )
    raise StudioError(
        "lora_unknown",
        f"{repo_id} has {len(found)} safetensors files.",
        hint=f"Name one, {repo_id}:{found[0]}: {listed}.",
    )


def _in_cache(repo_id: str, file: str) -> tuple[str, str] | None:
    """Return (file, commit) of what an earlier fetch left, or None."""
    storage = hub.storage_of(repo_id)
    try:
        commit = (storage / "refs" / constants.DEFAULT_REVISION).read_text(encoding="utf-8").strip()
        if not re.fullmatch("[0-9a-f]{40}", commit):
            return None
        snapshot = storage / "snapshots" / commit
        names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob(f"*{SUFFIX}") if path.exists()]
        return _choose_file(repo_id, names, file), commit
    except (OSError, StudioError):
        return None


def _on_space() -> bool:
    return bool(os.environ.get("SPACE_ID"))
