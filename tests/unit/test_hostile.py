"""Hostile requests get an answer that is meant: no error of ours, and no traceback in the log."""

from __future__ import annotations

import logging

import httpx
import pytest

from tools import hostile


@pytest.mark.slow
def test_no_attack_ends_in_an_error_of_ours(server, caplog, capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [caplog.handler])
    assert hostile.once(hostile.Target(server)) == 0
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    assert "Traceback" not in capfd.readouterr().err
    # No attack is a song that somebody would have to make.
    jobs = httpx.get(f"{server}/v1/stats", timeout=300).json()["data"]["jobs"]
    assert jobs["queued"] == jobs["running"] == 0
