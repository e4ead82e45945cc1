"""A song as a file: its samples, its tags with the record, its name; and what a hostile file's tags give."""

import json
import os
import tracemalloc

import mutagen
import numpy as np
import pytest
import soundfile as sf
from mutagen.flac import FLAC, Picture
from mutagen.id3 import APIC, ID3, TIT2, TXXX
from mutagen.mp3 import MP3
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

import audio
import export
from tests.unit.sounds import BAD_FILES, FORMATS, LOSSLESS, RATE, flac_bytes, folder_of, integers, noise, save, tone


def dominant(samples, rate=RATE):
    """Return the strongest frequency in Hz of one channel."""
    return np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples)


# --- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("samples", [1, 19_200, 592_560])
def test_encode_keeps_the_count_of_samples(tmp_path, format, samples):
    path = export.encode(noise(samples), tmp_path / f"a.{format}", format)
    info = sf.info(path)
    assert (info.frames, info.samplerate, info.channels) == (samples, RATE, 2)
    assert folder_of(tmp_path) == [f"a.{format}"]


@pytest.mark.parametrize(
    ("format", "kind"), [("wav", "PCM_24"), ("flac", "PCM_24"), ("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS")]
)
def test_encode_writes_the_promised_kind(tmp_path, format, kind):
    path = export.encode(tone(2.0), str(tmp_path / "a.bin"), format)
    info = sf.info(path)
    assert info.subtype == kind
    assert info.format == format.upper()
    if format == "mp3":
        stream = MP3(path).info
        assert stream.bitrate == 320_000
        assert stream.bitrate_mode == mutagen.mp3.BitrateMode.CBR


@pytest.mark.parametrize("format", FORMATS)
def test_encode_keeps_the_sound_and_its_sides(tmp_path, format):
    source = tone(3.0)
    back = sf.read(export.encode(source, tmp_path / "a", format), dtype="float32")[0].T
    assert np.abs(back - source)[:, 4800:-4800].max() < 0.01
    assert [dominant(side) for side in back] == pytest.approx([440, 880], abs=1)


