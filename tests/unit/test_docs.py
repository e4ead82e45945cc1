"""What the documents say against what is so: links, tables of parameters, endpoints, shell blocks, length."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import api
import cli
from limits import LIMITS, TEXT_LIMITS
from params import REQUESTS
from tests.program import ROOT
from training.__main__ import COMMANDS

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "training" / "README.md"])
ARGUMENTS = re.compile(r"(?:run\.sh|app\.py|ace-music-studio)((?: +--[\w-]+(?: [^\s`-][^\s`]*)?)+)")
API = (ROOT / "docs" / "api.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
MODULES = {path.stem: ast.parse(path.read_text()) for path in sorted(ROOT.glob("*.py"))}


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_is_there(document):
    text = document.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path) if path else document
        assert place.exists(), target
        assert place.resolve().is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(place), target
    for name in re.findall(
        r"`((?:docs|tests|tools|training|docker|static|assets|presets|\.ci)/[\w./-]+)`", text
    ):
        assert (ROOT / name).exists(), name
    for shown in ARGUMENTS.findall(text):
        given = [word for word in shown.split() if "/path/" not in word]
        if "--help" not in given:
            cli.read_arguments(given, {})


def test_every_shell_block_parses_and_its_programs_are_known():
    shown = [
        code
        for path in DOCUMENTS
        for code in re.findall(r"^```bash\n(.*?)^```", path.read_text(), re.M | re.S)
    ]
    for code in shown:
        checked = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True)
        assert checked.returncode == 0, (code, checked.stderr)
        for script in re.findall(r"(?<![\w.])\.?/?((?:docker/|\./)?\w+\.sh)\b", code):
            assert (ROOT / script.removeprefix("./")).exists(), script
        for module in re.findall(r"python -m (tools\.\w+)", code):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
        for command in re.findall(r"python -m training (\w+)", code):
            assert command in COMMANDS, command


def section(heading: str) -> str:
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", API, re.MULTILINE | re.DOTALL)[
        1
    ]


def rows(text: str, column: str) -> dict[str, tuple[str, str]]:
    """Return name -> (default, words) of the tables in a section whose first column is `column`."""
    found = {}
    for table in re.findall(rf"^\| {column} \|.*\n\|[-|]+\n((?:\|.*\n)*)", text, re.MULTILINE):
        for line in table.splitlines():
            name, default, words = (cell.strip() for cell in line.strip("|").split(" | ", 2))
            found[name.strip("`")] = (default, words)
    return found


def default_of(cell: str):
    return json.loads(cell.strip("`"))


SHARED = rows(section("Parameters of every song endpoint"), "parameter")
OPTIONS = rows(section("Options"), "option")


@pytest.mark.parametrize("mode", api.ENDPOINTS)
def test_the_tables_have_every_parameter_and_option_with_default_and_limits(mode):
    own, options = (rows(section(f"`/{mode}`"), column) for column in ("parameter", "option"))
    if mode != "lyrics":
        own, options = {**SHARED, **own}, {**OPTIONS, **options}
    assert set(own) == set(api.ENDPOINTS[mode].names)
    for parameter in api.ENDPOINTS[mode].parameters:
        cell, _ = own[parameter.name]
        if parameter.default is api.REQUIRED:
            assert cell == "required", parameter.name
        else:
            assert default_of(cell) == parameter.default, parameter.name
    fields = REQUESTS[mode].model_fields["options"].annotation.model_fields
    assert set(options) == set(fields)
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        assert default_of(options[name][0]) == (
            list(default) if isinstance(default, tuple) else default
        ), name
    for name, (_, words) in {**own, **options}.items():
        if name in LIMITS:
            said = re.search(r"from (-?\d[\d.]*?) to (-?\d+(?:\.\d+)?)", words, re.IGNORECASE)
            assert said, f"{name}: {words}"
            assert said.groups() == (f"{LIMITS[name].low:.12g}", f"{LIMITS[name].high:.12g}"), name
        if name in TEXT_LIMITS:
            assert f"{TEXT_LIMITS[name]:,} characters" in words, name


def imports_of(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever in it, type-only imports included."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def lines_of_modules() -> list[list[str]]:
    """Return the modules, line by line from the top: a module imports those of its line and below."""
    block = re.search(r"```text\n(.*?)```", ARCHITECTURE, re.DOTALL)[1]
    return [line.split(", ") for line in block.splitlines()]


def test_imports_point_down_and_never_in_a_circle():
    """Holds for statements wherever they stand; nothing calls import_module, which they would not show."""
    lines = lines_of_modules()
    place = {name: number for number, line in enumerate(lines) for name in line}
    graph = {path.stem: imports_of(path) & place.keys() for path in ROOT.glob("*.py")}
    assert sorted(graph) == sorted(name for line in lines for name in line)
    up = [
        f"{name} imports {other}"
        for name in graph
        for other in graph[name]
        if place[other] < place[name]
    ]
    assert up == []
    TopologicalSorter(graph).prepare()  # raises where there is a circle
    assert not any(graph[name] for name in lines[-1])
    for path in ROOT.glob("*.py"):
        assert not re.search(r"\bimport_module\b|\b__import__\b", path.read_text()), path.name


@pytest.mark.parametrize(
    ("folder", "above"),
    [("", {"training", "tools", "tests"}), ("training", {"tools", "tests"}), ("tools", {"tests"})],
)
def test_the_studio_imports_no_training_and_training_no_tools(folder: str, above: set[str]):
    found = {}
    for path in (ROOT / folder).glob("*.py"):
        found[path.name] = {each.partition(".")[0] for each in imports_of(path)} & above
    assert found and not any(found.values()), found


def test_what_lies_below_the_surface_loads_no_gradio():
    """Workers of Ray and of ZeroGPU start with these modules alone, whatever they import themselves."""
    lines = lines_of_modules()
    first = next(number for number, line in enumerate(lines) if "backend" in line)
    below = [name for line in lines[first:] for name in line]
    for name in below:
        packages = {each.partition(".")[0] for each in imports_of(ROOT / f"{name}.py")}
        assert "gradio" not in packages, name
    program = f"import sys, {', '.join(below)}\nprint('gradio' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout == "False\n"


def test_the_list_of_files_has_each_module_once():
    listed = re.findall(r"^(\w+)\.py ", ARCHITECTURE, re.MULTILINE)
    assert sorted(listed) == sorted(MODULES)


def private_names_of_ours() -> set[str]:
    """Return the names that modules of the studio define themselves, as attributes too."""
    found = set()
    for tree in MODULES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self":
                found.add(node.attr)
    return found


def reached_into(tree: ast.Module, ours: set[str]) -> set[str]:
    """Return the private names of others that a module reads, and how it replaces parts of others.

    Names that the source spells out: not one that is put together while the studio runs.
    """
    found = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
            is_replaced = isinstance(node.ctx, ast.Store) and node.attr in ("__class__", "forward")
            if is_replaced or node.attr.startswith("register_forward"):
                found.add("a part of a model")
        elif isinstance(node, ast.ImportFrom) and node.module not in MODULES:
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            names = [part.value for part in node.args if isinstance(part, ast.Constant)]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).startswith("vars("):
            names = [part.value for part in [node.slice] if isinstance(part, ast.Constant)]
        found |= {name for name in names if re.match("_[a-z]", str(name)) and name not in ours}
    return found - {"_exit"}  # os._exit is documented


def test_what_is_reached_into_is_listed_with_a_test():
    reached = re.findall(
        r"^\| .*\|$", ARCHITECTURE.split("## Reached into")[1].split("\n## ")[0], re.MULTILINE
    )
    ours = private_names_of_ours()
    for module, tree in MODULES.items():
        for name in reached_into(tree, ours):
            of_module = [row for row in reached if re.search(rf"\b{module}\b", row)]
            assert of_module, (module, name)
            assert not name.startswith("_") or any(name in row for row in of_module), (module, name)
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for row in reached[2:]:
        noticed_by = row.split("|")[-2]
        assert re.findall(r"test_\w+\.py", noticed_by), row
        assert set(re.findall(r"test_\w+\.py", noticed_by)) <= tests, row


CHANGING = {
    *(
        "add",
        "append",
        "clear",
        "discard",
        "extend",
        "insert",
        "move_to_end",
        "pop",
        "popitem",
        "popleft",
    ),
    *("remove", "set", "setdefault", "update"),
}


def names_at_the_top(tree: ast.Module) -> dict[str, ast.expr | None]:
    """Return the variables of a module with the expressions that they begin as."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        found |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    return found


