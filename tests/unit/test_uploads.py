"""What is said of an upload before anything is queued: whether it is audio, how long it is, what fits into it."""

import gradio as gr
import numpy as np
import pytest
import soundfile

import page_tabs
from events import InvalidRequest
from params import check_audio, parse_request, upload_seconds
from tests.unit.sounds import NO_AUDIO


@pytest.fixture
def song(tmp_path):
    """Return a function that writes a file of so many samples and returns its path."""

    def write(name="song.wav", samples=192_000, rate=48_000):
        soundfile.write(tmp_path / name, np.zeros(samples), rate)
        return str(tmp_path / name)

    return write


def problems(mode, **values):
    with pytest.raises(InvalidRequest) as caught:
        check_audio(parse_request(mode, {"prompt": "calm piano", **values}))
    return {problem.field: problem.text() for problem in caught.value.problems}


def test_the_length_is_that_of_the_song_at_48_khz(song):
    for rate in [8_000, 44_100, 48_000, 96_000]:
        path = song(samples=100_006, rate=rate)
        assert upload_seconds(path) * 48_000 == round(100_006 * 48_000 / rate)


def test_a_file_that_is_no_audio_is_told_at_its_field(song, tmp_path):
    for kind, (data, sentence) in NO_AUDIO.items():
        (tmp_path / "bad.wav").write_bytes(data)
        for field in ("source", "reference"):
            files = {"source": song(), field: str(tmp_path / "bad.wav")}
            said = problems("cover", **files)
            assert set(said) == {field}, kind
            assert said[field].startswith(sentence), kind
    said = problems("cover", source=str(tmp_path / "gone.wav"), reference=str(tmp_path))
    assert set(said) == {"source", "reference"}


def test_the_length_of_a_source_is_1_to_600_seconds(song):
    for seconds, sentence in [(0.99, "too short"), (600.1, "too long")]:
        assert sentence in problems("cover", source=song(samples=round(seconds * 8_000), rate=8_000))["source"]


def test_the_page_names_a_bad_file_beside_whatever_else_is_wrong(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    with gr.Blocks():
        form = page_tabs.cover_tab().form
    wrong = {"source": str(tmp_path / "bad.wav"), "reference": str(tmp_path / "bad.wav"), "bpm": "fast"}
    values = {name: wrong.get(name, field.value) for name, field in form.fields.items()}
    found = form.problems([*values.values()])
    assert found.keys() == {"source", "reference", "prompt", "bpm"}
    assert "audio" in found["source"] and "Say what" in found["prompt"]
    none = form.problems([*{**values, "source": None, "reference": None}.values()])
    assert none.keys() == {"source", "prompt", "bpm"} and "none was given" in none["source"]
