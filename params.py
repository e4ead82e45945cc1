"""One request type per mode, and the checks of its uploads; a `Problem` names the wrong field and its range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

import audio
import limits
import lyrics_tags
from events import InvalidRequest, Problem, UnknownName
from limits import (
    INSTRUMENTAL,
    LIMITS,
    MAX_SOURCE_SECONDS,
    choice,
    field_error,
    flag,
    number,
    number_or_none,
    samples_in,
    shown,
    text,
    usual,
    usual_count,
)
from lyrics_passage import Passage


class Strict(BaseModel):
    """A frozen model that rejects unknown names; `model_post_init` checks whether valid fields fit together."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(Strict):
    mode: ClassVar[str]

    if TYPE_CHECKING:
        seed: int  # every request has one, but not in the same place among its parameters

    def __init_subclass__(cls, mode: str = "") -> None:
        if mode:
            cls.mode = mode
            REQUESTS[mode] = cls


REQUESTS: dict[str, type[Request]] = {}


class LoraChoice(Strict):
    source: str  # "org/repo", "org/repo:file" or an uploaded file
    weight: float


def lora_choices(value: object) -> tuple[LoraChoice, ...]:
    """Return up to `MOST_LORAS` LoRAs in order, from objects with source and weight, or from sources alone."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise field_error(
            f"LoRAs must be a list of objects with source and weight, not {shown(value)}."
        )
    if len(value) > limits.MOST_LORAS:
        raise field_error(
            f"The number of LoRAs must be from 0 to {limits.MOST_LORAS}, not {len(value)}."
        )
    return tuple(_lora_choice(place, item) for place, item in enumerate(value, 1))


def _lora_choice(place: int, item: object) -> LoraChoice:
    """Return the LoRA at `place` in a list, counted from 1."""
    if isinstance(item, str):
        item = {"source": item}
    source = item.get("source") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or not isinstance(source, str) or not source.strip():
        raise field_error(
            f'LoRA {place} must name its source: "org/repo", "org/repo:file" or an uploaded file.'
        )
    unknown = sorted(map(str, item.keys() - {"source", "weight"}))
    if unknown:
        raise field_error(
            f"{shown(unknown[0])} is not a setting of LoRA {place}. Settings: source, weight."
        )
    limit = replace(LIMITS["lora_weight"], label=f"The weight of LoRA {place}")
    weight = limit.parse_given(item.get("weight", limit.default))
    return LoraChoice(source=source.strip(), weight=weight)


def _source(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise field_error(
        f"Source is missing: add an audio file of 1 second to {MAX_SOURCE_SECONDS // 60} minutes."
    )


# The default is validated, so that a missing source gets the sentence of an empty one.
Source = Annotated[str, BeforeValidator(_source), Field(default=None, validate_default=True)]


class Options(Strict):
    """The advanced settings of a song; None means the checkpoint's own default."""

    steps: Annotated[int | None, number("steps")] = None
    guidance: Annotated[float | None, number("guidance")] = None
    shift: Annotated[float | None, number("shift")] = None
    sampler: Annotated[str, choice("Sampler", limits.SAMPLERS)] = "ode"
    cfg_start: Annotated[float, number("cfg_start")] = usual("cfg_start")
    cfg_end: Annotated[float, number("cfg_end")] = usual("cfg_end")
    format: Annotated[str, choice("Format", limits.FORMATS)] = "wav"
    loudness: Annotated[float | None, number("loudness")] = None
    fade_out: Annotated[float, number("fade_out")] = usual("fade_out")
    variation: Annotated[float, number("variation")] = usual("variation")
    variation_seed: Annotated[int, number("variation_seed")] = usual_count("variation_seed")
    timbre_token: Annotated[bool, flag("Timbre token")] = True
    # so many songs are made, and the best of them become the takes; None makes the takes alone
    best_of: Annotated[int | None, number("best_of")] = None
    score: Annotated[tuple[str, ...], BeforeValidator(limits.score_parts)] = tuple(
        limits.SCORE_PARTS
    )
    memory_plan: Annotated[str, choice("Memory plan", limits.MEMORY_PLANS)] = "auto"
    # the song model; "" is the one that the studio was started for
    model: Annotated[str, BeforeValidator(limits.parse_model)] = ""
    loras: Annotated[tuple[LoraChoice, ...], BeforeValidator(lora_choices)] = ()

    def model_post_init(self, context: Any) -> None:
        start = self.cfg_start
        end = self.cfg_end
        if start > end:
            raise field_error(
                f"Guidance ends at must be from {start:g} (Guidance starts at) to 1, not {end:g}.",
                "cfg_end",
            )
        if self.best_of is not None and not self.score:
            raise field_error(
                "Best of needs at least one part of the score to compare by.", "best_of"
            )


