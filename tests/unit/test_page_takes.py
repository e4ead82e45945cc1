"""The requests and files behind the buttons of a take."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import mutagen
import numpy as np
import pytest
import soundfile
from mutagen.flac import Picture

import audio
import audio_export
import jobs
import page_takes
import takes
import tooltips
from events import Done, StudioError
from limits import MORE_LIKE_THIS, SAMPLE_RATE
from page_run import Ended
from page_takes import Made
from params import parse_request, settle
from status import UNKNOWN
from tests.files import tag_file, write_song

LYRICS = "[Verse]\nla la"
PLAN = {
    "used": True,
    "bpm": 104,
    "key": "D minor",
    "time_signature": "4",
    "language": "en",
    "caption": "a waltz",
}
OWN = {
    "generate": {},
    "cover": {"source": "song.wav"},
    "extend": {"source": "song.wav", "after": 10},
    "edit": {
        "source": "song.wav",
        "action": "repaint",
        "start": 1,
        "end": 2,
        "options": {"repaint_strength": 0.3},
    },
}


def made(mode: str = "generate", plan: Any = None, file: str = "take.wav", **values: Any) -> Made:
    request = parse_request(
        mode, {"prompt": "a song", "lyrics": LYRICS, "takes": 3, "seed": 5, **OWN[mode], **values}
    )
    return Made(request, {"plan": plan, "sampling": {"steps": 20}}, {"seed": 7}, file)


@pytest.mark.parametrize("mode", ("generate", "cover", "extend", "edit"))
def test_one_more_like_a_take_changes_the_seed_alone(mode: str):
    take = made(mode)
    varied = page_takes.more(take)
    assert (varied.seed, varied.takes) == (7, 1)
    assert (varied.options.variation, varied.options.variation_seed) == (MORE_LIKE_THIS, -1)
    back = varied.options.model_copy(update={"variation": 0.0})
    assert varied.model_copy(update={"seed": 5, "takes": 3, "options": back}) == take.request


def test_one_more_like_a_take_keeps_its_plan_and_its_variation():
    assert page_takes.more(made(options={"variation": 0.6})).options.variation == 0.6
    assert page_takes.more(made(plan={**PLAN, "seed": 5})).options.plan_seed == 5
    assert (
        page_takes.more(made(plan={"used": False, "reason": "It was off."})).options.plan_seed == -1
    )


def test_the_words_that_are_timed_are_those_that_were_sung():
    asked = page_takes.timing(made(plan={**PLAN, "seed": 5}, bpm=90))
    assert (asked.prompt, asked.bpm, asked.key, asked.language) == ("a waltz", 104, "D minor", "en")
    assert (asked.source, asked.lyrics, asked.seed) == ("take.wav", LYRICS, 7)
    assert (asked.steps, asked.planned) == (20, True)
    plain = page_takes.timing(made(bpm=90))
    assert (plain.prompt, plain.bpm, plain.planned) == ("a song", 90, False)
    take = made(plan={**PLAN, "language": "unknown"})
    take.record["details"] = {"language": {"value": "ko", "source": "lyrics"}}
    assert page_takes.timing(take).language == "ko"


def test_only_what_sings_all_of_its_lyrics_can_be_timed():
    assert all(made(mode).sings_its_lyrics() for mode in ("generate", "cover", "edit"))
    extracted = made("edit", action="extract", tracks=["vocals"], start=0, end=0, options={})
    for take in (made("extend"), extracted, made(instrumental=True), made(lyrics="")):
        assert not take.sings_its_lyrics(), take


def test_an_upload_that_is_gone_is_named(tmp_path: Path):
    request = page_takes.more(made("cover", source=str(tmp_path / "gone.wav")))
    with (
        jobs.job_for(request, settle(request, "sft")) as job,
        pytest.raises(StudioError, match="The source: The file was not found"),
    ):
        list(jobs.decode_upload(job, "source"))


@pytest.mark.parametrize(
    ("kind", "subtype"), [("flac", "PCM_24"), ("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS")]
)
def test_a_take_in_another_format_has_the_same_sound_and_tags(
    tmp_path: Path, kind: str, subtype: str
):
    path = tmp_path / "song-seed-7.wav"
    tone = 0.3 * np.sin(np.arange(SAMPLE_RATE) * 0.03).astype(np.float32)
    write_song(np.stack([tone, tone]), path, "wav")
    tag_file(path, path.stem, {"mode": "generate", "takes": [{"seed": 7}]})
    assert takes.as_download(path, "wav", "").getvalue() == path.read_bytes()
    other = tmp_path / f"other.{kind}"
    other.write_bytes(takes.as_download(path, kind, "Sea \n shanty").getvalue())
    assert soundfile.info(other).subtype == subtype
    tags = mutagen.File(other).tags
    assert str(tags["TIT2" if kind == "mp3" else "title"][0]) == "Sea shanty"
    assert audio_export.read_record(other)["takes"] == [{"seed": 7}]
    before, after = audio.decode(path), audio.decode(other)
    assert after.shape == before.shape
    assert np.abs(after - before).max() < (1e-6 if kind == "flac" else 0.1)
    # A new title alone changes no sample, and keeps the picture.
    renamed = tmp_path / f"renamed.{kind}"
    renamed.write_bytes(takes.as_download(other, kind, "Heave away").getvalue())
    assert np.array_equal(audio.decode(renamed), after)
    assert str(mutagen.File(renamed).tags["TIT2" if kind == "mp3" else "title"][0]) == "Heave away"
    assert picture_in(renamed) == picture_in(other) != b""


def picture_in(path: Path) -> bytes:
    """Return the cover in a file's tags, b"" if it has none or several."""
    file = mutagen.File(path)
    if path.suffix == ".mp3":
        found = [frame.data for frame in file.tags.getall("APIC")]
    elif path.suffix == ".flac":
        found = [picture.data for picture in file.pictures]
    else:
        packed = file.get("metadata_block_picture", [])
        found = [Picture(base64.b64decode(each)).data for each in packed]
    return found[0] if len(found) == 1 else b""


