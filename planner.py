"""The planner: ACE-Step's 5 Hz language model turns a prompt into metadata and audio codes before a
song is made.

Phase 1 writes the metadata that the visitor left open, phase 2 draws ceil(5 * seconds) audio codes
for each take. The same model expands an idea (`inspire`), improves a prompt (`polish`) and
describes audio codes (`describe`). Prompts and phases follow upstream's LLMHandler;
`planner_decoding.py` draws the tokens.

Long operations are generators: they yield `Progress` for every token (`steps` is 0 if unknown) and,
last, the result. Closing one stops it before the next token.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import model_offload
import planner_codes
import planner_form
import planner_layers
import planner_sketch
import prompt_facts
from bootstrap import on_zerogpu
from events import Progress, StudioError, first_line, is_out_of_memory
from limits import (
    CODES_PER_SECOND,
    INSTRUMENTAL,
    LANGUAGES,
    LIMITS,
    MAX_LYRIC_TOKENS,
    TEXT_LIMITS,
)
from model_weights import Weights, unusable
from models import Device, free_memory, planner_dtype, planner_storage, quiet_libraries
from params import GenerateOptions, GenerateRequest, InspireRequest, PolishRequest, SongWords
from plain_text import plain
from planner_decoding import (
    MAX_CAPTION_TOKENS,
    CodeWriter,
    Draw,
    Grammar,
    MetadataGrammar,
    Unfit,
    Vocabulary,
    as_plain_text,
    write,
)
from record import PlanEntry
from song_words import KnownWords, read_words, translated

if TYPE_CHECKING:
    import torch

Tokens = tuple[int, ...]

# The form of the prompt of phase 2, for the record: a plan made with another one cannot be drawn again.
# Plans without a name were made with a closed turn, and kept caption and lyrics in the
# unconditional prompt.
LAYOUT = "open turn"
METADATA_ROOM = MAX_CAPTION_TOKENS + 128  # tokens
# The planner's names of the fields that phase 1 writes unless the visitor gave all of them.
PHASE_1_FIELDS = {"bpm", "duration", "keyscale", "timesignature"}


@dataclass(frozen=True)
class Plan:
    """A planned song: `metadata` by a request's names, drawn from `seed`, and each take's audio
    codes (5 per second).

    `caption` is the prompt for the song; `rewritten` tells whether the planner wrote it. `stuck`
    has the second from which each take's codes repeat themselves even after a second draw, None
    where they do not. `ends` has the second in which the last sound of each take begins, where the
    codes say it.
    """

    metadata: dict[str, Any]
    caption: str
    rewritten: bool
    seed: int
    seconds: float
    codes: tuple[tuple[int, ...], ...]
    stuck: tuple[float | None, ...] = ()
    ends: tuple[float, ...] = ()

    def words(self) -> dict[str, Any]:
        """Return the request's fields after planning."""
        return {"prompt": self.caption, **self.metadata}

    def entry(self, model: str, options: GenerateOptions) -> PlanEntry:
        """Return the plan for the record and the page; the codes follow from it and the take's seed."""
        return PlanEntry(
            used=True,
            bpm=self.metadata["bpm"],
            key=self.metadata["key"],
            time_signature=self.metadata["time_signature"],
            language=self.metadata["language"],
            caption=self.caption,
            rewritten=self.rewritten,
            seed=self.seed,
            layout=LAYOUT,
            model=model,
            temperature=options.plan_temperature,
            cfg=options.plan_cfg,
        )


def codes_needed(seconds: float) -> int:
    return math.ceil(CODES_PER_SECOND * seconds)