def _as_read(lyrics: str) -> str:
    return lyrics_tags.as_read(lyrics).strip()


class SongWords(Request):
    """A song in words; None, "" and the language "unknown" leave a field open."""

    needs_words: ClassVar[bool] = True

    prompt: Annotated[str, text("prompt")] = ""
    lyrics: Annotated[str, text("lyrics"), AfterValidator(_as_read)] = ""
    instrumental: Annotated[bool, flag("Instrumental")] = False
    bpm: Annotated[int | None, number("bpm")] = None
    key: Annotated[str, BeforeValidator(limits.parse_key)] = ""
    time_signature: Annotated[str, BeforeValidator(limits.parse_time_signature)] = ""
    language: Annotated[str, choice("Language", limits.LANGUAGES)] = "unknown"

    def sung_lyrics(self) -> str:
        if self.instrumental or not self.lyrics:
            return INSTRUMENTAL
        return self.lyrics

    def model_post_init(self, context: Any) -> None:
        if self.needs_words and not self.prompt and self.sung_lyrics() == INSTRUMENTAL:
            if self.lyrics:
                raise field_error(
                    "Prompt is empty, and an instrumental does not sing its lyrics. Describe the song.",
                    "prompt",
                )
            if self.instrumental:
                raise field_error("Prompt is empty. Describe the song.", "prompt")
            raise field_error("Prompt is empty. Describe the song, or add lyrics.", "prompt")


class SongRequest(SongWords):
    takes: Annotated[int, number("takes")] = usual_count("takes")
    quality: Annotated[str, choice("Quality", limits.QUALITY_STEPS)] = "standard"
    seed: Annotated[int, number("seed")] = usual_count("seed")
    options: Options = Field(default_factory=Options)

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        best_of = self.options.best_of
        if best_of is not None and best_of < self.takes:
            high = limits.LIMITS["best_of"].high
            raise field_error(
                f"Best of must be from {self.takes} (Takes) to {high:g}, not {best_of}.",
                "options.best_of",
            )
        most = limits.MAX_SEED - self.songs + 1
        if self.seed > most:
            raise field_error(
                f"Seed must be from -1 to {most} for {self.songs} takes, not {self.seed}.", "seed"
            )

    @property
    def songs(self) -> int:
        """How many songs are made; the takes are the best of them."""
        return self.options.best_of or self.takes

    def song_seconds(self, source: float) -> float:
        """Return the length of the finished song for a source of `source` seconds."""
        return source


class GenerateOptions(Options):
    # The planner writes metadata and audio codes before the song is made.
    plan: Annotated[bool, flag("Plan the song first")] = True
    plan_seed: Annotated[int, number("plan_seed")] = usual_count("plan_seed")
    plan_temperature: Annotated[float, number("plan_temperature")] = usual("plan_temperature")
    plan_cfg: Annotated[float, number("plan_cfg")] = usual("plan_cfg")
    # The share of the steps that follow the plan's audio codes.
    plan_strength: Annotated[float, number("plan_strength")] = usual("plan_strength")
    exclude: Annotated[str, text("exclude")] = ""  # what the plan's guidance leads away from
    rewrite: Annotated[bool, flag("Rewrite my prompt")] = False


