"""What an untrusted LoRA file holds: tensors, format, each layer's rank and alpha, and which models it fits.

Nothing is unpickled and no weights are read. A safetensors file begins with a JSON header that
gives the type, shape and position of each tensor, and safetensors checks every entry against the
file before it is used. A fault becomes a `Refusal`, which `naming_lora` turns into a sentence with
the LoRA's name.

A layer has its module's name in diffusers, such as "layers.0.self_attn.to_q". The names that
trainers write (PEFT, ComfyUI, kohya, LyCORIS) are translated to it, from upstream's "q_proj" and
from diffusers' "to_q". Unknown keys are never dropped: a LoRA that acts only in part, or not at
all, must not look as if it worked.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from events import StudioError
from limits import shown

FIELD = "options.loras"
MAX_FILE_BYTES = 2_000_000_000
MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 20_000

# The types of safetensors, in `struct`'s notation.
_NUMBERS = {
    "F64": "<d",
    "F32": "<f",
    "F16": "<e",
    "I64": "<q",
    "I32": "<i",
    "I16": "<h",
    "I8": "<b",
    "U8": "<B",
}


class Refusal(Exception):
    """Why a file is not used: `rest` completes "The LoRA ..." and has no full stop."""

    def __init__(self, code: str, rest: str, hint: str = ""):
        super().__init__(code, rest, hint)
        self.code = code
        self.rest = rest
        self.hint = hint


@contextlib.contextmanager
def naming_lora(name: str) -> Iterator[None]:
    """Turn a `Refusal`, and a file that cannot be opened, into a `StudioError` about the LoRA `name`."""
    try:
        yield
        return
    except Refusal as error:
        refusal = error
    except FileNotFoundError:
        refusal = Refusal("lora_missing", "is no longer there", "Add it again.")
    except OSError as error:
        refusal = Refusal("disk", f"could not be read or stored: {error.strerror or error}")
    raise StudioError(
        refusal.code, f"The LoRA {shown(name, 80)} {refusal.rest}.", FIELD, refusal.hint
    )


def broken(reason: str) -> Refusal:
    return Refusal(
        "lora_broken", f"cannot be used: {reason}", "Download or export it again, as safetensors."
    )


def _unsupported(rest: str) -> Refusal:
    return Refusal(
        "lora_unsupported",
        f"{rest}, which this studio cannot apply",
        "Plain LoRA and LoKr files work.",
    )


@dataclass(frozen=True)
class Tensor:
    """One entry of a header; `start` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the entries and the metadata of a safetensors header, checked against the file; raises Refusal."""
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise Refusal(
                "lora_too_large",
                f"is {size / 1e9:.1f} GB; the limit is {MAX_FILE_BYTES / 1e9:g} GB",
            )
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if length > MAX_HEADER_BYTES:
            raise _not_safetensors(start)
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError:
            raise broken("it is not a safetensors file, or it is damaged or incomplete") from None
        entries = parse_json(file.read(length), "its header")
    metadata = entries.pop("__metadata__", None) or {}
    if len(entries) > MAX_TENSORS:
        raise broken(f"it lists {len(entries):,} tensors; the limit is {MAX_TENSORS:,}")
    tensors = {}
    for name, entry in entries.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
                tensors[name] = Tensor(dtype, tuple(shape), 8 + length + begin, 8 + length + end)
            case _:  # safetensors also reads a list in place of an object, which nobody writes
                raise broken(f"its header is damaged ({shown(name)})")
    return tensors, metadata


def _read_number(path: str | Path, tensor: Tensor) -> float:
    if math.prod(tensor.shape) != 1:
        raise broken("an alpha in it is not a single number")
    with Path(path).open("rb") as file:
        file.seek(tensor.start)
        data = file.read(tensor.end - tensor.start)
    if tensor.dtype == "BF16":  # the upper half of a float32
        return struct.unpack("<f", b"\0\0" + data)[0]
    if tensor.dtype not in _NUMBERS:
        raise broken(f"an alpha in it is of the type {tensor.dtype}")
    return struct.unpack(_NUMBERS[tensor.dtype], data)[0]


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """Parse an untrusted JSON object; of repeated keys the last counts, as in safetensors.

    A byte order mark tells UTF-16, as Windows PowerShell 5 writes it, from UTF-8.
    """
    coding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        coding = "utf-16"
    try:
        value = json.loads(data.decode(coding))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise broken(f"{what} is damaged (not a JSON object)")
    return value


def _not_safetensors(start: bytes) -> Refusal:
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        rest = "cannot be used: it is a pickle (.pt, .bin, .ckpt), which can run programs when it is opened"
        return Refusal("lora_broken", rest, "Only safetensors files are read.")
    if start == b"version ":
        return broken("it is a Git LFS pointer, not the weights")
    return broken("it is not a safetensors file")


def whole_model() -> Refusal:
    hint = "Start the studio with --model and its folder or repository, in diffusers' layout."
    return Refusal("lora_unfit", "is a whole model, not a LoRA", hint)


# The linear layers of a transformer: (out, in) by module.
Widths = Mapping[str, tuple[int, int]]


def _model_widths(
    hidden: int, queries: int, keys: int, mlp: int, layers: int, condition: int
) -> Widths:
    in_layer = {
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    for attention in ("self_attn", "cross_attn"):
        in_layer[f"{attention}.to_q"] = (queries, hidden)
        in_layer[f"{attention}.to_out.0"] = (hidden, queries)
        in_layer[f"{attention}.to_k"] = (keys, hidden)
        in_layer[f"{attention}.to_v"] = (keys, hidden)
    widths = {"condition_embedder": (hidden, condition)}
    for number in range(layers):
        for name, width in in_layer.items():
            widths[f"layers.{number}.{name}"] = width
    for embedding in ("time_embed", "time_embed_r"):
        widths[f"{embedding}.linear_1"] = (hidden, 256)
        widths[f"{embedding}.linear_2"] = (hidden, hidden)
        widths[f"{embedding}.time_proj"] = (6 * hidden, hidden)
    return widths


KNOWN_MODELS: dict[str, Widths] = {
    "XL": _model_widths(hidden=2560, queries=4096, keys=1024, mlp=9728, layers=32, condition=2048),
    "2B": _model_widths(hidden=2048, queries=2048, keys=1024, mlp=6144, layers=24, condition=2048),
}
_MODELS_BY_WIDTH = {2560: "an XL model", 2048: "a 2B model"}


def widths_of(checkpoint: Path) -> Widths | None:
    """Return the linear layers of a checkpoint in diffusers layout, from its headers; None if they cannot be read."""
    widths: dict[str, tuple[int, int]] = {}
    try:
        for path in sorted((checkpoint / "transformer").glob("*.safetensors")):
            with safe_open(path, "np") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            for key, shape in shapes.items():
                if key.endswith(".weight") and len(shape) == 2:
                    widths[key.removesuffix(".weight")] = shape
    except (OSError, SafetensorError):
        return None
    return widths or None


MAX_CONFIG_BYTES = 1_000_000
CONFIG_FILE = "adapter_config.json"
_DORA = "is a DoRA by PEFT (it rescales the model's own weights)"
# Initializations that change the base model.
_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


@dataclass(frozen=True)
class PeftConfig:
    """The part of adapter_config.json that changes the sound; `patterns` are alphas by the end of a module's name."""

    alpha: float | None = None
    rslora: bool = False
    patterns: tuple[tuple[str, float], ...] = ()

    def alpha_of(self, module: str) -> float | None:
        for pattern, alpha in self.patterns:
            if f".{module}".endswith(f".{pattern}"):
                return alpha
        return self.alpha


