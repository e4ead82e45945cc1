"""What a LoRA's file holds, read without trust: its tensors, its format, each layer's rank and alpha, what it fits.

A LoRA comes from anybody. Nothing here unpickles, and no weights are read: a safetensors file begins with a JSON header
that names each tensor, its type, shape and place, and all of it is checked against the file before it is believed. What
is wrong is a `Refusal`, which `about` turns into one sentence that names the LoRA.

A layer is known by the name that its module has in diffusers, "layers.0.self_attn.to_q". The spellings of the trainers
(PEFT, ComfyUI, kohya, LyCORIS) are brought to it, in both vocabularies: upstream's "q_proj" and diffusers' "to_q". A
key that is not understood is never dropped: a LoRA that acts in part, or not at all, must not look as if it worked.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from events import StudioError
from limits import shown

FIELD = "options.loras"
MAX_FILE_BYTES = 2_000_000_000
MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 20_000

_NAME_CHARACTERS = 500
_DIMENSIONS = 8
_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}
_NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}


class Refusal(Exception):
    """Why a file is not used: `rest` goes on after "The LoRA ..." and has no full stop."""

    def __init__(self, code: str, rest: str, hint: str = ""):
        super().__init__(code, rest, hint)
        self.code, self.rest, self.hint = code, rest, hint


@contextlib.contextmanager
def about(name: str) -> Iterator[None]:
    """Turn a `Refusal`, and a file that cannot be opened, into a `StudioError` about the LoRA `name`."""
    try:
        yield
    except Refusal as error:
        raise StudioError(error.code, f"The LoRA {shown(name, 80)} {error.rest}.", FIELD, error.hint) from None
    except FileNotFoundError:
        sentence = f"The LoRA {shown(name, 80)} is not there any more."
        raise StudioError("lora_missing", sentence, FIELD, "Add it again.") from None
    except OSError as error:
        sentence = f"The LoRA {shown(name, 80)} could not be read or stored: {error.strerror or error}."
        raise StudioError("disk", sentence, FIELD) from None


# --- the header ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """One entry of a header; `start` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The tensors by name, the file's own `metadata`, and its `size` in bytes."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    size: int


def read_header(path: str | Path, most: int = MAX_FILE_BYTES) -> Header:
    """Read and check the header of a safetensors file of up to `most` bytes; the tensors themselves are not read.

    Raises:
        Refusal: the file is too large, cut off, not safetensors, or its header contradicts itself or the file.
        OSError: the file cannot be opened.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Refusal("lora_too_large", f"is {size / 1e9:.1f} GB; up to {most / 1e9:g} GB are read")
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _no_header(start)
        header = parse_json(file.read(length), "its header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise broken("its header is damaged (metadata)")
    if len(header) > MAX_TENSORS:
        raise broken(f"it lists {len(header):,} tensors; up to {MAX_TENSORS:,} are read")
    tensors = {name: _tensor(name, entry, 8 + length) for name, entry in header.items()}
    _check_places(tensors, 8 + length, size)
    return Header(tensors, metadata, size)


def read_number(path: str | Path, tensor: Tensor) -> float:
    if math.prod(tensor.shape) != 1:
        raise broken("an alpha in it is not one number")
    with Path(path).open("rb") as file:
        file.seek(tensor.start)
        data = file.read(tensor.end - tensor.start)
    if len(data) != tensor.end - tensor.start:
        raise broken("it was cut off while it was read")
    if tensor.dtype == "BF16":
        return struct.unpack("<f", b"\0\0" + data)[0]
    if tensor.dtype not in _NUMBERS:
        raise broken(f"an alpha in it is of the type {tensor.dtype}")
    return struct.unpack(_NUMBERS[tensor.dtype], data)[0]


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """Parse an untrusted JSON object; a key that stands twice, NaN and deep nesting are refused like bad syntax."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key stands twice")
        return value

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise broken(f"{what} is damaged (no JSON object)")
    return value


def broken(reason: str) -> Refusal:
    return Refusal("lora_broken", f"cannot be used: {reason}", "Download or export it again, as safetensors.")


def is_inside(name: str) -> bool:
    """Tell whether a name of an archive or a repository is a plain relative path."""
    parts = name.split("/")
    return bool(name) and not re.search(r"[\\:\x00-\x1f]", name) and not {"", ".", ".."} & set(parts)


