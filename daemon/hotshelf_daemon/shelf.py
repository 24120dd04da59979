"""The open shelf: its bytes, its index, its settings, and the one hand that changes what lies on it.

`hand` is held across every change of blobs/ or snapshots/ together with the index rows that speak of it, and across
"is there room?" with "then it is reserved": so no two of them interleave, and readers need no lock at all.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

from hotshelf_daemon.config import Settings, share_of
from hotshelf_daemon.index import Index, blobs
from hotshelf_daemon.index.leases import LeaseRow
from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.store import Layout
from hotshelf_shared.digest import Revision


@dataclass(slots=True)
class Shelf:
    settings: Settings
    layout: Layout
    index: Index
    metrics: Metrics
    #: What bundles are signed with; nothing else is, and nobody else has it.
    bundle_key: bytes = field(repr=False)
    hand: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Leases granted while the index could not be written, by id: collection heeds them like those in the index.
    unwritten: dict[str, LeaseRow] = field(default_factory=dict)

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
