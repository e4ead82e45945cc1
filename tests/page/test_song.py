"""The page on the real engine with random weights: from a brief to files, through every tab, with help and a LoRA.

All page tests of the real engine are in this file, so that a studio with both language models is started once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect

import audio_export
import lora_format
import tooltips
from limits import LIMITS, SAMPLE_RATE
from tests.page import held
from tests.page.loras import Panel, write
from tests.page.proxy import Proxy
from tests.page.steps import Tab, expect_plain, making, reload, songs, takes
from tests.waiting import until

SONG_MS = 180_000
# What a song that can be held says.
UNDER_WAY = re.compile(rf"step \d of {held.HELD_STEPS}")


def fill_in(opened: Tab, **values: str) -> Tab:
    """Ask for a short song in two steps, unless `values` say otherwise."""
    opened.unfold("plan-fold", "engine")
    for name, value in {
        "prompt": "warm lo-fi piano",
        "duration": "10",
        "steps": "2",
        **values,
    }.items():
        opened.set(name, "type", value)
    return opened


@pytest.fixture
def hold():
    """Hold the long songs of `studio` in mid-song; return the file whose removal lets them go on."""
    file = held.hold_file(os.environ["ACE_STUDIO_OUTPUT"])
    file.touch()
    yield file
    file.unlink(missing_ok=True)


def long_song(page: Page, tab: type[Tab]) -> Tab:
    """Start a song that can be held on the real engine, and wait until it is being made."""
    generate = fill_in(tab(page, "generate"), steps=str(held.HELD_STEPS))
    generate.set("options.plan", "tick", False)
    generate.go.click()
    expect(making(page).locator(".stage")).to_contain_text(UNDER_WAY)
    return generate


def test_a_song_is_made_and_played(server: str, visit, tab, monkeypatch):
    monkeypatch.setenv("ACE_STUDIO_API_KEY", "of programs")  # the page needs none
    page: Page = visit(server)
    # The length is automatic, and without a plan that of the lyrics; their letters name the language.
    made = fill_in(tab(page, "generate"), duration="")
    made.set("options.plan", "tick", False)
    made.set("lyrics", "type", "[Verse]\n부드러운 빛이 내려와")
    file = made.download()
    length = audio_export.read_record(file)["length"]
    assert length["source"] == "lyrics"
    expect(made.part("message")).to_contain_text("Language was set to Korean")
    assert file.name == "부드러운 빛이 내려와.wav"
    info = soundfile.info(file)
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (
        48_000,
        2,
        round(length["seconds"] * SAMPLE_RATE),
        "PCM_24",
    )
    made.take().get_by_role("button", name="Play take A").click()
    player = page.get_by_role("region", name="Player")
    expect(player.locator(".time")).to_have_text(
        re.compile(rf"0:(0[1-9]|1\d) / {tooltips.clock(length['seconds'])}")
    )


@pytest.mark.slow
def test_a_song_goes_through_every_tab(studio: str, visit, tab):
    page: Page = visit(studio)
    lyrics = tab(page, "lyrics")
    lyrics.set("brief", "type", "a lighthouse")
    lyrics.unfold()
    lyrics.set("options.max_tokens", "type", "32")
    lyrics.go.click()
    expect(lyrics.progress).to_contain_text("Written in")
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
        made.unfold("engine")
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
    assert (
        same[: start - SAMPLE_RATE].all()
        and same[end + SAMPLE_RATE :].all()
        and not same[start:end].all()
    )


@pytest.mark.slow
def test_cancel_and_the_next_song(studio: str, visit, tab):
    generate = fill_in(tab(visit(studio), "generate"), duration="600", steps="200")
    generate.set("options.plan", "tick", False)
    generate.go.click()
    expect(generate.progress).to_contain_text("of 200")
    generate.part("cancel").click()
    expect(generate.progress).to_contain_text("Cancelled")
    expect(generate.text("prompt")).to_have_value("warm lo-fi piano")
    fill_in(generate).download()


@pytest.mark.slow
def test_the_planner_helps_with_the_words(studio: str, visit, tab, song: Path):
    page = visit(studio)
    generate = tab(page, "generate")
    generate.set("prompt", "type", "an idea")
    for mode in ("inspire", "polish"):
        generate.part(mode).click()
        expect(generate.part("undo")).to_be_visible()
        expect(generate.text("prompt")).not_to_have_value("an idea")
        assert LIMITS["bpm"].low <= int(generate.text("bpm").input_value()) <= LIMITS["bpm"].high
        generate.part("undo").click()
        expect(generate.text("prompt")).to_have_value("an idea")
    cover = tab(page, "cover")
    cover.set("source", "upload", song)
    cover.part("describe").click()
    expect(cover.text("prompt")).not_to_have_value("")
    cover.part("undo").click()
    expect(cover.text("prompt")).to_have_value("")
    expect_plain(page)


@pytest.mark.slow
def test_a_song_with_a_lora_and_the_one_without_it(studio: str, tiny, visit, tab, tmp_path: Path):
    widths = lora_format.widths_of(tiny)
    mine, wide = tmp_path / "mine.safetensors", tmp_path / "wide.safetensors"
    write(mine, widths)
    write(wide, {name: (out, into + 8) for name, (out, into) in widths.items()})
    opened = Panel(tab(visit(studio), "generate"))
    opened.tab.set_all(
        {
            "prompt": ("type", "a song", 0),
            "options.steps": ("type", "2", 0),
            "seed": ("type", "7", 0),
        }
    )
    opened.tab.set("duration", "type", "10")
    opened.tab.set("options.plan", "tick", False)

    def made() -> tuple[np.ndarray, list[dict[str, Any]]]:
        path = opened.tab.download()
        return soundfile.read(path)[0], audio_export.read_record(path)["loras"]

    plain, none = made()
    assert none == []
    opened.upload(wide, mine)
    opened.has("mine.safetensors")
    expect(opened.items.first.locator(".facts")).to_contain_text("fits this model")
    expect(opened.line).to_contain_text("wide.safetensors")
    opened.weight("mine.safetensors").fill("0.8")
    changed, (lora,) = made()
    assert (lora["name"], lora["source"], lora["weight"], lora["modules"]) == (
        "mine.safetensors",
        "upload",
        0.8,
        3,
    )
    assert not np.array_equal(changed, plain)
    message = opened.tab.part("message")
    expect(message).to_contain_text("LoRA mine.safetensors: weight 0.8, acted on 3 layers.")
    opened.press("Remove", "mine.safetensors")
    again, none = made()
    assert none == []
    assert np.array_equal(again, plain)
    expect(message).not_to_contain_text("LoRA")


# --- songs that outlive the page ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reload_a_second_tab_and_leaving_before_the_start_cost_no_song(
    studio: str, visit, tab, hold
):
    steps = str(held.HELD_STEPS)
    page = visit(studio)
    long_song(page, tab)
    other = page.context.new_page()
    other.goto(studio)
    expect(making(other).locator(".stage")).to_contain_text(UNDER_WAY)
    left = fill_in(tab(other, "generate"), prompt="left before it began", steps=steps)
    left.go.click()
    expect(making(other).last.locator(".stage")).to_contain_text("Next in the queue")
    other.close()
    reload(page)
    expect(making(page).first.locator(".stage")).to_contain_text(UNDER_WAY)
    expect(making(page).last.locator(".stage")).to_contain_text("Next in the queue")
    making(page).first.get_by_role("button").click()
    expect(making(page)).to_have_count(1)
    page.goto("about:blank")
    hold.unlink()
    folder = Path(os.environ["ACE_STUDIO_OUTPUT"])
    until(lambda: [*folder.glob("left-before-it-began-*.wav")])
    page.goto(studio)
    expect(takes(page)).to_have_count(1)
    expect(songs(page).locator("h3")).to_have_text("left before it began")
    expect(making(page)).to_have_count(0)
    assert len([*folder.glob("left-before-it-began-*.wav")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4, pytest.param(30, marks=pytest.mark.matrix)])
def test_a_network_that_is_cut_in_mid_song_costs_no_song(
    studio: str, visit, tab, forgiven, hold, seconds
):
    forgiven += ["ERR_", "Failed to fetch", "NetworkError", "network error", "Could not"]
    with Proxy(studio) as proxy:
        page = visit(proxy.url)
        long_song(page, tab)
        proxy.cut()
        page.wait_for_timeout(1_000 * seconds)
        proxy.mend()
        hold.unlink()
        # Whether Gradio reloads the page or not: it is the same song, and it comes once.
        expect(making(page).locator(".stage").or_(takes(page)).first).to_be_visible(timeout=SONG_MS)
        expect(takes(page)).to_have_count(1, timeout=SONG_MS)
        expect(making(page)).to_have_count(0)


@pytest.mark.slow
@pytest.mark.alters_page
def test_a_page_that_slept_through_its_song_shows_it(studio: str, visit, tab, hold):
    page = visit(studio)
    long_song(page, tab)
    session = page.context.new_cdp_session(page)
    session.send("Page.setWebLifecycleState", {"state": "frozen"})
    other = page.context.new_page()
    other.goto(studio)
    expect(making(other)).to_have_count(1)
    hold.unlink()
    expect(takes(other)).to_have_count(1, timeout=SONG_MS)
    other.close()
    session.send("Page.setWebLifecycleState", {"state": "active"})
    page.bring_to_front()
    expect(takes(page)).to_have_count(1)
    expect(making(page)).to_have_count(0)
