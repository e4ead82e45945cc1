"""The clock in the built-in engine's silence: it starts again with a bar."""

from __future__ import annotations

import json

import pytest

import model_weights
import song_clock
from training import engine_parts

FRAMES_PER_SECOND = 25
CLOCK = song_clock.Clock(12, 20, 10)


@pytest.mark.parametrize("beats", [3, 4])
def test_the_clock_starts_again_with_a_bar(beats):
    for bpm in range(60, 181):
        frames = song_clock.period_frames(CLOCK, bpm, beats, FRAMES_PER_SECOND)
        bar = beats * 60 / bpm * FRAMES_PER_SECOND
        # A bar is 4 s long at most, and the even frames are nowhere further than one frame away.
        assert 10 * FRAMES_PER_SECOND <= frames <= 20 * FRAMES_PER_SECOND + 1
        assert frames % 2 == 0
        assert abs(frames - bar * round(frames / bar)) <= 1


def test_without_a_tempo_the_clock_runs_as_long_as_it_can():
    assert song_clock.period_frames(CLOCK, None, 4, FRAMES_PER_SECOND) == 500


def test_the_shipped_checkpoint_has_the_clock_that_training_writes():
    written = json.loads((model_weights.ASSETS / "preview" / song_clock.FILE).read_text("utf-8"))
    kept = engine_parts.KEPT_TIME
    assert written == {"restarts_after": [kept.shortest, kept.longest], "view": kept.view}
