"""The entry point and the look of the page: imports, port, texts, colours, escaping."""

from __future__ import annotations

import importlib
import itertools
import re
import socket
from dataclasses import asdict, replace

import httpx
import pytest

import api_runs
import page_form
import theme
import tooltips
from events import Problem, Progress
from lyrics_lint import Advice
from status import UNKNOWN, LanguageModelStatus, SongwriterStatus, WorkerStatus
from tests.program import python, serving

HOSTILE = "<script>alert(1)</script>"


def test_nothing_heavy_is_loaded_until_a_song_is_made():
    heavy = ("torch", "diffusers", "transformers", "peft", "scipy", "pyloudnorm")
    code = (
        "import app, sys, audio, audio_levels, lyrics_lint, lyrics, lora_apply, planner, model_weights;"
        "app.build_app(); model_weights.find_songwriter(); w = model_weights.find_planner();"
        f"print([m for m in {heavy} if m in sys.modules], w.source);"
        # Ray is for those who ask for it.
        "app.gpu_ray.pool.start(app.worker_status); print('ray' in sys.modules)"
    )
    result = python("-c", code, ACE_STUDIO_PLANNER="random")
    assert result.stdout.split("\n") == ["[] preview", "False", ""], result.stdout + result.stderr


def test_gradio_writes_no_interface_file_beside_a_component(tmp_path, monkeypatch):
    source = tmp_path / "own_component.py"
    source.write_text("import gradio\n\n\nclass Own(gradio.Textbox):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("app")
    assert importlib.import_module("own_component").Own(value="a").value == "a"
    assert source.exists() and not source.with_suffix(".pyi").exists()


@pytest.mark.slow
def test_a_port_in_use_ends_with_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = python("app.py", GRADIO_SERVER_PORT=str(port), GRADIO_SERVER_NAME="127.0.0.1")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"port {port}" in result.stderr and "GRADIO_SERVER_PORT" in result.stderr


@pytest.mark.matrix  # test_cli.py starts one on ::1
@pytest.mark.parametrize("name", ["[::1]", "::"])
def test_the_studio_listens_on_an_ipv6_address(tmp_path, name):
    with serving(tmp_path, GRADIO_SERVER_NAME=name) as (_, url):
        assert url.startswith("http://[::")
        port = url.strip("/").rpartition(":")[2]
        answer = httpx.get(f"http://[::1]:{port}/gradio_api/info", timeout=300)
        assert answer.status_code == 200


def test_a_number_box_is_read():
    read = {
        "90": 90,
        "2,5": 2.5,
        "": None,
        None: None,
        " 12.5 ": 12.5,
        7: 7,
        "fast": "fast",
        "1,2,3": "1,2,3",
    }
    read |= {
        "1,024": 1024,
        "-12,345,678.5": -12_345_678.5,
        "0,125": 0.125,
        "12,3456": 12.3456,
        "2:30": "2:30",
    }
    assert {text: page_form.number(text, None) for text in read} == read
    times = {
        "2:30": 150,
        "0:07,5": 7.5,
        "10:00": 600,
        " 1:02.25": 62.25,
        "90": 90,
        "": None,
        None: None,
    }
    wrong = ("1:60", "1:5", ":30", "2:30:10", "-1:00", "9999:00")
    assert {text: page_form.seconds(text, None) for text in times} == times
    assert {text: page_form.seconds(text, None) for text in wrong} == {text: text for text in wrong}
    assert page_form.number("9" * 100_000, None) in ("9" * 100_000, float("inf"))


def test_one_bar_is_that_of_all_stages_of_a_song_and_a_prompt_that_is_cut_is_told_in_few_words():
    facts = {"state": "running", "mode": "generate", "tokens": 0, "note": ""}
    shares = []
    for stage, step in (("planning", 1), ("planning", 9), ("steps", 1), ("decoding", 9)):
        line = api_runs.line_of({**facts, "progress": asdict(Progress(stage, step, 10))})
        shares.append(float(line.partition("--done:")[2].partition('"')[0]))
    assert shares == sorted(shares) and shares[-1] < 1
    assert "the last 300 words" in theme.budget(900, "la " * 300, 256)
    assert len(theme.budget(900, "la " * 300, 256)) < 300
    assert theme.budget(60, "", 256) == ""


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            Progress("steps", 12, 50, 8.2, 26.0),
            "Making the music, step 12 of 50, 0:08 so far, at least 0:26 left.",
        ),
        # No step is done.
        (Progress("steps", 0, 50, 1.2), "Making the music, 0:01 so far."),
        (Progress("loading", elapsed=61), "Loading the model, 1:01 so far."),
        (Progress("planning", 25, 150, 3.0), "Planning, 16 %, 0:03 so far."),
        (
            Progress("downloading", 4_025, 11_500, 30, 60),
            "Downloading the model, 4.0 of 11.5 GB, 0:30 so far, ",
        ),
    ],
)
def test_progress_is_one_sentence(event: Progress, words: str):
    assert str(tooltips.progress_sentence(event)).startswith(words)


