"""What the transformer is told of a song: words within the token budget, timbre, and what stands for the source.

Shapes: B takes, T latent frames (25 a second), C latent channels (64 in the real model), L condition tokens.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import codec
import offload
from limits import MAX_TEXT_TOKENS
from sampling import Condition

if TYPE_CHECKING:
    import torch


# The instructions that the weights were trained with (upstream constants.py).
TEXT2MUSIC = "Fill the audio semantic mask based on the given conditions:"
COVER = "Generate audio semantic tokens based on the given conditions:"
REPAINT = "Repaint the mask area based on the given conditions:"
LAYER = "Generate the {} track based on the audio context:"
EXTRACT = "Extract the {} track from the audio:"
COMPLETE = "Complete the input track with {}:"


@dataclass(frozen=True)
class Words:
    """What the text encoder reads; `seconds` is the real length, of which the prompt shows the whole seconds."""

    prompt: str
    lyrics: str
    language: str
    seconds: float
    instruction: str
    bpm: int | None = None
    key: str = ""
    time_signature: str = ""


def words_of(request: Any, seconds: float, instruction: str) -> Words:
    """Return the words of a request for a song of `seconds`."""
    return Words(
        prompt=request.prompt,
        lyrics=request.sung_lyrics(),
        language=request.language,
        seconds=seconds,
        instruction=instruction,
        bpm=request.bpm,
        key=request.key,
        time_signature=request.time_signature,
    )


def encode_condition(
    pipe: Any, words: Words, context: torch.Tensor, timbre: torch.Tensor | None = None, timbre_token: bool = True
) -> Condition:
    """Encode words and timbre for `context` [1, T, 2C].

    `timbre` [1, 750, C] are latents of a reference, None the model's own silence. `timbre_token` prepends the XL
    checkpoints' learned token, which diffusers 0.42.1 leaves out; a 2B-shaped checkpoint ignores the switch.
    """
    import torch

    device, dtype = pipe._execution_device, pipe.transformer.dtype
    if timbre is None:
        timbre = codec.silence(pipe, math.ceil(codec.REFERENCE_SECONDS * pipe.latents_per_second))
    with torch.no_grad(), _timbre_token(pipe, timbre_token and is_xl(pipe)):
        text, text_mask, lyrics, lyrics_mask = pipe.encode_prompt(
            prompt=words.prompt,
            lyrics=words.lyrics,
            device=device,
            vocal_language=words.language,
            audio_duration=words.seconds,
            instruction=words.instruction,
            bpm=words.bpm,
            keyscale=words.key,
            timesignature=words.time_signature,
        )
        states, _ = pipe.condition_encoder(
            text_hidden_states=text,
            text_attention_mask=text_mask,
            lyric_hidden_states=lyrics,
            lyric_attention_mask=lyrics_mask,
            refer_audio_acoustic_hidden_states_packed=timbre.to(device=device, dtype=dtype),
            refer_audio_order_mask=torch.zeros(1, device=device, dtype=torch.long),
        )
    return Condition(states, context)


def is_xl(pipe: Any) -> bool:
    """Tell whether the checkpoint has XL's shape: a condition encoder narrower than the transformer it feeds."""
    config = pipe.transformer.config
    return config.encoder_hidden_size is not None and config.encoder_hidden_size != config.hidden_size


@contextlib.contextmanager
def _timbre_token(pipe: Any, wanted: bool):
    """Prepend the learned token to the timbre sequence, whose first position the encoder pools (upstream, XL)."""
    import torch

    encoder = pipe.condition_encoder.timbre_encoder

    def prepend(module, inputs, embedded):
        token = encoder.special_token.to(device=embedded.device, dtype=embedded.dtype)
        return torch.cat([token.expand(embedded.shape[0], -1, -1), embedded], dim=1)

    hook = encoder.embed_tokens.register_forward_hook(prepend) if wanted else None
    try:
        yield
    finally:
        if hook:
            hook.remove()


# --- the source ---------------------------------------------------------------------------------------------------


def silent_context(pipe: Any, frames: int) -> torch.Tensor:
    """Return the text2music context [1, frames, 2C]: silence as the source, 1 (make it) everywhere in the mask."""
    import torch

    source = codec.silence(pipe, frames)
    return torch.cat([source, torch.ones_like(source)], dim=-1)


