"""What is said of an upload before anything is queued: whether it is audio, how long it is, what fits into it."""

import numpy as np
import pytest
import soundfile

import uploads
from events import InvalidRequest
from params import parse_request
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
        uploads.check(parse_request(mode, {"prompt": "calm piano", **values}))
    return {problem.field: problem.text() for problem in caught.value.problems}


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 96_000])
def test_the_length_is_that_of_the_song_at_48_khz(song, rate):
    path = song(samples=100_006, rate=rate)
    assert uploads.seconds_of(path) * 48_000 == round(100_006 * 48_000 / rate)


@pytest.mark.parametrize("kind", NO_AUDIO)
@pytest.mark.parametrize("field", ["source", "reference"])
def test_a_file_that_is_no_audio_is_told_at_its_field(song, tmp_path, kind, field):
    data, sentence = NO_AUDIO[kind]
    (tmp_path / "bad.wav").write_bytes(data)
    files = {"source": song(), field: str(tmp_path / "bad.wav")}
    said = problems("cover", **files)
    assert set(said) == {field}
    assert said[field].startswith(sentence)


def test_every_bad_file_is_told(tmp_path):
    said = problems("cover", source=str(tmp_path / "gone.wav"), reference=str(tmp_path))
    assert set(said) == {"source", "reference"}


@pytest.mark.parametrize(("seconds", "sentence"), [(0.99, "too short"), (600.1, "too long")])
def test_the_length_of_a_source_is_1_to_600_seconds(song, seconds, sentence):
    assert sentence in problems("cover", source=song(samples=round(seconds * 8_000), rate=8_000))["source"]


def test_the_request_has_to_fit_its_source(song):
    path = song()
    uploads.check(parse_request("edit", {"source": path, "start": 1, "end": 4}))
    assert set(problems("edit", source=path, start=1, end=5)) == {"end"}
    assert set(problems("edit", source=path, start=3.6)) == {"start"}
    assert set(problems("edit", source=path)) == {"end"}
    assert set(problems("extend", source=path, before=299, after=300)) == {"after"}


def test_a_song_from_words_alone_has_nothing_to_check():
    uploads.check(parse_request("generate", {"prompt": "calm piano"}))
