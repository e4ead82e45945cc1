"""LoRA files without trust: headers, formats, what a file fits, and the JSON next to it. None of it needs torch."""

import hashlib
import json
import random
import struct

import pytest

import lora_format
import lora_sources
from lora_format import KNOWN_MODELS, PeftConfig, Refusal, read_config, read_header, read_layout
from tests.unit.lora_bytes import attention, blob, wrap

Q_PROJ = "base_model.model.layers.0.self_attn.q_proj"


def one(**changes):
    """Return a file with one entry, of 4 bytes, that a test bends."""
    return wrap(
        json.dumps(
            {"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4], **changes}}
        ).encode(),
        bytes(4),
    )


TWO = '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[%d,%d]}}'
BROKEN = {
    "empty": b"",
    "a length beyond the file": struct.pack("<Q", 1000) + b"{}",
    "no JSON": wrap(b"not json"),
    "NaN": wrap(b'{"a":NaN}'),
    "deep": wrap(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "an entry that is a number": wrap(b'{"a":1}'),
    "an entry that is a list": wrap(b'{"a":["F16",[2],[0,4]]}', bytes(4)),
    "a type that is an object": one(dtype={"F16": None}),
    "an unknown type": one(dtype="F12"),
    "a negative shape": one(shape=[-1, -2]),
    "a shape of true": one(shape=[True, 2]),
    "a shape whose product is huge": one(shape=[2**40, 2**40]),
    "negative offsets": one(data_offsets=[-4, 0]),
    "a size that differs from the shape": one(shape=[3]),
    "overlapping": wrap((TWO % (1, 3)).encode(), bytes(3)),
    "a hole": wrap((TWO % (3, 5)).encode(), bytes(5)),
    "bytes behind": blob({"a": (2,)}, data=b"x"),
    "cut off": blob({"a": (200,)})[:-1],
    "metadata of numbers": wrap(b'{"__metadata__":{"a":1}}'),
    "too many tensors": blob({str(i): (0,) for i in range(lora_format.MAX_TENSORS + 1)}),
}
OTHER_FILES = {
    "can run programs": b"\x80\x02\x8a\nl\xfc\x9cF\xf9" + bytes(100),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
    "not a safetensors file": b"<!DOCTYPE html><html>",
}


def test_a_broken_header_or_another_file_is_refused_with_a_sentence(lora, tmp_path):
    for kind, content in {**BROKEN, **OTHER_FILES}.items():
        info = lora_sources.inspect(lora(content))
        assert info.problem, kind
        assert (info.problem.code, info.problem.field, info.fits) == (
            "lora_broken",
            "options.loras",
            False,
        ), kind
        assert '"my-lora.safetensors"' in info.problem.message and info.problem.hint, kind
        assert len(info.problem.message) < 300, kind
        assert kind not in OTHER_FILES or kind in info.problem.message
    assert lora_sources.inspect(tmp_path / "gone.safetensors").problem.code == "lora_missing"


def test_a_header_of_640_bytes_is_no_pickle(lora):
    (short,) = struct.unpack("<Q", blob(attention(), {"a": ""})[:8])
    content = blob(attention(), {"a": "x" * (640 - short)})
    assert content.startswith(b"\x80\x02")
    assert read_header(lora(content))[1]


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(lora_format.MAX_FILE_BYTES + 1)  # a hole: no disk is used
    problem = lora_sources.inspect(path).problem
    assert problem.code == "lora_too_large" and "2.0 GB; the limit is 2 GB" in problem.message


def test_fuzzed_files_are_read_like_the_library_reads_them_or_refused(lora):
    """Nothing but a Refusal comes out, and what is accepted the library accepts as well."""
    from safetensors import safe_open

    whole = blob({**attention(), f"{Q_PROJ}.alpha": ("F32", ())}, {"format": "pt"})
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
                content[at:at] = draw.choice(
                    [b"-1", b"{", b"[", b'"', b"0", b" ", b"\0", b"}", b",", b"9" * 25]
                )
            else:
                del content[at : at + draw.randint(1, 8)]
        path = lora(bytes(content))
        try:
            tensors, _ = read_header(path)
        except Refusal:
            continue
        accepted += 1
        with safe_open(path, "np") as file:
            assert set(file.keys()) == set(tensors)
    assert accepted < 300


@pytest.mark.parametrize(
    "prefix", ["decoder.", "diffusion_model.", "base_model.model.decoder.", "transformer."]
)
def test_every_usual_prefix_names_the_same_layers(lora, prefix):
    info = lora_sources.inspect(lora(attention(prefix=prefix, layers=(0, 1))), KNOWN_MODELS["XL"])
    assert (info.modules, info.fits) == (2, True)


def test_the_facts_of_a_file(lora):
    path = lora(attention(rank=64, layers=(0, 31)), "mine/adapter_model.safetensors")
    path.with_name("adapter_config.json").write_text(
        '{"peft_type": "LORA", "lora_alpha": 128, "r": 64}'
    )
    expected = (("PEFT", (64,), (128.0,), 2, "XL", True, None), path.stat().st_size)
    for given in (path, path.parent):
        info = lora_sources.inspect(given, KNOWN_MODELS["XL"])
        facts = (
            info.format,
            info.ranks,
            info.alphas,
            info.modules,
            info.made_for,
            info.fits,
            info.problem,
        )
        assert (facts, info.size) == expected
        assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_without_a_model_the_fit_is_open_but_other_sizes_are_refused(lora):
    info = lora_sources.inspect(lora(attention("2B")))
    assert (info.made_for, info.fits, info.problem) == ("2B", None, None)
    tensors = {
        "layers.0.mlp.up_proj.lora_A.weight": (2, 99),
        "layers.0.mlp.up_proj.lora_B.weight": (999, 2),
    }
    assert lora_sources.inspect(lora(tensors)).problem.code == "lora_unfit"


def test_the_other_size_is_named(lora):
    for made, run in (("XL", "2B"), ("2B", "XL")):
        problem = lora_sources.inspect(lora(attention(made)), KNOWN_MODELS[run]).problem
        assert problem.code == "lora_unfit"
        assert f"the {made} models" in problem.message and f"{run} model" in problem.message
    # A layer that the smaller model does not have tells the size too.
    layer = "layers.31.self_attn.k_proj"
    tensors = {f"{layer}.lora_A.weight": (2, 2560), f"{layer}.lora_B.weight": (1024, 2)}
    assert read_layout(lora(tensors), None).made_for == "XL"


ENCODER = "base_model.model.encoder.lyric_encoder.layers.0.self_attn.q_proj"
UP, CONDITION = "layers.0.mlp.up_proj", "lycoris_condition_embedder"
PARTED = "do not belong together"
# What keeps a file from being applied, with a part of the sentence about it.
UNSUPPORTED = {
    "the condition encoder": ({**attention(), f"{ENCODER}.lora_A.weight": (2, 2)}, "more than"),
    "the text encoder": ({**attention(), "lora_te_layers_0.alpha": ("F32", ())}, "more than"),
    "a convolution": ({f"{UP}.lora_A.weight": (2, 2560, 1)}, "convolutions"),
    "many dimensions": ({f"{UP}.lora_A.weight": (1,) * 1000}, "convolutions"),
    "DoRA by PEFT": ({**attention(), f"{Q_PROJ}.lora_magnitude_vector": (4096,)}, "DoRA"),
    "LoHa": ({f"{CONDITION}.hada_w1_a": (4, 4)}, "LoHa"),
    "whole layers": ({"diffusion_model.decoder.condition_embedder.diff": (4, 4)}, "whole layers"),
    "LoKr for convolutions": ({f"{CONDITION}.lokr_t2": (4, 4, 2, 2)}, "convolutions"),
    "biases": ({**attention(), f"{UP}.lora_B.bias": (4,)}, "biases"),
}
UNFIT = {
    "v1": ({"transformer_blocks.0.cross_attn.to_q.lora_A.weight": (4, 2560)}, "the first ACE-Step"),
    "no keys of a LoRA": ({"layers.0.self_attn.norm.weight": (4, 4)}, "no layer of ACE-Step 1.5"),
    "a key of a thousand letters": ({"a" * 1000: (2,)}, "no layer of ACE-Step 1.5"),
    "in part": ({**attention(), "layers.0.other.lora_A.weight": (2, 2)}, "only in part"),
}
APART = {
    "empty": ({}, "no tensors"),
    "half a pair": ({f"{UP}.lora_A.weight": (2, 2560)}, PARTED),
    "the other half": ({f"{UP}.lora_B.weight": (9728, 2)}, PARTED),
    "half a LoKr": ({f"{CONDITION}.lokr_w1": (2, 2), f"{CONDITION}.lokr_w2_a": (2, 2)}, PARTED),
    "a factor twice": ({f"{CONDITION}.lokr_w{n}": (2, 2) for n in ("1", "2", "2_a")}, PARTED),
    "ranks that differ": ({**attention(rank=4), f"{Q_PROJ}.lora_B.weight": (4096, 3)}, PARTED),
    "whole numbers": ({key: ("I64", shape) for key, shape in attention().items()}, PARTED),
    "two spellings": (
        {**attention(), **attention(prefix="diffusion_model.decoder.")},
        "two of its keys",
    ),
    "a DoRA alone": ({f"{CONDITION}.dora_scale": (2560, 1)}, PARTED),
    "a DoRA of another width": ({**attention(), f"{Q_PROJ}.dora_scale": (4096, 2)}, PARTED),
}
LARGE = {"rank 257": (attention(rank=257), "rank 257; the limit is 256")}
REFUSED = {
    "lora_unsupported": UNSUPPORTED,
    "lora_unfit": UNFIT,
    "lora_broken": APART,
    "lora_too_large": LARGE,
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_cannot_be_applied_is_refused_with_the_reason(lora, code):
    for kind, (tensors, said) in REFUSED[code].items():
        problem = lora_sources.inspect(lora(tensors), KNOWN_MODELS["XL"]).problem
        assert problem, kind
        assert (problem.code, problem.field) == (code, "options.loras"), kind
        assert said in problem.message, kind


def with_alpha(value, dtype="F32", form="<f", shape=()):
    content = struct.pack(form, value) if isinstance(value, int | float) else value
    return {**attention(), f"{Q_PROJ}.alpha": (dtype, shape, content)}


def test_an_alpha_is_one_sensible_number_of_any_type(lora):
    for dtype, form, shape in (("F16", "<e", (1,)), ("I64", "<q", ()), ("BF16", None, (1, 1))):
        value = b"\x00\x41" if form is None else 8  # 8.0 in bfloat16
        (layer,) = read_layout(lora(with_alpha(value, dtype, form, shape)), None).layers
        assert (layer.alpha, layer.scale) == (8.0, 4.0)
    wrong = {"its alpha": [with_alpha(value) for value in (0.0, -1.0, float("nan"), 1e30)]}
    wrong["single number"] = [with_alpha(bytes(8), shape=(2,))]
    for said, files in wrong.items():
        for tensors in files:
            with pytest.raises(Refusal) as caught:
                read_layout(lora(tensors), None)
            assert said in caught.value.rest


def test_the_alpha_in_the_file_wins_over_the_one_next_to_it(lora):
    config = PeftConfig(alpha=100.0)
    assert read_layout(lora(with_alpha(8)), None, config).layers[0].alpha == 8.0
    assert read_layout(lora(attention()), None, config).layers[0].scale == 50.0
    assert (
        read_layout(lora(attention(rank=4)), None, PeftConfig(100.0, rslora=True)).layers[0].scale
        == 50.0
    )
    (layer,) = read_layout(lora(attention()), None).layers
    assert (layer.alpha, layer.scale) == (None, 1.0)


def test_a_config_is_untrusted_too():
    for config, said in (
        (b"no json", "damaged"),
        (b'{"lora_alpha": "16"}', "alpha"),
        (b'{"lora_alpha": -16}', "alpha"),
        (b'{"alpha_pattern": {"q_proj": null}}', "alpha"),
        (b'{"alpha_pattern": {"(a+)+$": 1}}', "regular expressions"),
        (b'{"use_rslora": "yes"}', "damaged"),
        (b'{"peft_type": "LOKR"}', "LOKR"),
        (b'{"peft_type": {"a": 1}}', "type"),
        (b'{"use_dora": true}', "DoRA"),
        (b'{"init_lora_weights": "pissa_niter_4"}', "changed when its training began"),
        (b'{"fan_in_fan_out": true}', "transposes"),
        (b'{"a": "' + b"x" * 1_000_000 + b'"}', "larger than 1 MB"),
    ):
        with pytest.raises(Refusal) as caught:
            read_config(config)
        assert said in caught.value.rest, config[:50]
    assert read_config(b'{"alpha_pattern": []}') == PeftConfig()  # empty, as null is
    config = read_config(
        b'{"lora_alpha": 16, "use_rslora": true, "alpha_pattern": {"^layers.0.mlp.up_proj": 4, "q_proj": 2}}'
    )
    assert config == PeftConfig(16.0, True, (("layers.0.mlp.up_proj", 4.0), ("q_proj", 2.0)))
    assert config.alpha_of(Q_PROJ) == 2.0 and config.alpha_of("layers.0.mlp.up_proj") == 4.0
    assert config.alpha_of("layers.0.self_attn.k_proj") == 16.0


def test_a_peft_file_without_its_config_says_that_its_alpha_is_not_known(lora):
    alone = lora_sources.inspect(lora(attention()))
    assert "adapter_config.json" in alone.note and alone.problem is None
    assert lora_sources.inspect(lora(with_alpha(8))).note == ""
    assert lora_sources.inspect(lora(attention(prefix="transformer."))).note == ""


@pytest.mark.parametrize("prefix", ["", "decoder.", "transformer.", "model.decoder."])
def test_the_weights_of_a_whole_model_are_called_one(lora, prefix):
    layers = {
        f"{prefix}layers.0.self_attn.q_proj.weight": (64, 64),
        f"{prefix}layers.0.mlp.up_proj.weight": (64, 64),
        f"{prefix}time_embed.linear_1.bias": (64,),
        "encoder.something.weight": (4, 4),
    }
    problem = lora_sources.inspect(lora(layers)).problem
    assert problem.code == "lora_unfit"
    assert "is a whole model, not a LoRA" in problem.message and "--model" in problem.hint