def sha256_of(path: str | Path) -> str:
    """Return the file's SHA-256; one that did not change since is not read again."""
    stat = os.stat(path)
    return _digest(os.path.realpath(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest(path: str, *identity: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_header(start: bytes) -> Refusal:
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        reason = "it is not a safetensors file but one that can run programs when it is opened (.pt, .bin, .ckpt)"
        return Refusal("lora_broken", f"cannot be used: {reason}", "Only safetensors files are read.")
    if start == b"version ":
        return broken("it is a Git LFS pointer, not the weights")
    return broken("it is not a safetensors file, or it is cut off")


def _tensor(name: str, entry: Any, data: int) -> Tensor:
    flaw = broken(f"its header is damaged ({shown(name)})")
    if (
        not isinstance(entry, dict)
        or entry.keys() != {"dtype", "shape", "data_offsets"}
        or len(name) > _NAME_CHARACTERS
    ):
        raise flaw
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    whole = all(
        isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**53 for n in numbers)
        for numbers in (shape, offsets)
    )
    if not isinstance(dtype, str) or dtype not in _BYTES or not whole or len(shape) > _DIMENSIONS or len(offsets) != 2:
        raise flaw
    if offsets[1] - offsets[0] != math.prod(shape) * _BYTES[dtype]:
        raise flaw
    return Tensor(dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _check_places(tensors: Mapping[str, Tensor], data: int, size: int) -> None:
    """Demand what the format does: the tensors fill the file from `data` to its end, without overlaps or holes."""
    end = data
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end:
            raise broken("its tensors overlap or leave holes")
        end = tensor.end
    if end != size:
        raise broken(f"it is not whole ({size:,} of {end:,} bytes)" if size < end else "bytes follow its tensors")


# --- layers, formats and fit ----------------------------------------------------------------------------------------

MAX_CONFIG_BYTES = 1_000_000
MAX_RANK = 256
CONFIG_FILE = "adapter_config.json"

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")

Widths = Mapping[str, tuple[int, int]]
"""The linear layers of a transformer: module name to (out, in)."""


# --- the models it may fit ----------------------------------------------------------------------------------------


def model_widths(hidden: int, queries: int, keys: int, mlp: int, layers: int, condition: int) -> Widths:
    """Return the linear layers of an ACE-Step 1.5 transformer with these widths."""
    attention = {
        "to_q": (queries, hidden),
        "to_k": (keys, hidden),
        "to_v": (keys, hidden),
        "to_out.0": (hidden, queries),
    }
    layer = {f"{kind}.{name}": width for kind in ("self_attn", "cross_attn") for name, width in attention.items()}
    layer |= {"mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden), "mlp.down_proj": (hidden, mlp)}
    time = {"linear_1": (hidden, 256), "linear_2": (hidden, hidden), "time_proj": (6 * hidden, hidden)}
    return {
        **{f"layers.{i}.{name}": width for i in range(layers) for name, width in layer.items()},
        **{f"{part}.{name}": width for part in ("time_embed", "time_embed_r") for name, width in time.items()},
        "condition_embedder": (hidden, condition),
    }


KNOWN_MODELS: dict[str, Widths] = {
    "XL": model_widths(2560, 4096, 1024, 9728, 32, 2048),
    "2B": model_widths(2048, 2048, 1024, 6144, 24, 2048),
}


def widths_of(checkpoint: Path) -> Widths | None:
    """Return the linear layers of a checkpoint in diffusers layout, from its headers; None where it is not there."""
    try:
        headers = [read_header(path, 2**63) for path in sorted((checkpoint / "transformer").glob("*.safetensors"))]
    except (OSError, Refusal):
        return None
    weights = {name: tensor.shape for header in headers for name, tensor in header.tensors.items()}
    suffix = ".weight"
    widths = {name.removesuffix(suffix): s for name, s in weights.items() if name.endswith(suffix) and len(s) == 2}
    return widths or None


def model_name(widths: Widths) -> str:
    """Say which ACE-Step 1.5 a transformer is: "an XL model", "a 2B model", or its width where it is neither."""
    width = widths.get("layers.0.self_attn.to_q", (0, 0))
    for kind, known in KNOWN_MODELS.items():
        if width == known["layers.0.self_attn.to_q"]:
            return f"{'an' if kind == 'XL' else 'a'} {kind} model ({width[1]} wide)"
    return f"a model {width[1]} wide"


# --- what PEFT writes beside the weights --------------------------------------------------------------------------


@dataclass(frozen=True)
class PeftConfig:
    """The part of adapter_config.json that changes the sound; `patterns` are alphas of single modules."""

    alpha: float | None = None
    rslora: bool = False
    patterns: tuple[tuple[str, float], ...] = ()

    def alpha_of(self, module: str) -> float | None:
        """Return the alpha of a module, by the name it has in the file: its own pattern's, else the common one."""
        for pattern, alpha in self.patterns:
            if module == pattern or module.endswith(f".{pattern}"):
                return alpha
        return self.alpha


def read_config(data: bytes) -> PeftConfig:
    """Read an adapter_config.json; raises Refusal for what cannot be done from the weights of a plain LoRA."""
    if len(data) > MAX_CONFIG_BYTES:
        raise broken(f"its {CONFIG_FILE} is larger than {MAX_CONFIG_BYTES // 10**6} MB")
    return _peft_config(parse_json(data, f"its {CONFIG_FILE}"))


def _peft_config(values: Mapping[str, Any]) -> PeftConfig:
    kind = values.get("peft_type", "LORA")
    if kind != "LORA":
        raise _unsupported(f"is of PEFT's kind {shown(kind)}")
    if values.get("use_dora"):
        raise _dora()
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "lora_ga", "loftq")):
        raise Refusal(
            "lora_unsupported",
            f"needs a base model that was changed when its training began ({shown(start)})",
            "Save it again with PEFT's path_initial_model_for_weight_conversion.",
        )
    if values.get("layer_replication") or values.get("use_qalora") or values.get("fan_in_fan_out"):
        raise _unsupported("repeats, quantizes or transposes layers")
    rslora, patterns = values.get("use_rslora") or False, values.get("alpha_pattern") or {}
    if not isinstance(rslora, bool) or not isinstance(patterns, dict):
        raise broken(f"its {CONFIG_FILE} is damaged")
    # PEFT's patterns are regular expressions; names are written as they are, and nothing else is run from a file.
    plain = {name.removeprefix("^"): value for name, value in patterns.items()}
    if not all(re.fullmatch(r"[\w.]+", name) for name in plain):
        raise _unsupported("chooses alphas by regular expressions")
    alpha = values.get("lora_alpha")
    return PeftConfig(
        None if alpha is None else _positive(alpha),
        rslora,
        tuple((name, _positive(value)) for name, value in plain.items()),
    )


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise broken(f"its alpha is {shown(value)}")
    return float(value)


def _unsupported(rest: str) -> Refusal:
    return Refusal("lora_unsupported", f"{rest}, which this studio cannot apply", "Plain LoRA and LoKr files work.")


def _dora() -> Refusal:
    return _unsupported("is a DoRA by PEFT (it rescales the model's own weights)")


# --- from keys to layers ------------------------------------------------------------------------------------------

_KEY = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"lora_(?P<peft>[AB])(?:\.default)?(?:\.weight)?"
    r"|lora(?:_|\.|_linear_layer\.)(?P<kohya>down|up)(?:\.weight)?"
    r"|(?P<named>lokr_w[12](?:_[ab])?|dora_scale)"
    r"|(?P<alpha>alpha))"
)
_ODD = (
    (re.compile(r"\.lora_magnitude_vector\b"), "DoRA"),
    (re.compile(r"\.hada_w[12]"), "is a LoHa"),
    (re.compile(r"\.(oft_\w+|boft_\w+|ia3_l|vera_\w+)\b"), "is of another kind than LoRA"),
    (re.compile(r"\.(lokr_t[12]|lora_mid)\b"), "adapts convolutions"),
    (re.compile(r"\.(diff|diff_b|modules_to_save)\b"), "holds whole layers"),
    (re.compile(r"\.(bias|lora_bias)$"), "changes biases"),
)
_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "decoder.", "module.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_", "lora_decoder_")
_UPSTREAM = ((".to_q", ".q_proj"), (".to_k", ".k_proj"), (".to_v", ".v_proj"), (".to_out.0", ".o_proj"))
_ENCODERS = re.compile(
    r"(lora_te\d?_|condition_|text_)?(encoder[._]|lyric_encoder|timbre_encoder|text_projector)|lora_te"
)
_FORMATS = (
    ("base_model.model.", "PEFT"),
    ("transformer.", "diffusers"),
    ("diffusion_model.", "ComfyUI"),
    ("decoder.", "ComfyUI"),
    ("lora_unet_", "kohya"),
    ("lycoris_", "LyCORIS"),
    ("lora_", "kohya"),
)


