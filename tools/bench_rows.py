"""What tools.bench measures, as rows: two sides in turn, the ratio of each pair, a file, a picture."""

from __future__ import annotations

import datetime
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HEAD = f"{'what':<34}{'seconds':>8}{'stock':>10}{'studio':>10}{'ratio':>7}{'spread':>14}"
_clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True)
class Row:
    """One comparison at `seconds` of audio: medians in `unit`, and how many times as fast as stock the studio was.

    A row without `stock` has no ratios. `more` are further facts by their names.
    """

    what: str
    seconds: float
    studio: float
    stock: float | None = None
    ratios: tuple[float, ...] = ()
    unit: str = "s"
    more: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        what: str,
        seconds: float,
        stock: Callable[[], Any],
        studio: Callable[[], Any],
        runs: int,
        **more: Any,
    ) -> Row:
        """Time both sides in turn; the first pair warms up."""
        pairs = [(timed(stock), timed(studio)) for _ in range(runs + 1)][1:]
        ratios = tuple(theirs / ours for theirs, ours in pairs)
        theirs, ours = map(statistics.median, zip(*pairs, strict=True))
        return cls(what, seconds, ours, theirs, ratios, more=more or None)

    def text(self) -> str:
        """Return the row of the table."""
        sides = (
            n if n is None else f"{n:,.0f}" if n >= 100 else f"{n:.3g}"
            for n in (self.stock, self.studio)
        )
        numbers = "".join(" " * 10 if n is None else f"{n:>8} {self.unit[:1]}" for n in sides)
        text = f"{self.what:<34}{self.seconds:>8g}{numbers}"
        if self.ratios:
            text += f"{statistics.median(self.ratios):>7.2f}{f'{min(self.ratios):.2f}-{max(self.ratios):.2f}':>14}"
        return "  ".join([text, *(f"{name}: {value}" for name, value in (self.more or {}).items())])


def use_processor_time(wanted: bool) -> None:
    """Count the time of the processor, that of child processes included, instead of the clock's."""
    global _clock
    _clock = _processor_time if wanted else time.perf_counter


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes in a thread of its own, where the studio's songs run as well.

    OpenMP keeps a team of threads for each thread that computes; two teams, the main thread's being one, outnumber the
    cores, and libgomp then lets all of them sleep at every barrier, which doubles the time of a small model's steps.
    """
    with ThreadPoolExecutor(1) as thread:
        started = _clock()
        thread.submit(work).result()
        return _clock() - started


def write(path: Path, rows: list[Row]) -> None:
    """Write the rows with the machine, the date and the command as JSON."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    facts = {
        "command": " ".join(["python -m tools.bench", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
        "torch": torch.__version__,
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def draw(path: Path, rows: list[Row]) -> None:
    """Draw how many times as fast as stock each thing was: its median, and from the least to the most."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.ratios][::-1]
    middle = [statistics.median(row.ratios) for row in shown]
    spread = [
        [m - min(row.ratios) for m, row in zip(middle, shown, strict=True)],
        [max(row.ratios) - m for m, row in zip(middle, shown, strict=True)],
    ]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.34 * len(shown)), layout="constrained")
    axes.barh(
        [f"{row.what}, {row.seconds:g} s" for row in shown],
        middle,
        xerr=spread,
        color="#3b6ea5",
        ecolor="#888",
    )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as stock diffusers")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _processor_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
