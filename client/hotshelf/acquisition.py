"""One acquire on the wire: what is asked, how long it is asked for, what the answer was.

The deadline is the caller's. Until it passes, a daemon that is absent, draining or restarted is asked again, since the
same request joins the download that is under way; anything else the daemon says is final.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hotshelf.transport import Transport
from hotshelf_shared.errors import DaemonUnavailable, InvalidRequest
from hotshelf_shared.wire import MAX_TIMEOUT_S, LeaseAnswer, Progress

#: A source, or one with filters of its own: ``{"source", "revision", "allow_patterns", "ignore_patterns"}``.
Wanted = str | Mapping[str, Any]
Globs = str | Iterable[str] | None
OnProgress = Callable[[Progress], object]

#: The daemon keeps the deadline and says why it could not; this long after it, in seconds, we stop waiting for that.
GRACE_S = 5.0
PAUSE_FIRST_S, PAUSE_MOST_S = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at` in seconds of the monotonic clock; `timeout_s` is what the caller gave, for messages."""

    at: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float | None) -> Deadline:
        """None is the longest wait there is. Raises InvalidRequest."""
        if timeout_s is None:
            timeout_s = MAX_TIMEOUT_S
        if not math.isfinite(timeout_s) or timeout_s <= 0:
            raise InvalidRequest(f"timeout is a number of seconds above 0, not {timeout_s}")
        return cls(time.monotonic() + timeout_s, timeout_s)

    @property
    def left_s(self) -> float:
        return self.at - time.monotonic()


def compose(
    wanted: Wanted | Iterable[Wanted],
    *,
    revision: str | None = None,
    allow_patterns: Globs = None,
    ignore_patterns: Globs = None,
    hold_s: float | None = None,
) -> dict[str, Any]:
    """The body of ``POST /v1/leases``, without timeout and client. What is not asked for is not sent."""
    one = isinstance(wanted, str | Mapping)
    body = {
        "source" if one else "sources": wanted if one else list(wanted),
        "revision": revision,
        "allow_patterns": _globs(allow_patterns),
        "ignore_patterns": _globs(ignore_patterns),
        "hold_s": hold_s,
    }
    return {name: value for name, value in body.items() if value is not None}


def request(
    transport: Transport, body: Mapping[str, Any], *, deadline: Deadline, on_progress: OnProgress | None
) -> list[LeaseAnswer]:
    """Posts until the daemon grants or refuses, or the deadline passes. Raises what the daemon said."""
    event = ready(transport, "/v1/leases", body, deadline=deadline, on_progress=on_progress)
    granted = event["leases"] if isinstance(event.get("leases"), list) else [event.get("lease")]
    return [LeaseAnswer.parse(one) for one in granted]


def ready(
    transport: Transport, path: str, body: Mapping[str, Any], *, deadline: Deadline, on_progress: OnProgress | None
) -> dict[str, Any]:
    """The ready event of a call that may be made again. Posts until it comes or is refused, or the deadline passes."""
    pause_s = PAUSE_FIRST_S
    while True:
        try:
            return _post(transport, path, body, deadline, on_progress)
        except DaemonUnavailable as error:
            if (left_s := deadline.left_s) <= 0:
                raise DaemonUnavailable(
                    f"no daemon served {transport.address} within {deadline.timeout_s:g} s: {error.message}", hint=error.hint
                ) from error
            time.sleep(min(max(pause_s, error.retry_after_s or 0), PAUSE_MOST_S, left_s))
            pause_s *= 2


def _post(
    transport: Transport, path: str, body: Mapping[str, Any], deadline: Deadline, on_progress: OnProgress | None
) -> dict[str, Any]:
    body = {**body, "timeout_s": max(deadline.left_s, 0.01)}
    until = deadline.at + GRACE_S
    with transport.connect(until) as channel:
        for event in channel.events("POST", path, body, deadline=until):
            if event.get("event") == "ready":
                return event
            if event.get("event") == "progress" and on_progress is not None:
                on_progress(Progress.parse(event))
    raise DaemonUnavailable(f"the stream from {transport.address} ended without an answer")


def _globs(globs: Globs) -> list[str] | None:
    if globs is None:
        return None
    return [globs] if isinstance(globs, str) else list(globs)
