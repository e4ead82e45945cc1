"""What a visitor does with finished takes: compares them, makes them again, downloads them, reads along."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Locator, Page, expect

import audio
import export
from events import Done, Event, Failed, Problem, Progress
from limits import MORE_LIKE_THIS, SAMPLE_RATE
from params import Request

LOUDNESS = (-14.0, -20.0, -8.0, -14.0)
LINES = [
    {"start": 1.0, "end": 3.0, "text": "The <b>lamp</b> goes round"},
    {"start": 4.0, "end": 6.0, "text": "Good night, good night"},
]
LRC = "[00:01.00]The lamp goes round\n[00:04.00]Good night, good night\n"
# Players stand inside the shadow roots of their waveforms.
PLAYER = (
    """(take) => [...take.querySelectorAll('div')].map((e) => e.shadowRoot?.querySelector('audio')).find(Boolean)"""
)


def seconds(fake: Any) -> int:
    """Return the length of the latest song, which is not that of the one before, so that a test can wait for it."""
    return 7 + fake.songs % 3


def songs(fake: Any, request: Request, kind: str = "wav", **record: Any) -> Iterator[Event]:
    """Make takes of some seconds, each as loud as `LOUDNESS` says; timed lyrics are always the same."""
    if request.mode == "align":
        yield Progress("aligning")
        yield Done((), {"mode": "align", "lines": LINES, "lrc": LRC, "score": 0.834, "seconds": {}})
        return
    yield Progress("steps", 1, 2)
    files, takes = [], []
    for number in range(request.takes):
        seed = 100 * fake.songs + number
        path = fake.folder / f"song-seed-{seed}.{kind}"
        tone = 0.3 * np.sin(np.arange(seconds(fake) * SAMPLE_RATE) * 2 * np.pi * (220 + 55 * number) / SAMPLE_RATE)
        export.encode(np.stack([tone, tone]).astype(np.float32), path, kind)
        facts = {"seed": seed, "duration": float(seconds(fake)), "peak_dbfs": -1.0, "loudness_lufs": LOUDNESS[number]}
        takes.append({**facts, "name": path.name, "sha256": "0" * 64, "warnings": []})
        export.write_tags(path, path.stem, {"mode": "generate", "takes": takes[-1:], "request": {"prompt": "a song"}})
        files.append(str(path))
    own = {"request": {"prompt": request.prompt}, "takes": takes, "errors": [], "notes": [], "seconds": {"steps": 1.0}}
    yield Done(tuple(files), {"mode": request.mode, **own, **record})


@pytest.fixture(autouse=True)
def long_songs(fake):
    """Let the fake backend make songs that last long enough to listen to."""
    fake.script = partial(songs, fake)


@pytest.fixture
def generate(lasting: Page, tab) -> Any:
    """Open the Generate tab on the lasting page, with a prompt and lyrics and what tests change as it was."""
    return opened(lasting, tab)


def opened(page: Page, tab: Any) -> Any:
    generate = tab(page, "generate")
    generate.unfold()
    generate.set("prompt", "type", "a song")
    generate.set("instrumental", "tick", False)
    generate.set("lyrics", "type", "[Verse]\nThe lamp goes round\nGood night, good night")
    for name in ("bpm", "options.steps"):
        generate.set(name, "type", "")
    generate.set("seed", "type", "-1")
    generate.set("options.variation", "slide", "0")
    return generate


def make(generate: Any, fake: Any, takes: int) -> Any:
    generate.set("takes", "pick", str(takes))
    return generate.made(fake)


def player(take: Locator) -> dict[str, Any]:
    """Return what a take's player does."""
    facts = "({paused: p.paused, at: p.currentTime, volume: p.volume})"
    return take.evaluate(f"(take) => {{ const p = ({PLAYER})(take); return {facts}; }}")


def ready(generate: Any, fake: Any, number: int = 1) -> Locator:
    """Return a take of the latest song as soon as its player has it."""
    take = generate.take(number)
    expect(take.locator("time").last).to_have_text(f"0:0{seconds(fake)}")
    return take


def listen(take: Locator) -> Locator:
    return take.get_by_role("button", name="Listen here")


def button(take: Locator, name: str) -> Locator:
    return take.get_by_role("button", name=name, exact=True)


# --- comparing ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_take_has_nothing_to_be_compared_with(generate, fake):
    make(generate, fake, 1)
    expect(listen(generate.take())).to_have_count(0)
    expect(generate.part("level")).to_be_hidden()


