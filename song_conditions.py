"""The transformer's inputs for a song: words within the token budget, timbre, and the source as a context.

Shapes as in song_loop.py. A context [1 or B, T, 2C] is a source and a mask that is 1 where music is
generated.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import model_offload
import song_codec
from limits import MAX_TEXT_TOKENS

if TYPE_CHECKING:
    import torch

# The instructions that the weights were trained with (upstream constants.py).
TEXT2MUSIC = "Fill the audio semantic mask based on the given conditions:"
COVER = "Generate audio semantic tokens based on the given conditions:"
REPAINT = "Repaint the mask area based on the given conditions:"
LAYER = "Generate the {} track based on the audio context:"
EXTRACT = "Extract the {} track from the audio:"
COMPLETE = "Complete the input track with {}:"

Words = dict[str, Any]  # what the text encoder reads, by the names of the pipeline's parameters


@dataclass(frozen=True)
class Condition:
    """The transformer's inputs: the encoders' `states` [1, L, D], and `context` [1 or B, T, 2C]: source and mask."""

    states: torch.Tensor
    context: torch.Tensor


def words_of(request: Any, seconds: float, instruction: str) -> Words:
    """Return the words of `request`; `seconds` is the exact length, which the prompt shows in whole seconds."""
    return {
        "prompt": request.prompt,
        "lyrics": request.sung_lyrics(),
        "vocal_language": request.language,
        "audio_duration": seconds,
        "instruction": instruction,
        "bpm": request.bpm,
        "keyscale": request.key,
        "timesignature": request.time_signature,
    }


def encode_condition(
    pipe: Any,
    words: Words,
    context: torch.Tensor,
    timbre: torch.Tensor | None = None,
    timbre_token: bool = True,
) -> Condition:
    """Encode words and timbre for `context`.

    `timbre` [1, 750, C] has the latents of a reference; None stands for the model's own silence.
    `timbre_token` prepends the XL checkpoints' learned token, which diffusers 0.42.1 leaves out; a
    2B-shaped checkpoint ignores the switch.
    """
    import torch

    device = pipe._execution_device
    dtype = pipe.transformer.dtype
    encoder = pipe.condition_encoder.timbre_encoder
    if timbre is None:
        timbre = song_codec.silence(pipe, song_codec.frames_for(pipe, song_codec.REFERENCE_SECONDS))

    def prepend_token(module, inputs, embedded):
        # The encoder pools the first position (upstream, XL).
        token = encoder.special_token.to(device=embedded.device, dtype=embedded.dtype)
        return torch.cat([token.expand(embedded.shape[0], -1, -1), embedded], dim=1)

    with torch.no_grad(), contextlib.ExitStack() as hooks:
        if timbre_token and is_xl(pipe):
            hooks.enter_context(encoder.embed_tokens.register_forward_hook(prepend_token))
        text, text_mask, lyrics, lyrics_mask = pipe.encode_prompt(device=device, **words)
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
    return config.encoder_hidden_size not in (None, config.hidden_size)


def context_of(source: torch.Tensor, new: torch.Tensor | None = None) -> torch.Tensor:
    """Return the context of `source` [B, T, C]; its mask is 1 where `new` [1, T, 1] is True, or everywhere."""
    import torch

    if new is None:
        mask = torch.ones_like(source)
    else:
        mask = new.to(source.dtype).expand_as(source)
    return torch.cat([source, mask], dim=-1)


def silent_context(pipe: Any, frames: int) -> torch.Tensor:
    return context_of(song_codec.silence(pipe, frames))


def masked_context(source: torch.Tensor, silence: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return the context of `source` [1, T, C] with `silence` [1, T, C] where `new` [1, T, 1] is True."""
    import torch

    return context_of(torch.where(new, silence, source), new)


def cover_context(pipe: Any, clean: torch.Tensor) -> torch.Tensor:
    """Return the context of a cover: `clean` [1, T, C] through the 5 Hz audio codes and back."""
    import torch

    frames = clean.shape[1]
    with torch.no_grad():
        codes, _ = pipe.audio_tokenizer.tokenize(clean, song_codec.silence(pipe, frames))
        latents = pipe.audio_token_detokenizer(codes.to(clean.dtype))
        return context_of(latents[:, :frames])


def codes_context(pipe: Any, codes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the context [B, 5N, 2C] of each take's N audio codes (5 a second)."""
    import torch

    dtype = pipe.transformer.dtype
    # One quantizer reads the codes; any others get zeros, as in the pipeline.
    quantizers = pipe.audio_tokenizer.config.fsq_input_num_quantizers
    indices = torch.tensor(codes, dtype=torch.long, device=pipe._execution_device)[..., None]
    indices = torch.nn.functional.pad(indices, (0, quantizers - 1))
    model_offload.bring(pipe, "audio_tokenizer")
    with torch.no_grad():
        quantized = pipe.audio_tokenizer.quantizer.get_output_from_indices(indices).to(dtype)
        return context_of(pipe.audio_token_detokenizer(quantized).to(dtype))


def audio_codes(pipe: Any, clean: torch.Tensor) -> list[int]:
    """Return the audio codes, 5 a second, of latents `clean` [1, T, C]."""
    import torch

    with torch.no_grad():
        _, indices = pipe.audio_tokenizer.tokenize(clean, song_codec.silence(pipe, clean.shape[1]))
    return indices[0, :, 0].tolist()


def has_audio_codes(pipe: Any) -> bool:
    return pipe.audio_tokenizer is not None and pipe.audio_token_detokenizer is not None


def fit_prompt(pipe: Any, words: Words) -> tuple[str, str]:
    """Cut the prompt at a word so that it fits 256 tokens with the metadata; return (kept, dropped).

    The tokenizer would cut from the right, and so drop BPM, key and length after a long prompt. A
    prompt without spaces is cut at a character.
    """
    prompt = words["prompt"]

    def too_long(end: int) -> bool:
        return count_tokens(pipe, {**words, "prompt": prompt[:end]})[0] > MAX_TEXT_TOKENS

    if not too_long(len(prompt)):
        return prompt, ""
    spaces = [index for index, character in enumerate(prompt) if character.isspace()]
    ends = [0, *(spaces or range(1, len(prompt)))]
    first_too_long = bisect.bisect_left(ends, True, key=too_long)
    end = ends[max(first_too_long - 1, 0)]
    return prompt[:end].rstrip(), prompt[end:].strip()


def count_tokens(pipe: Any, words: Words) -> list[int]:
    """Count the tokens of the rendered prompt, metadata included, and of the rendered lyrics."""
    return [len(pipe.tokenizer(text).input_ids) for text in pipe._format_prompt(**words)]
