"""The public endpoints without a model: names, defaults, schemas, what a wrong value gets, how a run is passed on."""

import inspect
import re
from pathlib import Path

import gradio as gr
import pytest
from gradio.mcp import GradioMCPServer

import api
import params
from params import Done, Failed, Problem, Progress

CONTRACT = {
    "prompt": inspect.Parameter.empty,
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
    "duration": 60,
    "reference": None,
}
DOCS = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def blocks():
    with gr.Blocks(analytics_enabled=False) as demo:
        api.add_endpoints()
    return demo


@pytest.fixture(scope="module")
def info(blocks):
    return blocks.get_api_info()["named_endpoints"]


def values(**given):
    defaults = {name: "calm piano" if name == "prompt" else default for name, default in CONTRACT.items()}
    return list({**defaults, **given}.values())


def verdicts(**given):
    """Return what the validator of /generate says against each parameter."""
    endpoint = api.ENDPOINTS["generate"]
    found = api.song_validator("generate")(*values(**given))
    assert len(found) == len(endpoint.names)
    return {name: one["message"] for name, one in zip(endpoint.names, found, strict=True) if not one["is_valid"]}


# --- names, defaults, schemas -------------------------------------------------------------------------------------


def test_exactly_the_endpoints_of_the_contract_are_offered(info):
    assert set(info) == {"/generate", "/capabilities"}
    assert info["/capabilities"]["parameters"] == []


def test_generate_has_the_names_and_defaults_of_the_contract(info):
    offered = {
        one["parameter_name"]: one["parameter_default"] if one["parameter_has_default"] else inspect.Parameter.empty
        for one in info["/generate"]["parameters"]
    }
    assert offered == CONTRACT


@pytest.mark.parametrize("mode", api.ENDPOINTS)
def test_defaults_mean_what_the_request_means_by_them(mode):
    given = {"prompt": "calm piano"}
    defaults = {each.name: each.default for each in api.ENDPOINTS[mode].parameters if each.default is not api.REQUIRED}
    assert params.parse_request(mode, given | defaults) == params.parse_request(mode, given)


def test_returns_are_the_files_and_the_record(info):
    assert [(one["label"], one["component"]) for one in info["/generate"]["returns"]] == [
        ("files", "File"),
        ("record", "Json"),
    ]


def test_an_mcp_tool_has_a_described_typed_schema(blocks):
    server = GradioMCPServer(blocks)
    assert set(server.tool_to_endpoint) == {"generate", "capabilities"}
    about, described = server.get_fn_description(server.get_block_fn_from_endpoint_name("/generate"), "generate")
    schema, files = server.get_input_schema("generate", described)
    properties = schema["properties"]
    assert about.startswith("Make songs from words.")
    assert schema["required"] == ["prompt"]
    assert all(properties[name]["description"] for name in CONTRACT)
    assert {"type": "null"} in properties["bpm"]["anyOf"]
    assert properties["options"]["type"] == "object"
    assert properties["options"]["additionalProperties"] is True
    assert properties["takes"]["type"] == "integer"
    assert files == [["reference"]]


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
        raise params.InvalidRequest((Problem("invalid", "This cannot be."),))

    monkeypatch.setattr(api, "parse_request", parse)
    assert verdicts() == {"prompt": "This cannot be."}


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
        with pytest.raises(params.InvalidRequest, match="Reference must be an uploaded audio file"):
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


def generate(monkeypatch, *events, **given):
    studio = Studio(*events)
    monkeypatch.setattr(api, "get_backend", lambda: studio)
    return studio, api.song_handler("generate")(*values(**given))


def test_progress_comes_first_and_the_song_last(monkeypatch):
    studio, run = generate(monkeypatch, Progress("steps", 3, 50, 1.5, 20.0), Done(("a.wav",), {"mode": "generate"}))
    waiting, progress, last = run
    assert waiting[1]["progress"]["stage"] == "waiting"
    expected = {"stage": "steps", "step": 3, "steps": 50, "elapsed": 1.5, "left": 20.0, "note": ""}
    assert progress == (None, {"progress": expected})
    assert last == (["a.wav"], {"mode": "generate"})
    assert studio.closed


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


# --- the document -------------------------------------------------------------------------------------------------


def test_the_document_lists_every_parameter_with_its_default_and_limits():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCS.read_text(), re.MULTILINE))
    names = {name for endpoint in api.ENDPOINTS.values() for name in endpoint.names} | set(params.Options.model_fields)
    assert names == set(rows)
    for name, row in rows.items():
        limit = params.LIMITS.get(name)
        if limit:
            assert f"{limit.low:g} to {int(limit.high) if limit.integer else format(limit.high, 'g')}" in row, name
