"""Packages of this process: looked for on the shelf, made where there is none, by one child process at a time.

Invariant: a package is code. It comes from the daemon, verified, into a folder of our own, or is made here; and it is used for
the very call and structure that its description names.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hotshelf import compiling
from hotshelf.client import Client
from hotshelf.pipelines.background import FINISH_S, Background
from hotshelf.pipelines.loading import first_line
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.errors import HotshelfError, IntegrityError

DESCRIPTION = "package.json"
#: How long the first call of its kind may wait for the daemon.
LOOK_S = 10.0
#: What jobs ask for may not keep a worker's processors busy for ever.
MOST_MADE = 32
_HAND_IN_S = 600.0
_MAKE_S = 3600.0
_NOTE_BYTES = 4096


class State(Enum):
    #: Not looked for yet.
    UNKNOWN = "unknown"
    #: Neither here nor on the shelf.
    ABSENT = "absent"
    #: A child process makes it.
    MAKING = "making"
    #: `folder` holds it.
    READY = "ready"
    #: It cannot be made or used; `why` says it.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Wish:
    """A package: its name on the shelf, what it is for, and what is told to whoever makes it."""

    name: BundleName
    purpose: Mapping[str, Any]
    making: Mapping[str, Any]


@dataclass(slots=True)
class Item:
    """A package as this process knows it. `kept` is none, saving, saved, known (another was first) or failed."""

    state: State = State.UNKNOWN
    folder: Path | None = None
    source: str = "none"
    why: str | None = None
    kept: str = "none"
    lock: threading.Lock = field(default_factory=threading.Lock)


class Workshop:
    """One in a process: pipelines of one kind share what was fetched or made."""

    def __init__(self) -> None:
        self._items: dict[BundleName, Item] = {}
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._made = 0
        self._background = Background()
        self._child: subprocess.Popen[bytes] | None = None

    def find(self, client: Client, wish: Wish) -> Item:
        """Looked for on the shelf once; the daemon's refusal is a reason and no error."""
        with self._lock:
            item = self._items.setdefault(wish.name, Item())
        with item.lock:
            if item.state is State.UNKNOWN:
                item.state = State.ABSENT
                try:
                    self._fetch(client, wish, item)
                except (HotshelfError, OSError) as error:
                    item.why = f"the shelf has no package to use: {first_line(error)}"
        return item

    def _fetch(self, client: Client, wish: Wish, item: Item) -> None:
        folder = self._new_folder() / "fetched"
        if compiling.fetch(client, wish.name, folder, timeout=LOOK_S) is None:
            return
        if _description(folder) != dict(wish.purpose):
            raise IntegrityError(f"bundle:{wish.name} is not what its name says")
        item.folder, item.source, item.state = folder, "bundle", State.READY

    def make(self, client: Client, wish: Wish, *, keep: bool) -> None:
        """Begins to make what is absent, in the background; `keep` hands it in."""
        item = self._items[wish.name]
        with item.lock:
            if item.state is not State.ABSENT:
                return
            if self._made >= MOST_MADE:
                item.why = f"this process has made {MOST_MADE} packages: `hotshelf build` makes more"
                return
            self._made += 1
            item.state = State.MAKING
        self._background.submit(lambda: self._make(client, wish, item, keep=keep))

    def finish(self, timeout_s: float) -> bool:
        """Waits for all that is being made; False when time ran out."""
        return self._background.finish(timeout_s)

    def _make(self, client: Client, wish: Wish, item: Item, *, keep: bool) -> None:
        try:
            folder = self._new_folder()
            if why := self._ask_a_child(wish, folder):
                item.why, item.state = f"no package could be made: {why}", State.FAILED
                return
            package = folder / "made"
            (package / DESCRIPTION).write_text(json.dumps(wish.purpose, sort_keys=True))
            item.kept = "saving" if keep else "none"
            item.folder, item.source, item.state = package, "local", State.READY
        except Exception as error:
            item.why, item.state = f"no package could be made: {type(error).__name__}: {error}", State.FAILED
            return
        if keep:
            try:
                outcome = compiling.keep(client, wish.name, package, timeout=_HAND_IN_S).outcome
                item.kept = "known" if outcome is compiling.Outcome.OTHER else "saved"
            except (HotshelfError, OSError) as error:
                item.why, item.kept = f"the package was not kept: {first_line(error)}", "failed"

    def _ask_a_child(self, wish: Wish, folder: Path) -> str | None:
        """Why it could not be made, or None: then it is in `folder`/made. The compiler's scratch is gone again."""
        made, scratch, log = folder / "made", folder / "scratch", folder / "log"
        for one in (made, scratch):
            one.mkdir(mode=0o700)
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"), "TMPDIR": str(scratch)}
        with log.open("wb") as told:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "hotshelf.pipelines.compilation.making"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told, env=env, start_new_session=True,
            )  # fmt: skip
        timer = threading.Timer(_MAKE_S, self._end_child)
        timer.daemon = True
        timer.start()
        try:
            with self._child as child:
                assert child.stdin is not None
                assert child.stdout is not None
                with suppress(BrokenPipeError):
                    child.stdin.write(json.dumps({**wish.making, "folder": str(made)}).encode() + b"\n")
                    child.stdin.flush()
                answer = child.stdout.read().strip().rpartition(b"\n")[2]  # it waits for the end of its input, not we
            why = json.loads(answer)["why"]
        except (ValueError, KeyError, TypeError):
            return f"its process ended with {child.returncode}: {_told(log)}"
        finally:
            timer.cancel()
            shutil.rmtree(scratch, ignore_errors=True)
        return None if why is None else str(why)[:500]

    def _end_child(self) -> None:
        child = self._child
        if child is not None and child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its compilers too

    def close(self) -> None:
        """At exit: what is being made has half a minute more."""
        self.finish(FINISH_S)
        self._end_child()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def discard(self, item: Item, why: str) -> None:
        """It does not load here. What came from the shelf is made anew."""
        with item.lock:
            item.why, item.state = why, State.ABSENT if item.source == "bundle" else State.FAILED
            item.source = "none"

    def _new_folder(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="hotshelf-compiled-"))
        return Path(tempfile.mkdtemp(dir=self._folder))

    def forget(self) -> None:
        """In a forked child: the parent's packages are the parent's."""
        self.__init__()  # type: ignore[misc]


def _description(folder: Path) -> Any:
    try:
        return json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return None


def _told(log: Path) -> str:
    """The last line of what its process said."""
    return log.read_bytes()[-_NOTE_BYTES:].decode(errors="replace").strip().rpartition("\n")[2][:300]


workshop = Workshop()
os.register_at_fork(after_in_child=workshop.forget)
atexit.register(workshop.close)
