"""The film of a first visit: no picture is lost, and what stood still is told by a span."""

from __future__ import annotations

from PIL import Image

from tools.film import Shot, without_repeats


def shot(seconds: float, color: str, what: str = "") -> Shot:
    return Shot(seconds, seconds, what, Image.new("RGB", (4, 4), color))


def test_only_a_picture_that_equals_the_one_before_is_left_out_and_its_time_is_kept():
    shots = [
        shot(0, "white"),
        shot(2, "red"),
        shot(4, "red"),
        # Its picture was ready before that of the mark at 6 s, which equals it.
        shot(6.3, "red", "Generate (1)"),
        shot(6, "red"),
        shot(8, "red"),
        shot(10, "white"),
    ]
    labels = [each.label for each in without_repeats(shots)]
    assert labels == ["0:00\n", "0:02 to 0:06\n", "0:06 to 0:08\nGenerate (1)", "0:10\n"]


def test_every_picture_of_a_page_that_changes_is_kept():
    shots = [shot(2 * number, f"#0000{number:02x}") for number in range(90)]
    assert without_repeats(shots) == shots
