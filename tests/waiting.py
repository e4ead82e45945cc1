"""Waiting for what another thread or process does."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Found = TypeVar("Found")


def until(true: Callable[[], object], seconds: float = 300) -> None:
    """Wait until `true()` holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it did not happen in {seconds:g} s"
        time.sleep(0.02)


def result_of(coroutine: Coroutine[Any, Any, Found]) -> Found:
    """Run a coroutine to its end in a thread of its own, and return what it returns.

    Playwright leaves a running event loop in the thread of a worker that has had page tests, where
    `asyncio.run` refuses to start another.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
