"""The public endpoints without a model: names, defaults, schemas, what a wrong value gets, how a run is passed on."""

import inspect
import re
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import soundfile
from gradio.mcp import GradioMCPServer
from gradio.utils import get_upload_folder

import api
import endpoints
import events
import params
from events import Done, Draft, Failed, Problem, Progress

REQUIRED = inspect.Parameter.empty
SONG = {
    "prompt": REQUIRED,
    "lyrics": "",
    "instrumental": False,
    "bpm": None,
    "key": "",
    "time_signature": "",
    "language": "unknown",
    "takes": 1,
    "quality": "standard",
    "seed": -1,
    "options": {},
}
CONTRACT = {
    "generate": {**SONG, "duration": 60, "reference": None},
    "cover": {**SONG, "source": REQUIRED, "reference": None, "strength": 0.8},
    "extend": {**SONG, "source": REQUIRED, "before": 0, "after": 30},
    "edit": {
        **SONG,
        "prompt": "",
        "source": REQUIRED,
        "action": "repaint",
        "start": 0,
        "end": 0,
        "source_prompt": "",
        "source_lyrics": "",
        "tracks": [],
    },
    "lyrics": {"brief": REQUIRED, "structure": "", "language": "en", "tone": "", "seed": -1, "options": {}},
}
SONGS = [mode for mode in CONTRACT if mode != "lyrics"]
GIVEN = {"prompt": "calm piano", "source": "song.wav", "brief": "rain"}


@pytest.fixture(scope="module")
def blocks():
    with gr.Blocks(analytics_enabled=False) as demo:
        api.add_endpoints()
    return demo


@pytest.fixture(scope="module")
def info(blocks):
    return blocks.get_api_info()["named_endpoints"]


@pytest.fixture(scope="module")
def upload():
    """Return a function that puts an audio file into the upload cache and returns what a client names it by."""

    def put(name="song.wav", seconds=4.0, rate=48_000):
        path = Path(get_upload_folder(), "unit", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(round(seconds * rate)), rate)
        return {"path": str(path), "meta": {"_type": "gradio.FileData"}}

    return put


def values(mode="generate", **given):
    """Return the values of a call in the order of the endpoint; a required one that is not given is None."""
    full = {name: None if default is REQUIRED else default for name, default in CONTRACT[mode].items()}
    full |= {"brief": "rain"} if mode == "lyrics" else {"prompt": "calm piano"}
    full |= given
    return [full[name] for name in endpoints.ENDPOINTS[mode].names]


def verdicts(mode="generate", **given):
    """Return what the validator of an endpoint says against each parameter."""
    endpoint = endpoints.ENDPOINTS[mode]
    found = api.validator_of(mode)(*values(mode, **given))
    assert len(found) == len(endpoint.names)
    return {name: one["message"] for name, one in zip(endpoint.names, found, strict=True) if not one["is_valid"]}


# --- names, defaults, schemas -------------------------------------------------------------------------------------


def test_exactly_the_endpoints_of_the_contract_are_offered(info):
    assert set(info) == {"/generate", "/cover", "/extend", "/edit", "/lyrics", "/capabilities"}
    assert info["/capabilities"]["parameters"] == []


@pytest.mark.parametrize("mode", CONTRACT)
def test_an_endpoint_has_the_names_and_defaults_of_the_contract(info, mode):
    offered = {
        one["parameter_name"]: one["parameter_default"] if one["parameter_has_default"] else REQUIRED
        for one in info[f"/{mode}"]["parameters"]
    }
    assert offered == CONTRACT[mode]


@pytest.mark.parametrize("mode", CONTRACT)
def test_defaults_mean_what_the_request_means_by_them(mode):
    given = {name: value for name, value in GIVEN.items() if name in CONTRACT[mode]}
    assert params.parse_request(mode, {**CONTRACT[mode], **given}) == params.parse_request(mode, given)


@pytest.mark.parametrize("mode", SONGS)
def test_returns_are_the_files_and_the_record(info, mode):
    assert [(one["label"], one["component"]) for one in info[f"/{mode}"]["returns"]] == [
        ("files", "File"),
        ("record", "Json"),
    ]