class GenerateRequest(SongRequest, mode="generate"):
    # None lets the planner or the lyrics decide.
    duration: Annotated[float | None, number_or_none("duration")] = usual("duration")
    reference: str | None = None  # an audio file whose timbre the song borrows
    options: GenerateOptions = Field(default_factory=GenerateOptions)

    def song_seconds(self, source: float) -> float:
        """Return the length, or the longest that an automatic one may become."""
        if self.duration is None:
            return limits.AUTOMATIC_SECONDS
        return self.duration


class CoverOptions(Options):
    # 0 starts from pure noise, 1 from the source itself.
    noise_strength: Annotated[float, number("noise_strength")] = usual("noise_strength")
    # Which aspect of the source the steps follow.
    detail: Annotated[str, choice("Detail", limits.DETAILS)] = "codes"


class CoverRequest(SongRequest, mode="cover"):
    source: Source
    reference: str | None = None
    # The share of the steps that follow the source's melody.
    strength: Annotated[float, number("strength")] = usual("strength")
    options: CoverOptions = Field(default_factory=CoverOptions)


class ExtendOptions(Options):
    # Seconds of the source that are regenerated and crossfaded at each new end.
    overlap: Annotated[float, number("overlap")] = usual("overlap")


class ExtendRequest(SongRequest, mode="extend"):
    source: Source
    before: Annotated[float, number("before")] = usual("before")
    after: Annotated[float, number("after")] = usual("after")
    options: ExtendOptions = Field(default_factory=ExtendOptions)

    def song_seconds(self, source: float) -> float:
        return self.before + source + self.after

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        if not samples_in(self.before) + samples_in(self.after):
            raise field_error(
                "Seconds before and Seconds after, each from 0 to 300, must not both be 0.", "after"
            )


class EditOptions(Options):
    repaint_mode: Annotated[str, choice("Repaint mode", limits.REPAINT_MODES)] = "balanced"
    repaint_strength: Annotated[float, number("repaint_strength")] = usual("repaint_strength")
    n_min: Annotated[float, number("n_min")] = usual("n_min")
    n_max: Annotated[float, number("n_max")] = usual("n_max")
    n_avg: Annotated[int, number("n_avg")] = usual_count("n_avg")
    mix: Annotated[bool, flag("Mix")] = False

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        start = self.n_min
        end = self.n_max
        if start >= end:
            raise field_error(
                f"Morph ends at must be up to 1 and above Morph starts at ({start:g}), not {end:g}.",
                "n_max",
            )


# The options of each action; with another action they are errors.
ACTION_OPTIONS: dict[str, set[str]] = {
    "repaint": {"repaint_mode", "repaint_strength"},
    "morph": {"n_min", "n_max", "n_avg"},
    "layer": {"mix"},
    "extract": set(),
    "complete": set(),
}
REGION_ACTIONS = ("repaint", "layer")
CHOOSE_TRACK = {
    "layer": "Choose the track to add.",
    "extract": "Choose the track to take out.",
    "complete": "Choose the tracks to add.",
}