@pytest.mark.parametrize("format", LOSSLESS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_encode_rounds_to_the_nearest_step(tmp_path, format, dtype):
    steps = np.array([[0.0, 0.4, 0.6, -0.4, -0.6, 1000.4, -1000.6, 2.0**22 + 0.5 - 2**-1]], dtype)
    path = export.encode(np.repeat(steps / 2**23, 2, axis=0).astype(dtype), tmp_path / "a", format)
    np.testing.assert_array_equal(integers(path)[0], [0, 0, 1, 0, -1, 1000, -1001, 2**22])


@pytest.mark.parametrize("format", FORMATS)
def test_samples_beyond_full_scale_are_clipped_not_wrapped(tmp_path, format):
    source = tone(1.0, hertz=100, level=1.5)
    back = sf.read(export.encode(source, tmp_path / "a", format), dtype="float32")[0].T
    inner = (slice(None), slice(4800, -4800))
    assert np.abs(back - np.clip(source, -1, 1))[inner].max() < 0.15


@pytest.mark.parametrize("format", LOSSLESS)
def test_full_scale_ends_at_the_outermost_steps(tmp_path, format):
    source = np.array([[1.0, -1.0, 7.0, -7.0]] * 2, np.float32)
    path = export.encode(source, tmp_path / "a", format)
    np.testing.assert_array_equal(integers(path)[1], [2**23 - 1, -(2**23)] * 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_encode_refuses_what_is_not_a_number(tmp_path, value):
    samples = tone(1.0)
    samples[0, 5] = value
    with pytest.raises(audio.AudioError, match="not numbers"):
        export.encode(samples, tmp_path / "a.wav", "wav")
    assert folder_of(tmp_path) == []


@pytest.mark.parametrize("format", ["m4a", "", "WAV "])
def test_encode_refuses_other_formats(tmp_path, format):
    with pytest.raises(audio.AudioError, match="wav, flac, mp3 or ogg"):
        export.encode(tone(1.0), tmp_path / "a", format)


@pytest.mark.parametrize("where", ["nowhere/a.wav", "file/a.wav"])
def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path, where):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(audio.AudioError, match="folder") as caught:
        export.encode(tone(1.0), tmp_path / where, "wav")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file size limits are a POSIX feature")
@pytest.mark.parametrize("task", [*FORMATS, "job", "tags"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, task):
    """A limit on the size of files fails a write in the middle, as a full disk does."""
    import resource

    before = export.encode(noise(RATE), tmp_path / "a.bin", "wav").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(audio.AudioError, match="could not be written") as caught:
            if task == "job":
                export.write_wav(tmp_path / "a.bin", noise(10 * RATE))
            elif task == "tags":
                export.write_tags(tmp_path / "a.bin", "title", {"mode": "generate"})
            else:
                export.encode(noise(10 * RATE), tmp_path / "a.bin", task)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "disk" in caught.value.hint
    assert folder_of(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file size limits are a POSIX feature")
@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_is_full_at_the_last_byte_leaves_nothing_behind(tmp_path, format):
    """Encoders write their last part while the file is closed."""
    import resource

    samples = tone(2.0)
    size = export.encode(samples, tmp_path / "a", format).stat().st_size
    (tmp_path / "a").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 20, limits[1]))
    try:
        with pytest.raises(audio.AudioError, match="could not be written"):
            export.encode(samples, tmp_path / "a", format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder_of(tmp_path) == []


def test_encode_replaces_an_older_file(tmp_path):
    path = tmp_path / "a.wav"
    export.encode(noise(RATE), path, "wav")
    export.encode(noise(2 * RATE), path, "wav")
    assert sf.info(path).frames == 2 * RATE


@pytest.mark.slow
@pytest.mark.parametrize("format", ["wav", "flac", "ogg"])  # the MP3 encoder takes half a minute
def test_ten_minutes_can_be_written(tmp_path, format):
    samples = np.tile(noise(60 * RATE), 10)
    tracemalloc.start()
    path = export.encode(samples, tmp_path / "a", format)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()
    assert sf.info(path).frames == 600 * RATE


# --- tags ---------------------------------------------------------------------------------------------------------

RECORD = {
    "mode": "generate",
    "request": {
        "prompt": 'warm "lo-fi" / piano; a\x00b \\ 雨の夜 🎹 <b>',
        "lyrics": "[Verse]\nline\r\n" * 10,
        "bpm": None,
    },
    "takes": [{"seed": 7, "loudness_lufs": -14.25, "warnings": []}],
}


def big_record(size=60_000):
    """Return a record of at least `size` bytes as JSON, in several scripts."""
    line = "La la la, 夜の雨が降る, съешь ещё этих булок\n"
    return {**RECORD, "lyrics": line * (size // len(line.encode()) + 1)}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "record", [{}, RECORD, big_record(), big_record(200_000)], ids=["empty", "small", "60k", "200k"]
)
def test_tags_bring_the_record_back_and_leave_the_samples(tmp_path, format, record):
    path = export.encode(noise(3 * RATE), tmp_path / f"a.{format}", format)
    before = sf.read(path, dtype="int32")[0]
    assert export.read_record(path) is None
    export.write_tags(path, "Warm / lo-fi 夜", record)
    assert export.read_record(path) == record
    np.testing.assert_array_equal(sf.read(path, dtype="int32")[0], before)
    assert audio.decode(path).shape == (2, 3 * RATE)
    assert folder_of(tmp_path) == [f"a.{format}"]


@pytest.mark.parametrize("format", FORMATS)
def test_players_find_the_title(tmp_path, format):
    path = export.encode(noise(RATE), tmp_path / f"a.{format}", format)
    export.write_tags(path, "Rain\x00 on\n tin 夜", RECORD)
    tags = mutagen.File(path).tags
    title = tags["TIT2"].text[0] if format in ("wav", "mp3") else tags["title"][0]
    assert title == "Rain on tin 夜"


@pytest.mark.parametrize("format", FORMATS)
def test_tags_can_be_written_again(tmp_path, format):
    path = export.encode(noise(RATE), tmp_path / f"a.{format}", format)
    before = sf.read(path, dtype="int32")[0]
    export.write_tags(path, "first", big_record())
    export.write_tags(path, "second", RECORD)
    assert export.read_record(path) == RECORD
    np.testing.assert_array_equal(sf.read(path, dtype="int32")[0], before)


@pytest.mark.parametrize(("version", "encoding"), [(3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (4, 3)])
def test_a_record_survives_other_tag_editors(tmp_path, version, encoding):
    """They rewrite ID3 as version 2.3 or in UTF-16, and add frames of their own."""
    path = export.encode(noise(RATE), tmp_path / "a.mp3", "mp3")
    tags = ID3()
    tags.add(TIT2(encoding=encoding, text="x" * 300))
    tags.add(APIC(encoding=0, mime="image/png", type=3, desc="", data=bytes(200_000)))
    tags.add(TXXX(encoding=0, desc="OTHER", text="{}"))
    tags.add(TXXX(encoding=encoding, desc=export.RECORD_TAG, text=json.dumps(RECORD)))
    tags.save(path, v2_version=version)
    assert export.read_record(path) == RECORD


def test_lone_surrogates_do_not_stop_the_tags(tmp_path):
    path = export.encode(noise(RATE), tmp_path / "a.flac", "flac")
    export.write_tags(path, "a\ud800b", {"prompt": "x\udfff"})
    assert export.read_record(path) == {"prompt": "x?"}


@pytest.mark.parametrize(
    "record", [{"peak": float("nan")}, {"text": "x" * export.MAX_RECORD_BYTES}], ids=["nan", "size"]
)
def test_a_record_that_could_not_be_read_back_is_refused(tmp_path, record):
    path = export.encode(noise(RATE), tmp_path / "a.wav", "wav")
    before = path.read_bytes()
    with pytest.raises(audio.AudioError):
        export.write_tags(path, "title", record)
    assert path.read_bytes() == before


def test_tags_need_a_file_that_can_hold_them(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF" + bytes(50))
    for name in ("a.wav", "missing.wav"):
        with pytest.raises(audio.AudioError):
            export.write_tags(tmp_path / name, "title", RECORD)
    assert folder_of(tmp_path) == ["a.wav"]


def plant(tmp_path, format, text):
    """Write a file whose record tag holds any text, with mutagen alone."""
    path = save(tmp_path / f"a.{format}", noise(RATE), format=format.upper())
    if format in ("wav", "mp3"):
        file = (WAVE if format == "wav" else MP3)(path)
        file.add_tags()
        file.tags.add(TXXX(encoding=3, desc=export.RECORD_TAG, text=text))
    else:
        file = (FLAC if format == "flac" else OggVorbis)(path)
        file[export.RECORD_TAG] = text
    file.save()
    return path


HOSTILE = {
    "no json": "<script>alert(1)</script>",
    "nothing": "",
    "array": "[1, 2]",
    "text": '"hello"',
    "null": "null",
    "nan": '{"a": NaN}',
    "infinity": '{"a": [-Infinity]}',
    "overflow": '{"a": 1e999}',
    "huge integer": '{"a": ' + "9" * 10_000 + "}",
    "surrogate": '{"a": "\\ud800"}',
    "deep": '{"a":' * 100 + "1" + "}" * 100,
    "very deep": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "large": json.dumps({"a": "x" * export.MAX_RECORD_BYTES}),
    "large in bytes": json.dumps({"a": "夜" * (export.MAX_RECORD_BYTES // 2)}, ensure_ascii=False),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_is_no_record(tmp_path, format, name):
    assert export.read_record(plant(tmp_path, format, HOSTILE[name])) is None


@pytest.mark.parametrize("format", FORMATS)
def test_a_planted_record_is_read(tmp_path, format):
    """The check of the hostile ones: the same way of writing, with nothing wrong."""
    assert export.read_record(plant(tmp_path, format, '{"a": [1.5]}')) == {"a": [1.5]}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_carries_no_record(tmp_path, name):
    filename, make, _ = BAD_FILES[name]
    (tmp_path / filename).write_bytes(make(tmp_path))
    assert export.read_record(tmp_path / filename) is None


@pytest.mark.parametrize("format", FORMATS)
def test_broken_tags_carry_no_record(tmp_path, format):
    path = export.encode(noise(RATE), tmp_path / f"a.{format}", format)
    export.write_tags(path, "title", big_record())
    data = path.read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(40):
        at, length = int(rng.integers(0, len(data))), int(rng.integers(1, 400))
        path.write_bytes(data[:at] + rng.bytes(length) + data[at + length :])
        found = export.read_record(path)
        assert found is None or isinstance(found, dict)
        path.write_bytes(data[:at])
        found = export.read_record(path)
        assert found is None or isinstance(found, dict)


def test_a_missing_file_and_a_folder_carry_no_record(tmp_path):
    assert export.read_record(tmp_path / "nowhere.wav") is None
    assert export.read_record(tmp_path) is None


def test_a_compressed_frame_is_not_unpacked(tmp_path):
    """300 kB that would unpack to 300 MB are passed over; the record behind them is found."""
    import zlib

    def syncsafe(value):
        return bytes((value >> shift) & 0x7F for shift in (21, 14, 7, 0))

    packed = syncsafe(300_000_000 % 2**28) + zlib.compress(b"\3x\0" + bytes(300_000_000), 9)
    plain = b"\3" + export.RECORD_TAG.encode() + b'\0{"a": 1}'
    frames = b"TXXX" + syncsafe(len(packed)) + b"\0\x09" + packed + b"TXXX" + syncsafe(len(plain)) + b"\0\0" + plain
    path = tmp_path / "bomb.mp3"
    path.write_bytes(b"ID3\4\0\0" + syncsafe(len(frames)) + frames + bytes(1000))
    tracemalloc.start()
    assert export.read_record(path) == {"a": 1}
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.slow
def test_endless_tags_are_given_up(tmp_path):
    """30 MB of metadata blocks and of pictures: nothing of that size is kept in memory."""
    head = flac_bytes(tmp_path)[:42]
    path = tmp_path / "a.flac"
    picture = Picture()
    picture.data = bytes(1_000_000)
    block = picture.write()
    for body in (b"\x01\0\0\0" * 7_500_000, (b"\x06" + len(block).to_bytes(3, "big") + block) * 30):
        path.write_bytes(head + body)
        tracemalloc.start()
        assert export.read_record(path) is None
        assert tracemalloc.get_traced_memory()[1] < 200_000_000
        tracemalloc.stop()


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [
        ("warm lofi piano", "warm-lofi-piano"),
        ("  Warm, LO-FI piano!!  ", "warm-lo-fi-piano"),
        ("don't stop", "dont-stop"),
        ("<b>loud</b> <script src=x>", "loud"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\Windows\\system32", "c-windows-system32"),
        ("a\x00b\x1b[31m\nc\u202egpj", "a-b-31m-cgpj"),
        ("rock & roll &lt;3", "rock-roll-3"),
        ("🎹 piano 🎶", "piano"),
        ("雨の夜 ピアノ", "雨の夜-ピアノ"),
        ("Café Ångström", "café-ångström"),
        ("Cafe\u0301", "café"),
        ("हिन्दी गीत", "हिन्दी-गीत"),
        ("ＦＵＬＬ ｗｉｄｔｈ ②", "full-width-2"),
        ("葛\U000e0100城 क्\u200dष", "葛城-क्ष"),
        ("a \u0301b", "a-b"),
        ("-rf --help", "rf-help"),
        ("120 BPM", "120-bpm"),
        ("", "song"),
        ("🎹🎶", "song"),
        ("...", "song"),
        ("\u0301\ufe0f", "song"),
    ],
)
def test_a_file_is_named_after_its_prompt(prompt, slug):
    assert export.file_name(prompt, 7, "wav") == f"{slug}-seed-7.wav"


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_name_ends_with_seed_and_format(format):
    assert export.file_name("piano", 4294967295, format).endswith(f"piano-seed-4294967295.{format}")


def test_a_file_name_tells_the_mode():
    assert export.file_name("warm piano", 7, "flac", "cover") == "warm-piano-cover-seed-7.flac"
    assert export.file_name("", 7, "flac", "cover") == "cover-seed-7.flac"


@pytest.mark.parametrize(
    "prompt",
    ["a" * 100_000, "word " * 1000, "夜" * 60, "夜" * 5000, "ab夜" * 500, "z" + "\u0301" * 5000],
    ids=["one word", "words", "60 ideographs", "5000 ideographs", "mixed", "accents"],
)
def test_a_long_prompt_makes_a_short_name_that_a_file_system_takes(tmp_path, prompt):
    name = export.file_name(prompt, 2**32 - 1, "flac", "generate")
    assert 20 < len(name.encode()) <= 110
    assert "--" not in name
    (tmp_path / name).write_bytes(b"")
    assert len(folder_of(tmp_path)) == 1


def test_a_long_name_ends_with_a_whole_word():
    name = export.file_name("orchestral melancholic nocturnes " * 20, 7, "wav")
    assert name.removesuffix("-seed-7.wav").split("-")[-1] in ("orchestral", "melancholic", "nocturnes")


@pytest.mark.parametrize("prompt", ["con", "NUL", "aux.wav", "com1", "LPT9", "prn."])
def test_names_that_windows_keeps_for_itself_are_not_used(prompt):
    stem = export.file_name(prompt, 7, "wav").split(".")[0]
    assert stem.upper() not in {"CON", "NUL", "AUX", "PRN", "COM1", "LPT9"}
    assert not stem.endswith((".", " "))


@pytest.mark.parametrize("mode", ["../x", "", "<b>"])
def test_a_strange_mode_cannot_leave_the_folder(mode):
    name = export.file_name("piano", 7, "wav", mode)
    assert not set(name) & set('/\\<>:"|?*\0')
