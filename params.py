"""What a request may say: one request type a mode and its validation.

A wrong value becomes a `Problem`: a sentence that names the field and the allowed range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

import audio
from events import InvalidRequest, Problem
from limits import (
    ACTIONS,
    FORMATS,
    INSTRUMENTAL,
    LANGUAGES,
    LEAST_REGION_SECONDS,
    LIMITS,
    MAX_SEED,
    MAX_SOURCE_SECONDS,
    MEMORY_PLANS,
    MOST_LORAS,
    PREVIEW_STEPS,
    QUALITY_STEPS,
    REPAINT_MODES,
    SAMPLE_RATE,
    SAMPLERS,
    TEXT_LIMITS,
    TRACKS,
    choice,
    flag,
    number,
    parse_key,
    parse_time_signature,
    samples_in,
    shown,
    text,
    track_names,
    wrong,
    wrong_at,
)


def source_path(value: object) -> str:
    """Return the path of a source; what is in the file is checked when it is read (audio.py)."""
    if isinstance(value, str) and value:
        return value
    raise wrong(f"Source must be an audio file of 1 to {MAX_SOURCE_SECONDS} seconds; none was given.")


class Strict(BaseModel):
    """Values that do not change any more; a name that is none of theirs is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraChoice(Strict):
    """A LoRA and how much it acts; `source` is "org/repo", "org/repo:file" or an uploaded file."""

    source: str
    weight: float


def lora_choices(value: object) -> tuple[LoraChoice, ...]:
    """Return up to `MOST_LORAS` LoRAs in their order, from objects with source and weight or from sources alone."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise wrong(f"LoRAs must be a list of objects with source and weight, not {shown(value)}.")
    if len(value) > MOST_LORAS:
        raise wrong(f"LoRAs must be from 0 to {MOST_LORAS}, not {len(value)}.")
    return tuple(_lora(place, item) for place, item in enumerate(value, 1))


def _lora(place: int, item: object) -> LoraChoice:
    if isinstance(item, LoraChoice):
        return item
    item = {"source": item} if isinstance(item, str) else item
    if not isinstance(item, Mapping) or not isinstance(item.get("source"), str) or not item["source"].strip():
        raise wrong(
            f'LoRA {place} must name its source: "org/repo", "org/repo:file" or an uploaded file.',
        )
    if unknown := sorted(map(str, item.keys() - {"source", "weight"})):
        raise wrong(f"{shown(unknown[0])} of LoRA {place} is not known here. Known: source, weight.")
    weight, limit = item.get("weight", LIMITS["lora_weight"].default), LIMITS["lora_weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not limit.low <= weight <= limit.high:
        raise wrong(f"The weight of LoRA {place} must be from {limit.low:g} to {limit.high:g}, not {shown(weight)}.")
    return LoraChoice(source=item["source"].strip(), weight=float(weight))


Source = Annotated[str, BeforeValidator(source_path), Field(validate_default=True)]
"""A missing one gets the sentence of an empty one."""


class Options(Strict):
    """The advanced settings of a song; None means the checkpoint's own default."""

    steps: number("steps") = None
    guidance: number("guidance") = None
    shift: number("shift") = None
    sampler: choice("Sampler", SAMPLERS) = "ode"
    cfg_start: number("cfg_start") = 0.0
    cfg_end: number("cfg_end") = 1.0
    format: choice("Format", FORMATS) = "wav"
    loudness: number("loudness") = None
    fade_out: number("fade_out") = 0.0
    variation: number("variation") = 0.0
    variation_seed: number("variation_seed") = -1
    timbre_token: flag("Timbre token") = True
    memory_plan: choice("Memory plan", MEMORY_PLANS) = "auto"
    loras: Annotated[tuple[LoraChoice, ...], BeforeValidator(lora_choices)] = ()

    @model_validator(mode="after")
    def _interval(self):
        if self.cfg_start > self.cfg_end:
            raise wrong_at(
                "cfg_end",
                f"Guidance ends at must not be below Guidance starts at ({self.cfg_start:g}), "
                f"not {self.cfg_end:g}; both are from 0 to 1.",
            )
        return self


