"""Pipelines that trusted workers built go to the operator's prefix, in the background, for the other nodes to lease.

Only trusted ones: what is published is served to everybody on every node. What a restart or an origin that is down leaves
unsent is sent later; the index knows what has been.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from hotshelf_daemon import publish
from hotshelf_daemon.acquire.pipelines import Pipelines
from hotshelf_daemon.index import journal, pipelines
from hotshelf_daemon.index.pipelines import PipelineRow
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.built import Built
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.source import Source

log = logging.getLogger(__name__)
#: How long an origin that failed is left alone.
AGAIN_S = 60.0


class Publisher:
    def __init__(self, shelf: Shelf, rules: Pipelines) -> None:
        self._shelf = shelf
        self._rules = rules
        self._prefix = shelf.settings.publish.pipelines
        self._woken = asyncio.Event()
        self._stopping = threading.Event()
        self._given_up: set[PipelineRow] = set()
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

    async def _run(self, prefix: str) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                for row in self._due(prefix):
                    await self._send(row, prefix)
            except HotshelfError as error:
                log.warning("a pipeline could not be published", extra={"code": error.code, "why": error.message})
                await asyncio.sleep(AGAIN_S)
                self._woken.set()

    def _due(self, prefix: str) -> list[PipelineRow]:
        rows = self._shelf.index.read(lambda db: pipelines.unpublished(db, prefix))
        return [row for row in rows if self._rules.is_trusted(row) and row not in self._given_up]

    async def _send(self, row: PipelineRow, prefix: str) -> None:
        """Raises what makes it worth another try; what does not is an event, and left alone until the next start."""
        loop, source = asyncio.get_running_loop(), f"pipeline:{row.key}"
        built = self._shelf.index.read(lambda db: pipelines.built(db, row.key))
        if built is None or built.revision != row.revision:
            return  # evicted or bound anew since
        try:
            sent = await loop.run_in_executor(self._threads, self._publish, built, prefix)
        except publish.Stopped:
            return
        except HotshelfError as error:
            await self._tell(source, f"{error.code}: {error.message}")
            if error.retryable:
                raise
            self._given_up.add(row)
            return
        if not sent:
            self._given_up.add(row)
            await self._tell(source, f"another tree of that key is at {prefix}; {row.revision} stays here")
            return
        await self._shelf.index.write(lambda db: pipelines.mark_published(db, row, prefix))
        log.info("pipeline published", extra={"pipeline": row.key, "revision": row.revision, "prefix": prefix})

    async def _tell(self, source: str, why: str) -> None:
        await self._shelf.index.write(lambda db: journal.event(db, "publish_failed", source, why))

    def _publish(self, built: Built, prefix: str) -> bool:
        layout = self._shelf.layout

        def path(digest: Digest) -> str:
            return layout.path("blobs", "sha256", digest.hex[:2], digest.hex)

        return publish.publish_built(built, path, Source.parse(prefix), self._shelf.settings, self._stopping.is_set)
