"""LoRAs from a request to a song and its record: through the backend, and through the API with an uploaded file."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from gradio import utils as gradio_utils
from gradio_client import handle_file
from safetensors.torch import save_file

import audio_export
import backend
import gpu
import page_form
import params
from events import Failed
from model_weights import MODEL_VARIABLE
from tests.engine.adapters import write_adapter
from tests.engine.songs import samples_of

pytestmark = pytest.mark.usefixtures("output")


@pytest.fixture(scope="module")
def adapter(studio):
    """Return a function that writes an adapter of rank 4 into Gradio's folder for uploads."""
    folder = Path(gradio_utils.get_upload_folder(), "test-loras")
    folder.mkdir(parents=True, exist_ok=True)

    def write(name="mine.safetensors", seed=0, wider=0, **kind):
        return str(write_adapter(folder / name, studio.models.pipeline(), seed, wider, **kind))

    return write


def run(studio, *chosen):
    values = {
        "prompt": "calm piano",
        "duration": 10,
        "seed": 7,
        "options": {"steps": 3, "loras": list(chosen)},
    }
    *_, last = studio.stream(params.parse_request("generate", values))
    return last


def test_loras_change_the_song_are_in_its_record_and_leave_no_trace(studio, adapter):
    plain = samples_of(run(studio))[0]
    mine, other = {"source": adapter(), "weight": 0.8}, adapter("other.safetensors", seed=1)
    done = run(studio, mine, other)
    assert not np.array_equal(samples_of(done)[0], plain)
    assert np.array_equal(samples_of(run(studio, mine, other))[0], samples_of(done)[0])
    assert np.array_equal(samples_of(run(studio, {**mine, "weight": 0}))[0], plain)
    one, two = done.record["loras"]
    assert (one["name"], one["source"], one["weight"], one["modules"]) == (
        "mine.safetensors",
        "upload",
        0.8,
        3,
    )
    assert (two["name"], two["weight"], two["ranks"]) == ("other.safetensors", 1.0, [4])
    assert len(one["sha256"]) == 64 and one["sha256"] != two["sha256"]
    assert audio_export.read_record(done.files[0])["loras"] == done.record["loras"]
    assert gradio_utils.get_upload_folder() not in json.dumps(done.record)
    # Uploads are not restored, and counted.
    done.record["request"]["options"]["loras"].append(
        {"source": "org/name:a.safetensors", "weight": 0.5}
    )
    found = page_form.settings("generate", done.record)
    assert found.values["options.loras"] == [{"source": "org/name:a.safetensors", "weight": 0.5}]
    assert (found.uploads, found.left_out) == (2, 0)
    failed = run(studio, mine, adapter("wide.safetensors", wider=8))
    assert isinstance(failed, Failed) and failed.problem.field == "options.loras"
    assert "wide.safetensors" in failed.problem.message
    assert np.array_equal(samples_of(run(studio))[0], plain)


def test_an_alpha_that_is_not_known_is_noted_in_the_record(studio, adapter):
    peft = adapter("peft.safetensors", prefix="base_model.model.")
    done = run(studio, peft, adapter("comfy.safetensors"))
    (note,) = [note for note in done.record["notes"] if "LoRA" in note]
    assert note.startswith("LoRA peft.safetensors: ") and "alpha is unknown" in note


def test_a_file_outside_the_uploads_is_not_read(studio, adapter, tmp_path):
    elsewhere = shutil.copy(adapter(), tmp_path / "mine.safetensors")
    failed = run(studio, str(elsewhere))
    assert isinstance(failed, Failed) and failed.problem.code == "lora_missing"
    assert str(tmp_path) not in failed.problem.text()


@pytest.mark.slow
def test_the_api_takes_an_uploaded_lora(client, adapter, tmp_path):
    archive = tmp_path / "adapter.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(adapter(), "adapter_model.safetensors")

    def song(*chosen):
        options = {"steps": 3, "loras": list(chosen)}
        return client.predict(
            "calm piano", duration=10, seed=7, options=options, api_name="/generate"
        )

    plain, _ = song()
    files, record = song({"source": handle_file(str(archive)), "weight": 0.5})
    assert record["loras"][0]["weight"] == 0.5 and record["loras"][0]["modules"] == 3
    assert not np.array_equal(soundfile.read(files[0])[0], soundfile.read(plain[0])[0])


def test_a_lora_of_the_wrong_size_is_refused_before_the_gpu_though_the_weights_are_gone(
    tiny, tmp_path, monkeypatch, adapter
):
    """As on ZeroGPU, where the files are deleted once they are packed."""
    folder = shutil.copytree(tiny, tmp_path / "checkpoint")
    monkeypatch.setenv(MODEL_VARIABLE, str(folder))
    for name in ("ACE_STUDIO_PLANNER", "ACE_STUDIO_LYRICS"):
        monkeypatch.setenv(name, "off")
    studio = backend.Backend()
    studio.models.load_all()
    studio.widths()
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    monkeypatch.setattr(gpu, "entry", lambda job, seconds: pytest.fail("a GPU was lent"))
    made_for_2b = Path(adapter("2b.safetensors"))
    name = "diffusion_model.layers.0.self_attn.q_proj.lora_"
    save_file(
        {f"{name}A.weight": torch.ones(1, 2048), f"{name}B.weight": torch.ones(2048, 1)},
        made_for_2b,
    )
    failed = run(studio, str(made_for_2b))
    assert isinstance(failed, Failed) and failed.problem.code == "lora_unfit"
    assert "the 2B models" in failed.problem.message and "96 wide" in failed.problem.message
