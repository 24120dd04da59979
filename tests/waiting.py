"""Waiting for something to become true, with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(true: Callable[[], T], *, timeout_s: float = 30.0, every_s: float = 0.01, what: str = "") -> T:
    """The first true answer of `true`. Raises AssertionError, naming `what`, when `timeout_s` passes without one."""
    deadline = time.monotonic() + timeout_s
    while True:
        if answer := true():
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what or getattr(true, '__name__', 'a condition')}")
        time.sleep(every_s)
