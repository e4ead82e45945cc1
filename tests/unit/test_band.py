"""The band: what it plays is what was asked, the same every time, and what its captions say is in it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tools import listening, render_band
from tools.band_score import BPM_RANGE, NOTE_NAMES, compose, parse_key, sections
from tools.band_styles import INSTRUMENTS, STEMS, STYLES
from tools.render_band import Piece, render

RATE = 48_000
# Semitones over the tonic.
STEPS = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
KEYS = [f"{names[0]} {scale}" for names in NOTE_NAMES for scale in ("major", "minor")]


@pytest.fixture(scope="module")
def pieces() -> dict[str, Piece]:
    """Return a piece of each style, 8 s long."""
    return {style: render(compose(number, style=style, seconds=8.0)) for number, style in enumerate(STYLES)}


def rms_dbfs(samples: torch.Tensor) -> float:
    """Return the level of samples in dBFS."""
    return 20 * float(torch.log10(samples.square().mean().sqrt() + 1e-9))


def drum_tempo_fits(drums: np.ndarray, bpm: int) -> bool:
    """Tell whether the drums' onsets lie on the sixteenths of `bpm`, and on those of no tempo 3 to 5 % beside it.

    The onsets are read off the samples: the level of a hundredth of a second against the one before.
    """
    block = RATE // 100
    level = np.sqrt((drums.mean(axis=0)[: drums.shape[1] // block * block].reshape(-1, block) ** 2).mean(axis=1))
    rise = np.maximum(np.diff(level, prepend=0.0), 0.0)
    rise[rise < 0.05 * rise.max()] = 0.0
    seconds = np.arange(len(rise)) / 100

    def strength(tempo: float) -> float:
        return float(np.abs((rise * np.exp(2j * np.pi * seconds * tempo / 60 * 4)).sum()) / rise.sum())

    beside = max(strength(bpm * factor) for factor in (0.95, 0.96, 0.97, 1.03, 1.04, 1.05))
    return strength(bpm) > 0.5 and strength(bpm) > 1.5 * beside


# --- determinism and shape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_equal_seeds_give_equal_samples_and_others_do_not(pieces, style):
    score = pieces[style].score
    again = render(compose(score.seed, style=style, seconds=8.0))
    assert again.score.captions == score.captions and again.score.form == score.form
    assert torch.equal(again.stems, pieces[style].stems)
    other = compose(score.seed + 100, style=style, seconds=8.0)
    assert not all(np.array_equal(other.notes[stem].onset, score.notes[stem].onset) for stem in score.notes)


def test_composing_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3)
    np.random.seed(3)
    render(compose(5, seconds=2.0))
    assert torch.equal(torch.rand(2), expected[0]) and np.array_equal(np.random.rand(2), expected[1])


@pytest.mark.parametrize("seconds", [0.5, 1.0, 7.123, 13.0])
def test_a_piece_is_exactly_as_long_as_asked(seconds):
    piece = render(compose(1, style="techno", seconds=seconds))
    assert piece.stems.shape == (5, 2, round(seconds * RATE))
    assert piece.mix.isfinite().all() and rms_dbfs(piece.mix) > -40


def test_stems_and_tracks_sum_to_the_mix(pieces):
    for piece in pieces.values():
        assert torch.equal(piece.stems.sum(dim=0), piece.mix)
        tracks = piece.score.tracks
        assert sorted(stem for stems in tracks.values() for stem in stems) == sorted(STEMS)
        assert torch.allclose(sum(piece.track(name) for name in tracks), piece.mix, atol=1e-6)


def test_tracks_have_the_names_that_the_tasks_use():
    from limits import TRACKS

    assert {instrument.track for instrument in INSTRUMENTS.values()} | {"drums"} <= set(TRACKS)
    for style in STYLES.values():
        assert set(style.instruments) | {"drums"} == set(STEMS) == set(style.finish)


# --- as asked -----------------------------------------------------------------------------------------------------


def in_time(style: str, bpm: int, beats: int) -> bool:
    """Tell whether the drums of a piece keep its tempo."""
    score = compose(bpm, style=style, bpm=bpm, beats=beats, seconds=8.0)
    assert (score.bpm, score.beats) == (bpm, beats)
    return drum_tempo_fits(render(score).stems[0].numpy(), bpm)


@pytest.mark.parametrize("number, style", enumerate(STYLES))
def test_the_drums_keep_the_asked_tempo(number, style):
    assert in_time(style, *((60, 4), (97, 3), (180, 4))[number % 3])


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("bpm, beats", [(60, 3), (75, 4), (97, 3), (133, 4), (180, 4)])
def test_the_drums_keep_every_tempo(style, bpm, beats):
    assert in_time(style, bpm, beats)


@pytest.mark.long
@pytest.mark.slow
def test_a_listener_hears_the_tempo_and_the_key():
    in_time = in_key = 0
    for number in range(24):
        score = compose(900 + number, style=list(STYLES)[number % 8], key=KEYS[number], seconds=16.0)
        mix = render(score).mix.numpy()
        error, _ = listening.tempo_error(listening.tempo(mix), score.bpm)
        in_time += error < 0.04
        in_key += listening.key_match(listening.key_ranking(mix)[0], score.key) != "other"
    assert in_time >= 20 and in_key >= 21


@pytest.mark.parametrize("number, key", enumerate(KEYS))
def test_only_the_notes_of_the_key_are_played(number, key):
    tonic, scale = parse_key(key)
    steps = STEPS[scale]
    weights = np.zeros(12)
    for style in STYLES:
        for notes in compose(number, style=style, key=key, seconds=16.0).notes.values():
            np.add.at(weights, notes.pitch.astype(int) % 12, notes.length * notes.loudness)
    weights = np.roll(weights, -tonic)
    assert set(np.flatnonzero(weights)) <= set(steps)
    # The tonic sounds longest.
    assert weights.argmax() == 0


def test_the_chroma_shows_the_key(pieces):
    """Without librosa: the spectrum folded into twelve semitones fits the asked scale better than most others."""
    for piece in pieces.values():
        tonal = piece.stems[1:].sum(dim=(0, 1)).double().numpy()
        power = np.abs(np.fft.rfft(tonal)) ** 2
        hertz = np.fft.rfftfreq(len(tonal), 1 / RATE)
        heard = (hertz > 50) & (hertz < 2_000)
        folded = np.bincount(np.round(12 * np.log2(hertz[heard] / 440) + 9).astype(int) % 12, power[heard], 12)
        tonic, scale = parse_key(piece.score.key)
        steps = np.array(STEPS[scale])
        inside = [folded[(steps + other) % 12].sum() / folded.sum() for other in range(12)]
        assert inside[tonic] > 0.75 and sorted(inside).index(inside[tonic]) >= 9


def heard_and_whole(style: str, key: str) -> None:
    """Render a short piece at a random seed and look at its level and peak."""
    seed = int(np.random.default_rng().integers(2**31))
    mix = render(compose(seed, style=style, key=key, seconds=2.5)).mix
    peak, level = float(mix.abs().max()), rms_dbfs(mix)
    assert mix.isfinite().all() and peak <= 0.9 and -30 < level < -10, (style, key, seed, peak, level)


@pytest.mark.parametrize("number, style", enumerate(STYLES))
def test_every_style_is_heard_and_does_not_clip(number, style):
    for key in KEYS[number::8]:
        heard_and_whole(style, key)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_every_style_in_every_key_is_heard_and_does_not_clip(style):
    for key in KEYS:
        heard_and_whole(style, key)


def test_every_stem_plays_somewhere_and_none_drowns_the_others(pieces):
    for style, piece in pieces.items():
        levels = [rms_dbfs(stem) for stem in piece.stems]
        assert min(levels) > -45 and max(levels) < -15, (style, levels)
        left, right = piece.mix
        assert not torch.equal(left, right)


def test_swing_and_a_human_hand():
    straight = compose(1, style="chiptune", bpm=120, beats=4, seconds=16.0).hits["hat"][:, 0]
    assert np.abs(straight / 0.125 - np.round(straight / 0.125)).max() < 1e-6
    loose = compose(1, style="funk", bpm=120, beats=4, seconds=16.0).hits["hat"][:, 0]
    offset = loose / 0.125 - np.floor(loose / 0.125 + 0.4)
    odd = np.floor(loose / 0.125 + 0.4).astype(int) % 2 == 1
    assert offset[odd].mean() - offset[~odd].mean() == pytest.approx(0.12, abs=0.03)
    assert offset[~odd].std() > 0.005


# --- form ---------------------------------------------------------------------------------------------------------


def test_the_form_follows_the_tags():
    lyrics = "[Intro]\n\n[Verse 1]\nlines are left alone\n[Pre-Chorus]\n[Chorus - anthemic]\n[Bridge]\n[Outro]"
    assert sections(lyrics) == ["intro", "verse", "verse", "chorus", "break", "outro"]
    assert sections("[Instrumental]") == sections("no tags") == []
    score = compose(3, style="rock", bpm=120, beats=4, seconds=48.0, lyrics=lyrics)
    assert [part.name for part in score.form] == sections(lyrics)
    assert score.form[0].start == 0 and score.form[-1].end == pytest.approx(48.0)
    assert all(one.end == two.start for one, two in zip(score.form, score.form[1:], strict=False))
    assert score.lyrics == lyrics


def test_sections_sound_different():
    score = compose(4, style="rock", bpm=120, beats=4, seconds=32.0, lyrics="[Intro][Verse][Chorus][Outro]")
    piece = render(score)
    spans = {
        part.name: slice(round(part.start * RATE) + RATE, round(part.end * RATE) - RATE // 10) for part in score.form
    }
    lead, bass = piece.stems[STEMS.index("lead")], piece.stems[STEMS.index("bass")]
    assert rms_dbfs(lead[:, spans["intro"]]) < -60 and rms_dbfs(bass[:, spans["intro"]]) < -60
    assert rms_dbfs(lead[:, spans["chorus"]]) > -40
    assert rms_dbfs(piece.mix[:, spans["chorus"]]) > rms_dbfs(piece.mix[:, spans["intro"]]) + 2


def test_more_tags_than_bars_are_no_error():
    score = compose(1, bpm=60, beats=4, seconds=8.0, lyrics="[Intro][Verse][Chorus][Break][Chorus][Outro]")
    assert sum(part.last - part.first for part in score.form) == 2
    assert render(score).mix.isfinite().all()


@pytest.mark.parametrize("wish", [{"style": "polka"}, {"bpm": 59}, {"bpm": 181}, {"beats": 5}, {"key": "H major"}])
def test_what_it_does_not_play_it_says(wish):
    with pytest.raises(ValueError, match=r"plays|reads"):
        compose(0, **wish)


# --- captions -----------------------------------------------------------------------------------------------------


def test_captions_claim_only_what_is_there():
    instruments = {word: name for name, each in INSTRUMENTS.items() for word in each.words}
    for seed in range(160):
        score = compose(seed, seconds=6.0)
        how = STYLES[score.style]
        played = {word for player in score.players.values() for word in INSTRUMENTS[player].words}
        assert len(set(score.captions)) >= 2 and BPM_RANGE[0] <= score.bpm <= BPM_RANGE[1]
        for caption in score.captions:
            assert any(word in caption for word in how.words), caption
            claimed = {word for word in instruments if word in caption}
            # A word may be part of another one that is played: "bells" of "soft bells".
            assert all(any(word in other for other in (*played, *how.words)) for word in claimed), caption
            assert ("slow" not in caption.replace("slow synth", "")) or score.bpm < 85
            assert ("fast" not in caption.replace("fast arpeggios", "")) or score.bpm > 135
            assert "bright" not in caption or score.key.endswith("major")
            assert "minor-key" not in caption or score.key.endswith("minor")
            assert not any(mark.isdigit() for mark in caption.replace("8-bit", "")), caption


def test_the_drawn_pieces_cover_what_the_band_can():
    scores = [compose(seed, seconds=4.0) for seed in range(400)]
    assert {score.style for score in scores} == set(STYLES)
    assert len({parse_key(score.key) for score in scores}) == 24
    assert {score.beats for score in scores} == {3, 4}
    assert min(score.bpm for score in scores) < 64 and max(score.bpm for score in scores) > 176
    assert all(score.beats == 3 for score in scores if score.style == "waltz")
    assert {"[Instrumental]"} < {score.lyrics for score in scores}


# --- a listener ---------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_a_listener_tells_the_styles_apart():
    names = list(STYLES)

    def heard(seeds: range) -> tuple[np.ndarray, list[str]]:
        scores = [compose(seed, style=names[seed % 8], seconds=10.0) for seed in seeds]
        return np.stack([listening.traits(render(score).mix.numpy()) for score in scores]), [s.style for s in scores]

    classifier = listening.train_classifier(*heard(range(2_000, 2_064)))
    features, styles = heard(range(3_000, 3_024))
    assert np.mean([classifier.judge(row) == style for row, style in zip(features, styles, strict=True)]) >= 0.85


def test_the_command_writes_pieces_and_what_they_are(tmp_path, monkeypatch, capsys):
    arguments = ["--style", "waltz", "--key", "Eb major", "--seconds", "3", "--seed", "4", "--count", "2", "--stems"]
    monkeypatch.setattr("sys.argv", ["render_band", str(tmp_path), *arguments])
    render_band.main()
    assert len(list(tmp_path.glob("*.wav"))) == 12
    told = json.loads(next(tmp_path.glob("4-waltz-*.json")).read_text())
    assert (told["style"], told["key"], told["time_signature"]) == ("waltz", "Eb major", "3")
    assert "waltz" in capsys.readouterr().out.lower()
