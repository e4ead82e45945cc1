"""tools/matrix.py: what it measures on known audio, and one small grid for real."""

import numpy as np
import pytest

from tools import matrix
from training import listening

RATE = 48_000


def test_silence_has_no_key_and_half_or_double_is_the_same_beat():
    assert matrix.heard_key(np.zeros(RATE, np.float32), RATE) == ""
    assert listening.tempo_error(60, 120) == (0, 0.5) and listening.tempo_error(240, 120) == (
        0,
        2.0,
    )
    assert listening.tempo_error(126, 120) == (pytest.approx(0.05), 1.0)


def test_a_click_at_a_border_stands_out_and_music_does_not():
    tone = 0.2 * np.sin(2 * np.pi * 220 * np.arange(2 * RATE) / RATE)[:, None].repeat(2, axis=1)
    assert abs(matrix.step_db(tone, RATE, 1.0)) < 0.5
    tone[RATE:] += 0.3
    assert matrix.step_db(tone, RATE, 1.0) > 20
    assert matrix.step_db(tone, RATE, 0.5) < 0.5


@pytest.mark.matrix
def test_a_small_grid_becomes_a_table(server, tmp_path, capsys):
    small = ["--url", server, "--bpm", "120", "--key", "am", "--task", "generate", "repaint"]
    out = tmp_path / "table.md"
    assert matrix.main([*small, "--seconds", "10", "--steps", "2", "--out", str(out)]) == 0
    title, _, names, _, *rows = out.read_text().splitlines()
    assert title.startswith("preview (preview), ")
    names, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (names, *rows))
    generate, repaint = (dict(zip(names, row, strict=True)) for row in rows)
    assert [one["task"] for one in (generate, repaint)] == ["generate", "repaint"]
    for one in (generate, repaint):
        assert (one["bpm"], one["key"], one["length"]) == ("120", "A minor", "10")
        assert float(one["seconds"]) > 0 and float(one["peak MB"]) > 100
        assert one["heard key"].split()[1] in ("major", "minor")
    assert generate["step dB"] == ""
    assert all(abs(float(step)) < 20 for step in repaint["step dB"].split(","))
    assert capsys.readouterr().out.strip() == out.read_text().strip()


@pytest.mark.slow
def test_a_call_that_fails_is_a_row_and_a_status(server, capsys):
    assert (
        matrix.main(
            ["--url", server, "--bpm", "10", "--key", "C major", "--task", "cover", "--steps", "2"]
        )
        == 1
    )
    (row,) = [line for line in capsys.readouterr().out.splitlines() if " failed: " in line]
    assert row.startswith("| 10 | C major | generate |")
    assert "from 30 to 300" in row
