"""LoRA files without trust: headers, formats, fits, zips, and a hub of our own, 127.0.0.1. None of it needs torch."""

import hashlib
import json
import random
import re
import struct
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

import hub
import lora_files
import lora_hub
import lora_sources
from events import StudioError
from lora_files import Refusal, read_header
from lora_layout import KNOWN_MODELS, PeftConfig, read_config, read_layout

ROOT = Path(__file__).parents[2]
ITEM = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "U8": 1}
SIZES = {"XL": (2560, 4096), "2B": (2048, 2048)}


def blob(tensors, metadata=None, data=b""):
    """Return a safetensors file; `tensors` maps names to shapes, or to (dtype, shape), or to (dtype, shape, bytes)."""
    header, body = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, entry in tensors.items():
        dtype, shape, *content = entry if entry and isinstance(entry[0], str) else ("F16", entry)
        count = ITEM[dtype]
        for n in shape:
            count *= n
        content = content[0] if content else bytes(count)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    return wrap(json.dumps(header).encode(), body + data)


def wrap(header, body=b""):
    return struct.pack("<Q", len(header)) + header + body


def attention(kind="XL", rank=2, prefix="base_model.model.", layers=(0,), name="q_proj"):
    """Return the tensors of a LoRA on the queries of a real model's size."""
    hidden, queries = SIZES[kind]
    tensors = {}
    for i in layers:
        module = f"{prefix}layers.{i}.self_attn.{name}"
        tensors |= {f"{module}.lora_A.weight": (rank, hidden), f"{module}.lora_B.weight": (queries, rank)}
    return tensors


@pytest.fixture
def lora(tmp_path):
    """Write a file of these bytes, or of these tensors."""

    def write(content, name="my-lora.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else blob(content))
        return path

    return write


def refusal(action, *args):
    with pytest.raises(Refusal) as caught:
        action(*args)
    return caught.value


# --- the header ---------------------------------------------------------------------------------------------------


def test_a_header_is_read(lora):
    header = read_header(lora(blob({"a": (2, 3), "b.alpha": ("F32", ())}, {"format": "pt"})))
    assert header.metadata == {"format": "pt"}
    tensor = header.tensors["a"]
    assert (tensor.dtype, tensor.shape, tensor.end - tensor.start) == ("F16", (2, 3), 12)
    assert header.tensors["b.alpha"].end == header.size


def one(**changes):
    """Return a file with one entry, of 4 bytes, that a test bends."""
    return wrap(json.dumps({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4], **changes}}).encode(), bytes(4))


