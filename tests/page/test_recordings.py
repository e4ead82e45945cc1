"""Recordings of phones and browsers as sources: the browser decodes them, and the studio gets a WAV."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

import audio
from tests.files import tag_file, write_media
from tests.page.steps import in_german
from tests.unit.sounds import tone

# Records a tone of 660 Hz for some seconds, as a page with a microphone would.
RECORD = """async (seconds) => {
  const context = new AudioContext();
  await context.resume();
  const tone = new OscillatorNode(context, { frequency: 660 });
  const to = context.createMediaStreamDestination();
  tone.connect(to);
  tone.start();
  const recorder = new MediaRecorder(to.stream, { mimeType: "audio/webm;codecs=opus" });
  const parts = [];
  recorder.ondataavailable = ({ data }) => parts.push(data);
  const ended = new Promise((done) => (recorder.onstop = done));
  recorder.start();
  await new Promise((done) => setTimeout(done, 1000 * seconds));
  recorder.stop();
  await ended;
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
  return btoa(Array.from(bytes, (each) => String.fromCharCode(each)).join(""));
}"""
DROP = """([name, data, type = "video/webm"]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], name, { type }));
  return files;
}"""


@pytest.fixture
def cover(lasting: Page, tab) -> Any:
    opened = tab(lasting, "cover")
    opened.clear("source")
    opened.set("prompt", "type", "brass band")
    return opened


def sent(cover: Any, fake: Any, name: str) -> np.ndarray:
    """Start the cover and return the samples of the source that the studio got."""
    expect(cover.field("source").locator("time").last).to_have_text("0:02")
    source = Path(cover.made(fake).source)
    assert source.name == name
    return audio.decode(source)


def hertz(samples: np.ndarray) -> float:
    """Return the strongest frequency of a second in the middle."""
    middle = samples.shape[1] // 2
    spectrum = np.abs(np.fft.rfft(samples[0, middle - 24_000 : middle + 24_000]))
    return float(spectrum.argmax())


@pytest.mark.slow
@pytest.mark.alters_page
def test_what_a_browser_records_becomes_the_source(cover: Any, fake: Any, tab: Any):
    page = cover.page
    # Gradio's buttons have other names there.
    in_german(page)
    cover = tab(page, "cover")
    cover.text("prompt").click()  # a page must be used before it may play
    recorded = page.evaluate(RECORD, 2.2)
    assert audio.audio_media.media_of(base64.b64decode(recorded)[:64])
    choose = cover.field("source").locator("input[type=file]")
    file = {"name": "memo.webm", "mimeType": "video/webm", "buffer": base64.b64decode(recorded)}
    choose.set_input_files(file)
    assert hertz(sent(cover, fake, "memo.wav")) == pytest.approx(660, abs=1)
    expect(cover.field("source").get_by_title("Löschen")).to_have_count(1)
    # Dropped on the field, it goes the same way.
    cover.clear("source")
    dropped = page.evaluate_handle(DROP, ["dropped.webm", recorded])
    cover.field("source").locator("button").first.dispatch_event("drop", {"dataTransfer": dropped})
    assert hertz(sent(cover, fake, "dropped.wav")) == pytest.approx(660, abs=1)
    # Beside it, too: it takes the place of the one that is there.
    beside = page.evaluate_handle(DROP, ["beside.webm", recorded])
    with page.expect_response("**/upload*", timeout=0):
        page.locator("body").dispatch_event("drop", {"dataTransfer": beside})
    assert hertz(sent(cover, fake, "beside.wav")) == pytest.approx(660, abs=1)


def test_a_file_dropped_anywhere_on_generate_gives_its_settings_and_never_leaves_the_page(
    lasting: Page, tab: Any, song: Path
):
    words = {"prompt": "calm piano", "bpm": 90}
    tag_file(song, "a song", {"mode": "generate", "request": words, "takes": [{"seed": 4}]})
    generate = tab(lasting, "generate").reset()
    content = base64.b64encode(song.read_bytes()).decode()
    dropped = lasting.evaluate_handle(DROP, [song.name, content, "audio/wav"])
    lasting.locator("body").dispatch_event("drop", {"dataTransfer": dropped})
    expect(generate.text("prompt")).to_have_value("calm piano")
    # Where no box takes it, nothing happens: above all the browser does not open it.
    tab(lasting, "lyrics")
    opened = """(transfer) => document.body.dispatchEvent(
        new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }))"""
    assert lasting.evaluate(opened, dropped) is False


def test_what_the_browser_cannot_decode_gets_the_studio_s_sentence(
    page: Page, tab: Any, forgiven: list[str]
):
    forgiven.append("Waveform load error")  # Gradio's player tries it, too
    cover = tab(page, "cover")
    head = b"\0\0\0\x20ftypM4A \0\0\0\0"
    file = {"name": "memo.m4a", "mimeType": "audio/mp4", "buffer": head + bytes(4_000)}
    cover.field("source").locator("input[type=file]").set_input_files(file)
    expect(cover.part("offer")).to_contain_text("This is an M4A file")


@pytest.mark.slow
def test_an_m4a_of_a_phone_becomes_the_source(cover: Any, fake: Any, tmp_path: Path):
    pytest.importorskip("av", reason="PyAV is not installed (requirements-media.txt)")
    can = "new Audio().canPlayType('audio/mp4; codecs=\"mp4a.40.2\"')"
    if not cover.page.evaluate(can):
        pytest.skip("this Chromium has no AAC")
    path = write_media(tone(2.2, hertz=440.0), tmp_path / "memo.m4a", "aac")
    cover.field("source").locator("input[type=file]").set_input_files(path)
    assert hertz(sent(cover, fake, "memo.wav")) == pytest.approx(440, abs=1)