def read_config(data: bytes) -> PeftConfig:
    """Read an adapter_config.json; raises Refusal for what a plain LoRA cannot do."""
    if len(data) > MAX_CONFIG_BYTES:
        raise broken(f"its {CONFIG_FILE} is larger than {MAX_CONFIG_BYTES // 10**6} MB")
    return _peft_config(parse_json(data, f"its {CONFIG_FILE}"))


def _peft_config(values: Mapping[str, Any]) -> PeftConfig:
    kind = values.get("peft_type", "LORA")
    if kind != "LORA":
        raise _unsupported(f"is of PEFT's type {shown(kind)}")
    if values.get("use_dora"):
        raise _unsupported(_DORA)
    initialization = values.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower().startswith(_CHANGED_BASE):
        rest = (
            f"needs a base model that was changed when its training began ({shown(initialization)})"
        )
        hint = "Save it again with PEFT's path_initial_model_for_weight_conversion."
        raise Refusal("lora_unsupported", rest, hint)
    if values.get("layer_replication") or values.get("use_qalora") or values.get("fan_in_fan_out"):
        raise _unsupported("repeats, quantizes or transposes layers")
    rslora = values.get("use_rslora") or False
    patterns = values.get("alpha_pattern") or {}
    if not isinstance(rslora, bool) or not isinstance(patterns, dict):
        raise broken(f"its {CONFIG_FILE} is damaged")
    # PEFT reads patterns as regular expressions; here they must be plain names, because nothing
    # from a file is executed.
    plain = {name.removeprefix("^"): value for name, value in patterns.items()}
    if not all(re.fullmatch(r"[\w.]+", name) for name in plain):
        raise _unsupported("chooses alphas by regular expressions")
    alphas = tuple((name, _positive(value)) for name, value in plain.items())
    alpha = values.get("lora_alpha")
    if alpha is not None:
        alpha = _positive(alpha)
    return PeftConfig(alpha, rslora, alphas)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise broken(f"its alpha is {shown(value)}")
    return float(value)


