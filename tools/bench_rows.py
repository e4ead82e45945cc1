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
    def of_both(
        cls,
        what: str,
        seconds: float,
        stock: Callable[[], Any],
        studio: Callable[[], Any],
        runs: int,
        **more: Any,
    ) -> Row:
        """Time both sides in turn; the first pair warms up."""
        stock_seconds = []
        studio_seconds = []
        for _ in range(runs + 1):
            stock_seconds.append(timed(stock))
            studio_seconds.append(timed(studio))
        del stock_seconds[0], studio_seconds[0]
        ratios = [a / b for a, b in zip(stock_seconds, studio_seconds, strict=True)]
        return cls(
            what,
            seconds,
            studio=statistics.median(studio_seconds),
            stock=statistics.median(stock_seconds),
            ratios=tuple(ratios),
            more=more or None,
        )

    def text(self) -> str:
        """Return the row of the table."""
        text = f"{self.what:<34}{self.seconds:>8g}{self._side(self.stock)}{self._side(self.studio)}"
        if self.ratios:
            spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}"
            text += f"{statistics.median(self.ratios):>7.2f}{spread:>14}"
        for name, value in (self.more or {}).items():
            text += f"  {name}: {value}"
        return text

    def _side(self, number: float | None) -> str:
        if number is None:
            return " " * 10
        shown = f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
        return f"{shown:>8} {self.unit[:1]}"


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
    """Draw how many times as fast as stock each row was: the median, with the smallest and the largest ratio."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.ratios][::-1]
    medians = []
    below = []
    above = []
    for row in shown:
        median = statistics.median(row.ratios)
        medians.append(median)
        below.append(median - min(row.ratios))
        above.append(max(row.ratios) - median)
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.34 * len(shown)), layout="constrained")
    axes.barh(
        [f"{row.what}, {row.seconds:g} s" for row in shown],
        medians,
        xerr=[below, above],
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
