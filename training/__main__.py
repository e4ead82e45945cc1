"""Train and judge the models that ship in assets/: python -m training COMMAND --help says what each can do."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "engine": (
        "engine_train",
        "train the built-in engine, stage by stage; run it again to continue",
    ),
    "evaluate": ("engine_evaluate", "make songs with the built-in engine and measure them"),
    "words": (
        "engine_words",
        "write down beside a checkpoint which keys, tempos and words it knows",
    ),
    "planner": (
        "planner",
        "train the built-in planner on the band's scores; run it again to continue",
    ),
    "songwriter": (
        "songwriter",
        "train the built-in songwriter on training/lyrics; run it again to continue",
    ),
    "evaluate-songwriter": (
        "songwriter_evaluate",
        "have it write for held-out briefs and measure the lyrics",
    ),
    "band": ("band_render", "render pieces of the music that the engine learns from"),
}
"""What can be asked for, the module here whose `main` does it, and what that is."""


def main() -> None:
    """Run the command that the first argument names; the others are its own."""
    wanted = sys.argv[1:2]
    if not wanted or wanted[0] not in COMMANDS:
        print(__doc__, end="\n\n")
        for name, (_, does) in COMMANDS.items():
            print(f"  {name:<22}{does}")
        sys.exit(0 if wanted in ([], ["-h"], ["--help"]) else 2)
    module, _ = COMMANDS[wanted[0]]
    sys.argv = [f"python -m training {wanted[0]}", *sys.argv[2:]]
    importlib.import_module(f"training.{module}").main()


if __name__ == "__main__":
    main()
