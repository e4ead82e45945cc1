"""The loop against the stock pipeline on the tiny checkpoint, and everything that the loop adds."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import song_codec
import song_conditions
import song_loop
from tests.engine.songs import result_of
from tools import bench_models

FRAME = 1920
SECONDS = 3.3
WORDS = {
    "prompt": "warm lofi piano with soft drums",
    "lyrics": "[Verse]\nla la la",
    "vocal_language": "en",
    "audio_duration": SECONDS,
    "instruction": "Fill the audio semantic mask based on the given conditions:",
    "bpm": 90,
    "keyscale": "A minor",
    "timesignature": "4",
}
OTHER = {**WORDS, "prompt": "loud techno", "lyrics": "[Instrumental]"}
# More than 256 tokens, where attention works in windows.
LONG = {**WORDS, "audio_duration": 30.1}
# Latents of about unit spread after up to six guided steps, where two ways of computing them differ: float32 rounds
# them apart by 2e-6 (measured with SSE, AVX2 and AVX-512), and a fault in a formula or a mask shows above 1e-2. Where
# both ways make the same calls on the same shapes, no processor rounds them apart, and they are equal.
TOLERANCE = 1e-4


def condition_of(pipe, words, timbre=None, timbre_token=True):
    context = song_conditions.silent_context(
        pipe, song_codec.frames_for(pipe, words["audio_duration"])
    )
    return song_conditions.encode_condition(pipe, words, context, timbre, timbre_token)


def a_run(
    pipe, seeds=(7,), steps=6, shift=1.0, timbre_token=True, words=WORDS, timbre=None, **changes
):
    """Return a guided text2music run; `changes` replace its fields."""
    generators = song_loop.generators_for(seeds)
    channels = pipe.transformer.config.audio_acoustic_hidden_dim
    run = song_loop.Denoising(
        condition=condition_of(pipe, words, timbre, timbre_token),
        start=song_loop.draw_noise(
            generators, song_codec.frames_for(pipe, words["audio_duration"]), channels
        ),
        generators=generators,
        sigmas=song_loop.schedule(steps, shift),
        guidance=7.0,
    )
    return dataclasses.replace(run, **changes)


def final(pipe, run):
    """Return the latents [B, T, C] at the end of a run."""
    steps = list(song_loop.denoise(pipe, run))
    assert len(steps) == len(run.sigmas)
    return steps[-1].latents


def stock(pipe, seeds=(7,), words=WORDS, **changes):
    """Return the latents of the pipeline's own call for the same run."""
    arguments = {
        **words,
        "instruction": None,  # the task's own
        "prompt": [words["prompt"]] * len(seeds),
        "lyrics": [words["lyrics"]] * len(seeds),
        "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        "num_inference_steps": 6,
        "guidance_scale": 7.0,
        "shift": 1.0,
        "output_type": "latent",
    }
    return pipe(**{**arguments, **changes}).audios


@pytest.mark.numbers
def test_text2music_equals_the_pipeline_bit_for_bit(pipe, pipe_xl):
    for guidance, shift in ((1.0, 3.0), (7.0, 1.0)):
        ours = final(pipe, a_run(pipe, guidance=guidance, shift=shift))
        assert torch.equal(ours, stock(pipe, guidance_scale=guidance, shift=shift)), (
            guidance,
            shift,
        )
    assert torch.equal(final(pipe_xl, a_run(pipe_xl, timbre_token=False)), stock(pipe_xl))


@pytest.mark.numbers
@pytest.mark.parametrize(
    "changes", [{"guidance": 1.0}, {"cfg_start": 0.2, "cfg_end": 0.7, "seeds": (7, 8)}]
)
def test_a_long_song_equals_the_pipeline(pipe_xl, changes):
    ours = final(pipe_xl, a_run(pipe_xl, words=LONG, timbre_token=False, **changes))
    names = {
        "guidance": "guidance_scale",
        "cfg_start": "cfg_interval_start",
        "cfg_end": "cfg_interval_end",
    }
    with bench_models.stock(pipe_xl.transformer):
        theirs = stock(
            pipe_xl, words=LONG, **{names.get(name, name): value for name, value in changes.items()}
        )
    assert torch.allclose(ours, theirs, atol=TOLERANCE)