class SongWords(Strict):
    """A song in words; None, "" and the language "unknown" leave a field open."""

    needs_words: ClassVar[bool] = True

    prompt: text("prompt") = ""
    lyrics: text("lyrics") = ""
    instrumental: flag("Instrumental") = False
    bpm: number("bpm") = None
    key: Annotated[str, BeforeValidator(parse_key)] = ""
    time_signature: Annotated[str, BeforeValidator(parse_time_signature)] = ""
    language: choice("Language", LANGUAGES) = "unknown"

    def sung_lyrics(self) -> str:
        """Return the lyrics the model gets: the instrumental switch wins, and no lyrics mean no singing."""
        return INSTRUMENTAL if self.instrumental or not self.lyrics else self.lyrics

    @model_validator(mode="after")
    def _says_something(self):
        if self.needs_words and not self.prompt and (self.instrumental or not self.lyrics):
            switched_off = "Say what the song sounds like: Instrumental switches the lyrics off."
            raise wrong_at("prompt", switched_off if self.lyrics else "Say what the song sounds like, or add lyrics.")
        return self


class SongRequest(SongWords):
    """What every song endpoint takes (design: the contract)."""

    takes: number("takes") = 1
    quality: choice("Quality", QUALITY_STEPS) = "standard"
    seed: number("seed") = -1
    options: Options = Field(default_factory=Options)

    @model_validator(mode="after")
    def _seeds_fit(self):
        if self.seed + self.takes - 1 > MAX_SEED:
            raise wrong_at("seed", f"Seed must be from -1 to {MAX_SEED - self.takes + 1} for {self.takes} takes.")
        return self

    def song_seconds(self, source: float) -> float:
        """Return the length of the whole song, for a source of `source` seconds."""
        return source


class GenerateOptions(Options):
    """`plan` lets the planner write metadata and audio codes first, `rewrite` the prompt too, where there is one."""

    plan: flag("Plan the song first") = True
    plan_seed: number("plan_seed") = -1
    plan_temperature: number("plan_temperature") = 0.85
    plan_cfg: number("plan_cfg") = 2.0
    rewrite: flag("Let it rewrite my prompt") = False


class GenerateRequest(SongRequest):
    """A song from words: `duration` in seconds, `reference` an optional audio file that lends its timbre."""

    mode: Literal["generate"] = "generate"
    duration: number("duration") = 60.0
    reference: str | None = None
    options: GenerateOptions = Field(default_factory=GenerateOptions)

    def song_seconds(self, source: float) -> float:
        return self.duration


class CoverOptions(Options):
    """`noise_strength` 0 starts from noise alone, 1 from the source itself."""

    noise_strength: number("noise_strength") = 0.0


class CoverRequest(SongRequest):
    """A new version of `source`, as long as it; `strength` is the share of the steps that follow its melody."""

    mode: Literal["cover"] = "cover"
    source: Source = None
    reference: str | None = None
    strength: number("strength") = 0.8
    options: CoverOptions = Field(default_factory=CoverOptions)


class ExtendOptions(Options):
    """`overlap`: seconds of the source at each new end that are made anew and faded into."""

    overlap: number("overlap") = 2.0


class ExtendRequest(SongRequest):
    """`source` with `before` and `after` seconds of new music at its ends."""

    mode: Literal["extend"] = "extend"
    source: Source = None
    before: number("before") = 0.0
    after: number("after") = 30.0
    options: ExtendOptions = Field(default_factory=ExtendOptions)

    def song_seconds(self, source: float) -> float:
        return self.before + source + self.after

    @model_validator(mode="after")
    def _adds_something(self):
        if not samples_in(self.before) + samples_in(self.after):
            raise wrong_at("after", "Seconds before and Seconds after, each from 0 to 300, must not both be 0.")
        return self


