"""Cover, extend and edit through the backend: what is kept, what is new, how long it is, and how it joins.

Files are compared, not tensors: what a musician would load into an editor.
"""

import itertools

import numpy as np
import pytest
import soundfile
import torch

import audio
import audio_levels
import modes
import song_codec
import song_conditions
from events import Failed
from limits import SAMPLE_RATE as RATE
from params import parse_request
from tests.engine.songs import result_of, samples_of, wait_for_turn
from tests.engine.songs import song as made_song

SECONDS = 4.0
SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("output")

SOURCES = {
    "44.1 kHz mono": ("wav", 44_100, 1, 0.5, "PCM_16"),
    "48 kHz stereo at full scale": ("wav", 48_000, 2, 1.0, "PCM_16"),
    "quiet mono": ("wav", 44_100, 1, 0.05, "PCM_16"),
    "quieter stereo": ("wav", 48_000, 2, 0.02, "PCM_24"),
    "mp3": ("mp3", 44_100, 2, 0.5, None),
}
CALLS = {
    "cover": ("cover", {}),
    "extend": ("extend", {"after": 1}),
    "repaint": ("edit", {"start": 1, "end": 2}),
    "morph": ("edit", {"action": "morph", "source_prompt": "old words"}),
    "layer": ("edit", {"action": "layer", "tracks": ["drums"]}),
    "extract": ("edit", {"action": "extract", "tracks": ["drums"]}),
    "complete": ("edit", {"action": "complete", "tracks": ["drums"]}),
}


@pytest.fixture
def make_source(tmp_path):
    def make(kind="48 kHz stereo at full scale", seconds=SECONDS):
        """Write a chord with a beat and a little noise; return its path."""
        suffix, rate, channels, level, subtype = SOURCES[kind]
        time = np.arange(round(seconds * rate)) / rate
        chord = sum(np.sin(2 * np.pi * f * time) for f in (220.0, 277.2, 329.6)) / 3
        beat = 0.5 + 0.5 * np.cos(2 * np.pi * 2 * time) ** 8
        noise = np.random.default_rng(1).standard_normal((time.size, channels)) * 0.02
        wave = (chord * beat)[:, None] * np.linspace(1, 0.7, channels)[None] + noise
        path = tmp_path / f"source.{suffix}"
        soundfile.write(path, wave / np.abs(wave).max() * level, rate, subtype=subtype)
        return str(path)

    return make


def run(studio, mode, source, **values):
    options = {"steps": 2, **values.pop("options", {})}
    values = {"prompt": "calm piano", "seed": 7, **values}
    return list(
        studio.stream(parse_request(mode, {**values, "source": source, "options": options}))
    )[-1]


def song(done):
    """Return the samples [2, n] of the first take."""
    return samples_of(done)[0]


def read(source):
    """Return a source as a 24-bit file holds it."""
    whole = np.round(audio.decode(source).astype(np.float64) * 2**23)
    return np.clip(whole, -(2**23), 2**23 - 1).astype(np.float32) / 2**23


def samples_at(*seconds):
    return [round(each * RATE) for each in seconds]


def assert_smooth(result, border, old, fade):
    """No step around a border is larger than the larger of its two sides' own steps."""
    around, inside = (
        result[:, border - fade - 2 : border + fade + 2],
        result[:, border + fade : border + fade + RATE // 2],
    )
    largest = [
        float(np.abs(np.diff(part, axis=1)).max(initial=0)) for part in (around, inside, old)
    ]
    assert largest[0] <= max(largest[1:]) * 1.001


# --- repaint ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("44.1 kHz mono", marks=SLOW),
        pytest.param("48 kHz stereo at full scale", marks=pytest.mark.numbers),
    ],
)
def test_repaint_changes_the_region_and_nothing_else(studio, make_source, kind):
    source = make_source(kind)
    old = read(source)
    new = song(
        run(studio, "edit", source, start=1.3, end=2.7, options={"repaint_mode": "balanced"})
    )
    assert new.shape == old.shape
    start, end, fade = samples_at(1.3, 2.7, 0.05)
    assert np.array_equal(new[:, : start - fade], old[:, : start - fade])
    assert np.array_equal(new[:, end + fade :], old[:, end + fade :])
    assert np.abs(new - old)[:, start:end].max() > 0.05
    assert_smooth(new, start, old[:, :start], fade)
    assert_smooth(new[:, ::-1], new.shape[1] - end, old[:, end:], fade)


