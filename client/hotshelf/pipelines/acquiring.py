"""The wait for files, on a thread of its own, so that torch and diffusers are imported meanwhile.

What is in memory is served without the daemon when nobody answers on its socket. A daemon that is there decides: it is
asked for the revision, and what it is still fetching is waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from hotshelf.client import Client
from hotshelf.pipelines.files import Files
from hotshelf.pipelines.gathering import OnProgress, gather
from hotshelf.pipelines.order import PipelineOrder
from hotshelf_shared.errors import DaemonUnavailable, HotshelfError, Timeout

#: A daemon that restarts is gone for a moment; one that is away is not waited for.
LOOK_AGAIN_S = 0.05
#: How long a daemon that hangs may keep what is in memory from being served.
HANGING_S = 2.0


class Acquiring:
    """`gather`, begun at once. `in_memory` are the files that pipelines in memory were made from, for the same wish."""

    def __init__(
        self, client: Client, order: PipelineOrder, on_progress: OnProgress | None, in_memory: Callable[[], Files | None]
    ) -> None:
        self._client, self._order, self._on_progress, self._in_memory = client, order, on_progress, in_memory
        self._files: Files | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="hotshelf-acquire", daemon=True)
        self._thread.start()

    def result(self) -> Files:
        """Waits. Raises what `gather` does."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        if self._files is None:
            raise HotshelfError("acquiring ended without a result")
        return self._files

    def _run(self) -> None:
        try:
            known = self._in_memory()
            self._files = self._ask() if known is None else self._ask_or(known)
        except BaseException as error:
            self._error = error

    def _ask(self) -> Files:
        return gather(self._client, self._order, self._on_progress)

    def _ask_or(self, known: Files) -> Files:
        """What the daemon says; `known` when it is away, hangs, or cannot do better now."""
        if not self._is_there():
            return known
        spoke = threading.Event()
        brief = replace(self._order, timeout_s=min(self._order.timeout_s, HANGING_S))
        try:
            return gather(self._client, brief, lambda _: spoke.set())
        except Timeout:
            if not spoke.is_set():
                return known
        except HotshelfError as error:
            if error.retryable:
                return known
            raise
        try:
            return self._ask()  # it is at work: this is no hit any more
        except HotshelfError as error:
            if error.retryable:
                return known
            raise

    def _is_there(self) -> bool:
        for pause_s in (LOOK_AGAIN_S, 0.0):
            try:
                self._client.transport.connect(time.monotonic() + HANGING_S).close()
            except DaemonUnavailable:
                time.sleep(pause_s)
            else:
                return True
        return False
