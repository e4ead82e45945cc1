"""Finding weights, choosing a device, building the pipeline, and fetching a model from a hub of our own, 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

import backend
import checkpoints
import hub
import models
import plan_weights
import preview_writers
from events import Progress, StudioError
from params import parse_request

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "studio/tiny"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A machine without any weights: no variable, an empty ./models, an empty Hugging Face cache."""
    monkeypatch.delenv("ACE_STUDIO_MODEL", raising=False)
    monkeypatch.setattr(checkpoints, "MODELS_FOLDER", tmp_path / "models")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(tiny, tmp_path) -> Path:
    """A whole checkpoint that a test may break."""
    return Path(shutil.copytree(tiny, tmp_path / "my-model"))


def put(checkpoint: Path, folder: Path) -> Path:
    """Move `checkpoint` to `folder`."""
    folder.parent.mkdir(parents=True)
    return checkpoint.rename(folder)


def put_into_cache(checkpoint: Path, home: Path, repo: str) -> Path:
    """Lay `checkpoint` into the cache as huggingface_hub does."""
    storage = home / "hub" / f"models--{repo.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT)
    return put(checkpoint, storage / "snapshots" / COMMIT)


# --- finding ------------------------------------------------------------------------------------------------------


def test_a_bare_machine_gets_the_preview_and_is_told_why(home):
    weights = checkpoints.find_weights()
    assert (weights.engine, weights.source, weights.wanted) == ("preview", "preview", checkpoints.DEFAULT_MODEL)
    assert weights.problem.code == "weights_missing" and checkpoints.DEFAULT_MODEL in weights.problem.message


def test_finding_needs_neither_torch_nor_the_network():
    code = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import checkpoints\n"
        "print(checkpoints.find_weights().engine, sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("ACE_STUDIO_MODEL", "HF_HUB_OFFLINE")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "preview []", done.stderr


def test_the_preview_can_be_forced_though_the_real_model_is_here(home, checkpoint, monkeypatch):
    put(checkpoint, home / "models" / checkpoints.DEFAULT_MODEL)
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    weights = checkpoints.find_weights()
    assert (weights.engine, weights.model_id, weights.problem) == ("preview", "preview", None)
    assert weights.wanted == checkpoints.DEFAULT_MODEL


@pytest.mark.parametrize("spelling", ["{folder}", "my-model", "./my-model", "~/my-model"])
def test_the_variable_may_name_a_folder(home, checkpoint, monkeypatch, spelling):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ACE_STUDIO_MODEL", spelling.format(folder=checkpoint))
    weights = checkpoints.find_weights()
    assert (weights.engine, weights.source, weights.folder, weights.problem) == ("xl", "variable", checkpoint, None)
    assert weights.model_id == "my-model"  # records travel: they carry no path of this machine


def test_the_order_is_models_then_cache(home, tiny, monkeypatch):
    repo = checkpoints.DEFAULT_MODEL
    in_cache = put_into_cache(Path(shutil.copytree(tiny, home / "one")), home, repo)
    weights = checkpoints.find_weights()
    assert (weights.source, weights.folder, weights.revision) == ("cache", in_cache, COMMIT)
    in_models = put(Path(shutil.copytree(tiny, home / "two")), home / "models" / repo)
    weights = checkpoints.find_weights()
    assert (weights.source, weights.folder, weights.model_id, weights.problem) == ("models", in_models, repo, None)
    (in_models / "vae" / "config.json").unlink()
    assert checkpoints.find_weights().source == "cache"


