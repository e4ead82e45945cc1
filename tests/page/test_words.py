"""Words: the Lyrics tab, the planner's controls and its help, and the advice under the lyrics."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import tooltips
from events import Draft, Event, Failed, Problem, Progress
from params import parse_request
from status import LanguageModelStatus, SongwriterStatus
from tests.page.conftest import LYRICS
from tests.page.steps import MARKUP, Tab, expect_plain, read, reload

LYRICS_CONTROLS = {
    "brief": ("type", "a lighthouse", "a lighthouse"),
    "structure": ("choose", "Ballad", "Ballad"),
    "language": ("choose", "German", "de"),
    "tone": ("type", "quiet", "quiet"),
    "options.temperature": ("slide", "0.35", 0.35),
    "options.top_p": ("slide", "0.5", 0.5),
    "options.max_tokens": ("type", "64", 64),
    "seed": ("type", "0", 0),
}


def endless_lyrics(request: Any) -> Iterator[Event]:
    lines: list[str] = []
    while True:
        lines.append(f"line {len(lines)}")
        yield Draft("\n".join(lines), len(lines))
        time.sleep(0.2)


# --- the Lyrics tab -----------------------------------------------------------------------------------------------


def as_new(opened: Tab, name: str) -> Tab:
    """Reset a tab, and type "a song" as its first words."""
    opened.set(name, "type", "old")
    opened.part("reset").click()
    expect(opened.text(name)).to_have_value("")
    opened.set(name, "type", "a song")
    return opened


@pytest.fixture
def lyrics(lasting: Page, tab) -> Tab:
    """Open the Lyrics tab with a brief and nothing written."""
    opened = as_new(tab(lasting, "lyrics"), "brief")
    opened.text("text").fill("")
    return opened


@pytest.fixture
def generate(lasting: Page, tab) -> Tab:
    return as_new(tab(lasting, "generate"), "prompt")


def written(opened: Tab, fake: Any) -> Any:
    """Press the button and return the request that reached the backend."""
    # The line of the run before says the same.
    opened.progress.evaluate("(line) => line.querySelector('.progress-line')?.remove()")
    opened.go.click()
    expect(opened.progress).to_contain_text("Written in 0:")
    expect(opened.go).to_be_enabled()
    return fake.requests[-1]


@pytest.mark.slow
def test_on_a_phone_lyrics_come_into_sight_as_they_are_written(fake, fake_address, visit, tab):
    lyrics = tab(visit(fake_address[0], 390, 844), "lyrics")
    text = lyrics.text("text")
    lyrics.text("brief").fill("a song")
    expect(text).not_to_be_in_viewport()
    long = "\n".join(["[Verse]", *(f"line {number} of the song" for number in range(60))])
    halfway = threading.Event()

    def write(request: Any) -> Iterator[Event]:
        yield Draft(long[:-1], 1)
        assert halfway.wait(100)
        yield from fake.lyrics(request, long)

    fake.script = write
    lyrics.go.click()
    expect(text).to_have_value(long[:-1])
    expect(text).to_be_in_viewport(ratio=0.9)
    # What stops the songwriter is beside it, and what makes it a song waits for its end.
    expect(lyrics.part("assist-cancel")).to_have_text(tooltips.STOP)
    expect(lyrics.part("sing")).to_be_disabled()
    at_the_end = (
        "(box) => box.scrollTop > 0 && box.scrollHeight - box.clientHeight - box.scrollTop < 60"
    )
    lyrics.page.wait_for_function(at_the_end, arg=text.element_handle())
    halfway.set()
    # Then they are read from their beginning.
    expect(lyrics.part("sing")).to_be_enabled()
    expect(lyrics.part("sing")).to_be_in_viewport(ratio=1)
    expect(text).to_be_in_viewport(ratio=0.9)
    lyrics.page.wait_for_function("(box) => box.scrollTop === 0", arg=text.element_handle())
    expect(text).to_have_value(long)
    # Whoever writes is left where they are, and the lyrics of before are none that were asked for.
    lyrics.page.evaluate("scrollTo(0, 0)")
    typing = threading.Event()

    def more(request: Any) -> Iterator[Event]:
        yield Progress("loading")
        assert typing.wait(100)
        yield from fake.lyrics(request, text="[Verse]\nmore")

    fake.script = more
    lyrics.go.click()
    expect(lyrics.progress).to_contain_text(tooltips.STAGES["loading"])
    expect(text).not_to_be_in_viewport()
    lyrics.text("brief").click()
    typing.set()
    expect(text).to_have_value("[Verse]\nmore")
    expect(text).not_to_be_in_viewport()


@pytest.mark.slow
def test_each_lyrics_control_reaches_the_request_and_a_wrong_value_has_its_message(
    lyrics: Tab, fake
):
    plain = written(lyrics, fake)
    assert plain == parse_request("lyrics", {"brief": "a song"})
    lyrics.set_all(LYRICS_CONTROLS)
    request = written(lyrics, fake)
    for name, (_, _, expected) in LYRICS_CONTROLS.items():
        assert read(request, name) == expected != read(plain, name), name
    asked = len(fake.requests)
    lyrics.set("brief", "type", "")
    lyrics.set("options.max_tokens", "type", "0")
    lyrics.unfold(opened=False)
    lyrics.go.click()
    expect(lyrics.field("brief")).to_contain_text(
        "Brief is empty: say what the song is about, in up to 2,000 characters."
    )
    expect(lyrics.field("options.max_tokens")).to_contain_text(
        "Max length must be a whole number from 16 to 2048"
    )
    expect(lyrics.field("options.max_tokens")).to_be_visible()
    expect(lyrics.part("problems")).to_contain_text(
        "Please check “What the song is about” and “Max length (tokens)”."
    )
    expect(lyrics.go).to_be_enabled()
    # The line goes with the next change, and comes back with the next press.
    lyrics.set("tone", "type", "warm")
    expect(lyrics.part("problems")).to_be_hidden()
    lyrics.go.click()
    expect(lyrics.part("problems")).to_be_visible()
    assert len(fake.requests) == asked


def test_lyrics_appear_as_they_are_written_and_stop_keeps_them(lyrics: Tab, fake):
    fake.script = endless_lyrics
    text = lyrics.text("text")
    lyrics.go.click()
    expect(lyrics.progress).to_contain_text(re.compile(r"Writing, \d+ tokens, 0:\d\d so far\."))
    expect(text).to_have_value(re.compile("line 40"))
    # The box scrolls along.
    hidden = "(box) => box.scrollHeight - box.clientHeight - box.scrollTop"
    lyrics.page.wait_for_function(f"(box) => ({hidden})(box) < 60", arg=text.element_handle())
    expect(lyrics.go).to_be_disabled()
    lyrics.part("cancel").click()
    expect(lyrics.progress).to_contain_text(tooltips.LYRICS_STOPPED)
    assert fake.closed.wait(100)
    kept = text.input_value()
    assert "line 40" in kept
    expect(lyrics.go).to_be_enabled()
    expect(lyrics.part("use")).to_be_enabled()
    text.fill(f"{kept}\nmine")
    # The next lyrics replace it, and Undo restores it.
    fake.script = fake.play
    written(lyrics, fake)
    expect(text).to_have_value(re.compile("The lamp goes round"))
    lyrics.part("undo").click()
    expect(text).to_have_value(f"{kept}\nmine")


@pytest.mark.slow
def test_lyrics_go_to_generate_with_their_language(lyrics: Tab, fake, tab):
    page, markup = lyrics.page, f"[Verse]\n{MARKUP}"
    generate = tab(page, "generate")
    generate.set("lyrics", "type", "[Verse]\nmy own")
    generate.set("instrumental", "tick", True)
    lyrics = tab(page, "lyrics")
    expect(lyrics.part("use")).to_be_disabled()
    lyrics.set("language", "choose", "French")
    fake.script = partial(fake.lyrics, text=markup)
    written(lyrics, fake)
    lyrics.part("use").click()
    expect(generate.go).to_be_visible()
    expect(page.locator("#studio-tabs")).to_be_in_viewport()
    expect(generate.text("lyrics")).to_have_value(markup)
    expect(generate.text("lyrics")).to_be_enabled()
    fake.script = fake.play
    request = generate.made(fake)
    # The words are sung without their markup; the page keeps them as they were written.
    sung = parse_request("generate", {"prompt": "a song", "lyrics": markup}).lyrics
    assert "{{value}} ${1+1}" in sung and "<b>" not in sung
    assert (request.language, request.instrumental, request.lyrics) == ("fr", False, sung)
    generate.part("undo").click()
    expect(generate.text("lyrics")).to_have_value("[Verse]\nmy own")
    expect(generate.voice()).to_be_checked()
    expect_plain(page)


def test_written_lyrics_become_a_song(lyrics: Tab, fake, tab):
    sing, primary = lyrics.part("sing"), re.compile("primary")
    expect(sing).to_be_disabled()
    expect(lyrics.go).to_have_class(primary)
    lyrics.text("text").fill("[Verse]\nmine")
    expect(sing).to_have_class(primary)
    expect(lyrics.go).not_to_have_class(primary)
    seed = 100 * (fake.songs + 1)
    sing.click()
    expect(lyrics.page.locator("#generate-take-1")).to_have_attribute("data-seed", str(seed))
    assert fake.requests[-1].lyrics == "[Verse]\nmine"
    tab(lyrics.page, "lyrics").text("text").fill("")
    expect(lyrics.go).to_have_class(primary)
    expect(sing).to_be_disabled()


# --- the desk -----------------------------------------------------------------------------------------------------

# The height of what is in the box and in the sheet with the numbers: they agree if each line wraps alike.
MARGIN = """(box) => {
  const sheet = box.nextElementSibling;
  const lines = [...sheet.firstChild.children];
  const { cssText } = box.style;
  box.style.cssText += "height: 0 !important; min-height: 0 !important";
  const apart = Math.abs(sheet.firstChild.scrollHeight - box.scrollHeight);
  box.style.cssText = cssText;
  return {
    apart,
    numbers: lines.map((line) => line.dataset.count),
    hidden: sheet.getAttribute("aria-hidden"),
    wraps: lines.some((line) => line.offsetHeight > lines[0].offsetHeight),
  };
}"""
DRAFT = "Chorus:\nI count the stars above the sea tonight and I wonder who is out there counting me\nla la"


def test_the_desk_tags_counts_fixes_and_rhymes(lyrics: Tab, fake):
    text, answer, desk = lyrics.text("text"), lyrics.part("answer"), lyrics.part("desk")
    text.fill(DRAFT)
    text.press("Control+End")
    # What Simple leaves out is left out in Generate alone.
    root = lyrics.page.locator(":root")
    face = root.get_attribute("data-face")
    root.evaluate("(root) => (root.dataset.face = 'simple')")
    expect(lyrics.part("rewrite")).to_be_visible()
    root.evaluate("(root, face) => (root.dataset.face = face)", face)
    margin = text.evaluate(MARGIN)
    assert margin["numbers"] == ["2", "21", "2"] and margin["hidden"] == "true" and margin["wraps"]
    assert margin["apart"] <= 2
    expect(lyrics.part("advice")).to_contain_text(
        "Sung in about 0:22 at 100 BPM, with intro and outro."
    )
    desk.get_by_role("button", name="[Verse]").click()
    expect(text).to_have_value(f"{DRAFT}\n\n[Verse 1]\n")
    text.press("Control+z")
    expect(text).to_have_value(DRAFT)
    desk.get_by_role("button", name="Fix section tags").click()
    expect(text).to_have_value(DRAFT.replace("Chorus:", "[Chorus]"))
    expect(answer).to_have_text("1 section tag fixed.")
    desk.get_by_role("button", name="Fix section tags").click()
    expect(answer).to_have_text(tooltips.TAGS_RIGHT)
    lyrics.part("undo").click()
    expect(text).to_have_value(DRAFT)
    text.fill("into the night")
    desk.get_by_role("button", name="Rhyming words").click()
    answer.get_by_role("button", name="light", exact=True).click()
    expect(text).to_have_value("into the night light")


def test_selected_lines_are_rewritten_cancelled_and_undone(lyrics: Tab, fake):
    text, release = lyrics.text("text"), threading.Event()
    held = "[Verse]\none\ntwo\nthree"
    text.fill(held)

    def script(request: Any) -> Iterator[Event]:
        yield Progress("writing", 0, 100)
        new = f"{request.task} {fake.songs}"
        lines = request.passage.with_lines([new] * len(request.passage.lines))
        yield Draft(lines, 5)
        while not release.wait(0.2):
            yield Draft(lines, 5)
        yield from fake.lyrics(request, text=lines)

    fake.script = script
    choose = "(box) => { box.focus(); box.setSelectionRange(box.value.indexOf('two'), box.value.length); }"
    text.evaluate(choose)
    lyrics.part("rewrite").click()
    # A draft is in the box as it comes; nobody types into it meanwhile.
    expect(text).to_have_value(re.compile(r"^\[Verse]\none\nrewrite"))
    assert text.evaluate("(box) => box.readOnly")
    expect(lyrics.part("shorter")).to_be_disabled()
    lyrics.part("assist-cancel").click()
    expect(lyrics.progress).to_contain_text(tooltips.REWRITE_STOPPED)
    expect(text).to_have_value(held)
    release.set()
    for task in ("rewrite", "rhyme", "shorter"):
        expect(lyrics.part(task)).to_be_enabled()
        text.evaluate(choose)
        lyrics.part(task).click()
        expect(lyrics.progress).to_contain_text("2 lines rewritten in 0:")
        expect(text).to_have_value(re.compile(rf"^\[Verse]\none\n{task} (\d+)\n{task} \1$"))
        assert (fake.requests[-1].task, fake.requests[-1].lines) == (task, (3, 4))
        # They stay selected, for another version.
        picked = (
            "(box) => box.value.slice(box.selectionStart).startsWith(box.value.split('\\n')[2])"
        )
        lyrics.page.wait_for_function(picked, arg=text.element_handle())
        lyrics.part("undo").click()
        expect(text).to_have_value(held)

    def fail(request: Any) -> Iterator[Event]:
        yield Draft(request.passage.with_lines(["half a"]), 2)
        yield Failed(Problem("no_lines", "The songwriter wrote no line."))

    fake.script = fail
    text.evaluate(choose)
    lyrics.part("rewrite").click()
    expect(lyrics.part("message")).to_contain_text("wrote no line")
    expect(text).to_have_value(held)
    asked = len(fake.requests)
    text.fill("[Verse]")
    lyrics.part("rewrite").click()
    expect(lyrics.part("message")).to_contain_text("Select from 1 to 16 lines with words")
    assert len(fake.requests) == asked


# --- the planner --------------------------------------------------------------------------------------------------


COUNT_CLICKS = """() => {
  window.clicks = 0;
  addEventListener("pointerdown", () => window.clicks++, true);
}"""
# Lets a day pass for the songs that the browser keeps.
A_DAY_LATER = """() => {
  const key = "ace-music-studio-takes-generate";
  const kept = JSON.parse(localStorage.getItem(key));
  localStorage.setItem(key, JSON.stringify(kept.map((each) => ({ ...each, at: each.at - 86_400_000 }))));
}"""


@pytest.mark.slow
def test_the_built_in_songwriter_says_what_it_can_and_cannot_do(fake, fake_address, visit, tab):
    page = visit(fake_address[0], face="simple")
    lyrics = tab(page, "lyrics")
    expect(page.locator("#studio-status")).to_contain_text("Songwriter: built in")
    expect(lyrics.go).to_be_enabled()
    expect(lyrics.part("why")).to_have_text(tooltips.SMALL_SONGWRITER)
    # It offers nothing that it refuses.
    expect(lyrics.part("panel").get_by_role("button", name="A lighthouse")).to_be_visible()
    expect(lyrics.part("panel").get_by_role("button", name="Das alte Fahrrad")).to_be_hidden()
    page.locator("#studio-banner summary").click()
    expect(page.get_by_text(tooltips.BUILT_IN_SONGWRITER)).to_be_visible()
    # Its engine does not sing, so the words are nobody's unless they are asked for.
    generate = tab(page, "generate")
    expect(generate.words("No voice")).to_have_attribute("aria-pressed", "true")
    expect(generate.part("words-choice")).to_contain_text(tooltips.NO_VOICE_HERE)
    generate.text("prompt").fill("a slow song about a lighthouse")
    release = threading.Event()

    def script(request: Any) -> Iterator[Event]:
        while not release.wait(0.2):
            yield Progress("steps", 3, 50, 1.0, 19.0)
        yield from fake.song(request)

    fake.script = script

    # A song with words takes two clicks, a second one meanwhile one more.
    page.evaluate(COUNT_CLICKS)
    generate.words("Write them for me").click()
    expect(generate.part("words-choice")).to_contain_text(tooltips.DOES_NOT_SING)
    generate.go.click()
    generate.runs()
    assert fake.requests[-1].words.brief == "a slow song about a lighthouse"
    assert page.evaluate("clicks") == 2
    generate.go.click()
    expect(page.locator(".making")).to_have_count(2)
    assert page.evaluate("clicks") == 3
    release.set()
    songs = page.locator(".library .song")
    expect(songs).to_have_count(2)
    expect(page.locator(".making")).to_have_count(0)

    # Sharing takes two.
    page.evaluate("() => { studio.copy = (text) => (window.copied = text); }")
    generate.way("Copy a link to its recipe").click()
    page.wait_for_function("window.copied")
    assert page.evaluate("clicks") == 5

    # A song of yesterday takes one.
    page.evaluate(A_DAY_LATER)
    reload(page)
    expect(songs.first).to_contain_text("yesterday")
    page.evaluate(COUNT_CLICKS)
    songs.first.locator("button.cover").click()
    expect(generate.plays()).to_be_visible()
    assert page.evaluate("clicks") == 1


@pytest.mark.slow
def test_words_are_written_with_the_song_unless_they_are_ones_own_or_nobody_s(
    fake, fake_address, visit, tab
):
    fake.facts = {
        "engine": "xl",
        "kind": "sft",
        "songwriter": SongwriterStatus("ready", "org/a-larger-one"),
    }
    page = visit(fake_address[0], face="simple")
    expect(page.locator("#studio-status")).to_contain_text("Songwriter: a-larger-one")
    lyrics = tab(page, "lyrics")
    expect(lyrics.part("why")).to_have_text("")
    expect(lyrics.part("panel").get_by_role("button", name="Das alte Fahrrad")).to_be_visible()
    generate = tab(page, "generate")
    pressed = ("aria-pressed", "true")
    expect(generate.words("Write them for me")).to_have_attribute(*pressed)
    expect(generate.field("lyrics")).to_be_hidden()
    release = threading.Event()

    def script(request: Any) -> Iterator[Event]:
        yield Progress("writing")
        yield Draft(LYRICS, 200)
        yield Progress("steps", 3, 50, 1.0, 19.0)
        assert release.wait(100)
        asked = {"prompt": request.prompt, "lyrics": LYRICS}
        yield from fake.song(request, request=asked)

    fake.script = script
    generate.set("prompt", "type", "a pop song about my cat")
    generate.go.click()
    # The words are there before the song is, and the line is about the music by then.
    expect(page.locator(".making .draft")).to_have_text(LYRICS)
    generate.runs()
    release.set()
    expect(generate.song().get_by_role("heading")).to_have_text("Good night, good night")
    generate.take().get_by_text("Words", exact=True).click()
    expect(generate.take().get_by_text("The lamp goes round")).to_be_visible()
    assert fake.requests[-1].words.brief == "a pop song about my cat"
    # What is made of the take sings its words; they are not written again.
    fake.script = fake.play
    seed = 100 * (fake.songs + 1)
    generate.way("Retake").click()
    generate.has(seed)
    assert not hasattr(fake.requests[-1], "words")
    assert fake.requests[-1].lyrics == LYRICS
    generate.words("My own").click()
    expect(generate.text("lyrics")).to_be_focused()
    generate.go.click()
    expect(generate.part("problems")).to_have_text("Please check “Lyrics”.")
    expect(generate.field("lyrics")).to_contain_text(tooltips.NO_OWN_WORDS)
    generate.set("lyrics", "type", "[Verse]\nmine")
    assert generate.made(fake) == parse_request(
        "generate",
        {"prompt": "a pop song about my cat", "lyrics": "[Verse]\nmine", "duration": None},
    )
    # Words of one's own are kept while others are written, or none.
    generate.words("No voice").click()
    expect(generate.field("lyrics")).to_be_hidden()
    assert generate.made(fake).instrumental
    generate.words("Write them for me").click()
    assert generate.made(fake).lyrics == ""
    reload(page)
    expect(generate.words("Write them for me")).to_have_attribute(*pressed)
    generate.words("My own").click()
    expect(generate.text("lyrics")).to_have_value("[Verse]\nmine")
    expect_plain(page)


@pytest.mark.slow
def test_what_needs_a_missing_model_is_off_and_says_why(fake, fake_address, visit, tab):
    problem = Problem("missing", "It is <b>not</b> on this machine.", hint="Fetch it first.")
    fake.facts = {
        "planner": LanguageModelStatus("none", "org/a-model", problem=problem),
        "songwriter": SongwriterStatus("none", "org/a-model", problem=problem),
    }
    page = visit(fake_address[0])
    expect(page.locator("#studio-status")).to_contain_text("Songwriter: not installed")
    expect(page.locator("#studio-status")).to_contain_text("Planner: not installed")
    lyrics = tab(page, "lyrics")
    expect(lyrics.go).to_be_disabled()
    expect(lyrics.part("why")).to_have_text(f"{tooltips.NO_SONGWRITER} {problem.text()}")
    for task in ("rewrite", "rhyme", "shorter"):
        expect(lyrics.part(task)).to_be_disabled()
    expect(lyrics.part("assist-help")).to_have_text(
        tooltips.NO_REWRITING.format(reason=problem.message)
    )
    # The visitor's own lyrics need no writer.
    lyrics.text("text").fill("[Verse]\nmine")
    lyrics.part("use").click()
    generate = tab(page, "generate")
    expect(generate.text("lyrics")).to_have_value("[Verse]\nmine")
    generate.unfold()
    plan = generate.field("options.plan")
    expect(plan.get_by_role("checkbox")).not_to_be_checked()
    expect(plan).to_contain_text(f"{problem.text()}")
    # The reason has the width of the group.
    group = generate.part("plan-fold").bounding_box()
    assert plan.bounding_box()["width"] > 0.8 * group["width"]
    for name in (
        "options.plan",
        "options.rewrite",
        "options.plan_seed",
        "options.plan_temperature",
        "options.plan_cfg",
    ):
        expect(generate.field(name).locator("input, textarea").first).to_be_disabled()
    expect(generate.field("options.plan_seed")).to_contain_text(tooltips.NO_PLANNER)
    expect(generate.part("polish")).to_be_disabled()
    generate.set("prompt", "type", "a song")
    assert not generate.made(fake).options.plan
    choice = generate.part("words-choice")
    expect(choice.get_by_role("button")).to_have_text(["My own", "No voice"])
    expect(choice).to_contain_text(f"{tooltips.NOBODY_WRITES} {problem.message}")
    for mode, button in (
        ("generate", "inspire"),
        ("cover", "describe"),
        ("extend", "describe"),
        ("edit", "describe"),
    ):
        opened = tab(page, mode)
        expect(opened.part(button)).to_be_disabled()
        expect(opened.part("assist-help")).to_contain_text("It is <b>not</b> on")
    expect_plain(page)


PLAN = {
    **{
        "used": True,
        "bpm": 92,
        "key": "G# minor",
        "time_signature": "6",
        "language": "en",
        "rewritten": False,
    },
    **{"caption": "", "seed": 4294967295, "model": "preview", "temperature": 0.85, "cfg": 2.0},
}


@pytest.mark.slow
def test_a_plan_is_shown_and_kept(generate: Tab, fake):
    fake.script = partial(fake.song, plan=PLAN)
    generate.made(fake)
    line = generate.part("plan-line")
    expect(line.locator("span")).to_have_text(["Plan:", "92 BPM", "G# minor", "6/8", "English"])
    generate.part("keep-plan").click()
    expect(generate.text("plan_seed")).to_have_value("4294967295")
    expect(generate.part("plan-kept")).to_contain_text("4294967295")
    assert generate.made(fake).options.plan_seed == 4294967295
    # The planner's own words are shown as text.
    fake.script = partial(
        fake.song, plan={**PLAN, "rewritten": True, "caption": MARKUP, "language": "unknown"}
    )
    generate.made(fake)
    expect(line).to_contain_text(f"The planner's prompt: {MARKUP}")
    expect(line.locator("span")).to_have_text(["Plan:", "92 BPM", "G# minor", "6/8"])
    fake.script = partial(
        fake.song, plan={"used": False, "reason": f"Off {MARKUP}.", "missed": True}
    )
    generate.made(fake)
    expect(line).to_have_text(f"Made without a plan: Off {MARKUP}.")
    expect(generate.part("keep-plan")).to_be_hidden()
    # A planner that failed is in the notes already, in whatever words.
    failed = {"used": False, "reason": "Broken.", "failed": True}
    fake.script = partial(fake.song, plan=failed, notes=["The planner is broken."])
    generate.made(fake)
    expect(generate.part("message")).to_contain_text("The planner is broken.")
    expect(line).to_have_text("")
    fake.script = fake.song
    generate.made(fake)
    expect(line).to_have_text("")
    expect_plain(generate.page)


@pytest.mark.slow
def test_surprise_me_fills_the_form_and_undo_restores_it(page: Page, fake, tab):
    generate = tab(page, "generate")
    generate.set("prompt", "type", "an idea")
    generate.unfold()
    generate.set("language", "choose", "French")
    generate.set("bpm", "type", "61")
    generate.part("inspire").click()
    expect(generate.text("prompt")).to_have_value("sea shanty, male choir")
    expect(generate.part("assist-progress")).to_contain_text(tooltips.ASSIST_DONE)
    expect(generate.text("lyrics")).to_have_value("[Verse]\nHeave away")
    expect(generate.text("duration")).to_have_value("45")
    assert fake.requests[-1] == parse_request("inspire", {"idea": "an idea", "language": "fr"})
    request = generate.made(fake)
    assert (request.bpm, request.key, request.time_signature, request.language) == (
        96,
        "D minor",
        "3",
        "en",
    )
    # Polish after it, and both undone.
    fake.script = partial(fake.sketch, prompt=MARKUP, lyrics="[Instrumental]")
    generate.part("polish").click()
    expect(generate.text("prompt")).to_have_value(MARKUP)
    expect(generate.text("lyrics")).to_have_value("")
    undo = generate.part("undo")
    undo.click()
    expect(generate.text("prompt")).to_have_value("sea shanty, male choir")
    expect(generate.part("assist-progress")).to_contain_text(tooltips.UNDONE)
    undo.click()
    expect(generate.text("prompt")).to_have_value("an idea")
    expect(undo).to_be_hidden()
    fake.script = fake.play
    request = generate.made(fake)
    assert request == parse_request(
        "generate", {"prompt": "an idea", "language": "fr", "bpm": 61, "duration": None}
    )
    expect_plain(page)


@pytest.mark.slow
def test_help_is_cancelled_and_undo_restores_text_typed_meanwhile(generate: Tab, fake):
    progress = generate.part("assist-progress")
    generate.set("prompt", "type", "an idea")
    fake.script = fake.endless
    generate.part("inspire").click()
    expect(progress).to_contain_text("step 3 of 50")
    expect(generate.part("polish")).to_be_disabled()
    generate.part("assist-cancel").click()
    expect(progress).to_contain_text("Cancelled.")
    assert fake.closed.wait(100)
    expect(generate.part("assist-cancel")).to_be_hidden()
    expect(generate.text("prompt")).to_have_value("an idea")
    typed = threading.Event()

    def slow(request: Any) -> Iterator[Event]:
        yield Progress("writing", 7)
        assert typed.wait(100)
        yield from fake.sketch(request)

    fake.script = slow
    generate.part("inspire").click()
    expect(progress).to_contain_text("Writing, 7 tokens")
    generate.set("prompt", "type", "a better idea")
    typed.set()
    expect(generate.text("prompt")).to_have_value("sea shanty, male choir")
    generate.part("undo").click()
    expect(generate.text("prompt")).to_have_value("a better idea")


@pytest.mark.slow
def test_a_source_is_described(lasting: Page, fake, tab, song: Path):
    opened = tab(lasting, "edit")
    opened.set("source", "upload", song)
    opened.set("lyrics", "type", "mine")
    opened.unfold("details")
    opened.part("describe").click()
    expect(opened.text("prompt")).to_have_value("sea shanty, male choir")
    expect(opened.text("bpm")).to_have_value("96")
    # It keeps the lyrics that were there.
    expect(opened.text("lyrics")).to_have_value("mine")
    assert (fake.requests[-1].mode, Path(fake.requests[-1].source).read_bytes()) == (
        "describe",
        song.read_bytes(),
    )
    opened.part("undo").click()
    expect(opened.text("prompt")).to_have_value("")
    expect(opened.text("bpm")).to_have_value("")


# --- advice -------------------------------------------------------------------------------------------------------

FLAWED = "[Vers]\nla  la\n[Foo]\n[Chorus]"


def test_advice_follows_the_lyrics(generate: Tab, fake):
    advice, text = generate.part("advice"), generate.text("lyrics")
    summary, remarks = advice.locator("summary"), advice.get_by_role("listitem")
    text.fill("[Verse]\nla la\n[Chorus]")
    expect(advice).to_contain_text("Line 3: [Chorus]")
    expect(advice).to_contain_text(tooltips.DOES_NOT_SING)
    # Several remarks are folded, and stay unfolded once a visitor opens them.
    text.fill(FLAWED)
    expect(summary).to_have_text(tooltips.REMARKS.format(count=4))
    expect(remarks.first).to_be_hidden()
    summary.click()
    expect(remarks).to_have_count(4)
    text.fill(FLAWED.replace("  ", " "))
    expect(summary).to_have_text(tooltips.REMARKS.format(count=3))
    expect(remarks.first).to_be_visible()
    text.fill(f"[{MARKUP}]")
    expect(advice).to_contain_text("<img src=x onerror=")
    # It blocks nothing, and unused lyrics get none.
    generate.made(fake)
    generate.set("instrumental", "tick", True)
    expect(advice).to_have_text("")
    expect(advice.locator("[aria-live=polite]")).to_have_count(1)
    expect_plain(generate.page)


# --- hints --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_often_goes_wrong_is_mended_with_one_click(lasting: Page, fake, tab):
    generate = tab(lasting, "generate").reset()
    tokens, advice = generate.part("tokens"), generate.part("advice")
    generate.set("bpm", "type", "76")
    generate.set("prompt", "type", "instrumental polka, 190 bpm")
    generate.set("lyrics", "type", "[ti:Polka]\n[00:12.00]Am F\n[00:14.00]roll out")
    tokens.get_by_role("button", name="Set BPM to 190").click()
    expect(generate.text("bpm")).to_have_value("190")
    expect(tokens.get_by_role("button", name="Set BPM")).to_have_count(0)
    advice.get_by_role("button", name="Remove the times").click()
    expect(generate.text("lyrics")).to_have_value("Am F\nroll out")
    advice.get_by_role("button", name="Remove the chords").click()
    expect(generate.text("lyrics")).to_have_value("roll out")
    # As if it had been typed: the browser can undo it.
    lasting.keyboard.press("Control+z")
    expect(generate.text("lyrics")).to_have_value("Am F\nroll out")
    tokens.get_by_role("button", name="Make it an instrumental").click()
    expect(generate.voice()).to_be_checked()
    expect(tokens.locator(".fix")).to_have_count(0)
    generate.set("key", "choose", "C major")
    generate.set("prompt", "type", "instrumental polka in D minor, 190 bpm")
    tokens.get_by_role("button", name="Remove it from the prompt").click()
    expect(generate.text("prompt")).to_have_value("instrumental polka, 190 bpm")
    fake.facts = {"kind": "sft", "engine": "xl"}
    generate.set("prompt", "type", "brass " * 60)
    expect(tokens).to_contain_text("follows up to 300 best")
    request = generate.made(fake)
    assert (request.bpm, request.key, request.instrumental) == (190, "C major", True)
    generate.set("instrumental", "tick", False)
