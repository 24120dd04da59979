"""Leases as deadlines: who may end one, and what ends by itself. Time is passed in."""

from __future__ import annotations

import pytest

from hotshelf_daemon.acquire.book import Book
from hotshelf_daemon.index.leases import LeaseRow
from hotshelf_shared.errors import AccessDenied, NotFound

TTL, EOF = 60.0, 5.0


def lease(id_: str, *, uid: int = 1, client: str | None = "client01", ttl_s: float = TTL, grant: int = 1) -> LeaseRow:
    return LeaseRow(id_, uid, 100, client, "s3://b/m", ttl_s, grant=grant)


@pytest.fixture
def book() -> Book:
    return Book(EOF)


def test_a_lease_ends_when_its_time_is_over_and_not_before(book: Book) -> None:
    book.enter(lease("a"), now=100)
    assert book.expire(100 + TTL - 0.1) == []
    assert book.expire(100 + TTL) == ["a"]
    assert len(book) == 0


def test_a_renewed_lease_has_its_whole_time_again(book: Book) -> None:
    book.enter(lease("a"), now=0)
    assert book.renew(uid=1, client="client01", ids=["a"], seen=1, now=50) == (["a"], [])
    assert book.expire(109) == []
    assert book.expire(110) == ["a"]


def test_a_lease_held_for_longer_keeps_its_own_time(book: Book) -> None:
    book.enter(lease("a", ttl_s=3_600), now=0)
    assert book.expire(3_599) == []


def test_what_a_declaration_leaves_out_is_void_at_once(book: Book) -> None:
    for number, id_ in enumerate("abc", start=1):
        book.enter(lease(id_, grant=number), now=0)
    assert book.renew(uid=1, client="client01", ids=["b"], seen=3, now=1) == (["b"], ["a", "c"])
    assert len(book) == 1


def test_a_grant_still_on_its_way_survives_a_declaration(book: Book) -> None:
    book.enter(lease("a", grant=1), now=0)
    book.enter(lease("b", grant=2), now=0)
    assert book.renew(uid=1, client="client01", ids=["a"], seen=1, now=1) == (["a"], [])
    assert len(book) == 2


def test_a_declaration_touches_no_other_client_and_no_other_uid(book: Book) -> None:
    book.enter(lease("a"), now=0)
    assert book.renew(uid=1, client="client02", ids=["a"], seen=9, now=50) == ([], [])
    assert book.renew(uid=2, client="client01", ids=["a"], seen=9, now=50) == ([], [])
    assert book.expire(TTL) == ["a"]


def test_an_id_nobody_was_granted_is_not_kept(book: Book) -> None:
    assert book.renew(uid=1, client="client01", ids=["nonsense"], seen=0, now=0) == ([], [])


def test_only_the_uid_that_took_a_lease_frees_it(book: Book) -> None:
    book.enter(lease("a"), now=0)
    with pytest.raises(AccessDenied):
        book.release("a", uid=2)
    assert len(book) == 1
    book.release("a", uid=1)
    with pytest.raises(NotFound):
        book.release("a", uid=1)


def test_a_client_that_is_gone_has_a_moment_left(book: Book) -> None:
    book.enter(lease("a"), now=0)
    book.enter(lease("b", client="client02"), now=0)
    book.enter(lease("c", client=None), now=0)
    book.shorten(uid=1, client="client01", now=10)
    assert book.expire(10 + EOF) == ["a"]
    assert len(book) == 2


def test_being_gone_never_lengthens_a_lease(book: Book) -> None:
    book.enter(lease("a", ttl_s=2), now=0)
    book.shorten(uid=1, client="client01", now=1)
    assert book.expire(2) == ["a"]


def test_a_client_that_comes_back_in_time_keeps_its_leases(book: Book) -> None:
    book.enter(lease("a"), now=0)
    book.shorten(uid=1, client="client01", now=10)
    book.renew(uid=1, client="client01", ids=["a"], seen=1, now=12)
    assert book.expire(10 + EOF) == []