TWO = '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[%d,%d]}}'
BROKEN = {
    "empty": b"",
    "seven bytes": b"1234567",
    "only a length": struct.pack("<Q", 2),
    "a length beyond the file": struct.pack("<Q", 1000) + b"{}",
    "a huge length": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a negative length": struct.pack("<q", -1) + b"{}",
    "a length over the limit": struct.pack("<Q", lora_files.MAX_HEADER_BYTES + 1) + b"{}" * 100,
    "no JSON": wrap(b"not json"),
    "not UTF-8": wrap(b'{"\xff":1}'),
    "UTF-16": wrap('{"a":1}'.encode("utf-16")),
    "a list": wrap(b"[]"),
    "NaN": wrap(b'{"a":NaN}'),
    "deep": wrap(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "deep and open": wrap(b'{"a":' + b'{"a":' * 200_000),
    "a long number": wrap(b'{"a":' + b"9" * 10_000 + b"}"),
    "twice the same key": wrap(b'{"a":1,"a":1}'),
    "twice the same key inside": wrap(b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}', bytes(2)),
    "an entry that is a number": wrap(b'{"a":1}'),
    "an entry inside an entry": one(shape=[{"a": [2]}]),
    "a further field": one(other=1),
    "an unknown type": one(dtype="F12"),
    "a type that is a list": one(dtype=["F16"]),
    "a shape that is no list": one(shape="2"),
    "a negative shape": one(shape=[-1, -2]),
    "a shape of true": one(shape=[True, 2]),
    "a fraction": one(shape=[2.0]),
    "a shape whose product is huge": one(shape=[2**40, 2**40]),
    "a shape of zeros and huge": one(shape=[0, 2**52, 2**52]),
    "many dimensions": one(shape=[1] * 8 + [2]),
    "negative offsets": one(data_offsets=[-4, 0]),
    "offsets that turn back": one(data_offsets=[4, 0]),
    "three offsets": one(data_offsets=[0, 4, 8]),
    "offsets beyond the file": one(data_offsets=[4, 8]),
    "a size that differs from the shape": one(shape=[3]),
    "overlapping": wrap((TWO % (1, 3)).encode(), bytes(3)),
    "the same place": wrap((TWO % (0, 2)).encode(), bytes(2)),
    "a hole": wrap((TWO % (3, 5)).encode(), bytes(5)),
    "bytes behind": blob({"a": (2,)}, data=b"x"),
    "cut off": blob({"a": (200,)})[:-1],
    "metadata of numbers": wrap(b'{"__metadata__":{"a":1}}'),
    "metadata that is a list": wrap(b'{"__metadata__":[]}'),
    "a name of a thousand letters": blob({"a" * 1000: (2,)}),
    "too many tensors": blob({str(i): (0,) for i in range(lora_files.MAX_TENSORS + 1)}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_header_is_refused_with_a_sentence(lora, kind):
    info = lora_sources.inspect(lora(BROKEN[kind]))
    assert (info.problem.code, info.problem.field, info.fits) == ("lora_broken", "options.loras", False)
    assert '"my-lora.safetensors"' in info.problem.message and info.problem.hint
    assert len(info.problem.message) < 300


@pytest.mark.parametrize(
    "start, said",
    [
        (b"PK\x03\x04" + bytes(100), "can run programs"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9" + bytes(100), "can run programs"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "not a safetensors file"),
    ],
)
def test_other_files_are_named(lora, start, said):
    assert said in lora_sources.inspect(lora(start)).problem.message


def test_a_header_of_640_bytes_is_no_pickle(lora):
    tensors = attention()
    for length in range(2000):
        content = blob(tensors, {"a": "x" * length})
        if content.startswith(b"\x80\x02"):
            assert read_header(lora(content)).metadata
            break
    else:
        pytest.fail("no header of 640 bytes was made")


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(lora_files.MAX_FILE_BYTES + 1)  # a hole: no disk is used
    problem = lora_sources.inspect(path).problem
    assert problem.code == "lora_too_large" and "2.0 GB; up to 2 GB" in problem.message


def test_a_missing_file_is_a_sentence(tmp_path):
    assert lora_sources.inspect(tmp_path / "gone.safetensors").problem.code == "lora_missing"


def test_fuzzed_files_are_read_like_the_library_reads_them_or_refused(lora):
    """Whatever is bent or cut, nothing but a Refusal comes out, and what is accepted the library accepts as well."""
    from safetensors import safe_open

    whole = blob(
        {**attention(), "layers.0.self_attn.q_proj.alpha": ("F32", (), struct.pack("<f", 8))}, {"format": "pt"}
    )
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    draw, accepted = random.Random(1), 0
    for _ in range(600):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            kind, at = draw.randrange(4), draw.randrange(header_end)
            if kind == 0:
                content[at] = draw.randrange(256)
            elif kind == 1:
                content = content[: draw.randrange(len(content))]
                break
            elif kind == 2:
                content[at:at] = draw.choice([b"-1", b"{", b"[", b'"', b"0", b" ", b"\0", b"}", b",", b"9" * 25])
            else:
                del content[at : at + draw.randint(1, 8)]
        path = lora(bytes(content))
        try:
            header = read_header(path)
        except Refusal:
            continue
        accepted += 1
        with safe_open(path, "np") as file:
            assert set(file.keys()) == set(header.tensors)
    assert accepted < 300


@pytest.mark.parametrize("seed", range(3))
def test_random_json_headers_are_refused_or_read(lora, seed):
    draw = random.Random(seed)

    def value(depth=0):
        kind = draw.randrange(7 if depth < 4 else 4)
        if kind < 4:
            return draw.choice([None, True, -1, 2**70, 1e300, "F32", "x", 0])
        if kind < 6:
            keys = ["dtype", "shape", "data_offsets", "a", "__metadata__"]
            return {key: value(depth + 1) for key in keys if draw.random() < 0.7}
        return [value(depth + 1) for _ in range(draw.randrange(4))]

    for _ in range(300):
        path = lora(wrap(json.dumps({"a": value(), "b": value(), "__metadata__": value()}).encode(), bytes(8)))
        assert lora_sources.inspect(path).problem


# --- what it is and what it fits ----------------------------------------------------------------------------------


def test_the_facts_of_a_file(lora, tmp_path):
    path = lora(attention(rank=64, layers=(0, 31)), "mine/adapter_model.safetensors")
    path.with_name("adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 128, "r": 64}')
    expected = (("PEFT", (64,), (128.0,), 2, "XL", True, None), path.stat().st_size)
    for given in (path, path.parent):
        info = lora_sources.inspect(given, KNOWN_MODELS["XL"])
        facts = (info.format, info.ranks, info.alphas, info.modules, info.made_for, info.fits, info.problem)
        assert (facts, info.size) == expected
        assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_without_a_model_the_fit_is_open_but_other_sizes_are_refused(lora):
    info = lora_sources.inspect(lora(attention("2B")))
    assert (info.made_for, info.fits, info.problem) == ("2B", None, None)
    tensors = {"layers.0.mlp.up_proj.lora_A.weight": (2, 99), "layers.0.mlp.up_proj.lora_B.weight": (999, 2)}
    assert lora_sources.inspect(lora(tensors)).problem.code == "lora_unfit"


@pytest.mark.parametrize("made, run", [("XL", "2B"), ("2B", "XL")])
def test_the_other_size_is_named(lora, made, run):
    problem = lora_sources.inspect(lora(attention(made)), KNOWN_MODELS[run]).problem
    assert problem.code == "lora_unfit"
    assert f"the {made} models" in problem.message and f"{run} model" in problem.message


def test_a_layer_that_the_smaller_model_does_not_have_tells_the_size_too(lora):
    tensors = {
        "layers.31.self_attn.k_proj.lora_A.weight": (2, 2560),
        "layers.31.self_attn.k_proj.lora_B.weight": (1024, 2),
    }
    assert read_layout(lora(tensors), None).made_for == "XL"


REFUSED = {
    "v1": (
        {"transformer_blocks.0.cross_attn.to_q.lora_A.weight": (4, 2560)},
        "lora_unfit",
        "the first ACE-Step",
    ),
    "another model": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)},
        "lora_unfit",
        "no layer of ACE-Step 1.5",
    ),
    "no keys of a LoRA": ({"layers.0.self_attn.q_proj.weight": (4, 4)}, "lora_unfit", "no layer of ACE-Step 1.5"),
    "empty": ({}, "lora_broken", "no tensors"),
    "in part": ({**attention(), "layers.0.other.lora_A.weight": (2, 2)}, "lora_unfit", "only in part"),
    "the condition encoder": (
        {**attention(), "base_model.model.encoder.lyric_encoder.layers.0.self_attn.q_proj.lora_A.weight": (2, 2)},
        "lora_unsupported",
        "more than the transformer",
    ),
    "the text encoder": ({**attention(), "lora_te_layers_0.alpha": ("F32", ())}, "lora_unsupported", "more than"),
    "rank 257": (attention(rank=257), "lora_too_large", "rank 257; up to 256"),
    "half a pair": ({"layers.0.mlp.up_proj.lora_A.weight": (2, 2560)}, "lora_broken", "do not belong together"),
    "ranks that differ": (
        {**attention(rank=4), "base_model.model.layers.0.self_attn.q_proj.lora_B.weight": (4096, 3)},
        "lora_broken",
        "do not belong together",
    ),
    "a convolution": (
        {"layers.0.mlp.up_proj.lora_A.weight": (2, 2560, 1)},
        "lora_unsupported",
        "convolutions",
    ),
    "whole numbers": (
        {key: ("I64", shape) for key, shape in attention().items()},
        "lora_broken",
        "do not belong together",
    ),
    "two spellings of one layer": (
        {**attention(), **attention(prefix="diffusion_model.decoder.")},
        "lora_broken",
        "two of its keys",
    ),
    "DoRA by PEFT": (
        {**attention(), "base_model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": (4096,)},
        "lora_unsupported",
        "DoRA",
    ),
    "DoRA by LyCORIS": ({"lycoris_condition_embedder.dora_scale": (2560, 1)}, "lora_unsupported", "DoRA"),
    "LoHa": ({"lycoris_condition_embedder.hada_w1_a": (4, 4)}, "lora_unsupported", "LoHa"),
    "whole layers": ({"diffusion_model.decoder.condition_embedder.diff": (4, 4)}, "lora_unsupported", "whole layers"),
    "LoKr for convolutions": ({"lycoris_condition_embedder.lokr_t2": (4, 4, 2, 2)}, "lora_unsupported", "convolutions"),
    "biases": ({**attention(), "layers.0.mlp.up_proj.lora_B.bias": (4,)}, "lora_unsupported", "biases"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_applied_is_refused_with_the_reason(lora, kind):
    tensors, code, said = REFUSED[kind]
    problem = lora_sources.inspect(lora(tensors), KNOWN_MODELS["XL"]).problem
    assert (problem.code, problem.field) == (code, "options.loras")
    assert said in problem.message


def test_the_convolutions_of_the_model_itself_are_named_too(lora):
    tensors = {**attention(), "proj_in_conv.lora_A.weight": (2, 192, 2)}
    problem = lora_sources.inspect(lora(tensors), KNOWN_MODELS["XL"]).problem
    assert problem.code == "lora_unfit" and "proj_in_conv" in problem.message and "only in part" in problem.message


def with_alpha(value, dtype="F32", form="<f", shape=()):
    content = struct.pack(form, value) if isinstance(value, int | float) else value
    return {**attention(), "base_model.model.layers.0.self_attn.q_proj.alpha": (dtype, shape, content)}


@pytest.mark.parametrize(
    "dtype, form, shape", [("F32", "<f", ()), ("F16", "<e", (1,)), ("I64", "<q", ()), ("BF16", None, (1, 1))]
)
def test_an_alpha_is_read_in_every_type(lora, dtype, form, shape):
    value = b"\x00\x41" if form is None else 8  # 8.0 in bfloat16
    (layer,) = read_layout(lora(with_alpha(value, dtype, form, shape)), None).layers
    assert (layer.alpha, layer.scale) == (8.0, 4.0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e30])
def test_an_alpha_that_makes_no_sense_is_refused(lora, value):
    assert "alpha" in refusal(read_layout, lora(with_alpha(value)), None).rest


def test_an_alpha_is_one_number(lora):
    assert "one number" in refusal(read_layout, lora(with_alpha(bytes(8), shape=(2,))), None).rest


def test_the_alpha_in_the_file_wins_over_the_one_beside_it(lora):
    config = PeftConfig(alpha=100.0)
    assert read_layout(lora(with_alpha(8)), None, config).layers[0].alpha == 8.0
    assert read_layout(lora(attention()), None, config).layers[0].scale == 50.0
    assert read_layout(lora(attention(rank=4)), None, PeftConfig(100.0, rslora=True)).layers[0].scale == 50.0
    (layer,) = read_layout(lora(attention()), None).layers
    assert (layer.alpha, layer.scale) == (None, 1.0)


@pytest.mark.parametrize(
    "config, said",
    [
        (b"no json", "damaged"),
        (b"[]", "damaged"),
        (b'{"lora_alpha": 1, "lora_alpha": 2}', "damaged"),
        (b'{"lora_alpha": "16"}', "alpha"),
        (b'{"lora_alpha": -16}', "alpha"),
        (b'{"lora_alpha": true}', "alpha"),
        (b'{"alpha_pattern": {"q_proj": null}}', "alpha"),
        (b'{"alpha_pattern": {"(a+)+$": 1}}', "regular expressions"),
        (b'{"alpha_pattern": []}', ""),
        (b'{"use_rslora": "yes"}', "damaged"),
        (b'{"peft_type": "LOKR"}', "LOKR"),
        (b'{"peft_type": {"a": 1}}', "kind"),
        (b'{"use_dora": true}', "DoRA"),
        (b'{"init_lora_weights": "pissa_niter_4"}', "changed when its training began"),
        (b'{"a": "' + b"x" * 1_000_000 + b'"}', "larger than 1 MB"),
    ],
)
def test_a_config_is_untrusted_too(config, said):
    if config == b'{"alpha_pattern": []}':
        assert read_config(config) == PeftConfig()  # empty, as null is
    else:
        assert said in refusal(read_config, config).rest


def test_a_config_is_read():
    config = read_config(
        b'{"lora_alpha": 16, "use_rslora": true, "alpha_pattern": {"^layers.0.mlp.up_proj": 4, "q_proj": 2}}'
    )
    assert config == PeftConfig(16.0, True, (("layers.0.mlp.up_proj", 4.0), ("q_proj", 2.0)))
    assert config.alpha_of("base_model.model.layers.0.self_attn.q_proj") == 2.0
    assert config.alpha_of("layers.0.self_attn.k_proj") == 16.0


def test_a_peft_file_without_its_config_says_that_its_alpha_is_not_known(lora):
    alone = lora_sources.inspect(lora(attention()))
    assert "adapter_config.json" in alone.note and alone.problem is None
    assert lora_sources.inspect(lora(with_alpha(8))).note == ""
    assert lora_sources.inspect(lora(attention(prefix="transformer."))).note == ""


# --- zips ---------------------------------------------------------------------------------------------------------

WEIGHTS = blob(attention())
CONFIG = b'{"peft_type": "LORA", "lora_alpha": 6}'


def zipped(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("folder", ["", "mine/", "a/b/"])
def test_a_zip_gives_its_two_files_and_nothing_else(tmp_path, folder):
    entries = {
        f"{folder}adapter_model.safetensors": WEIGHTS,
        f"{folder}adapter_config.json": CONFIG,
        f"{folder}README.md": b"# hello",
        f"{folder}training_args.bin": b"\x80\x02pickle",
        f"__MACOSX/{folder}._adapter_model.safetensors": b"mac",
    }
    path, private = zipped(tmp_path / "mine.zip", entries), tmp_path / "job"
    private.mkdir()
    spec = prepared(str(path), folder=private, uploads=[tmp_path])
    assert spec.info.alphas == (6.0,) and spec.name == "mine.zip" and spec.source == "upload"
    kept = [file for file in private.rglob("*") if file.is_file()]
    assert sorted(file.name for file in kept) == ["adapter_config.json", "adapter_model.safetensors"]
    assert Path(spec.path).read_bytes() == WEIGHTS
    assert kept[0].parent.stat().st_mode & 0o077 == 0


def test_a_zip_may_hold_one_safetensors_file_of_any_name(tmp_path):
    info = lora_sources.inspect(zipped(tmp_path / "a.zip", {"x/style.safetensors": WEIGHTS}))
    assert info.problem is None and info.name == "a.zip"


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    return entry


def bad_zip(kind, path):
    good = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": CONFIG}
    if kind == "link":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(link("adapter_model.safetensors"), "/etc/passwd")
        return
    extra = {
        "up": {"../evil": b""},
        "up inside": {"a/../../evil": b""},
        "absolute": {"/etc/evil": b""},
        "a drive": {"C:evil": b""},
        "a backslash": {"a\\evil": b""},
        "an archive": {"inner.zip": b"PK"},
        "a tarball": {"inner.tar.gz": b""},
        "fifty-one": {str(i): b"" for i in range(49)},
        "two weights": {"other.safetensors": WEIGHTS},
    }
    zipped(path, {**good, **extra.get(kind, {})})
    content = bytearray(path.read_bytes())
    directory = content.rfind(b"PK\x01\x02")
    if kind == "no weights":
        zipped(path, {"adapter_config.json": CONFIG})
    elif kind == "cut off":
        path.write_bytes(content[:-30])
    elif kind == "damaged":
        at = content.find(b"adapter_model.safetensors") + 40
        content[at : at + 8] = b"\xff" * 8
        path.write_bytes(content)
    elif kind == "a password":
        for at in (content.find(b"PK\x01\x02"), directory):
            content[at + 8] |= 1
        path.write_bytes(content)
    elif kind == "too large when unpacked":
        content[directory + 24 : directory + 28] = struct.pack("<I", 2_000_000_000)
        path.write_bytes(content)
    elif kind == "larger than it says":
        at = content.find(b"PK\x01\x02")
        content[at + 24 : at + 28] = struct.pack("<I", len(WEIGHTS) - 100)
        path.write_bytes(content)
    elif kind == "zip64":
        end = content.rfind(b"PK\x05\x06")
        path.write_bytes(content[:end] + b"PK\x06\x07" + bytes(16) + content[end:])
    elif kind == "a long directory":
        end = content.rfind(b"PK\x05\x06")
        content[end + 12 : end + 16] = struct.pack("<I", 500_000_000)
        path.write_bytes(content)
    elif kind == "other compression":
        zipped(path, good, zipfile.ZIP_LZMA)


@pytest.mark.parametrize(
    "kind, said",
    {
        "link": "is a link",
        "up": "leads out",
        "up inside": "leads out",
        "absolute": "leads out",
        "a drive": "leads out",
        "a backslash": "leads out",
        "an archive": "an archive itself",
        "a tarball": "an archive itself",
        "fifty-one": "51 entries; up to 50",
        "two weights": "holds 2 safetensors",
        "no weights": "holds 0 safetensors",
        "cut off": "",
        "damaged": "damaged",
        "a password": "password",
        "too large when unpacked": "more than 2 GB",
        "larger than it says": "damaged",
        "zip64": "zip64",
        "a long directory": "entries",
        "other compression": "compressed",
    }.items(),
)
def test_a_bad_zip_is_refused_and_leaves_nothing(tmp_path, kind, said):
    path, private = tmp_path / "bad.zip", tmp_path / "job"
    private.mkdir()
    bad_zip(kind, path)
    with pytest.raises(StudioError) as caught:
        prepared(str(path), folder=private, uploads=[tmp_path])
    assert (caught.value.problem.code, caught.value.problem.field) == ("lora_broken", "options.loras")
    assert said in caught.value.problem.message
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()


def test_fuzzed_zips_are_read_or_refused(tmp_path):
    content = zipped(
        tmp_path / "a.zip", {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": CONFIG}
    ).read_bytes()
    draw, path = random.Random(2), tmp_path / "b.zip"
    for _ in range(150):
        bent = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            bent[draw.choice([draw.randrange(len(bent)), -draw.randint(1, 200)])] = draw.randrange(256)
        path.write_bytes(bent)
        lora_sources.inspect(path)  # never raises


# --- sources ------------------------------------------------------------------------------------------------------


def prepared(source, weight=1.0, *, folder=Path("/nowhere"), events=None, **more):
    """Run `prepare` to its end and return the spec."""
    steps = lora_sources.prepare(source, weight, folder=folder, **more)
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            return end.value
        if events is not None:
            events.append(event)


def problem_of(*args, **more):
    with pytest.raises(StudioError) as caught:
        prepared(*args, **more)
    assert caught.value.problem.field == "options.loras"
    return caught.value.problem


def test_only_uploads_are_files(lora, tmp_path):
    path = lora(attention(), "uploads/abc/mine.safetensors")
    outside = lora(attention(), "elsewhere/mine.safetensors")
    uploads = [tmp_path / "uploads"]
    assert prepared(str(path), uploads=uploads).info.made_for == "XL"
    (tmp_path / "uploads" / "link.safetensors").symlink_to(outside)
    for source in (outside, tmp_path / "uploads" / "link.safetensors", "/etc/passwd", tmp_path / "uploads"):
        assert problem_of(str(source), uploads=uploads).code == "lora_missing"
    assert problem_of(f"{tmp_path}/uploads/../elsewhere/mine.safetensors", uploads=uploads).code == "lora_missing"
    assert problem_of("../x", uploads=uploads).code == problem_of("a\0b", uploads=uploads).code == "lora_unknown"
    assert problem_of(str(path)).code == "lora_missing"


def test_a_spec_is_picklable_and_its_record_holds_no_path(lora, tmp_path):
    import pickle

    spec = prepared(str(lora(attention())), 0.5, uploads=[tmp_path])
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert (spec.name, spec.source, spec.weight, spec.revision) == ("my-lora.safetensors", "upload", 0.5, "")


def test_nothing_here_needs_torch():
    code = "import sys, loras; print(sorted({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_presets_file_is_as_its_schema_says():
    assert isinstance(lora_sources.presets(), tuple)
    assert all(preset.fits in ("XL", "2B") and preset.licence for preset in lora_sources.presets())


def test_a_broken_presets_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(lora_sources, "PRESETS_FILE", tmp_path / "loras.json")
    for text in ('{"loras": [{"name": "a"}]}', "[]", "{"):
        (tmp_path / "loras.json").write_text(text)
        with pytest.raises(ValueError, match=r"loras\.json"):
            lora_sources.presets()


@pytest.mark.parametrize(
    "text, parts",
    [
        ("org/repo", ("org/repo", "")),
        (" org/repo:a/b.safetensors ", ("org/repo", "a/b.safetensors")),
        ("org/repo:", None),
        ("org/repo:../x.safetensors", None),
        ("org/repo:/x.safetensors", None),
        ("org/repo/x", None),
        ("repo", None),
        ("", None),
        ("https://huggingface.co/org/repo", None),
    ],
)
def test_hub_ids(text, parts):
    assert lora_hub.hub_id(text) == parts


# --- the hub ------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "studio/style"


class FakeHub(ThreadingHTTPServer):
    """The hub's two routes: what a repository holds, and its files; `asked` lists the files that were fetched."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), FakeHubHandler)
        self.files, self.asked, self.more, self.pause = files, [], {}, 0.0
        self.sizes, self.tokens = {}, []

    def model(self):
        siblings = []
        for name, content in self.files.items():
            size = self.sizes.get(name, len(content))
            entry = {"rfilename": name, "size": size, "blobId": hashlib.sha1(b"blob %d\0" % size + content).hexdigest()}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
            siblings.append(entry)
        return {
            "id": REPO,
            "sha": COMMIT,
            "siblings": siblings,
            "private": False,
            "gated": False,
            "tags": [],
            **self.more,
        }


class FakeHubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, path = self.server, self.path.split("?")[0]
        if path == f"/api/models/{REPO}":
            server.tokens.append(self.headers.get("Authorization"))
            return self.answer(200, json.dumps(server.model()).encode())
        found = re.fullmatch(f"/{REPO}/resolve/{COMMIT}/(.+)", path)
        if not found or found[1] not in server.files:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        server.asked.append(found[1])
        return self.answer(200, server.files[found[1]])

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        for at in range(0, len(body), 10_000):
            self.wfile.write(body[at : at + 10_000])
            time.sleep(self.server.pause)


def use_hub(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_silent_since", {})


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A repository as PEFT saves it, with what nobody needs beside it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.delenv("ACE_STUDIO_HUB_LORAS", raising=False)
    files = {
        "adapter_model.safetensors": WEIGHTS,
        "adapter_config.json": CONFIG,
        "README.md": b"# Style",
        "training_args.bin": b"\x80\x02pickle",
        "steps/adapter_500.safetensors": blob(attention(rank=8)),
    }
    server = FakeHub(files)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()
    server.server_close()


def test_a_repository_gives_one_file_and_its_json(server):
    events = []
    spec = prepared(REPO, 0.8, events=events, widths=KNOWN_MODELS["XL"])
    assert sorted(server.asked) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (spec.name, spec.source) == (f"{REPO}:adapter_model.safetensors",) * 2
    assert (spec.revision, spec.info.alphas, spec.info.fits) == (COMMIT, (6.0,), True)
    assert Path(spec.path).read_bytes() == WEIGHTS
    assert events and {event.stage for event in events} == {"downloading", "preparing"}
    server.asked.clear()
    again = []
    assert prepared(REPO, 0.8, events=again, widths=KNOWN_MODELS["XL"]) == spec
    assert server.asked == [] and not any(event.note for event in again)


def test_a_file_can_be_named(server):
    spec = prepared(f"{REPO}:steps/adapter_500.safetensors")
    assert server.asked == ["steps/adapter_500.safetensors"]
    assert spec.info.ranks == (8,) and spec.source == f"{REPO}:steps/adapter_500.safetensors"


def test_a_config_counts_beside_every_file_that_peft_wrote(server):
    server.files["style.safetensors"] = server.files.pop("adapter_model.safetensors")
    assert prepared(f"{REPO}:style.safetensors").info.alphas == (6.0,)
    server.files["comfy.safetensors"] = blob(attention(prefix="diffusion_model.decoder."))
    spec = prepared(f"{REPO}:comfy.safetensors")
    assert (spec.info.format, spec.info.alphas, spec.config) == ("ComfyUI", (), None)


def test_several_files_have_to_be_named(server):
    server.files["other.safetensors"] = server.files.pop("adapter_model.safetensors")
    problem = problem_of(REPO)
    assert problem.code == "lora_unknown" and f"{REPO}:other.safetensors" in problem.hint
    assert "It has other.safetensors" in problem_of(f"{REPO}:none.safetensors").hint
    assert not server.asked
    del server.files["steps/adapter_500.safetensors"]
    assert prepared(REPO).source == f"{REPO}:other.safetensors"


def test_a_repository_without_safetensors_is_refused(server):
    server.files = {"pytorch_lora_weights.bin": b"\x80\x02pickle"}
    assert "no safetensors file" in problem_of(REPO).message
    assert not server.asked


def test_the_size_is_asked_before_anything_is_fetched(server):
    server.sizes["adapter_model.safetensors"] = 2_000_000_001
    assert problem_of(REPO).code == "lora_too_large"
    server.sizes = {"adapter_config.json": 1_000_001}
    assert problem_of(REPO).code == "lora_too_large"
    assert not server.asked


def test_names_that_lead_out_of_the_cache_are_not_there(server):
    server.files = {"../../evil.safetensors": WEIGHTS}
    assert "no safetensors file" in problem_of(REPO).message


def test_what_was_fetched_works_without_the_network(server, monkeypatch):
    spec = prepared(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert prepared(REPO) == spec
    assert problem_of("studio/other").code == "offline"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_hub(monkeypatch, "http://127.0.0.1:9")
    assert prepared(REPO) == spec
    assert problem_of("studio/other").code == "hub_unreachable"


def test_an_unknown_repository_is_said_in_words(server):
    problem = problem_of("studio/none")
    assert problem.code == "lora_unknown" and "studio/none" in problem.message and "MODEL" not in problem.hint


def test_a_fetch_can_be_cancelled(server):
    server.files["adapter_model.safetensors"] = blob(attention(rank=200))
    server.pause = 0.05
    assert problem_of(REPO, cancelled=lambda: bool(server.asked)).code == "cancelled"
    server.pause = 0.0
    worker = next((thread for thread in threading.enumerate() if thread.name == "download"), None)
    if worker:
        worker.join(5)
        assert not worker.is_alive()
    assert prepared(REPO).info.ranks == (200,)


def test_a_space_fetches_for_visitors_only_where_its_owner_says_so(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    problem = problem_of(REPO)
    assert problem.code == "lora_hub_off" and "ACE_STUDIO_HUB_LORAS=1" in problem.hint
    assert not server.asked and not lora_hub.hub_allowed()
    # What the owner put into the presets is fetched.
    entry = {"name": "Style", "id": REPO, "for": "a test", "licence": "MIT", "fits": "XL"}
    monkeypatch.setattr(lora_sources, "PRESETS_FILE", tmp_path / "loras.json")
    (tmp_path / "loras.json").write_text(json.dumps({"loras": [entry]}))
    spec = prepared("style")
    assert (spec.name, spec.source) == ("Style", f"{REPO}:adapter_model.safetensors")
    assert "Presets: Style" in problem_of("nonsense").hint
    monkeypatch.setenv("ACE_STUDIO_HUB_LORAS", "1")
    assert prepared(REPO).revision == COMMIT


@pytest.mark.parametrize("guard", [{"private": True}, {"gated": "auto"}])
def test_a_space_never_uses_its_owners_token_for_a_visitor(server, monkeypatch, guard):
    from huggingface_hub import utils

    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    monkeypatch.setenv("ACE_STUDIO_HUB_LORAS", "1")
    assert utils.get_token() == "hf_owner"
    server.more = guard
    assert problem_of(REPO).code == "model_guarded"
    assert server.tokens == [None] and not server.asked
    monkeypatch.delenv("SPACE_ID")
    prepared(REPO)
    assert server.tokens[1] == "Bearer hf_owner"


def test_a_full_disk_is_known_before_anything_is_fetched(server, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=1))
    assert problem_of(REPO).code == "disk_full"
    assert not server.asked