def test_listening_goes_on_in_another_take_at_the_same_place(generate, fake):
    make(generate, fake, 2)
    first, second = (ready(generate, fake, number) for number in (1, 2))
    listen(first).click()
    expect(listen(first)).to_have_attribute("aria-pressed", "true")
    expect(first.locator("time").first).to_have_text("0:02")
    listen(second).click()
    expect(listen(second)).to_have_attribute("aria-pressed", "true")
    expect(listen(first)).to_have_attribute("aria-pressed", "false")
    there, here = player(first), player(second)
    assert there["paused"] and not here["paused"]
    assert here["at"] == pytest.approx(there["at"], abs=0.7) and here["at"] > 1.9
    # Once more pauses it, and from there it goes on in the first.
    listen(second).click()
    expect(listen(second)).to_have_attribute("aria-pressed", "false")
    generate.page.keyboard.press("1")
    expect(listen(first)).to_have_attribute("aria-pressed", "true")
    assert player(first)["at"] == pytest.approx(player(second)["at"], abs=0.7)


@pytest.mark.slow
def test_one_player_at_a_time_by_its_own_button_too(generate, fake):
    make(generate, fake, 2)
    first, second = (ready(generate, fake, number) for number in (1, 2))
    button(first, "Play").click()
    expect(listen(first)).to_have_attribute("aria-pressed", "true")
    button(second, "Play").click()
    expect(listen(first)).to_have_attribute("aria-pressed", "false")
    assert player(first)["paused"] and not player(second)["paused"]


@pytest.mark.slow
def test_a_digit_that_is_typed_plays_nothing(generate, fake):
    make(generate, fake, 2)
    ready(generate, fake)
    generate.text("prompt").press("1")
    assert player(generate.take(1))["paused"]
    expect(generate.text("prompt")).to_have_value(re.compile("1"))


@pytest.mark.slow
def test_takes_play_at_equal_loudness_until_they_shall_not(generate, fake):
    make(generate, fake, 3)
    takes = [ready(generate, fake, number) for number in (1, 2, 3)]
    for take in takes:
        listen(take).click()
    expected = [10 ** ((min(LOUDNESS) - lufs) / 20) for lufs in LOUDNESS[:3]]
    assert [player(take)["volume"] for take in takes] == pytest.approx(expected, abs=1e-3)
    switch = generate.part("level").get_by_role("checkbox")
    switch.uncheck()
    assert [player(take)["volume"] for take in takes] == [1, 1, 1]
    # The player's own volume counts on top.
    takes[0].evaluate(f"(take) => {{ ({PLAYER})(take).volume = 0.5; }}")
    switch.check()
    assert player(takes[0])["volume"] == pytest.approx(0.5 * expected[0], abs=1e-3)
    takes[0].evaluate(f"(take) => {{ ({PLAYER})(take).volume = 1; }}")
    generate.page.wait_for_function(
        f"([take, wanted]) => {{const p = ({PLAYER})(take);return Math.abs(p.volume - wanted) < 1e-3; }}",
        arg=[takes[0].element_handle(), expected[0]],
    )


@pytest.mark.slow
def test_the_switch_is_away_where_a_player_has_no_volume(page: Page, fake, fake_address, tab):
    page.add_init_script("Object.defineProperty(HTMLMediaElement.prototype, 'volume', {get: () => 1, set() {}})")
    page.reload()
    generate = opened(page, tab)
    make(generate, fake, 2)
    expect(listen(generate.take())).to_be_visible()
    expect(generate.part("level")).to_be_hidden()


@pytest.mark.slow
def test_a_take_says_what_it_was_made_with(generate, fake):
    generate.set("bpm", "type", "90")
    make(generate, fake, 1)
    expect(generate.take().locator(".facts")).to_contain_text("90 BPM")
    plan = {"used": True, "bpm": 104, "key": "D minor", "time_signature": "4", "language": "en", "caption": "a song"}
    fake.script = partial(songs, fake, plan={**plan, "rewritten": False, "seed": 5})
    generate.set("options.variation", "slide", "0.3")
    generate.made(fake)
    facts = generate.take().locator(".facts")
    for text in ("104 BPM", "D minor", "variation 0.3"):
        expect(facts).to_contain_text(text)


