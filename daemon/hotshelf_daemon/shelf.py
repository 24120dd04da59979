"""The open shelf: its bytes, its index, its settings, and the one hand that changes what lies on it.

`hand` is held across every change of blobs/ or snapshots/ together with the index rows that speak of it, and across
"is there room?" with "then it is reserved": so no two of them interleave, and readers need no lock at all.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hotshelf_daemon.config import Settings, share_of
from hotshelf_daemon.index import Index, blobs
from hotshelf_daemon.index.leases import LeaseRow
from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.provenance import Keyring
from hotshelf_daemon.store import Layout
from hotshelf_shared.digest import Revision

log = logging.getLogger(__name__)
T = TypeVar("T")


class Hand:
    """`async with hand:` one at a time. What must not be cut short is done with `finish`, which outlives who asked for it.

    Whoever is cancelled amid `finish` leaves at once, but the hand stays taken until that work is done: the disk and the
    index are being changed on threads, which nobody can stop.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._unfinished: set[asyncio.Future[Any]] = set()
        self._is_left = False

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._is_left = True
        self._let_go()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Only for whoever holds the hand."""
        task = asyncio.create_task(work)
        self._unfinished.add(task)
        try:
            return await asyncio.shield(task)
        finally:
            if task.done():
                self._unfinished.discard(task)
            else:
                task.add_done_callback(self._is_finished)

    def _is_finished(self, task: asyncio.Future[Any]) -> None:
        self._unfinished.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("what nobody waited for any more failed", exc_info=error)
        self._let_go()

    def _let_go(self) -> None:
        if self._is_left and not self._unfinished:
            self._is_left = False
            self._lock.release()


class Bell:
    """Rung when there may be more room than before. Whoever asks `next` and then looks misses no ring."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        return self._next

    def ring(self) -> None:
        self._next.set()
        self._next = asyncio.Event()


@dataclass(slots=True)
class Shelf:
    settings: Settings
    layout: Layout
    index: Index
    metrics: Metrics
    #: What bundles are signed with; nothing else is, and nobody else has it.
    bundle_key: bytes = field(repr=False)
    hand: Hand = field(default_factory=Hand)
    room_bell: Bell = field(default_factory=Bell)
    #: Leases granted while the index could not be written, by id: collection heeds them like those in the index.
    unwritten: dict[str, LeaseRow] = field(default_factory=dict)
    #: The configured names that a wish, by its key, has below hub/.
    shown: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: The places that it has below names/ and model_cache/.
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: Raises BadConfiguration when the keys that origins require cannot be read.
    keyring: Keyring = field(init=False)

    def __post_init__(self) -> None:
        self.keyring = Keyring.of(self.settings)

    def held_unwritten(self) -> set[Revision]:
        return {row.revision for row in self.unwritten.values() if row.revision is not None}

    def held_bytes(self) -> dict[str, int]:
        """By the states of the contract; trash and quarantine include what lies in their folders."""
        held = self.index.read(blobs.bytes_by_state)
        held["trash"] += self.layout.folder_bytes("trash")
        held["quarantine"] = self.layout.folder_bytes("quarantine")
        return held

    def budget_bytes(self, held: int) -> int:
        """Bytes, or the smaller of a share of the file system and what is held plus free, less the reserve."""
        budget, room = self.settings.budget, self.layout.room()
        if isinstance(budget, int):
            return budget
        reserve = share_of(self.settings.reserve, room.total_bytes)
        return max(0, min(share_of(budget, room.total_bytes), held + room.free_bytes - reserve))

    def trusts(self, uid: int) -> bool:
        """Whether what this uid built may take a stranger's place, and go to other nodes.

        The daemon's own uid always may: it could write the store itself.
        """
        return uid == os.geteuid() or uid in self.settings.trusted_uids
