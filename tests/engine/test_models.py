"""Several song models in one studio: each makes the song that a studio of its own makes, whatever came before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio import utils as gradio_utils

import backend
import gpu
import jobs
import model_hub
import model_weights
import selfcheck
from events import Done, Failed, InvalidRequest
from model_weights import CHECKPOINTS, OPTIONAL_PARTS
from params import parse_request
from tests.engine.adapters import write_adapter
from tests.engine.songs import samples_of, wait_for_turn


@pytest.fixture
def studio_of(shelf: Path, output: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that starts a studio for one of the three, or for another model."""
    monkeypatch.setattr(model_weights, "MODELS_FOLDER", shelf)

    def start(model: str) -> backend.Backend:
        monkeypatch.setenv("ACE_STUDIO_MODEL", CHECKPOINTS.get(model, model))
        monkeypatch.setenv("ACE_STUDIO_PLANNER", "random")
        fresh = backend.Backend()
        monkeypatch.setattr(backend, "_backend", fresh)
        return fresh

    return start


def ask(studio: backend.Backend, model: str, mode: str = "generate", **values: Any):
    options = {"steps": 2, "model": model, **values.pop("options", {})}
    given = {"prompt": "calm piano", "seed": 7, **values, "options": options}
    if mode == "generate":
        given["duration"] = 10
        options["plan"] = False
    return studio.stream(parse_request(mode, given))


def made(studio: backend.Backend, model: str, mode: str = "generate", **values: Any) -> Done:
    *_, last = ask(studio, model, mode, **values)
    assert isinstance(last, Done), last
    return last


@pytest.fixture
def lora(pipe_xl: Any) -> Path:
    folder = Path(gradio_utils.get_upload_folder(), "model-loras")
    folder.mkdir(parents=True, exist_ok=True)
    return write_adapter(folder / "mine.safetensors", pipe_xl)


def test_a_switch_of_models_makes_the_song_that_a_studio_of_its_own_makes(studio_of):
    shared = studio_of("sft")
    made(shared, "sft")
    song = made(shared, "turbo")
    (alone,) = samples_of(made(studio_of("turbo"), ""))
    assert np.array_equal(*samples_of(song), alone)


@pytest.mark.slow
def test_songs_equal_those_of_a_studio_for_each_model_alone_in_any_order(studio_of, lora):
    plain: dict[str, Any] = {}
    adapted: dict[str, Any] = {"options": {"loras": [{"source": str(lora), "weight": 1.0}]}}
    order = [
        ("sft", adapted),
        ("turbo", plain),
        ("base", plain),
        ("sft", adapted),
        ("turbo", adapted),
    ]
    shared = studio_of("sft")
    songs = [made(shared, model, **values) for model, values in order]
    assert [song.record["model"]["id"] for song in songs] == [
        CHECKPOINTS[model] for model, _ in order
    ]
    assert songs[1].record["sampling"]["turbo"] and not songs[2].record["loras"]
    # Cancelled in its steps, with another model than the next song's.
    events = ask(shared, "base")
    next(event for event in events if getattr(event, "stage", "") == "steps" and event.step)
    events.close()
    wait_for_turn(shared)
    songs.append(made(shared, "turbo"))
    for song, (model, values) in zip(songs, [*order, ("turbo", plain)], strict=True):
        (alone,) = samples_of(made(studio_of(model), "", **values))
        assert np.array_equal(*samples_of(song), alone), (model, values)


def test_equal_parts_are_loaded_once_and_a_turbo_borrows_what_audio_codes_need(studio_of, source):
    studio = studio_of("turbo")
    song = made(studio, "", "cover", source=source["path"])
    assert song.record["model"]["borrowed"] == dict.fromkeys(OPTIONAL_PARTS, CHECKPOINTS["sft"])
    turbo = studio.models.pipeline()
    made(studio, "sft")
    sft = studio.models.pipeline()
    made(studio, "base")
    base = studio.models.pipeline()
    shared = ("vae", "text_encoder", "condition_encoder", "tokenizer", *OPTIONAL_PARTS)
    assert all(getattr(sft, part) is getattr(turbo, part) for part in shared)
    assert base.vae is not sft.vae and base.text_encoder is sft.text_encoder
    assert len({id(pipe.transformer) for pipe in (turbo, sft, base)}) == 3
    assert "borrowed" not in made(studio, "sft").record["model"]
    assert studio.models.pipeline() is sft


def test_a_model_that_is_not_here_is_refused_with_how_to_get_it(
    studio_of, shelf, tmp_path, monkeypatch
):
    studio = studio_of("sft")
    monkeypatch.setattr(model_weights, "MODELS_FOLDER", tmp_path / "nothing")

    def refusal(model: str) -> Any:
        request = parse_request("generate", {"prompt": "calm piano", "options": {"model": model}})
        with pytest.raises(InvalidRequest) as refused:
            backend.check(request, studio)
        assert refused.value.problem.field == "options.model"
        return refused.value.problem

    fast = {each.name: each for each in studio.status().song_models}["turbo"]
    assert fast.state == "missing" and fast.download_gb == 11.5
    with monkeypatch.context() as patch:
        patch.setattr(model_hub, "missing_bytes", lambda repo: 8_340_000_000)
        studio.ask_size("turbo")
    assert studio.status().to_get("turbo").download_gb == 8.3
    *_, refused = studio.download("sft")  # it is the studio's own, which is loaded from elsewhere
    assert isinstance(refused, Failed) and refused.problem.code == "not_offered"
    missing = refusal("base")
    assert missing.code == "weights_missing" and CHECKPOINTS["base"] in missing.message
    assert f"hf download {CHECKPOINTS['base']}" in missing.hint
    assert "there is no such folder" in refusal(str(tmp_path / "no")).message
    assert "built-in engine" in refusal("preview").message
    monkeypatch.setattr(model_weights, "MODELS_FOLDER", shelf)
    morph = {"source": "a.wav", "action": "morph", "options": {"model": "turbo"}}
    monkeypatch.setattr(backend, "check_audio", lambda request: 10.0)
    with pytest.raises(InvalidRequest, match="Morph needs a checkpoint with guidance"):
        backend.check(parse_request("edit", morph), studio)
    made(studio, str(shelf / CHECKPOINTS["turbo"]))
    names = {
        selfcheck._name_of(studio.models.find(str(shelf / each))) for each in CHECKPOINTS.values()
    }
    assert len(names) == 3 and not any("shelf" in name or "xl" in name for name in names)
    # An action with tracks takes Stems if none is named; on the page, Best is a name.
    layer = parse_request("edit", {"source": "a.wav", "action": "layer", "tracks": ["drums"]})
    assert studio.song_model(layer) == studio.models.find("base")
    # On a Ray worker, too, where its settings and its model are of one kind.
    with monkeypatch.context() as patch, jobs.job_for(layer, studio.settle(layer)) as job:
        patch.setattr(gpu, "entry", lambda job, seconds: iter([job]))
        *_, sent = backend.on_worker(job)
        assert jobs.song_model(sent, studio.models) == studio.models.find("base")
        assert sent.settings.kind == "base"
    named = parse_request(
        "edit", {**layer.model_dump(exclude_unset=True), "options": {"model": "sft"}}
    )
    assert studio.song_model(named) == studio.models.weights
    monkeypatch.setenv("SPACE_ID", "a/space")
    assert "not a folder" in refusal(str(tmp_path)).message