class EditRequest(SongRequest, mode="edit"):
    needs_words: ClassVar[bool] = False
    source: Source
    action: Annotated[str, choice("Action", limits.ACTIONS)] = "repaint"
    start: Annotated[float, number("start")] = usual("start")
    end: Annotated[float, number("end")] = usual("end")  # 0 means the end of the file
    # Several regions, instead of `start` and `end`.
    regions: Annotated[tuple[tuple[float, float], ...], BeforeValidator(limits.parse_regions)] = ()
    source_prompt: Annotated[str, text("source_prompt")] = ""
    source_lyrics: Annotated[str, text("source_lyrics"), AfterValidator(_as_read)] = ""
    tracks: Annotated[tuple[str, ...], BeforeValidator(limits.track_names)] = ()
    options: EditOptions = Field(default_factory=EditOptions)

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self._check_tracks()
        self._check_regions()
        for action, names in ACTION_OPTIONS.items():
            for name in sorted(names & self.options.model_fields_set - ACTION_OPTIONS[self.action]):
                raise field_error(
                    f"{shown(name)} belongs to the action {action}, not to {self.action}.",
                    f"options.{name}",
                )

    def _check_tracks(self) -> None:
        action = self.action
        count = len(self.tracks)
        if action not in CHOOSE_TRACK and count:
            raise field_error(
                f"Tracks are for layer, extract and complete, not for {action}.", "tracks"
            )
        if action in CHOOSE_TRACK and not count:
            raise field_error(CHOOSE_TRACK[action], "tracks")
        if count > 1 and action != "complete":
            names = ", ".join(limits.TRACKS)
            raise field_error(
                f"Tracks must name exactly one track for {action}, not {count}: {names}.", "tracks"
            )

    def _check_regions(self) -> None:
        action = self.action
        start = self.start
        end = self.end
        if action not in REGION_ACTIONS and (start or end):
            raise field_error(
                f"Start and End select a region for repaint and layer; {action} uses the whole file.",
                "start" if start else "end",
            )
        if action not in REGION_ACTIONS and self.regions:
            raise field_error(
                f"Regions are for repaint and layer; {action} uses the whole file.", "regions"
            )
        if self.regions and (start or end):
            raise field_error(
                "Regions replace Start and End: give either regions, or one start and end.",
                "regions",
            )
        least = limits.LEAST_REGION_SECONDS
        if end and samples_in(end) - samples_in(start) < samples_in(least):
            raise field_error(
                f"End must be at least {least:g} seconds after Start ({start:g}), or 0 for the end of the file, "
                f"not {end:g}.",
                "end",
            )


# What the songwriter writes; the planner writes the other words.
OF_SONGWRITER = ("lyrics", "rewrite")
REWRITTEN_TOKENS = 64  # for each line that is rewritten


class LyricsOptions(Strict):
    # 0 always picks the likeliest token.
    temperature: Annotated[float, number("temperature")] = usual("temperature")
    top_p: Annotated[float, number("top_p")] = usual("top_p")
    max_tokens: Annotated[int, number("max_tokens")] = usual_count("max_tokens")


class LyricsRequest(Request, mode="lyrics"):
    brief: Annotated[str, text("brief", wanted="say what the song is about")] = Field(
        default="", validate_default=True
    )
    # The name of a preset, or free text; "" leaves it to the songwriter.
    structure: Annotated[str, text("structure")] = ""
    language: Annotated[str, choice("Language", limits.LANGUAGES)] = "en"
    tone: Annotated[str, text("tone")] = ""
    seed: Annotated[int, number("seed")] = usual_count("seed")
    options: LyricsOptions = Field(default_factory=LyricsOptions)

    @property
    def most_tokens(self) -> int:
        return self.options.max_tokens


SELECT_LINES = f"Select from 1 to {limits.MOST_REWRITTEN} lines with words"


class RewriteOptions(Strict):
    temperature: Annotated[float, number("temperature")] = usual("temperature")
    top_p: Annotated[float, number("top_p")] = usual("top_p")


