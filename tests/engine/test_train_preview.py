"""The training of the preview engine: it runs, goes on where it stopped, and its weights are loaded by the studio."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AceStepPipeline

import conditions
import models
import modes
import preview
import sampling
from tests.weights import CPU, weights_in
from tools import evaluate_preview, preview_data, preview_shape, preview_state, preview_steps, train_preview
from tools.band_score import compose
from tools.preview_shape import FULL, SMALL, STAGES
from tools.render_band import render
from tools.train_preview import Trainer

STEPS = 2


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return a log's lines without the seconds that a step took."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return every parameter."""
    return {name: value.detach().clone() for name, value in preview_state.named(trainer.parts).items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder: the state after each stage, and at the end the log and the exported checkpoint."""
    folder = tmp_path_factory.mktemp("training")
    trainer = Trainer(folder / "state", "small", log=folder / "log.jsonl", log_every=1)
    for stage in STAGES:
        trainer.run(stage, steps=STEPS)
        shutil.copytree(folder / "state", folder / f"after-{stage}")
    trainer.export(folder / "checkpoint")
    return folder


def encoded(seed: int = 5, frames: int = 100) -> preview_data.Encoded:
    """Return a real score with drawn latents in the place of what the VAE makes of it."""
    score = compose(seed, seconds=frames / 25)
    generator = torch.Generator().manual_seed(seed)

    def latents() -> torch.Tensor:
        return torch.randn(frames, SMALL.latents, generator=generator)

    names = list(score.tracks)
    return preview_data.Encoded(
        score, latents(), {name: latents() for name in names}, (names[0], latents()), ((names[1],), latents())
    )


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """Return small parts; the transformer's last layer speaks, unlike that of a fresh one."""
    built = preview_shape.build_parts(SMALL)
    torch.nn.init.normal_(built["transformer"].proj_out_conv.weight, std=0.1)
    return built


def song_stage(parts: dict[str, Any], half: bool = False) -> preview_steps.SongStage:
    """Return the third stage on the CPU."""
    return preview_steps.SongStage(parts, preview_steps.PLANS["small"]["song"], 0, torch.device("cpu"), half)


# --- the parts ----------------------------------------------------------------------------------------------------


def test_the_full_shape_fits_its_limits(tmp_path):
    parts = preview_shape.build_parts(FULL)
    song = {name: parts[name] for name in STAGES["song"]}
    rest = {name: part for name, part in parts.items() if name not in song}
    optimizer = torch.optim.AdamW([parameter for part in song.values() for parameter in part.parameters()])
    for parameter in preview_state.named(song).values():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    preview_state.write(
        tmp_path / "state", preview_state.Progress("full"), rest, song, preview_state.Average(song), optimizer
    )
    sizes = [path.stat().st_size for path in (tmp_path / "state").iterdir()]
    assert max(sizes) <= 16 * 2**20 and sum(sizes) <= 63 * 2**20

    preview_shape.export(parts, tmp_path / "checkpoint", "a card", {})
    files = [path for path in (tmp_path / "checkpoint").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 10e6
    assert sum(path.stat().st_size for path in files) < 40e6
    index = json.loads(
        (tmp_path / "checkpoint" / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    assert len(set(index["weight_map"].values())) > 1


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (preview_shape.build_parts(SMALL, seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(
        first["transformer"].time_embed.linear_1.weight, second["transformer"].time_embed.linear_1.weight
    )


def test_the_codes_of_the_training_are_those_of_the_class_and_can_be_learnt(parts):
    latents = torch.randn(2, 50, SMALL.latents)
    quantized = preview_steps.quantize(parts["audio_tokenizer"], latents)
    assert torch.allclose(quantized, parts["audio_tokenizer"].tokenize(latents)[0], atol=1e-6)
    quantized.square().sum().backward()
    assert float(parts["audio_tokenizer"].audio_acoustic_proj.weight.grad.abs().max()) > 0


def test_a_padded_batch_says_what_each_prompt_says_alone(parts):
    stage = song_stage(parts)
    piece = encoded()
    silence, words = stage.silence, stage.words
    examples = [preview_data._example(piece, np.random.default_rng(n), silence, words) for n in range(6)]
    assert len({len(stage.tokenizer(example.text).input_ids) for example in examples}) > 1
    noisy, context = torch.randn(6, 100, SMALL.latents), torch.randn(6, 100, 2 * SMALL.latents)
    times = torch.full((6,), 0.5)

    def velocity(states, mask, rows) -> torch.Tensor:
        bias = torch.zeros(mask.shape).masked_fill(~mask, -1e4)
        stage.shared["mask"] = bias[:, None, None]
        return parts["transformer"](noisy[rows], times[rows], times[rows], states, context[rows], return_dict=False)[0]

    with torch.no_grad():
        together = velocity(*stage.encode(examples), slice(0, 6))
        for number, example in enumerate(examples):
            states, mask = stage.encode([example])
            # As the studio does: no padding at all.
            alone = velocity(states[:, mask[0]], mask[:, mask[0]], slice(number, number + 1))
            assert torch.allclose(alone[0], together[number], atol=1e-4)


# --- the examples -------------------------------------------------------------------------------------------------


def test_the_examples_are_what_the_studio_asks_for(parts):
    stage, piece = song_stage(parts), encoded()
    rng, seen = np.random.default_rng(0), {}
    for _ in range(400):
        example = preview_data._example(piece, rng, stage.silence, stage.words)
        seen.setdefault(example.task, []).append(example)
    assert set(seen) == set(preview_data.TASKS)
    quiet = stage.silence.expand(100, -1)
    for example in seen["text2music"]:
        assert torch.equal(example.source, quiet) and example.mask.min() == 1
        assert modes.TEXT2MUSIC in example.text and torch.equal(example.target, piece.mix)
    for example in seen["repaint"]:
        new = example.mask[:, 0] > 0
        assert 0 < int(new.sum()) < 100 and modes.REPAINT in example.text
        assert torch.equal(example.source[~new], piece.mix[~new]) and torch.equal(example.source[new], quiet[new])
    assert {bool(example.mask[-1]) for example in seen["repaint"]} == {True, False}
    for example in seen["lego"]:
        assert torch.equal(example.source, piece.without[1]) and f"{piece.without[0].upper()} track" in example.text
        assert torch.equal(example.target, piece.tracks[piece.without[0]])
    for example in seen["extract"]:
        assert torch.equal(example.source, piece.mix) and "Extract the" in example.text
    for example in seen["complete"]:
        assert torch.equal(example.source, piece.some[1]) and piece.some[0][0].upper() in example.text
    assert all(example.covered and modes.COVER in example.text for example in seen["cover"])
    texts = [example.text for examples in seen.values() for example in examples]
    assert any(f"- bpm: {piece.score.bpm}\n" in text for text in texts) and any(
        "- bpm: N/A\n" in text for text in texts
    )
    assert all(text.endswith("<|endoftext|>\n") and "- duration: 4 seconds" in text for text in texts)
    assert {example.reference is None for example in seen["text2music"]} == {True, False}


def test_the_stems_of_a_piece_are_encoded_apart(parts):
    piece = render(compose(3, seconds=4.0))
    found = preview_data.encode_piece(parts["vae"].requires_grad_(False), piece)
    assert found.mix.shape == (100, SMALL.latents) and set(found.tracks) == set(piece.score.tracks)
    assert found.without[0] in found.tracks and set(found.some[0]) < set(found.tracks)
    assert not torch.allclose(found.mix, found.without[1])


def test_a_pool_follows_from_the_step_alone():
    made = []
    pool = preview_data.Pool(3, 2, lambda number: made.append(number) or number)
    assert [pool.at(step) for step in (0, 1, 2, 5)] == [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert made == [0, 1, 2, 3, 4]
    assert preview_data.Pool(3, 2, lambda number: number).at(5) == pool.at(5)
    growing = preview_data.Pool(3, 2, lambda number: number, start=1)
    assert [growing.at(step) for step in (0, 2, 4, 6)] == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]


@pytest.mark.parametrize("half", [False, True])
def test_a_step_of_the_song_stage_reaches_every_part(parts, half):
    stage = song_stage(parts, half)
    pieces = [encoded(seed) for seed in range(3)]
    stage.pool.make = pieces.__getitem__
    for part in parts.values():
        part.requires_grad_(True)
        part.zero_grad()
    loss = stage.loss(0)["flow"]
    loss.backward()
    assert loss.isfinite()
    for name in STAGES["song"]:
        assert any(
            parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in parts[name].parameters()
        )


def learn(stage: preview_steps.SongStage, example: preview_data.Example, steps: int) -> list[float]:
    """Train a stage on one example alone; return the loss of each step."""
    trained = [parameter for name in STAGES["song"] for parameter in stage.parts[name].parameters()]
    optimizer = torch.optim.AdamW(trained, 3e-3)
    stage.examples = lambda step: [example] * 8
    losses = []
    for step in range(steps):
        loss = stage.loss(step)["flow"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.long
def test_what_the_song_stage_learns_is_what_the_loop_plays(tmp_path):
    """Trained on one example, the studio's own loop brings it back from noise and the same words."""
    words = conditions.Words("lofi", "[Instrumental]", "unknown", 4.0, modes.TEXT2MUSIC, 80, "C major", "4")
    told = AceStepPipeline._format_prompt(
        AceStepPipeline,
        prompt=words.prompt,
        lyrics=words.lyrics,
        vocal_language=words.language,
        audio_duration=words.seconds,
        instruction=words.instruction,
        bpm=words.bpm,
        keyscale=words.key,
        timesignature=words.time_signature,
    )
    parts = preview_shape.build_parts(SMALL)
    stage = song_stage(parts)
    target = torch.sin(torch.arange(100)[:, None] * torch.linspace(0.05, 0.4, SMALL.latents)) * 1.4
    quiet, everywhere = stage.silence.expand(100, -1), torch.ones(100, 1)
    example = preview_data.Example("text2music", target, quiet, everywhere, False, *told, None)
    losses = learn(stage, example, 450)
    assert np.mean(losses[-20:]) < 0.2 * np.mean(losses[:5])

    folder = preview_shape.export(parts, tmp_path / "one", "a card", {})
    pipe = models.build_pipeline(weights_in(folder), CPU)
    generators = sampling.generators_for((3,))
    run = sampling.Run(
        condition=conditions.encode_condition(pipe, words, conditions.silent_context(pipe, 100)),
        start=sampling.draw_noise(generators, 100, SMALL.latents),
        generators=generators,
        sigmas=sampling.schedule(20, 1.0),
        guidance=1.0,
    )
    *_, last = sampling.denoise(pipe, run)
    likeness = torch.nn.functional.cosine_similarity(last.latents.flatten(), target.flatten(), dim=0)
    assert float(likeness) > 0.8


# --- the state ----------------------------------------------------------------------------------------------------


def test_a_written_state_is_close_to_the_live_one_and_exact_when_written_again(tmp_path):
    torch.manual_seed(0)
    parts = {"audio_tokenizer": preview_shape.build_parts(SMALL)["audio_tokenizer"]}
    average = preview_state.Average(parts)
    optimizer = torch.optim.AdamW(parts["audio_tokenizer"].parameters(), 1e-3)
    for step in range(5):
        for parameter in parts["audio_tokenizer"].parameters():
            parameter.grad = torch.randn_like(parameter) * 10.0 ** (step - 3)
        optimizer.step()
        average.update(parts, step)
    live = {name: value.detach().clone() for name, value in preview_state.named(parts).items()}
    seconds = {name: optimizer.state[value]["exp_avg_sq"].clone() for name, value in preview_state.named(parts).items()}

    def passed_through(folder: Path) -> dict[str, torch.Tensor]:
        preview_state.write(folder, preview_state.Progress("small"), {}, parts, average, optimizer)
        preview_state.read(folder, {}, parts, average, optimizer)
        return {name: value.detach().clone() for name, value in preview_state.named(parts).items()}

    once = passed_through(tmp_path / "a")
    for name, value in preview_state.named(parts).items():
        assert float((once[name] - live[name]).abs().max()) < 1e-3
        assert torch.all(optimizer.state[value]["exp_avg_sq"] >= seconds[name] * 0.99)
    assert not list(tmp_path.glob(".*"))
    assert preview_state.read_progress(tmp_path / "a") == preview_state.Progress("small")


def test_a_state_that_is_not_whole_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(preview_state, "LARGEST_FILE", 50_000)
    parts = {"audio_tokenizer": preview_shape.build_parts(SMALL)["audio_tokenizer"]}
    optimizer = torch.optim.AdamW(parts["audio_tokenizer"].parameters())
    average = preview_state.Average(parts)
    preview_state.write(tmp_path / "state", preview_state.Progress("small"), {}, parts, average, optimizer)
    assert len(list((tmp_path / "state").iterdir())) > 2
    (tmp_path / "state" / "state-2.safetensors").unlink()
    with pytest.raises(ValueError, match="not whole"):
        preview_state.read_progress(tmp_path / "state")


def test_stages_come_in_order(tmp_path):
    trainer = Trainer(tmp_path / "state", "small")
    with pytest.raises(ValueError, match="comes after vae and codes"):
        trainer.run("song", steps=1)
    assert preview_state.read_progress(tmp_path / "state") is None


# --- the whole ----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_the_smoke_command_runs_every_stage_and_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv",
        ["train_preview", "--smoke", "--device", "cpu", "--state", str(tmp_path / "s"), "--log", str(tmp_path / "log")],
    )
    train_preview.main()
    assert [(line["stage"], line["step"]) for line in lines_of(tmp_path / "log")] == [
        (stage, step) for stage in STAGES for step in (1, 2)
    ]
    assert "s-checkpoint" in capsys.readouterr().out
    assert preview_state.read_progress(tmp_path / "s").steps == dict.fromkeys(STAGES, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=() if stage == "vae" else pytest.mark.long) for stage in STAGES]
)
def test_a_resumed_training_has_the_numbers_of_one_that_was_not_stopped(trained, tmp_path, stage):
    def trainer(name: str) -> Trainer:
        if not (tmp_path / name).exists():
            shutil.copytree(trained / f"after-{stage}", tmp_path / name)
        return Trainer(tmp_path / name, "small", save_every=4, log=tmp_path / f"{name}.jsonl", log_every=1)

    whole = trainer("whole")
    whole.run(stage, steps=4)
    trainer("parts").run(stage, steps=2)
    resumed = trainer("parts")
    resumed.run(stage, steps=2)
    whole_lines, parts_lines = lines_of(tmp_path / "whole.jsonl"), lines_of(tmp_path / "parts.jsonl")
    assert [line["step"] for line in whole_lines] == [3, 4, 5, 6] and whole_lines == parts_lines
    for name, value in weights_of(resumed).items():
        assert torch.equal(value, weights_of(whole)[name]), name


@pytest.mark.slow
def test_a_training_ends_in_time_and_goes_on(trained, tmp_path):
    shutil.copytree(trained / "after-vae", tmp_path / "state")
    trainer = Trainer(tmp_path / "state", "small")
    trainer.run("vae", until=lambda: True)
    assert preview_state.read_progress(tmp_path / "state").steps == {"vae": STEPS + 1}
    with pytest.raises(ValueError, match="shape small"):
        Trainer(tmp_path / "state", "full")


@pytest.mark.long
@pytest.mark.slow
def test_the_exported_checkpoint_is_loaded_by_the_studio_and_makes_every_kind_of_song(trained):
    folder = trained / "checkpoint"
    assert json.loads((folder / "training.json").read_text())["steps"] == dict.fromkeys(STAGES, STEPS)
    assert "| vae | vae |" in (folder / "README.md").read_text()
    engine = evaluate_preview.Engine(folder, "draft", 2)
    silence = engine.pipe.condition_encoder.silence_latent
    assert silence.shape == (1, preview.SILENCE_FRAMES, SMALL.latents) and silence.dtype == torch.float32
    score = compose(1, style="rock", seconds=10.0)
    source = render(score).mix.numpy()
    track = next(iter(score.tracks))
    songs = [
        engine.make("generate", score, duration=10),
        engine.make("cover", score, source),
        engine.make("extend", score, source, after=10),
        engine.make("edit", score, source, action="repaint", start=2, end=6),
        engine.make("edit", score, source, action="extract", tracks=[track]),
    ]
    assert [song.shape[1] for song in songs] == [480_000, 480_000, 960_000, 480_000, 480_000]
    assert all(np.isfinite(song).all() and song.std() > 1e-4 for song in songs)


@pytest.mark.slow
def test_trained_weights_under_assets_are_used_where_they_are_whole(trained, tmp_path, monkeypatch, tiny):
    shutil.copytree(trained / "checkpoint", tmp_path / "preview")
    shutil.copytree(trained / "checkpoint", tmp_path / "damaged")
    (tmp_path / "damaged" / "vae" / "config.json").write_text("{}")
    monkeypatch.setattr(preview, "TRAINED", tmp_path / "preview")
    assert preview.checkpoint_folder() == preview.expected_folder() == tmp_path / "preview"
    assert preview.random_folder() == tiny
    monkeypatch.setattr(preview, "TRAINED", tmp_path / "damaged")
    assert preview.checkpoint_folder() == preview.expected_folder() == tiny


# --- the proof ----------------------------------------------------------------------------------------------------


def test_silence_and_clipping_are_seen():
    song = render(compose(2, style="rock", seconds=6.0)).mix.numpy()
    assert (
        evaluate_preview.longest_gap(song) == 0
        and evaluate_preview.clipped_share(song) < evaluate_preview.CLIPPED_SHARE
    )
    assert evaluate_preview.clipped_share(np.clip(4 * song, -0.9, 0.9)) > evaluate_preview.CLIPPED_SHARE
    song[:, 48_000:192_000] = 0
    assert evaluate_preview.longest_gap(song) == pytest.approx(3.0, abs=0.2)


def test_the_card_gets_the_figures_once(tmp_path):
    (tmp_path / "README.md").write_text("# A card\n")
    for row in ("tempo 0.1", "tempo 0.9"):
        evaluate_preview.write_card(tmp_path, [row])
    assert (tmp_path / "README.md").read_text() == "# A card\n\n## Measured\n\n```\ntempo 0.9\n```\n"
    assert "README.md" in (tmp_path / preview.MANIFEST).read_text()


def test_a_line_passes_where_its_figure_is_as_wanted():
    line = evaluate_preview.Line
    assert line("tempo", 0.8, at_least=0.8).passed is True and line("tempo", 0.79, at_least=0.8).passed is False
    assert line("silent", 0.0, at_most=0.0).passed is True and line("silent", 0.1, at_most=0.0).passed is False
    assert line("VAE", 3.0).passed is None and "FAIL" in line("tempo", 0.1, at_least=0.8).row()


@pytest.mark.long
@pytest.mark.slow
def test_the_evaluation_runs_on_the_random_checkpoint_and_says_that_it_fails(tiny, tmp_path, monkeypatch, capsys):
    arguments = ["--smoke", "--gate", "--checkpoint", str(tiny), "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr("sys.argv", ["evaluate_preview", *arguments])
    with pytest.raises(SystemExit, match="must not be shipped"):
        evaluate_preview.main()
    figures = {line["name"]: line for line in json.loads((tmp_path / "figures.json").read_text())["lines"]}
    assert figures["tempo"]["ruler"] == figures["key"]["ruler"] == 1.0 and figures["silent"]["value"] == 0.0
    assert figures["key"]["passed"] is False
    wanted = {"style", "clipped", "speed", "repaint, tempo", "extend, tempo", "extend, key", "VAE, mel distance"}
    assert wanted < set(figures)
    assert "ruler" in capsys.readouterr().out
