"""The time by which ages are judged: setting the machine's clock forward makes nothing old.

A clock that is wrong for a minute would otherwise delete the songs of a month.
"""

from __future__ import annotations

import time

# It keeps running while the machine sleeps, and nobody can set it.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_started = time.time() - time.clock_gettime(_STEADY)


def now() -> float:
    """Return the seconds since 1970, by the machine's clock at the start of this process if that was earlier."""
    return min(time.time(), _started + time.clock_gettime(_STEADY))
