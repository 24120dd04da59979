"""From an answer of the daemon to leases in the worker's hands: held, seen to be here, and warm when that was asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hotshelf.acquisition import GRACE_S, Deadline, OnProgress, request
from hotshelf.keeper import Keeper, free
from hotshelf.lease import Lease, Leases
from hotshelf.ledger import Hold
from hotshelf.transport import Transport
from hotshelf.warming import warm
from hotshelf_shared.errors import BadConfiguration
from hotshelf_shared.wire import LeaseAnswer


@dataclass(frozen=True, slots=True)
class Granting:
    """One acquire. `mount` is where the store is here, unless that is the daemon's own path."""

    transport: Transport
    mount: str | os.PathLike[str] | None
    deadline: Deadline
    on_progress: OnProgress | None

    def grant(self, body: dict[str, Any], keeper: Keeper | None) -> Leases:
        """What `body` asks for; without a `keeper` nobody renews it.

        Raises what the daemon said, and BadConfiguration when the files cannot be seen here; then nothing is held.
        """
        leases = self._take(body, keeper)
        if _missing(leases):  # removed by hand, say: asked again, the daemon lays it out anew
            leases.release()
            leases = self._take(body, keeper)
        if (missing := _missing(leases)) is not None:
            leases.release()
            raise BadConfiguration(
                f"the daemon granted {missing.path}, which cannot be seen here",
                hint="Mount the daemon's store in this container and name the mount in HOTSHELF_STORE.",
            )
        return leases

    def warm(self, body: dict[str, Any], keeper: Keeper, *, detached: bool) -> Leases:
        """As `grant`, the files in the page cache as far as there is memory and time.

        Those of `detached` leases are read under others, which the keeper renews: it may take longer than a lease lives that
        nobody does. Raises what `grant` does, AccessDenied or IntegrityError for a file that cannot be read, and what
        `on_progress` raises; then nothing is held.
        """
        kept = self._warmed(self.grant({name: value for name, value in body.items() if name != "hold_s"}, keeper))
        if not detached:
            return kept
        with kept:  # a hit, for which there is time also when reading has taken all of it
            soon = replace(self, deadline=Deadline.after(max(self.deadline.left_s, GRACE_S)))
            leases = soon.grant(body, None)
        for lease, before in zip(leases, kept, strict=True):
            if lease.revision == before.revision:
                lease.warmed = before.warmed
        return leases

    def _warmed(self, leases: Leases) -> Leases:
        files = {entry.digest: (lease.path / path, entry.size) for lease in leases for path, entry in lease.files.items()}
        sizes = {os.fspath(path): size for path, size in files.values()}  # contents that several paths share: once
        source = leases[0].source if len(leases) == 1 else ""
        try:
            done = warm(sizes, until=self.deadline.at, on_progress=self.on_progress, source=source)
        except BaseException:
            leases.release()
            raise
        for lease in leases:
            lease.warmed = done
        return leases

    def _take(self, body: dict[str, Any], keeper: Keeper | None) -> Leases:
        if keeper is None:
            answers = request(self.transport, body, deadline=self.deadline, on_progress=self.on_progress)
            release = partial(_free_unforked, self.transport, os.getpid())
            return self._leases(answers, [Hold(one.id, one.expires_s) for one in answers], release, _leave_be)
        body = {**body, "client": keeper.client}
        token = keeper.begin()
        try:
            answers = request(self.transport, body, deadline=self.deadline, on_progress=self.on_progress)
            holds = keeper.hold(token, answers)
        finally:
            keeper.give_up(token)
        return self._leases(answers, holds, keeper.release, keeper.abandon)

    def _leases(
        self,
        answers: Iterable[LeaseAnswer],
        holds: Iterable[Hold],
        release: Callable[[str], None],
        abandon: Callable[[str], None],
    ) -> Leases:
        return Leases(
            Lease(one, Path(self.mount or one.store) / one.path, hold, release=release, abandon=abandon)
            for one, hold in zip(answers, holds, strict=True)
        )


def _missing(leases: Leases) -> Lease | None:
    return next((lease for lease in leases if not os.path.isdir(lease.path)), None)


def _free_unforked(transport: Transport, owner: int, lease_id: str) -> None:
    if os.getpid() == owner:
        free(transport, lease_id)


def _leave_be(lease_id: str) -> None:
    """A detached lease that is garbage goes on: that is what it is for."""
