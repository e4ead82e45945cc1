"""Where LoRAs come from: zips, uploads, and a hub of our own, 127.0.0.1. None of it needs torch."""

import io
import random
import struct
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants, utils

import lora_sources
import params
from events import InvalidRequest, StudioError
from lora_format import KNOWN_MODELS
from tests.unit.fake_hub import COMMIT, serving, use_hub
from tests.unit.lora_bytes import attention, blob

REPO = "studio/style"
WEIGHTS = blob(attention())
CONFIG = b'{"peft_type": "LORA", "lora_alpha": 6}'


def prepared(source, weight=1.0, *, folder=Path("/nowhere"), events=None, **more):
    """Run `prepare` to its end and return the spec; `events` gets what it yields."""
    events = [] if events is None else events

    def run():
        specs.append((yield from lora_sources.prepare(source, weight, folder=folder, **more)))

    specs = []
    events.extend(run())
    return specs[0]


def problem_of(*args, **more):
    with pytest.raises(StudioError) as caught:
        prepared(*args, **more)
    assert caught.value.problem.field == "options.loras"
    return caught.value.problem


def zipped(entries, method=zipfile.ZIP_DEFLATED):
    """Return a zip of these names, or entries, and contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    return entry


@pytest.mark.parametrize("folder", ["", "a/b/"])
def test_a_zip_gives_its_two_files_and_nothing_else(tmp_path, folder):
    entries = {
        f"{folder}adapter_model.safetensors": WEIGHTS,
        f"{folder}adapter_config.json": CONFIG,
        f"{folder}README.md": b"# hello",
        f"{folder}training_args.bin": b"\x80\x02pickle",
        f"__MACOSX/{folder}._adapter_model.safetensors": b"mac",
        "../evil": b"evil",
        "inner.zip": b"PK",
        link("link"): "/etc/passwd",
    }
    path, private = tmp_path / "mine.zip", tmp_path / "job"
    path.write_bytes(zipped(entries))
    private.mkdir()
    spec = prepared(str(path), folder=private, uploads=[tmp_path])
    assert spec.info.alphas == (6.0,) and spec.info.name == "mine.zip" and spec.source == "upload"
    kept = [file for file in private.rglob("*") if file.is_file()]
    assert sorted(file.name for file in kept) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert Path(spec.path).read_bytes() == WEIGHTS
    assert kept[0].parent.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.rglob("evil")) and not list(tmp_path.rglob("link"))


STATE = blob({"optimizer.step": (4,)})
PEFT = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": CONFIG}
# Folders as trainers and Windows write them, and the alpha that their LoRA has.
FOLDERS = {
    "PowerShell's": {f"best\\{name}": content for name, content in PEFT.items()},
    "deep, from Windows": {f"a\\b\\{name}": content for name, content in PEFT.items()},
    "a trainer's": {
        **{f"adapter/{name}": content for name, content in PEFT.items()},
        "training_state.safetensors": STATE,
    },
    "with earlier steps": {
        **PEFT,
        **{f"checkpoint-500/{name}": content for name, content in PEFT.items()},
    },
    "a byte order mark": {**PEFT, "adapter_config.json": b"\xef\xbb\xbf" + CONFIG},
    "UTF-16": {**PEFT, "adapter_config.json": CONFIG.decode().encode("utf-16")},
    "model.safetensors alone": {"model.safetensors": WEIGHTS, "adapter_config.json": CONFIG},
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_zip_and_a_repository_follow_one_rule(tmp_path, server, kind):
    path = tmp_path / "mine.zip"
    path.write_bytes(zipped(FOLDERS[kind]))
    spec = prepared(str(path), folder=tmp_path, uploads=[tmp_path])
    assert (spec.info.alphas, spec.info.note) == ((6.0,), "")
    if not any("\\" in name for name in FOLDERS[kind]):
        server.files = FOLDERS[kind]
        assert prepared(REPO).info.alphas == (6.0,)
        assert prepared(REPO).revision == COMMIT  # from the cache, by the same rule


WHOLE = {
    "diffusers'": {
        "model_index.json": b"{}",
        "transformer/diffusion_pytorch_model.safetensors": STATE,
    },
    "a transformer and more": {
        "transformer/diffusion_pytorch_model.safetensors": STATE,
        "vae/diffusion_pytorch_model.safetensors": STATE,
    },
    "in parts": {f"model-0000{i}-of-00002.safetensors": STATE for i in (1, 2)},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_model_is_called_one_in_a_zip_and_in_a_repository(tmp_path, server, kind):
    path = tmp_path / "mine.zip"
    path.write_bytes(zipped(WHOLE[kind]))
    server.files = WHOLE[kind]
    for source in (str(path), REPO):
        problem = problem_of(source, folder=tmp_path, uploads=[tmp_path])
        assert "is a whole model, not a LoRA" in problem.message and "--model" in problem.hint


def test_several_loras_are_named_in_the_refusal(tmp_path, server):
    names = {f"{i}.safetensors": WEIGHTS for i in range(7)}
    path = tmp_path / "mine.zip"
    path.write_bytes(zipped(names))
    server.files = names
    for source in (str(path), REPO):
        problem = problem_of(source, folder=tmp_path, uploads=[tmp_path])
        assert "7 safetensors files" in problem.message
        assert "0.safetensors, 1.safetensors" in problem.hint and "and 2 more" in problem.hint


PAIR = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": CONFIG}
GOOD_ZIP = zipped(PAIR)
DIRECTORY, END = b"PK\x01\x02", b"PK\x05\x06"


def bent(mark, offset, new):
    """Return the good zip with the bytes from `offset` after its first `mark` replaced."""
    at = GOOD_ZIP.find(mark) + offset
    return GOOD_ZIP[:at] + new + GOOD_ZIP[at + len(new) :]


BAD_ZIPS = {
    "link": (zipped({link("adapter_model.safetensors"): "/etc/passwd"}), "not a safetensors file"),
    "fifty-one": (
        zipped({**PAIR, **{str(i): b"" for i in range(49)}}),
        "51 entries; the limit is 50",
    ),
    "two weights": (
        zipped({"one.safetensors": WEIGHTS, "other.safetensors": WEIGHTS}),
        "holds 2 safetensors",
    ),
    "no weights": (zipped({"adapter_config.json": CONFIG}), "holds 0 safetensors"),
    "cut off": (GOOD_ZIP[:-30], ""),
    "damaged": (bent(b"adapter_model.safetensors", 40, b"\xff" * 8), "damaged"),
    "a password": (bent(DIRECTORY, 8, b"\x01"), "password"),
    "too large when unpacked": (bent(DIRECTORY, 24, struct.pack("<I", 2_000_000_001)), "too large"),
    "larger than it says": (bent(DIRECTORY, 24, struct.pack("<I", len(WEIGHTS) - 100)), "damaged"),
    "zip64": (GOOD_ZIP.replace(END, b"PK\x06\x07" + bytes(16) + END), "zip64"),
    "a long directory": (bent(END, 12, struct.pack("<I", 500_000_000)), "entries"),
    "other compression": (zipped(PAIR, zipfile.ZIP_LZMA), "compression"),
}


def test_a_bad_zip_is_refused_and_leaves_nothing(tmp_path):
    path, private = tmp_path / "bad.zip", tmp_path / "job"
    private.mkdir()
    for kind, (content, said) in BAD_ZIPS.items():
        path.write_bytes(content)
        problem = problem_of(str(path), folder=private, uploads=[tmp_path])
        assert problem.code == "lora_broken", kind
        assert said in problem.message, kind
    # Whatever else is wrong with a zip, `inspect` does not raise.
    draw = random.Random(2)
    for _ in range(150):
        content = bytearray(GOOD_ZIP)
        for _ in range(draw.randint(1, 4)):
            content[draw.choice([draw.randrange(len(content)), -draw.randint(1, 200)])] = (
                draw.randrange(256)
            )
        path.write_bytes(content)
        lora_sources.inspect(path)


def test_only_uploads_are_files(lora, tmp_path):
    path = lora(attention(), "uploads/abc/mine.safetensors")
    outside = lora(attention(), "elsewhere/mine.safetensors")
    uploads = [tmp_path / "uploads"]
    assert prepared(str(path), uploads=uploads).info.made_for == "XL"
    (tmp_path / "uploads" / "link.safetensors").symlink_to(outside)
    for source in (
        outside,
        tmp_path / "uploads" / "link.safetensors",
        "/etc/passwd",
        tmp_path / "uploads",
    ):
        assert problem_of(str(source), uploads=uploads).code == "lora_missing"
    assert (
        problem_of(f"{tmp_path}/uploads/../elsewhere/mine.safetensors", uploads=uploads).code
        == "lora_missing"
    )
    assert problem_of("a\0b", uploads=uploads).code == "lora_unknown"
    assert problem_of(str(path)).code == "lora_missing"


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("mine", "LoRAs must be a list"),
        ([{}], "LoRA 1 must name its source"),
        (
            ["a/b", {"source": "a/b", "weight": 2.5}],
            "The weight of LoRA 2 must be from 0 to 2, not 2.5",
        ),
        ([{"source": "a/b", "scale": 1}], '"scale" is not a setting of LoRA 1'),
        (["a/b"] * 51, "from 0 to 50"),
    ],
)
def test_wrong_choices_are_sentences_at_the_field(chosen, said):
    with pytest.raises(InvalidRequest) as caught:
        params.parse_request(
            "cover", {"prompt": "x", "source": "a.wav", "options": {"loras": chosen}}
        )
    assert caught.value.problem.field == "options.loras" and said in caught.value.problem.message


def test_hub_ids():
    ids = {
        "org/repo": ("org/repo", ""),
        " org/repo:a/b.safetensors ": ("org/repo", "a/b.safetensors"),
        **dict.fromkeys(
            ("org/repo:../x.safetensors", "org/repo/x", "", "https://huggingface.co/org/repo")
        ),
    }
    assert {text: lora_sources.hub_id(text) for text in ids} == ids


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A repository as PEFT saves it, with what nobody needs next to it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.delenv("ACE_STUDIO_HUB_LORAS", raising=False)
    files = {**PAIR, "README.md": b"# Style", "training_args.bin": b"\x80\x02pickle"}
    with serving(
        monkeypatch, REPO, {**files, "steps/adapter_500.safetensors": blob(attention(rank=8))}
    ) as server:
        yield server


def test_a_repository_gives_one_file_and_its_json_also_without_the_network(server, monkeypatch):
    events, again = [], []
    spec = prepared(REPO, 0.8, events=events, widths=KNOWN_MODELS["XL"])
    assert sorted(server.fetched) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (spec.info.name, spec.source) == (f"{REPO}:adapter_model.safetensors",) * 2
    assert (spec.revision, spec.info.alphas, spec.info.fits) == (COMMIT, (6.0,), True)
    assert Path(spec.path).read_bytes() == WEIGHTS
    assert {event.stage for event in events} == {"downloading", "preparing"}
    server.asked.clear()
    assert prepared(REPO, 0.8, events=again, widths=KNOWN_MODELS["XL"]) == spec
    assert server.asked == [] and not any(event.note for event in again)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert prepared(REPO, 0.8, widths=KNOWN_MODELS["XL"]) == spec
    assert problem_of("studio/other").code == "offline"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_hub(monkeypatch, "http://127.0.0.1:9")
    assert prepared(REPO, 0.8, widths=KNOWN_MODELS["XL"]) == spec
    assert problem_of("studio/other").code == "hub_unreachable"


def test_a_config_counts_next_to_every_file_that_peft_wrote(server):
    server.files["style.safetensors"] = server.files.pop("adapter_model.safetensors")
    spec = prepared(f"{REPO}:style.safetensors")
    assert (spec.source, spec.info.alphas) == (f"{REPO}:style.safetensors", (6.0,))
    server.files["comfy.safetensors"] = blob(attention(prefix="diffusion_model.decoder."))
    spec = prepared(f"{REPO}:comfy.safetensors")
    assert (spec.info.format, spec.info.alphas, spec.config) == ("ComfyUI", (), None)


def test_what_a_repository_does_not_have_is_said_before_anything_is_fetched(server):
    files = server.files
    server.files = {**files, "other.safetensors": WEIGHTS}
    del server.files["adapter_model.safetensors"]
    problem = problem_of(REPO)
    assert problem.code == "lora_unknown" and f"{REPO}:other.safetensors" in problem.hint
    assert "It has other.safetensors" in problem_of(f"{REPO}:none.safetensors").hint
    # One would lead out of the cache.
    server.files = {"pytorch_lora_weights.bin": WEIGHTS, "../../evil.safetensors": WEIGHTS}
    assert "no safetensors file" in problem_of(REPO).message
    problem = problem_of("studio/none")
    assert (
        problem.code == "lora_unknown"
        and "studio/none" in problem.message
        and "MODEL" not in problem.hint
    )
    server.files = files
    for name, size in {
        "adapter_model.safetensors": 2_000_000_001,
        "adapter_config.json": 1_000_001,
    }.items():
        server.sizes = {name: size}
        assert problem_of(REPO).code == "lora_too_large"
    assert not server.asked
    server.sizes = {}
    server.files = {"only.safetensors": WEIGHTS}
    assert prepared(REPO).source == f"{REPO}:only.safetensors"


def test_a_fetch_stops_when_nobody_listens(server):
    server.files["adapter_model.safetensors"] = blob(attention(rank=200))
    server.pause = 0.05
    events = lora_sources.prepare(REPO, 1.0, folder=Path("/nowhere"))
    next(event for event in events if server.asked)
    events.close()
    server.pause = 0.0
    assert prepared(REPO).info.ranks == (200,)


def test_a_space_fetches_for_visitors_only_where_its_owner_says_so_and_without_their_token(
    server, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    assert utils.get_token() == "hf_owner"
    problem = problem_of(REPO)
    assert problem.code == "lora_hub_off" and "ACE_STUDIO_HUB_LORAS=1" in problem.hint
    assert not lora_sources.hub_allowed()
    monkeypatch.setenv("ACE_STUDIO_HUB_LORAS", "1")
    for guard in ({"private": True}, {"gated": "auto"}):
        server.more = guard
        assert problem_of(REPO).code == "model_guarded"
    assert set(server.tokens) == {None} and not server.asked
    server.more = {}
    assert prepared(REPO).revision == COMMIT
    assert set(server.tokens) == {None} and len(server.asked) == 2
    server.tokens.clear()
    monkeypatch.delenv("SPACE_ID")
    prepared(REPO)
    assert server.tokens[0] == "Bearer hf_owner"
