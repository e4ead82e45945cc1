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
from gradio import processing_utils
from gradio import utils as gradio_utils
from playwright.sync_api import Locator, Page, expect

import audio
import export
from events import Done, Event, Failed, Problem, Progress
from limits import MORE_LIKE_THIS, SAMPLE_RATE
from params import Request

SECONDS = 7
LOUDNESS = (-14.0, -20.0, -8.0, -14.0)
LINES = [
    {"start": 1.0, "end": 3.0, "text": "The <b>lamp</b> goes round"},
    {"start": 4.0, "end": 6.0, "text": "Good night, good night"},
]
LRC = "[00:01.00]The lamp goes round\n[00:04.00]Good night, good night\n"
PLAN = {
    **{"used": True, "bpm": 104, "key": "D minor", "time_signature": "4", "language": "en"},
    **{"caption": "a song", "rewritten": False, "seed": 5},
}


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
        tone = 0.3 * np.sin(np.arange(SECONDS * SAMPLE_RATE) * 2 * np.pi * (220 + 55 * number) / SAMPLE_RATE)
        export.encode(np.stack([tone, tone]).astype(np.float32), path, kind)
        facts = {"seed": seed, "duration": float(SECONDS), "peak_dbfs": -1.0, "loudness_lufs": LOUDNESS[number]}
        takes.append({**facts, "name": path.name, "sha256": "0" * 64, "warnings": []})
        export.write_tags(path, path.stem, {"mode": "generate", "takes": takes[-1:], "request": {"prompt": "a song"}})
        files.append(processing_utils.save_file_to_cache(path, cache_dir=gradio_utils.get_upload_folder()))
    asked = request.model_dump(mode="json", include={"prompt", "lyrics", "bpm", "duration"})
    own = {"request": asked, "takes": takes, "errors": [], "notes": [], "seconds": {"steps": 1.0}}
    yield Done(tuple(files), {"mode": request.mode, **own, **record})


@pytest.fixture(autouse=True)
def long_songs(fake):
    """Let the fake backend make songs that last long enough to listen to."""
    fake.script = partial(songs, fake)


@pytest.fixture
def generate(lasting: Page, tab) -> Any:
    """Open the Generate tab on the lasting page, with a prompt and lyrics and what tests change as it was."""
    generate = tab(lasting, "generate")
    generate.unfold()
    generate.set("prompt", "type", "a song")
    generate.set("instrumental", "tick", False)
    generate.set("lyrics", "type", "[Verse]\nThe lamp goes round\nGood night, good night")
    generate.set("bpm", "type", "")
    generate.set("seed", "type", "-1")
    return generate


def make(generate: Any, fake: Any, takes: int) -> Any:
    generate.set("takes", "pick", str(takes))
    return generate.made(fake)


def player(take: Locator) -> dict[str, Any]:
    """Return what a take's player does."""
    return take.locator("audio").evaluate("(p) => ({paused: p.paused, at: p.currentTime, volume: p.volume})")


def button(take: Locator, name: str) -> Locator:
    return take.get_by_role("button", name=re.compile(f"^{name}(, take \\d)?$"))


# --- listening ----------------------------------------------------------------------------------------------------


def test_listening_goes_on_in_another_take_at_the_same_place_and_loudness(generate, fake):
    make(generate, fake, 2)
    first, second = generate.take(1), generate.take(2)
    button(first, "Listen here").click()
    expect(button(first, "Listen here")).to_have_attribute("aria-pressed", "true")
    expect(first.locator(".time")).to_have_text("0:02 / 0:07")
    generate.page.keyboard.press("2")
    expect(button(second, "Listen here")).to_have_attribute("aria-pressed", "true")
    expect(button(first, "Listen here")).to_have_attribute("aria-pressed", "false")
    there, here = player(first), player(second)
    assert there["paused"] and not here["paused"]
    assert here["at"] >= there["at"] - 0.1 > 1.8
    assert (there["volume"], here["volume"]) == (pytest.approx(10 ** (-6 / 20), abs=1e-3), 1)
    generate.part("panel").get_by_role("checkbox", name="Play at equal loudness").uncheck()
    assert player(first)["volume"] == 1
    generate.part("panel").get_by_role("checkbox", name="Play at equal loudness").check()
    # A take's own button plays one alone, too; a digit that is typed plays nothing.
    first.get_by_role("button", name="Play take 1").click()
    expect(second.get_by_role("button", name="Play take 2")).to_be_visible()
    first.get_by_role("button", name="Pause take 1").click()
    generate.text("prompt").press("2")
    assert player(second)["paused"]


