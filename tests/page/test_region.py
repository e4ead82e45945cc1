"""The region on a waveform: dragged, typed and moved by keys, with two fields that always say the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Locator, Page, expect

import region
import theme

SECONDS = 30


def song(path: Path, seconds: float) -> str:
    """Write a file of that length with something to see in it."""
    time = np.arange(round(seconds * 44_100)) / 44_100
    soundfile.write(path, 0.6 * np.sin(2 * np.pi * 220 * time) * np.abs(np.sin(2 * time)), 44_100)
    return str(path)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return files by name."""
    folder = tmp_path_factory.mktemp("songs")
    (folder / "words.wav").write_text("no audio at all")
    lengths = {"song": SECONDS, "other": 12, "odd": 12.3456, "short": 1, "tune": 400}
    made = {name: song(folder / f"{name}.wav", seconds) for name, seconds in lengths.items()}
    return {**made, "words": str(folder / "words.wav")}


@pytest.fixture(scope="module")
def address(songs: dict[str, str]) -> Iterator[str]:
    """Serve a page with two regions: one over number boxes, one over text boxes in a tab of its own."""
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.HTML("Model: none", elem_id="studio-status")  # what `visit` waits for
        with gr.Tab("Numbers"):
            source = gr.Audio(sources=["upload"], type="filepath", elem_id="source", editable=False)
            hand_over = gr.Button("Hand over")
            with gr.Column() as place:
                pass
            with gr.Row():
                fields = [gr.Number(label=name, value=0, elem_id=name.lower()) for name in ("Start", "End")]
            with place:
                selector = region.region_selector(*fields)
            region.follow(selector, source, *fields)
            hand_over.click(lambda: songs["other"], None, source)
        with gr.Tab("Texts"):
            file = gr.File(elem_id="file")
            texts = [gr.Textbox(label=f"{name} as text", elem_id=f"text-{name.lower()}") for name in ("Start", "End")]
            region.follow(region.region_selector(*texts, elem_id="second"), file, *texts)
    _, url, _ = demo.launch(
        server_name="127.0.0.1",
        theme=theme.theme(),
        css=theme.css(),
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    yield url
    demo.close()


class Region:
    """One region on the page, its fields and its source."""

    def __init__(self, page: Page, root: str = "#region", fields: tuple[str, str] = ("#start", "#end")):
        self.page = page
        self.root = page.locator(root)
        self.fields = [page.locator(f"{name} input, {name} textarea") for name in fields]
        self.start = self.root.get_by_role("slider", name="Start of the region")
        self.end = self.root.get_by_role("slider", name="End of the region")
        self.facts = self.root.locator(".facts")
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
        if source == "song":
            shown.says("10", "15", label=("0:10.0", "0:15.0", "0:05.0"))
        return shown

    return open_page


@pytest.fixture
def region_on(open_page: Callable[..., Region]) -> Region:
    """Return the region of the 30 seconds, wide enough that a drag between two handles meets neither."""
    return open_page(width=1280)


# --- sources ------------------------------------------------------------------------------------------------------


def test_before_there_is_a_source_one_line_says_what_comes(open_page: Callable[..., Region]):
    shown = open_page(source=None)
    expect(shown.root).to_contain_text("waveform appears here")
    expect(shown.root.get_by_role("slider")).to_have_count(0)
    shown.says("0", "0")


def test_a_new_source_begins_anew_and_none_clears(region_on: Region, songs: dict[str, str]):
    page = region_on.page
    first = region_on.root.locator(".wave path").first.get_attribute("d")
    region_on.drag(20, 25)
    region_on.says("20", "25")
    page.get_by_role("button", name="Hand over").click()
    region_on.says("4", "6", label=("0:04.0", "0:06.0", "0:02.0"))
    expect(region_on.root.locator(".wave path").first).not_to_have_attribute("d", first)
    page.locator("#source").get_by_label("Clear").click()
    region_on.says("0", "0")
    expect(region_on.root).to_contain_text("waveform appears here")
    choose(page, songs["short"])
    region_on.says("0.3", "0.8", label=("0:00.3", "0:00.8", "0:00.5"))


@pytest.mark.slow
def test_the_region_is_still_there_after_another_tab(region_on: Region):
    region_on.drag(3, 6)
    region_on.says("3", "6")
    region_on.page.get_by_role("tab", name="Texts").click()
    expect(region_on.start).to_be_hidden()
    region_on.page.get_by_role("tab", name="Numbers").click()
    region_on.says("3", "6", label=("0:03.0", "0:06.0", "0:03.0"))
    region_on.drag(20, 22)
    region_on.says("20", "22")


@pytest.mark.slow
def test_two_regions_know_nothing_of_each_other_and_fields_may_be_text_boxes(region_on: Region, songs: dict[str, str]):
    page = region_on.page
    page.get_by_role("tab", name="Texts").click()
    second = Region(page, "#second", ("#text-start", "#text-end"))
    page.locator("#file input[type=file]").set_input_files(songs["other"])
    second.seconds = 12
    second.says("4", "6", label=("0:04.0", "0:06.0", "0:02.0"))
    second.drag(8, 10)
    second.says("8", "10")
    second.fields[0].fill("2,5")
    second.says("2,5", "10", label=("0:02.5", "0:10.0", "0:07.5"))
    second.fields[1].fill("soon")
    expect(second.root.locator(".wrong")).to_be_visible()
    second.fields[0].fill("")
    second.fields[1].fill("")
    second.says("", "", label=("0:00.0", "0:12.0", "0:12.0"))
    page.get_by_role("tab", name="Numbers").click()
    region_on.says("10", "15", label=("0:10.0", "0:15.0", "0:05.0"))


def test_a_file_that_cannot_be_read_has_no_waveform(region_on: Region, songs: dict[str, str]):
    page = region_on.page
    page.get_by_role("tab", name="Texts").click()
    page.locator("#file input[type=file]").set_input_files(songs["words"])
    second = Region(page, "#second", ("#text-start", "#text-end"))
    expect(second.root).to_contain_text("no waveform")
    expect(second.start).to_be_hidden()
    second.says("0", "0")


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


def test_a_click_chooses_nothing(region_on: Region):
    for seconds in (3, 12):
        region_on.page.mouse.click(*region_on.at(seconds))
    region_on.drag(20, 22)
    region_on.says("20", "22")


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


def test_a_region_without_room_to_move_is_marked_anew(region_on: Region):
    region_on.type("0", "0")
    expect(region_on.facts).to_contain_text("Length 0:30.0")
    region_on.drag(5, 9)
    region_on.says("5", "9")


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


def test_typing_moves_the_region(region_on: Region):
    region_on.fields[0].fill("4.25")
    region_on.says("4.25", "15", label=("0:04.3", "0:15.0", "0:10.8"))
    expect(region_on.start).to_have_attribute("aria-valuenow", "4.25")
    assert region_on.drawn() == pytest.approx((4.25, 15), abs=0.1)
    region_on.fields[1].fill("0")
    region_on.says("4.25", "0", label=("0:04.3", "0:30.0", "0:25.8"))
    region_on.fields[1].fill("29.9")
    region_on.says("4.25", "29.9", label=("0:04.3", "0:29.9", "0:25.7"))


def test_what_is_no_region_is_said_and_left_as_typed(region_on: Region):
    wrong = region_on.root.locator(".wrong")
    for start, end in (("50", "10"), ("-5", "9999"), ("5", "5.4"), ("29.8", "0"), ("12", "3")):
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


def test_edges_are_reached_by_tab_and_say_their_range(region_on: Region):
    region_on.fields[0].focus()
    region_on.page.keyboard.press("Shift+Tab")
    expect(region_on.end).to_be_focused()
    region_on.page.keyboard.press("Shift+Tab")
    expect(region_on.start).to_be_focused()
    for slider, low, high in ((region_on.start, "0", "14.5"), (region_on.end, "10.5", "30")):
        expect(slider).to_have_attribute("aria-valuemin", low)
        expect(slider).to_have_attribute("aria-valuemax", high)
    ring = "name => getComputedStyle(document.querySelector(`#region .edge.${name}`), '::after').outlineStyle"
    assert [region_on.page.evaluate(ring, name) for name in ("start", "end")] == ["solid", "none"]


def test_a_dragged_edge_can_be_moved_on_by_keys(region_on: Region):
    region_on.drag(15, 20)
    region_on.says("10", "20")
    region_on.page.keyboard.press("ArrowRight")
    region_on.says("10", "20.1")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_edges_are_big_enough_to_touch_wherever_they_are(open_page: Callable[..., Region], width: int):
    shown = open_page(width=width)
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
    assert shown.page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.slow
def test_a_narrow_region_at_an_end_is_widened_by_its_grip(open_page: Callable[..., Region]):
    shown = open_page(width=390)
    grip = 6 * SECONDS / shown.root.locator(".track").bounding_box()["width"]  # outside of the edge, in seconds
    for start, end, grab, way in (("0", "0.5", 0.5 + grip, 8), ("29.5", "0", 29.5 - grip, -8)):
        shown.type(start, end)
        expect(shown.facts).to_contain_text("Length 0:00.5")
        shown.drag(grab, grab + way)
        expect(shown.facts).to_contain_text(re.compile(r"Length 0:08\.[3-7]"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_waveform_stands_out_in_both_themes_and_nothing_moves_by_itself(
    open_page: Callable[..., Region], mode: str
):
    shown = open_page(query=f"?__theme={mode}")
    side = ["light", "dark"].index(mode)

    def colour(selector: str, name: str) -> str:
        return shown.root.locator(selector).evaluate(f"element => getComputedStyle(element).{name}")

    def token(name: str) -> str:
        digits = theme.TOKENS[name][side].lstrip("#")
        return f"rgb({', '.join(str(int(digits[at : at + 2], 16)) for at in (0, 2, 4))})"

    assert colour(".wave:not(.inside) path", "fill") == token("line-strong")
    assert colour(".wave.inside path", "fill") == token("accent")
    assert colour(".stage", "backgroundColor") == token("raised")
    moving = """element => [...element.querySelectorAll('*')].filter((each) => {
        const style = getComputedStyle(each);
        return style.transitionDuration !== '0s' || style.animationName !== 'none';
    }).length"""
    assert shown.root.locator(".region").evaluate(moving) == 0


def test_the_waveform_follows_the_width_of_the_page(region_on: Region):
    def share() -> Any:
        return region_on.root.evaluate(
            """root => {
                const [stage, track, wave] = ['.stage', '.track', '.wave path'].map(
                    (name) => root.querySelector(name).getBoundingClientRect());
                return [Math.round(wave.width) - Math.round(track.width), stage.width <= innerWidth];
            }"""
        )

    for width in (1280, 390, 900):
        region_on.page.set_viewport_size({"width": width, "height": 800})
        difference, fits = share()
        assert abs(difference) <= 2
        assert fits
        assert region_on.drawn() == pytest.approx((10, 15), abs=0.1)