def test_only_an_xl_checkpoint_uses_its_timbre_token(pipe, pipe_xl, monkeypatch):
    assert song_conditions.is_xl(pipe_xl) and not song_conditions.is_xl(pipe)

    def states():
        return [condition_of(pipe_xl, WORDS, timbre_token=use).states for use in (True, False)]

    with_token, without = states()
    token = pipe_xl.condition_encoder.timbre_encoder.special_token
    monkeypatch.setattr(token, "data", token.data + 1.0)
    changed, unchanged = states()
    assert not torch.allclose(changed, with_token, atol=1e-4)
    assert torch.equal(unchanged, without) and with_token.shape == without.shape


@pytest.mark.numbers
def test_sde_uses_each_takes_own_generator_and_follows_the_formula(pipe):
    """x = t' * noise + (1 - t') * (x - t * v), with the next schedule value and the take's second draw."""
    state = torch.get_rng_state()
    both = final(pipe, a_run(pipe, seeds=(7, 8), sampler="sde"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(
        both[1], final(pipe, a_run(pipe, seeds=(8,), sampler="sde"))[0], atol=TOLERANCE
    )
    run = a_run(pipe, steps=3, shift=2.0, sampler="sde", guidance=1.0)
    first = next(song_loop.denoise(pipe, run)).latents
    euler = next(song_loop.denoise(pipe, dataclasses.replace(run, sampler="ode"))).latents
    t, t_next = run.sigmas[:2]
    velocity = (euler - run.start) / (t_next - t)
    generator = torch.Generator("cpu").manual_seed(7)
    _, noise = (torch.randn(run.start.shape, generator=generator) for _ in range(2))
    assert torch.allclose(
        first, t_next * noise + (1 - t_next) * (run.start - t * velocity), atol=TOLERANCE
    )


@pytest.mark.numbers
def test_each_step_says_what_the_song_is_expected_to_become(pipe):
    """x - t * v of the step's own latents and velocity; at the end, the song itself."""
    run = a_run(pipe, seeds=(7, 8), steps=4)
    steps = list(song_loop.denoise(pipe, run))
    times = [*run.sigmas, 0.0]
    before = run.start
    for (latents, clean), t, t_next in zip(steps, run.sigmas, times[1:], strict=True):
        velocity = (latents - before) / (t_next - t)
        assert torch.allclose(clean, before - t * velocity, atol=TOLERANCE)
        before = latents
    assert torch.allclose(steps[-1].clean, steps[-1].latents, atol=TOLERANCE)
    assert not torch.allclose(steps[0].clean, steps[-1].clean, atol=0.01)


def test_outside_a_region_the_song_is_expected_to_stay_as_it_was(pipe):
    clean, _ = a_source(pipe)
    new = song_loop.region(pipe, clean, [(48_000, 96_000)])
    run = a_run(pipe, steps=3, keep=song_loop.Keep(new, clean, 3))
    for step in song_loop.denoise(pipe, run):
        kept = ~new[0, :, 0]
        assert torch.equal(step.clean[:, kept], clean[:, kept])


@pytest.mark.parametrize("frames", [128, 1_000, 15_000])
def test_an_outline_rises_and_falls_with_the_norm_of_the_frames(frames):
    at = torch.linspace(0, 1, frames)
    loud = 3 * torch.exp(-(((at - 0.25) / 0.1) ** 2))
    clean = (1 + loud)[None, :, None] * torch.nn.functional.normalize(
        torch.ones(1, frames, 8), dim=-1
    )
    found = song_loop.outline(clean)
    assert len(found) == 100 and (min(found), max(found)) == (0, 100)
    assert found[24] >= 99 and found[25] >= 99
    assert list(found[:25]) == sorted(found[:25]) and list(found[25:]) == sorted(found[25:])[::-1]
    # How loud the whole song is plays no part.
    assert song_loop.outline(clean * 7) == found
    assert song_loop.outline(torch.ones(1, frames, 8)) == (0,) * 100
    clean[0, 3] = torch.nan
    assert song_loop.outline(clean) == ()


def test_variation_turns_from_one_noise_to_the_other():
    one, other = (song_loop.draw_noise(song_loop.generators_for((s,)), 500, 16) for s in (1, 2))
    assert torch.equal(song_loop.vary(one, other, 0.0), one)
    assert torch.allclose(song_loop.vary(one, other, 1.0), other, atol=1e-6)
    assert song_loop.vary(one, other, 0.5).std() == pytest.approx(1.0, abs=0.03)


# --- inside the loop: switch, injection, morph --------------------------------------------------------------------


def a_source(pipe):
    """Return the latents of a short tune, [1, T, C], and its samples [2, n]."""
    wave = 0.3 * np.sin(np.arange(round(SECONDS * 48_000)) * 2 * np.pi * 220 / 48_000)
    samples = np.stack([wave, wave * 0.5]).astype(np.float32)
    return result_of(song_codec.encode(pipe, samples, "reading")), samples


@pytest.mark.numbers
def test_a_switch_equals_the_pipeline_in_two_halves(pipe):
    run = a_run(pipe, guidance=1.0, switch=(3, condition_of(pipe, OTHER)))

    def stop(pipeline, index, timestep, tensors):
        pipeline._interrupt = index == 2
        return tensors

    first = stock(pipe, guidance_scale=1.0, callback_on_step_end=stop)
    second = stock(
        pipe, words=OTHER, guidance_scale=1.0, latents=first, timesteps=list(run.sigmas[3:])
    )
    assert torch.equal(final(pipe, run), second)


@pytest.mark.numbers
def test_injection_equals_the_pipelines_with_a_callback(pipe, monkeypatch):
    clean, samples = a_source(pipe)
    new = song_loop.region(pipe, clean, [(48_000, 96_000)])
    words = {**WORDS, "instruction": song_conditions.REPAINT}
    silence = song_codec.silence(pipe, clean.shape[1])
    context = song_conditions.masked_context(clean, silence, new)
    condition = song_conditions.encode_condition(pipe, words, context)
    run = a_run(pipe, words=words, keep=song_loop.Keep(new, clean, 4), condition=condition)

    def inject(pipeline, index, timestep, tensors):
        if index < 4:
            t_next = pipeline.scheduler.sigmas[index + 1]
            source = t_next * run.start + (1 - t_next) * clean
            tensors["latents"] = torch.where(new, tensors["latents"], source)
        return tensors

    kind = type(pipe.vae.encode(torch.zeros(1, 2, FRAME)).latent_dist)
    monkeypatch.setattr(kind, "sample", lambda posterior, generator=None: posterior.mode())
    padded = torch.nn.functional.pad(torch.from_numpy(samples), (0, -samples.shape[1] % FRAME))
    region = {
        "task_type": "repaint",
        "src_audio": padded,
        "repainting_start": 1.0,
        "repainting_end": 2.0,
    }
    expected = stock(pipe, **region, latents=run.start, callback_on_step_end=inject)
    assert torch.equal(final(pipe, run), expected)


@pytest.mark.numbers
def test_a_cover_of_the_sound_is_the_pipelines_with_latents_in_place_of_codes(pipe, monkeypatch):
    """Upstream's "cover-nofsq" (#1142): the instruction of a cover, over the source as it is."""
    clean, samples = a_source(pipe)
    words = {**WORDS, "instruction": song_conditions.COVER}
    condition = song_conditions.encode_condition(pipe, words, song_conditions.context_of(clean))
    run = a_run(pipe, words=words, condition=condition)
    kind = type(pipe.vae.encode(torch.zeros(1, 2, FRAME)).latent_dist)
    monkeypatch.setattr(kind, "sample", lambda posterior, generator=None: posterior.mode())
    padded = torch.nn.functional.pad(torch.from_numpy(samples), (0, -samples.shape[1] % FRAME))
    # Of the pipeline's tasks this one has the source's latents and no mask.
    source = {"task_type": "complete", "src_audio": padded, "instruction": song_conditions.COVER}
    assert torch.equal(final(pipe, run), stock(pipe, **source, latents=run.start))
    codes = song_conditions.encode_condition(
        pipe, words, song_conditions.cover_context(pipe, clean)
    )
    assert not torch.equal(final(pipe, run), final(pipe, a_run(pipe, words=words, condition=codes)))


def test_a_region_touches_every_frame_it_reaches(pipe):
    for spans, frames in (([(1919, 1921)], [0, 1]), ([(0, 1920), (3840, 3841)], [0, 2])):
        region = song_loop.region(pipe, torch.zeros(1, 100, 8), spans)
        assert region[0, :, 0].nonzero().flatten().tolist() == frames, spans


def test_blending_a_long_song_takes_little_memory():
    clean, new = torch.zeros(1, 15_000, 1), torch.ones(1, 15_000, 1, dtype=torch.bool)
    new[:, :500] = new[:, 7_000:7_003] = False
    keep, blended = song_loop.Keep(new, clean, 0, 3), []
    assert bench_models.peak_bytes(lambda: blended.append(song_loop.blend(clean + 1, keep))) < 5e6
    assert blended[0][0, 495:501, 0].tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1])
    assert blended[0][0, 6_999:7_004, 0].tolist() == pytest.approx([1, 0.75, 0.5, 0.75, 1])