class RewriteRequest(Request, mode="rewrite"):
    """Some `lines` of `lyrics`, the first and the last of them, which the songwriter is to write again."""

    task: Annotated[str, choice("Task", limits.REWRITES)] = "rewrite"
    lyrics: Annotated[str, text("lyrics")] = ""
    lines: Annotated[tuple[int, int], BeforeValidator(limits.parse_lines)] = Field(
        default=(), validate_default=True
    )
    brief: Annotated[str, text("brief")] = (
        ""  # what the song is about, "" if only its lyrics say so
    )
    tone: Annotated[str, text("tone")] = ""
    language: Annotated[str, choice("Language", limits.LANGUAGES)] = "unknown"
    seed: Annotated[int, number("seed")] = usual_count("seed")
    options: RewriteOptions = Field(default_factory=RewriteOptions)

    def model_post_init(self, context: Any) -> None:
        first, last = self.lines
        count = self.lyrics.count("\n") + 1
        if not 1 <= first <= last <= count:
            raise field_error(
                f"Lines must be from 1 to {count}, the first before the last, not {first} to {last}.",
                "lines",
            )
        sung = len(self.passage.lines)
        if not sung:
            raise field_error(f"{SELECT_LINES}, or put the cursor into one.", "lines")
        if sung > limits.MOST_REWRITTEN:
            raise field_error(f"{SELECT_LINES}, not {sung}.", "lines")

    @property
    def passage(self) -> Passage:
        return Passage(self.lyrics, *self.lines)

    @property
    def most_tokens(self) -> int:
        """How many tokens the songwriter may write: several times what the lines have."""
        return REWRITTEN_TOKENS * (len(self.passage.lines) + 1)


class InspireRequest(Request, mode="inspire"):
    idea: Annotated[str, text("idea")] = ""  # from which prompt, lyrics and metadata are written
    instrumental: Annotated[bool, flag("Instrumental")] = False
    language: Annotated[str, choice("Language", limits.LANGUAGES)] = "unknown"
    seed: Annotated[int, number("seed")] = usual_count("seed")


class PolishRequest(SongWords, mode="polish"):
    """The same song in the model's style; fields that are set do not change."""

    duration: Annotated[float | None, number_or_none("duration")] = usual("duration")
    seed: Annotated[int, number("seed")] = usual_count("seed")


class WrittenRequest(GenerateRequest):
    """A song whose `words` a language model writes or polishes first; fields of its own that are set
    stay."""

    needs_words: ClassVar[bool] = False
    words: InspireRequest | PolishRequest | LyricsRequest

    @property
    def idea(self) -> str:
        """Return what the words are to be about, "" if nobody said."""
        if isinstance(self.words, LyricsRequest):
            return self.words.brief
        if isinstance(self.words, InspireRequest):
            return self.words.idea
        return ""


class DescribeRequest(Request, mode="describe"):
    source: Source
    seed: Annotated[int, number("seed")] = usual_count("seed")


class AlignRequest(SongWords, mode="align"):
    """When each line of `lyrics` is sung in the finished song `source`; the other fields come from its record."""

    source: Source
    steps: Annotated[int | None, number("steps")] = None  # None means the checkpoint's default
    planned: Annotated[bool, flag("Planned")] = False  # whether a plan was used
    seed: Annotated[int, number("seed")] = usual_count("seed")

    def model_post_init(self, context: Any) -> None:
        if self.sung_lyrics() == INSTRUMENTAL:
            most = limits.TEXT_LIMITS["lyrics"]
            raise field_error(
                f"Lyrics must have from 1 to {most:,} characters of sung text.", "lyrics"
            )


def parse_request(mode: str, values: Mapping[str, Any]) -> Request:
    """Build the request of `mode`; raises InvalidRequest with one sentence for each wrong field."""
    fields = dict(values)
    # None means no options; pydantic would call it a wrong type.
    if fields.get("options") is None:
        fields.pop("options", None)
    try:
        return REQUESTS[mode].model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(*(_problem(mode, item) for item in error.errors())) from None


def model_of(request: Request) -> str:
    """Return the song model that `request` names, "" for the one that the studio was started for."""
    return getattr(getattr(request, "options", None), "model", "")


def written_request(words: Request, values: Mapping[str, Any]) -> WrittenRequest:
    """Build the request of a song whose `words` are written first; raises InvalidRequest."""
    try:
        return WrittenRequest.model_validate({**values, "words": words})
    except ValidationError as error:
        raise InvalidRequest(*(_problem("generate", item) for item in error.errors())) from None


