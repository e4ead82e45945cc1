"""The key that programs must send if ACE_STUDIO_API_KEY has one, or several between commas.

It guards the official REST API, its chat endpoint and the named endpoints. The page needs none.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping

VARIABLE = "ACE_STUDIO_API_KEY"
MISSING_KEY = "Missing ai_token or Authorization header"
INVALID_KEY = "Invalid API key"
INVALID_TOKEN = "Invalid ai_token"


def wanted() -> tuple[str, ...]:
    """Return the accepted keys, none if anybody may call."""
    named = os.environ.get(VARIABLE, "").split(",")
    return tuple(key.strip() for key in named if key.strip())


def sent(headers: Mapping[str, str], token: object = None) -> str:
    """Return the key of a call, "" for none: `ai_token` in its body, or the Authorization header."""
    if isinstance(token, str) and token:
        return token
    header = headers.get("authorization", "").strip()
    if header.lower().startswith("bearer "):
        return header[7:].strip()
    return header


def problem(headers: Mapping[str, str], token: object = None) -> str:
    """Return why a call is refused for its key, "" if it is not."""
    keys = wanted()
    key = sent(headers, token)
    if not keys or any(hmac.compare_digest(key.encode(), each.encode()) for each in keys):
        return ""
    if not key:
        return MISSING_KEY
    if token:
        return INVALID_TOKEN
    return INVALID_KEY
