"""The log has a limit on what one line of code writes in a minute, and says what it left out."""

from __future__ import annotations

import logging

import calm_log


def test_a_flood_becomes_a_few_lines_and_a_count():
    time = [0.0]
    calm = calm_log.Calm(lambda: time[0])

    def record(line: int) -> logging.LogRecord:
        return logging.LogRecord("studio", logging.WARNING, "a.py", line, "sent %s", ("x",), None)

    assert [calm.filter(record(1)) for _ in range(100)] == 30 * [True] + 70 * [False]
    assert calm.filter(record(2))
    time[0] = calm_log.SECONDS
    later = record(1)
    assert calm.filter(later)
    assert later.getMessage() == "sent x (70 lines like this were left out)"
    usual = record(1)
    assert calm.filter(usual) and usual.getMessage() == "sent x"