def with_sketch(request: WrittenRequest, sketch: Mapping[str, Any]) -> Request:
    """Return the song of `request` with the fields of a `sketch`, a song in words; raises InvalidRequest."""
    fields = {name: getattr(request, name) for name in GenerateRequest.model_fields}
    if "duration" not in request.model_fields_set:
        fields["duration"] = None
    for name, value in sketch.items():
        is_polished = isinstance(request.words, PolishRequest) and name in ("prompt", "lyrics")
        if (is_polished and value) or name not in request.model_fields_set:
            fields[name] = value
    return parse_request("generate", fields)


def options_type(request: type[Request]) -> type[Strict]:
    """Return the options' type of a type of request that has options."""
    kind = request.model_fields["options"].annotation
    assert isinstance(kind, type) and issubclass(kind, Strict), request
    return kind


def _problem(mode: str, item: ErrorDetails) -> Problem:
    """Return pydantic's error as a problem; `field_error` has a sentence, and a field if pydantic knows none."""
    context = item.get("ctx", {})
    path = [str(part) for part in item["loc"]]
    if context.get("field"):
        path.append(context["field"])
    name = ".".join(path)
    if item["type"] == "model_type":
        sentence = f"Options must be an object, not {shown(item['input'])}."
    elif item["type"] == "extra_forbidden":
        sentence = _unknown(REQUESTS[mode], name, is_option=len(item["loc"]) > 1)
        return UnknownName("invalid", sentence, name)
    else:
        sentence = context.get("sentence") or f"{name} is not valid: {item['msg']}."
    return Problem("invalid", sentence, name)


def _unknown(request: type[Request], name: str, is_option: bool) -> str:
    if is_option:
        options = sorted(options_type(request).model_fields)
        return f"{shown(name)} is not an option here. Options: {', '.join(options)}."
    parameters = sorted(request.model_fields)
    return f"{shown(name)} is not a parameter here. Parameters: {', '.join(parameters)}."


AUDIO_FIELDS = ("source", "reference")


def upload_seconds(path: str, field: str = "source") -> float:
    """Return a file's length in seconds once resampled to 48 kHz, from its header; raises InvalidRequest."""
    try:
        return samples_in(audio.duration_of(path)) / limits.SAMPLE_RATE
    except audio.AudioError as error:
        raise InvalidRequest(Problem("bad_audio", error.message, field, error.hint)) from None


def check_audio(request: Request) -> float:
    """Check the files, then the request against its source; return the source's seconds or 0. Raises InvalidRequest."""
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
        raise InvalidRequest(*problems)
    if "source" in seconds:
        check_source(request, seconds["source"])
    return seconds.get("source", 0.0)


CHANGE_ALL = "To change all of it, use Cover or Morph."


def check_source(request: Request, seconds: float) -> None:
    """Check what depends on the source's length; raises InvalidRequest with the field and the range."""
    problem = None
    if isinstance(request, ExtendRequest):
        problem = _too_long(request, seconds)
    elif isinstance(request, EditRequest) and request.regions:
        problem = _regions_beyond(request, seconds)
    elif isinstance(request, EditRequest) and request.action in REGION_ACTIONS:
        problem = _region_beyond(request, seconds)
    if problem:
        raise InvalidRequest(problem)


# Lengths are compared in samples: one that a client computed may be off by a fraction.


def _too_long(request: ExtendRequest, seconds: float) -> Problem | None:
    whole = samples_in(request.before) + samples_in(seconds) + samples_in(request.after)
    if whole <= samples_in(MAX_SOURCE_SECONDS):
        return None
    field = "after" if request.after >= request.before else "before"
    room = max(MAX_SOURCE_SECONDS - seconds, 0)
    added = request.before + request.after
    message = (
        f"Seconds before and after together must be from 0 to {room:.6g} for a source of {seconds:.6g} seconds "
        f"(a song lasts up to {MAX_SOURCE_SECONDS}), not {added:g}."
    )
    return Problem("invalid", message, field)


