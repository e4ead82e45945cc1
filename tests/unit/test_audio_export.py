"""A song as a file: its samples, its tags with the record, its name; and what a hostile file's tags give."""

import base64
import contextlib
import io
import json
import resource
import threading
import tracemalloc
import zlib
from concurrent.futures import CancelledError

import mutagen
import numpy as np
import pytest
import soundfile as sf
from mutagen.flac import FLAC, Picture
from mutagen.id3 import APIC, ID3, TIT2, TXXX
from mutagen.mp3 import MP3
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE
from PIL import Image

import audio
import audio_export
from tests.files import tag_file, write_song
from tests.unit import sounds

KINDS = {"wav": "PCM_24", "flac": "PCM_24", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}


@pytest.mark.parametrize("format", sounds.FORMATS)
def test_a_file_has_the_promised_kind_length_and_sound(tmp_path, format):
    path = tmp_path / "a"
    for samples in (1, 19_200, 592_560):
        info = sf.info(write_song(sounds.noise(samples), path, format))
        assert (info.frames, info.samplerate, info.channels) == (samples, sounds.RATE, 2)
        assert (info.format, info.subtype) == (format.upper(), KINDS[format])
    source = sounds.tone(3.0)
    write_song(source, path, format)
    # An octave apart, so the sides are not exchanged either.
    assert np.abs(sf.read(path, dtype="float32")[0].T - source)[:, 4800:-4800].max() < 0.01
    assert sounds.folder_of(tmp_path) == ["a"]
    if format == "mp3":
        assert (MP3(path).info.bitrate, MP3(path).info.bitrate_mode) == (
            320_000,
            mutagen.mp3.BitrateMode.CBR,
        )


@pytest.mark.parametrize("format", sounds.LOSSLESS)
def test_encode_rounds_to_the_nearest_step_and_ends_at_full_scale(tmp_path, format):
    small = [0.0, 0.4, 0.6, -0.4, -0.6, 1000.4, -1000.6, 2.0**22 - 0.1]
    steps = np.array([*small, 2**23, -(2**23), 7 * 2**23, -7 * 2**23])
    path = write_song(np.stack([steps / 2**23] * 2), tmp_path / "a", format)
    expected = [0, 0, 1, 0, -1, 1000, -1001, 2**22, *[2**23 - 1, -(2**23)] * 2]
    np.testing.assert_array_equal(sounds.integers(path), [expected] * 2)


def test_what_cannot_be_written_gets_a_sentence_without_a_path(tmp_path):
    samples = sounds.tone(1.0)
    samples[0, 5] = np.nan
    with pytest.raises(audio.AudioError, match="not numbers"):
        write_song(samples, tmp_path / "a.wav", "wav")
    with pytest.raises(audio.AudioError, match="folder") as caught:
        write_song(sounds.tone(1.0), tmp_path / "nowhere" / "a.wav", "wav")
    assert str(tmp_path) not in str(caught.value)
    assert sounds.folder_of(tmp_path) == []


