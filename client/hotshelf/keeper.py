"""Keeps this client's leases alive: one thread, one connection, one declaration of everything held.

The keeper's client id names it to the daemon; the end of its connection tells the daemon that this process is gone. The
thread starts with the first lease, reconnects and declares again after a daemon restart, and stops, closing its
connection, a little after the last lease went. A forked child starts over: a new client id, nothing held, so a `Lease`
it inherited is inert there.

Invariant: `abandon` may be called from the garbage collector, hence takes no lock and does no IO.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from hotshelf.ledger import Hold, Ledger
from hotshelf.transport import Channel, Transport, ask
from hotshelf_shared.errors import DaemonUnavailable, HotshelfError
from hotshelf_shared.wire import LeaseAnswer

ASK_TIMEOUT_S = 10.0
RELEASE_TIMEOUT_S = 2.0
RETRY_FIRST_S, RETRY_MOST_S = 0.1, 5.0
_NOTHING = ""  # a lease of no id: wakes the thread to look at the clock again

log = logging.getLogger("hotshelf")


class Keeper:
    """`linger_s` is how long the thread outlives the last lease, so that short leases in a row share it."""

    def __init__(self, transport: Transport, *, linger_s: float = 2.0) -> None:
        self._transport, self._linger_s = transport, linger_s
        self._start_over()
        _keepers.add(self)

    def _start_over(self) -> None:
        self.client = os.urandom(16).hex()
        self._lock = threading.Lock()
        self._ledger = Ledger()
        self._abandoned: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._wakes_at = math.inf

    # ---- for those who acquire and release

    def begin(self) -> object:
        """To be called before a request that names this client; the token goes to `hold` or `give_up`."""
        with self._lock:
            return self._ledger.begin()

    def hold(self, token: object, answers: Iterable[LeaseAnswer]) -> list[Hold]:
        """From here on these leases are renewed."""
        with self._lock:
            holds = self._ledger.grant(token, answers)
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="hotshelf-keeper", daemon=True)
                self._thread.start()
            else:
                self._wake_by(time.monotonic() + self._ledger.shortest_s / 3)
        return holds

    def give_up(self, token: object) -> None:
        """There will be no answer."""
        with self._lock:
            self._ledger.end(token)

    def release(self, lease_id: str) -> None:
        """Frees it at the daemon, or leaves that to the next declaration when the daemon is away."""
        with self._lock:
            held = self._ledger.drop(lease_id)
            if not self._ledger:
                self._wake_by(time.monotonic() + self._linger_s)
        if held:
            free(self._transport, lease_id)

    def abandon(self, lease_id: str) -> None:
        """As `release`, but soon and by the keeper's thread. For finalizers."""
        self._abandoned.put(lease_id)

    def leave(self) -> None:
        """At exit: declares that nothing is held."""
        with self._lock:
            body = {"client": self.client, "ids": [], "seen": self._ledger.seen}
            held, self._ledger = bool(self._ledger), Ledger()
        if held:
            with suppress(HotshelfError):  # harmless: the connection ends with the process, and that says the same
                ask(self._transport, "POST", "/v1/leases/renew", body, deadline=time.monotonic() + RELEASE_TIMEOUT_S)

    def _wake_by(self, when: float) -> None:
        if when < self._wakes_at:
            self._abandoned.put(_NOTHING)

    # ---- the thread

    def _keep(self) -> None:
        line = _Line(self._transport)
        due = time.monotonic()  # at once, so that the daemon knows this connection before anything can happen to us
        idle_since: float | None = None
        while True:
            with self._lock:
                now = time.monotonic()
                if self._ledger:
                    idle_since = None
                    due = min(due, now + self._ledger.shortest_s / 3)
                    self._wakes_at = due
                else:
                    idle_since = now if idle_since is None else idle_since
                    self._wakes_at = idle_since + self._linger_s
                    if now >= self._wakes_at:
                        line.close()
                        self._thread = None
                        return
            if now >= self._wakes_at:
                due = self._renew(line)
            else:
                self._free_next(line, self._wakes_at - now)

    def _renew(self, line: _Line) -> float:
        """Declares what is held; says when to do it again."""
        with self._lock:
            ids, seen = self._ledger.ids, self._ledger.seen
        try:
            answer = line.ask("POST", "/v1/leases/renew", {"client": self.client, "ids": ids, "seen": seen})
            kept, expires_s = _read_renewal(answer)
        except HotshelfError as error:
            return time.monotonic() + line.pause_after(error)
        line.worked()
        with self._lock:
            lost = self._ledger.lose(set(ids) - kept)
        for hold in lost:
            log.warning("the daemon no longer knows lease %s; what it held may be evicted: acquire it again", hold.id)
        return time.monotonic() + expires_s / 3

    def _free_next(self, line: _Line, timeout_s: float) -> None:
        """Waits until it is time to look again, or a lease is abandoned: frees that one."""
        try:
            lease_id = self._abandoned.get(timeout=timeout_s)
        except queue.Empty:
            return
        with self._lock:
            held = self._ledger.drop(lease_id)
        if held:
            with suppress(HotshelfError):  # harmless, as in `free`
                line.ask("DELETE", f"/v1/leases/{lease_id}")


class _Line:
    """The connection that carries renewals: opened when first needed, and anew when it broke."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._channel: Channel | None = None
        self._pause_s = RETRY_FIRST_S

    def ask(self, method: str, path: str, body: object = None) -> Any:
        deadline = time.monotonic() + ASK_TIMEOUT_S
        if self._channel is not None:
            try:
                return self._channel.ask(method, path, body, deadline=deadline)
            except DaemonUnavailable:
                self.close()  # what an idle connection says when the daemon was restarted: asking again is enough
        self._channel = self._transport.connect(deadline)
        return self._channel.ask(method, path, body, deadline=deadline)

    def worked(self) -> None:
        self._pause_s = RETRY_FIRST_S

    def pause_after(self, error: HotshelfError) -> float:
        """Seconds until another try is worth it; the first failure in a row is reported."""
        if self._pause_s == RETRY_FIRST_S:
            log.warning("cannot renew leases for now: %s", error)
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, RETRY_MOST_S)
        return pause_s

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def free(transport: Transport, lease_id: str) -> None:
    """Frees a lease, best effort: when it fails, the next declaration leaves it out or its time runs out."""
    with suppress(HotshelfError):
        ask(transport, "DELETE", f"/v1/leases/{lease_id}", deadline=time.monotonic() + RELEASE_TIMEOUT_S)


def _read_renewal(answer: Any) -> tuple[set[str], float]:
    try:
        kept, expires_s = {str(lease_id) for lease_id in answer["kept"]}, float(answer["expires_s"])
    except (KeyError, TypeError, ValueError) as error:
        raise HotshelfError(f"the answer to a renewal is none ({error!r})") from error
    return kept, expires_s if 0.03 <= expires_s <= 86_400 else 60.0


_keepers: WeakSet[Keeper] = WeakSet()


def _start_all_over() -> None:
    for keeper in list(_keepers):
        keeper._start_over()


def _leave_all() -> None:
    for keeper in list(_keepers):
        keeper.leave()


os.register_at_fork(after_in_child=_start_all_over)
atexit.register(_leave_all)
