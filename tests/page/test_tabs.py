"""Cover and Extend, the ways between tabs, and settings restored from a file."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

import tooltips
from params import parse_request
from tests.files import tag_file
from tests.page.steps import (
    MARKUP,
    copies_of,
    expect_plain,
    expect_tappable,
    reload,
    song_without_copy,
    violations,
)
from tests.waiting import until


@pytest.mark.slow
def test_a_cover_is_made_of_a_source_and_a_reference(page: Page, fake, tab, song: Path):
    opened = tab(page, "cover")
    opened.set("source", "upload", song)
    # One waveform, which plays.
    expect(opened.field("source").get_by_test_id("waveform-controls")).to_be_hidden()
    waveform = opened.part("region")
    expect(waveform.get_by_role("slider")).to_have_count(0)
    # Three seconds may be over before anybody looks.
    waveform.get_by_role("button", name="Loop").click()
    waveform.get_by_role("button", name="Play").click()
    expect(waveform.get_by_role("button", name="Pause")).to_be_visible()
    waveform.get_by_role("button", name="Pause").click()
    opened.set("prompt", "type", "a song")
    plain = opened.made(fake)
    assert plain == parse_request("cover", {"source": plain.source, "prompt": "a song"})
    assert Path(plain.source).read_bytes() == song.read_bytes()
    opened.unfold()
    opened.set("strength", "slide", "0.35")
    opened.set("options.noise_strength", "slide", "0.15")
    opened.set("options.detail", "pick", "The sound itself")
    opened.set("reference", "upload", song)
    request = opened.made(fake)
    assert (request.strength, request.options.noise_strength) == (0.35, 0.15)
    assert request.options.detail == "sound"
    assert Path(request.reference).read_bytes() == song.read_bytes()


# Where the words of an element begin, without what is around them.
LEFT_OF_WORDS = """(element) => {
  const range = document.createRange();
  range.selectNodeContents(element.firstChild);
  return range.getBoundingClientRect().left;
}"""


@pytest.mark.slow
def test_a_source_that_cannot_be_used(page: Page, fake, tab, song: Path, tmp_path: Path, forgiven):
    # The browser's player logs it, too.
    forgiven += ["Waveform load error", "RANGE_NOT_SATISFIABLE", "status of 416"]
    opened = tab(page, "cover")
    opened.set("prompt", "type", "a song")
    for content, sentence in {
        None: "Source is missing: add an audio file of 1 second to 10 minutes.",
        b"These are words. " * 99: "This is a text file, not audio.",
        b"": "The file is empty",
    }.items():
        if content is not None:
            (tmp_path / "wrong.wav").write_bytes(content)
            opened.clear("source")
            opened.field("source").locator("input[type=file]").set_input_files(
                tmp_path / "wrong.wav"
            )
            # The message appears right after the upload.
            expect(opened.part("offer")).to_contain_text(sentence)
        opened.go.click()
        expect(opened.part("problems")).to_have_text("Please check “Source audio”.")
        expect(opened.field("source")).to_contain_text(sentence)
        # Once: neither at the button nor in the line below the source.
        form = opened.part("panel").locator(".form-column")
        until(lambda form=form, sentence=sentence: form.inner_text().count(sentence) == 1)
        left = opened.field("source").bounding_box()["x"]
        said = opened.field("source").get_by_text(sentence).first
        # The page's sentence gives way to Gradio's.
        until(lambda said=said, left=left: 8 < said.evaluate(LEFT_OF_WORDS) - left < 24)
        expect(opened.text("prompt")).to_have_value("a song")
        expect(opened.go).to_be_enabled()
    assert fake.requests == []
    # A good file leaves no sentence behind.
    opened.clear("source")
    opened.field("source").locator("input[type=file]").set_input_files(song)
    expect(opened.part("offer").get_by_role("alert")).to_have_count(0)
    expect(opened.part("problems").get_by_role("alert")).to_be_hidden()
    opened.unfold()
    for file, sentences in ((tmp_path / "wrong.wav", 1), (song, 0)):
        opened.clear("reference")
        opened.field("reference").locator("input[type=file]").set_input_files(file)
        expect(opened.part("reference-line").get_by_role("alert")).to_have_count(sentences)
    assert opened.made(fake).reference


@pytest.mark.slow
def test_an_extension_is_set_in_numbers_and_by_dragging_its_ends(page: Page, fake, tab, song: Path):
    opened = tab(page, "extend")
    total = opened.part("total")
    before, after = (
        page.get_by_role("slider", name=f"New music {side} the source")
        for side in ("before", "after")
    )
    expect(total).to_have_text("")
    expect(after).to_be_hidden()
    opened.set("source", "upload", song)
    expect(total).to_have_text("Total length 0:33 (3 s of source + 30 s = 33 s).")
    opened.set("before", "type", "12.5")
    expect(total).to_have_text("Total length 0:46 (12.5 s + 3 s of source + 30 s = 45.5 s).")
    opened.set("before", "type", "1.2.3")
    expect(total).to_have_text("")
    opened.set("before", "type", "")
    opened.set("after", "type", "20")
    expect(after).to_have_attribute("aria-valuetext", "20 s")
    assert violations(page) == []
    # The field follows when the grip is dropped.
    places = [
        page.locator(f"#extend-timeline .{name}").bounding_box()
        for name in ("part.after", "grip.after")
    ]
    second = places[0]["width"] / 20
    x, y = places[1]["x"] + 20, places[1]["y"] + 20
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 5 * second, y, steps=4)
    expect(after).to_have_attribute("aria-valuetext", "25 s")
    expect(opened.text("after")).to_have_value("20")
    page.mouse.up()
    expect(opened.text("after")).to_have_value("25")
    expect(total).to_contain_text("Total length 0:28")
    for key, seconds in (
        ("ArrowLeft", "1"),
        ("Shift+ArrowLeft", "11"),
        ("ArrowRight", "10"),
        ("PageUp", "20"),
    ):
        before.press(key)
        expect(opened.text("before")).to_have_value(seconds)
    before.press("End")
    expect(opened.text("before")).to_have_value("300")
    opened.set("before", "type", "1:02,5")
    expect(before).to_have_attribute("aria-valuetext", "62.5 s")
    expect(total).to_contain_text("Total length 1:31")
    opened.set("before", "type", "2,5")
    expect(before).to_have_attribute("aria-valuetext", "2.5 s")
    expect_tappable(before, after)
    timeline = opened.part("timeline")
    expect_tappable(*timeline.get_by_role("button").all())
    timeline.get_by_role("button", name="Loop").click()
    timeline.get_by_role("button", name="Hear the join").click()
    expect(timeline.get_by_role("button", name="Pause")).to_be_visible()
    timeline.get_by_role("button", name="Pause").click()
    opened.set("prompt", "type", "a song")
    opened.unfold()
    opened.set("options.overlap", "slide", "0.7")
    request = opened.made(fake)
    assert (request.before, request.after, request.options.overlap) == (2.5, 25, 0.7)
    assert Path(request.source).read_bytes() == song.read_bytes()
    # An example keeps the visitor's own words.
    page.get_by_role("button", name="An intro").click()
    expect(opened.text("before")).to_have_value("15")
    expect(opened.text("prompt")).to_have_value("a song")


# --- a take goes to another tab -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cover", pytest.param("edit", marks=pytest.mark.matrix)])
def test_a_take_goes_to_a_tab_in_one_click(lasting: Page, fake, tab, mode: str):
    words = {
        "prompt": MARKUP,
        "lyrics": "[Verse]\nla",
        "bpm": 90,
        "key": "A minor",
        "strength": "high",
    }
    fake.script = partial(fake.song, request=words)
    generate = tab(lasting, "generate")
    generate.set("prompt", "type", "a song")
    generate.set("takes", "pick", "2")
    generate.made(fake)
    name = f"song-seed-{100 * fake.songs + 1}.wav"
    generate.way(f"Use in {mode.capitalize()}", 2).click()
    expect(lasting.locator(f"#{mode}-go")).to_be_visible()
    opened = tab(lasting, mode)
    expect(lasting.locator("#studio-tabs")).to_be_in_viewport()
    expect(opened.text("prompt")).to_have_value(MARKUP)
    expect(opened.text("lyrics")).to_have_value("[Verse]\nla")
    expect(opened.field("source").locator("time").last).to_have_text("0:01")
    if mode == "edit":
        opened.choose("morph")
        expect(opened.text("source_prompt")).to_have_value(MARKUP)
    request = opened.made(fake)
    assert Path(request.source).name == name
    assert (request.prompt, request.bpm, request.key, request.takes) == (MARKUP, 90, "A minor", 1)
    expect_plain(lasting)


@pytest.mark.slow
def test_a_latest_take_becomes_the_source_with_one_click(page: Page, fake, tab, forgiven):
    forgiven += ["status of 403", "status of 404"]
    latest = page.locator("#cover-latest").get_by_role("button")
    tab(page, "cover")
    expect(latest).to_have_count(0)
    for prompt in ("sea shanty", "a <b>waltz</b>"):
        generate = tab(page, "generate")
        generate.set("prompt", "type", prompt)
        generate.made(fake)
    shanty = 100 * (fake.songs - 1)
    cover = tab(page, "cover")
    expect(latest).to_have_text([re.compile("a <b>waltz</b>"), re.compile("sea shanty")])
    expect_tappable(latest.first)
    box = latest.first.bounding_box()
    assert (
        box["x"] + box["width"]
        <= page.locator("#cover-columns .form-column").bounding_box()["width"] + 30
    )
    assert violations(page) == []
    latest.nth(1).click()
    expect(cover.field("source").locator("time").last).to_have_text("0:01")
    # It has its title, not the name of its file.
    expect(cover.field("source").locator(".source-card strong")).to_have_text("sea shanty")
    # It brings its words along, as by its own button.
    expect(cover.text("prompt")).to_have_value("sea shanty")
    cover.set("prompt", "type", "brass band")
    assert Path(cover.made(fake).source).name == f"song-seed-{shanty}.wav"
    # The next visit offers only those whose files still exist.
    name = f"song-seed-{shanty}.wav"
    for file in (*copies_of(name), fake.folder / name):
        file.unlink()
    # The copy that the page got is deleted after a day; the song in the output folder is uploaded then.
    waltz = fake.folder / f"song-seed-{shanty + 100}.wav"
    (copy,) = copies_of(waltz.name)
    copy.unlink()
    reload(page)
    edit, latest = tab(page, "edit"), page.locator("#edit-latest").get_by_role("button")
    expect(latest).to_have_text([re.compile("brass band"), re.compile("waltz")])
    latest.nth(1).press("Enter")
    expect(edit.text("start")).to_have_value("0.3")
    expect(edit.text("prompt")).to_have_value("a <b>waltz</b>")
    expect(latest).to_have_count(0)
    source = Path(edit.made(fake).source)
    assert source.read_bytes() == waltz.read_bytes()
    assert (source.name, source.parent == copy.parent) == (waltz.name, False)


@pytest.mark.slow
def test_a_latest_take_that_was_just_deleted_is_no_source(page: Page, fake, tab, forgiven):
    forgiven += ["status of 403", "status of 404"]
    song = song_without_copy(tab(page, "generate"), fake)
    cover = tab(page, "cover")
    latest = page.locator("#cover-latest")
    expect(latest.get_by_role("button")).to_have_count(1)
    song.unlink()
    latest.get_by_role("button").click()
    expect(latest.get_by_role("alert")).to_have_text(tooltips.TAKE_GONE)
    expect(latest.get_by_role("button")).to_have_count(0)
    expect(cover.field("source").locator("input[type=file]")).to_have_count(1)


@pytest.mark.slow
def test_a_source_with_settings_offers_them(page: Page, fake, tab, song: Path):
    request = {
        "prompt": MARKUP,
        "lyrics": "la",
        "bpm": 90,
        "time_signature": "3",
        "language": "fr",
        "strength": 0.3,
    }
    request |= {
        "options": {"steps": 7, "loudness": -14.0, "noise_strength": 9},
        "unheard-of": MARKUP,
    }
    record = {
        "mode": "cover",
        "request": request,
        "takes": [{"seed": 4294967295}],
        "audio": {"reference": {}},
    }
    tag_file(song, MARKUP, record)
    opened = tab(page, "cover")
    opened.set("prompt", "type", "mine")
    button, offer = page.get_by_role("button", name="Restore its settings"), opened.part("offer")
    expect(button).to_have_count(0)
    opened.set("source", "upload", song)
    expect(offer).to_contain_text("carries its settings")
    # The form changes only when the button is pressed.
    expect(opened.text("prompt")).to_have_value("mine")
    button.click()
    expect(offer).to_contain_text("10 settings restored; 2 not available")
    expect(offer).to_contain_text("reference audio is not in the file")
    expect(button).to_have_count(0)
    request = opened.made(fake)
    assert Path(request.source).read_bytes() == song.read_bytes()
    assert (request.prompt, request.lyrics, request.bpm, request.strength) == (
        MARKUP,
        "la",
        90,
        0.3,
    )
    assert (request.time_signature, request.language) == ("3", "fr")
    assert (request.seed, request.takes, request.options.steps, request.options.loudness) == (
        4294967295,
        1,
        7,
        -14.0,
    )
    assert request.options.noise_strength == 0
    expect_plain(page)
