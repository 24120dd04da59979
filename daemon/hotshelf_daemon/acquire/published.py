"""What other nodes published under the operator's prefix: looked at when a key is not on this shelf, never waited for.

A worker that asks is about to build what it asks for, so an origin that is slow or down must cost it next to nothing, and
many workers that ask for the same must not cost the origin more than one. A document that must not be believed is as good as
none, and an event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from hotshelf_daemon.flights import Flights
from hotshelf_daemon.index import journal
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import Directory
from hotshelf_daemon.plan import Resolution, WantedFile
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.built import Built
from hotshelf_shared.bundle import Bundle
from hotshelf_shared.errors import HotshelfError, IntegrityError

log = logging.getLogger(__name__)
#: How long an answer of the origin is good, and how long a caller waits for one.
KEPT_S = 30.0
PATIENCE_S = 2.0
KEPT_ANSWERS = 1_024
LOOKERS = 4
T = TypeVar("T", Built, Bundle)


class Published(Generic[T]):
    """Of one `kind`, ``pipeline`` or ``bundle``. `directory` makes origins that give up soon and do not try again.

    `parse` makes of a document, `most_bytes` at the most, what lies under a key, its builder taken to be us. It raises
    IntegrityError when it must not be believed.
    """

    def __init__(
        self, shelf: Shelf, directory: Directory, kind: str, parse: Callable[[bytes, str], T], *, most_bytes: int
    ) -> None:
        self._shelf = shelf
        self._directory = directory
        self._kind, self._most_bytes = kind, most_bytes
        self._parse: Callable[[bytes, str], T] = parse
        self._prefix = shelf.settings.publish.of(kind)
        self._answers: OrderedDict[str, tuple[float, T | None]] = OrderedDict()
        self._looking: Flights[T | None] = Flights()
        self._threads = ThreadPoolExecutor(LOOKERS, thread_name_prefix="published")

    @property
    def prefix(self) -> str:
        return str(self._prefix)

    async def find(self, key: str) -> T | None:
        """What another node published under that key, which is safe as a name; None when there is nothing."""
        if self._prefix is None:
            return None
        until, known = self._answers.get(key, (0.0, None))
        if time.monotonic() < until:
            return known
        return await self._looking.join(key, lambda: self._look(key))

    async def _look(self, key: str) -> T | None:
        asking = asyncio.get_running_loop().run_in_executor(self._threads, self._read, key)
        asking.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # seen, also when nobody waits any more
        found, refusal = None, None
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = await asyncio.shield(asking)
        except TimeoutError:
            log.info("what is published was not asked in time", extra={self._kind: key})
        except IntegrityError as error:
            refusal = error.message
        except HotshelfError as error:
            log.info("what is published cannot be asked", extra={self._kind: key, "code": error.code})
        self._answers[key] = (time.monotonic() + KEPT_S, found)
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)
        if refusal is not None:
            log.warning("what was published is refused", extra={self._kind: key, "why": refusal})
            event = f"{self._kind}_refused"
            await self._shelf.index.write(lambda db: journal.event(db, event, f"{self._kind}:{key}", refusal))
        return found

    def _read(self, key: str) -> T | None:
        assert self._prefix is not None
        data = self._directory.origin_of(self._prefix).read(self._below(f"{self._kind}s/{key}.json"), self._most_bytes)
        return None if data is None else self._parse(data, key)

    def resolution(self, found: T, source: str, wish: str) -> Resolution:
        """Its blobs under the prefix, as objects to fetch as far as they are not held."""
        files = tuple(
            WantedFile(path, OriginObject(self._below(f"blobs/sha256/{entry.digest.hex}"), entry.size, ""), entry.digest)
            for path, entry in found.tree.items()
        )
        kind = "bundle" if isinstance(found, Bundle) else "tree"
        return Resolution(source, self.prefix, files, (), kind, published=True, wish=wish, built=found)

    def _below(self, name: str) -> str:
        assert self._prefix is not None
        return f"{self._prefix.path}/{name}" if self._prefix.path else name
