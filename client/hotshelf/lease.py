"""A granted lease in the worker's hands: where the files are, and how to let go of them.

Invariants: a lease is freed once, by `release`, by leaving its context or by being forgotten, whichever is first; a
lease inherited through a fork is inert in the child.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self, overload
from weakref import finalize

from hotshelf.ledger import Hold
from hotshelf.warming import Warmed
from hotshelf_shared.digest import Revision
from hotshelf_shared.manifest import FileEntry
from hotshelf_shared.wire import LeaseAnswer, Skipped


class _Held(ABC):
    """A context that ends with `release`, for ``with`` and ``async with`` alike."""

    @abstractmethod
    def release(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        from asyncio import to_thread

        await to_thread(self.release)


class Lease(_Held):
    """Files that stay where they are until this is released.

    `path` is the snapshot's directory on this machine's mount of the store; for a source that is a single object, the
    directory that holds the file. `files` maps relative paths to digest and size, `skipped` lists what the content
    policy left out. `warmed` is what became of reading the files, of all sources acquired at once, into the page cache;
    None when that was not asked for, or the source became another revision meanwhile. `release` is called with the id to
    free it, `abandon` instead when the lease is garbage.
    """

    def __init__(
        self,
        answer: LeaseAnswer,
        path: Path,
        hold: Hold,
        *,
        release: Callable[[str], None],
        abandon: Callable[[str], None],
    ) -> None:
        self.path = path
        self.warmed: Warmed | None = None
        self._answer, self._hold, self._release = answer, hold, release
        self._finalizer = finalize(self, abandon, answer.id)
        self._finalizer.atexit = False  # at exit the keeper frees everything at once

    @property
    def id(self) -> str:
        return self._answer.id

    @property
    def source(self) -> str:
        return self._answer.source

    @property
    def kind(self) -> str:
        """``tree`` or ``file``."""
        return self._answer.kind

    @property
    def revision(self) -> Revision:
        return self._answer.revision

    @property
    def files(self) -> Mapping[str, FileEntry]:
        return self._answer.files

    @property
    def skipped(self) -> Sequence[Skipped]:
        return self._answer.skipped

    @property
    def phases(self) -> Mapping[str, float]:
        """Seconds of what the daemon did for it: resolve, fetch, verify, commit; empty for a hit."""
        return self._answer.phases

    @property
    def expires_s(self) -> float:
        """How long the daemon keeps it after the last renewal, in seconds."""
        return self._answer.expires_s

    @property
    def lost(self) -> bool:
        """True once the daemon no longer knows it: the files may go at any time."""
        return self._hold.lost

    @property
    def released(self) -> bool:
        return not self._finalizer.alive

    def release(self) -> None:
        """Lets go of the files. Never raises, and does nothing the second time."""
        if self._finalizer.detach() is not None:
            self._release(self.id)

    def __repr__(self) -> str:
        state = " released" if self.released else " lost" if self.lost else ""
        return f"<Lease{state} on {self.source or self.revision} at {self.path}>"


class Leases(_Held, Sequence[Lease]):
    """Several leases, granted all or nothing, in the order in which the sources were asked for."""

    def __init__(self, leases: Iterable[Lease]) -> None:
        self._leases = tuple(leases)

    def release(self) -> None:
        for lease in self._leases:
            lease.release()

    @property
    def warmed(self) -> Warmed | None:
        """As each lease's."""
        return next((lease.warmed for lease in self._leases if lease.warmed is not None), None)

    @overload
    def __getitem__(self, index: int) -> Lease: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Lease]: ...
    def __getitem__(self, index: int | slice) -> Lease | Sequence[Lease]:
        return self._leases[index]

    def __len__(self) -> int:
        return len(self._leases)

    def __repr__(self) -> str:
        return f"<Leases {list(self._leases)!r}>"