class EditOptions(Options):
    """Repaint: `repaint_mode`, `repaint_strength`. Morph: `n_min`, `n_max`, `n_avg`. Layer: `mix` adds the source."""

    repaint_mode: choice("Repaint mode", REPAINT_MODES) = "balanced"
    repaint_strength: number("repaint_strength") = 0.5
    n_min: number("n_min") = 0.0
    n_max: number("n_max") = 1.0
    n_avg: number("n_avg") = 1
    mix: flag("Mix") = False

    @model_validator(mode="after")
    def _morph_interval(self):
        if self.n_min >= self.n_max:
            raise wrong_at(
                "n_max",
                f"Morph ends at must be from 0 to 1 and above Morph starts at ({self.n_min:g}), not {self.n_max:g}.",
            )
        return self


# An option that another action would ignore is refused rather than dropped.
ACTION_OPTIONS = {
    "repaint": {"repaint_mode", "repaint_strength"},
    "morph": {"n_min", "n_max", "n_avg"},
    "layer": {"mix"},
    "extract": set(),
    "complete": set(),
}
CHOOSE_TRACK = {
    "layer": "Choose the track to add.",
    "extract": "Choose the track to take out.",
    "complete": "Choose the tracks to add.",
}


class EditRequest(SongRequest):
    """A change to `source` that keeps its length; `end` 0 means the end of the file."""

    needs_words: ClassVar[bool] = False
    mode: Literal["edit"] = "edit"
    source: Source = None
    action: choice("Action", ACTIONS) = "repaint"
    start: number("start") = 0.0
    end: number("end") = 0.0
    source_prompt: text("source_prompt") = ""
    source_lyrics: text("source_lyrics") = ""
    tracks: Annotated[tuple[str, ...], BeforeValidator(track_names)] = ()
    options: EditOptions = Field(default_factory=EditOptions)

    @model_validator(mode="after")
    def _fits_its_action(self):
        self._check_tracks()
        self._check_region()
        specific = set().union(*ACTION_OPTIONS.values()) - ACTION_OPTIONS[self.action]
        for name in sorted(specific & self.options.model_fields_set):
            owner = next(action for action, names in ACTION_OPTIONS.items() if name in names)
            raise wrong_at(f"options.{name}", f"{shown(name)} belongs to the action {owner}, not to {self.action}.")
        return self

    def _check_tracks(self) -> None:
        count = len(self.tracks)
        if self.action not in CHOOSE_TRACK:
            if count:
                raise wrong_at("tracks", f"Tracks are for layer, extract and complete, not for {self.action}.")
        elif not count:
            raise wrong_at("tracks", CHOOSE_TRACK[self.action])
        elif count > 1 and self.action != "complete":
            known = ", ".join(TRACKS)
            raise wrong_at("tracks", f"Tracks must name exactly one track for {self.action}, not {count}: {known}.")

    def _check_region(self) -> None:
        if self.action not in ("repaint", "layer"):
            if self.start or self.end:
                field = "start" if self.start else "end"
                raise wrong_at(
                    field, f"Start and End choose a region for repaint and layer; {self.action} takes the whole file."
                )
            return
        if self.end and samples_in(self.end) - samples_in(self.start) < samples_in(LEAST_REGION_SECONDS):
            raise wrong_at(
                "end",
                f"End must be at least {LEAST_REGION_SECONDS:g} seconds after Start ({self.start:g}) or 0, "
                f"which means the end of the file, not {self.end:g}.",
            )


class LyricsOptions(Strict):
    """How the next word is chosen, and how many tokens there may be; `temperature` 0 always takes the likeliest."""

    temperature: number("temperature") = 0.8
    top_p: number("top_p") = 0.9
    max_tokens: number("max_tokens") = 1_024


class LyricsRequest(Strict):
    """Lyrics from a brief: `structure` is the name of a preset or free text, "" leaves it to the writer."""

    mode: Literal["lyrics"] = "lyrics"
    # A missing brief gets the sentence of an empty one.
    brief: text("brief", wanted="say what the song is about") = Field(default="", validate_default=True)
    structure: text("structure") = ""
    language: choice("Language", LANGUAGES) = "en"
    tone: text("tone") = ""
    seed: number("seed") = -1
    options: LyricsOptions = Field(default_factory=LyricsOptions)