def test_the_player_seeks_by_keys_and_by_clicking(generate, fake):
    make(generate, fake, 1)
    take = generate.take()
    expect(button(take, "Listen here")).to_have_count(0)
    wave = take.get_by_role("slider", name="Position in take 1")
    for key, said in {"ArrowRight": "0:01", "PageUp": "0:06", "Shift+ArrowLeft": "0:01", "End": "0:07"}.items():
        wave.press(key)
        expect(wave).to_have_attribute("aria-valuetext", f"{said} of 0:07")
    wave.press("Home")
    box = wave.bounding_box()
    wave.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    expect(wave).to_have_attribute("aria-valuetext", "0:03 of 0:07")
    assert player(take)["at"] == pytest.approx(SECONDS / 2, abs=0.1)
    take.get_by_label("Speed of take 1").select_option("1.5")
    assert take.locator("audio").evaluate("(p) => p.playbackRate") == 1.5
    for name in ("Volume of take 1", "Speed of take 1", "Format of take 1"):
        assert take.get_by_label(name).bounding_box()["height"] >= 44, name


# --- again --------------------------------------------------------------------------------------------------------


def test_more_like_a_take_stands_beside_it(generate, fake):
    fake.script = partial(songs, fake, plan=PLAN)
    make(generate, fake, 3)
    liked, new = 100 * fake.songs + 1, 100 * (fake.songs + 1)
    button(generate.take(2), "More like this").click()
    expect(button(generate.take(2), f"Copy seed {new}")).to_be_visible()
    expect(button(generate.take(1), f"Copy seed {liked}")).to_be_visible()
    expect(generate.take(3)).to_have_count(0)
    asked = fake.requests[-1]
    assert (asked.seed, asked.takes, asked.options.plan_seed) == (liked, 1, 5)
    assert (asked.options.variation, asked.options.variation_seed) == (MORE_LIKE_THIS, -1)
    expect(generate.part("message")).to_contain_text("Take 2 is a variation of take 1 (25%).")


@pytest.mark.slow
def test_a_retake_has_the_settings_of_the_takes_and_leaves_the_form(generate, fake):
    generate.set("seed", "type", "41")
    first = make(generate, fake, 2)
    generate.set("prompt", "type", "something else by now")
    seed = 100 * (fake.songs + 1)
    button(generate.take(2), "Retake").click()
    expect(button(generate.take(), f"Copy seed {seed}")).to_be_visible()
    again = fake.requests[-1]
    assert (first.seed, again) == (41, first.model_copy(update={"seed": -1}))
    expect(generate.text("prompt")).to_have_value("something else by now")
    expect(generate.part("message")).to_contain_text("a new seed")
    # It can be cancelled, and fail, and the takes stay.
    fake.script = fake.endless
    button(generate.take(), "Retake").click()
    expect(generate.progress).to_contain_text("step 3 of 50")
    expect(generate.go).to_be_disabled()
    expect(button(generate.take(), "Retake")).to_be_disabled()
    generate.part("cancel").click()
    expect(generate.progress).to_contain_text("Cancelled.")
    assert fake.closed.wait(90)
    fake.script = fake.fail
    button(generate.take(), "Retake").click()
    expect(generate.part("message")).to_contain_text("There was <b>no memory</b> left.")
    expect(generate.take()).to_be_visible()


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
    expect(cover.part("message")).to_contain_text("The studio no longer has Source audio.")
    assert len(fake.requests) == 2


# --- earlier takes ------------------------------------------------------------------------------------------------


