"""The job that goes to the GPU: plain picklable data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lora_sources import LoraSpec
from params import Request, Settings, SongRequest
from song_length import Automatic


@dataclass(frozen=True)
class Job:
    """One piece of GPU work. Deleting `folder/running` cancels it, also across processes."""

    request: Request
    seeds: tuple[int, ...]  # one per take
    variation_seeds: tuple[int, ...]
    folder: str
    # The paths of float WAV files in `folder`, by field ("reference").
    audio: dict[str, str] = field(default_factory=dict)
    loras: tuple[LoraSpec, ...] = ()  # in the order in which they are applied
    automatic: Automatic | None = None  # of a song whose length is automatic
    settings: Settings | None = None  # of a song

    @property
    def running(self) -> Path:
        return Path(self.folder, "running")

    @property
    def draft_wanted(self) -> Path:
        """Creating this file asks to hear the song as it is by now."""
        return Path(self.folder, "draft-wanted")

    def cancelled(self) -> bool:
        return not self.running.exists()


@dataclass(frozen=True)
class SongJob(Job):
    request: SongRequest
    # For the checkpoint of the machine that makes the song.
    settings: Settings = field(kw_only=True)
    offers_draft: bool = False  # whether it can be heard on request from half of the steps on
