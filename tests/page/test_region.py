"""The region on a waveform: dragged, typed and moved by keys, with two fields that always say the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Locator, Page, expect

import page_region
import theme
from tests.page.steps import violations

SECONDS = 30
FIELDS = {"Start": "0", "End": "0", "BPM": ""}


def song(path: Path, seconds: float) -> str:
    """Write a file of that length with something to see in it."""
    time = np.arange(round(seconds * 44_100)) / 44_100
    soundfile.write(path, 0.6 * np.sin(2 * np.pi * 220 * time) * np.abs(np.sin(2 * time)), 44_100)
    return str(path)


def clicks(path: Path, bpm: float, first: float) -> str:
    """Write half a minute of short bursts, one a beat, the first at a time in seconds."""
    samples = np.random.default_rng(1).normal(0, 0.001, SECONDS * 44_100)
    for beat in np.arange(first, SECONDS - 0.05, 60 / bpm):
        at = round(beat * 44_100)
        samples[at : at + 1000] += 0.6 * np.sin(np.arange(1000) * 0.4) * np.linspace(1, 0, 1000)
    soundfile.write(path, samples, 44_100)
    return str(path)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return files by name."""
    folder = tmp_path_factory.mktemp("songs")
    (folder / "words.wav").write_text("no audio at all")
    lengths = {"song": SECONDS, "other": 12, "odd": 12.3456}
    made = {name: song(folder / f"{name}.wav", seconds) for name, seconds in lengths.items()}
    made["clicks"] = clicks(folder / "clicks.wav", 99.5, 0.23)
    return {**made, "words": str(folder / "words.wav")}