def test_earlier_takes_stay_in_the_browser_and_are_made_again(page: Page, fake, tab, forgiven):
    forgiven.append("status of 403")
    generate = tab(page, "generate")
    generate.set("prompt", "type", "sea shanty")
    generate.made(fake)
    seed = 100 * fake.songs
    generate.set("prompt", "type", "a <b>waltz</b>")
    generate.made(fake)
    earlier = generate.part("panel").locator(".earlier")
    earlier.locator("summary").click()
    expect(earlier.locator("summary")).to_have_text("Earlier takes (1)")
    expect(earlier.get_by_role("listitem")).to_contain_text(["sea shanty"])
    page.reload()
    expect(page.locator("#studio-status")).to_contain_text("Model:")
    expect(earlier.locator("summary")).to_have_text("Earlier takes (2)")
    earlier.locator("summary").click()
    rows = earlier.get_by_role("listitem")
    expect(rows).to_contain_text(["a <b>waltz</b>", "sea shanty"])
    with page.expect_download() as found:
        rows.nth(1).get_by_role("link", name=re.compile("^Download WAV")).click()
    assert found.value.suggested_filename == f"song-seed-{seed}.wav"
    # The file of the other one is gone by now.
    Path(next(Path(gradio_utils.get_upload_folder()).glob(f"*/song-seed-{100 * fake.songs}.wav"))).unlink()
    earlier.locator("summary").click()
    earlier.locator("summary").click()
    expect(rows.nth(0)).to_contain_text("This file has been deleted.")
    expect(rows.nth(0).get_by_role("link")).to_have_count(0)
    # Made again with its settings, whatever the form holds by now.
    generate.set("prompt", "type", "something else")
    former = fake.songs
    rows.nth(1).get_by_role("button", name="Make it again: sea shanty").click()
    expect(generate.take()).to_be_visible()
    assert fake.songs == former + 1
    request = fake.requests[-1]
    assert (request.prompt, request.seed, request.takes) == ("sea shanty", seed, 1)
    earlier.get_by_role("button", name="Remove all").click()
    expect(earlier).to_be_hidden()
    page.reload()
    expect(earlier.locator("summary")).to_have_text("Earlier takes (1)")


@pytest.mark.slow
def test_a_take_from_a_file_asks_for_the_file_again(page: Page, fake, tab, song: Path):
    cover = tab(page, "cover")
    cover.set("source", "upload", song)
    cover.set("prompt", "type", "brass band")
    cover.made(fake)
    page.reload()
    cover = tab(page, "cover")
    cover.part("panel").locator(".earlier summary").click()
    cover.part("panel").get_by_role("button", name="Make it again: brass band").click()
    expect(cover.part("problems")).to_contain_text("Please check Source audio.")
    expect(cover.text("prompt")).to_have_value("brass band")


def test_while_a_song_is_made_nobody_says_that_there_is_none(page: Page, fake, tab):
    generate = tab(page, "generate")
    said = generate.part("panel").locator(".takes .empty")
    expect(said).to_contain_text("Your songs appear here.")
    fake.script = fake.endless
    generate.set("prompt", "type", "a song")
    generate.go.click()
    expect(said).to_have_text("Your song is being made and will appear here.")
    generate.part("cancel").click()
    expect(said).to_contain_text("Your songs appear here.")


def test_a_song_in_the_making_is_a_card_and_then_plays_with_the_space_bar(fake, fake_address, visit, tab):
    page = visit(fake_address[0], 390, 844)
    generate = tab(page, "generate")
    card = generate.part("panel").locator(".making")
    expect(card).to_be_hidden()
    fake.script = fake.endless
    generate.set("prompt", "type", "a song")
    generate.go.press("Enter")
    expect(card).to_contain_text(re.compile(r"step 3 of 50, .* left\."))
    generate.part("cancel").press("Enter")
    expect(card).to_be_hidden()
    fake.script = fake.song
    page.evaluate("scrollTo(0, 0)")
    generate.go.press("Enter")
    play = generate.take().locator(".player .play")
    expect(play).to_be_focused()
    expect(play).to_be_in_viewport()
    assert play.bounding_box()["y"] + 44 <= generate.go.bounding_box()["y"]
    play.press("Space")
    expect(play).to_have_attribute("aria-label", "Pause take 1")
    expect(card).to_be_hidden()