@dataclass(frozen=True)
class Layer:
    """One adapted module: the tensors of the file by their role, and the factor of their product.

    A LoRA has "down" [r, in] and "up" [out, r]. A LoKr has "lokr_w1" or "lokr_w1_a" and "lokr_w1_b", and w2 likewise;
    its delta is kron(w1, w2). Both may have a "dora_scale" [out, 1] or [1, in]: how long each row or column of the
    model's weight is with the delta (DoRA, as LyCORIS stores it). `scale` is alpha / r (alpha by the square root of r
    for rslora); `rank` is None where a LoKr has no low rank.
    """

    module: str
    kind: Literal["lora", "lokr"]
    tensors: tuple[tuple[str, str], ...]
    scale: float
    alpha: float | None
    rank: int | None


@dataclass(frozen=True)
class Layout:
    """A file that was understood: its `format`, its layers, and `made_for` ("XL", "2B" or "" where it fits neither)."""

    header: Header
    format: str
    layers: tuple[Layer, ...]
    made_for: str


def read_layout(path: str | Path, widths: Widths | None, config: PeftConfig | None = None) -> Layout:
    """Read what the LoRA in `path` changes in a transformer of `widths` (None: in any ACE-Step 1.5).

    `config` is what stood beside the file. An alpha in the file itself comes first, then the config, then what
    diffusers writes into the metadata; where there is none the factor is 1, as in other programs.

    Raises:
        Refusal: it is damaged, of a kind that cannot be applied, or made for another model.
        OSError: it cannot be opened.
    """
    header = read_header(path)
    config = config or _from_metadata(header.metadata)
    parts, names = _by_module(header, widths)
    shapes, ranks = {}, {}
    for module, roles in parts.items():
        shapes[module], ranks[module] = _shape(
            {role: header.tensors[key] for role, key in roles.items()}, names[module]
        )
    made_for = next((kind for kind, known in KNOWN_MODELS.items() if _first_misfit(shapes, known) is None), "")
    _check_fit(shapes, widths, made_for, names)
    layers = []
    for module, roles in parts.items():
        key, rank = roles.pop("alpha", None), ranks[module]
        alpha = config.alpha_of(names[module]) if key is None else _positive(read_number(path, header.tensors[key]))
        scale = 1.0
        if alpha is not None and rank is not None:
            scale = alpha / (math.sqrt(rank) if config.rslora else rank)
        kind = "lora" if "down" in roles else "lokr"
        layers.append(Layer(module, kind, tuple(sorted(roles.items())), scale, alpha, rank))
    kinds = {layer.kind for layer in layers}
    return Layout(header, "LoKr" if kinds == {"lokr"} else _format(header), tuple(layers), made_for)


