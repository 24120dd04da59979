"""What other nodes published under the operator's prefix: looked at when a key is not on this shelf, never waited for.

A worker that asks is about to build what it asks for, so an origin that is slow or down must cost it next to nothing, and
many workers that ask for the same must not cost the origin more than one. A document that does not agree with itself is as
good as none, and an event.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from hotshelf_daemon.flights import Flights
from hotshelf_daemon.index import journal
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import Directory
from hotshelf_daemon.plan import Resolution, WantedFile
from hotshelf_daemon.policy import Policy
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.built import MAX_BUILT_BYTES, Built
from hotshelf_shared.errors import HotshelfError, IntegrityError
from hotshelf_shared.source import Source

log = logging.getLogger(__name__)
#: How long an answer of the origin is good, and how long a caller waits for one.
KEPT_S = 30.0
PATIENCE_S = 2.0
KEPT_ANSWERS = 1_024
LOOKERS = 4
_KEY = re.compile(r"[0-9a-f]{64}\Z")


class Published:
    """`directory` makes origins that give up soon and do not try again."""

    def __init__(self, shelf: Shelf, directory: Directory) -> None:
        self._shelf = shelf
        self._directory = directory
        prefix = shelf.settings.publish.pipelines
        self._prefix = None if prefix is None else Source.parse(prefix)
        self._answers: OrderedDict[str, tuple[float, Built | None]] = OrderedDict()
        self._looking: Flights[Built | None] = Flights()
        self._threads = ThreadPoolExecutor(LOOKERS, thread_name_prefix="published")

    @property
    def prefix(self) -> Source | None:
        return self._prefix

    async def find(self, key: str) -> Built | None:
        """The pipeline of that key as another node published it, its builder taken to be us; None when there is none."""
        if self._prefix is None or not _KEY.match(key):
            return None
        until, known = self._answers.get(key, (0.0, None))
        if time.monotonic() < until:
            return known
        return await self._looking.join(key, lambda: self._look(key))

    async def _look(self, key: str) -> Built | None:
        asking = asyncio.get_running_loop().run_in_executor(self._threads, self._read, key)
        asking.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # seen, also when nobody waits any more
        built, refusal = None, None
        try:
            async with asyncio.timeout(PATIENCE_S):
                built = await asyncio.shield(asking)
        except TimeoutError:
            log.info("the published pipelines were not asked in time", extra={"pipeline": key})
        except IntegrityError as error:
            refusal = error.message
        except HotshelfError as error:
            log.info("the published pipelines cannot be asked", extra={"pipeline": key, "code": error.code})
        self._answers[key] = (time.monotonic() + KEPT_S, built)
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)
        if refusal is not None:
            log.warning("a published pipeline was refused", extra={"pipeline": key, "why": refusal})
            await self._shelf.index.write(lambda db: journal.event(db, "pipeline_refused", f"pipeline:{key}", refusal))
        return built

    def _read(self, key: str) -> Built | None:
        """Raises IntegrityError when what lies there must not be believed."""
        assert self._prefix is not None
        origin = self._directory.origin_of(self._prefix)
        data = origin.read(self._below(f"pipelines/{key}.json"), MAX_BUILT_BYTES)
        if data is None:
            return None
        built = Built.parse(data, key)
        policy = Policy.of(self._shelf.settings, Source("pipeline", "", key))
        for path in built.tree:
            if why := policy.reason_by_name(path):
                raise IntegrityError(f"the document of the pipeline {key} names {path}: {why}")
        return replace(built, uid=os.geteuid())

    def resolution(self, built: Built, wish: str) -> Resolution:
        """Its blobs under the prefix, as objects to fetch as far as they are not held."""
        files = tuple(
            WantedFile(path, OriginObject(self._below(f"blobs/sha256/{entry.digest.hex}"), entry.size, ""), entry.digest)
            for path, entry in built.tree.items()
        )
        source = f"pipeline:{built.key}"
        return Resolution(source, str(self._prefix), files, (), "tree", published=True, wish=wish, built=built)

    def _below(self, name: str) -> str:
        assert self._prefix is not None
        return f"{self._prefix.path}/{name}" if self._prefix.path else name