def _regions_beyond(request: EditRequest, seconds: float) -> Problem | None:
    total = samples_in(seconds)
    last = request.regions[-1][1]
    if samples_in(last) > total:
        message = f"Regions must lie within the source, from 0 to {seconds:.6g} seconds; one ends at {last:g}."
        return Problem("invalid", message, "regions")
    if request.action == "repaint" and _cover_all(request.regions, total):
        message = f"Regions must leave some of the source (0 to {seconds:.6g} seconds) unchanged. {CHANGE_ALL}"
        return Problem("invalid", message, "regions")
    return None


def _cover_all(regions: tuple[tuple[float, float], ...], total: int) -> bool:
    """Tell whether `regions`, which do not overlap, cover all of `total` samples."""
    covered = sum(samples_in(end) - samples_in(start) for start, end in regions)
    return covered >= total


def _region_beyond(request: EditRequest, seconds: float) -> Problem | None:
    total = samples_in(seconds)
    least = limits.LEAST_REGION_SECONDS
    start = samples_in(request.start)
    end = samples_in(request.end) or total
    if start > total - samples_in(least):
        latest = max(seconds - least, 0)
        message = (
            f"Start must be from 0 to {latest:.6g} seconds in this source, not {request.start:g}."
        )
        return Problem("invalid", message, "start")
    if end > total:
        message = f"End must be from 0 to {seconds:.6g} seconds, the length of this source, not {request.end:g}."
        return Problem("invalid", message, "end")
    if request.action == "repaint" and start == 0 and end == total:
        message = f"Start and End must leave some of the source (0 to {seconds:.6g} seconds) unchanged. {CHANGE_ALL}"
        return Problem("invalid", message, "end")
    return None


class Sampling(NamedTuple):
    steps: int
    guidance: float
    shift: float


def usual_sampling(quality: str, kind: str = "sft") -> Sampling:
    """Return the defaults for a checkpoint of `kind` (`model_weights.checkpoint_kind`)."""
    if kind == "turbo":
        # Guidance is distilled into its weights; upstream's table has 8 steps and shift 3.
        return Sampling(steps=8, guidance=1.0, shift=3.0)
    if kind == "preview":
        # It learnt to arrive without guidance where its teacher does with it.
        return Sampling(limits.BUILT_IN_STEPS[quality], guidance=1.0, shift=1.0)
    return Sampling(limits.QUALITY_STEPS[quality], guidance=7.0, shift=1.0)


@dataclass(frozen=True)
class Settings:
    """The numbers of a song, settled once for the checkpoint that makes it; they travel in its `Job`.

    `kind` is what the checkpoint was trained for (`model_weights.checkpoint_kind`); `notes` say
    what it ignores.
    """

    kind: str
    steps: int
    guidance: float
    shift: float
    notes: tuple[str, ...] = ()

    @property
    def turbo(self) -> bool:
        return self.kind == "turbo"

    @property
    def built_in(self) -> bool:
        """Whether the built-in engine makes the song."""
        return self.kind == "preview"

    @property
    def guided(self) -> bool:
        return self.guidance > 1


def settle(request: SongRequest, kind: str) -> Settings:
    """Resolve quality and options of a song for a checkpoint of `kind`."""
    options = request.options
    steps, guidance, shift = usual_sampling(request.quality, kind)
    notes = []
    if kind == "turbo":
        if options.guidance is not None and options.guidance > 1:
            notes.append("Guidance was ignored: this turbo checkpoint has it built in.")
        if options.steps is None and request.quality != "standard":
            notes.append(
                "A turbo checkpoint takes 8 steps at every quality; Steps under Engine changes that."
            )
    elif options.guidance is not None:
        guidance = options.guidance
    if options.steps is not None:
        steps = options.steps
    if options.shift is not None:
        shift = options.shift
    return Settings(kind, steps, guidance, shift, tuple(notes))
