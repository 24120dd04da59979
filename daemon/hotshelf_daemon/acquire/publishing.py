"""What trusted workers built goes to the operator's prefix, in the background, for the other nodes to lease.

Only theirs: what is published is served to everybody on every node. What a restart or an origin that is down leaves unsent is
sent later; the index knows what has been.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from hotshelf_daemon import publish
from hotshelf_daemon.acquire.bundles import Bundles
from hotshelf_daemon.acquire.pipelines import Pipelines
from hotshelf_daemon.index import bundles, journal, pipelines
from hotshelf_daemon.index.bundles import BundleRow
from hotshelf_daemon.index.pipelines import PipelineRow
from hotshelf_daemon.publish import Parcel
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.built import Built
from hotshelf_shared.bundle import Bundle, publishing_key
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError, IntegrityError
from hotshelf_shared.source import Source

log = logging.getLogger(__name__)
#: How long an origin that failed is left alone.
AGAIN_S = 60.0
Row = TypeVar("Row", PipelineRow, BundleRow)


class Outbox(Protocol[Row]):
    """Built things of one `kind`."""

    kind: str

    def unsent(self, db: sqlite3.Connection, prefix: str) -> list[Row]:
        """Rows that are ready and have not been sent there, the oldest first."""

    def is_trusted(self, row: Row) -> bool: ...

    async def pack(self, row: Row) -> Parcel | None:
        """None when it was evicted or bound anew since, or is not what was bound."""

    def mark(self, db: sqlite3.Connection, row: Row, prefix: str) -> None:
        """It is there now."""


class PipelineOutbox:
    kind = "pipeline"

    def __init__(self, shelf: Shelf, rules: Pipelines) -> None:
        self._shelf = shelf
        self.is_trusted = rules.is_trusted
        self.unsent, self.mark = pipelines.unpublished, pipelines.mark_published

    async def pack(self, row: PipelineRow) -> Parcel | None:
        built = self._shelf.index.read(lambda db: pipelines.built(db, row.key))
        if built is None or built.revision != row.revision:
            return None

        def is_this(there: bytes) -> bool:
            try:
                return Built.parse(there, row.key).revision == row.revision
            except IntegrityError:
                return False  # whatever it is, it is not ours to replace

        return Parcel(f"pipelines/{row.key}", built.canonical(), built.tree, is_this)


class BundleOutbox:
    """What is sent was looked at once more, and is signed as what is for everybody."""

    kind = "bundle"

    def __init__(self, shelf: Shelf, rules: Bundles) -> None:
        self._key = publishing_key(shelf.bundle_key)
        self._rules = rules
        self.is_trusted = rules.is_trusted
        self.unsent, self.mark = bundles.unpublished, bundles.mark_published

    async def pack(self, row: BundleRow) -> Parcel | None:
        bundle = row.bundle
        if await self._rules.sound(bundle.name) != row:
            return None

        def is_this(there: bytes) -> bool | None:
            try:
                found = Bundle.parse(there)
            except IntegrityError:
                return None
            if found.name != bundle.name or not found.is_signed_with(self._key):
                return None  # of another key, from before it was changed, or nobody's
            return found.digest == bundle.digest

        return Parcel(f"bundles/{bundle.name}", bundle.signed(self._key).canonical(), bundle.tree, is_this)


class Publisher(Generic[Row]):
    def __init__(self, shelf: Shelf, outbox: Outbox[Row]) -> None:
        self._shelf = shelf
        self._outbox: Outbox[Row] = outbox
        self._prefix = shelf.settings.publish.of(outbox.kind)
        self._woken = asyncio.Event()
        self._stopping = threading.Event()
        self._given_up: set[Row] = set()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._prefix is not None:
            self._woken.set()  # a predecessor may have left some unsent
            self._task = asyncio.create_task(self._run(self._prefix))

    def wake(self) -> None:
        """There is something new."""
        self._woken.set()

    async def stop(self) -> None:
        """What is half sent harms nobody, and the next daemon goes on with it."""
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._threads.shutdown(wait=False)  # the thread sees `_stopping` at the next piece

    async def _run(self, prefix: Source) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                for row in self._due(str(prefix)):
                    await self._send(row, prefix)
            except HotshelfError as error:
                log.warning(f"a {self._outbox.kind} could not be published", extra={"code": error.code, "why": error.message})
                await asyncio.sleep(AGAIN_S)
                self._woken.set()

    def _due(self, prefix: str) -> list[Row]:
        rows = self._shelf.index.read(lambda db: self._outbox.unsent(db, prefix))
        return [row for row in rows if self._outbox.is_trusted(row) and row not in self._given_up]

    async def _send(self, row: Row, prefix: Source) -> None:
        """Raises what makes it worth another try; what does not is an event, and left alone until the next start."""
        if (parcel := await self._outbox.pack(row)) is None:
            return
        loop, subject = asyncio.get_running_loop(), f"{self._outbox.kind}:{parcel.name.partition('/')[2]}"
        try:
            sent = await loop.run_in_executor(self._threads, self._publish, parcel, prefix)
        except publish.Stopped:
            return
        except HotshelfError as error:
            await self._tell(subject, f"{error.code}: {error.message}")
            if error.retryable:
                raise
            self._given_up.add(row)
            return
        if not sent:
            self._given_up.add(row)
            await self._tell(subject, f"another one is at {prefix}; {parcel.tree.revision} stays here")
            return
        await self._shelf.index.write(lambda db: self._outbox.mark(db, row, str(prefix)))
        log.info(f"{self._outbox.kind} published", extra={"what": subject, "revision": parcel.tree.revision})

    async def _tell(self, subject: str, why: str) -> None:
        await self._shelf.index.write(lambda db: journal.event(db, "publish_failed", subject, why))

    def _publish(self, parcel: Parcel, prefix: Source) -> bool:
        layout = self._shelf.layout

        def path(digest: Digest) -> str:
            return layout.path("blobs", "sha256", digest.hex[:2], digest.hex)

        return publish.publish_built(parcel, path, prefix, self._shelf.settings, self._stopping.is_set)
