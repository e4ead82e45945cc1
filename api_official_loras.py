"""The LoRA that each client of the official REST API has loaded, for its own tasks alone.

The official server has one LoRA for everybody. Here a client is a key or an address, and its LoRA
acts on no song of the page and on no task of another client. Files come only from the studio's LoRA
folder.
"""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bootstrap
import lora_sources
import served
from backend import Backend
from events import StudioError
from limits import shown
from lora_format import CONFIG_FILE
from lora_sources import PEFT_FILE
from params import LoraChoice

FOLDER = "ACE_STUDIO_LORAS"
MOST_CLIENTS = 200
NONE_LOADED = "No LoRA is loaded."


@dataclass(frozen=True)
class Loaded:
    """A client's LoRA: a repository, or a file or folder of the LoRA folder."""

    source: str
    name: str
    scale: float = 1.0
    on: bool = True


def folder() -> Path:
    """Return the folder whose LoRAs these programs may name."""
    named = os.environ.get(FOLDER)
    return Path(named or Path(__file__).with_name("loras")).expanduser().resolve()


class ClientLoras:
    """The LoRAs of all clients, up to one each."""

    def __init__(self, studio: Backend):
        self._studio = studio
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()

    def load(self, client: str, path: str, name: str) -> None:
        """Use the LoRA that `path` names in a client's tasks; raises StudioError if that is impossible."""
        path = path.strip()
        source = self._source_of(path)
        self._keep(client, Loaded(source, name or Path(path).stem or "default"))

    def _source_of(self, path: str) -> str:
        """Return the source of a LoRA in the LoRA folder, or else on Hugging Face; raises StudioError."""
        place = _found(path)
        if place is not None:
            info = lora_sources.inspect(place, self._studio.widths())
            if info.problem:
                raise StudioError.from_problem(info.problem)
            return str(place)
        if lora_sources.hub_id(path) is None:
            message = f"There is no LoRA {shown(path, 80)} in the LoRA folder."
            hint = f"{FOLDER} names that folder; org/repo on Hugging Face works too."
            raise StudioError("lora_missing", message, hint=hint)
        if not lora_sources.hub_allowed():
            raise StudioError("lora_hub_off", "LoRAs on Hugging Face are switched off here.")
        return path

    def unload(self, client: str) -> None:
        self._loaded.pop(client, None)

    def toggle(self, client: str, on: bool) -> str:
        """Switch a client's LoRA on or off; return a sentence if it has none, otherwise ""."""
        found = self._loaded.get(client)
        if found is None:
            return NONE_LOADED if on else ""
        self._keep(client, replace(found, on=on))
        return ""

    def scale(self, client: str, scale: float) -> str:
        """Set the weight of a client's LoRA; return a sentence if it has none, otherwise ""."""
        found = self._loaded.get(client)
        if found is None:
            return NONE_LOADED
        self._keep(client, replace(found, scale=scale))
        return ""

    def status(self, client: str) -> dict[str, Any]:
        """Return a client's LoRA in the form of the official API."""
        loaded = self._loaded.get(client)
        if loaded is None:
            return {
                "lora_loaded": False,
                "use_lora": False,
                "lora_scale": 1.0,
                "adapter_type": None,
                "scales": {},
                "active_adapter": None,
                "adapters": [],
                "synthetic_default_mode": False,
            }
        return {
            "lora_loaded": True,
            "use_lora": loaded.on,
            "lora_scale": loaded.scale,
            "adapter_type": "lora",
            "scales": {loaded.name: loaded.scale},
            "active_adapter": loaded.name,
            "adapters": [loaded.name],
            "synthetic_default_mode": False,
        }

    def choices(self, client: str) -> tuple[LoraChoice, ...]:
        """Return the LoRAs for a song of this client, at most one; raises StudioError if its file is gone."""
        found = self._loaded.get(client)
        if found is None or not found.on:
            return ()
        source = found.source
        if os.path.isabs(source):
            source = str(_staged(Path(source)))
        return (LoraChoice(source=source, weight=found.scale),)

    def _keep(self, client: str, loaded: Loaded) -> None:
        self._loaded[client] = loaded
        self._loaded.move_to_end(client)
        while len(self._loaded) > MOST_CLIENTS:
            self._loaded.popitem(last=False)


def _found(path: str) -> Path | None:
    """Return the file or PEFT folder that `path` names within the LoRA folder, links resolved."""
    if "\0" in path or not path:
        return None
    home = folder()
    with suppress(OSError):
        real = Path(os.path.realpath(home / path))  # an absolute `path` stays itself
        is_lora = real.is_file() or (real / PEFT_FILE).is_file()
        if is_lora and real.is_relative_to(home):
            return real
    return None


def _staged(place: Path) -> Path:
    """Copy a LoRA into the folder of uploads, where songs look for theirs, and return the copy's path.

    Raises StudioError if the LoRA is gone.
    """
    file = place
    if place.is_dir():
        file = place / PEFT_FILE
    try:
        digest = lora_sources.sha256_of(file)
        target = bootstrap.page_folder() / digest / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        for source in (file, file.with_name(CONFIG_FILE)):
            copy = target.with_name(source.name)
            if source.is_file() and not copy.exists():
                served.make_room(source.stat().st_size)
                shutil.copyfile(source, copy)
            served.touch(copy)
    except OSError:
        raise StudioError("lora_missing", f"The LoRA {shown(place.name)} is gone.") from None
    return target