class Planner:
    """A loaded planner.

    `words` are what a small one has learnt, whose codes mean what `planner_codes` says, and
    `styles` what it plays: its plans are held to a form, its sketches to their words. None for the
    real ones.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        model_id: str,
        words: KnownWords | None = None,
        styles: planner_sketch.Styles | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.model_id = model_id
        self.words = words
        self.styles = styles
        rows = model.get_output_embeddings().weight.shape[0]
        self.vocabulary = Vocabulary(tokenizer, rows, model.device)
        self.grammar = MetadataGrammar(self.vocabulary)


def plan(
    planner: Planner,
    request: GenerateRequest,
    seeds: Sequence[int],
    longest: float = LIMITS["duration"].high,
) -> Generator[Progress | Plan]:
    """Plan a song: each take's codes are drawn from its seed, the metadata from `plan_seed` or the
    first of `seeds`.

    Phase 1 is skipped if the visitor gave length, BPM, key and time signature and keeps the prompt.
    It draws an automatic length of up to `longest` seconds. Yields `Progress` and, last, the `Plan`.
    Raises StudioError if the plan does not fit into the model's context.
    """
    options = request.options
    encode = planner.vocabulary.encode
    seed = options.plan_seed if options.plan_seed >= 0 else seeds[0]
    draw = Draw(options.plan_temperature)
    given = _suggested(planner, request.prompt, seed) | _fields_given(request)
    fields = dict(given)
    if options.rewrite or not given.keys() >= PHASE_1_FIELDS:
        grammar = planner.grammar.thoughts(given, options.rewrite, longest)
        tokens = encode(song_prompt(planner.tokenizer, request))
        fields = yield from write(
            planner.model, tokens, grammar, "planning", seed, draw, METADATA_ROOM
        )
    caption = fields.get("caption", "")[: TEXT_LIMITS["prompt"]].strip()
    fields["caption"] = caption
    guided = encode(codes_prompt(planner.tokenizer, request, fields))
    unguided = encode(unguided_prompt(planner.tokenizer, options.exclude))
    if request.duration is None:
        seconds = float(fields["duration"])
    else:
        seconds = request.duration
    metadata = _metadata(fields)
    form = _form(planner, request, metadata, seconds, seed)
    code_indices, stuck = yield from _draw_codes(
        planner, (guided, unguided), seeds, codes_needed(seconds), draw, options.plan_cfg, form
    )
    codes = planner.vocabulary.codes[code_indices].tolist()
    ends: tuple[float, ...] = ()
    if form is not None:
        codes = [form.arranged(take.numpy()).tolist() for take in code_indices]
        ends = tuple(planner_codes.last_begun(take) for take in codes)
    yield Plan(
        metadata=metadata,
        caption=caption or request.prompt,
        rewritten=bool(caption),
        seed=seed,
        seconds=seconds,
        codes=tuple(tuple(take) for take in codes),
        stuck=stuck,
        ends=ends,
    )


def _form(
    planner: Planner,
    request: GenerateRequest,
    metadata: Mapping[str, Any],
    seconds: float,
    seed: int,
) -> planner_form.Form | None:
    """Return the form that the codes are held to, None where the planner's codes mean nothing that is known."""
    if planner.words is None:
        return None
    # As the built-in engine will be given them.
    told = translated(metadata, planner.words)
    return planner_form.Form(
        planner.vocabulary.codes.numpy(),
        bpm=told["bpm"],
        time_signature=told["time_signature"],
        key=told["key"],
        lyrics=request.sung_lyrics(),
        seconds=seconds,
        seed=seed,
    )


def _draw_codes(
    planner: Planner,
    prompts: tuple[Tokens, Tokens],
    seeds: Sequence[int],
    count: int,
    draw: Draw,
    guidance: float,
    form: planner_form.Form | None = None,
) -> Generator[Progress, None, tuple[torch.Tensor, tuple[float | None, ...]]]:
    """Draw `count` codes for each take; return them as indices into the audio tokens [takes, count],
    and the second from which each take is stuck.

    Codes that get stuck are drawn a second time from that place on, with other random numbers
    (upstream's #1164: 736 equal codes of 800). With a `form` they are held to it.
    """
    import torch

    code_ids = planner.vocabulary.code_ids
    allowed = None if form is None else torch.from_numpy(form.allowed())
    drawn = yield from CodeWriter(
        planner.model, code_ids, prompts, seeds, count, draw, guidance, allowed=allowed
    ).run()
    stuck: list[float | None] = []
    for take, seed in enumerate(seeds):
        start = stuck_from(drawn[take].tolist())
        if start is not None:
            kept = drawn[take, :start]
            kept_tokens = code_ids[kept.to(code_ids.device)].tolist()
            guided, unguided = prompts
            continued = ((*guided, *kept_tokens), (*unguided, *kept_tokens))
            second_draw = CodeWriter(
                planner.model,
                code_ids,
                continued,
                [second_seed(seed)],
                count - start,
                draw,
                guidance,
                allowed=None if allowed is None else allowed[start:],
            )
            redrawn = yield from second_draw.run()
            drawn[take] = torch.cat([kept, redrawn[0]])
            start = stuck_from(drawn[take].tolist())
        stuck.append(None if start is None else start / CODES_PER_SECOND)
    return drawn, tuple(stuck)


