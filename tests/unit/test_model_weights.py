"""Finding weights: where they are looked for, what a checkpoint is, and what is said of one that is not whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import models
from events import StudioError
from model_weights import DEFAULT_MODEL, checkpoint_kind, find_weights, is_turbo
from tests.unit.fake_hub import COMMIT
from tests.weights import CPU, weights_in

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def put(checkpoint: Path, folder: Path) -> Path:
    """Move `checkpoint` to `folder`."""
    folder.parent.mkdir(parents=True)
    return checkpoint.rename(folder)


def put_into_cache(checkpoint: Path, home: Path, repo: str) -> Path:
    """Put `checkpoint` into the cache as huggingface_hub does."""
    storage = home / "hub" / f"models--{repo.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT)
    return put(checkpoint, storage / "snapshots" / COMMIT)


def test_a_bare_machine_gets_the_preview_and_is_told_why_but_not_on_zerogpu(home, monkeypatch):
    weights = find_weights()
    assert (weights.engine, weights.source, weights.wanted) == ("preview", "preview", DEFAULT_MODEL)
    assert weights.problem.code == "weights_missing" and DEFAULT_MODEL in weights.problem.message
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    weights = find_weights()
    assert (weights.engine, weights.source, weights.problem.code) == (
        "xl",
        "none",
        "weights_missing",
    )
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    assert find_weights().engine == "preview"


@pytest.mark.parametrize("spelling", ["{folder}", "my-model", "./my-model", "~/my-model"])
def test_the_variable_may_name_a_folder(home, checkpoint, monkeypatch, spelling):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ACE_STUDIO_MODEL", spelling.format(folder=checkpoint))
    weights = find_weights()
    assert (weights.engine, weights.source, weights.folder, weights.problem) == (
        "xl",
        "variable",
        checkpoint,
        None,
    )
    assert weights.model_id == "my-model"  # records travel: they carry no path of this machine


def test_the_order_is_models_then_cache_unless_the_preview_is_asked_for(home, tiny, monkeypatch):
    in_cache = put_into_cache(Path(shutil.copytree(tiny, home / "one")), home, DEFAULT_MODEL)
    weights = find_weights()
    assert (weights.source, weights.folder, weights.revision) == ("cache", in_cache, COMMIT)
    in_models = put(Path(shutil.copytree(tiny, home / "two")), home / "models" / DEFAULT_MODEL)
    weights = find_weights()
    assert (weights.source, weights.folder, weights.problem) == ("models", in_models, None)
    assert weights.model_id == DEFAULT_MODEL
    (in_models / "vae" / "config.json").unlink()
    assert find_weights().source == "cache"
    monkeypatch.setenv("ACE_STUDIO_MODEL", "preview")
    weights = find_weights()
    assert (weights.engine, weights.model_id, weights.problem) == ("preview", "preview", None)
    assert weights.wanted == DEFAULT_MODEL


def test_a_named_model_is_downloaded_and_never_replaced(home, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_MODEL", "somebody/else")
    weights = find_weights()
    assert (weights.engine, weights.source, weights.folder, weights.problem) == (
        "xl",
        "hub",
        None,
        None,
    )
    assert weights.wanted == "somebody/else"
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    weights = find_weights()
    assert weights.source == "none" and "preload_from_hub" in weights.problem.hint


@pytest.mark.parametrize(
    "asked", ["nonsense", "a/b/c", "../elsewhere", "/not/there", "who/what--ever", "~none/x"]
)
def test_a_wrong_variable_is_a_problem_and_not_the_preview(home, monkeypatch, asked):
    monkeypatch.setenv("ACE_STUDIO_MODEL", asked)
    weights = find_weights()
    assert (weights.engine, weights.source, weights.folder) == ("xl", "none", None)
    assert weights.problem.code == "weights_missing"
    with pytest.raises(StudioError) as caught:
        models.build_pipeline(weights, CPU)
    assert caught.value.problem == weights.problem


def as_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder / "gone")


def changed(path: Path, **values) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DAMAGED = f"{TRANSFORMER} is damaged or incomplete"
DAMAGES = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
    "another pipeline": (
        lambda f: (f / "model_index.json").write_text('{"_class_name": "Flux"}'),
        "Flux",
    ),
    "an unlisted part": (
        lambda f: changed(f / "model_index.json", vae=[None, None]),
        "does not list vae",
    ),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "vae/config.json is missing"),
    "no weights": (lambda f: (f / TRANSFORMER).unlink(), f"{TRANSFORMER} is missing"),
    "cut weights": (
        lambda f: os.truncate(f / TRANSFORMER, (f / TRANSFORMER).stat().st_size - 1),
        DAMAGED,
    ),
    "empty weights": (lambda f: (f / TRANSFORMER).write_bytes(b""), DAMAGED),
    "lfs pointer": (
        lambda f: (f / TRANSFORMER).write_text("version https://git-lfs.github.com"),
        "Git LFS pointer",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer/tokenizer.json").unlink(),
        "tokenizer/tokenizer.json is missing",
    ),
    **{
        f"{part}: {name} = {value}": (
            lambda f, part=part, name=name, value=value: changed(f / part, **{name: value}),
            f"{part} cannot be right: {name} is {json.dumps(value)}, not {wanted}",
        )
        for part, name, value, wanted in (
            ("transformer/config.json", "num_attention_heads", None, "a whole number from 1 up"),
            ("transformer/config.json", "num_hidden_layers", -1, "a whole number from 1 up"),
            ("transformer/config.json", "hidden_size", 10**12, "a whole number from 1 up"),
            ("transformer/config.json", "head_dim", True, "a whole number from 1 up"),
            ("transformer/config.json", "rope_theta", "ten", "a number above 0"),
            (
                "condition_encoder/config.json",
                "num_lyric_encoder_hidden_layers",
                0,
                "a whole number from 1 up",
            ),
            ("text_encoder/config.json", "num_hidden_layers", 2.5, "a whole number from 1 up"),
            ("vae/config.json", "downsampling_ratios", [], "a list of whole numbers from 1 up"),
            ("scheduler/scheduler_config.json", "shift", -1.0, "a number above 0"),
        )
    },
    # Without a word the song would be made with some of the layers only.
    "fewer layers than the weights": (
        lambda f: changed(f / "transformer/config.json", num_hidden_layers=1, layer_types=None),
        "num_hidden_layers is 1, but the weights have",
    ),
    "heads that cannot be shared": (
        lambda f: changed(f / "transformer/config.json", num_key_value_heads=3),
        "not a multiple of num_key_value_heads (3)",
    ),
    "unknown layers": (
        lambda f: changed(f / "transformer/config.json", layer_types=["x"]),
        "layer_types may only name",
    ),
    "a link to nowhere": (as_link, "it is a link to"),
}


@pytest.mark.parametrize("damage, said", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_broken_folder_is_named_with_what_is_wrong(home, checkpoint, monkeypatch, damage, said):
    folder = put(checkpoint, home / "models" / DEFAULT_MODEL)
    damage(folder)
    weights = find_weights()
    assert weights.engine == "preview"
    assert weights.problem.code == "weights_broken"
    assert f"models/{DEFAULT_MODEL}" in weights.problem.message and said in weights.problem.message
    assert str(home) not in weights.problem.message.replace(f"{folder}/gone", "")
    monkeypatch.setenv("ACE_STUDIO_MODEL", str(folder))
    weights = find_weights()
    assert (weights.engine, weights.source, weights.folder) == ("xl", "none", None)
    assert said in weights.problem.message


def shard(folder: Path, stem: str) -> list[Path]:
    """Split the only weights file of `folder` in two, with an index."""
    from safetensors.torch import load_file, save_file

    whole = folder / f"{stem}.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        path = folder / f"{stem}-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path, {"format": "pt"})
        weight_map |= dict.fromkeys(part, path.name)
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": weight_map,
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return sorted(folder.glob("*-of-*"))


def test_sharded_weights_are_whole_only_with_every_shard(home, checkpoint, monkeypatch):
    shards = shard(checkpoint / "transformer", "diffusion_pytorch_model")
    monkeypatch.setenv("ACE_STUDIO_MODEL", str(checkpoint))
    weights = find_weights()
    assert weights.problem is None
    assert models.build_pipeline(weights, CPU).transformer.config.model_version == "sft"
    shards[1].unlink()
    assert shards[1].name in find_weights().problem.message


def test_a_download_that_another_program_left_half_done_is_a_problem_or_goes_on(
    home, checkpoint, monkeypatch
):
    folder = put_into_cache(checkpoint, home, DEFAULT_MODEL)
    (folder / TRANSFORMER).unlink()
    weights = find_weights()
    assert (
        weights.engine == "preview"
        and f"{DEFAULT_MODEL} cannot be used: {TRANSFORMER}" in weights.problem.message
    )
    monkeypatch.setenv("ACE_STUDIO_MODEL", DEFAULT_MODEL)
    assert find_weights().source == "hub"


@pytest.mark.parametrize(
    ("name", "config", "kind"),
    [
        ("xl-sft-diffusers", {"model_version": "base"}, "sft"),
        ("xl-base-diffusers", {"model_version": None}, "base"),
        ("mine", {"model_version": "base"}, "base"),
        ("mine", {"model_version": "odd"}, "sft"),
        ("mine", {"is_turbo": True}, "turbo"),
    ],
)
def test_kinds_of_checkpoint(checkpoint, name, config, kind):
    changed(checkpoint / "transformer" / "config.json", **config)
    weights = weights_in(checkpoint.rename(checkpoint.with_name(name)))
    assert checkpoint_kind(weights) == kind
    assert is_turbo(weights) == (kind == "turbo")