@pytest.mark.parametrize(
    "record", [{"mode": "generate"}, {"takes": ["a"]}, {"takes": [{"seed": -1}]}]
)
def test_a_take_with_an_odd_record_can_be_had_in_another_format(tmp_path: Path, record):
    path = tmp_path / "song.wav"
    write_song(np.zeros((2, SAMPLE_RATE), np.float32), path, "wav")
    tag_file(path, path.stem, record)
    other = tmp_path / "song.flac"
    other.write_bytes(takes.as_download(path, "flac", "").getvalue())
    assert audio_export.read_record(other) == record
    assert mutagen.File(other).pictures == []


def test_what_is_made_of_a_take_says_what_it_is_and_which_part_of_it_is_new():
    extended = made("extend", before=2.5, after=10).request
    assert page_takes.derived(extended) == "2.5 s + {take} + 10 s"
    assert page_takes.changed_parts(extended, 30.0) == [[0.0, 2.5], [20.0, 30.0]]
    repainted = made("edit", start=3, end=0).request
    assert page_takes.derived(repainted) == "from 3 s of {take} replaced"
    assert page_takes.changed_parts(repainted, 30.0) == [[3.0, 30.0]]
    several = made("edit", start=0, end=0, regions=[[3, 6], [10, 12]]).request
    assert page_takes.derived(several) == "3 to 6 s, 10 to 12 s of {take} replaced"
    layered = made("edit", action="layer", tracks=["drums"], start=0, end=0, options={}).request
    assert page_takes.derived(layered) == "{take} with drums"
    assert page_takes.changed_parts(layered, 30.0) == []
    assert page_takes.derived(made("cover").request) == "cover of {take}"
    assert page_takes.derived(made().request) == ""


@pytest.mark.parametrize(
    ("days", "gb", "said"),
    [
        (30, 20, "for 30 days, up to 20 GB in all; the oldest are deleted first."),
        (1, math.inf, "for 1 day; the oldest are deleted first."),
        (math.inf, math.inf, "Finished songs stay here. Uploads"),
    ],
)
def test_the_page_says_what_leaves_the_output_folder(days: float, gb: float, said: str):
    assert said in tooltips.kept_for(days, gb)


def test_why_a_song_has_no_plan_is_said_once():
    studio = SimpleNamespace(status=lambda: UNKNOWN)
    with gr.Blocks():
        panel = page_takes.ResultPanel("generate", studio)
    request = parse_request("generate", {"prompt": "a song"})

    def plan_line(**plan: Any) -> str:
        record = {
            "takes": [],
            "errors": [],
            "notes": [],
            "plan": {"used": False, "reason": "It was off.", **plan},
        }
        ended = Ended("0" * 32, request, Done((), record), seconds=1.0, tag=None, numbers=())
        return panel.show(ended)[panel.plan]

    assert "Made without a plan: It was off." in plan_line(missed=True)
    assert plan_line() == ""  # nobody asked for one
    assert plan_line(failed=True) == ""  # the notes have it, in whatever words