class InspireRequest(Strict):
    """Prompt, lyrics and metadata from a plain `idea`, which may be empty."""

    mode: Literal["inspire"] = "inspire"
    idea: text("idea") = ""
    instrumental: flag("Instrumental") = False
    language: choice("Language", LANGUAGES) = "unknown"
    seed: number("seed") = -1


class PolishRequest(SongWords):
    """The same song in the words that the song model knows; given fields stay."""

    mode: Literal["polish"] = "polish"
    duration: number("duration") = 60.0
    seed: number("seed") = -1


class DescribeRequest(Strict):
    """What the recording `source` sounds like, in words."""

    mode: Literal["describe"] = "describe"
    source: Source = None
    seed: number("seed") = -1


class AlignRequest(SongWords):
    """When each line of `lyrics` is sung in the finished song `source`; the rest is what its record says of it.

    `steps` is how many it was made in, None the checkpoint's usual number; `planned` whether its plan was used.
    """

    needs_words: ClassVar[bool] = False
    mode: Literal["align"] = "align"
    source: Source = None
    steps: number("steps") = None
    planned: flag("Planned") = False
    seed: number("seed") = -1

    @model_validator(mode="after")
    def _is_sung(self):
        if self.sung_lyrics() == INSTRUMENTAL:
            most = TEXT_LIMITS["lyrics"]
            raise wrong_at("lyrics", f"Lyrics must have from 1 to {most:,} characters: without them nothing is sung.")
        return self


Request = SongRequest | LyricsRequest | InspireRequest | PolishRequest | DescribeRequest | AlignRequest
SONG_REQUESTS: dict[str, type[SongRequest]] = {
    "generate": GenerateRequest,
    "cover": CoverRequest,
    "extend": ExtendRequest,
    "edit": EditRequest,
}
REQUESTS: dict[str, type[Request]] = {
    **SONG_REQUESTS,
    "lyrics": LyricsRequest,
    "inspire": InspireRequest,
    "polish": PolishRequest,
    "describe": DescribeRequest,
    "align": AlignRequest,
}


def parse_request(mode: str, values: Mapping[str, Any]) -> Request:
    """Build the request of `mode`; raises InvalidRequest with one sentence for each wrong field."""
    values = dict(values)
    if "options" in REQUESTS[mode].model_fields:
        options = values.get("options")
        if options is None:
            values["options"] = {}
        elif not isinstance(options, Mapping | REQUESTS[mode].model_fields["options"].annotation):
            raise InvalidRequest((Problem("invalid", f"Options must be an object, not {shown(options)}.", "options"),))
    try:
        return REQUESTS[mode].model_validate(values)
    except ValidationError as error:
        raise InvalidRequest(tuple(_problem(mode, item) for item in error.errors())) from None


def _problem(mode: str, item: dict[str, Any]) -> Problem:
    told = item.get("ctx", {})
    path = [*map(str, item["loc"]), *filter(None, [told.get("field")])]
    name = ".".join(path)
    if item["type"] == "extra_forbidden":
        fields = REQUESTS[mode].model_fields
        names = fields["options"].annotation.model_fields if len(path) > 1 else fields
        known = ", ".join(sorted(names.keys() - {"mode"}))
        return Problem("invalid", f"{shown(name)} is not known here. Known: {known}.", name)
    return Problem("invalid", told.get("sentence") or f"{name} is not understood: {item['msg']}.", name)


# --- uploads ----------------------------------------------------------------------------------------------------------

AUDIO_FIELDS = ("source", "reference")


def upload_seconds(path: str, field: str = "source") -> float:
    """Return how long the file is once it is decoded, in whole samples at 48 kHz.

    Raises InvalidRequest at `field` where the file is not audio, is damaged, or is too short, too long or too large.
    """
    try:
        return round(audio.duration_of(path) * SAMPLE_RATE) / SAMPLE_RATE
    except audio.AudioError as error:
        raise InvalidRequest((Problem("bad_audio", error.message, field, error.hint),)) from None


