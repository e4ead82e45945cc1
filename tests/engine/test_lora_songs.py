"""LoRAs from a request to a song and its record: through the backend, and through the API with an uploaded file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from gradio import utils as gradio_utils
from gradio_client import handle_file

import export
import params
import restore
from events import Failed, InvalidRequest
from tests.engine.adapters import write_adapter
from tests.engine.songs import samples_of

pytestmark = pytest.mark.usefixtures("output")


@pytest.fixture(scope="module")
def adapter(studio, tmp_path_factory):
    """Return a function that writes an adapter of rank 4 into Gradio's folder for uploads."""
    folder = Path(gradio_utils.get_upload_folder(), "test-loras")
    folder.mkdir(parents=True, exist_ok=True)

    def write(name="mine.safetensors", seed=0, wider=0):
        return str(write_adapter(folder / name, studio.pipeline(), seed, wider))

    return write


def run(studio, *chosen, **options):
    options = {"steps": 3, "loras": list(chosen), **options}
    request = params.parse_request("generate", {"prompt": "calm piano", "duration": 10, "seed": 7, "options": options})
    *_, last = studio.stream(request)
    return last


def test_a_lora_changes_the_song_and_leaves_no_trace(studio, adapter):
    plain = samples_of(run(studio))[0]
    mine = {"source": adapter(), "weight": 0.8}
    changed = run(studio, mine)
    assert not np.array_equal(samples_of(changed)[0], plain)
    assert np.array_equal(samples_of(run(studio, mine))[0], samples_of(changed)[0])
    assert np.array_equal(samples_of(run(studio, {**mine, "weight": 0}))[0], plain)
    assert np.array_equal(samples_of(run(studio))[0], plain)


def test_the_record_and_the_tags_say_what_loaded_and_no_path(studio, adapter):
    first, second = adapter(), adapter("other.safetensors", seed=1)
    done = run(studio, {"source": first, "weight": 0.8}, second)
    one, two = done.record["loras"]
    assert (one["name"], one["source"], one["weight"], one["modules"]) == ("mine.safetensors", "upload", 0.8, 3)
    assert (two["name"], two["weight"], two["ranks"]) == ("other.safetensors", 1.0, [4])
    assert len(one["sha256"]) == 64 and one["sha256"] != two["sha256"]
    assert export.read_record(done.files[0])["loras"] == done.record["loras"]
    assert gradio_utils.get_upload_folder() not in json.dumps(done.record)


def test_uploads_are_not_restored_and_counted_as_left_out(studio, adapter):
    record = run(studio, {"source": adapter(), "weight": 0.8}).record
    found = restore.settings("generate", record)
    assert found.values["options.loras"] == [] and found.left_out == 1
    record["request"]["options"]["loras"].append({"source": "org/name:a.safetensors", "weight": 0.5})
    kept = restore.settings("generate", record).values["options.loras"]
    assert kept == [{"source": "org/name:a.safetensors", "weight": 0.5}]


def test_a_lora_that_does_not_fit_is_a_sentence_and_the_next_song_is_as_before(studio, adapter):
    plain = samples_of(run(studio))[0]
    failed = run(studio, {"source": adapter(), "weight": 1}, adapter("wide.safetensors", wider=8))
    assert isinstance(failed, Failed) and failed.problem.field == "options.loras"
    assert "wide.safetensors" in failed.problem.message
    assert np.array_equal(samples_of(run(studio))[0], plain)


def test_a_file_outside_the_uploads_is_not_read(studio, adapter, tmp_path):
    elsewhere = tmp_path / "mine.safetensors"
    elsewhere.write_bytes(Path(adapter()).read_bytes())
    failed = run(studio, str(elsewhere))
    assert isinstance(failed, Failed) and failed.problem.code == "lora_missing"
    assert str(tmp_path) not in failed.problem.text()


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("mine", "LoRAs must be a list"),
        ([{}], "LoRA 1 must name its source"),
        (["a/b", {"source": "a/b", "weight": 2.5}], "The weight of LoRA 2 must be from 0 to 2, not 2.5"),
        ([{"source": "a/b", "weight": float("nan")}], "The weight of LoRA 1 must be from 0 to 2"),
        ([{"source": "a/b", "scale": 1}], '"scale" of LoRA 1 is not known here'),
        (["a/b"] * 51, "from 0 to 50"),
        ([7], "LoRA 1 must name its source"),
    ],
)
def test_wrong_choices_are_sentences_at_the_field(chosen, said):
    with pytest.raises(InvalidRequest) as caught:
        params.parse_request("cover", {"prompt": "x", "source": "a.wav", "options": {"loras": chosen}})
    assert caught.value.problem.field == "options.loras" and said in caught.value.problem.message


def test_every_song_endpoint_takes_loras():
    for mode in params.SONG_REQUESTS:
        assert "loras" in params.REQUESTS[mode].model_fields["options"].annotation.model_fields


@pytest.mark.slow
def test_the_api_takes_an_uploaded_lora(client, adapter, tmp_path):
    archive = tmp_path / "adapter.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(adapter(), "adapter_model.safetensors")

    def song(*chosen):
        options = {"steps": 3, "loras": list(chosen)}
        return client.predict("calm piano", duration=10, seed=7, options=options, api_name="/generate")

    plain, _ = song()
    for upload in (adapter(), str(archive)):
        files, record = song({"source": handle_file(upload), "weight": 0.5})
        assert record["loras"][0]["weight"] == 0.5 and record["loras"][0]["modules"] == 3
        assert not np.array_equal(soundfile.read(files[0])[0], soundfile.read(plain[0])[0])
