"""Where LoRAs come from: zips, uploads, presets, and a hub of our own, 127.0.0.1. None of it needs torch."""

import json
import pickle
import random
import struct
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, utils

import hub
import lora_hub
import lora_sources
from events import StudioError
from lora_layout import KNOWN_MODELS
from tests.program import python
from tests.unit.fake_hub import COMMIT, serving, use_hub
from tests.unit.lora_bytes import attention, blob

REPO = "studio/style"
WEIGHTS = blob(attention())
CONFIG = b'{"peft_type": "LORA", "lora_alpha": 6}'


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


# --- zips ---------------------------------------------------------------------------------------------------------


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
    spec = prepared(str(lora(attention())), 0.5, uploads=[tmp_path])
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert (spec.name, spec.source, spec.weight, spec.revision) == ("my-lora.safetensors", "upload", 0.5, "")


def test_nothing_here_needs_torch():
    code = "import sys, loras; print(sorted({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    done = python("-c", code)
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
    assert lora_sources.hub_id(text) == parts


# --- the hub ------------------------------------------------------------------------------------------------------


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
    with serving(monkeypatch, REPO, files) as server:
        yield server


def test_a_repository_gives_one_file_and_its_json(server):
    events = []
    spec = prepared(REPO, 0.8, events=events, widths=KNOWN_MODELS["XL"])
    assert sorted(server.fetched) == ["adapter_config.json", "adapter_model.safetensors"]
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
    assert server.fetched == ["steps/adapter_500.safetensors"]
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
    worker = next((thread for thread in threading.enumerate() if thread.name == "lora-download"), None)
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
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    monkeypatch.setenv("ACE_STUDIO_HUB_LORAS", "1")
    assert utils.get_token() == "hf_owner"
    server.more = guard
    assert problem_of(REPO).code == "model_guarded"
    assert server.tokens == [None] and not server.asked
    server.more = {}
    prepared(REPO)
    assert set(server.tokens) == {None} and len(server.asked) == 2
    server.tokens.clear()
    monkeypatch.delenv("SPACE_ID")
    prepared(REPO)
    assert server.tokens[0] == "Bearer hf_owner"


def test_a_full_disk_is_known_before_anything_is_fetched(server, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=1))
    assert problem_of(REPO).code == "disk_full"
    assert not server.asked
