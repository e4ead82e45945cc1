"""Where LoRAs come from: zips, uploads, and a hub of our own, 127.0.0.1. None of it needs torch."""

import io
import random
import struct
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, utils

import hub
import lora_sources
from events import StudioError
from lora_format import KNOWN_MODELS
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


def zipped(entries, method=zipfile.ZIP_DEFLATED):
    """Return a zip of these names, or entries, and contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_a_zip_gives_its_two_files_and_nothing_else(tmp_path):
    for number, folder in enumerate(("", "a/b/")):
        entries = {
            f"{folder}adapter_model.safetensors": WEIGHTS,
            f"{folder}adapter_config.json": CONFIG,
            f"{folder}README.md": b"# hello",
            f"{folder}training_args.bin": b"\x80\x02pickle",
            f"__MACOSX/{folder}._adapter_model.safetensors": b"mac",
        }
        path, private = tmp_path / "mine.zip", tmp_path / f"job-{number}"
        path.write_bytes(zipped(entries))
        private.mkdir()
        spec = prepared(str(path), folder=private, uploads=[tmp_path])
        assert spec.info.alphas == (6.0,) and spec.name == "mine.zip" and spec.source == "upload"
        kept = [file for file in private.rglob("*") if file.is_file()]
        assert sorted(file.name for file in kept) == ["adapter_config.json", "adapter_model.safetensors"]
        assert Path(spec.path).read_bytes() == WEIGHTS
        assert kept[0].parent.stat().st_mode & 0o077 == 0


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    return entry


PAIR = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": CONFIG}
GOOD_ZIP = zipped(PAIR)
DIRECTORY, END = b"PK\x01\x02", b"PK\x05\x06"


def bent(mark, offset, new):
    """Return the good zip with the bytes from `offset` after its first `mark` replaced."""
    at = GOOD_ZIP.find(mark) + offset
    return GOOD_ZIP[:at] + new + GOOD_ZIP[at + len(new) :]


BAD_ZIPS = {
    "link": (zipped({link("adapter_model.safetensors"): "/etc/passwd"}), "is a link"),
    "up": (zipped({**PAIR, "../evil": b""}), "leads out"),
    "an archive": (zipped({**PAIR, "inner.zip": b"PK"}), "an archive itself"),
    "fifty-one": (zipped({**PAIR, **{str(i): b"" for i in range(49)}}), "51 entries; up to 50"),
    "two weights": (zipped({**PAIR, "other.safetensors": WEIGHTS}), "holds 2 safetensors"),
    "no weights": (zipped({"adapter_config.json": CONFIG}), "holds 0 safetensors"),
    "cut off": (GOOD_ZIP[:-30], ""),
    "damaged": (bent(b"adapter_model.safetensors", 40, b"\xff" * 8), "damaged"),
    "a password": (bent(DIRECTORY, 8, b"\x01"), "password"),
    "too large when unpacked": (bent(DIRECTORY, 24, struct.pack("<I", 2_000_000_000)), "more than 2 GB"),
    "larger than it says": (bent(DIRECTORY, 24, struct.pack("<I", len(WEIGHTS) - 100)), "damaged"),
    "zip64": (GOOD_ZIP.replace(END, b"PK\x06\x07" + bytes(16) + END), "zip64"),
    "a long directory": (bent(END, 12, struct.pack("<I", 500_000_000)), "entries"),
    "other compression": (zipped(PAIR, zipfile.ZIP_LZMA), "compressed"),
}


def test_a_bad_zip_is_refused_and_leaves_nothing(tmp_path):
    path, private = tmp_path / "bad.zip", tmp_path / "job"
    private.mkdir()
    for kind, (content, said) in BAD_ZIPS.items():
        path.write_bytes(content)
        problem = problem_of(str(path), folder=private, uploads=[tmp_path])
        assert problem.code == "lora_broken", kind
        assert said in problem.message, kind
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()


def test_fuzzed_zips_are_read_or_refused(tmp_path):
    draw, path = random.Random(2), tmp_path / "b.zip"
    for _ in range(150):
        content = bytearray(GOOD_ZIP)
        for _ in range(draw.randint(1, 4)):
            content[draw.choice([draw.randrange(len(content)), -draw.randint(1, 200)])] = draw.randrange(256)
        path.write_bytes(content)
        lora_sources.inspect(path)  # never raises


def test_only_uploads_are_files(lora, tmp_path):
    path = lora(attention(), "uploads/abc/mine.safetensors")
    outside = lora(attention(), "elsewhere/mine.safetensors")
    uploads = [tmp_path / "uploads"]
    assert prepared(str(path), uploads=uploads).info.made_for == "XL"
    (tmp_path / "uploads" / "link.safetensors").symlink_to(outside)
    for source in (outside, tmp_path / "uploads" / "link.safetensors", "/etc/passwd", tmp_path / "uploads"):
        assert problem_of(str(source), uploads=uploads).code == "lora_missing"
    assert problem_of(f"{tmp_path}/uploads/../elsewhere/mine.safetensors", uploads=uploads).code == "lora_missing"
    assert problem_of("a\0b", uploads=uploads).code == "lora_unknown"
    assert problem_of(str(path)).code == "lora_missing"


HUB_IDS = {
    "org/repo": ("org/repo", ""),
    " org/repo:a/b.safetensors ": ("org/repo", "a/b.safetensors"),
    "org/repo:../x.safetensors": None,
    "org/repo/x": None,
    "": None,
    "https://huggingface.co/org/repo": None,
}


def test_hub_ids():
    assert {text: lora_sources.hub_id(text) for text in HUB_IDS} == HUB_IDS


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


def test_a_config_counts_beside_every_file_that_peft_wrote(server):
    server.files["style.safetensors"] = server.files.pop("adapter_model.safetensors")
    spec = prepared(f"{REPO}:style.safetensors")
    assert (spec.source, spec.info.alphas) == (f"{REPO}:style.safetensors", (6.0,))
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
    # One would lead out of the cache.
    server.files = {"pytorch_lora_weights.bin": WEIGHTS, "../../evil.safetensors": WEIGHTS}
    assert "no safetensors file" in problem_of(REPO).message
    assert not server.asked
    problem = problem_of("studio/none")
    assert problem.code == "lora_unknown" and "studio/none" in problem.message and "MODEL" not in problem.hint


def test_size_and_disk_are_looked_at_before_anything_is_fetched(server, monkeypatch):
    server.sizes["adapter_model.safetensors"] = 2_000_000_001
    assert problem_of(REPO).code == "lora_too_large"
    server.sizes = {"adapter_config.json": 1_000_001}
    assert problem_of(REPO).code == "lora_too_large"
    server.sizes = {}
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=1))
    assert problem_of(REPO).code == "disk_full"
    assert not server.asked


def test_what_was_fetched_works_without_the_network(server, monkeypatch):
    spec = prepared(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert prepared(REPO) == spec
    assert problem_of("studio/other").code == "offline"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    use_hub(monkeypatch, "http://127.0.0.1:9")
    assert prepared(REPO) == spec
    assert problem_of("studio/other").code == "hub_unreachable"


def test_a_fetch_can_be_cancelled(server):
    server.files["adapter_model.safetensors"] = blob(attention(rank=200))
    server.pause = 0.05
    assert problem_of(REPO, cancelled=lambda: bool(server.asked)).code == "cancelled"
    server.pause = 0.0
    for thread in threading.enumerate():
        if thread.name == "lora-download":
            thread.join(5)
            assert not thread.is_alive()
    assert prepared(REPO).info.ranks == (200,)


def test_a_space_fetches_for_visitors_only_where_its_owner_says_so(server, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    problem = problem_of(REPO)
    assert problem.code == "lora_hub_off" and "ACE_STUDIO_HUB_LORAS=1" in problem.hint
    assert not server.asked and not lora_sources.hub_allowed()
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