def changed_names(function: ast.AST) -> set[str]:
    """Return the names that a function declares global, or changes a part of: by assignment, or with a method."""
    found = set()
    for node in ast.walk(function):
        changed: ast.AST | None = None
        if isinstance(node, ast.Global):
            found |= set(node.names)
        elif isinstance(node, ast.Subscript | ast.Attribute):
            changed = node.value if isinstance(node.ctx, ast.Store | ast.Del) else None
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changed = node.func.value if node.func.attr in CHANGING else None
        while isinstance(changed, ast.Subscript | ast.Attribute):
            changed = changed.value
        if isinstance(changed, ast.Name):
            found.add(changed.id)
    return found


def functions_in(tree: ast.AST) -> list[ast.AST]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def classes_with_state() -> set[str]:
    """Return the classes of the studio whose methods change what `__init__` has set."""
    found = set()
    for tree in MODULES.values():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                methods = [each for each in functions_in(node) if each.name != "__init__"]
                if any("self" in changed_names(method) for method in methods):
                    found.add(node.name)
    return found


def test_the_state_of_a_process_is_listed():
    """Finds what is changed by name; what another module changes, it only finds if that is an object with state."""
    stateful = classes_with_state()
    found = set()
    for module, tree in MODULES.items():
        variables = names_at_the_top(tree)
        for function in functions_in(tree):
            changed = changed_names(function) & variables.keys()
            found |= {f"{module}.{name}" for name in changed}
        for name, value in variables.items():
            if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in stateful:
                found.add(f"{module}.{name}")
    found.remove("params.REQUESTS")  # complete once its module is imported
    table = ARCHITECTURE.split("## State of a process")[1].split("\n## ")[0]
    states = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = set(re.findall(r"`([\w.]+)`", " ".join(states)))
    assert listed - found == {"served.files_in_use"}  # app.py fills it
    assert found <= listed
