"""Songs on random weights: all the way from a brief to files, through every tab."""

from __future__ import annotations

import re

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect

import audio_export
from limits import SAMPLE_RATE
from tests.page.steps import Tab

SONG_MS = 180_000


def fill_in(opened: Tab, **values: str) -> Tab:
    """Ask for a short song in two steps, unless `values` say otherwise."""
    opened.unfold()
    for name, value in {"prompt": "warm lo-fi piano", "duration": "10", "steps": "2", **values}.items():
        opened.set(name, "type", value)
    return opened


def test_a_song_is_made_and_played(studio: str, visit, tab):
    page: Page = visit(studio)
    made = fill_in(tab(page, "generate"))
    made.set("options.plan", "tick", False)
    file = made.download()
    assert re.fullmatch(r"warm-lo-fi-piano-seed-\d+\.wav", file.name)
    info = soundfile.info(file)
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (48_000, 2, 480_000, "PCM_24")
    made.take().get_by_role("button", name="Play take 1").click()
    player = page.get_by_role("region", name="Player")
    expect(player.locator(".time")).to_have_text(re.compile(r"0:0[1-9] / 0:10"))


@pytest.mark.slow
def test_a_song_goes_through_every_tab(studio: str, visit, tab):
    page: Page = visit(studio)
    lyrics = tab(page, "lyrics")
    lyrics.set("brief", "type", "a lighthouse")
    lyrics.unfold()
    lyrics.set("options.max_tokens", "type", "32")
    lyrics.go.click()
    expect(lyrics.progress).to_contain_text("tokens written in", timeout=SONG_MS)
    # The text may be drawn after the line that says it is done.
    expect(lyrics.text("text")).not_to_have_value("")
    lyrics.part("use").click()

    made = tab(page, "generate")
    expect(made.text("lyrics")).not_to_have_value("")
    expect(lyrics.text("text")).to_have_value(made.text("lyrics").input_value())
    fill_in(made)
    files = {"generate": made.download()}
    expect(made.part("plan-line").locator("span").first).to_have_text("Plan:")
    for mode in ("cover", "extend", "edit"):
        made.way(f"Use in {mode.capitalize()}").click()
        made = tab(page, mode)
        expect(made.field("source").locator("time").last).to_have_text(re.compile(r"0:1\d"))
        made.unfold()
        made.set("options.steps", "type", "2")
        if mode == "extend":
            made.set("before", "type", "1.234")
            made.set("after", "type", "2")
        files[mode] = made.download()
    samples = {mode: soundfile.read(path, dtype="int32")[0] for mode, path in files.items()}
    assert samples["cover"].shape == samples["generate"].shape
    assert not np.array_equal(samples["cover"], samples["generate"])
    before = round(1.234 * SAMPLE_RATE)
    assert len(samples["extend"]) == before + 12 * SAMPLE_RATE
    kept = slice(3 * SAMPLE_RATE, 7 * SAMPLE_RATE)  # outside of both overlaps
    assert np.array_equal(samples["extend"][before:][kept], samples["cover"][kept])
    region = audio_export.read_record(files["edit"])["request"]
    same = (samples["edit"] == samples["extend"]).all(axis=1)
    start, end = (round(region[name] * SAMPLE_RATE) for name in ("start", "end"))
    assert same[: start - SAMPLE_RATE].all() and same[end + SAMPLE_RATE :].all() and not same[start:end].all()


@pytest.mark.long
@pytest.mark.slow
def test_cancel_and_the_next_song(studio: str, visit, tab):
    generate = fill_in(tab(visit(studio), "generate"), duration="600", steps="200")
    generate.go.click()
    expect(generate.progress).to_contain_text("of 200", timeout=SONG_MS)
    generate.part("cancel").click()
    expect(generate.progress).to_contain_text("Cancelled")
    expect(generate.text("prompt")).to_have_value("warm lo-fi piano")
    fill_in(generate).download()
