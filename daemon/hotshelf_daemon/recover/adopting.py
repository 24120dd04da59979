"""A lost index over a large shelf: the daemon serves while it looks at the blobs, and what is asked for is looked at first.

Nothing is served unread: a blob becomes the index's when its bytes have been hashed, here as at a start that waits for all of
them. Until then it is a file that counts as held and that nobody is given.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from hotshelf_daemon.index import blobs
from hotshelf_daemon.recover import strangers
from hotshelf_daemon.recover.start import adopt_manifest, adopt_ref, names, ref_record, settle
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import trees
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import HotshelfError

log = logging.getLogger(__name__)
#: Hashing fewer bytes than these takes about a second, for which everybody can wait.
PATIENCE_BYTES = 1 << 30


class Adoption:
    """Takes in what `recover` left; `run` is its life, `bring` is for whoever cannot wait for the end of it."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._left = strangers.unknown(shelf.layout, shelf.index)
        self._verdicts: dict[Digest, asyncio.Future[bool]] = {}
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="adopting")
        shelf.unread_bytes = sum(self._left.values())

    @property
    def is_over(self) -> bool:
        return not self._left

    async def run(self) -> None:
        """Snapshot by snapshot, then whatever no manifest names; at the end the records that are litter go."""
        if self.is_over:
            return
        try:
            await self._read_the_shelf()
        except HotshelfError as error:
            log.warning("the shelf is not read to its end", extra={"why": error.message, "left": len(self._left)})

    async def _read_the_shelf(self) -> None:
        log.warning("serving while the shelf is read", extra={"blobs": len(self._left), "bytes": self._shelf.unread_bytes})
        for name in names(self._shelf.layout, "manifests"):
            if (tree := await asyncio.to_thread(trees.manifest, self._shelf.layout, name)) is not None:
                await self._take_in(tree.blobs(), name)
        for digest in [*self._left]:
            await self._take_in([digest])
        async with self._shelf.hand:
            rebuilt = await asyncio.to_thread(settle, self._shelf.layout, self._shelf.index, self._shelf.bundle_key)
        log.info("the shelf is read", extra={"rebuilt": rebuilt})

    def stop(self) -> None:
        """The next start goes on."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def bring(self, wishes: Iterable[str]) -> bool:
        """Whether any of these wishes has a ref on record that stands for a ready snapshot now, and did not before."""
        brought = False
        for wish in wishes:
            row = None if self.is_over else ref_record(self._shelf.layout, wish)
            if row is not None and await self._bring(row.revision):
                async with self._shelf.hand:
                    brought |= await self._shelf.index.write(lambda db: adopt_ref(db, row=row), durable=True)  # noqa: B023
                    if row.source.startswith("pipeline:"):
                        await asyncio.to_thread(
                            settle, self._shelf.layout, self._shelf.index, self._shelf.bundle_key, waiting={*self._left}
                        )
        return brought

    async def _bring(self, revision: Revision) -> bool:
        name = f"{revision.hex}.json"
        tree = await asyncio.to_thread(trees.manifest, self._shelf.layout, name)
        if tree is None:
            return False
        await self._take_in(tree.blobs(), name)
        return True

    async def _take_in(self, digests: Iterable[Digest], manifest: str | None = None) -> None:
        """Looks at those of these blobs that nobody has looked at yet, and makes the manifest's snapshot ready."""
        mine = [digest for digest in digests if digest in self._left]
        if not mine:
            return
        verdicts = dict(zip(mine, await asyncio.gather(*map(self._is_right, mine)), strict=True))
        async with self._shelf.hand:
            await asyncio.to_thread(self._place, verdicts, manifest)
            for digest in mine:
                self._shelf.unread_bytes -= self._left.pop(digest, 0)
                self._verdicts.pop(digest, None)

    async def _is_right(self, digest: Digest) -> bool:
        """Hashed once, however many wait for it; whoever stops waiting does not stop it."""
        if digest not in self._verdicts:
            loop = asyncio.get_running_loop()
            self._verdicts[digest] = loop.run_in_executor(self._threads, files.is_right, self._shelf.layout, digest)
        return await asyncio.shield(self._verdicts[digest])

    def _place(self, verdicts: dict[Digest, bool], manifest: str | None) -> None:
        shelf = self._shelf
        # What was fetched meanwhile is the index's already, and so is what somebody else has placed.
        held = shelf.index.read(blobs.everything)
        strangers.place(shelf.layout, shelf.index, {digest: right for digest, right in verdicts.items() if digest not in held})
        if manifest is not None:
            adopt_manifest(shelf.layout, shelf.index, manifest)
