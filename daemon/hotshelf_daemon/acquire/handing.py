"""Hand-ins: a worker brings blobs that it means to bind. Room first, then the bytes; a root until bound or out of time.

The rows outlive a restart and get their whole time anew then, as leases do: what took a worker minutes to send is not sent
twice because the daemon was upgraded, and what nobody binds is waste soon after. Deadlines are on the monotonic clock.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

from hotshelf_daemon import collect
from hotshelf_daemon.acquire.prepare import Preparer
from hotshelf_daemon.index import handed_in, ingests
from hotshelf_daemon.index.ingests import HANDED_IN, IngestRow
from hotshelf_daemon.ingest import Receiver
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import Busy

RETRY_AFTER_S = 1.0


class HandIns:
    def __init__(self, shelf: Shelf, preparer: Preparer, receiver: Receiver) -> None:
        self._shelf = shelf
        self._preparer = preparer
        self._receiver = receiver
        self._deadlines: dict[tuple[Digest, int], float] = {}
        self._under_way: Counter[int] = Counter()

    def resume(self) -> None:
        """At start: whatever waits to be bound gets its time anew."""
        for digest, uid in self._shelf.index.read(handed_in.everything):
            self._extend(digest, uid)

    async def hold(self, digest: Digest, *, uid: int) -> int | None:
        """The size of a held blob, which is a root for this uid from now on; None when it is not held."""
        try:
            size = await self._shelf.index.write_brief(lambda db: handed_in.hold(db, digest, uid))
        except asyncio.CancelledError:
            self._extend(digest, uid)  # it may be a root by now, or become one: never without a deadline
            raise
        if size is not None:
            self._extend(digest, uid)
        return size

    async def take_in(self, digest: Digest, size: int, body: AsyncIterator[bytes], *, uid: int) -> None:
        """The bytes as a blob that this uid may bind. `body` is not touched before there is room for all of it.

        Raises Busy, TooLarge, InsufficientSpace, and what `Receiver.receive` does; then nothing is left of it.
        """
        with self._turn(uid):
            row = ingests.new_row(HANDED_IN, OriginObject(digest, size, secrets.token_hex(8)), None)
            try:
                await self._reserve(row)
            except BaseException:
                await asyncio.shield(asyncio.create_task(self._receiver.drop(row)))
                raise
            try:
                await self._receiver.receive(row, digest, body, uid=uid)
            finally:
                self._extend(digest, uid)  # also when it fails: a worker may go as its blob is committed

    async def _reserve(self, row: IngestRow) -> None:
        async with self._shelf.hand:
            await collect.make_room(self._shelf, row.size, active=self._preparer.busy())
            self._receiver.active.add(row.id)
            await self._shelf.hand.finish(self._shelf.index.write(lambda db: ingests.reserve(db, [row])))

    @contextmanager
    def _turn(self, uid: int) -> Iterator[None]:
        """One of the hand-ins that may be under way at once."""
        settings = self._shelf.settings
        for count, most, whose in (
            (self._under_way[uid], settings.max_handins_per_uid, f"of uid {uid}"),
            (self._under_way.total(), settings.max_handins, "of all workers"),
        ):
            if count >= most:
                raise Busy(
                    f"{count} blobs {whose} are being handed in, {most} at once is the most", retry_after_s=RETRY_AFTER_S
                )
        self._under_way[uid] += 1
        try:
            yield
        finally:
            self._under_way[uid] -= 1

    def bound(self, digests: Iterable[Digest], *, uid: int) -> None:
        """Their rows went when they were bound; so do their deadlines."""
        for digest in digests:
            self._deadlines.pop((digest, uid), None)

    async def expire(self) -> None:
        """Lets go of what nobody has bound in its time."""
        now = time.monotonic()
        ended = [root for root, deadline in self._deadlines.items() if deadline <= now]
        for root in ended:
            del self._deadlines[root]
        if ended:
            await self._shelf.index.write(lambda db: handed_in.let_go(db, ended))
            self._shelf.room_bell.ring()
        for digest, uid in self._deadlines.keys() & set(ended):  # asked for again while it was being let go
            await self.hold(digest, uid=uid)

    def _extend(self, digest: Digest, uid: int) -> None:
        self._deadlines[digest, uid] = time.monotonic() + self._shelf.settings.handin_keep_s
