"""What this client holds, as data: the leases, and the grant number up to which it may declare that it holds no other.

The daemon voids every lease of this client up to grant number `seen` that a renewal does not list. So `seen` must never
reach a grant whose answer is still on its way. Grants rise over time, hence the answer to a request in flight carries a
number above every number received before that request began: the oldest request in flight bounds `seen`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hotshelf_shared.wire import LeaseAnswer


@dataclass(slots=True)
class Hold:
    """One lease as the keeper knows it; `lost` once the daemon no longer does."""

    id: str
    expires_s: float
    lost: bool = False


class Ledger:
    """Not thread-safe: its keeper holds a lock around every call."""

    def __init__(self) -> None:
        self._holds: dict[str, Hold] = {}
        self._floors: dict[object, int] = {}
        self._newest = 0

    def begin(self) -> object:
        """Notes a request about to be sent; the token goes to `grant` or `end`."""
        token = object()
        self._floors[token] = self._newest
        return token

    def grant(self, token: object, answers: Iterable[LeaseAnswer]) -> list[Hold]:
        """Notes its answer: the leases are held from here on."""
        holds = []
        for answer in answers:
            self._newest = max(self._newest, answer.grant)
            hold = self._holds[answer.id] = Hold(answer.id, answer.expires_s)
            holds.append(hold)
        self.end(token)
        return holds

    def end(self, token: object) -> None:
        self._floors.pop(token, None)

    def drop(self, lease_id: str) -> bool:
        """True when it was held until now."""
        return self._holds.pop(lease_id, None) is not None

    def lose(self, lease_ids: Iterable[str]) -> list[Hold]:
        """Marks those still held as lost and lets go of them."""
        lost = [self._holds.pop(lease_id) for lease_id in lease_ids if lease_id in self._holds]
        for hold in lost:
            hold.lost = True
        return lost

    @property
    def ids(self) -> list[str]:
        return list(self._holds)

    @property
    def seen(self) -> int:
        return min(self._floors.values(), default=self._newest)

    @property
    def shortest_s(self) -> float:
        """The shortest life among the leases held."""
        return min((hold.expires_s for hold in self._holds.values()), default=60.0)

    def __bool__(self) -> bool:
        return bool(self._holds)
