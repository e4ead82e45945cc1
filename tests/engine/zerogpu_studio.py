"""Starts the studio as ZeroGPU would, on a machine without a card: python -m tests.engine.zerogpu_studio

The `spaces` package is the real one in its ZeroGPU mode: forked workers, packed weights, queues, pickling, progress.
What touches CUDA itself is replaced. Words in a prompt make the worker misbehave: "slowly", "crash", "raise"; with
"together 4" it waits for three others that do, with "held" for the file "go". Each song leaves a file with what the
worker saw in ZEROGPU_FACTS. The patience with visitors who are gone goes by a clock that the file "passed" sets ahead.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import sys
import time
from importlib import metadata
from pathlib import Path

from tests.program import ROOT
from tests.waiting import until

MADE_FOR = "0.51.3"


def patch_torch() -> None:
    """Give a CPU build of torch what `spaces` expects of a CUDA build."""
    import torch

    torch.version.cuda = "13.0"
    torch._C._cuda_init = lambda: None
    # `spaces` sends it to another process by its name.
    _is_in_bad_fork.__module__ = "torch.cuda"
    torch.cuda._is_in_bad_fork = _is_in_bad_fork


def _is_in_bad_fork() -> bool:
    return False


def patch_spaces() -> None:
    """Let a worker read the packed weights back into the processor's memory instead of streaming them onto a card."""
    try:
        import spaces.zero.torch as zero
        from spaces.zero import client
        from spaces.zero.torch import patching

        assert (
            callable(zero.init) and callable(zero.move) and isinstance(patching.tensor_packs, list)
        )
    except Exception as error:
        installed = metadata.version("spaces")
        sys.exit(
            f"The patches are made for spaces {MADE_FOR} and do not fit {installed}: {error!r}"
        )

    def move(callback=None):
        read_packs(patching.tensor_packs)
        forget_cuda()

    zero.init, zero.move = lambda uuid: None, move
    ask = client.api_client

    def hasty():
        api = ask()
        api.client.timeout = 5  # a minute, in the real one
        return api

    client.api_client = hasty


def read_packs(packs: list) -> None:
    """Fill the fake tensors from the files that `spaces` packed at launch: batches first, then the big ones."""
    import torch

    for pack in packs:
        with open(pack.path(), "rb") as file:
            for tensor, size, aligned in [
                each for batch in pack.batches for each in batch
            ] + pack.big_tensors:
                data = bytearray(file.read(aligned)[:size])
                flat = (
                    torch.frombuffer(data, dtype=tensor.dtype)
                    if size
                    else torch.empty(0, dtype=tensor.dtype)
                )
                real = torch.empty(0, dtype=tensor.dtype).set_(
                    flat.untyped_storage(), 0, tensor.shape, tensor.stride()
                )
                for fake in pack.fakes[tensor]:
                    fake.data = real


def forget_cuda() -> None:
    """Let whatever remembers the card in an attribute mean the processor: in this worker there is none."""
    import torch

    ours = {path.stem for path in ROOT.glob("*.py")}
    for each in gc.get_objects():
        if type(each).__module__ not in ours:
            continue
        for name, value in list(vars(each).items()) if hasattr(each, "__dict__") else ():
            if isinstance(value, torch.device) and value.type == "cuda":
                setattr(each, name, torch.device("cpu"))


def digest(module) -> str:
    """Return a hash of every weight of `module` as it is in memory, by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return found.hexdigest()


def misbehave() -> None:
    """Let words in the prompt decide what goes wrong in the worker; the models and the loop stay the real ones."""
    import modes

    real, facts_folder = modes.run, Path(os.environ["ZEROGPU_FACTS"])

    def run(pipe, job, *args, **kwargs):
        begun, prompt = time.time(), getattr(job.request, "prompt", "")
        for event in real(pipe, job, *args, **kwargs):
            if getattr(event, "stage", "") == "steps":
                if slow := re.search(r"slowly ([\d.]+)", prompt):
                    time.sleep(float(slow[1]))
                if others := re.search(r"together (\d+)", prompt):
                    (facts_folder / f"{os.getpid()}.together").touch()
                    until(lambda: len([*facts_folder.glob("*.together")]) >= int(others[1]), 110)
                if "held" in prompt and event.step == 2:
                    until((facts_folder / "go").exists)
                if "crash" in prompt:
                    os._exit(3)
                if "raise" in prompt:
                    raise ValueError("a secret of the worker")
            yield event
        facts = {"pid": os.getpid(), "seed": job.seeds[0], "begun": begun, "ended": time.time()}
        facts["transformer"] = digest(pipe.transformer)
        (facts_folder / f"{time.time_ns()}.json").write_text(json.dumps(facts))

    modes.run = run


def clock() -> float:
    """Return the seconds of this machine, and those that the test lets pass at once."""
    passed = Path(os.environ["ZEROGPU_FACTS"], "passed")
    return time.monotonic() + (float(passed.read_text()) if passed.exists() else 0.0)


def main() -> None:
    """Patch, import the studio, which builds its models at once, and serve it."""
    patch_torch()
    import spaces  # noqa: F401

    patch_spaces()
    import model_weights

    # The tests compare with the random checkpoint; the studio loads its models as soon as it is imported.
    model_weights.BUILT_IN[model_weights.MODEL_VARIABLE] = Path(os.environ["ZEROGPU_MODEL"])
    if shelf := os.environ.get("ZEROGPU_SHELF"):
        model_weights.MODELS_FOLDER = Path(shelf)
    import app
    import backend
    import beat
    import estimate
    import gpu_zero
    import runs

    runs.runs_of(backend.get_backend())._clock = clock
    beat.SILENT_SECONDS = 15.0
    if least := os.environ.get("ZEROGPU_LEAST_SECONDS"):
        # A limit that a test can wait for.
        gpu_zero.LEAST_SECONDS = int(least)
        estimate.CONSTANTS["cold_seconds"] = 0.0
    misbehave()
    app.main()


if __name__ == "__main__":
    main()