@pytest.fixture(scope="module")
def address(songs: dict[str, str]) -> Iterator[str]:
    """Serve a page with one region over two boxes."""
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.HTML("Model: none", elem_id="studio-status")  # what `visit` waits for
        source = gr.File(elem_id="source")
        hand_over = gr.Button("Hand over")
        with gr.Column() as place:
            pass
        with gr.Row():
            fields = [gr.Textbox(value, label=name, elem_id=name.lower()) for name, value in FIELDS.items()]
        with place:
            selector = page_region.region_selector()
        page_region.connect(selector, source, *fields)
        hand_over.click(lambda: songs["other"], None, source)
    _, url, _ = demo.launch(
        server_name="127.0.0.1",
        theme=theme.theme(),
        css=theme.css(),
        head=theme.head(),
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    yield url
    demo.close()


class Region:
    """One region on the page, its fields and its source."""

    def __init__(self, page: Page):
        self.page = page
        self.root = page.locator("#region")
        self.fields = [page.locator(f"{name} input, {name} textarea") for name in ("#start", "#end")]
        self.start = self.root.get_by_role("slider", name="Start of the region")
        self.end = self.root.get_by_role("slider", name="End of the region")
        self.facts = self.root.locator(".facts")
        self.stage, self.track = (self.root.locator(name) for name in (".stage", ".track"))
        self.overview = self.root.get_by_role("slider", name="Part in view")
        self.seconds = SECONDS

    def at(self, seconds: float) -> tuple[float, float]:
        """Return where a time is on the screen, at a height where no grip is."""
        box = self.root.locator(".track").bounding_box()
        return box["x"] + box["width"] * seconds / self.seconds, box["y"] + 12

    def drag(self, start: float, end: float, drop: bool = True) -> None:
        """Drag with the mouse from one time to another."""
        mouse = self.page.mouse
        mouse.move(*self.at(start))
        mouse.down()
        mouse.move(*self.at((start + end) / 2))
        mouse.move(*self.at(end), steps=5)
        if drop:
            mouse.up()

    def says(self, start: str, end: str, *, label: tuple[str, str, str] | None = None) -> None:
        """Expect what stands in the fields, and on the label."""
        expect(self.fields[0]).to_have_value(start)
        expect(self.fields[1]).to_have_value(end)
        if label:
            expect(self.facts).to_have_text(re.compile(r"\s*Start {}\s+End {}\s+Length {}\s*".format(*label)))

    def type(self, start: str, end: str) -> None:
        """Type into both fields."""
        for field, text in zip(self.fields, (start, end), strict=True):
            field.fill(text)

    def reset(self) -> None:
        """Be from 10 to 15 seconds again."""
        self.type("10", "15")
        self.says("10", "15", label=("0:10.0", "0:15.0", "0:05.0"))

    def drawn(self) -> tuple[float, float]:
        """Return the seconds between which the region is drawn."""
        track, chosen = (self.root.locator(name).bounding_box() for name in (".track", ".chosen"))
        scale = self.seconds / track["width"]
        start = (chosen["x"] - track["x"]) * scale
        return start, start + chosen["width"] * scale


def choose(page: Page, path: str) -> None:
    """Upload a source."""
    page.locator("#source input[type=file]").set_input_files(path)


@pytest.fixture
def open_page(visit: Callable[..., Page], address: str, songs: dict[str, str]) -> Callable[..., Region]:
    """Return a function that opens the page with a source of 30 seconds, its region from 10 to 15."""

    def open_page(source: str | None = "song", query: str = "", **size: int) -> Region:
        page = visit(address + query, **size)
        shown = Region(page)
        if source:
            choose(page, songs[source])
            expect(shown.start).to_be_visible()
        if source in ("song", "clicks"):
            shown.says("10", "15", label=("0:10.0", "0:15.0", "0:05.0"))
        return shown

    return open_page


@pytest.fixture
def region_on(open_page: Callable[..., Region]) -> Region:
    """Return the region of the 30 seconds, wide enough that a drag between two handles meets neither."""
    return open_page(width=1280)


# --- sources ------------------------------------------------------------------------------------------------------


def test_a_new_source_begins_anew_and_none_clears(open_page: Callable[..., Region], songs: dict[str, str]):
    shown = open_page(source=None)
    page = shown.page
    expect(shown.root).to_contain_text("waveform appears here")
    expect(shown.root.get_by_role("slider")).to_have_count(0)
    choose(page, songs["song"])
    shown.says("10", "15")
    first = shown.root.locator(".wave path").first.get_attribute("d")
    shown.drag(20, 25)
    shown.says("20", "25")
    page.get_by_role("button", name="Hand over").click()
    shown.says("4", "6", label=("0:04.0", "0:06.0", "0:02.0"))
    expect(shown.root.locator(".wave path").first).not_to_have_attribute("d", first)
    shown.fields[0].fill("5")
    with page.expect_response("**/run/predict"), page.expect_response("**/run/predict"):
        page.get_by_role("button", name="Hand over").click()
    shown.says("5", "6", label=("0:05.0", "0:06.0", "0:01.0"))
    page.locator("#source").get_by_label("Clear").click()
    shown.says("0", "0")
    expect(shown.root).to_contain_text("waveform appears here")
    choose(page, songs["words"])
    expect(shown.root).to_contain_text("no waveform")
    expect(shown.start).to_be_hidden()


# --- dragging -----------------------------------------------------------------------------------------------------


def test_dragging_marks_a_region(region_on: Region):
    for start, end, fields in (
        (2, 5, ("2", "5")),
        (8, 6.5, ("6.5", "8")),
        (20.3, 20.4, ("20.3", "20.8")),
        (20.3, 20.1, ("19.8", "20.3")),
        (25, 40, ("25", "0")),
        (3, -9, ("0", "3")),
    ):
        region_on.drag(start, end)
        region_on.says(*fields)
        assert region_on.drawn() == pytest.approx((float(fields[0]), float(fields[1]) or SECONDS), abs=0.1)
        region_on.reset()


def test_a_drag_inside_the_region_that_a_file_begins_with_marks_another(region_on: Region):
    region_on.drag(11, 13)
    region_on.says("11", "13")
    # By now it is the visitor's own, and can be moved.
    region_on.drag(12, 17)
    region_on.says("16", "18")


@pytest.mark.slow
def test_its_edges_and_its_middle_are_dragged(region_on: Region):
    for grab, drop, fields in (
        (10, 7, ("7", "15")),
        (10, -5, ("0", "15")),
        (10, 22, ("14.5", "15")),
        (15, 18, ("10", "18")),
        (15, 40, ("10", "0")),
        (15, 2, ("10", "10.5")),
        (12.5, 17.5, ("15", "20")),
        (12.5, 2, ("0", "5")),
        (12.5, 40, ("25", "0")),
    ):
        region_on.drag(grab, drop)
        region_on.says(*fields)
        region_on.reset()


@pytest.mark.slow
def test_fields_are_written_when_the_drag_ends_and_nothing_is_asked_of_the_server(region_on: Region):
    asked: list[str] = []
    region_on.page.on("request", lambda request: asked.append(request.url))
    said = region_on.root.locator("[aria-live]")
    expect(said).to_contain_text("Region from 0:10.0 to 0:15.0, 0:05.0 long.")
    region_on.drag(2, 5, drop=False)
    expect(region_on.facts).to_have_text(re.compile(r"Start 0:02.0\s+End 0:05.0"))
    region_on.says("10", "15")
    expect(said).to_contain_text("0:10.0")
    region_on.page.mouse.up()
    region_on.says("2", "5")
    expect(said).to_contain_text("Region from 0:02.0 to 0:05.0, 0:03.0 long.")
    region_on.start.press("ArrowRight")
    region_on.says("2.1", "5")
    region_on.fields[1].fill("7")
    expect(region_on.facts).to_contain_text("End 0:07.0")
    assert not asked


@pytest.mark.slow
def test_the_end_of_a_file_between_two_tenths_is_reached(open_page: Callable[..., Region]):
    shown = open_page("odd")
    shown.seconds = 12.3456
    shown.says("4.1", "6.2")
    shown.drag(6.2, 13)
    shown.says("4.1", "0", label=("0:04.1", "0:12.3", "0:08.2"))
    expect(shown.end).to_have_attribute("aria-valuenow", "12.346")
    shown.end.press("ArrowLeft")
    shown.says("4.1", "12.2")


def finger(page: Page, *points: tuple[float, float]) -> None:
    """Put a finger down on the first point, move it over the others, and lift it."""
    session = page.context.new_cdp_session(page)
    kinds = ["touchStart", *["touchMove"] * (len(points) - 1)]
    for kind, (x, y) in zip(kinds, points, strict=True):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


@pytest.mark.slow
def test_a_finger_marks_sideways_and_scrolls_up_and_down(open_page: Callable[..., Region]):
    shown = open_page(width=390, height=500)
    shown.root.scroll_into_view_if_needed()
    finger(shown.page, shown.at(20), shown.at(22), shown.at(24), shown.at(26))
    expect(shown.facts).not_to_contain_text("Start 0:10.0")
    start, end = (float(field.input_value()) for field in shown.fields)
    assert (start, end) == pytest.approx((20, 26), abs=0.3)
    before = shown.page.evaluate("scrollY")
    x, y = shown.at(5)
    finger(shown.page, *[(x, y - step) for step in range(0, 120, 10)])
    shown.page.wait_for_function("before => scrollY !== before", arg=before)
    assert [float(field.input_value()) for field in shown.fields] == [start, end]


# --- typing -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_typing_moves_the_region_and_what_is_none_is_said(region_on: Region):
    region_on.fields[0].fill("4.25")
    region_on.says("4.25", "15", label=("0:04.3", "0:15.0", "0:10.8"))
    expect(region_on.start).to_have_attribute("aria-valuenow", "4.25")
    assert region_on.drawn() == pytest.approx((4.25, 15), abs=0.1)
    region_on.fields[1].fill("0")
    region_on.says("4.25", "0", label=("0:04.3", "0:30.0", "0:25.8"))
    wrong = region_on.root.locator(".wrong")
    for start, end in (("50", "10"), ("5", "5.4")):
        region_on.type(start, end)
        expect(wrong).to_contain_text("from 0 to 30 seconds")
        expect(region_on.facts).to_be_hidden()
        region_on.fields[1].blur()
        region_on.says(start, end)
        region_on.drag(20, 22) if float(start) < 19 else region_on.drag(3, 5)
        expect(wrong).to_be_hidden()
        expect(region_on.facts).to_be_visible()
        region_on.reset()


# --- keyboard and eyes --------------------------------------------------------------------------------------------


def test_keys_move_the_edges(region_on: Region):
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
        slider: Locator = getattr(region_on, handle)
        for key in keys:
            slider.press(key)
        region_on.says(*fields)
        expect(slider).to_have_attribute("aria-valuetext", text)
        region_on.reset()


@pytest.mark.slow
def test_edges_are_big_enough_to_touch_wherever_they_are(open_page: Callable[..., Region]):
    shown = open_page(width=390)
    for start, end, length in (
        ("10", "15", "0:05.0"),
        ("0", "0.5", "0:00.5"),
        ("29.5", "0", "0:00.5"),
        ("0", "0", "0:30.0"),
    ):
        shown.type(start, end)
        expect(shown.facts).to_contain_text(f"Length {length}")
        stage = shown.root.locator(".stage").bounding_box()
        for slider in (shown.start, shown.end):
            box = slider.bounding_box()
            assert min(box["width"], box["height"]) >= 44
            assert box["x"] >= stage["x"]
            assert box["x"] + box["width"] <= stage["x"] + stage["width"]
    assert shown.page.evaluate("document.documentElement.scrollWidth") == 390


# --- hearing it ---------------------------------------------------------------------------------------------------


def heard(shown: Region) -> dict[str, float | bool]:
    """Return what the selector's player does."""
    return shown.root.locator("audio").evaluate("(p) => ({at: p.currentTime, paused: p.paused})")


@pytest.mark.slow
def test_the_region_plays_once_or_round_and_round(region_on: Region):
    page = region_on.page
    region_on.type("10", "11")
    region_on.says("10", "11", label=("0:10.0", "0:11.0", "0:01.0"))
    play = region_on.root.get_by_role("button", name="Play region")
    region_on.start.press("Space")
    expect(region_on.root.get_by_role("button", name="Pause")).to_be_visible()
    # The playhead moves.
    page.wait_for_function(
        """() => {
          const [head, track] = [".head", ".track"].map((name) => document.querySelector(name).getBoundingClientRect());
          const seconds = ((head.left + 1 - track.left) * 30) / track.width;
          return seconds > 10.2 && seconds < 11.1;
        }"""
    )
    # It ends where the region ends, and is ready to begin again.
    expect(play).to_be_visible()
    assert heard(region_on) == {"at": 10, "paused": True}
    loop = region_on.root.get_by_role("button", name="Loop")
    loop.click()
    expect(loop).to_have_attribute("aria-pressed", "true")
    page.evaluate(ROUNDS)
    play.click()
    page.wait_for_function("() => window.rounds.length >= 2")
    assert max(page.evaluate("window.furthest")) < 11.3
    region_on.end.press("Space")
    expect(play).to_be_visible()
    # A click puts the playhead there, and the next press begins there.
    page.mouse.click(*region_on.at(20))
    expect(region_on.root.locator(".now")).to_have_text(re.compile(r"0:(19\.9|20\.[01])"))
    region_on.says("10", "11")
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('#region audio').currentTime > 20.2")
    page.keyboard.press("Space")


# Notes how often the player jumps back, and how far it comes.
ROUNDS = """() => {
  const audio = document.querySelector("#region audio");
  [window.rounds, window.furthest, window.last] = [[], [], 0];
  const look = () => {
    if (audio.currentTime < window.last - 0.3) window.rounds.push(window.last);
    window.furthest.push(audio.currentTime);
    window.last = audio.currentTime;
    requestAnimationFrame(look);
  };
  look();
}"""


# --- a closer look ------------------------------------------------------------------------------------------------


def view(shown: Region) -> tuple[float, float]:
    """Return the seconds that the stage shows."""
    stage, track = (each.bounding_box() for each in (shown.stage, shown.track))
    start = (stage["x"] - track["x"]) * SECONDS / track["width"]
    return start, start + stage["width"] * SECONDS / track["width"]


@pytest.mark.slow
def test_it_is_zoomed_by_buttons_keys_and_the_wheel(region_on: Region):
    page, stage = region_on.page, region_on.stage
    assert violations(page) == []
    expect(region_on.overview).to_be_hidden()
    less, more = (region_on.root.get_by_role("button", name=name) for name in ("Zoom out", "Zoom in"))
    expect(less).to_have_attribute("aria-disabled", "true")
    width = region_on.track.bounding_box()["width"]
    more.click()
    assert region_on.track.bounding_box()["width"] == pytest.approx(2 * width, rel=0.01)
    region_on.start.press("+")
    assert region_on.track.bounding_box()["width"] == pytest.approx(4 * width, rel=0.01)
    # What is under the pointer stays there, and the page does not zoom.
    x, y = stage.bounding_box()["x"] + 100, stage.bounding_box()["y"] + 12
    page.mouse.move(x, y)
    there = (x - region_on.track.bounding_box()["x"]) / region_on.track.bounding_box()["width"]
    page.keyboard.down("Control")
    page.mouse.wheel(0, -50)
    page.keyboard.up("Control")
    page.wait_for_function("(width) => document.querySelector('.track').clientWidth > 5 * width", arg=width)
    box = region_on.track.bounding_box()
    assert (x - box["x"]) / box["width"] == pytest.approx(there, abs=0.005)
    # The overview moves what is in view, by keys and by pointing.
    assert violations(page) == []
    region_on.overview.press("Home")
    expect(region_on.root.locator(".scale")).to_contain_text("0:00.0")
    region_on.overview.press("ArrowRight")
    assert view(region_on)[0] > 0.5
    region_on.overview.press("End")
    assert view(region_on)[1] == pytest.approx(SECONDS, abs=0.7)
    expect(region_on.overview).to_have_attribute("aria-valuetext", re.compile("to 0:30.0"))
    # An edge that is moved by keys comes into view, and a drag marks what it covers.
    region_on.start.press("ArrowRight")
    start, end = view(region_on)
    assert start < 10.1 < end
    region_on.type("0", "0.5")
    region_on.overview.press("End")
    region_on.drag(28, 29)
    region_on.says("28", "29")
    for _ in range(4):
        region_on.end.press("-")
    expect(region_on.overview).to_be_hidden()
    assert region_on.track.bounding_box()["width"] == pytest.approx(width)
    for button in region_on.root.get_by_role("button").all():
        assert not button.is_visible() or min(button.bounding_box()["width"], button.bounding_box()["height"]) >= 44


@pytest.mark.slow
def test_two_fingers_zoom_and_mark_nothing(open_page: Callable[..., Region]):
    shown = open_page(width=390)
    shown.root.scroll_into_view_if_needed()
    width = shown.track.bounding_box()["width"]
    session = shown.page.context.new_cdp_session(shown.page)
    y = shown.at(15)[1]
    for kind, apart in (
        ("touchStart", 20),
        ("touchMove", 40),
        ("touchMove", 60),
        ("touchMove", 80),
        ("touchEnd", None),
    ):
        points = [{"x": 195 - apart, "y": y, "id": 0}, {"x": 195 + apart, "y": y, "id": 1}] if apart else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    shown.page.wait_for_function("(width) => document.querySelector('.track').clientWidth > 3 * width", arg=width)
    shown.says("10", "15")


# --- beats --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_edges_snap_to_the_beats_of_a_known_tempo(open_page: Callable[..., Region]):
    shown = open_page("clicks", width=1280)
    beats = [0.23 + each * 60 / 99.5 for each in range(49)]
    snap = shown.root.get_by_role("button", name="Snap to beats")
    expect(snap).to_be_hidden()
    expect(shown.root).to_contain_text("Enter BPM under Song details to snap to beats.")
    # The tempo that was typed is a little off.
    shown.page.locator("#bpm textarea, #bpm input").fill("100")
    expect(snap).to_have_text("Snap to beats (100 BPM)")
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
    assert float(shown.fields[0].input_value()) - first == pytest.approx(beats[at + 1] - beats[at], abs=0.05)
