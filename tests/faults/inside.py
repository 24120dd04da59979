"""The whole daemon inside this process, so that a test can cut this process short at a chosen moment.

Everything is wired as in `hotshelfd`; it is asked over its own socket.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pathlib
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hotshelf_daemon import app
from hotshelf_daemon.config import load
from hotshelf_shared.digest import Digest
from hotshelf_shared.recipe import Recipe
from tests import objects
from tests.daemon_process import Reply, call
from tests.waiting import wait_until


class Inside:
    """What a story sees of the daemon that runs around it."""

    def __init__(self, store: pathlib.Path, socket: pathlib.Path, base: str) -> None:
        self.store, self.socket, self.base = store, socket, base
        self.refusals: list[Reply] = []

    def acquire(self, name: str, **more: Any) -> dict[str, Any]:
        """A lease on the folder `name` of the origin. Raises AssertionError when it is refused."""
        return self._good(call(self.socket, "POST", "/v1/leases", {"source": f"{self.base}/{name}", **more})).body

    def release(self, lease: dict[str, Any]) -> None:
        self._good(call(self.socket, "DELETE", f"/v1/leases/{lease['id']}"))

    def snapshots(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._good(call(self.socket, "GET", "/v1/snapshots")).body["snapshots"]
        return found

    def evict(self, revision: str) -> None:
        self._good(call(self.socket, "DELETE", f"/v1/snapshots/{revision}"))

    def refresh(self, name: str) -> dict[str, Any]:
        return self._good(call(self.socket, "POST", "/v1/refresh", {"source": f"{self.base}/{name}"})).body

    def rollback(self, name: str) -> dict[str, Any]:
        return self._good(call(self.socket, "POST", "/v1/rollback", {"source": f"{self.base}/{name}"})).body

    def bind(self, recipe: Recipe, tree: Mapping[str, bytes]) -> dict[str, Any]:
        """Hands the tree in, binds it and leases it."""
        for data in tree.values():
            self._good(call(self.socket, "PUT", f"/v1/blobs/{Digest.of(data)}", data))
        body = {"recipe": recipe.to_json(), "manifest": objects.manifest_of(tree).to_json()}
        self._good(call(self.socket, "PUT", f"/v1/pipelines/{recipe.key}", body))
        return self._good(call(self.socket, "POST", "/v1/leases", {"source": f"pipeline:{recipe.key}"})).body

    def share(self, name: str, data: bytes) -> dict[str, Any]:
        """Hands an archive in, binds it as the bundle of that name and leases it."""
        self._good(call(self.socket, "PUT", f"/v1/blobs/{Digest.of(data)}", data))
        self._good(call(self.socket, "PUT", f"/v1/bundles/{name}", {"digest": Digest.of(data), "size": len(data)}))
        return self._good(call(self.socket, "POST", "/v1/leases", {"source": f"bundle:{name}"})).body

    def is_ready(self) -> bool:
        try:
            return call(self.socket, "GET", "/v1/health").status == 200
        except OSError:
            return False

    def _good(self, reply: Reply) -> Reply:
        if reply.status >= 300:
            self.refusals.append(reply)
        assert reply.status < 300, reply
        return reply


def run_inside(
    store: pathlib.Path, *, socket: pathlib.Path, story: Callable[[Inside], None], base: str, **settings: Any
) -> None:
    """Starts the daemon on `store`, tells it the story from another thread, and stops it cleanly when that returns.

    `base` is where its sources lie: an address that `settings` make known.
    """
    logging.disable(logging.CRITICAL)
    flags = {"store": str(store), "socket": str(socket), "listen": "", "page_listen": "", **settings}
    daemon = Inside(store, socket, base)

    def tell() -> None:
        wait_until(daemon.is_ready, what="the daemon to answer")
        story(daemon)

    async def live() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="default"))
        loaded = load(flags, {})
        serving = asyncio.create_task(app.serve(loaded, lambda: loaded))
        with ThreadPoolExecutor(1, thread_name_prefix="story") as teller:
            told = loop.run_in_executor(teller, tell)
            await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await serving
            await told

    asyncio.run(live())