@SLOW
def test_the_repaint_modes_differ_in_how_much_they_keep(studio, make_source):
    source, regions = make_source(), []
    old = read(source)
    for options, fade in (
        ({"repaint_mode": "conservative"}, 0.05),
        ({"repaint_mode": "balanced", "repaint_strength": 0.5}, 0.025),
        ({"repaint_mode": "aggressive"}, 0.01),
    ):
        new = song(run(studio, "edit", source, start=1, end=2, options={"steps": 4, **options}))
        changed = np.flatnonzero(np.abs(new - old).max(axis=0))
        assert RATE - round(fade * RATE) <= changed[0] < RATE
        assert 2 * RATE <= changed[-1] < 2 * RATE + round(fade * RATE)
        regions.append(new[:, RATE : 2 * RATE])
    for one, other in itertools.pairwise(regions):
        assert not np.allclose(one, other, atol=1e-3)


@SLOW
def test_the_level_inside_fits_the_surroundings(studio, make_source):
    source, region = make_source("quieter stereo"), slice(*samples_at(1.5, 2.5))
    new, old = song(run(studio, "edit", source, start=1.5, end=2.5)), read(source)
    inside, outside = (
        audio_levels.rms_dbfs(new[:, region]),
        audio_levels.rms_dbfs(np.delete(old, region, 1)),
    )
    # The samples of the file are rounded to 24 bits.
    assert inside == pytest.approx(outside, abs=audio_levels.LEVEL_TOLERANCE_DB + 0.01)


@pytest.mark.parametrize(("start", "end"), [(0, 1.0), pytest.param(3.0, 0, marks=SLOW)])
def test_a_region_may_touch_an_end_of_the_file(studio, make_source, start, end):
    source = make_source()
    old, new = read(source), song(run(studio, "edit", source, start=start, end=end))
    assert new.shape == old.shape
    kept = (
        slice(round((end + 0.05) * RATE), None)
        if start == 0
        else slice(0, round((start - 0.05) * RATE))
    )
    assert np.array_equal(new[:, kept], old[:, kept])
    edge = slice(0, 200) if start == 0 else slice(-200, None)
    assert np.abs(new - old)[:, edge].max() > 0


def test_loudness_in_a_repaint_says_what_it_costs(studio, make_source):
    done = run(studio, "edit", make_source(), start=1, end=2, options={"loudness": -20})
    assert any("whole file" in note for note in done.record["notes"])


# --- extend and cover ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        pytest.param("48 kHz stereo at full scale", 0, 3.21, marks=SLOW),
        pytest.param("44.1 kHz mono", 2.5, 0, marks=SLOW),
        pytest.param("mp3", 1.11, 2.22, marks=pytest.mark.numbers),
    ],
)
def test_extend_adds_exactly_the_asked_seconds(studio, make_source, kind, before, after):
    source = make_source(kind)
    old = read(source)
    new = song(run(studio, "extend", source, before=before, after=after, options={"overlap": 0.5}))
    lead, tail, overlap = samples_at(before, after, 0.5)
    assert new.shape[1] == lead + old.shape[1] + tail
    kept = slice(overlap if before else 0, old.shape[1] - (overlap if after else 0))
    assert np.array_equal(new[:, lead:][:, kept], old[:, kept])
    for part in (new[:, :lead], new[:, new.shape[1] - tail :]):
        assert part.shape[1] == 0 or not audio_levels.is_silent(part)
    if before:
        assert_smooth(new[:, ::-1], new.shape[1] - lead - overlap, old, 10)


@SLOW
@pytest.mark.parametrize("seconds", [1.0, 3.0], ids=["a short clip", "silence"])
def test_silence_and_a_short_clip_can_be_extended(studio, make_source, seconds):
    source = make_source(seconds=seconds)
    if seconds == 3.0:
        soundfile.write(source, np.zeros((3 * RATE, 2)), RATE)
    new = song(run(studio, "extend", source, before=1, after=2))
    assert new.shape[1] == round((seconds + 3) * RATE)
    assert not audio_levels.is_silent(new[:, :RATE])
    assert not audio_levels.is_silent(new[:, -2 * RATE :])


def test_a_cover_is_as_long_as_its_source(studio, make_source):
    source = make_source("mp3")
    new = song(run(studio, "cover", source))
    assert new.shape == audio.decode(source).shape
    assert audio_levels.peak_dbfs(new) == pytest.approx(-1, abs=0.01)


@SLOW
def test_strength_is_a_switch_at_a_step_and_0_is_text2music(studio, make_source):
    plain = made_song(studio, prompt="calm piano", options={"plan": False})
    assert np.array_equal(
        song(run(studio, "cover", make_source(seconds=10.0), strength=0)), song(plain)
    )
    source = make_source()
    done = [
        run(studio, "cover", source, strength=strength, options={"steps": 5})
        for strength in (0, 0.5, 0.8, 1)
    ]
    assert [each.record["switch_step"] for each in done] == [0, 2, 4, 5]
    for one, other in itertools.pairwise(map(song, done)):
        assert not np.allclose(one, other, atol=1e-3)