def test_lyrics_are_one_text(info):
    assert [(one["label"], one["component"]) for one in info["/lyrics"]["returns"]] == [("text", "Textbox")]


def test_the_mcp_tools_are_the_endpoints(blocks):
    assert set(GradioMCPServer(blocks).tool_to_endpoint) == {*CONTRACT, "capabilities"}


@pytest.mark.parametrize("mode", CONTRACT)
def test_an_mcp_tool_has_a_described_typed_schema(blocks, mode):
    server = GradioMCPServer(blocks)
    about, described = server.get_fn_description(server.get_block_fn_from_endpoint_name(f"/{mode}"), mode)
    schema, files = server.get_input_schema(mode, described)
    properties = schema["properties"]
    assert about.startswith(endpoints.ENDPOINTS[mode].about)
    assert set(schema["required"]) == {name for name, default in CONTRACT[mode].items() if default is REQUIRED}
    assert set(properties) == set(CONTRACT[mode])
    assert all(properties[name]["description"] for name in properties)
    assert properties["options"]["type"] == "object"
    assert properties["options"]["additionalProperties"] is True
    assert properties["seed"]["type"] == "integer"
    if mode != "lyrics":
        assert {"type": "null"} in properties["bpm"]["anyOf"]
        assert properties["takes"]["type"] == "integer"
    assert {name for (name,) in files} == {"source", "reference"} & set(properties)
    if mode == "edit":
        assert (properties["tracks"]["type"], properties["tracks"]["items"]) == ("array", {"type": "string"})
        assert {properties[name]["type"] for name in ("start", "end")} == {"number"}


@pytest.mark.parametrize("mode", CONTRACT)
def test_the_text_about_options_names_those_of_the_mode_and_no_other(mode):
    (about,) = (one.about for one in endpoints.ENDPOINTS[mode].parameters if one.name == "options")
    own = set(options_of(mode))
    others = set().union(*(options_of(other) for other in CONTRACT)) - own
    words = set(re.findall(r"\w+", about))
    assert own <= words
    assert not others & words


def options_of(mode):
    return params.REQUESTS[mode].model_fields["options"].annotation.model_fields


def test_the_page_draws_none_of_it(blocks):
    components = [block for block in blocks.blocks.values() if isinstance(block, gr.components.Component)]
    assert components
    assert [block for block in components if block.visible] == []


# --- wrong values -------------------------------------------------------------------------------------------------


def test_a_good_request_passes():
    assert verdicts() == {}
    assert verdicts(time_signature="4/4", key="Am", bpm=120, options=None) == {}
    assert verdicts(time_signature=4, key="C Major", prompt="", lyrics="la la") == {}


def test_each_wrong_value_gets_its_sentence_under_its_name():
    said = verdicts(bpm=0, seed=-2, takes=float("nan"), duration=float("inf"))
    assert set(said) == {"bpm", "seed", "takes", "duration"}
    assert "from 30 to 300" in said["bpm"]
    assert "from 10 to 600" in said["duration"]


def test_an_option_is_named_in_the_sentence():
    said = verdicts(options={"steps": 500, "guidance": 99, "wobble": 1})
    assert set(said) == {"options"}
    assert "options.steps: Steps must be a whole number from 1 to 200, not 500." in said["options"]
    assert "options.guidance" in said["options"]
    assert "options.wobble" in said["options"]


@pytest.mark.parametrize(
    ("given", "name", "part"),
    [
        ({"brief": ""}, "brief", "Brief must have from 1 to 2,000 characters: say what the song is about."),
        ({"brief": None}, "brief", "from 1 to 2,000 characters"),
        ({"brief": "x" * 50_000}, "brief", "up to 2,000 characters; this has 50,000"),
        ({"brief": ["rain"]}, "brief", "must be text"),
        ({"structure": "x" * 501}, "structure", "up to 500 characters"),
        ({"language": "klingon"}, "language", "51 listed codes"),
        ({"tone": 5}, "tone", "must be text"),
        ({"seed": 1.5}, "seed", "a whole number"),
        ({"options": {"max_tokens": 0}}, "options", "options.max_tokens: Max length must be a whole number from 16"),
        ({"options": {"steps": 5}}, "options", "max_tokens, temperature, top_p"),
    ],
    ids=str,
)
def test_wrong_values_for_lyrics_get_their_sentence(given, name, part):
    (said,) = verdicts("lyrics", **given).items()
    assert said[0] == name
    assert part in said[1]
    assert verdicts("lyrics") == {}