@pytest.mark.numbers
def test_a_morph_follows_upstreams_formula(pipe):
    """Step by step, at guidance 1: skipped steps, two averaged draws, the target alone."""
    clean, _ = a_source(pipe)
    run, source = a_run(pipe, guidance=1.0), condition_of(pipe, OTHER)
    plan = song_loop.Morph(source, clean, 1, 3, 2)
    ours = final(
        pipe,
        dataclasses.replace(
            run, start=clean, morph=plan, generators=song_loop.generators_for((5,))
        ),
    )

    def velocity(x, condition, t):
        time = torch.full((1,), t)
        with torch.no_grad():
            return pipe.transformer(
                x, time, time, condition.states, condition.context, return_dict=False
            )[0]

    generator = torch.Generator().manual_seed(5)
    z, sigmas = clean.clone(), [*run.sigmas, 0.0]
    for i in range(1, 3):
        change = 0
        for _ in range(2):
            e = torch.randn(clean.shape, generator=generator)
            zs = (1 - sigmas[i]) * clean + sigmas[i] * e
            zt = z + zs - clean
            change = (
                change
                + (velocity(zt, run.condition, sigmas[i]) - velocity(zs, source, sigmas[i])) / 2
            )
        z = z + (sigmas[i + 1] - sigmas[i]) * change
    e = torch.randn(clean.shape, generator=generator)
    x = z + (1 - sigmas[3]) * clean + sigmas[3] * e - clean
    for i in range(3, 6):
        x = x + (sigmas[i + 1] - sigmas[i]) * velocity(x, run.condition, sigmas[i])
    assert torch.allclose(ours, x, atol=TOLERANCE)