SAME_CODES = 3 * CODES_PER_SECOND
CYCLE_CODES = 12 * CODES_PER_SECOND
LONGEST_CYCLE = CYCLE_CODES // 2  # a cycle only counts if it came at least twice


def stuck_from(codes: Sequence[int]) -> int | None:
    """Return where `codes` get stuck, or None: one code for over 3 s, or a cycle of codes for over
    12 s.

    It is the index of the first repeated code: everything before it is fine.
    """
    repetitions = []
    for period in range(1, LONGEST_CYCLE + 1):
        tolerated = SAME_CODES if period == 1 else CYCLE_CODES
        start = _first_cycle(codes, period, tolerated)
        if start is not None:
            repetitions.append(start + period)
    return min(repetitions, default=None)


def _first_cycle(codes: Sequence[int], period: int, tolerated: int) -> int | None:
    """Return where the first stretch of over `tolerated` codes starts that repeats every `period` codes, or None."""
    start = 0
    for index in range(period, len(codes)):
        if codes[index] != codes[index - period]:
            start = index - period + 1
        elif index - start + 1 > tolerated:
            return start
    return None


def second_seed(seed: int) -> int:
    """Return the seed for the second draw of a take's codes: different for each seed, within 32 bits."""
    return (seed * 0x9E3779B1 + 0x7F4A7C15) % 2**32


def inspire(
    planner: Planner, request: InspireRequest, seed: int
) -> Generator[Progress | dict[str, Any]]:
    """Write a whole song's fields from an idea."""
    idea = as_plain_text(request.idea) or NO_INPUT
    from_idea = prompt_facts.named(request.idea)
    words = f"{idea}\n\ninstrumental: {str(request.instrumental).lower()}"
    given = _known_fields(
        bpm=from_idea.get("bpm"),
        keyscale=from_idea.get("key"),
        language=request.language,
        timesignature=from_idea.get("time_signature"),
    )
    lyrics = INSTRUMENTAL if request.instrumental else ""
    yield from _best_sketch(planner, "inspire", words, given, seed, lyrics, request.idea)


def polish(
    planner: Planner, request: PolishRequest, seed: int
) -> Generator[Progress | dict[str, Any]]:
    """Rewrite prompt and lyrics in the model's style, with the fields that the visitor filled in."""
    lyrics = request.sung_lyrics()
    prompt = as_plain_text(request.prompt) or NO_INPUT
    words = f"# Caption\n{prompt}\n\n# Lyric\n{as_plain_text(lyrics)}"
    is_kept = lyrics == INSTRUMENTAL or planner.words is not None
    kept = lyrics if is_kept else ""
    given = _fields_given(request)
    yield from _best_sketch(planner, "polish", words, given, seed, kept, request.prompt)


def describe(
    planner: Planner, codes: Sequence[int], seed: int
) -> Generator[Progress | dict[str, Any]]:
    """Describe audio codes (5 per second), each of which is a token, as prompt, lyrics and metadata.

    A small planner is told what they say, and puts that into words.
    """
    seconds = len(codes) // CODES_PER_SECOND
    limit = LIMITS["duration"]
    given = _known_fields(duration=seconds if limit.low <= seconds <= limit.high else None)
    if planner.words is not None and planner.styles is not None:
        found = planner_sketch.heard(codes, planner.words)
        if "bpm" in found:
            style = planner.styles.likeliest(codes, found["bpm"])
            given |= _spelled(found)
            words = f"# Caption\n{style}\n\n# Lyric\n{INSTRUMENTAL}"
            yield from _best_sketch(planner, "polish", words, given, seed, INSTRUMENTAL, style)
            return
    words = "".join(f"<|audio_code_{planner.vocabulary.nearest(code)}|>" for code in codes)
    yield from _sketch(planner, "describe", words, given, seed, "", temperature=0.3)


CAPTION_WEIGHT = 0.5
LYRICS_WEIGHT = 0.3
DETAILS_WEIGHT = 0.2
JUDGED_AT_ONCE = 128  # tokens
INFORMATION_SCALE = 0.1  # nats a token that the codes must tell for a clear answer
LIKELIEST = 10  # among so many tokens a detail's own one has to be


