"""Our widgets without a browser: the region of a new source, and the tempo to snap to."""

from __future__ import annotations

import pytest

import page_widgets
from limits import LEAST_REGION_SECONDS


def test_a_new_source_begins_with_a_middle_part():
    for seconds in (1.0, 1.04, 12.3456, 600.0):
        start, end = page_widgets.middle(seconds)
        assert 0 < start < end < seconds and end - start >= LEAST_REGION_SECONDS - 1e-9
        assert (start, end) == (round(start, 1), round(end, 1))
    assert page_widgets.middle(60) == (20, 30)


@pytest.mark.parametrize(
    ("record", "bpm"),
    [
        ({"request": {"bpm": 96}}, 96),
        ({"request": {"bpm": 96}, "plan": {"used": True, "bpm": 120}}, 120),
        ({"request": {"bpm": None}, "plan": None}, None),
        ({"request": {"bpm": 1e9}, "plan": {"bpm": "fast"}}, None),
        ({"request": [96]}, None),
        (None, None),
    ],
)
def test_the_tempo_of_a_record_is_checked(record: object, bpm: int | None):
    assert page_widgets.tempo(record) == bpm