def test_the_page_escapes_every_text():
    record = {"errors": [{"take": 1, "seed": 2, "message": HOSTILE}], "notes": [HOSTILE]}
    status = replace(
        UNKNOWN,
        model=HOSTILE,
        source="cache",
        problem=Problem(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        device="cpu",
        dtype="float32",
        device_reason=HOSTILE,
        planner=LanguageModelStatus("loaded", HOSTILE),
        songwriter=SongwriterStatus("loaded", HOSTILE),
        workers=(WorkerStatus(id=HOSTILE, node=HOSTILE, pid=1, device=HOSTILE, busy=True),),
    )
    plan = {"used": True, "bpm": 90, "key": HOSTILE, "time_signature": HOSTILE, "language": HOSTILE}
    shown = [
        theme.messages(record),
        theme.messages({"errors": [], "notes": [HOSTILE]}),
        theme.heading(status),
        theme.plan({**plan, "rewritten": True, "caption": HOSTILE}),
        theme.plan({"used": False, "reason": HOSTILE}),
        theme.advice([Advice(1, HOSTILE)]),
        theme.advice([Advice(1, HOSTILE)] * 3),
        theme.remark(HOSTILE),
        theme.banner(status),
        theme.notice(HOSTILE, HOSTILE, HOSTILE),
        theme.wrong_fields(HOSTILE, {"generate-prompt": HOSTILE}),
        theme.progress(Progress("steps", note=HOSTILE), HOSTILE),
        theme.line("failed", HOSTILE),
    ]
    for text in shown:
        assert "<script" not in text
        assert "&lt;script&gt;" in text


def luminance(colour: str) -> float:
    """Return the relative luminance of "#RRGGBB" (WCAG 2)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("side", [0, 1], ids=["light", "dark"])
def test_colours_have_enough_contrast(side: int):
    """WCAG 2: 4.5 for text, 3 for lines."""
    for fronts, backs, least in (
        (("ink", "ink-2", "muted"), ("bg", "surface", "raised"), 4.5),
        (("accent", "danger", "warn", "ok"), ("bg", "surface"), 4.5),
        (("on-accent",), ("accent", "accent-hover"), 4.5),
        (("line-strong",), ("surface", "raised"), 3),
        (("focus",), ("surface", "bg"), 3),
    ):
        for front, back in itertools.product(fronts, backs):
            low, high = sorted(
                luminance(theme.LOOK["tokens"][name][side]) for name in (front, back)
            )
            assert (high + 0.05) / (low + 0.05) >= least, (front, back)


def test_scripts_and_styles_are_sent_without_comments():
    sent = theme.css() + theme.head()
    assert not re.search(r"^[ \t]|^//|[ ;{]// |/\* ", sent, re.MULTILINE)
    # Nothing but comments and indents is missing.
    for path in theme.STATIC.glob("*.js"):
        lines = path.read_text(encoding="utf-8").splitlines()
        code = [re.sub(r"(^| )// .*", "", line).strip() for line in lines]
        assert theme.static(path.name).splitlines() == list(filter(None, code))
        assert not [line for line in code if line.count("`") % 2], path.name
        # What looks like a comment is part of no text.
        before = [line.partition("// ")[0] for line in lines if "// " in line]
        assert not [line for line in before if line.count('"') % 2], path.name


def test_the_theme_loads_nothing_from_other_servers():
    made = theme.theme()
    assert not [sheet for sheet in made._stylesheets if sheet]
    styles = made._get_theme_css() + theme.css()
    assert "@import" not in styles
    assert "//" not in styles.replace("http://www.w3.org", "")
