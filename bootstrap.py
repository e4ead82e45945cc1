"""The process environment, set before any library that reads it is imported.

gradio, huggingface_hub and torch look at their variables while they are imported, so `app.py` calls `bootstrap` ahead
of its other imports. What the user has set is left as it is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

DEFAULTS = {
    # Operations that Apple's GPU lacks run on the CPU instead of failing.
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",
    # Nothing is reported to anybody.
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Spaces switch this on; it would make songs at start.
    "GRADIO_CACHE_EXAMPLES": "false",
}


def bootstrap(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set our defaults in `environ`, and a folder of our own for the files that the page serves."""
    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
    environ.setdefault("GRADIO_TEMP_DIR", str(page_files_folder()))


def page_files_folder() -> Path:
    """Return where Gradio keeps uploads and the copies of takes that the page plays: a folder of this user's own."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir(), f"ace-music-studio-page-{user}")
