"""`seen` must void ghosts and never a grant that is on its way."""

from __future__ import annotations

from hotshelf.ledger import Ledger
from hotshelf_shared.digest import Digest
from hotshelf_shared.wire import LeaseAnswer


def granted(grant: int, expires_s: float = 60.0) -> LeaseAnswer:
    return LeaseAnswer(f"lease{grant}", grant, "sdxl", Digest.of(b""), "snapshots/x", "tree", {}, (), expires_s)


def test_seen_is_the_newest_grant_received() -> None:
    ledger = Ledger()
    for grant in (7, 9, 8):
        ledger.grant(ledger.begin(), [granted(grant)])
    assert (sorted(ledger.ids), ledger.seen) == (["lease7", "lease8", "lease9"], 9)


def test_a_request_in_flight_keeps_seen_below_its_grant() -> None:
    ledger = Ledger()
    ledger.grant(ledger.begin(), [granted(4)])
    slow = ledger.begin()  # the daemon grants 5, but that answer is overtaken by the next
    ledger.grant(ledger.begin(), [granted(6)])
    assert ledger.seen == 4
    ledger.grant(slow, [granted(5)])
    assert (sorted(ledger.ids), ledger.seen) == (["lease4", "lease5", "lease6"], 6)


def test_a_request_that_failed_no_longer_holds_seen_back() -> None:
    ledger = Ledger()
    failed = ledger.begin()
    ledger.grant(ledger.begin(), [granted(3)])
    ledger.end(failed)
    assert ledger.seen == 3


def test_a_lease_is_dropped_once() -> None:
    ledger = Ledger()
    ledger.grant(ledger.begin(), [granted(1)])
    assert [ledger.drop("lease1"), ledger.drop("lease1"), ledger.drop("")] == [True, False, False]
    assert not ledger


def test_only_leases_still_held_can_be_lost() -> None:
    ledger = Ledger()
    [one, two] = ledger.grant(ledger.begin(), [granted(1), granted(2)])
    ledger.drop("lease1")
    assert [hold.id for hold in ledger.lose(["lease1", "lease2"])] == ["lease2"]
    assert (one.lost, two.lost, ledger.ids) == (False, True, [])


def test_the_shortest_lease_sets_the_pace() -> None:
    ledger = Ledger()
    ledger.grant(ledger.begin(), [granted(1), granted(2, expires_s=5.0)])
    assert ledger.shortest_s == 5.0
