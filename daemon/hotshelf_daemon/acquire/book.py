"""Leases as the daemon counts them: deadlines on the monotonic clock, which no clock step can touch.

Pure bookkeeping with `now` as an argument; the index keeps the rows, this keeps the time. Invariant: a lease is only ever
ended by its own uid, by its client's declaration, or by its deadline.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hotshelf_daemon.index.leases import LeaseRow
from hotshelf_shared.errors import AccessDenied, NotFound


@dataclass(slots=True)
class _Held:
    row: LeaseRow
    deadline: float


class Book:
    def __init__(self, eof_s: float) -> None:
        self._eof_s = eof_s
        self._held: dict[str, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def enter(self, row: LeaseRow, now: float) -> None:
        self._held[row.id] = _Held(row, now + row.ttl_s)

    def renew(self, *, uid: int, client: str, ids: Iterable[str], seen: int, now: float) -> tuple[list[str], list[str]]:
        """The ids kept, and the ids void: whatever else this client was granted up to `seen`, it no longer holds."""
        declared = set(ids)
        kept, void = [], []
        for held in self._held.values():
            if (held.row.uid, held.row.client) != (uid, client):
                continue
            if held.row.id in declared:
                held.deadline = now + held.row.ttl_s
                kept.append(held.row.id)
            elif held.row.grant <= seen:
                void.append(held.row.id)
        self._drop(void)
        return kept, void

    def release(self, id_: str, *, uid: int) -> None:
        """Raises NotFound, or AccessDenied when it is another uid's."""
        held = self._held.get(id_)
        if held is None:
            raise NotFound("there is no such lease", hint="It has expired or was released already.")
        if held.row.uid != uid:
            raise AccessDenied("the lease belongs to another uid", hint="Only the uid that took a lease can free it.")
        self._drop([id_])

    def shorten(self, *, uid: int, client: str, now: float) -> None:
        """The connection that renewed this client's leases is gone: they have only a moment left."""
        for held in self._held.values():
            if (held.row.uid, held.row.client) == (uid, client):
                held.deadline = min(held.deadline, now + self._eof_s)

    def forgive(self, gap_s: float) -> None:
        """Nobody could renew while we were stopped ourselves: that time does not count."""
        for held in self._held.values():
            held.deadline += gap_s

    def expire(self, now: float) -> list[str]:
        ended = [id_ for id_, held in self._held.items() if held.deadline <= now]
        self._drop(ended)
        return ended

    def discard(self, ids: Iterable[str]) -> None:
        """Takes back leases that were never answered."""
        self._drop(ids)

    def _drop(self, ids: Iterable[str]) -> None:
        for id_ in ids:
            self._held.pop(id_, None)
