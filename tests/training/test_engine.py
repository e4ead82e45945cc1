"""The training of the built-in engine: exact where it claims to be, resumable, and its weights make songs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderOobleck

import modes
import planner_codes
import song_attention
import song_clock
import song_loop
import song_vae
from tests.weights import PLANNER
from training import (
    engine_codes,
    engine_distil,
    engine_evaluate,
    engine_examples,
    engine_latents,
    engine_parts,
    engine_song,
    engine_train,
    engine_vae,
    listening,
)
from training.band_score import DRUMS, INSTRUMENTS, KITS, LOWEST, ROLES, compose
from training.band_sounds import MIX_GAIN, STEMS, render
from training.engine_latents import (
    BASS,
    CHORDS,
    HITS,
    LEAD,
    MOMENT,
    PLAYER_NUMBERS,
    Events,
    latents_of,
)

pytestmark = pytest.mark.slow
FRAME_TICKS = engine_latents.FRAME_TICKS


def read_latents(latents: np.ndarray) -> Events:
    """Read events off latents [T, 32], by the layout alone."""
    rows: dict[str, list] = {stem: [] for stem in STEMS}
    circles = engine_latents.pitch_circles()
    for frame, now in enumerate(latents):
        distances = [np.square(now[MOMENT] - moment).sum() for moment in engine_latents.MOMENTS]
        tick = FRAME_TICKS * frame + int(np.argmin(distances))
        levels = {
            "bass": circles @ now[BASS] / 2,
            "chords": now[CHORDS],
            "lead": circles @ now[LEAD] / 2,
        }
        for role, level in levels.items():
            # On the circles a note's neighbours sound a little too.
            loud = level > 0.25 if role == "chords" else (level == level.max()) & (level > 0.25)
            rows[role] += [
                (tick, LOWEST[role] + p, round(2 * level[p])) for p in np.flatnonzero(loud)
            ]
        rows["drums"] += [
            (tick, d, round(2 * now[HITS][d])) for d in range(len(DRUMS)) if now[HITS][d]
        ]
    last = latents[0]
    players = {"bass": INSTRUMENTS["bass"][round((last[PLAYER_NUMBERS["bass"]][0] + 1) * 1.5)]}
    for role in ("chords", "lead"):
        near = [
            np.square(last[PLAYER_NUMBERS[role]] - corner).sum()
            for corner in engine_latents.HEXAGON
        ]
        players[role] = INSTRUMENTS[role][int(np.argmin(near))]
    notes = {role: np.array(rows[role], int).reshape(-1, 3) for role in ROLES}
    hits = np.array(rows["drums"], int).reshape(-1, 3)
    return Events(notes, hits, players, KITS[round(last[PLAYER_NUMBERS["drums"]][0]) + 1])


def test_latents_hold_everything_that_sounds():
    for seed in range(4):
        score = compose(seed, seconds=12.0)
        back = read_latents(latents_of(engine_latents.events_of(score), 1200))
        for found, truth in [
            (back.hits, score.hits),
            *((back.notes[role], score.notes[role]) for role in ROLES),
        ]:
            assert sorted(map(tuple, found)) == sorted(map(tuple, truth)), seed
        assert (back.instruments, back.kit) == (score.instruments, score.kit)


@pytest.mark.numbers
def test_coefficients_are_those_of_the_sound():
    score = compose(2, style="rock", seconds=6.0)
    events = engine_latents.events_of(score)
    sound = render(score).stems.sum(axis=0) / MIX_GAIN * engine_vae.GAIN
    assert np.allclose(
        engine_vae.target_of(events, 600)[:-8], engine_vae.coefficients(sound)[:4792], atol=1e-4
    )
    latents, crop, _ = engine_vae.crop(events, 200, 40)
    whole = engine_vae.target_of(events, 600)[200 * 8 : 360 * 8]
    assert np.allclose(crop, whole, atol=1e-5) and np.array_equal(
        latents, latents_of(events, 600)[50:90]
    )


@pytest.mark.numbers
def test_the_exported_vae_computes_what_the_fast_one_does():
    torch.manual_seed(1)
    decoder, encoder = engine_vae.Decoder(), engine_vae.Encoder()
    scale = engine_vae.usual_sizes() ** 0.5
    engine_vae.start_as_tone_wheels(decoder, scale)
    # With another centre the class pads the ends with the mean latent instead of with nothing.
    centre, spread = torch.zeros(32), torch.rand(32) + 0.5
    std, inscale = torch.rand(32) + 0.5, engine_vae.usual_sizes() ** 0.7
    parts = (
        {"mean": decoder.state_dict(), "scale": scale},
        {"mean": encoder.state_dict(), "std": std, "inscale": inscale},
    )
    vae = engine_vae.oobleck(*parts, centre, spread)
    mix = render(compose(1, seconds=1.0)).mix
    latents = torch.randn(1, 12, 32)
    with torch.no_grad():
        sound = vae.decode(latents.transpose(1, 2)).sample[0]
        made = decoder(latents * spread + centre) * scale * (MIX_GAIN / engine_vae.GAIN)
        heard = torch.from_numpy(engine_vae.coefficients(mix))[None]
        read = (encoder(heard / (inscale * MIX_GAIN / engine_vae.GAIN)) * std - centre) / spread
        encoded = vae.encode(torch.from_numpy(mix)[None]).latent_dist.mode()
        song_vae.skip_idle_units(vae)
        assert torch.equal(vae.decode(latents.transpose(1, 2)).sample[0], sound)
    # What was written can train on: read back and written again, it is the same network.
    held = [
        {"mean": state.pop("live"), **state} for state in engine_vae.states_of(vae, centre, spread)
    ]
    with torch.no_grad():
        again = engine_vae.oobleck(*held, centre, spread)
        assert torch.allclose(again.decode(latents.transpose(1, 2)).sample[0], sound, atol=1e-5)
        coded = [each.encode(sound[None]).latent_dist.mode() for each in (again, vae)]
        # Rounding moves latents of about unit spread by 3e-5 here; another network's differ by about one.
        assert torch.allclose(*coded, atol=1e-3)
    # Of the three units at 48 kHz none does anything, of those at 800 Hz one does.
    assert sum("forward" in vars(unit) for unit in vae.modules()) == 10
    # The bank is orthogonal: what it takes apart is what it was put together from, but for the ends.
    again = torch.from_numpy(engine_vae.coefficients(sound.numpy()))
    assert torch.allclose(again[4:-4], made[0, 4:-4], atol=1e-4 * float(made.abs().max()))
    assert torch.allclose(encoded[0].T, read[0], atol=1e-4 * float(read.abs().max()))


def test_tone_wheels_turn_at_their_own_pitch():
    decoder = engine_vae.Decoder()
    engine_vae.start_as_tone_wheels(decoder, torch.ones(96))
    x = torch.zeros(1, 40, decoder.up8.weight.shape[0])
    x[0, 2, 2 * int(np.flatnonzero(engine_vae.WHEEL_PITCHES == 69)[0])] = 1.0
    with torch.no_grad():
        for unit in decoder.u100:
            x = x + unit.conv1(x)
        blocks = decoder.up8(x)[0, :, :60].numpy() @ engine_vae.bank()
    sound = np.append(blocks[:, :60], 0)[:19_200] + np.append(np.zeros(60), blocks[:, 60:])[:19_200]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 48_000))
    assert abs(int(spectrum.argmax()) - 440) <= 4
    assert np.abs(sound[2_000:4_000]).max() > 3 * np.abs(sound[-3_000:-1_000]).max()


def test_codes_in_training_are_those_of_the_class_and_learnable():
    codes = engine_parts.build_codes()
    latents = torch.randn(2, 50, 32)
    quantized = engine_parts.quantize(codes["audio_tokenizer"], latents)
    assert torch.allclose(quantized, codes["audio_tokenizer"].tokenize(latents)[0], atol=1e-6)
    quantized.square().sum().backward()
    assert float(codes["audio_tokenizer"].audio_acoustic_proj.weight.grad.abs().max()) > 0


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> engine_song.SongStage:
    folder = tmp_path_factory.mktemp("training")
    torch.save(engine_parts.build_codes().state_dict(), folder / "codes.pt")
    return engine_song.SongStage(torch.device("cpu"), True, None, folder)


@pytest.fixture(scope="module")
def examples(song) -> engine_examples.Examples:
    return song.examples


def test_contexts_are_what_the_studio_asks_for(examples):
    rng = np.random.default_rng(0)
    row, here = examples.pieces.pool[10][0], slice(0, 250)
    score, latents, silence = row.score, examples.norm.standard(row.latents), examples.silence[here]

    def stems(names):
        events = engine_latents.events_of(score, names)
        return examples.norm.standard(latents_of(events, 1000))

    for _ in range(6):
        target, source, mask, instruction = examples._context(
            rng, "text2music", score, latents, here, silence
        )
        assert torch.equal(target, latents) and torch.equal(source, silence) and mask.min() == 1
        assert instruction == modes.TEXT2MUSIC
        target, source, mask, instruction = examples._context(
            rng, "repaint", score, latents, here, silence
        )
        new = mask[:, 0] > 0
        assert (
            0 < int(new.sum()) < 250
            and instruction == modes.REPAINT
            and torch.equal(target, latents)
        )
        assert torch.equal(source[~new], latents[~new]) and torch.equal(source[new], silence[new])
        target, source, mask, instruction = examples._context(
            rng, "lego", score, latents, here, silence
        )
        alone = [stem for stem in STEMS if torch.equal(stems([stem]), target)]
        assert any(torch.equal(source, stems([s for s in STEMS if s != stem])) for stem in alone)
        assert any(
            f" {engine_latents.track_of(stem, score.instruments)} " in instruction for stem in alone
        )
        target, source, mask, instruction = examples._context(
            rng, "extract", score, latents, here, silence
        )
        assert torch.equal(source, latents) and instruction.startswith("Extract the ")
        target, source, mask, instruction = examples._context(
            rng, "complete", score, latents, here, silence
        )
        assert torch.equal(target, latents) and instruction.startswith("Complete ")
    target, source, mask, instruction = examples._context(
        rng, "cover", score, latents, here, silence
    )
    assert (
        instruction == modes.COVER
        and source.shape == latents.shape
        and not torch.equal(source, latents)
    )


def test_some_covers_follow_the_codes_of_their_score(examples, monkeypatch):
    # This tokenizer was never trained: it has codes of its own.
    assert examples.planned_share == 0
    row, here = examples.pieces.pool[10][0], slice(100, 200)
    latents = examples.norm.standard(row.latents)[here]
    silence = examples.silence[here]
    sources = []
    for share in (1.0, 0.0):
        monkeypatch.setattr(examples, "planned_share", share)
        cover = examples._context(
            np.random.default_rng(1), "cover", row.score, latents, here, silence
        )
        sources.append(cover[1])
    tokenizer = examples.codes["audio_tokenizer"]
    digits = engine_codes.digits_of(row.score, 100, 100)
    codes = torch.from_numpy(planner_codes.codes_of(digits))[None, :, None]
    with torch.no_grad():
        read = tokenizer.quantizer.get_output_from_indices(codes)
        planned = examples.codes["audio_token_detokenizer"](read)[0]
    assert torch.allclose(sources[0], planned, atol=1e-6)
    assert not torch.allclose(sources[0], sources[1])


def step_down(stage, loss: float) -> None:
    """Go down the slope as far as would take a tenth of the loss, were the slope straight."""
    reached = [parameter for parameter in stage.trained.values() if parameter.grad is not None]
    steepness = sum(float(parameter.grad.square().sum()) for parameter in reached)
    with torch.no_grad():
        for parameter in reached:
            parameter -= 0.1 * loss / steepness * parameter.grad


def test_the_codes_are_taught_what_the_score_does(tmp_path):
    stage = engine_song.CodesStage(torch.device("cpu"), True, None, tmp_path)
    loss, figures = stage.loss(0, 0.0)
    loss.backward()
    before = float(loss.detach())
    step_down(stage, before)
    assert float(stage.loss(0, 0.0)[0].detach()) < before
    assert 0 < figures["right"] < 1 and {"planned", "heard", "chords"} <= set(figures)


def test_a_step_of_the_song_stage_reaches_every_part(song):
    parts = song.module["parts"]
    torch.nn.init.normal_(parts["transformer"].proj_out_conv.weight, std=0.1)
    figures = {}
    # Each step draws what its prompt says about the key.
    for step in range(4):
        loss, found = song.loss(step, 0.5)
        loss.backward()
        figures |= found
        assert loss.isfinite()
    assert {"flow", "beat", "key"} <= set(figures)
    for name, module in song.module.items():
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters()), name


def test_a_song_from_words_begins_with_its_clock(examples):
    rng = np.random.default_rng(2)
    whole = [examples.norm.standard(row.latents) for row in examples.pieces.pool[10]]
    for _ in range(4):
        example = examples.example(rng, 10, "text2music")
        assert torch.equal(example.source, examples.silence[:250])
        assert any(torch.equal(example.target, latents) for latents in whole)


def test_long_examples_keep_time_as_the_studio_does(examples):
    score = compose(3, style="waltz", seconds=60.0, bpm=124)
    pipe = SimpleNamespace(
        clock=engine_parts.KEPT_TIME,
        latents_per_second=engine_latents.FRAMES_PER_SECOND,
        condition_encoder=SimpleNamespace(silence_latent=examples.silence[None]),
        transformer=SimpleNamespace(dtype=torch.float32),
        _execution_device=torch.device("cpu"),
    )
    asked = SimpleNamespace(bpm=score.bpm, time_signature=str(score.beats))
    for frames in (500, 501, 1500):
        silence = song_clock.silence(pipe, frames, asked)
        assert torch.equal(examples.silence_for(score, frames), silence[0])


def test_long_examples_are_seen_as_far_as_the_studio_sees(song):
    """The layers of the studio, which see 10 s to each side, against those of the training."""
    parts = engine_parts.build_parts()
    torch.nn.init.normal_(parts["transformer"].proj_out_conv.weight, std=0.1)
    ours = parts["transformer"].eval()
    theirs = engine_parts.build_parts()["transformer"].eval()
    theirs.load_state_dict(ours.state_dict())
    engine_parts.mask_attention(ours, {"mask": None})
    song_attention.use_windows(theirs)
    latents, states, context = (
        torch.randn(1, 900, 32),
        torch.randn(1, 7, 256),
        torch.randn(1, 900, 64),
    )
    asked = (latents, torch.ones(1), states, context)
    with torch.no_grad():
        seen = engine_parts.velocity_of(ours, *asked)
        everything = engine_parts.velocity_of(theirs, *asked)
        theirs.view = engine_parts.Masked.VIEW
        near = engine_parts.velocity_of(theirs, *asked)
    assert torch.allclose(seen, near, atol=1e-4 * float(near.abs().max()))
    assert not torch.allclose(seen, everything, atol=0.01 * float(near.abs().max()))


def test_workers_make_the_batches_of_this_process_from_new_pieces(song, tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed")
    torch.save(engine_parts.build_codes().state_dict(), folder / "codes.pt")
    pieces = engine_examples.Pieces(folder, True, composed=True)
    examples = engine_examples.Examples(pieces, folder, frames=500, prompts=2)
    supply = engine_examples.Supply(examples, workers=2)
    for step, phase in ((0, "words"), (1, "words"), (2, "first"), (3, "first"), (4, "first")):
        made, own = supply.batch(step, phase), examples.batch(step, phase)
        assert type(made) is type(own)
        assert torch.equal(made.tokens.text, own.tokens.text)
        assert torch.equal(made.answers, own.answers)
        if phase == "first":
            assert torch.equal(made.target, own.target) and torch.equal(made.source, own.source)
    assert not torch.equal(examples.batch(3, "first").target, own.target)


@pytest.fixture
def teacher(song, tmp_path):
    """The folder of a song model that plays something."""
    state = song.module.state_dict()
    torch.nn.init.normal_(state["parts.transformer.proj_out_conv.weight"], std=0.1)
    mean = {name: state[f"parts.{name}"].clone() for name in song.averaged}
    torch.save({"live": state, "mean": mean, "layers": 6, "step": 5}, tmp_path / "song.pt")
    torch.save(engine_parts.build_codes().state_dict(), tmp_path / "codes.pt")
    return tmp_path


def test_the_distilled_model_learns_two_guided_steps_as_one_without_guidance(teacher):
    stage = engine_distil.DistilledStage(torch.device("cpu"), True, None, teacher)
    assert stage.facts["teacher"] == 5
    # It begins as its teacher, which guidance and the second step lead elsewhere.
    loss, figures = stage.loss(0, 0.0)
    loss.backward()
    before = float(loss.detach())
    assert before > 0 and figures["distance"] == pytest.approx(before)
    step_down(stage, before)
    assert float(stage.loss(0, 0.0)[0].detach()) < before
    assert all(name.startswith("parts.transformer.") for name in stage.trained)
    assert all(parameter.grad is None for parameter in stage.teacher.parameters())


def test_what_is_taught_is_where_the_studio_would_arrive(teacher):
    stage = engine_distil.DistilledStage(torch.device("cpu"), True, None, teacher)
    tokens = stage.examples.tokens(["# Caption\nrock"], ["[Verse]"])
    states, real = stage.conditioner(tokens)
    context = torch.cat([stage.examples.silence[:100], torch.ones(100, 32)], dim=1)[None]
    start = torch.randn(1, 100, 32)
    first = torch.ones(1)
    taught = stage._taught(start, context, states, real, first, first - 1 / 8)
    song_attention.use_windows(stage.teacher)
    pipe = SimpleNamespace(
        transformer=stage.teacher,
        condition_encoder=stage.module["parts"]["condition_encoder"],
    )
    model = song_loop._Model(pipe, song_loop.Condition(states, context), 1)
    stage._hide(~torch.ones(2, states.shape[1], dtype=torch.bool))
    now = start
    for time in (1.0, 1 - 1 / 16):
        # The studio's guidance remembers the step before; the lesson has no step before.
        model.momentum.running_average = 0
        with torch.no_grad():
            now = now - model.velocity(now, torch.tensor(time), engine_distil.GUIDANCE) / 16
    assert torch.allclose(start - taught / 8, now, atol=1e-5)


def test_a_resumed_training_has_the_numbers_of_one_that_was_not_stopped(tmp_path):
    def training(name: str) -> engine_train.Training:
        return engine_train.Training("codes", tmp_path / name, steps=4, smoke=True)

    whole, interrupted = training("whole"), training("parts")
    whole.run()
    inner = interrupted.stage.loss

    def loss(step: int, share: float):
        if step == 2:
            raise KeyboardInterrupt
        return inner(step, share)

    interrupted.stage.loss = loss
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    resumed = training("parts")
    assert resumed.step == 2
    resumed.run()
    assert all(torch.equal(resumed.mean[name], value) for name, value in whole.mean.items())
    assert all(
        torch.equal(value, whole.stage.trained[name])
        for name, value in resumed.stage.trained.items()
    )


@pytest.mark.matrix
def test_the_smoke_command_exports_a_checkpoint_that_makes_songs(tmp_path, monkeypatch, capsys):
    folder, again = tmp_path / "checkpoint", tmp_path / "again"

    def train(*arguments: str, state: str, export: Path) -> None:
        where = ["--state", str(tmp_path / state), "--export", str(export)]
        monkeypatch.setattr("sys.argv", ["engine_train", "--smoke", *arguments, *where])
        engine_train.main()

    train(state="state", export=folder)
    logged = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [(line["stage"], line["step"]) for line in logged] == [
        (name, 2) for name in engine_train.STAGES
    ]
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert max(sizes) < 10e6 and sum(sizes) < 40e6
    engine = engine_evaluate.Engine(folder, "draft", {"steps": 2})
    score = compose(1, style="rock", seconds=10.0)
    source = render(score).mix
    songs = [
        engine.make("generate", score, duration=10),
        engine.make("cover", score, source),
        engine.make("extend", score, source, after=10),
        engine.make("edit", score, source, action="repaint", start=2, end=6),
    ]
    assert [made.shape[1] for made in songs] == [480_000, 480_000, 960_000, 480_000]
    assert all(np.isfinite(made).all() and made.std() > 1e-5 for made in songs)
    # Continued from it, the helpers train first, so the parts are still the same.
    train("--begin", str(folder), state="more", export=again)
    files = [path.relative_to(folder) for path in folder.rglob("*.safetensors")]
    parts = [path for path in files if path.parts[0] != "vae"]
    assert len(parts) >= 5 and all(
        (folder / path).read_bytes() == (again / path).read_bytes() for path in parts
    )
    # A stage without any continues from where it was.
    train("--begin", str(folder), "--stage", "encoder", state="one", export=again)
    assert all((folder / path).read_bytes() == (again / path).read_bytes() for path in parts)
    voices = [AutoencoderOobleck.from_pretrained(place / "vae") for place in (folder, again)]
    noise = torch.randn(1, 32, 20)
    decoded = [vae.decode(noise).sample.detach() for vae in voices]
    assert torch.allclose(*decoded, atol=0.02 * float(decoded[0].abs().max()))
    heard = [vae.encode(decoded[0]).latent_dist.mode() for vae in voices]
    assert (
        not torch.equal(*heard)
        and torch.nn.functional.cosine_similarity(*(x.flatten() for x in heard), dim=0) > 0.9
    )


# --- the measurements ---------------------------------------------------------------------------------------------


def test_renderings_are_heard_for_what_they_are():
    """Those whose beats also fall in threes, or whose minor chords have overtones of a major one."""
    scores = engine_evaluate.held_out(18, 20.0)
    # Two thirds of the tempo are 117.
    fast = render(scores[9]).mix
    assert scores[9].bpm == 175 and engine_evaluate.has_tempo(listening.tempo(fast), 175)
    for score in (scores[1], scores[17]):
        assert score.key == "A minor"
        assert listening.key_ranking(render(score).mix)[0] == "A minor"


def test_silence_and_clipping_are_seen():
    song = render(compose(2, style="rock", seconds=6.0)).mix
    assert engine_evaluate.longest_gap(song) < 1
    assert engine_evaluate.clipped_share(song) < engine_evaluate.CLIPPED_SHARE
    assert (
        engine_evaluate.clipped_share(np.clip(4 * song, -0.9, 0.9)) > engine_evaluate.CLIPPED_SHARE
    )
    song[:, 48_000:192_000] = 0
    assert engine_evaluate.longest_gap(song) == pytest.approx(3.0, abs=0.3)


def test_planned_songs_are_made_from_the_planners_codes(tiny, monkeypatch):
    engine = engine_evaluate.Engine(tiny, "draft", {"steps": 1})
    planner = engine_evaluate.load_planner(PLANNER, engine.device)
    score = engine_evaluate.held_out(1, 10.0)[0]
    songs = []
    make = engine.make

    def kept(*asked, **more):
        songs.append(make(*asked, **more))
        return songs[-1]

    monkeypatch.setattr(engine, "make", kept)
    lines, (row,) = engine_evaluate.measure_planned(engine, [score], planner)
    planned, best = songs
    assert not np.allclose(planned, best)
    assert not np.allclose(planned, make("generate", score, duration=10.0))
    assert {line.name: line.value for line in lines} == {
        f"planned, {what}": float(right)
        for what, right in engine_evaluate.judged(planned, score).items()
    }
    assert {line.name: line.ruler for line in lines} == {
        f"planned, {what}": float(right)
        for what, right in engine_evaluate.judged(best, score).items()
    }
    assert row["seed"] == score.seed


def test_the_card_gets_the_figures_once(tmp_path):
    (tmp_path / "README.md").write_text("# A card\n")
    for row in ("tempo 0.1", "tempo 0.9"):
        engine_evaluate.write_card(tmp_path, [row])
    assert (
        tmp_path / "README.md"
    ).read_text() == "# A card\n\n## Measured\n\n```\ntempo 0.9\n```\n"