# --- from keys to layers --------------------------------------------------------------------------

MAX_RANK = 256
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"lora_(?P<peft>[AB])(?:\.default)?(?:\.weight)?"
    r"|lora(?:_|\.|_linear_layer\.)(?P<kohya>down|up)(?:\.weight)?"
    r"|(?P<named>lokr_w[12](?:_[ab])?|dora_scale|alpha))"
)
_UNSUPPORTED_KEYS = (
    (re.compile(r"\.lora_magnitude_vector\b"), _DORA),
    (re.compile(r"\.hada_w[12]"), "is a LoHa"),
    (
        re.compile(r"\.(oft_\w+|boft_\w+|ia3_l|vera_\w+)\b"),
        "is another kind of adapter, not a LoRA",
    ),
    (re.compile(r"\.(lokr_t[12]|lora_mid)\b"), "adapts convolutions"),
    (re.compile(r"\.(diff|diff_b|modules_to_save)\b"), "holds whole layers"),
    (re.compile(r"\.(bias|lora_bias)$"), "changes biases"),
)
# Prefixes that programs put before a module's name; kohya and LyCORIS replace the dots by underscores.
_PREFIX = re.compile(
    r"(lora_(unet|transformer|decoder)_|lycoris_)?"
    r"((base_model[._]model|diffusion_model|transformer|model|decoder|module)[._])*"
)
_LAYER_WEIGHT = re.compile(
    r"layers\.\d+\.((self|cross)_attn\.(to_[qkv]|to_out\.0|[qkvo]_proj)|mlp\.(gate|up|down)_proj)"
)
_ENCODERS = re.compile(
    r"(condition_|text_)?(encoder[._]|lyric_encoder|timbre_encoder|text_projector)|lora_te"
)
# The program that wrote a file, by the prefix of its first key.
_FORMATS = {
    "base_model.model.": "PEFT",
    "transformer.": "diffusers",
    "diffusion_model.": "ComfyUI",
    "decoder.": "ComfyUI",
    "lora_unet_": "kohya",
    "lycoris_": "LyCORIS",
    "lora_": "kohya",
}
# The roles of the matrices whose product is a factor: one [out, in], or else [out, r] and [r, in].
_LORA = (("", "up", "down"),)
_LOKR = (("lokr_w1", "lokr_w1_a", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a", "lokr_w2_b"))


@dataclass(frozen=True)
class Layer:
    """How a file changes one module's weight: `scale` times its one factor, or for a LoKr kron(w1, w2) of its two."""

    module: str
    shape: tuple[int, int]  # of the weight, (out, in)
    # Each is a product of matrices, by their keys in the order of application.
    factors: tuple[tuple[str, ...], ...]
    # The key of a DoRA's lengths of each row [out, 1] or column [1, in] of the changed weight, or "".
    lengths: str
    scale: float  # alpha / r, for rslora alpha / sqrt(r)
    alpha: float | None
    rank: int | None  # None for a LoKr that has no low rank


@dataclass(frozen=True)
class LoraLayout:
    """What a usable file holds; `made_for` is "XL", "2B", or "" if it fits neither.

    `numbers` counts those that lie in memory once it is loaded: its factors, and a DoRA's lengths.
    """

    format: str
    layers: tuple[Layer, ...]
    made_for: str
    numbers: int


def read_layout(
    path: str | Path, widths: Widths | None, config: PeftConfig | None = None
) -> LoraLayout:
    """Return what the LoRA in `path` changes in a transformer of `widths` (None: any ACE-Step 1.5); raises Refusal.

    An alpha in the file comes first, then that of `config`, which is from the file beside it, or
    else from diffusers' metadata. Without any, the scale is 1.
    """
    tensors, metadata = read_header(path)
    if config is None:
        text = metadata.get("lora_adapter_metadata", "{}")
        values = parse_json(text.encode(errors="replace"), "its metadata")
        settings = {key.removeprefix("transformer."): value for key, value in values.items()}
        config = _peft_config(settings)
    layers = []
    for module, (name, keys) in _by_module(tensors, widths).items():
        shape, factors, rank = _factors(tensors, name, keys)
        alpha = config.alpha_of(name)
        key = keys.get("alpha")
        if key:
            alpha = _positive(_read_number(path, tensors[key]))
        scale = 1.0
        if alpha is not None and rank is not None:
            scale = alpha / (math.sqrt(rank) if config.rslora else rank)
        layers.append(Layer(module, shape, factors, keys.get("dora_scale", ""), scale, alpha, rank))
    made_for = _made_for(layers)
    _check_fit(layers, widths, made_for)
    kept = [key for layer in layers for factor in layer.factors for key in factor]
    kept += [layer.lengths for layer in layers if layer.lengths]
    numbers = sum(math.prod(tensors[key].shape) for key in kept)
    return LoraLayout(_format_of(tensors, layers), tuple(layers), made_for, numbers)


def _made_for(layers: list[Layer]) -> str:
    """Return the known model that has all of the layers, "" if none has."""
    shapes = {layer.module: layer.shape for layer in layers}
    for model, known in KNOWN_MODELS.items():
        if shapes.items() <= known.items():
            return model
    return ""


def _format_of(tensors: Mapping[str, Tensor], layers: list[Layer]) -> str:
    if all(len(layer.factors) == 2 for layer in layers):
        return "LoKr"
    first = next(iter(tensors))
    for prefix, program in _FORMATS.items():
        if first.startswith(prefix):
            return program
    return "plain"


def _by_module(
    tensors: Mapping[str, Tensor], widths: Widths | None
) -> dict[str, tuple[str, dict[str, str]]]:
    """Sort the keys by module: its name in the file, and the key for each role ("down", "lokr_w1_a", "alpha", ...)."""
    if any(map(_is_weight, tensors)) and not any(map(_KEY.fullmatch, tensors)):
        raise whole_model()
    found: dict[str, tuple[str, dict[str, str]]] = {}
    unknown = []
    known = _spellings(widths)
    for key in tensors:
        for pattern, reason in _UNSUPPORTED_KEYS:
            if pattern.search(key):
                raise _unsupported(reason)
        match = _KEY.fullmatch(key)
        module = known.get(_without_prefix(match["module"])) if match else None
        if match is None or module is None:
            unknown.append(key)
            continue
        role = {"A": "down", "B": "up"}.get(match["peft"]) or match["kohya"] or match["named"]
        _, keys = found.setdefault(module, (match["module"], {}))
        if role in keys:
            raise broken(f"two of its keys are for {module}")
        keys[role] = key
    if unknown:
        raise _unknown_keys(unknown, tensors, bool(found))
    if not found:
        raise broken("it holds no tensors")
    return found


def _spellings(widths: Widths | None) -> dict[str, str]:
    """Return the modules by each spelling of their names: diffusers' and upstream's, with dots or underscores."""
    modules = {}
    for model in (widths or {}, *KNOWN_MODELS.values()):
        for module in model:
            upstream = re.sub(r"\.to_([qkv])$", r".\1_proj", module).replace(".to_out.0", ".o_proj")
            for name in (module, upstream):
                modules[name] = module
                modules[name.replace(".", "_")] = module
    return modules


def _without_prefix(name: str) -> str:
    return _PREFIX.sub("", name, count=1)


def _is_weight(key: str) -> bool:
    """Tell whether a tensor is the weight itself of a layer of ACE-Step 1.5, whatever its size."""
    module = _without_prefix(key).removesuffix(".weight")
    return key.endswith(".weight") and _LAYER_WEIGHT.fullmatch(module) is not None


def _unknown_keys(unknown: list[str], tensors: Mapping[str, Tensor], in_part: bool) -> Refusal:
    first = shown(unknown[0], 80)
    if any(_ENCODERS.match(_without_prefix(key)) for key in unknown):
        return _unsupported(f"changes more than the transformer (the first such key is {first})")
    if in_part:
        rest = f"would act only in part: {len(unknown)} of its {len(tensors)} tensors are for layers that "
        rest += f"ACE-Step 1.5 does not have or that cannot be adapted (the first is {first})"
        return Refusal("lora_unfit", rest)
    if any(_is_of_v1(key, tensors[key]) for key in unknown):
        rest = "was made for the first ACE-Step (v1), which has different layers"
        return Refusal("lora_unfit", rest, "Use a LoRA for ACE-Step 1.5.")
    hint = "It was made for another model, or by a program whose names are not known here."
    return Refusal(
        "lora_unfit", f"has no layer of ACE-Step 1.5 in it (its first key is {first})", hint
    )


def _is_of_v1(key: str, tensor: Tensor) -> bool:
    """Tell whether a key is of the first ACE-Step, whose layers are 2560 wide."""
    return "transformer_blocks" in key and ("cross_attn" in key or 2560 in tensor.shape)


def _factors(
    tensors: Mapping[str, Tensor], name: str, keys: Mapping[str, str]
) -> tuple[tuple[int, int], tuple[tuple[str, ...], ...], int | None]:
    """Return (out, in) of the change to one module, its factors as in `Layer`, and its rank."""
    mismatch = broken(f"the tensors for {shown(name, 60)} do not belong together")
    shapes = {}
    for role, key in keys.items():
        tensor = tensors[key]
        if role == "alpha":
            continue
        if len(tensor.shape) > 2:
            raise _unsupported("adapts convolutions")
        if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.dtype not in _FLOATS:
            raise mismatch
        shapes[role] = tensor.shape
    lengths = shapes.pop("dora_scale", None)
    out_width = 1
    in_width = 1
    factors: list[tuple[str, ...]] = []
    ranks: set[int] = set()
    for whole, left, right in _LORA if "down" in shapes else _LOKR:
        if whole in shapes:
            rows, columns = shapes.pop(whole)
            factors.append((keys[whole],))
        else:
            rows, rank = shapes.pop(left, (0, 0))
            inner, columns = shapes.pop(right, (0, 0))
            if not rank or rank != inner:
                raise mismatch
            factors.append((keys[right], keys[left]))
            ranks.add(rank)
        out_width *= rows
        in_width *= columns
    if shapes or len(ranks) > 1 or lengths not in (None, (out_width, 1), (1, in_width)):
        raise mismatch
    highest = max(ranks, default=None)
    if highest and highest > MAX_RANK:
        raise Refusal("lora_too_large", f"has rank {highest:,}; the limit is {MAX_RANK}")
    return (out_width, in_width), tuple(factors), highest


def _check_fit(layers: list[Layer], widths: Widths | None, made_for: str) -> None:
    """Raise Refusal if a layer does not fit a model of `widths` (None: any known one)."""
    misfits = [layer for layer in layers if (widths or {}).get(layer.module) != layer.shape]
    if not misfits or (widths is None and made_for):
        return
    layer = misfits[0]
    if made_for and widths is not None:
        _, width = widths.get("layers.0.self_attn.to_q", (0, 0))
        rest = f"was made for the {made_for} models of ACE-Step 1.5, and this studio runs "
        rest += f"{_MODELS_BY_WIDTH.get(width, 'a model')} {width} wide"
        raise Refusal(
            "lora_unfit", rest, "A LoRA works only on the size of model that it was trained on."
        )
    if widths is None:
        has = "has a different width there, in XL and 2B alike"
    elif layer.module in widths:
        out_width, in_width = widths[layer.module]
        has = f"has {out_width} by {in_width} there"
    else:
        has = "has no such layer"
    rest = f"does not fit the model: it is {layer.shape[0]} by {layer.shape[1]} at {layer.module}, and the model {has}"
    raise Refusal("lora_unfit", rest, "It was made for a model of another size.")