@contextlib.contextmanager
def room_for(size):
    """Limit the size of files: a write fails in the middle, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(audio.AudioError, match=r"could not be written|disk is full") as caught:
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "disk" in f"{caught.value.message} {caught.value.hint}"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    path = write_song(sounds.noise(sounds.RATE), tmp_path / "a.bin", "wav")
    before = path.read_bytes()
    with room_for(100_000):
        audio_export.write_wav(path, sounds.noise(10 * sounds.RATE))
    with room_for(100_000):
        tag_file(path, "title", {"mode": "generate"})
    assert sounds.folder_of(tmp_path) == ["a.bin"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("format", sounds.FORMATS)
def test_a_disk_that_is_full_at_the_last_byte_leaves_nothing_behind(tmp_path, format):
    samples = sounds.tone(2.0)  # encoders write their last part while the file is closed
    size = write_song(samples, tmp_path / "a", format).stat().st_size
    (tmp_path / "a").unlink()
    with room_for(size - 20):
        write_song(samples, tmp_path / "a", format)
    assert sounds.folder_of(tmp_path) == []


def test_a_song_that_cannot_be_renamed_leaves_nothing_behind(tmp_path):
    with pytest.raises(FileNotFoundError):
        audio_export.claim(tmp_path / "gone", tmp_path / "song.wav")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "format", ["wav", "ogg"]
)  # FLAC is written like WAV; the MP3 encoder takes half a minute
def test_five_minutes_can_be_written(tmp_path, format):
    samples = np.tile(sounds.noise(60 * sounds.RATE), 5)
    tracemalloc.start()
    path = write_song(samples, tmp_path / "a", format)
    assert tracemalloc.get_traced_memory()[1] < 1.2 * path.stat().st_size + 20_000_000
    tracemalloc.stop()
    assert sf.info(path).frames == 300 * sounds.RATE


# --- tags ---------------------------------------------------------------------------------------------------------

PROMPT = 'warm "lo-fi" / piano; a\x00b \\ 雨の夜 🎹 <b>'
RECORD = {
    "mode": "generate",
    "request": {"prompt": PROMPT, "lyrics": "[Verse]\nline\r\n" * 10, "bpm": None},
    "takes": [{"seed": 7, "loudness_lufs": -14.25, "warnings": []}],
}


def big_record(size=60_000):
    """Return a record of at least `size` bytes as JSON, in several scripts."""
    line = "La la la, 夜の雨が降る, съешь ещё этих булок\n"
    return {**RECORD, "lyrics": line * (size // len(line.encode()) + 1)}


@pytest.mark.parametrize("format", sounds.FORMATS)
def test_tags_bring_record_and_picture_back_and_leave_the_samples(tmp_path, format):
    samples = sounds.noise(3 * sounds.RATE)
    path = write_song(samples, tmp_path / f"a.{format}", format)
    before = sf.read(path, dtype="int32")[0]
    assert audio_export.read_record(path) is None
    for record in (big_record(200_000), RECORD):
        tag_file(path, "Rain\x00 on\n tin 夜", record)
        assert audio_export.read_record(path) == record
    picture = audio_export.picture_for_tags(samples, 7, "")
    assert Image.open(io.BytesIO(picture)).size == (512, 512)
    tag_file(path, "Rain\x00 on\n tin 夜", {"prompt": "x\udfff"}, picture)
    assert audio_export.read_record(path) == {"prompt": "x?"}
    file = mutagen.File(path)
    if format in ("wav", "mp3"):
        title, kept = file["TIT2"].text[0], file.tags.getall("APIC")[0]
    else:
        packed = file.get("metadata_block_picture")
        title, kept = (
            file["title"][0],
            Picture(base64.b64decode(packed[0])) if packed else file.pictures[0],
        )
    assert (title, kept.type, kept.mime, kept.data) == ("Rain on tin 夜", 3, "image/jpeg", picture)
    np.testing.assert_array_equal(sf.read(path, dtype="int32")[0], before)
    assert audio.decode(path).shape == samples.shape
    assert sounds.folder_of(tmp_path) == [f"a.{format}"]


def test_each_seed_and_key_has_its_own_picture():
    def drawn(seed, key=""):
        picture = audio_export.picture_for_page(sounds.noise(sounds.RATE), seed, key)
        packed = picture.partition(",")[2]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(packed))).convert("RGB"), float)

    np.testing.assert_array_equal(drawn(7, "C major"), drawn(7, "C major"))
    others = [drawn(8, "C major"), drawn(7, "F# major"), drawn(7, "C minor"), drawn(7)]
    assert all(np.abs(drawn(7, "C major") - other).mean() > 5 for other in others)


def test_a_record_survives_other_tag_editors(tmp_path):
    # They rewrite ID3 as version 2.3 or in UTF-16, and add frames of their own.
    for version, encoding in ((3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (4, 3)):
        path = write_song(sounds.noise(sounds.RATE), tmp_path / "a.mp3", "mp3")
        tags = ID3()
        tags.add(TIT2(encoding=encoding, text="x" * 300))
        tags.add(APIC(encoding=0, mime="image/png", type=3, desc="", data=bytes(200_000)))
        tags.add(TXXX(encoding=0, desc="OTHER", text="{}"))
        tags.add(TXXX(encoding=encoding, desc=audio_export.RECORD_TAG, text=json.dumps(RECORD)))
        tags.save(path, v2_version=version)
        assert audio_export.read_record(path) == RECORD, (version, encoding)


def test_tags_that_cannot_be_written_leave_the_file_as_it_was(tmp_path):
    path = write_song(sounds.noise(sounds.RATE), tmp_path / "a.wav", "wav")
    damaged = tmp_path / "damaged.wav"
    damaged.write_bytes(b"RIFF" + bytes(50))
    for file, record in (
        (path, {"peak": float("nan")}),
        (path, {"text": "x" * audio_export.MAX_RECORD_BYTES}),
        (damaged, RECORD),
    ):
        before = file.read_bytes()
        with pytest.raises(audio.AudioError):
            tag_file(file, "title", record)
        assert file.read_bytes() == before
    assert sounds.folder_of(tmp_path) == ["a.wav", "damaged.wav"]


def plant(tmp_path, format, text):
    """Write a file whose record tag holds any text, with mutagen alone."""
    path = sounds.save(tmp_path / f"a.{format}", sounds.noise(sounds.RATE), format=format.upper())
    if format in ("wav", "mp3"):
        file = (WAVE if format == "wav" else MP3)(path)
        file.add_tags()
        file.tags.add(TXXX(encoding=3, desc=audio_export.RECORD_TAG, text=text))
    else:
        file = (FLAC if format == "flac" else OggVorbis)(path)
        file[audio_export.RECORD_TAG] = text
    file.save()
    return path


HOSTILE = {
    "no json": "<script>alert(1)</script>",
    "array": "[1, 2]",
    "nan": '{"a": NaN}',
    "overflow": '{"a": 1e999}',
    "huge integer": '{"a": ' + "9" * 10_000 + "}",
    "surrogate": '{"a": "\\ud800"}',
    "deep": '{"a":' * 100 + "1" + "}" * 100,
    "very deep": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "large in bytes": json.dumps(
        {"a": "夜" * (audio_export.MAX_RECORD_BYTES // 2)}, ensure_ascii=False
    ),
}


def test_what_is_no_song_carries_no_record(tmp_path):
    for filename, make, _ in sounds.BAD_FILES.values():
        (tmp_path / filename).write_bytes(make(tmp_path))
        assert audio_export.read_record(tmp_path / filename) is None, filename
    assert audio_export.read_record(tmp_path / "nowhere.wav") is None
    assert audio_export.read_record(tmp_path) is None


@pytest.mark.parametrize("format", sounds.FORMATS)
def test_hostile_and_broken_tags_carry_no_record(tmp_path, format):
    for name, text in HOSTILE.items():
        assert audio_export.read_record(plant(tmp_path, format, text)) is None, name
    # The same way of writing, with nothing wrong.
    path = plant(tmp_path, format, '{"a": [1.5]}')
    assert audio_export.read_record(path) == {"a": [1.5]}
    tag_file(path, "title", big_record())
    data, rng = path.read_bytes(), np.random.default_rng(3)
    for _ in range(40):
        at, length = int(rng.integers(0, len(data))), int(rng.integers(1, 400))
        for content in (data[:at] + rng.bytes(length) + data[at + length :], data[:at]):
            path.write_bytes(content)
            assert isinstance(audio_export.read_record(path), dict | None)


def test_a_compressed_frame_is_not_unpacked(tmp_path):
    """300 kB that would unpack to 300 MB are passed over; the record behind them is found."""

    def syncsafe(value):
        return bytes((value >> shift) & 0x7F for shift in (21, 14, 7, 0))

    squeeze = zlib.compressobj(9)
    pieces = [squeeze.compress(piece) for piece in (b"\3x\0", *([bytes(1_000_000)] * 300))]
    packed = syncsafe(300_000_000 % 2**28) + b"".join(pieces) + squeeze.flush()
    plain = b"\3" + audio_export.RECORD_TAG.encode() + b'\0{"a": 1}'
    frames = (
        b"TXXX"
        + syncsafe(len(packed))
        + b"\0\x09"
        + packed
        + b"TXXX"
        + syncsafe(len(plain))
        + b"\0\0"
        + plain
    )
    path = tmp_path / "bomb.mp3"
    path.write_bytes(b"ID3\4\0\0" + syncsafe(len(frames)) + frames + bytes(1000))
    tracemalloc.start()
    assert audio_export.read_record(path) == {"a": 1}
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.slow
def test_endless_tags_are_given_up(tmp_path):
    """A million empty metadata blocks, and 30 MB of pictures: nothing is kept for each of them."""
    head = sounds.flac_bytes(tmp_path)[:42]
    path = tmp_path / "a.flac"
    picture = Picture()
    picture.data = bytes(1_000_000)
    block = picture.write()
    for body in (b"\x01\0\0\0" * 1_000_000, (b"\x06" + len(block).to_bytes(3, "big") + block) * 30):
        path.write_bytes(head + body)
        tracemalloc.start()
        assert audio_export.read_record(path) is None
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
        tracemalloc.stop()


NAMES = {
    **{
        "warm lofi piano": "warm-lofi-piano",
        "don't stop": "dont-stop",
        "<b>loud</b> <script src=x>": "loud",
    },
    **{
        "../../etc/passwd": "etc-passwd",
        "C:\\Windows\\system32": "c-windows-system32",
        "-rf --help": "rf-help",
    },
    **{
        "a\x00b\x1b[31m\nc\u202egpj": "a-b-31m-cgpj",
        "🎹 piano 🎶": "piano",
        "雨の夜 ピアノ": "雨の夜-ピアノ",
    },
    **{"Cafe\u0301": "café", "हिन्दी गीत": "हिन्दी-गीत", "ＦＵＬＬ ｗｉｄｔｈ ②": "full-width-2"},
    **{"葛\U000e0100城 क्\u200dष": "葛城-क्ष", "a \u0301b": "a-b", "": "song"},
}


def test_a_file_is_named_after_its_prompt_its_mode_its_seed_and_its_format():
    assert {
        prompt: audio_export.file_name(prompt, 7, "wav").removesuffix("-seed-7.wav")
        for prompt in NAMES
    } == NAMES
    assert (
        audio_export.file_name("warm piano", 4294967295, "flac", "cover")
        == "warm-piano-cover-seed-4294967295.flac"
    )
    assert audio_export.file_name("", 7, "flac", "cover") == "cover-seed-7.flac"
    for mode in ("../x", "", "<b>"):
        assert not set(audio_export.file_name("piano", 7, "wav", mode)) & set('/\\<>:"|?*\0')
    for prompt in ("con", "aux.wav", "prn."):  # names that Windows reserves
        assert audio_export.file_name(prompt, 7, "wav").split(".")[0].upper() not in {
            "CON",
            "AUX",
            "PRN",
        }


def test_a_long_prompt_makes_a_short_name_of_whole_words_that_a_file_system_takes(tmp_path):
    for prompt in ("a" * 100_000, "夜" * 5000, "ab夜" * 500, "z" + "\u0301" * 5000):
        name = audio_export.file_name(prompt, 2**32 - 1, "flac")
        assert 20 < len(name.encode()) <= 110
        (tmp_path / name).write_bytes(b"")
    name = audio_export.file_name("orchestral melancholic nocturnes " * 20, 7, "wav")
    assert name.removesuffix("-seed-7.wav").split("-")[-1] in (
        "orchestral",
        "melancholic",
        "nocturnes",
    )


def test_nothing_half_written_is_left_when_the_process_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_export, "_stopping", threading.Event())
    with pytest.raises(CancelledError), audio_export.aside(tmp_path) as part:
        part.write_bytes(b"half")
        audio_export.stop()
        assert list(tmp_path.iterdir()) == []
        part.write_bytes(b"a thread that goes on")
        audio_export.claim(part, tmp_path / "song.wav")
    with pytest.raises(CancelledError):
        audio_export.save(tmp_path / "song.wav", io.BytesIO(b"late"))
    assert list(tmp_path.iterdir()) == []