def test_a_named_model_is_to_be_fetched_and_never_replaced(home, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_MODEL", "somebody/else")
    weights = checkpoints.find_weights()
    assert (weights.engine, weights.source, weights.folder, weights.problem) == ("xl", "hub", None, None)
    assert weights.wanted == "somebody/else"


@pytest.mark.parametrize(
    "asked", ["nonsense", "a/b/c", "../elsewhere", "/not/there", "who/what--ever", "org/", "~none/x"]
)
def test_a_wrong_variable_is_a_problem_and_not_the_preview(home, monkeypatch, asked):
    monkeypatch.setenv("ACE_STUDIO_MODEL", asked)
    weights = checkpoints.find_weights()
    assert (weights.engine, weights.source, weights.folder) == ("xl", "none", None)
    assert weights.problem.code == "weights_missing"
    with pytest.raises(StudioError) as caught:
        models.build_pipeline(weights, models.Device("cpu", "float32", "float32", "float32", ""))
    assert caught.value.problem == weights.problem


def cut(path: Path) -> None:
    """Cut the last byte off, as a copy that ran out of disk does."""
    os.truncate(path, path.stat().st_size - 1)


DAMAGES = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
    "index unreadable": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json cannot be read"),
    "another pipeline": (
        lambda f: (f / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'),
        "FluxPipeline",
    ),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "vae/config.json is missing"),
    "no config": (lambda f: (f / "condition_encoder/config.json").unlink(), "condition_encoder/config.json is missing"),
    "no weights": (lambda f: (f / TRANSFORMER).unlink(), f"{TRANSFORMER} is missing"),
    "cut weights": (lambda f: cut(f / TRANSFORMER), f"{TRANSFORMER} is not whole"),
    "empty weights": (lambda f: (f / TRANSFORMER).write_bytes(b""), f"{TRANSFORMER} is not a safetensors file"),
    "other bytes": (lambda f: (f / TRANSFORMER).write_bytes(b"\x10" + b"\0" * 40), f"{TRANSFORMER} is damaged"),
    "lfs pointer": (
        lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1"
        ),
        "Git LFS pointer",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), "tokenizer/tokenizer.json is missing"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler/scheduler_config.json is missing"),
}


@pytest.mark.parametrize("damage, said", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_broken_folder_is_named_with_what_is_wrong(home, checkpoint, monkeypatch, damage, said):
    folder = put(checkpoint, home / "models" / checkpoints.DEFAULT_MODEL)
    damage(folder)
    weights = checkpoints.find_weights()
    assert weights.engine == "preview"
    assert weights.problem.code == "weights_broken"
    assert checkpoints.DEFAULT_MODEL in weights.problem.message and said in weights.problem.message
    for asked in (checkpoints.DEFAULT_MODEL, str(folder)):
        monkeypatch.setenv("ACE_STUDIO_MODEL", asked)
        weights = checkpoints.find_weights()
        assert (weights.engine, weights.source, weights.folder) == ("xl", "none", None)
        assert said in weights.problem.message


def shard(folder: Path, stem: str) -> list[Path]:
    """Split the only weights file of `folder` in two, with an index."""
    from safetensors.torch import load_file, save_file

    whole = folder / f"{stem}.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    weight_map, paths = {}, []
    for number, part in enumerate((names[::2], names[1::2]), 1):
        paths.append(folder / f"{stem}-{number:05}-of-00002.safetensors")
        save_file({name: tensors[name] for name in part}, paths[-1], {"format": "pt"})
        weight_map |= dict.fromkeys(part, paths[-1].name)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    return paths


def test_sharded_weights_are_whole_only_with_every_shard(home, checkpoint, monkeypatch):
    shards = shard(checkpoint / "transformer", "diffusion_pytorch_model")
    monkeypatch.setenv("ACE_STUDIO_MODEL", str(checkpoint))
    weights = checkpoints.find_weights()
    assert weights.problem is None
    assert models.build_pipeline(weights, models.pick_device(weights)).transformer.config.model_version == "sft"
    shards[1].unlink()
    assert shards[1].name in checkpoints.find_weights().problem.message


def test_a_link_to_nowhere_is_a_problem(home):
    link = home / "models" / checkpoints.DEFAULT_MODEL
    link.parent.mkdir(parents=True)
    link.symlink_to(home / "gone")
    weights = checkpoints.find_weights()
    assert weights.engine == "preview"
    assert f"models/{checkpoints.DEFAULT_MODEL}" in weights.problem.message and "link" in weights.problem.message


def test_a_download_that_another_program_left_half_done_is_a_problem_or_goes_on(home, checkpoint, monkeypatch):
    folder = put_into_cache(checkpoint, home, checkpoints.DEFAULT_MODEL)
    (folder / TRANSFORMER).unlink()
    weights = checkpoints.find_weights()
    assert weights.engine == "preview" and TRANSFORMER in weights.problem.message
    monkeypatch.setenv("ACE_STUDIO_MODEL", checkpoints.DEFAULT_MODEL)
    assert checkpoints.find_weights().source == "hub"


def test_zerogpu_has_no_preview_unless_it_is_asked_for(home, monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    weights = checkpoints.find_weights()
    assert (weights.engine, weights.source, weights.problem.code) == ("xl", "none", "weights_missing")
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    assert checkpoints.find_weights().engine == "preview"


def test_kinds_of_checkpoint(home, checkpoint, monkeypatch):
    def weights(name: str, **config) -> checkpoints.Weights:
        path = checkpoint / "transformer" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return checkpoints.Weights(name, checkpoint, "variable", "", "xl", None, name)

    assert checkpoints.checkpoint_kind(weights("a/xl-sft-diffusers", model_version="base")) == "sft"
    assert checkpoints.checkpoint_kind(weights("a/xl-base-diffusers", model_version=None)) == "base"
    assert checkpoints.checkpoint_kind(weights("mine", model_version="base")) == "base"
    assert checkpoints.checkpoint_kind(weights("mine", model_version="odd")) == "sft"
    assert checkpoints.checkpoint_kind(weights("mine", is_turbo=True)) == "turbo"
    assert checkpoints.is_turbo(weights("mine", is_turbo=True))
    assert checkpoints.checkpoint_kind(checkpoints.find_weights()) == "preview"


# --- devices ------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(home, monkeypatch):
    """Return a function that gives this machine other hardware, as far as torch tells."""
    import torch

    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)

    def become(cuda: str = "", native: bool = True, mps: bool = False, macos: int = 15) -> None:
        def bf16(including_emulation: bool = True) -> bool:
            return native or including_emulation

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", bf16)
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda index=0: SimpleNamespace(total_memory=24 * 2**30)
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (macos, 0) >= (major, minor))

    return become