def test_a_cover_of_the_sound_follows_the_sources_own_latents(studio, make_source, monkeypatch):
    source, contexts = make_source(), []
    encode = song_conditions.encode_condition

    def spy(pipe, words, context, *others):
        contexts.append(context)
        return encode(pipe, words, context, *others)

    monkeypatch.setattr(song_conditions, "encode_condition", spy)
    of_sound = run(studio, "cover", source, strength=1, options={"detail": "sound"})
    pipe = studio.models.pipeline()
    latents = song_codec.long_enough(
        pipe, result_of(song_codec.encode(pipe, audio.decode(source), "reading"))
    )
    (context,) = contexts
    assert torch.equal(context[..., : latents.shape[-1]], latents)
    assert context[..., latents.shape[-1] :].min() == 1
    assert of_sound.record["instruction"] == modes.COVER
    of_codes = run(studio, "cover", source, strength=1)
    assert not np.allclose(song(of_sound), song(of_codes), atol=1e-3)


def test_the_script_of_the_lyrics_names_their_language_if_nobody_did(studio, make_source):
    source = make_source()
    lyrics = "[Verse]\n창가에 비가 내린다"
    found = run(studio, "cover", source, lyrics=lyrics)
    assert found.record["notes"] == [
        "Language was set to Korean, based on the script of the lyrics."
    ]
    assert found.record["details"] == {"language": {"value": "ko", "source": "lyrics"}}
    named = run(studio, "cover", source, lyrics=lyrics, language="ko")
    assert named.record["notes"] == [] and "details" not in named.record
    assert np.array_equal(song(found), song(named))


@SLOW
def test_noise_strength_shortens_the_schedule(studio, make_source):
    source = make_source()
    done = run(studio, "cover", source, options={"steps": 10, "noise_strength": 0.6})
    # 1 - 0.6 is met by the seventh of ten steps; four are left, of which int(4 * 0.8) follow the source.
    assert done.record["switch_step"] == 3
    assert not np.allclose(
        song(done), song(run(studio, "cover", source, options={"steps": 10})), atol=1e-3
    )


# --- morph, layer, extract, complete ------------------------------------------------------------------------------


def reconstruction(studio, source):
    """The VAE's own idea of the source, in the length of the source."""
    samples, pipe = audio.decode(source), studio.models.pipeline()
    latents = song_codec.long_enough(pipe, result_of(song_codec.encode(pipe, samples, "reading")))
    decoded = np.concatenate(
        [tile.numpy() for _, _, tile in song_codec.decode_latents(pipe, latents.float())], axis=1
    )
    decoded = decoded[:, : samples.shape[1]]
    return decoded / max(np.abs(decoded).max(), 1.0)


@pytest.mark.numbers
def test_a_morph_between_equal_ends_is_the_vaes_reconstruction(studio, make_source):
    source = make_source()
    words = {"prompt": "calm piano", "lyrics": "[Verse]\nla"}
    words |= {f"source_{name}": text for name, text in words.items()}
    new = song(
        run(studio, "edit", source, action="morph", **words, options={"steps": 4, "n_avg": 2})
    )
    # Both ends are computed as two rows of one batch, which a processor may round differently: by 1e-6 at most, where a
    # morph that moves changes samples by more than 1e-2.
    assert np.allclose(new, reconstruction(studio, source), atol=1e-4)


@SLOW
def test_a_morph_moves_towards_its_target(studio, make_source):
    source = make_source()
    options = {"steps": 5, "n_min": 0.2, "n_max": 0.4, "n_avg": 3}
    new = song(
        run(
            studio,
            "edit",
            source,
            action="morph",
            prompt="techno",
            source_prompt="piano",
            options=options,
        )
    )
    assert new.shape == audio.decode(source).shape
    assert not np.allclose(new, reconstruction(studio, source), atol=1e-2)


def test_a_layer_is_a_stem_as_long_as_the_source_or_the_mix_which_must_not_clip(
    studio, make_source
):
    source, mode, values = make_source("quiet mono"), *CALLS["layer"]
    old = audio.decode(source)
    done = run(studio, mode, source, **values)
    stem = song(done)
    assert stem.shape == old.shape
    mixed = song(run(studio, mode, source, **values, options={"mix": True}))
    assert np.allclose(mixed, old + stem, atol=1e-6)
    assert any("experimental" in note for note in done.record["notes"])
    failed = run(studio, mode, make_source(), **values, options={"mix": True})
    assert isinstance(failed, Failed)
    assert "over full scale" in failed.problem.message and "stem" in failed.problem.hint


