"""The command line of app.py: every argument becomes an environment variable, set before anything reads it.

Only the standard library and the texts are imported here: gradio and huggingface_hub look at their variables while they
are imported, and `--help` and a wrong value should not wait for them.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path

import tooltips

VARIABLES = {
    "host": "GRADIO_SERVER_NAME",
    "port": "GRADIO_SERVER_PORT",
    "share": "GRADIO_SHARE",
    "model": "ACE_STUDIO_MODEL",
    "planner": "ACE_STUDIO_PLANNER",
    "lyrics": "ACE_STUDIO_LYRICS",
    "output": "ACE_STUDIO_OUTPUT",
    "mcp": "GRADIO_MCP_SERVER",
}


def read_arguments(
    arguments: Sequence[str] | None = None, environ: MutableMapping[str, str] = os.environ
) -> argparse.Namespace:
    """Check `arguments` (the command line's own unless given) and set their variables in `environ`.

    A wrong value ends the process with a sentence and status 2, as --help does with the help and status 0. What is not
    given leaves its variable as it is.
    """
    given = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    for name, variable in VARIABLES.items():
        value = getattr(given, name)
        if value is not None:
            environ[variable] = str(value)
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="app.py",
        description=tooltips.CLI_ABOUT,
        epilog=tooltips.CLI_END,
        add_help=False,
        allow_abbrev=False,
    )

    def value(name: str, metavar: str, check: Callable[[str], str]) -> None:
        parser.add_argument(f"--{name}", metavar=metavar, type=check, help=tooltips.CLI_HELP[name])

    def switch(name: str, **settings: object) -> None:
        parser.add_argument(f"--{name}", action="store_const", const="true", help=tooltips.CLI_HELP[name], **settings)

    value("host", "NAME", _host)
    value("port", "NUMBER", _port)
    switch("share")
    value("model", "MODEL", _model("preview"))
    value("planner", "MODEL", _model("preview", "off", inside=True))
    value("lyrics", "MODEL", _model("preview", "off"))
    value("output", "FOLDER", _output)
    switch("mcp")
    switch("check")
    parser.add_argument("-h", "--help", action="help", help=tooltips.CLI_HELP["help"])
    return parser


# --- values -------------------------------------------------------------------------------------------------------


def _wrong(sentence: str, **values: object) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(sentence.format(**values))


def _host(text: str) -> str:
    """Return a name or an address to listen on; whether it is one of this machine shows when the studio starts."""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        pass
    if not re.fullmatch(r"(?!-)[A-Za-z0-9.-]*[A-Za-z0-9]\.?", text) or re.fullmatch(r"[\d.]+", text):
        raise _wrong(tooltips.CLI_HOST, value=text)
    return text


def _port(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise _wrong(tooltips.CLI_PORT, value=text)
    return text


def _model(*words: str, inside: bool = False) -> Callable[[str], str]:
    """Return a check that takes one of `words`, a folder that is here, or the spelling of a model on the hub.

    `inside` allows a folder within a repository: org/repo/folder.
    """
    spelling = r"[A-Za-z0-9][\w.-]*/[\w.-]+" + (r"(/[\w.-]+)*" if inside else "")

    def check(text: str) -> str:
        if text.lower() in words:
            return text.lower()
        if text.startswith(("/", "./", "../", "~")) or text in (".", "..") or os.path.lexists(text):
            if not os.path.isdir(os.path.expanduser(text)):
                raise _wrong(tooltips.CLI_NO_FOLDER, value=text)
            return text
        if not re.fullmatch(spelling, text):
            raise _wrong(tooltips.CLI_MODEL, value=text, words=" or ".join(words))
        return text

    return check


def _output(text: str) -> str:
    """Return a folder that is there or can be made."""
    place = Path(os.path.expanduser(text)).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not text or not place.is_dir():
        raise _wrong(tooltips.CLI_OUTPUT_FILE, value=text, place=place)
    if not os.access(place, os.W_OK | os.X_OK):
        raise _wrong(tooltips.CLI_OUTPUT_CLOSED, value=text, place=place)
    return text