REAL = checkpoints.Weights("real", None, "hub", "", "xl", None, "real")
PREVIEW = checkpoints.Weights("preview", None, "preview", "", "preview", None, "real")


def numbers(device: models.Device) -> tuple[str, str, str, str]:
    """Return all but the reason."""
    return device.kind, device.dtype, device.storage_dtype, device.vae_dtype


def test_cuda_comes_first(machine):
    machine(cuda="NVIDIA H200", mps=True)
    device = models.pick_device(REAL)
    assert numbers(device) == ("cuda", "bfloat16", "bfloat16", "bfloat16")
    assert "NVIDIA H200" in device.reason and "bfloat16" in device.reason
    assert numbers(models.pick_device(PREVIEW)) == ("cuda", "float32", "float32", "float32")
    assert models.vram_limit_for("cuda") == 24 * 2**30


def test_an_old_nvidia_card_stores_small_and_computes_exactly(machine):
    machine(cuda="Tesla T4", native=False)
    device = models.pick_device(REAL)
    assert numbers(device) == ("cuda", "float32", "float16", "float32")
    assert "Tesla T4" in device.reason and "float16" in device.reason and "float32" in device.reason


def test_apple(machine):
    machine(mps=True)
    assert numbers(models.pick_device(REAL)) == ("mps", "bfloat16", "bfloat16", "float32")
    assert numbers(models.pick_device(PREVIEW)) == ("mps", "float32", "float32", "float32")
    assert models.vram_limit_for("mps") is None
    machine(mps=True, macos=13)
    device = models.pick_device(REAL)
    assert device.dtype == "float32" and "macOS 14" in device.reason


def test_the_processor_is_last_and_follows_the_memory(machine, monkeypatch):
    machine()
    assert numbers(models.pick_device(PREVIEW)) == ("cpu", "float32", "float32", "float32")
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * 10**9))
    monkeypatch.setattr(models, "_container_memory", lambda: None)
    assert numbers(models.pick_device(REAL)) == ("cpu", "float32", "float32", "float32")
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * 10**9))
    device = models.pick_device(REAL)
    assert numbers(device) == ("cpu", "bfloat16", "bfloat16", "float32")
    assert "no NVIDIA or Apple GPU" in device.reason and "16 GB" in device.reason
    assert models.vram_limit_for("cpu") is None


def test_zerogpu_asks_nothing_of_a_card_that_is_not_there_yet(machine, monkeypatch):
    machine(cuda="should not be asked", native=False)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    device = models.pick_device(REAL)
    assert numbers(device) == ("cuda", "bfloat16", "bfloat16", "bfloat16")
    assert "should not be asked" not in device.reason
    assert models.vram_limit_for("cuda") is None