def recognition(
    planner: Planner, request: SongWords, caption: str, codes: Sequence[int], seconds: float
) -> float | None:
    """Return how well the planner recognizes a song's words in its audio codes, 0 to 1.

    For caption and lyrics it is how much likelier they become once the codes are known: the
    difference of the mean log-probability of their tokens, through a sigmoid (pointwise mutual
    information). For BPM, key, time signature, language and length it is how far up each of their
    tokens is among the likeliest ones; they count as one. Weights and wording are upstream's
    (`acestep/test_time_scaling.py`, reference 5.4). None if the song is too long for the planner,
    there are no words, or the planner is a small one, which hears no words in codes.
    """
    if planner.words is not None:
        return None
    texts: list[tuple[float, str]] = []
    if caption:
        texts.append((CAPTION_WEIGHT, _thoughts({"caption": caption})))
    lyrics = request.sung_lyrics()
    if lyrics != INSTRUMENTAL:
        texts.append((LYRICS_WEIGHT, f"<think>\n</think>\n# Lyric\n{as_plain_text(lyrics)}\n"))
    details = [_thoughts({name: value}) for name, value in _details(request, seconds).items()]
    if not texts:
        return None

    spoken = [text for _, text in texts]
    code_text = "".join(f"<|audio_code_{planner.vocabulary.nearest(code)}|>" for code in codes)
    with_codes = _read(planner, code_text, [*spoken, *details])
    without_codes = _read(planner, NO_INPUT, spoken)
    if with_codes is None or without_codes is None:
        return None
    parts = []
    for (weight, _), known, unknown in zip(texts, with_codes, without_codes, strict=False):
        gain = known.likelihood - unknown.likelihood
        parts.append((weight, 1.0 / (1.0 + math.exp(-gain / INFORMATION_SCALE))))
    recalls = [each.recall for each in with_codes[len(texts) :]]
    parts.append((DETAILS_WEIGHT, sum(recalls) / len(recalls)))
    return sum(weight * found for weight, found in parts) / sum(weight for weight, _ in parts)


@dataclass(frozen=True)
class Expected:
    """How far a planner expected a text: the mean log-probability of its tokens, and their mean
    place among the `LIKELIEST`, from 1 for the first to 0 for none of them."""

    likelihood: float
    recall: float


def _read(planner: Planner, words: str, texts: Sequence[str]) -> list[Expected] | None:
    """Return how far each of `texts` is expected as the description of `words`; None if one is too long."""
    import torch

    encode = planner.vocabulary.encode
    model = planner.model
    prompt = encode(chat(planner.tokenizer, "describe", words))
    targets = [encode(text) for text in texts]
    longest = max(len(target) for target in targets)
    if len(prompt) + longest > model.config.max_position_embeddings:
        return None
    decoder = model.get_decoder()
    found = []
    with torch.no_grad():
        # The prompt is read once: it is the same for all texts, and much the longest part.
        begun = decoder(torch.tensor([prompt], device=model.device), use_cache=True)
        cache = begun.past_key_values
        for target in targets:
            states = begun.last_hidden_state[0, -1:]
            tokens = torch.tensor([target], device=model.device)
            if len(target) > 1:
                read = decoder(tokens[:, :-1], past_key_values=cache, use_cache=True)
                states = torch.cat([states, read.last_hidden_state[0]])
                cache.crop(1 - len(target))  # back to the prompt
            found.append(_expected(model.get_output_embeddings(), states, tokens[0]))
    return found


def _expected(head: Any, states: torch.Tensor, tokens: torch.Tensor) -> Expected:
    """Return how far `tokens` are expected after hidden `states`, one for each of them."""
    likelihood = 0.0
    recall = 0.0
    # In pieces: a row of logits has a number for each of 200,000 tokens.
    for some_states, some_tokens in zip(
        states.split(JUDGED_AT_ONCE), tokens.split(JUDGED_AT_ONCE), strict=True
    ):
        likely = head(some_states).float().log_softmax(-1)
        own = likely.gather(1, some_tokens[:, None])
        likelihood += float(own.sum())
        before = (likely > own).sum(dim=1)
        recall += float((1.0 - before / LIKELIEST).clamp(min=0.0).sum())
    return Expected(likelihood / len(tokens), recall / len(tokens))