# --- again --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_retake_has_the_settings_of_the_takes_and_leaves_the_form(generate, fake):
    generate.set("seed", "type", "41")
    generate.set("options.steps", "type", "9")
    first = make(generate, fake, 2)
    generate.set("prompt", "type", "something else by now")
    generate.set("takes", "pick", "1")
    seed = 100 * (fake.songs + 1)
    button(generate.take(2), "Retake").click()
    expect(button(generate.take(), f"Copy seed {seed}")).to_be_visible()
    again = fake.requests[-1]
    assert (first.seed, again.seed) == (41, -1)
    assert again == first.model_copy(update={"seed": -1})
    expect(generate.take(2)).to_be_visible()
    expect(generate.text("seed")).to_have_value("41")
    expect(generate.text("prompt")).to_have_value("something else by now")
    expect(generate.part("message")).to_contain_text("a new seed")
    expect(generate.progress).to_contain_text("2 takes made")


def test_more_like_a_take_stands_beside_it(generate, fake):
    plan = {"used": True, "bpm": 104, "key": "D minor", "time_signature": "4", "language": "en", "caption": "a song"}
    fake.script = partial(songs, fake, plan={**plan, "rewritten": False, "seed": 5})
    make(generate, fake, 3)
    liked, new = 100 * fake.songs + 1, 100 * (fake.songs + 1)
    button(generate.take(2), "More like this").click()
    expect(button(generate.take(2), f"Copy seed {new}")).to_be_visible()
    expect(button(generate.take(1), f"Copy seed {liked}")).to_be_visible()
    expect(generate.take(3)).to_be_hidden()
    asked = fake.requests[-1]
    assert (asked.seed, asked.takes) == (liked, 1)
    assert (asked.options.variation, asked.options.variation_seed) == (MORE_LIKE_THIS, -1)
    assert asked.options.plan_seed == 5
    expect(generate.take(2).locator(".facts")).to_contain_text("variation 0.25")
    expect(generate.part("message")).to_contain_text("Take 1 is the one you liked")
    expect(listen(generate.take(1))).to_be_visible()
    expect(generate.text("options.variation").first).to_have_value("0")


@pytest.mark.slow
def test_the_upload_is_used_again_or_missed(lasting: Page, fake, song, tab):
    cover = tab(lasting, "cover")
    cover.set("source", "file", str(song))
    cover.set("prompt", "type", "brass band")
    cover.made(fake)
    source = fake.requests[-1].source
    cover.clear("source")
    seed = 100 * (fake.songs + 1)
    button(cover.take(), "Retake").click()
    expect(button(cover.take(), f"Copy seed {seed}")).to_be_visible()
    assert fake.requests[-1].source == source
    Path(source).unlink()
    button(cover.take(), "More like this").click()
    expect(cover.part("message")).to_contain_text("Source audio is not in the studio's memory any more.")
    expect(cover.go).to_be_enabled()
    assert len(fake.requests) == 2


@pytest.mark.slow
def test_a_retake_can_be_cancelled_and_keeps_the_takes(generate, fake):
    make(generate, fake, 1)
    fake.script = fake.endless
    button(generate.take(), "Retake").click()
    expect(generate.progress).to_contain_text("step 3 of 50")
    expect(generate.go).to_be_disabled()
    expect(button(generate.take(), "Retake")).to_be_disabled()
    generate.part("cancel").click()
    expect(generate.progress).to_contain_text("Cancelled.")
    expect(button(generate.take(), "Retake")).to_be_enabled()
    assert fake.closed.wait(5)


@pytest.mark.slow
def test_a_retake_that_fails_says_so(generate, fake):
    make(generate, fake, 1)
    fake.script = fake.fail
    button(generate.take(), "Retake").click()
    expect(generate.part("message")).to_contain_text("There was <b>no memory</b> left.")
    expect(generate.take()).to_be_visible()


# --- files --------------------------------------------------------------------------------------------------------