def context_of(source: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return the context [1, T, 2C] of `source` [1, T, C] with 1 in the mask where `new` [1, T, 1] is True."""
    import torch

    return torch.cat([source, new.to(source.dtype).expand_as(source)], dim=-1)


def masked_context(pipe: Any, source: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return the repaint context: the source with silence in the region, 1 in the mask there, 0 elsewhere."""
    import torch

    return context_of(torch.where(new, codec.silence(pipe, source.shape[1]), source), new)


def cover_context(pipe: Any, clean: torch.Tensor) -> torch.Tensor:
    """Return the cover context: `clean` [1, T, C] through the 5 Hz audio codes and back, 1 everywhere in the mask."""
    import torch

    with torch.no_grad():
        codes, _ = pipe.audio_tokenizer.tokenize(clean, codec.silence(pipe, clean.shape[1]))
        source = pipe.audio_token_detokenizer(codes.to(clean.dtype))[:, : clean.shape[1]]
    return torch.cat([source, torch.ones_like(source)], dim=-1)


def has_audio_codes(pipe: Any) -> bool:
    """Tell whether the checkpoint came with the two parts that make audio codes and read them."""
    return pipe.audio_tokenizer is not None and pipe.audio_token_detokenizer is not None


def codes_context(pipe: Any, codes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the context [B, 5N, 2C] of each take's N audio codes (5 a second), 1 everywhere in the mask."""
    import torch

    device, dtype = pipe._execution_device, pipe.transformer.dtype
    # One quantizer reads the codes; a checkpoint with more gets zeros for the others, as in the pipeline.
    quantizers = pipe.audio_tokenizer.config.fsq_input_num_quantizers
    indices = torch.tensor(codes, dtype=torch.long, device=device)[..., None]
    indices = torch.nn.functional.pad(indices, (0, quantizers - 1))
    offload.bring(pipe, "audio_tokenizer")
    with torch.no_grad():
        quantized = pipe.audio_tokenizer.quantizer.get_output_from_indices(indices).to(dtype)
        source = pipe.audio_token_detokenizer(quantized).to(dtype)
    return torch.cat([source, torch.ones_like(source)], dim=-1)


def audio_codes(pipe: Any, clean: torch.Tensor) -> list[int]:
    """Return the audio codes, 5 a second, of latents `clean` [1, T, C]."""
    import torch

    with torch.no_grad():
        _, indices = pipe.audio_tokenizer.tokenize(clean, codec.silence(pipe, clean.shape[1]))
    return indices[0, :, 0].tolist()


# --- the token budget ---------------------------------------------------------------------------------------------


def fit_prompt(pipe: Any, words: Words) -> tuple[str, str]:
    """Return (kept, dropped): the longest start of the prompt, cut at a word, with which the metadata fits 256 tokens.

    The tokenizer cuts from the right, where BPM, key and length stand, so that a long prompt would silence them. A
    prompt without spaces is cut at a character.
    """
    if prompt_tokens(pipe, words, words.prompt) <= MAX_TEXT_TOKENS:
        return words.prompt, ""
    ends = [i for i, c in enumerate(words.prompt) if c.isspace()] or list(range(len(words.prompt)))
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        fits = prompt_tokens(pipe, words, words.prompt[: ends[middle - 1]]) <= MAX_TEXT_TOKENS
        low, high = (middle, high) if fits else (low, middle - 1)
    end = ends[low - 1] if low else 0
    return words.prompt[:end].rstrip(), words.prompt[end:].strip()


def prompt_tokens(pipe: Any, words: Words, prompt: str) -> int:
    """Count the tokens of the rendered prompt, metadata included, with `prompt` in the place of the words' own."""
    text, _ = pipe._format_prompt(
        prompt=prompt,
        audio_duration=words.seconds,
        instruction=words.instruction,
        bpm=words.bpm,
        keyscale=words.key,
        timesignature=words.time_signature,
    )
    return len(pipe.tokenizer(text).input_ids)


def lyric_tokens(pipe: Any, words: Words) -> int:
    """Count the tokens of the rendered lyrics; the model reads the first 2,048."""
    _, text = pipe._format_prompt(prompt="", lyrics=words.lyrics, vocal_language=words.language)
    return len(pipe.tokenizer(text).input_ids)
