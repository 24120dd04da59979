"""Decides what follows when the worker that a zygote was started with has ended. Pure."""

from __future__ import annotations

import signal

#: Wrong usage and wrong configuration: what was wrong will be wrong again.
_HOPELESS = frozenset((2, 78))
#: Nobody crashes of Ctrl-C: a person has ended it.
_MEANT = frozenset((0, -signal.SIGINT))
#: A worker that lived so long, in seconds, began well: what it died of is new.
SOUND_S = 60.0
_LONGEST_WAIT_S = 30.0


def wait_before_restart(code: int, *, failures: int, most: int) -> float | None:
    """Seconds until the worker is started again; None to end as it has.

    `code` is its exit code, or minus the signal that it died of; `failures` how often in a row it has failed, this time
    included. The first restart is at once, the next after a second, then twice as long each time.
    """
    if code in _MEANT or code in _HOPELESS or failures > most:
        return None
    return 0.0 if failures <= 1 else min(_LONGEST_WAIT_S, 2.0 ** (failures - 2))
