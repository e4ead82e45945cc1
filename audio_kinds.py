"""What a file is that libsndfile cannot read, by its first bytes: a name for people, with its article.

A guess is not a fact: "a video file" is said only where a picture track was found.
"""

from __future__ import annotations

from audio_whole import Bytes, behind_tags

_SEARCHED = 1_000_000  # bytes at either end in which containers list their tracks

# Offset and mark. libsndfile reads none of these, though it takes some of them for noise.
_MARKS = (
    (0, b"wvpk", "a WavPack file"),
    (0, b"MAC ", "a Monkey's Audio file"),
    (0, b"TTA1", "a True Audio file"),
    (0, b"MPCK", "a Musepack file"),
    (0, b"MP+", "a Musepack file"),
    (0, b"#!AMR", "an AMR voice recording"),
    (0, b"#!SILK", "a voice message in SILK"),
    (1, b"#!SILK", "a voice message in SILK"),
    (0, b"DSD ", "a DSD file (DSF)"),
    (0, b"FRM8", "a DSD file (DSDIFF)"),
    (0, b".RMF", "a RealMedia file"),
    (0, b".ra\xfd", "a RealAudio file"),
    (0, b"\x0b\x77", "an AC-3 file"),
    (0, b"\x7f\xfe\x80\x01", "a DTS file"),
    (0, b"MThd", "a MIDI file, which holds notes and no sound"),
    (8, b"AVI ", "a video file (AVI)"),
    (0, b"FLV\x01", "a video file (FLV)"),
    (0, b"\0\0\x01\xba", "a video file (MPEG)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a Windows Media file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\x89PNG", "a picture (PNG)"),
    (0, b"\xff\xd8\xff", "a picture (JPEG)"),
    (0, b"GIF8", "a picture (GIF)"),
    (8, b"WEBP", "a picture (WebP)"),
)
# By the first four letters of the brand that an MP4 begins with.
_BRANDS = {
    b"M4A ": "an M4A file",
    b"M4B ": "an M4B audiobook",
    b"M4P ": "a protected M4P file",
    b"qt  ": "a QuickTime file (MOV)",
    b"3gp": "a 3GP file",
    b"3g2": "a 3GP file",
}
_OGG_CODECS = (
    (b"\x7fFLAC", "an Ogg FLAC file"),
    (b"Speex   ", "a Speex file"),
    (b"\x80theora", "a video file (Ogg Theora)"),
    (b"fishead\0", "a video file (Ogg with a skeleton)"),
)
_PAGE = (b"<!doctype html", b"<html")


def foreign(data: Bytes) -> str:
    """Return what a file is, "" if it may be sound that can be read."""
    for offset, mark, kind in _MARKS:
        if data[offset : offset + len(mark)] == mark:
            return kind
    if data[:64].lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(_PAGE):
        return "a web page"
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return _mp4(data)
    if data[:4] == b"\x1aE\xdf\xa3":
        return _matroska(data)
    start = behind_tags(data)
    if data[start : start + 4] == b"OggS":
        page = data[start : start + 512]
        return next((kind for mark, kind in _OGG_CODECS if mark in page), "")
    if data[start : start + 1] == b"\xff" and _is_aac(data, start):
        return "an AAC file"
    return ""


def _mp4(data: Bytes) -> str:
    ends = data[:_SEARCHED], data[-_SEARCHED:]
    if any(b"hdlr" in end and b"vide" in end for end in ends):
        return "a video file (MOV)" if data[8:12] == b"qt  " else "a video file (MP4)"
    brand = data[8:12]
    return _BRANDS.get(brand) or _BRANDS.get(brand[:3]) or "an MP4 file"


def _matroska(data: Bytes) -> str:
    start = data[:_SEARCHED]
    name = "WebM" if b"webm" in start[:64] else "Matroska"
    if b"V_" in start:
        return f"a video file ({name})"
    if b"A_" not in start:
        return "a WebM or MKV file"
    ending = "" if name == "WebM" else ", MKA"
    return f"an audio file in {name}{ending}"


def _is_aac(data: Bytes, start: int) -> bool:
    """Tell whether two frames of AAC in ADTS follow each other."""
    for _ in range(2):
        head = data[start : start + 7]
        if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
            return False
        start += (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if start >= len(data):
            return True
    return True