# --- building -----------------------------------------------------------------------------------------------------


def play(pipe, **changes):
    """Return the latents of a short song."""
    import torch

    return pipe(
        **{
            "prompt": "warm lofi piano",
            "lyrics": "[Instrumental]",
            "audio_duration": 4,
            "guidance_scale": 7.0,
            **changes,
        },
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).audios


def test_the_pipeline_is_ready_for_songs(pipe, capfd):
    assert pipe.vae.use_tiling
    assert not any(
        p.requires_grad for part in (pipe.transformer, pipe.vae, pipe.text_encoder) for p in part.parameters()
    )
    assert not pipe.transformer.training and not pipe.condition_encoder.training
    play(pipe)
    assert "it/s" not in capfd.readouterr().err


def test_the_preview_is_built_by_the_same_code(monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    weights = checkpoints.find_weights()
    pipe = models.build_pipeline(weights, models.pick_device(weights))
    assert weights.folder.is_dir() and play(pipe).isfinite().all()


def test_narrow_storage_computes_in_float32_and_sounds_alike(pipe, tiny):
    import torch

    weights = checkpoints.Weights("tiny", tiny, "variable", "", "xl", None, "tiny")
    narrow = models.build_pipeline(weights, models.Device("cpu", "float32", "float16", "float32", ""))
    assert narrow.transformer.dtype == torch.float32  # the loop's own dtype
    assert narrow.transformer.layers[0].mlp.up_proj.weight.dtype == torch.float16
    assert narrow.text_encoder.embed_tokens.weight.dtype == torch.float16
    wide, close = play(pipe), play(narrow)
    assert close.dtype == torch.float32
    assert float((wide - close).square().mean().sqrt() / wide.std()) < 0.005
    sounds = {"task_type": "cover", "src_audio": 0.1 * torch.randn(2, 48_000)}
    assert play(narrow, **sounds).isfinite().all()


def test_bfloat16_with_a_float32_vae(tiny):
    import torch

    weights = checkpoints.Weights("tiny", tiny, "variable", "", "xl", None, "tiny")
    pipe = models.build_pipeline(weights, models.Device("cpu", "bfloat16", "bfloat16", "float32", ""))
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    assert play(pipe).isfinite().all()


def test_a_checkpoint_that_cannot_be_loaded_is_an_error_in_words(checkpoint):
    config = checkpoint / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 96', '"hidden_size": 100'))
    weights = checkpoints.Weights("mine", checkpoint, "variable", "", "xl", None, "mine")
    with pytest.raises(StudioError) as caught:
        models.build_pipeline(weights, models.Device("cpu", "float32", "float32", "float32", ""))
    assert caught.value.problem.code == "weights_broken"
    assert "mine" in str(caught.value) and "\n" not in caught.value.problem.message


# --- fetching -----------------------------------------------------------------------------------------------------


def git_hash(content: bytes) -> str:
    """Return the id of a git blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub(ThreadingHTTPServer):
    """The two routes of the hub that a download uses: a model's files with their hashes, and the files, with ranges.

    `breaks` holds, for a file, how many bytes each of the next answers sends before the connection breaks; `pause` is
    waited between the pieces of a file; `status` and `headers` replace the answer about the model.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), FakeHubHandler)
        self.files, self.asked = files, []
        self.breaks: dict[str, list[int]] = {}
        self.pause = 0.0
        self.ranges = True
        self.status, self.headers = 200, {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def model(self) -> dict:
        """Return what /api/models/<id>?blobs=true says."""
        siblings = []
        for name, content in self.files.items():
            entry = {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def handle_error(self, request, client_address) -> None:
        """Clients hang up on purpose here."""


class FakeHubHandler(BaseHTTPRequestHandler):
    """Answers for FakeHub."""

    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *args) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer one of the two routes."""
        hub_server, path = self.server, self.path.split("?")[0]
        if path == f"/api/models/{REPO}":
            body = json.dumps(hub_server.model()).encode() if hub_server.status == 200 else b"{}"
            return self.answer(hub_server.status, body, hub_server.headers)
        found = re.fullmatch(f"/{REPO}/resolve/{COMMIT}/(.+)", path)
        if not found or found[1] not in hub_server.files:
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound" if found else "RepoNotFound"})
        name, start = found[1], 0
        if (asked := self.headers.get("Range")) and hub_server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        hub_server.asked.append((name, start))
        content = hub_server.files[name][start:]
        breaks = hub_server.breaks.get(name, [])
        self.answer(206 if start else 200, content, {}, breaks.pop(0) if breaks else None)

    def answer(self, status: int, body: bytes, headers: dict[str, str], most: int | None = None) -> None:
        """Send `body`, or its first `most` bytes and then hang up."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = body if most is None else body[:most]
        for at in range(0, len(sent), 50_000):
            self.wfile.write(sent[at : at + 50_000])
            time.sleep(self.server.pause)
        if most is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def use_hub(monkeypatch, url: str) -> None:
    """Point huggingface_hub at `url`, as HF_ENDPOINT does when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def server(home, tiny, monkeypatch) -> Iterator[FakeHub]:
    """A hub that holds the tiny checkpoint and, beside it, what nobody needs."""
    files = {path.relative_to(tiny).as_posix(): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    files |= {
        "README.md": b"# Tiny",
        "silence_latent.pt": b"pickle",
        "transformer/diffusion_pytorch_model.bin": b"twice",
        "transformer/diffusion_pytorch_model.fp16.safetensors": b"variant",
        "onnx/model.onnx": b"other format",
    }
    server = FakeHub(files)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    use_hub(monkeypatch, server.url)
    monkeypatch.setattr(hub, "RETRY_SECONDS", 0.05)
    yield server
    server.shutdown()
    server.server_close()


def fetch(cancelled=lambda: False) -> list[Progress]:
    """Run a download to its end; no two events are further apart than half a second (and what the machine adds)."""
    events, last = [], time.monotonic()
    for event in hub.download(REPO, cancelled):
        assert time.monotonic() - last < 1.5
        last = time.monotonic()
        events.append(event)
    return events


def failure(cancelled=lambda: False):
    """Run a download that fails and return its problem."""
    with pytest.raises(StudioError) as caught:
        fetch(cancelled)
    return caught.value.problem


def test_a_download_brings_what_the_pipeline_needs_and_is_found(server, home, monkeypatch):
    events = fetch()
    names = {name for name, _ in server.asked}
    assert TRANSFORMER in names and "tokenizer/tokenizer.json" in names and "model_index.json" in names
    assert not names & {"README.md", "silence_latent.pt", "onnx/model.onnx"}
    assert not any("fp16" in name or name.endswith(".bin") for name in names)
    assert all(event.stage == "downloading" for event in events)
    assert events[-1].step == events[-1].steps > 0
    assert [event.step for event in events] == sorted(event.step for event in events)
    notes = [event.note for event in events if event.note]
    assert len(notes) == 1 and "MB" in notes[0] and str(home / "hub") in notes[0]

    monkeypatch.setenv("ACE_STUDIO_MODEL", REPO)
    weights = checkpoints.find_weights()
    assert (weights.source, weights.revision, weights.problem) == ("cache", COMMIT, None)
    assert play(models.build_pipeline(weights, models.pick_device(weights))).isfinite().all()
    # The library's own look at its cache agrees.
    from huggingface_hub import snapshot_download

    assert Path(snapshot_download(REPO, local_files_only=True)) == weights.folder
    asked = len(server.asked)
    fetch()
    assert len(server.asked) == asked  # nothing is fetched twice


@pytest.fixture
def planner_on_the_hub(server, home, monkeypatch) -> FakeHub:
    """Put a planner into a folder of the hub's repository, beside what nobody needs."""
    folder = preview_writers.language_model_folder("qwen3", 64)
    files = {f"lm/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}
    server.files |= files | {"lm/README.md": b"# LM", "lm/onnx/model.onnx": b"", "lmx/config.json": b"{}"}
    monkeypatch.setenv("ACE_STUDIO_PLANNER", f"{REPO}/lm")
    monkeypatch.setattr(plan_weights, "MODELS_FOLDER", home / "models")
    return server


def test_a_language_model_is_fetched_out_of_its_folder(planner_on_the_hub):
    weights = plan_weights.find_planner()
    assert (weights.source, weights.repo, weights.inside) == ("hub", REPO, "lm")
    list(hub.download(weights.repo, lambda: False, hub.language_model("ACE_STUDIO_PLANNER", weights.inside)))
    names = {name for name, _ in planner_on_the_hub.asked}
    assert {"lm/config.json", "lm/model.safetensors", "lm/tokenizer.json", "lm/chat_template.jinja"} <= names
    assert all(name.startswith("lm/") for name in names) and not {"lm/README.md", "lm/onnx/model.onnx"} & names
    weights = plan_weights.find_planner()
    assert (weights.source, weights.revision, weights.problem) == ("cache", COMMIT, None)


def test_a_repository_without_the_language_model_is_a_sentence(server):
    with pytest.raises(StudioError) as caught:
        list(hub.download(REPO, lambda: False, hub.language_model("ACE_STUDIO_LYRICS", "nowhere")))
    assert caught.value.problem.message == f"{REPO} holds no language model (nowhere/config.json is missing)."
    with pytest.raises(StudioError, match="ACE_STUDIO_LYRICS"):
        list(hub.download("nobody/nothing", lambda: False, hub.language_model("ACE_STUDIO_LYRICS")))


def test_a_planner_named_on_purpose_is_fetched_by_the_first_planned_song(planner_on_the_hub, home, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    monkeypatch.setenv("ACE_STUDIO_OUTPUT", str(home / "songs"))
    studio = backend.Backend()
    monkeypatch.setattr(backend, "_backend", studio)

    def song(plan: bool) -> tuple[set[str], dict]:
        values = {"prompt": "x", "duration": 10, "options": {"steps": 1, "guidance": 1, "plan": plan}}
        *events, done = studio.stream(parse_request("generate", values))
        return {event.stage for event in events}, done.record["plan"]

    stages, plan = song(plan=False)
    assert "downloading" not in stages and studio.status()["planner"]["state"] == "ready"
    planner_on_the_hub.status = 500
    stages, plan = song(plan=True)
    assert plan == {"used": False, "reason": "Hugging Face answered with error 500."}
    assert studio.status()["planner"]["state"] == "failed"
    planner_on_the_hub.status = 200
    assert "downloading" not in song(plan=True)[0]  # not at every song
    studio.refresh()
    stages, plan = song(plan=True)
    assert "downloading" in stages and plan["used"] is True and plan["model"] == f"{REPO}/lm"


def test_a_connection_that_breaks_is_resumed_where_it_broke(server, home):
    server.breaks[TRANSFORMER] = [300_000, 400_000]
    fetch()
    starts = [start for name, start in server.asked if name == TRANSFORMER]
    assert len(starts) == 3 and starts[0] == 0 < starts[1] <= 300_000 < starts[2] <= 700_000
    cached = next((home / "hub").rglob(TRANSFORMER))
    assert cached.read_bytes() == server.files[TRANSFORMER]


def test_a_network_that_fails_for_good_is_an_error_and_the_next_try_goes_on(server, home, monkeypatch):
    monkeypatch.setattr(hub, "RETRIES", 2)
    server.breaks[TRANSFORMER] = [300_000] + [0] * 10
    problem = failure()
    assert problem.code == "download_broken" and "MB" in problem.message
    server.breaks.clear()
    server.asked.clear()
    events = fetch()
    assert 0 < dict(server.asked)[TRANSFORMER] <= 300_000
    assert "are here already" in "".join(event.note for event in events)
    assert checkpoints.find_weights().engine == "preview"  # another model than the one that is wanted by default


def test_cancel_stops_within_one_chunk_and_the_next_try_goes_on(server, home):
    server.pause = 0.05
    server.files[TRANSFORMER] = server.files[TRANSFORMER] * 4
    moved = []

    def cancelled() -> bool:
        partial = list((home / "hub").rglob("*.incomplete"))
        moved.extend(path.stat().st_size for path in partial)
        return bool(moved) and max(moved) > 100_000

    problem = failure(cancelled)
    assert problem.code == "cancelled"
    kept = sum(path.stat().st_size for path in (home / "hub").rglob("*.incomplete"))
    time.sleep(0.3)
    later = sum(path.stat().st_size for path in (home / "hub").rglob("*.incomplete"))
    assert 0 < kept <= later <= kept + 2 * 50_000
    asked = len(server.asked)
    server.pause = 0.0
    fetch()
    assert server.asked[asked][1] > 0


def test_closing_the_generator_stops_it_too(server, home):
    server.pause = 0.05
    events = hub.download(REPO, lambda: False)
    next(event for event in events if event.steps)
    events.close()
    worker = next((thread for thread in threading.enumerate() if thread.name == "download"), None)
    if worker:
        worker.join(5)
        assert not worker.is_alive()


def test_two_downloads_at_once_share_the_work(server):
    server.pause = 0.002
    results: list = []
    threads = [threading.Thread(target=lambda: results.append(fetch()[-1])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [event.step == event.steps for event in results] == [True, True]
    assert len([name for name, _ in server.asked if name == TRANSFORMER]) == 1


def test_a_server_without_ranges_starts_the_file_anew(server, home):
    server.ranges = False
    server.breaks[TRANSFORMER] = [300_000]
    events = fetch()
    assert events[-1].step == events[-1].steps
    assert next((home / "hub").rglob(TRANSFORMER)).read_bytes() == server.files[TRANSFORMER]


def test_bytes_that_changed_on_the_way_are_not_kept(server, home):
    right = server.model()
    server.model = lambda: right
    server.files[TRANSFORMER] = bytes(len(server.files[TRANSFORMER]))
    problem = failure()
    assert problem.code == "download_broken" and TRANSFORMER in problem.message
    assert not list((home / "hub").rglob("*.incomplete")) and not list((home / "hub").rglob(TRANSFORMER))


def test_too_little_disk_is_known_before_anything_is_fetched(server, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=1_000_000))
    problem = failure()
    assert problem.code == "disk_full" and "1.0 MB" in problem.message
    assert not server.asked


@pytest.mark.parametrize(
    "status, header, code",
    [
        (404, "RepoNotFound", "model_unknown"),
        (401, "RepoNotFound", "model_unknown"),
        (403, "GatedRepo", "model_guarded"),
        (500, "", "hub_refused"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(server, status, header, code):
    server.status, server.headers = status, {"X-Error-Code": header} if header else {}
    problem = failure()
    assert problem.code == code
    assert REPO in problem.message or str(status) in problem.message


def test_a_repository_without_a_pipeline_is_refused(server):
    del server.files["model_index.json"]
    assert failure().code == "weights_unfit"
    assert not server.asked


def test_a_silent_hub_is_known_within_five_seconds_and_left_alone_for_ten_minutes(home, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound, never listening: the port refuses
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        use_hub(monkeypatch, url)
        started = time.monotonic()
        problem = failure()
        assert time.monotonic() - started < 5.5
        assert problem.code == "hub_unreachable" and url in problem.message
        assert re.search(r"\d\d:\d\d", problem.hint)
        monkeypatch.setattr(hub.threading, "Thread", None)  # nothing is started any more
        assert failure().code == "hub_unreachable"
        monkeypatch.undo()
        use_hub(monkeypatch, url)
        monkeypatch.setattr(hub, "_silent_since", {url: time.monotonic() - 601})
        hub._raise_if_silent()  # asked again after ten minutes


def test_a_hub_that_accepts_and_says_nothing_is_given_up(home, monkeypatch):
    monkeypatch.setattr(hub, "ASK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        use_hub(monkeypatch, f"http://127.0.0.1:{listener.getsockname()[1]}")
        started = time.monotonic()
        assert failure().code == "hub_unreachable"
        assert time.monotonic() - started < 3


def test_offline_mode_is_respected(home):
    problem = failure()
    assert problem.code == "offline" and "HF_HUB_OFFLINE" in problem.message


def test_a_folder_cannot_be_fetched(home):
    with pytest.raises(StudioError) as caught:
        next(hub.download("/some/folder", lambda: False))
    assert caught.value.problem.code == "model_unknown"


def test_environment_variables_set_the_hub_and_the_cache(server, tmp_path):
    code = (
        "import checkpoints, hub\n"
        f"events = list(hub.download({REPO!r}, lambda: False))\n"
        "weights = checkpoints.find_weights()\n"
        "print(weights.source, weights.folder)"
    )
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "elsewhere")}
    environment |= {"ACE_STUDIO_MODEL": REPO, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    source, folder = done.stdout.split()
    assert source == "cache" and Path(folder).is_relative_to(tmp_path / "elsewhere"), done.stderr
