"""requirements.txt names what the studio imports, and nothing else."""

from __future__ import annotations

import re
import sys
from importlib import metadata

from tests.program import ROOT
from tests.unit.test_docs import imports_of

# Installed by the package that they belong to, and used through it.
PARTS = {
    "gradio_client": "gradio",
    "pydantic_core": "pydantic",
    "mlx": "mlx-lm",
    "mlx_lm": "mlx-lm",
}
NOT_IMPORTED = {"accelerate", "socksio"}  # requirements.txt says why
# requirements-ray.txt, requirements-songwriter.txt and requirements-media.txt
OPTIONAL = {"ray", "gguf", "av"}


def named() -> set[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return {
        re.match(r"[\w-]+", line)[0].lower().replace("_", "-")
        for line in lines
        if line[:1].isalpha()
    }


def imported() -> set[str]:
    """Return the packages from which the studio's own files import."""
    owners = metadata.packages_distributions()
    files = list(ROOT.glob("*.py"))
    ours = {path.stem for path in files} | {"tools", "training"}
    modules = {name.partition(".")[0] for path in files for name in imports_of(path)}
    foreign = modules - ours - set(sys.stdlib_module_names) - OPTIONAL - {""}
    return {PARTS.get(name) or owners[name][0].lower().replace("_", "-") for name in foreign}


def test_the_requirements_are_what_is_imported():
    assert named() - NOT_IMPORTED == imported()