def test_several_regions_change_and_nothing_between_them(studio, make_source):
    source = make_source()
    new, old = song(run(studio, "edit", source, regions=[[2.5, 3.25], [0.5, 1.25]])), read(source)
    fade = round(modes.CROSSFADE_SECONDS / 2 * RATE)  # the balanced mode's crossfade
    kept = np.ones(old.shape[1], bool)
    for start, end in (samples_at(0.5, 1.25), samples_at(2.5, 3.25)):
        assert not np.allclose(new[:, start:end], old[:, start:end], atol=1e-3)
        kept[start - fade : end + fade] = False
    assert np.array_equal(new[:, kept], old[:, kept])


def test_one_region_in_a_list_is_the_same_as_a_start_and_an_end(studio, make_source):
    source = make_source()
    listed = song(run(studio, "edit", source, regions=[[1, 2]]))
    assert np.array_equal(listed, song(run(studio, "edit", source, start=1, end=2)))


def test_a_layer_in_two_regions_is_silent_elsewhere(studio, make_source):
    regions = [[0.5, 1], [2, 2.75]]
    stem = song(
        run(studio, "edit", make_source(), action="layer", tracks=["bass"], regions=regions)
    )
    for start, end in (samples_at(0, 0.45), samples_at(1.05, 1.95), samples_at(2.8, 3)):
        assert np.abs(stem[:, start:end]).max() == 0
    for start, end in (samples_at(0.5, 1), samples_at(2, 2.75)):
        assert not audio_levels.is_silent(stem[:, start:end])


def test_a_layer_in_a_region_is_silent_elsewhere(studio, make_source):
    stem = song(run(studio, "edit", make_source(), action="layer", tracks=["bass"], start=1, end=2))
    assert np.abs(stem[:, : round(0.95 * RATE)]).max() == 0
    assert np.abs(stem[:, round(2.05 * RATE) :]).max() == 0
    assert not audio_levels.is_silent(stem[:, RATE : 2 * RATE])


@pytest.mark.parametrize(
    ("action", "one", "other"),
    [
        ("extract", ["drums"], ["vocals"]),
        pytest.param("complete", ["drums"], ["drums", "bass"], marks=SLOW),
    ],
)
def test_tracks_are_named_to_the_model(studio, make_source, action, one, other):
    source = make_source()
    first, second = (
        run(studio, "edit", source, prompt="", action=action, tracks=tracks)
        for tracks in (one, other)
    )
    assert "DRUMS" in first.record["instruction"]
    assert song(first).shape == audio.decode(source).shape
    assert not np.allclose(song(first), song(second), atol=1e-3)


# --- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seconds", "frames"),
    [
        ("cover", 2.0, 128),
        *(pytest.param(*row, marks=SLOW) for row in (("repaint", 2.0, 128), ("cover", 5.2, 130))),
    ],
)
def test_the_model_never_sees_less_than_128_frames_of_a_source(
    studio, make_source, name, seconds, frames
):
    mode, values = CALLS[name]
    source, seen = make_source(seconds=seconds), []
    with studio.models.pipeline().transformer.register_forward_pre_hook(
        lambda module, args, named: seen.append(named["hidden_states"].shape[1]), with_kwargs=True
    ):
        made = song(run(studio, mode, source, **values))
    assert set(seen) == {frames}
    assert made.shape == audio.decode(source).shape


@SLOW
@pytest.mark.parametrize("name", ["cover", "extend", "morph", "layer"])
def test_a_takes_seed_alone_gives_the_same_take_and_a_mode_stops_within_a_step(
    studio, make_source, name
):
    mode, values = CALLS[name]
    source = make_source("mp3")
    first, second = samples_of(run(studio, mode, source, takes=2, **values))
    alone = song(run(studio, mode, source, seed=8, **values))
    assert np.allclose(second, alone, atol=1e-4) and not np.allclose(first, alone, atol=1e-3)
    request = parse_request(
        mode, {"prompt": "x", **values, "source": source, "options": {"steps": 50}}
    )
    events = studio.stream(request)
    next(event for event in events if event.stage == "steps" and event.step == 1)
    events.close()
    wait_for_turn(studio)


@SLOW
def test_no_state_of_one_mode_leaks_into_another(studio, make_source):
    source = make_source("mp3")

    def one(name):
        if name == "generate":
            return song(made_song(studio, options={"plan": False}))
        mode, values = CALLS[name]
        return song(run(studio, mode, source, **values))

    studio.models._pipe = None
    names = (*CALLS, "generate")
    first = {name: one(name) for name in names}
    # Each after other modes than before; morph and repaint twice in a row.
    for name in (*reversed(names), "repaint", "repaint", "morph", "morph"):
        assert np.array_equal(one(name), first[name]), name