def test_a_late_start_begins_with_the_noised_source():
    clean, noise = torch.full((1, 4, 2), 2.0), torch.ones(3, 4, 2)
    assert torch.equal(song_loop.noised(clean, noise, 0.25), torch.full((3, 4, 2), 1.75))


@pytest.mark.numbers
def test_the_context_of_a_cover_is_the_pipelines_and_that_of_its_codes(pipe):
    clean, _ = a_source(pipe)
    with torch.no_grad():
        codes, _ = pipe.audio_tokenizer.tokenize(clean, pipe.condition_encoder.silence_latent)
        expected = pipe.audio_token_detokenizer(codes)[:, : clean.shape[1]]
    context, channels = song_conditions.cover_context(pipe, clean), clean.shape[-1]
    assert torch.equal(context[..., :channels], expected)
    assert context[..., channels:].eq(1).all()
    codes = song_conditions.audio_codes(pipe, clean)
    assert len(codes) == math.ceil(clean.shape[1] / 5)
    assert torch.allclose(
        song_conditions.codes_context(pipe, [codes])[:, : clean.shape[1]], context, atol=TOLERANCE
    )


# --- token budget -------------------------------------------------------------------------------------------------


def read_by_the_model(pipe, words):
    text, _ = pipe._format_prompt(**words)
    return pipe.tokenizer.decode(pipe.tokenizer(text, truncation=True, max_length=256).input_ids)