def _best_sketch(
    planner: Planner,
    task: str,
    words: str,
    given: Mapping[str, str],
    seed: int,
    lyrics: str,
    asked: str,
) -> Generator[Progress | dict[str, Any]]:
    """Write a sketch; a small planner's is the one of several that agrees most with what was `asked`.

    Where even that has another style, the visitor's own words stay the prompt.
    """
    known = planner.words
    if known is None:
        yield from _sketch(planner, task, words, given, seed, lyrics)
        return
    given = _suggested(planner, asked, seed) | dict(given)
    best: dict[str, Any] = {}
    most = -1.0
    written = 0
    for number in range(planner_sketch.SKETCHES):
        for result in _sketch(planner, task, words, given, seed + number, lyrics):
            if isinstance(result, Progress):
                # One count over all sketches, which never falls.
                yield replace(result, step=written + result.step)
                continue
            agrees = planner_sketch.agreement(asked, result["prompt"], known)
            if agrees > most:
                most = agrees
                best = result
        written += METADATA_ROOM
        if most == 1:
            break
    if not planner_sketch.keeps_style(asked, best["prompt"], known):
        best["prompt"] = asked
    if not lyrics:
        best["lyrics"] = planner_sketch.only_sections(best["lyrics"])
    yield best


def _suggested(planner: Planner, words: str, seed: int) -> dict[str, str]:
    """Return what a small planner is given besides a visitor's fields, with the planner's names and spelling."""
    if planner.words is None:
        return {}
    return _spelled(planner_sketch.suggested(words, planner.words, seed))