# --- files --------------------------------------------------------------------------------------------------------


def download(generate: Any, kind: str) -> Path:
    take = generate.take()
    take.get_by_label("Format of take 1").select_option(label=kind)
    link = take.get_by_role("link", name=f"Download {kind}, take 1")
    with generate.page.expect_download() as found:
        link.click()
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
    seed = 100 * fake.songs
    path = download(generate, kind)
    assert path.name == f"song-seed-{seed}.{kind.lower()}"
    assert soundfile.info(path).subtype == subtype
    assert export.read_record(path)["takes"][0]["seed"] == seed
    made = audio.decode(fake.folder / f"song-seed-{seed}.wav")
    assert audio.decode(path).shape == made.shape
    if kind == "FLAC":
        np.testing.assert_array_equal(audio.decode(path), made)
    assert len(fake.requests) == 1


@pytest.mark.slow
def test_what_comes_from_an_mp3_says_so(generate, fake):
    fake.script = partial(songs, fake, kind="mp3")
    make(generate, fake, 1)
    download(generate, "WAV")
    expect(generate.take()).to_contain_text("Converted from MP3")
    download(generate, "MP3")
    expect(generate.take()).not_to_contain_text("Converted from")


# --- timed lyrics -------------------------------------------------------------------------------------------------


def test_timed_lyrics_follow_the_song(generate, fake):
    make(generate, fake, 1)
    song = fake.requests[-1]
    take, seed = generate.take(), 100 * fake.songs
    take.get_by_role("button", name="Play take 1").click()
    button(take, "Timed lyrics").click()
    lines = take.locator(".timed button")
    expect(lines).to_have_text([re.compile("0:01.*The <b>lamp</b> goes round"), re.compile("0:04.*Good night")])
    asked = fake.requests[-1]
    assert (asked.mode, asked.lyrics, asked.seed) == ("align", song.lyrics, seed)
    assert Path(asked.source).name == f"song-seed-{seed}.wav"
    expect(take).to_contain_text("Alignment score 0.83 of 1")
    expect(generate.progress).to_contain_text("2 lines timed.")
    lines.nth(1).click()
    expect(lines.nth(1)).to_have_attribute("aria-current", "true")
    lines.nth(0).click()
    expect(lines.nth(0)).to_have_attribute("aria-current", "true")
    expect(lines.nth(1)).not_to_have_attribute("aria-current", "true")
    with generate.page.expect_download() as found:
        take.get_by_role("link", name="Timed lyrics as LRC").click()
    assert found.value.suggested_filename == f"song-seed-{seed}.lrc"
    assert Path(found.value.path()).read_text() == LRC
    # Another file format leaves them there; the next song has none yet, and an instrumental none to time.
    take.get_by_label("Format of take 1").select_option(label="FLAC")
    expect(take.get_by_role("link", name="Download FLAC, take 1")).to_be_visible()
    expect(lines).to_have_count(2)
    generate.set("instrumental", "tick", True)
    generate.made(fake)
    expect(take.locator(".timed")).to_have_count(0)
    expect(button(take, "Timed lyrics")).to_have_count(0)


@pytest.mark.slow
def test_timing_that_fails_says_so_at_the_take(generate, fake):
    make(generate, fake, 1)
    fake.script = lambda request: iter([Failed(Problem("internal", "It <i>broke</i>.", hint="Try again."))])
    button(generate.take(), "Timed lyrics").click()
    expect(generate.take().get_by_role("alert")).to_contain_text("It <i>broke</i>. Try again.")
    fake.facts = {"timed_lyrics": {"available": False, "reason": "There are no heads."}}
    fake.script = partial(songs, fake)
    make(generate, fake, 1)
    expect(button(generate.take(), "Timed lyrics")).to_have_count(0)
