"""Requests that work on existing audio: regions, tracks, lengths, and options that belong to one action."""

import pytest

from events import InvalidRequest
from params import check_source, parse_request

SOURCE = {"source": "song.wav"}


def problem(mode, seconds=None, **values):
    values = {"prompt": "calm piano", **SOURCE, **values}
    with pytest.raises(InvalidRequest) as caught:
        request = parse_request(mode, values)
        check_source(request, seconds)
    (only,) = caught.value.problems
    return only


def test_defaults_are_those_of_the_contract():
    cover = parse_request("cover", {"prompt": "x", **SOURCE})
    assert (cover.strength, cover.reference, cover.options.noise_strength) == (0.8, None, 0.0)
    extend = parse_request("extend", {"prompt": "x", **SOURCE})
    assert (extend.before, extend.after, extend.options.overlap) == (0, 30, 2)
    edit = parse_request("edit", SOURCE)
    assert (edit.action, edit.start, edit.end, edit.prompt, edit.tracks) == ("repaint", 0, 0, "", ())
    assert (edit.options.repaint_mode, edit.options.repaint_strength) == ("balanced", 0.5)


def test_a_wrong_value_is_a_sentence_at_its_field():
    for mode, values, field, part in [
        ("edit", {"start": 50, "end": 10}, "end", "after Start (50)"),
        ("edit", {"start": 0, "end": 9999}, "end", "from 0 to 600"),
        ("edit", {"start": 10, "end": 10.4}, "end", "at least 0.5 seconds"),
        ("edit", {"action": "layer"}, "tracks", "Choose the track to add."),
        ("edit", {"action": "complete"}, "tracks", "Choose the tracks to add."),
        ("edit", {"action": "layer", "tracks": ["kazoo"]}, "tracks", '"kazoo"'),
        ("edit", {"action": "layer", "tracks": {"drums": True}}, "tracks", ""),
        ("edit", {"tracks": ["drums"]}, "tracks", "not for repaint"),
        ("edit", {"action": "morph", "start": 3}, "start", "for repaint and layer"),
        ("edit", {"action": "remix"}, "action", "repaint, morph, layer, extract, complete"),
        ("edit", {"options": {"n_min": 0.2}}, "options.n_min", "belongs to the action morph"),
        ("edit", {"action": "morph", "options": {"n_min": 0.7, "n_max": 0.6}}, "options.n_max", "above Morph"),
        ("extend", {"before": 0, "after": 0}, "after", "must not both be 0"),
        ("cover", {"source": None}, "source", "none was given"),
        ("cover", {"prompt": ""}, "prompt", "or add lyrics"),
        ("generate", {}, "source", "not known here"),
    ]:
        found = problem(mode, 60.0, **values)
        assert found.field == field
        assert part in found.message


def test_what_does_not_fit_the_source_is_told_with_its_length():
    for mode, values, field, part in [
        ("edit", {"start": 5, "end": 61}, "end", "from 0 to 60 seconds"),
        ("edit", {"start": 59.8}, "start", "from 0 to 59.5 seconds"),
        ("edit", {}, "end", "leave some of the source"),
        ("extend", {"before": 280, "after": 270}, "before", "from 0 to 540"),
        ("extend", {"before": 270, "after": 280}, "after", "from 0 to 540"),
    ]:
        found = problem(mode, 60.0, **values)
        assert found.field == field
        assert part in found.message


def test_what_fits_passes():
    for mode, values in [
        ("edit", {"start": 10, "end": 20}),
        ("edit", {"start": 10}),
        ("edit", {"action": "layer", "tracks": ["bass"], "start": 4, "end": 8, "options": {"mix": True}}),
        ("edit", {"action": "complete", "tracks": ["bass", "Backing Vocals"]}),
        ("edit", {"action": "morph", "options": {"n_min": 0.2, "n_max": 0.4, "n_avg": 3}}),
        ("extend", {"before": 240, "after": 300}),
    ]:
        check_source(parse_request(mode, {"prompt": "x", **SOURCE, **values}), 60.0)