def _spelled(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return tempo, key and time signature, by a request's names, with the planner's names and spelling."""
    return _known_fields(
        bpm=fields.get("bpm"),
        keyscale=fields.get("key"),
        timesignature=fields.get("time_signature"),
    )


def _sketch(
    planner: Planner,
    task: str,
    words: str,
    given: Mapping[str, str],
    seed: int,
    lyrics: str,
    temperature: float = Draw.temperature,
) -> Generator[Progress | dict[str, Any]]:
    """Write all metadata and, if `lyrics` is empty, the lyrics too; last, yields a request's fields."""

    def metadata_then_lyrics() -> Grammar:
        fields = yield from planner.grammar.thoughts(given, caption=True)
        if lyrics:
            return fields, lyrics
        text = yield from planner.grammar.text(MAX_LYRIC_TOKENS)
        return fields, clean_lyrics(text)

    room = METADATA_ROOM
    if not lyrics:
        room += MAX_LYRIC_TOKENS
    tokens = planner.vocabulary.encode(chat(planner.tokenizer, task, words))
    fields, sketched_lyrics = yield from write(
        planner.model, tokens, metadata_then_lyrics(), "writing", seed, Draw(temperature), room
    )
    yield {
        "prompt": fields["caption"][: TEXT_LIMITS["prompt"]].strip(),
        "lyrics": sketched_lyrics,
        **_metadata(fields),
        "duration": int(fields["duration"]),
    }


def _metadata(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the planner's fields by a request's names; the language may have been left open."""
    return {
        "bpm": int(fields["bpm"]),
        "key": fields["keyscale"],
        "time_signature": fields["timesignature"],
        "language": fields.get("language", "unknown"),
    }


def _fields_given(request: GenerateRequest | PolishRequest) -> dict[str, str]:
    """Return the fields that the visitor filled in or named in the prompt, with the planner's names and spelling."""
    return _details(request, request.duration)


def _details(request: SongWords, seconds: float | None) -> dict[str, str]:
    """Return the song details of `request`, with the planner's names and spelling; the song has `seconds`."""
    request, _ = prompt_facts.completed(request)
    return _known_fields(
        bpm=request.bpm,
        duration=None if seconds is None else int(seconds),
        keyscale=request.key,
        language=request.language,
        timesignature=request.time_signature,
    )


def _known_fields(**values: object) -> dict[str, str]:
    return {
        name: str(value) for name, value in values.items() if value not in (None, "", "unknown")
    }


_LANGUAGE_NAMES = {*LANGUAGES, *(name.lower() for name in LANGUAGES.values())}


def clean_lyrics(text: str) -> str:
    """Return lyrics without the headers that the model may put above them.

    The header of the language has one line of its own, with a code or a name.
    """
    lines = plain(text).strip().split("\n")
    if re.match(r"#+\s*Languages?\b", lines[0], re.IGNORECASE):
        lines = "\n".join(lines[1:]).strip().split("\n")
        if lines[0].strip().lower() in _LANGUAGE_NAMES:
            lines = "\n".join(lines[1:]).strip().split("\n")
    if re.match(r"#+\s*Lyrics?\b", lines[0], re.IGNORECASE):
        lines = lines[1:]
    return "\n".join(lines).strip()[: TEXT_LIMITS["lyrics"]].strip()


def load_planner(weights: Weights, device: Device) -> Planner:
    """Load the planner onto `device`.

    Raises StudioError; errors of too little memory pass through.
    """
    import torch
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    try:
        files = sorted(weights.local_folder.glob("*token*"))
        changed = tuple(path.stat().st_mtime_ns for path in files)
        tokenizer = _tokenizer(weights.local_folder, changed)
        model = AutoModelForCausalLM.from_pretrained(
            weights.folder,
            dtype=getattr(torch, planner_storage(device)),
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
        )
        model = model.to(device.kind).eval().requires_grad_(False)
        if not planner_layers.fits(model):
            raise Unfit("its layers are not Qwen3's")
        if not on_zerogpu():
            # On ZeroGPU weights are stand-ins until a card is attached: `CachedLayers` joins them.
            planner_layers.join_weights(model)
            free_memory()
        if planner_storage(device) != planner_dtype(device):
            model_offload.widen_on_use(model)
        if not tokenizer.chat_template:
            raise Unfit("its tokenizer has no chat template")
        # Only a small planner has such files.
        words = read_words(weights.local_folder)
        styles = planner_sketch.read_styles(weights.local_folder)
        return Planner(model, tokenizer, weights.model_id, words, styles)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if isinstance(error, Unfit):
            reason = str(error)
        else:
            reason = f"it could not be loaded: {first_line(error)}"
        raise StudioError.from_problem(unusable(weights.model_id, reason)) from error


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path, changed: tuple[int, ...]) -> Any:
    """Load the tokenizer in `folder`, which is kept when the model is unloaded.

    `changed` has the modification times of its files, so that new files are read. tokenizer.json
    already has the 65,535 audio codes as special tokens. If they are listed a second time,
    transformers 5.23 compares each of them with all others, which takes minutes; the ids are the
    same without that list.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        folder,
        local_files_only=True,
        additional_special_tokens=[],
        extra_special_tokens=[],
    )


# --- prompts --------------------------------------------------------------------------------------

NO_INPUT = "NO USER INPUT"
INSTRUCTIONS = {
    "generate": "Generate audio semantic tokens based on the given conditions:",
    "inspire": "Expand the user's input into a more detailed and specific musical description:",
    "polish": "Format the user's input into a more detailed and specific musical description:",
    "describe": "Understand the given musical conditions and describe the audio semantics accordingly:",
}


def song_prompt(tokenizer: Any, request: GenerateRequest) -> str:
    """Return the prompt of phase 1, which the model continues with its thoughts."""
    return chat(tokenizer, "generate", _caption_and_lyrics(request))


def codes_prompt(tokenizer: Any, request: GenerateRequest, metadata: Mapping[str, str]) -> str:
    """Return the conditional prompt of phase 2, which the model continues with audio codes.

    It ends inside the assistant's turn. The thoughts look as in the model's training (upstream's
    `LLMHandler`, #1126): sorted YAML, numbers as numbers, only known fields, and one blank line
    after them.
    """
    known = {name: value for name, value in metadata.items() if value}
    return f"{song_prompt(tokenizer, request)}{_thoughts(known)}\n"


def _thoughts(fields: Mapping[str, str]) -> str:
    values = {name: int(value) if value.isdigit() else value for name, value in fields.items()}
    text = yaml.dump(values, allow_unicode=True, sort_keys=True).strip()
    return f"<think>\n{as_plain_text(text)}\n</think>\n"


def unguided_prompt(tokenizer: Any, exclude: str = "") -> str:
    """Return the unconditional prompt of phase 2, which guidance leads away from: `exclude`, or no words at all."""
    words = as_plain_text(exclude) or NO_INPUT
    return f"{chat(tokenizer, 'generate', words)}<think>\n\n</think>\n\n"


def _caption_and_lyrics(request: GenerateRequest) -> str:
    prompt = as_plain_text(request.prompt)
    lyrics = as_plain_text(request.sung_lyrics())
    return f"# Caption\n{prompt}\n\n# Lyric\n{lyrics}\n"


def chat(tokenizer: Any, task: str, words: str) -> str:
    """Return a chat that ends where the assistant's turn begins."""
    messages = [
        {"role": "system", "content": f"# Instruction\n{INSTRUCTIONS[task]}\n\n"},
        {"role": "user", "content": words},
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
