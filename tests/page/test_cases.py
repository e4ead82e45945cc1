"""What visitors reported: other tabs, other proxies, other clipboards, other scripts, other files."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.page.proxy import Proxy
from tests.page.steps import reload

OWN = "sessionStorage.getItem('ace-music-studio-own-generate')"


def keeps(page: Page, words: str) -> None:
    """Wait until a tab of the browser has kept `words`."""
    page.wait_for_function(f"({OWN} ?? '').includes({words!r})")


@pytest.mark.slow
def test_a_reload_brings_back_what_that_tab_had(page: Page, tab) -> None:
    one = tab(page, "generate")
    one.text("lyrics").fill("first draft")
    keeps(page, "first draft")
    page.wait_for_function("localStorage.getItem('ace-music-studio-generate') !== null")
    second = page.context.new_page()
    second.goto(page.url)
    expect(second.locator("#studio-status")).to_contain_text("Model:")
    other = tab(second, "generate")
    expect(other.text("lyrics")).to_have_value("first draft")
    one.text("lyrics").fill("second draft")
    keeps(page, "second draft")
    other.text("prompt").fill("for the other")
    keeps(second, "for the other")
    reload(page)
    expect(one.text("lyrics")).to_have_value("second draft")
    expect(one.text("prompt")).to_have_value("")
    reload(second)
    expect(other.text("lyrics")).to_have_value("first draft")
    expect(other.text("prompt")).to_have_value("for the other")
    second.close()


@pytest.mark.slow
def test_behind_a_proxy_that_tells_another_host_takes_play_and_none_is_called_deleted(
    fake_address, fake, visit, tab, forgiven
) -> None:
    forgiven += ["ERR_", "Failed to fetch", "NetworkError", "network error", "Could not"]
    address = fake_address[0]
    told = f"localhost:{address.split(':')[2].strip('/')}"
    with Proxy(address, told) as proxy:
        page = visit(proxy.url)
        generate = tab(page, "generate")
        generate.set("takes", "pick", "2")
        seed = 100 * (fake.songs + 1)
        generate.start()
        generate.has(seed)
        take, other = generate.take(1), generate.take(2)
        assert generate.downloaded("WAV", 2).read_bytes()
        take.get_by_role("button", name="Play take A").click()
        expect(generate.plays()).to_be_visible()
        expect(take.locator(".wave")).not_to_have_attribute("aria-valuenow", "0.0")
        proxy.cut()
        other.get_by_role("button", name="Play take B").click()
        expect(other).to_contain_text("could not be played")
        expect(other).not_to_contain_text("deleted")


@pytest.mark.slow
def test_a_paste_and_a_right_to_left_script_are_shown_as_they_are_meant(lasting: Page, tab) -> None:
    generate = tab(lasting, "generate").reset()
    box = generate.text("lyrics")
    expect(box).to_have_attribute("dir", "auto")
    expect(generate.text("prompt")).to_have_attribute("dir", "auto")
    box.evaluate(
        """(box) => {
          box.focus();
          const data = new DataTransfer();
          data.setData("text/plain", "\\ufeff[Verse]\\u200f\\vwindow\\u2028Rain\\\\nagain");
          box.dispatchEvent(new InputEvent("beforeinput",
            { inputType: "insertFromPaste", dataTransfer: data, bubbles: true, cancelable: true }));
        }"""
    )
    expect(box).to_have_value("[Verse]\nwindow\nRain\nagain")
    box.fill("שלום, עולם!")
    assert box.evaluate("(box) => getComputedStyle(box).direction") == "rtl"
    box.fill("hello")
    assert box.evaluate("(box) => getComputedStyle(box).direction") == "ltr"
    generate.text("seed").fill("")
    generate.text("seed").press_sequentially("−١")
    expect(generate.text("seed")).to_have_value("-1")
    generate.reset()


OTHER_KINDS = {
    "voice.webm": (b"\x1aE\xdf\xa3\x9fB\x82\x84webm" + b"A_OPUS", "audio file in WebM"),
    "voice.3gp": (b"\0\0\0\x20ftyp3gp4" + bytes(400), "a 3GP file"),
    "notes.txt": (b"la la la\n" * 100, "a text file"),
}


@pytest.mark.slow
def test_a_file_of_another_kind_and_a_wrong_field_say_so_until_they_change(
    page: Page, tab, forgiven, tmp_path, song
) -> None:
    forgiven += ["MediaError"]  # Gradio tries to play it
    cover = tab(page, "cover")
    for name, (content, said) in OTHER_KINDS.items():
        path = tmp_path / name
        path.write_bytes(content)
        cover.field("source").locator("input[type=file]").set_input_files(path)
        expect(cover.part("offer")).to_contain_text(said)
        expect(page.locator("body")).not_to_contain_text("Invalid file type")
        cover.clear("source")
        expect(cover.part("offer")).not_to_contain_text(said)
    # Everybody hears of both, a file and a field.
    cover.unfold("details")
    cover.text("prompt").fill("a song")
    words = tmp_path / "words.wav"
    words.write_bytes(b"la la la\n" * 100)
    source = cover.field("source")
    source.locator("input[type=file]").set_input_files(words)
    expect(cover.part("offer")).to_contain_text("a text file")
    cover.set("bpm", "type", "9999")
    cover.go.click()
    box = cover.text("bpm")
    expect(box).to_have_attribute("aria-invalid", "true")
    described = page.locator(f"#{box.get_attribute('aria-describedby')}")
    expect(described).to_contain_text("BPM must be")
    expect(source).to_contain_text("a text file")
    # A good file, and a good number: nothing of that is left.
    cover.clear("source")
    source.locator("input[type=file]").set_input_files(song)
    expect(source.locator("time").last).to_have_text(re.compile(r"\d:\d\d"))
    box.fill("90")
    expect(source).not_to_contain_text("a text file")
    expect(cover.part("offer")).not_to_contain_text("a text file")
    expect(box).not_to_have_attribute("aria-invalid", "true")
    expect(cover.field("bpm")).not_to_contain_text("BPM must be")
    assert box.get_attribute("aria-describedby") is None


@pytest.mark.slow
def test_what_word_adds_is_mended_with_a_click_and_undone_with_a_key(lasting: Page, tab) -> None:
    generate = tab(lasting, "generate").reset()
    pasted = "CHORUS (x2)\n• Let it rain (x2)"
    generate.text("lyrics").fill(pasted)
    advice = generate.part("advice")
    expect(advice).to_contain_text("write the section as [Chorus - x2]")
    advice.get_by_role("button", name="Fix tags, bullets and repeats").click()
    box = generate.text("lyrics")
    expect(box).to_have_value("[Chorus - x2]\nLet it rain\nLet it rain")
    expect(advice.get_by_role("button", name="Fix")).to_have_count(0)
    box.press("Control+z")
    expect(box).to_have_value(pasted)
    generate.reset()
