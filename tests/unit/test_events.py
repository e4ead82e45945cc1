"""What an error means where its class does not tell."""

from __future__ import annotations

import errno
import json
import threading
from typing import get_args

import pytest

import api_official_results
import api_runs
import gpu
import tooltips
from api_guard import _refusal_of
from api_official_tasks import Asked
from events import NO_THREADS, SHARES, Progress, Stage, StudioError, is_out_of_memory, share_done


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GiB, max allowed: 18 GiB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
        StudioError("out_of_memory", "It does not fit."),
    ],
    ids=str,
)
def test_a_lack_of_memory_is_known_by_its_words_too(error):
    assert is_out_of_memory(error)
    assert gpu.problem_of(error).code == "out_of_memory"
    assert _refusal_of(error, "call").status_code == 503


def test_a_lack_of_memory_on_a_processor_is_known():
    import torch

    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)  # more than any processor can address
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ValueError("out of memory"), OSError(errno.ENOSPC, "full")]
)
def test_other_errors_are_not_mistaken_for_it(error):
    assert not is_out_of_memory(error)


def test_a_lack_of_threads_has_a_sentence(monkeypatch):
    def start(thread):
        # CPython's own words, where the system refuses.
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError) as raised:
        threading.Thread().start()
    assert gpu.problem_of(raised.value) == NO_THREADS
    refused = _refusal_of(raised.value, "")
    assert refused.status_code == 503 and "any more threads" in refused.detail


def test_every_stage_has_its_words_and_its_share():
    assert {*get_args(Stage)} == {*SHARES} == {*tooltips.STAGES}


@pytest.mark.parametrize("stage", get_args(Stage))
def test_every_client_hears_of_every_stage(stage):
    progress = Progress(stage, 1, 2)
    facts = {"state": "running", "mode": "generate", "progress": vars(progress), "note": ""}
    assert tooltips.STAGES[stage] in api_runs.line_of({**facts, "tokens": 0})
    assert api_runs.share_of(facts) == share_done(progress)
    entry = api_official_results._unfinished("0", facts, Asked("x"))
    assert json.loads(entry["result"])[0]["progress"] == share_done(progress)
