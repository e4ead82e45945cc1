"""The region on a waveform: dragged, typed and moved by keys, always in step with its two fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Locator, Page, expect

import page_widgets
import theme
from tests.page.steps import expect_tappable, fits, violations

SECONDS = 30
RATE = 44_100
FIELDS = {"Start": "0", "End": "0", "BPM": ""}


def clicks(bpm: float, first: float) -> np.ndarray:
    """Return half a minute of short bursts, one per beat, the first one at `first` seconds."""
    samples = np.random.default_rng(1).normal(0, 0.001, SECONDS * RATE)
    for beat in np.arange(first, SECONDS - 0.05, 60 / bpm):
        at = round(beat * RATE)
        samples[at : at + 1000] += 0.6 * np.sin(np.arange(1000) * 0.4) * np.linspace(1, 0, 1000)
    return samples


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("songs")
    noise = np.random.default_rng(1).uniform(-0.6, 0.6, SECONDS * RATE)
    sounds = {"song": noise, "other": noise[: 12 * RATE], "odd": noise[: round(12.3456 * RATE)]}
    sounds["clicks"] = clicks(99.5, 0.23)
    paths = {name: folder / f"{name}.wav" for name in (*sounds, "words")}
    for name, samples in sounds.items():
        soundfile.write(paths[name], samples, RATE)
    paths["words"].write_text("no audio at all")
    return paths


@pytest.fixture(scope="module")
def address(songs: dict[str, Path]) -> Iterator[str]:
    """Serve a page with one region over two boxes."""
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.HTML("Model: none", elem_id="studio-status")  # what `visit` waits for
        source = gr.File(elem_id="source")
        hand_over = gr.Button("Hand over")
        with gr.Column() as place:
            pass
        with gr.Row():
            fields = [
                gr.Textbox(value, label=name, elem_id=name.lower())
                for name, value in FIELDS.items()
            ]
        with place:
            selector = page_widgets.region_selector()
        page_widgets.connect_region(selector, source, *fields)
        hand_over.click(lambda: str(songs["other"]), None, source)
    looks = {"theme": theme.theme(), "css": theme.css(), "head": theme.head(), "ssr_mode": False}
    yield demo.launch(server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, **looks)[1]
    demo.close()


class Region:
    """The region, its fields and its source."""

    def __init__(self, page: Page):
        self.page, self.root, self.seconds = page, page.locator("#region"), SECONDS
        self.fields = [
            page.locator(f"{name} input, {name} textarea") for name in ("#start", "#end")
        ]
        names = ("Start of the region", "End of the region", "Part in view")
        self.start, self.end, self.overview = (
            self.root.get_by_role("slider", name=name) for name in names
        )
        self.facts, self.stage, self.track = (
            self.root.locator(name) for name in (".facts", ".stage", ".track")
        )

    def at(self, seconds: float) -> tuple[float, float]:
        """Return the place of a time on the screen, at a height without handles."""
        box = self.track.bounding_box()
        return box["x"] + box["width"] * seconds / self.seconds, box["y"] + 12

    def drag(self, start: float, end: float, drop: bool = True) -> None:
        mouse = self.page.mouse
        mouse.move(*self.at(start))
        mouse.down()
        mouse.move(*self.at((start + end) / 2))
        mouse.move(*self.at(end), steps=5)
        if drop:
            mouse.up()

    def says(self, start: str, end: str, *label: str) -> None:
        """Expect these values in the fields, and on the label this start, end and length."""
        expect(self.fields[0]).to_have_value(start)
        expect(self.fields[1]).to_have_value(end)
        if label:
            expect(self.facts).to_have_text(
                re.compile(r"\s*Start {}\s+End {}\s+Length {}\s*".format(*label))
            )

    def type(self, start: str, end: str) -> None:
        for field, text in zip(self.fields, (start, end), strict=True):
            field.fill(text)

    def reset(self) -> None:
        """Go back to 10 to 15 seconds."""
        self.type("10", "15")
        self.says("10", "15", "0:10.0", "0:15.0", "0:05.0")

    def seen(self, name: str) -> tuple[float, float]:
        """Return the seconds that a part of the selector covers."""
        track, part = self.track.bounding_box(), self.root.locator(name).bounding_box()
        scale = self.seconds / track["width"]
        start = (part["x"] - track["x"]) * scale
        return start, start + part["width"] * scale

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name)

    def upload(self, path: Path) -> None:
        self.page.locator("#source input[type=file]").set_input_files(path)


@pytest.fixture
def open_page(
    visit: Callable[..., Page], address: str, songs: dict[str, Path]
) -> Callable[..., Region]:
    """Return a function that opens the page with a source; one of 30 seconds begins with a region from 10 to 15."""

    def open_page(source: str | None = "song", **size: int) -> Region:
        shown = Region(visit(address, **size))
        if source:
            shown.upload(songs[source])
            expect(shown.start).to_be_visible()
        if source in ("song", "clicks"):
            shown.says("10", "15", "0:10.0", "0:15.0", "0:05.0")
        return shown

    return open_page


@pytest.fixture
def region(open_page: Callable[..., Region]) -> Region:
    """Open 30 seconds in a window with room to drag between the handles."""
    return open_page(width=1280)


def test_a_new_source_resets_the_region_and_no_source_clears_it(
    open_page: Callable[..., Region], songs
):
    shown = open_page(source=None, width=1280)
    page, hand_over = shown.page, shown.page.get_by_role("button", name="Hand over")
    wave = shown.root.locator(".wave path").first
    expect(shown.root).to_contain_text("waveform appears here")
    expect(shown.root.get_by_role("slider")).to_have_count(0)
    shown.upload(songs["song"])
    shown.says("10", "15")
    first = wave.get_attribute("d")
    shown.drag(20, 25)
    shown.says("20", "25")
    hand_over.click()
    shown.says("4", "6", "0:04.0", "0:06.0", "0:02.0")
    expect(wave).not_to_have_attribute("d", first)
    # The same file again leaves the region as it is.
    shown.fields[0].fill("5")
    with page.expect_response("**/run/predict"), page.expect_response("**/run/predict"):
        hand_over.click()
    shown.says("5", "6", "0:05.0", "0:06.0", "0:01.0")
    page.locator("#source").get_by_label("Clear").click()
    shown.says("0", "0")
    expect(shown.root).to_contain_text("waveform appears here")
    # A region reaches the end of a file between two tenths.
    shown.upload(songs["odd"])
    shown.says("4.1", "6.2")
    shown.seconds = 12.3456
    shown.drag(6.2, 13)
    shown.says("4.1", "0", "0:04.1", "0:12.3", "0:08.2")
    expect(shown.end).to_have_attribute("aria-valuenow", "12.346")
    shown.end.press("ArrowLeft")
    shown.says("4.1", "12.2")
    page.locator("#source").get_by_label("Clear").click()
    shown.says("0", "0")
    shown.upload(songs["words"])
    expect(shown.root).to_contain_text("no waveform")
    expect(shown.start).to_be_hidden()


# --- dragging, typing, keys ---------------------------------------------------------------------------------------

MARKS = [
    *((2, 5, "2", "5"), (8, 6.5, "6.5", "8"), (25, 40, "25", "0"), (3, -9, "0", "3")),
    *((20.3, 20.4, "20.3", "20.8"), (20.3, 20.1, "19.8", "20.3")),  # too short
]
EDGES = [
    *((10, 7, "7", "15"), (10, -5, "0", "15"), (10, 22, "14.5", "15")),
    *((15, 18, "10", "18"), (15, 40, "10", "0"), (15, 2, "10", "10.5")),
]
MOVES = [(12.5, 17.5, "15", "20"), (12.5, 2, "0", "5"), (12.5, 40, "25", "0")]


def test_dragging_marks_a_region_or_moves_its_edges_or_all_of_it(region: Region):
    # A drag inside the first region marks a new one; that is the visitor's own, so the next drag inside it moves it.
    region.drag(11, 13)
    region.says("11", "13")
    region.drag(12, 17)
    region.says("16", "18")
    for grab, drop, start, end in (*MARKS, *EDGES, *MOVES):
        region.reset()
        region.drag(grab, drop)
        region.says(start, end)
        assert region.seen(".chosen") == pytest.approx(
            (float(start), float(end) or SECONDS), abs=0.1
        ), (grab, drop)


@pytest.mark.slow
def test_fields_and_region_follow_each_other_without_the_server(region: Region):
    asked: list[str] = []
    region.page.on("request", lambda request: asked.append(request.url))
    spoken, wrong = region.root.locator("[aria-live]"), region.root.locator(".wrong")
    expect(spoken).to_contain_text("Region from 0:10.0 to 0:15.0, 0:05.0 long.")
    region.drag(2, 5, drop=False)
    expect(region.facts).to_have_text(re.compile(r"Start 0:02.0\s+End 0:05.0"))
    region.says("10", "15")
    expect(spoken).to_contain_text("0:10.0")
    region.page.mouse.up()
    region.says("2", "5")
    expect(spoken).to_contain_text("Region from 0:02.0 to 0:05.0, 0:03.0 long.")
    region.type("4.25", "15")
    region.says("4.25", "15", "0:04.3", "0:15.0", "0:10.8")
    expect(region.start).to_have_attribute("aria-valuenow", "4.25")
    assert region.seen(".chosen") == pytest.approx((4.25, 15), abs=0.1)
    region.fields[1].fill("0")
    region.says("4.25", "0", "0:04.3", "0:30.0", "0:25.8")
    region.type("0:04", "0:07.5")
    region.says("0:04", "0:07.5", "0:04.0", "0:07.5", "0:03.5")
    # What is wrong stays as it was typed, beside a message, until a drag mends it.
    for start, end in (("50", "10"), ("5", "5.4")):
        region.type(start, end)
        expect(wrong).to_contain_text("from 0 to 30 seconds")
        expect(region.facts).to_be_hidden()
        region.fields[1].blur()
        region.says(start, end)
        region.drag(20, 22)
        expect(wrong).to_be_hidden()
        expect(region.facts).to_be_visible()
    assert not asked


def test_keys_move_the_edges(region: Region):
    for handle, keys, fields, text in (
        ("start", ["ArrowRight"], ("10.1", "15"), "0:10.1"),
        ("start", ["ArrowLeft", "ArrowDown"], ("9.8", "15"), "0:09.8"),
        ("start", ["Shift+ArrowUp", "PageUp"], ("12", "15"), "0:12.0"),
        ("start", ["End", "ArrowRight"], ("14.5", "15"), "0:14.5"),
        ("start", ["Home", "PageDown"], ("0", "15"), "0:00.0"),
        ("end", ["ArrowRight", "ArrowUp"], ("10", "15.2"), "0:15.2"),
        ("end", ["Shift+ArrowLeft", "PageDown"], ("10", "13"), "0:13.0"),
        ("end", ["End", "PageUp"], ("10", "0"), "0:30.0"),
        ("end", ["Home", "ArrowLeft"], ("10", "10.5"), "0:10.5"),
        ("end", ["Control+ArrowRight", "a"], ("10", "15"), "0:15.0"),
    ):
        slider: Locator = getattr(region, handle)
        for key in keys:
            slider.press(key)
        region.says(*fields)
        expect(slider).to_have_attribute("aria-valuetext", text)
        region.reset()


# --- fingers ------------------------------------------------------------------------------------------------------


def touch(page: Page, *moments: list[tuple[float, float]]) -> None:
    """Put fingers down at the first places, move them over the others, and lift them."""
    session = page.context.new_cdp_session(page)
    for number, places in enumerate((*moments, [])):
        kind = "touchStart" if not number else "touchMove" if places else "touchEnd"
        points = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


@pytest.mark.slow
@pytest.mark.alters_page
def test_on_a_phone_handles_can_be_touched_one_finger_marks_or_scrolls_and_two_zoom(
    open_page: Callable[..., Region],
):
    shown = open_page(width=390, height=500)
    page = shown.page
    shown.root.scroll_into_view_if_needed()
    touch(page, *[[shown.at(second)] for second in (20, 22, 24, 26)])
    expect(shown.facts).not_to_contain_text("Start 0:10.0")
    marked = [field.input_value() for field in shown.fields]
    assert [*map(float, marked)] == pytest.approx((20, 26), abs=0.3)
    before = page.evaluate("scrollY")
    x, y = shown.at(5)
    touch(page, *[[(x, y - step)] for step in range(0, 120, 10)])
    page.wait_for_function("before => scrollY !== before", arg=before)
    shown.says(*marked)
    for start, end, length in (
        ("0", "0.5", "0:00.5"),
        ("29.5", "0", "0:00.5"),
        ("0", "0", "0:30.0"),
    ):
        shown.type(start, end)
        expect(shown.facts).to_contain_text(f"Length {length}")
        expect_tappable(shown.start, shown.end)
        stage = shown.stage.bounding_box()
        for box in (shown.start.bounding_box(), shown.end.bounding_box()):
            assert stage["x"] <= box["x"] and box["x"] + box["width"] <= stage["x"] + stage["width"]
    assert fits(page)
    shown.root.scroll_into_view_if_needed()
    width, y = shown.track.bounding_box()["width"], shown.at(15)[1]
    touch(page, *[[(195 - apart, y), (195 + apart, y)] for apart in (20, 40, 60, 80)])
    page.wait_for_function(
        "(width) => document.querySelector('.track').clientWidth > 3 * width", arg=width
    )
    shown.says("0", "0")


# --- playing ------------------------------------------------------------------------------------------------------

# Notes from where the player jumps back.
NOTE_ROUNDS = """() => {
  const audio = document.querySelector("#region audio");
  [window.rounds, window.last] = [[], 0];
  const look = () => {
    if (audio.currentTime < window.last - 0.3) window.rounds.push(window.last);
    window.last = audio.currentTime;
    requestAnimationFrame(look);
  };
  look();
}"""


@pytest.mark.slow
def test_the_region_plays_once_or_in_a_loop(region: Region):
    page, play, loop = region.page, region.button("Play region"), region.button("Loop")
    region.type("10", "11")
    region.says("10", "11", "0:10.0", "0:11.0", "0:01.0")
    region.start.press("Space")
    expect(region.button("Pause")).to_be_visible()
    # It stops at the end of the region and goes back to its start.
    expect(play).to_be_visible()
    assert region.root.locator("audio").evaluate("(p) => [p.currentTime, p.paused]") == [10, True]
    loop.click()
    expect(loop).to_have_attribute("aria-pressed", "true")
    page.evaluate(NOTE_ROUNDS)
    play.click()
    page.wait_for_function("() => window.rounds.length >= 2")
    assert max(page.evaluate("window.rounds")) < SECONDS / 2
    region.end.press("Space")
    expect(play).to_be_visible()
    # A click moves the playhead, and the next press plays from there.
    page.mouse.click(*region.at(20))
    expect(region.root.locator(".now")).to_have_text(re.compile(r"0:(19\.9|20\.[01])"))
    assert region.seen(".head")[0] == pytest.approx(20, abs=0.2)
    region.says("10", "11")
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('#region audio').currentTime > 20.2")
    page.keyboard.press("Space")


# --- zoom ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_is_zoomed_by_buttons_keys_and_the_wheel(region: Region):
    page = region.page

    def wide() -> float:
        return region.track.bounding_box()["width"]

    assert violations(page) == []
    expect(region.overview).to_be_hidden()
    expect(region.button("Zoom out")).to_have_attribute("aria-disabled", "true")
    width = wide()
    region.button("Zoom in").click()
    assert wide() == pytest.approx(2 * width, rel=0.01)
    region.start.press("+")
    assert wide() == pytest.approx(4 * width, rel=0.01)
    # The point under the pointer stays where it is, and the page does not zoom.
    stage = region.stage.bounding_box()
    x = stage["x"] + 100
    page.mouse.move(x, stage["y"] + 12)
    there = (x - region.track.bounding_box()["x"]) / wide()
    page.keyboard.down("Control")
    page.mouse.wheel(0, -50)
    page.keyboard.up("Control")
    page.wait_for_function(
        "(width) => document.querySelector('.track').clientWidth > 5 * width", arg=width
    )
    assert (x - region.track.bounding_box()["x"]) / wide() == pytest.approx(there, abs=0.005)
    # Keys on the overview move the view.
    assert violations(page) == []
    region.overview.press("Home")
    expect(region.root.locator(".scale")).to_contain_text("0:00.0")
    region.overview.press("ArrowRight")
    assert region.seen(".stage")[0] > 0.5
    region.overview.press("End")
    assert region.seen(".stage")[1] == pytest.approx(SECONDS, abs=0.7)
    expect(region.overview).to_have_attribute("aria-valuetext", re.compile("to 0:30.0"))
    # An edge moved by keys comes into view, and a drag marks what it covers.
    region.start.press("ArrowRight")
    start, end = region.seen(".stage")
    assert start < 10.1 < end
    region.type("0", "0.5")
    region.overview.press("End")
    region.drag(28, 29)
    region.says("28", "29")
    for _ in range(4):
        region.end.press("-")
    expect(region.overview).to_be_hidden()
    assert wide() == pytest.approx(width)
    expect_tappable(*region.root.get_by_role("button").all())


# --- beats --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_edges_snap_to_the_beats_of_a_known_tempo(open_page: Callable[..., Region]):
    shown = open_page("clicks", width=1280)
    beats = [0.23 + each * 60 / 99.5 for each in range(49)]
    snap = shown.button("Snap to beats")
    expect(snap).to_be_hidden()
    expect(shown.root).to_contain_text("Enter BPM under Song details to snap to beats.")
    expect(shown.root.locator(".keys")).not_to_contain_text("Snap to beats")
    # The typed tempo is slightly off.
    shown.page.locator("#bpm textarea, #bpm input").fill("100")
    expect(snap).to_have_text("Snap to beats (100 BPM)")
    expect(shown.root.locator(".keys")).to_contain_text("with “Snap to beats” to the next beat")
    shown.drag(20.05, 22.1)
    shown.says("20.1", "22.1")
    snap.click()
    expect(shown.root.locator(".beats")).to_be_visible()
    for start, end in ((3.1, 6.2), (22.3, 26.9)):
        shown.drag(start, end)
        for asked, field in zip((start, end), shown.fields, strict=True):
            nearest = min(beats, key=lambda beat: abs(beat - asked))
            assert float(field.input_value()) == pytest.approx(nearest, abs=0.03)
    at = next(index for index, beat in enumerate(beats) if beat > 22)
    first = float(shown.fields[0].input_value())
    shown.start.press("ArrowRight")
    expect(shown.fields[0]).not_to_have_value(f"{first:g}")
    assert float(shown.fields[0].input_value()) - first == pytest.approx(
        beats[at + 1] - beats[at], abs=0.05
    )