@pytest.mark.parametrize("name", ["x" * 100_000, "\ud800", "a\0b", "path"])
def test_a_strange_option_is_quoted_short_and_clean(name):
    (said,) = verdicts(options={name: 1}).values()
    assert len(said) < 500
    assert said.isprintable()
    said.encode()


@pytest.mark.parametrize("wrong", [["verse", "chorus"], {"a": 1}, 5, True])
def test_text_that_is_no_text_is_refused(wrong):
    assert "must be text" in verdicts(lyrics=wrong)["lyrics"]


def test_a_problem_of_no_parameter_is_still_told(monkeypatch):
    def parse(mode, values):
        raise events.InvalidRequest((Problem("invalid", "This cannot be."),))

    monkeypatch.setattr(api, "parse_request", parse)
    assert verdicts() == {"prompt": "This cannot be."}


def test_a_source_is_measured_before_anything_is_queued(upload):
    song = upload()
    assert verdicts("cover", source=song) == {}
    assert verdicts("extend", source=song, before=300, after=296) == {}
    assert verdicts("edit", source=song, prompt="", start=1, end=4) == {}
    assert verdicts("edit", source=song, action="layer", tracks=["drums"]) == {}
    assert "from 0 to 4 seconds" in verdicts("edit", source=song, start=1, end=4.1)["end"]
    assert "use Cover or Morph" in verdicts("edit", source=song)["end"]
    assert "from 0 to 596" in verdicts("extend", source=song, before=300, after=297)["before"]


def test_a_source_that_is_missing_or_no_audio_is_told_at_its_name(upload):
    text = upload("text.wav")
    Path(text["path"]).write_text("la la la")
    for mode in ("cover", "extend", "edit"):
        given = {"start": 1} if mode == "edit" else {}
        assert "none was given" in verdicts(mode, **given)["source"]
        assert verdicts(mode, source=text, **given) == {
            "source": "This is a text file, not audio. Choose a WAV, FLAC, MP3, OGG or AIFF file."
        }
    assert set(verdicts("cover", source=text, reference=text)) == {"source", "reference"}
    assert set(verdicts("generate", reference=text)) == {"reference"}


def test_a_region_may_reach_the_length_that_a_client_measured(upload):
    # 100,006 samples at 44.1 kHz become 108,850 at 48 kHz, which is a little shorter.
    song = upload("odd.wav", seconds=100_006 / 44_100, rate=44_100)
    assert verdicts("edit", source=song, start=1, end=100_006 / 44_100) == {}
    assert set(verdicts("edit", source=song, start=0, end=100_006 / 44_100)) == {"end"}
    # 2.3 - 1.8 is a little less than 0.5 in floating point.
    assert verdicts("edit", source=upload(), start=1.8, end=2.3) == {}
    assert verdicts("extend", source=upload("long.wav", 599.7, 8_000), before=0.1, after=0.2) == {}


def test_tracks_are_names(upload):
    song = upload()
    assert verdicts("edit", source=song, action="complete", tracks=["drums", "Backing Vocals"]) == {}
    for wrong in ([1], {"drums": True}, 5, True, ["kazoo"], ["path"], []):
        assert set(verdicts("edit", source=song, action="complete", tracks=wrong)) == {"tracks"}