@pytest.mark.parametrize(
    ("piece", "joint"), [("bright acoustic guitar with strings ", " "), ("古典鋼琴與弦樂", "")]
)
def test_a_long_prompt_is_cut_at_a_word_or_a_character_and_keeps_the_metadata(pipe, piece, joint):
    long = {**WORDS, "prompt": piece * 100}
    assert "bpm: 90" not in read_by_the_model(pipe, long)
    kept, dropped = song_conditions.fit_prompt(pipe, long)
    fitted = read_by_the_model(pipe, {**long, "prompt": kept})
    for fact in ("bpm: 90", "keyscale: A minor", "duration: 3 seconds\n<|endoftext|>"):
        assert fact in fitted
    assert f"{kept}{joint}{dropped}" == long["prompt"].strip() and len(kept) > 10
    # One more word would not fit.
    assert (
        not joint
        or song_conditions.count_tokens(pipe, {**long, "prompt": f"{kept} {dropped.split()[0]}"})[0]
        > 256
    )


# --- audio in and out of latents ----------------------------------------------------------------------------------


@pytest.mark.numbers
@pytest.mark.parametrize("frames", [25, pytest.param(513, marks=pytest.mark.slow)])
def test_decoding_tile_by_tile_equals_the_vaes_own_tiling(pipe, frames):
    latents = song_loop.draw_noise(
        song_loop.generators_for((1,)), frames, pipe.vae.config.decoder_input_channels
    )
    tiles = list(song_codec.decode_latents(pipe, latents))
    joined = torch.cat([audio for *_, audio in tiles], dim=-1)
    with torch.no_grad():
        assert torch.equal(joined, pipe.vae.decode(latents.transpose(1, 2)).sample[0])
    assert [number for number, *_ in tiles] == list(range(1, tiles[0][1] + 1))
    assert joined.shape == (2, frames * FRAME)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(1.0, marks=pytest.mark.numbers),
        pytest.param(47.3, marks=pytest.mark.slow),
    ],
)
def test_encoding_takes_the_mode_and_equals_the_vaes_own_tiling(pipe, seconds):
    samples = (
        np.random.default_rng(3).standard_normal((2, round(48_000 * seconds)), np.float32) * 0.3
    )
    ours = result_of(song_codec.encode(pipe, samples, "reading"))
    padded = torch.nn.functional.pad(torch.from_numpy(samples), (0, -samples.shape[1] % FRAME))
    with torch.no_grad():
        whole = pipe.vae.encode(padded[None]).latent_dist.mode().transpose(1, 2)
    assert ours.shape[1] == math.ceil(samples.shape[1] / FRAME)
    assert torch.equal(ours, whole)


def test_silence_reaches_past_its_600_seconds(pipe):
    silence = song_codec.silence(pipe, 16_000)
    assert silence.shape[1] == 16_000
    assert torch.equal(silence[:, 15_000:], silence[:, :1_000])


@pytest.mark.parametrize("seconds", [2, pytest.param(31, marks=pytest.mark.slow)])
def test_a_reference_becomes_thirty_seconds_of_timbre(pipe, seconds):
    wave = 0.4 * np.sin(np.arange(seconds * 48_000, dtype=np.float32) * 2 * math.pi * 220 / 48_000)
    timbre = result_of(song_codec.reference_latents(pipe, np.stack([wave, wave])))
    assert timbre.shape[1] == 750
    assert not torch.equal(
        final(pipe, a_run(pipe, steps=2, timbre=timbre)), final(pipe, a_run(pipe, steps=2))
    )
