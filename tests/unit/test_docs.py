"""What the documents say against what is so: links, tables of parameters, endpoints, shell blocks, length."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cli
import endpoints
from limits import ACTIONS, LIMITS, TEXT_LIMITS, TRACKS
from params import REQUESTS
from tests.program import ROOT, python

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
API = (ROOT / "docs" / "api.md").read_text()


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path) if path else document
        assert place.exists(), target
        assert place.resolve().is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_files_that_are_named_exist(document):
    text = document.read_text()
    for name in re.findall(r"`((?:docs|tests|tools|docker|static|assets|presets|\.ci)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    beside = {path.name for path in ROOT.glob("*.py")} | {path.name for path in ROOT.glob("*/*.py")}
    for name in re.findall(r"`(\w+\.py)`", text):
        assert name in beside, name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def blocks() -> list[tuple[str, str]]:
    return [
        (f"{named(path)}-{i}", code)
        for path in DOCUMENTS
        for i, code in enumerate(re.findall(r"^```bash\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL))
    ]


@pytest.mark.parametrize(("name", "code"), blocks(), ids=[name for name, _ in blocks()])
def test_every_shell_block_parses_and_its_programs_are_known(name, code):
    checked = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    for script in re.findall(r"(?<![\w.])\.?/?((?:docker/|\./)?\w+\.sh)\b", code):
        assert (ROOT / script.removeprefix("./")).exists(), script
    for module in re.findall(r"python -m (tools\.\w+)", code):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


ARGUMENTS = re.compile(r"(?:run\.sh|app\.py|ace-music-studio)((?: +--[\w-]+(?: [^\s`-][^\s`]*)?)+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_arguments_that_are_shown_are_taken(document):
    for shown in ARGUMENTS.findall(document.read_text()):
        given = [word for word in shown.split() if "/path/" not in word]
        if "--help" not in given:
            cli.read_arguments(given, {})


@pytest.mark.parametrize("tool", [pytest.param("bench", marks=pytest.mark.slow), "matrix"])
def test_the_tools_have_a_help(tool):
    told = python("-m", f"tools.{tool}", "--help")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("usage:")


def test_the_options_of_hf_that_are_shown_exist():
    program = shutil.which("hf", path=str(Path(sys.executable).parent))
    shown = "".join(code for name, code in blocks() if "hf download" in code)
    told = subprocess.run([program, "download", "--help"], capture_output=True, text=True, env={"COLUMNS": "120"})
    for option in set(re.findall(r"hf download [^\n]*?(--[\w-]+)", shown)):
        assert option in told.stdout, option


# --- the API's tables ---------------------------------------------------------------------------------------------


def test_the_endpoints_that_are_listed_are_those_of_the_app():
    listed = re.findall(r"^\| `/(\w+)` \|", API, re.MULTILINE)
    assert listed == [*endpoints.ENDPOINTS, "capabilities"]


def section(heading: str) -> str:
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", API, re.MULTILINE | re.DOTALL)[1]


def rows(text: str, column: str) -> dict[str, tuple[str, str]]:
    """Return name -> (default, words) of the tables in a section whose first column is `column`."""
    found = {}
    for table in re.findall(rf"^\| {column} \|.*\n\|[-|]+\n((?:\|.*\n)*)", text, re.MULTILINE):
        for line in table.splitlines():
            name, default, words = (cell.strip() for cell in line.strip("|").split(" | ", 2))
            found[name.strip("`")] = (default, words)
    return found


def default_of(cell: str):
    """Return a default as the document writes it: JSON's words for Python's."""
    code = cell.strip("`").replace("null", "None").replace("true", "True").replace("false", "False")
    return ast.literal_eval(code)


SHARED = rows(section("Parameters of every song endpoint"), "parameter")
OPTIONS = rows(section("Options"), "option")


@pytest.mark.parametrize("mode", endpoints.ENDPOINTS)
def test_the_tables_have_every_parameter_with_its_default(mode):
    own = rows(section(f"`/{mode}`"), "parameter")
    told = own if mode == "lyrics" else {**SHARED, **own}
    assert set(told) == set(endpoints.ENDPOINTS[mode].names)
    for parameter in endpoints.ENDPOINTS[mode].parameters:
        cell, _ = told[parameter.name]
        if parameter.default is endpoints.REQUIRED:
            assert cell == "required", parameter.name
        else:
            assert default_of(cell) == parameter.default, parameter.name


@pytest.mark.parametrize("mode", endpoints.ENDPOINTS)
def test_the_tables_have_every_option_with_its_default(mode):
    own = rows(section(f"`/{mode}`"), "option")
    told = own if mode == "lyrics" else {**OPTIONS, **own}
    fields = REQUESTS[mode].model_fields["options"].annotation.model_fields
    assert set(told) == set(fields)
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        assert default_of(told[name][0]) == (list(default) if isinstance(default, tuple) else default), name


def number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e6 else str(int(value))


@pytest.mark.parametrize("mode", endpoints.ENDPOINTS)
def test_the_tables_state_the_limits_of_params(mode):
    told = {**rows(section(f"`/{mode}`"), "parameter"), **rows(section(f"`/{mode}`"), "option")}
    if mode == "generate":
        told = {**SHARED, **OPTIONS, **told}
    for name, (_, words) in told.items():
        if name in LIMITS:
            said = re.search(r"from (-?\d[\d.]*?) to (-?\d+(?:\.\d+)?)", words, re.IGNORECASE)
            assert said, f"{name}: {words}"
            low, high = said.groups()
            assert (low, high) == (number(LIMITS[name].low), number(LIMITS[name].high)), name
        if name in TEXT_LIMITS:
            assert f"{TEXT_LIMITS[name]:,} characters" in words, name


def test_every_track_and_action_is_listed():
    _, tracks = rows(section("`/edit`"), "parameter")["tracks"]
    assert all(f"`{track}`" in tracks for track in TRACKS)
    assert all(re.search(rf"^\| {action} \| ", section("`/edit`"), re.MULTILINE) for action in ACTIONS)


def imports_of(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever in it, but for those that only type checkers look at."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text()))
    return found


def test_imports_point_down_and_never_in_a_circle():
    block = re.search(r"```text\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)[1]
    lines = [line.split(", ") for line in block.splitlines()]
    place = {name: number for number, line in enumerate(lines) for name in line}
    graph = {path.stem: imports_of(path) & place.keys() for path in ROOT.glob("*.py")}
    assert sorted(graph) == sorted(name for line in lines for name in line)
    up = [f"{name} imports {other}" for name in graph for other in graph[name] if place[other] < place[name]]
    assert up == []
    TopologicalSorter(graph).prepare()  # raises where there is a circle
    assert not any(graph[name] for name in lines[-1])