def test_only_files_of_the_upload_cache_are_taken(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(api, "get_upload_folder", lambda: str(cache))
    inside, outside, link = cache / "a.wav", tmp_path / "b.wav", cache / "link.wav"
    inside.touch()
    outside.touch()
    link.symlink_to(outside)
    assert api.uploaded_path("reference", {"path": str(inside)}) == str(inside.resolve())
    refused = [
        str(inside),
        {"path": str(outside)},
        {"path": str(link)},
        {"path": str(cache)},
        {"path": str(cache / ".." / "b.wav")},
        {"path": "https://example.org/a.wav"},
        {"path": "a\0b"},
        {"path": "a" * 100_000},
        {"path": "\ud800"},
        {"path": None},
        {},
        [1],
    ]
    for value in refused:
        with pytest.raises(events.InvalidRequest, match="Reference must be an uploaded audio file"):
            api.uploaded_path("reference", value)


# --- passing a run on ---------------------------------------------------------------------------------------------


class Studio:
    """Stands in for the backend: plays `events` and remembers the request and whether the stream was closed."""

    def __init__(self, *events):
        self.events, self.request, self.closed = events, None, False

    def stream(self, request):
        self.request = request
        try:
            yield from self.events
        finally:
            self.closed = True


def generate(monkeypatch, *events, mode="generate", **given):
    studio = Studio(*events)
    monkeypatch.setattr(api, "get_backend", lambda: studio)
    return studio, api.handler_of(mode)(*values(mode, **given))


def test_progress_comes_first_and_the_song_last(monkeypatch):
    studio, run = generate(monkeypatch, Progress("steps", 3, 50, 1.5, 20.0), Done(("a.wav",), {"mode": "generate"}))
    waiting, progress, last = run
    assert waiting[1]["progress"]["stage"] == "waiting"
    expected = {"stage": "steps", "step": 3, "steps": 50, "elapsed": 1.5, "left": 20.0, "note": ""}
    assert progress == (None, {"progress": expected})
    assert last == (["a.wav"], {"mode": "generate"})
    assert studio.closed


def test_lyrics_come_as_they_are_written(monkeypatch):
    events = (Progress("loading"), Draft("[Verse", 1), Draft("[Verse]\nRain", 2), Done((), {"text": "[Verse]\nRain!"}))
    studio, run = generate(monkeypatch, *events, mode="lyrics", seed=3, options={"temperature": 0})
    assert list(run) == ["", "", "[Verse", "[Verse]\nRain", "[Verse]\nRain!"]
    assert (studio.request.mode, studio.request.seed, studio.request.options.temperature) == ("lyrics", 3, 0.0)
    assert studio.closed


def test_lyrics_that_fail_are_an_error(monkeypatch):
    _, run = generate(monkeypatch, Failed(Problem("writer_off", "It is off.")), mode="lyrics")
    with pytest.raises(gr.Error) as caught:
        list(run)
    assert (caught.value.title, caught.value.message) == ("writer_off", "It is off.")


def test_hanging_up_closes_the_stream(monkeypatch):
    studio, run = generate(monkeypatch, Progress("steps", 1, 50), Progress("steps", 2, 50))
    next(run)
    next(run)
    run.close()
    assert studio.closed


def test_a_failure_is_an_error_with_code_message_and_hint(monkeypatch):
    _, run = generate(monkeypatch, Failed(Problem("disk", "The <b>disk</b> is full.", hint="Free some space.")))
    with pytest.raises(gr.Error) as caught:
        list(run)
    assert caught.value.title == "disk"
    assert caught.value.message == "The &lt;b&gt;disk&lt;/b&gt; is full. Free some space."
    assert caught.value.print_exception is False


def test_an_unforeseen_error_is_told_as_one(monkeypatch):
    _, run = generate(monkeypatch)
    monkeypatch.setattr(api, "get_backend", lambda: 1 / 0)
    next(run)
    with pytest.raises(gr.Error, match="unexpected error") as caught:
        next(run)
    assert caught.value.title == "internal"


def test_a_wrong_value_that_slips_past_the_validator_starts_nothing(monkeypatch):
    studio, run = generate(monkeypatch, bpm=0)
    with pytest.raises(gr.Error, match="BPM must be"):
        next(run)
    assert studio.request is None


def test_what_is_understood_reaches_the_studio_in_the_models_words(monkeypatch):
    studio, run = generate(monkeypatch, Done((), {}), key="Am", time_signature="4/4", bpm=None)
    list(run)
    assert (studio.request.key, studio.request.time_signature, studio.request.bpm) == ("A minor", "4", None)
