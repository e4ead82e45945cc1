"""How fast the studio is beside stock diffusers: python -m tools.bench [what ...], all of it by default

Both sides make the same thing in turn within one run, and the ratio of each pair is printed: median, smallest and
largest. Ratios within one run mean something on a noisy machine; seconds do not. The first pair warms up and
is not counted. On a shared machine: OMP_NUM_THREADS=1 taskset -c 0 python -m tools.bench --processor-time.

generate and the other modes: a whole request of the studio (uploads, loop, decoding, WAV, tags, record) against the
stock pipeline's call (same noise, steps, guidance, tiling and numbers; nothing written). "after the loop" is the time
that the studio then takes for decoding, loudness, encoding and tags, as a share of the stock pipeline's call. The stock
pipeline has no morph: that one is measured against an encoded source and two songs from words, which cost the same.
vae: decoding and encoding. first: a new process up to its first song, with loading. loop: a guided step of a
transformer of any size. planner: tokens a second. page: until it can be used.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import backend
import bootstrap
from tools import bench_cases, bench_loop, bench_page, bench_planner, bench_ray, bench_rows
from tools.bench_cases import TASKS
from tools.bench_rows import Row

PARTS = ("vae", "first", "loop", "planner", "page")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    cases = ", ".join((*TASKS, *PARTS))
    add("what", nargs="*", help=f"any of {cases}, all by default; or ray")
    add(
        "--seconds",
        type=float,
        nargs="+",
        default=[10, 60, 240],
        help="lengths of the song or source",
    )
    add("--steps", type=int, default=50)
    add("--runs", type=int, default=3)
    add(
        "--shape",
        choices=bench_loop.CHOICES,
        default="preview",
        help="loop: the transformer's size",
    )
    add("--layers", type=int, help="loop: the transformer's depth, where not the shape's own")
    add(
        "--compiled",
        action="store_true",
        help="loop: the studio's layers compiled (a minute or two)",
    )
    add("--float8", action="store_true", help="loop: the studio's layers computed in 8 bits")
    add("--dimensions", choices=bench_planner.SHAPES, default="", help="planner: random weights")
    add("--processor-time", action="store_true", help="count the processor's time, not the clock's")
    add("--json", type=Path, help="write the rows there")
    add("--picture", type=Path, help="draw the ratios there (matplotlib)")
    arguments = parser.parse_args()
    unknown = set(arguments.what) - {*TASKS, *PARTS}
    if unknown and arguments.what != ["ray"]:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return arguments


def main() -> None:
    """Measure the requested cases, print a row for each, and write the file and the picture."""
    arguments = read_arguments()
    if arguments.what == ["ray"]:
        bench_ray.main(arguments)
        return
    bench_rows.use_processor_time(arguments.processor_time)
    rows = []
    print(bench_rows.HEAD)
    for row in measured(arguments):
        rows.append(row)
        print(row.text(), flush=True)
        # After each row, so that a run that is stopped leaves what it has measured.
        if arguments.json:
            bench_rows.write(arguments.json, rows)
    if arguments.picture:
        bench_rows.draw(arguments.picture, rows)


def measured(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each case and length.

    If all cases are measured, modes other than generate are measured at the first length only.
    """
    steps = arguments.steps
    runs = arguments.runs
    for case in arguments.what or (*TASKS, *PARTS):
        if case == "loop":
            yield from bench_loop.bench(
                arguments.shape,
                arguments.layers,
                arguments.seconds,
                runs,
                arguments.compiled,
                arguments.float8,
            )
        elif case == "planner":
            yield from bench_planner.bench(arguments.dimensions, arguments.seconds, runs)
        elif case == "page":
            yield from bench_page.bench(runs)
        elif case == "vae":
            yield from bench_cases.vae_rows(backend.get_backend().models.pipeline(), runs)
        elif case == "first":
            yield bench_cases.first_row(min(arguments.seconds), steps, runs)
        else:
            lengths = arguments.seconds
            if case != "generate" and not arguments.what:
                lengths = lengths[:1]
            for seconds in lengths:
                yield bench_cases.song_row(backend.get_backend(), case, seconds, steps, runs)


if __name__ == "__main__":
    bootstrap.bootstrap()
    main()