def download(generate: Any, kind: str) -> Path:
    take = generate.take()
    generate.part("take-1-format").get_by_role("combobox").click()
    generate.page.get_by_role("option", name=re.compile(f"^{kind}")).click()
    expect(button(take, f"Download {kind}")).to_be_enabled()
    with generate.page.expect_download() as found:
        button(take, f"Download {kind}").click()
    path = Path(found.value.path()).with_name(found.value.suggested_filename)
    found.value.save_as(path)
    return path


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("FLAC", "PCM_24"),
        pytest.param("MP3", "MPEG_LAYER_III", marks=pytest.mark.slow),
        pytest.param("OGG", "VORBIS", marks=pytest.mark.slow),
    ],
)
def test_a_take_is_downloaded_in_another_format(generate, fake, kind, subtype):
    make(generate, fake, 1)
    before = len(fake.requests)
    seed = 100 * fake.songs
    path = download(generate, kind)
    assert path.name == f"song-seed-{seed}.{kind.lower()}"
    assert soundfile.info(path).subtype == subtype
    assert export.read_record(path)["takes"][0]["seed"] == seed
    made = audio.decode(fake.folder / f"song-seed-{seed}.wav")
    assert audio.decode(path).shape == made.shape
    if kind == "FLAC":
        np.testing.assert_array_equal(audio.decode(path), made)
    expect(generate.part("take-1-note")).to_be_empty()
    assert len(fake.requests) == before


@pytest.mark.slow
def test_what_comes_from_an_mp3_says_so(generate, fake):
    fake.script = partial(songs, fake, kind="mp3")
    make(generate, fake, 1)
    expect(button(generate.take(), "Download MP3")).to_be_visible()
    download(generate, "WAV")
    expect(generate.part("take-1-note")).to_contain_text("Made from the MP3")
    download(generate, "MP3")
    expect(generate.part("take-1-note")).not_to_contain_text("Made from")


# --- timed lyrics -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_timed_lyrics_follow_the_song(generate, fake):
    make(generate, fake, 1)
    song = fake.requests[-1]
    take, seed = ready(generate, fake), 100 * fake.songs
    button(take, "Play").click()
    button(take, "Timed lyrics").click()
    lines = take.locator(".timed button")
    expect(lines).to_have_text([re.compile("0:01.*The <b>lamp</b> goes round"), re.compile("0:04.*Good night")])
    assert not player(take)["paused"]
    asked = fake.requests[-1]
    assert (asked.mode, asked.lyrics, asked.seed) == ("align", song.lyrics, seed)
    assert Path(asked.source).name == f"song-seed-{seed}.wav"
    expect(take).to_contain_text("Alignment score 0.83 of 1")
    expect(generate.progress).to_contain_text("2 lines timed.")
    expect(generate.go).to_be_enabled()
    lines.nth(1).click()
    expect(lines.nth(1)).to_have_attribute("aria-current", "true")
    expect(lines.nth(0)).not_to_have_attribute("aria-current", "true")
    lines.nth(0).click()
    expect(lines.nth(0)).to_have_attribute("aria-current", "true")
    with generate.page.expect_download() as found:
        button(take, "Timed lyrics as LRC").click()
    assert found.value.suggested_filename == f"song-seed-{seed}.lrc"
    assert Path(found.value.path()).read_text() == LRC
    # The next song has none yet.
    generate.made(fake)
    expect(take.locator(".timed")).to_have_count(0)
    expect(button(take, "Timed lyrics as LRC")).to_be_hidden()


@pytest.mark.slow
def test_only_a_song_with_lyrics_is_timed(generate, fake):
    make(generate, fake, 1)
    expect(button(generate.take(), "Timed lyrics")).to_be_visible()
    generate.set("instrumental", "tick", True)
    generate.made(fake)
    expect(button(generate.take(), "Timed lyrics")).to_be_hidden()


@pytest.mark.slow
def test_nothing_is_timed_without_alignment_heads(generate, fake):
    fake.facts = {"timed_lyrics": {"available": False, "reason": "There are no heads."}}
    make(generate, fake, 1)
    expect(button(generate.take(), "Timed lyrics")).to_be_hidden()


@pytest.mark.slow
def test_timing_that_fails_says_so_at_the_take(generate, fake):
    make(generate, fake, 1)
    fake.script = lambda request: iter([Failed(Problem("internal", "It <i>broke</i>.", hint="Try again."))])
    button(generate.take(), "Timed lyrics").click()
    expect(generate.part("take-1-note").get_by_role("alert")).to_contain_text("It <i>broke</i>.Try again.")
    expect(generate.take()).to_be_visible()


# --- the output folder --------------------------------------------------------------------------------------------


def test_the_page_says_how_long_songs_are_kept(lasting: Page, tab):
    for mode in ("generate", "cover", "extend", "edit"):
        expect(tab(lasting, mode).part("kept")).to_contain_text("for 30 days, up to 20 GB in all; the oldest go first")