def is_peft(header: Header) -> bool:
    """Tell whether PEFT named the tensors of a file, which keeps its alpha in a file beside it."""
    return any(name.startswith("base_model.model.") for name in header.tensors)


def _from_metadata(metadata: Mapping[str, str]) -> PeftConfig:
    """Read the PEFT settings that diffusers writes into a file of its own."""
    if "lora_adapter_metadata" not in metadata:
        return PeftConfig()
    values = parse_json(metadata["lora_adapter_metadata"].encode(errors="replace"), "its metadata")
    return _peft_config({key.removeprefix("transformer."): value for key, value in values.items()})


def _by_module(header: Header, widths: Widths | None) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Sort the keys: module to (role to key), and module to the name that the file has for it."""
    parts: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    unknown = []
    known = _spellings(widths)
    for key in header.tensors:
        if odd := next((kind for mark, kind in _ODD if mark.search(key)), None):
            raise _dora() if odd == "DoRA" else _unsupported(odd)
        found = _KEY.fullmatch(key)
        module = known.get(_bare(found["module"])) if found else None
        if module is None:
            unknown.append(key)
            continue
        role = {"A": "down", "B": "up", "down": "down", "up": "up"}.get(found["peft"] or found["kohya"])
        role = role or found["named"] or "alpha"
        if role in parts.setdefault(module, {}):
            raise broken(f"two of its keys are for {module}")
        parts[module][role] = key
        names[module] = found["module"]
    if unknown:
        raise _unknown_keys(unknown, header, len(parts))
    if not parts:
        raise broken("it holds no tensors")
    return parts, names


def _spellings(widths: Widths | None) -> dict[str, str]:
    """Return each way to write a module's name, with dots or flattened as kohya does, and the module's own name."""
    known = {}
    for module in dict.fromkeys(name for model in (widths or {}, *KNOWN_MODELS.values()) for name in model):
        upstream = functools.reduce(lambda name, pair: name.replace(*pair), _UPSTREAM, module)
        for name in (module, upstream):
            known[name] = known[name.replace(".", "_")] = module
    return known


def _bare(name: str) -> str:
    """Strip what programs put before a module's name."""
    flat = next((prefix for prefix in _FLAT_PREFIXES if name.startswith(prefix)), None)
    prefixes = tuple(prefix.replace(".", "_") for prefix in _PREFIXES) if flat else _PREFIXES
    name = name.removeprefix(flat or "")
    while prefix := next((prefix for prefix in prefixes if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _format(header: Header) -> str:
    first = next(iter(header.tensors))
    return next((name for prefix, name in _FORMATS if first.startswith(prefix)), "plain")


def _unknown_keys(unknown: list[str], header: Header, known: int) -> Refusal:
    first = shown(unknown[0], 80)
    if any(_ENCODERS.match(_bare(key)) for key in unknown):
        return _unsupported(f"changes more than the transformer (the first such key is {first})")
    if known:
        return Refusal(
            "lora_unfit",
            f"would act only in part: {len(unknown)} of its {len(header.tensors)} tensors are for layers that "
            f"ACE-Step 1.5 does not have or that cannot be adapted (the first is {first})",
        )
    old = [key for key in unknown if "transformer_blocks" in key]
    if old and any("cross_attn" in key or 2560 in header.tensors[key].shape for key in old):
        return Refusal(
            "lora_unfit",
            "was made for the first ACE-Step (v1), whose layers are others",
            "LoRAs for ACE-Step 1.5 are needed.",
        )
    return Refusal(
        "lora_unfit",
        f"has no layer of ACE-Step 1.5 in it (its first key is {first})",
        "It was made for another model, or by a program whose names are not known here.",
    )


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[tuple[int, int], int | None]:
    """Return (out, in) of the change that the tensors of one module make, and its rank."""
    flaw = broken(f"the tensors for {shown(name, 60)} do not belong together")
    matrices = {role: tensor for role, tensor in tensors.items() if role != "alpha"}
    for tensor in matrices.values():
        if len(tensor.shape) > 2:
            raise _unsupported("adapts convolutions")
        if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.dtype not in _FLOATS:
            raise flaw
    shapes = {role: tensor.shape for role, tensor in matrices.items()}
    lengths = shapes.pop("dora_scale", None)
    (out, into), rank = _delta(shapes, flaw)
    if lengths not in (None, (out, 1), (1, into)):
        raise flaw
    return (out, into), rank


def _delta(shapes: dict[str, tuple[int, ...]], flaw: Refusal) -> tuple[tuple[int, int], int | None]:
    """Return (out, in) of the product of the matrices with these shapes, and its rank."""
    if shapes.keys() == {"down", "up"}:
        (rank, inputs), (outputs, other) = shapes["down"], shapes["up"]
        if rank != other:
            raise flaw
        return (outputs, inputs), _allowed(rank)
    factors, ranks = [], []
    for factor in ("lokr_w1", "lokr_w2"):
        pair = shapes.pop(f"{factor}_a", None), shapes.pop(f"{factor}_b", None)
        whole = shapes.pop(factor, None)
        if whole is None and all(pair) and pair[0][1] == pair[1][0]:
            ranks.append(_allowed(pair[0][1]))
            whole = (pair[0][0], pair[1][1])
        elif whole is None or any(pair):
            raise flaw
        factors.append(whole)
    if shapes or len(set(ranks)) > 1:
        raise flaw
    return (factors[0][0] * factors[1][0], factors[0][1] * factors[1][1]), ranks[0] if ranks else None


def _allowed(rank: int) -> int:
    if rank > MAX_RANK:
        raise Refusal("lora_too_large", f"has rank {rank:,}; up to {MAX_RANK} are read")
    return rank


def _first_misfit(shapes: Widths, widths: Widths) -> str | None:
    return next((module for module, shape in shapes.items() if widths.get(module) != shape), None)


def _check_fit(shapes: Widths, widths: Widths | None, made_for: str, names: Mapping[str, str]) -> None:
    if widths is None and made_for:
        return
    module = _first_misfit(shapes, widths or {})
    if module is None:
        return
    if made_for and widths is not None:
        raise Refusal(
            "lora_unfit",
            f"was made for the {made_for} models of ACE-Step 1.5 ({_width(made_for)} wide), and this studio runs "
            f"{model_name(widths)}",
            "A LoRA works only on the size of model that it was trained on.",
        )
    out, into = shapes[module]
    has = "has no such layer"
    if widths is not None and module in widths:
        has = f"has {widths[module][0]} by {widths[module][1]} there"
    elif widths is None:
        has = "has another width there, in XL as in 2B"
    raise Refusal(
        "lora_unfit",
        f"does not fit the model: it is {out} by {into} wide at {shown(names[module], 60)}, and the model {has}",
        "It was made for a model of another size.",
    )


def _width(kind: str) -> int:
    return KNOWN_MODELS[kind]["layers.0.self_attn.to_q"][1]
