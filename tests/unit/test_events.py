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
import jobs
import tooltips
from api_guard import _refusal_of
from api_official_tasks import Asked
from events import (
    FIRST_SHARE,
    LAST_SHARE,
    NO_THREADS,
    SHARES,
    Progress,
    Stage,
    StudioError,
    is_out_of_memory,
    share_done,
    shares_by,
)


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


def test_a_stage_has_the_share_of_its_seconds_and_a_run_never_goes_back():
    shares = shares_by({"planning": 10, "reading": 0, "steps": 60, "decoding": 20, "finishing": 10})
    whole = LAST_SHARE - FIRST_SHARE
    assert shares["steps"] == pytest.approx((FIRST_SHARE + 0.1 * whole, 0.6 * whole))
    start, share = shares["finishing"]
    assert start + share == pytest.approx(LAST_SHARE)
    assert shares_by({}) == SHARES
    # A source was slow to read once.
    slow = shares_by({"reading": 1_000, "steps": 60, "decoding": 20, "finishing": 20})
    assert slow["steps"][0] == pytest.approx(FIRST_SHARE + whole * 0.1 / 1.1)
    # Memory ran out in mid-song, so the stages come a second time.
    run = [
        Progress("loading"),
        Progress("planning", 5, 10),
        Progress("steps", 1, 4, outline=(1, 2)),
        Progress("loading"),
        Progress("steps", 3, 4, outline=(3, 4)),
        Progress("decoding", 1, 2),
    ]
    heard = list(jobs.with_times(iter(run), shares))
    done = [event.share for event in heard]
    assert done == sorted(done) and done[3] == done[2] and done[-1] < 1
    assert done[4] == pytest.approx(FIRST_SHARE + 0.55 * whole, abs=1e-3)
    assert [event.outline for event in heard] == [(), (), (1, 2), (1, 2), (3, 4), (3, 4)]


@pytest.mark.parametrize("stage", get_args(Stage))
def test_every_client_hears_of_every_stage(stage):
    progress = Progress(stage, 1, 2)
    facts = {"state": "running", "mode": "generate", "progress": vars(progress), "note": ""}
    assert tooltips.STAGES[stage] in api_runs.line_of({**facts, "tokens": 0})
    assert api_runs.share_of(facts) == share_done(progress)
    entry = api_official_results._unfinished("0", facts, Asked("x"))
    assert json.loads(entry["result"])[0]["progress"] == share_done(progress)