def check_audio(request: Request) -> float:
    """Check the files that a request names, and the request against its source, whose seconds are returned (or 0).

    Raises InvalidRequest with a problem for each file that cannot be used, or else for what does not fit the source.
    """
    seconds: dict[str, float] = {}
    problems: list[Problem] = []
    for field in AUDIO_FIELDS:
        path = getattr(request, field, None)
        if not path:
            continue
        try:
            seconds[field] = upload_seconds(path, field)
        except InvalidRequest as error:
            problems += error.problems
    if problems:
        raise InvalidRequest(tuple(problems))
    if "source" in seconds:
        check_source(request, seconds["source"])
    return seconds.get("source", 0.0)


def check_source(request: Request, seconds: float) -> None:
    """Check what depends on the source's length in seconds; raises InvalidRequest with the field and the range.

    Times are compared as samples: a length that a client computed, or that was resampled, may be off by a fraction.
    """
    length, total = f"{seconds:.6g}", samples_in(seconds)
    if isinstance(request, ExtendRequest):
        room = MAX_SOURCE_SECONDS - seconds
        if samples_in(request.before) + total + samples_in(request.after) > samples_in(MAX_SOURCE_SECONDS):
            field = "after" if request.after >= request.before else "before"
            message = (
                f"Seconds before and after together must be from 0 to {max(room, 0):.6g} for a source of {length} "
                f"seconds (a song lasts up to {MAX_SOURCE_SECONDS}), not {request.before + request.after:g}."
            )
            raise InvalidRequest((Problem("invalid", message, field),))
    if isinstance(request, EditRequest) and request.action in ("repaint", "layer"):
        start, end = samples_in(request.start), samples_in(request.end) or total
        problem = None
        if start > total - samples_in(LEAST_REGION_SECONDS):
            latest = max(seconds - LEAST_REGION_SECONDS, 0)
            problem = "start", f"Start must be from 0 to {latest:.6g} seconds in this source, not {request.start:g}."
        elif end > total:
            problem = "end", f"End must be from 0 to {length} seconds, the length of this source, not {request.end:g}."
        elif request.action == "repaint" and start == 0 and end == total:
            problem = (
                "end",
                f"Start and End must leave some of the source (0 to {length} seconds) as it is; to change all of it, "
                "use Cover or Morph.",
            )
        if problem:
            raise InvalidRequest((Problem("invalid", problem[1], problem[0]),))


# --- what the checkpoint makes of it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    steps: int
    guidance: float
    shift: float


def usual_sampling(quality: str, kind: str = "sft") -> Sampling:
    """Return the numbers of a run whose options name none, for a `weights.checkpoint_kind`.

    A turbo checkpoint has guidance distilled into its weights and an 8-step schedule of shift 3 (upstream's table).
    """
    if kind == "turbo":
        return Sampling(8, 1.0, 3.0)
    return Sampling((PREVIEW_STEPS if kind == "preview" else QUALITY_STEPS)[quality], 7.0, 1.0)


def sampling_settings(request: SongRequest, kind: str = "sft") -> tuple[Sampling, list[str]]:
    """Resolve quality and options for a checkpoint; returns the numbers and sentences on what could not be followed."""
    options, usual, notes = request.options, usual_sampling(request.quality, kind), []
    asked = {name: getattr(options, name) for name in ("steps", "guidance", "shift")}
    if kind == "turbo":
        asked["guidance"] = None
        if options.guidance is not None and options.guidance > 1:
            notes.append("Guidance was left out: this turbo checkpoint has it built in.")
        if options.steps is None and request.quality != "standard":
            notes.append("A turbo checkpoint makes every quality in 8 steps; Steps under Advanced changes that.")
    return replace(usual, **{name: value for name, value in asked.items() if value is not None}), notes
