"""A bundle's names and its document: what is signed is every field, and nothing else is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_shared.bundle import Bundle, BundleName, BundleRequest, publishing_key
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import IntegrityError, InvalidRequest
from hotshelf_shared.source import Source

KEY = b"k" * 32
BUNDLE = Bundle(BundleName("h100-cuda12.8", "9f2c"), Digest.of(b"a"), 1_000, 61_001, 1_700_000_000)
SIGNED = BUNDLE.signed(KEY)


def test_a_document_reads_back_and_is_signed() -> None:
    found = Bundle.parse(SIGNED.canonical())
    assert found == SIGNED
    assert found.is_signed_with(KEY)
    assert not found.is_signed_with(b"x" * 32)
    assert not BUNDLE.is_signed_with(KEY)
    assert SIGNED.revision == found.tree.revision


@pytest.mark.parametrize(
    "changed",
    [
        {"name": BundleName("a100-cuda12.8", "9f2c")},
        {"name": BundleName("h100-cuda12.8", "9f2d")},
        {"digest": Digest.of(b"b")},
        {"size": 1_001},
        {"uid": 0},
        {"issued": 1_700_000_001},
    ],
)
def test_every_field_is_signed(changed: dict[str, Any]) -> None:
    forged = replace(SIGNED, **changed)
    assert not forged.is_signed_with(KEY)
    assert not Bundle.parse(forged.canonical()).is_signed_with(KEY)


def test_what_one_daemon_keeps_and_what_is_for_all_are_signed_with_two_keys() -> None:
    """Nodes of different versions share a prefix: the second key is always made in the same way."""
    for_all = publishing_key(KEY)
    assert for_all.hex() == "67ddeefaba3b267e98f5f91260e67925581a50e2ef5acdb2ebec1985a5c0e51f"
    assert not SIGNED.is_signed_with(for_all)
    assert not BUNDLE.signed(for_all).is_signed_with(KEY)


def test_keys_do_not_run_into_each_other() -> None:
    """`a/bc` and `ab/c` are two names, and have two signatures."""
    one, two = (replace(BUNDLE, name=BundleName(*keys)).signed(KEY) for keys in (("a", "bc"), ("ab", "c")))
    assert one.hmac != two.hmac


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0}, {"size": True}, {"size": 1.5}, {"uid": -1}, {"issued": 1e400}, {"version": 2}, {"version": True},
        {"environment_key": ".."}, {"graph_key": "a/b"}, {"digest": "md5:1"}, {"more": 1},
    ],
)  # fmt: skip
def test_a_document_that_says_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    text = json.dumps({**SIGNED.to_json(), **wrong}, sort_keys=True, separators=(",", ":"))
    with pytest.raises(IntegrityError):
        Bundle.parse(text.encode())


def test_a_document_in_another_form_is_refused() -> None:
    for data in (json.dumps(SIGNED.to_json()).encode(), SIGNED.canonical() + b" ", b"", b"[]", b"{}", b" " * 5_000):
        with pytest.raises(IntegrityError):
            Bundle.parse(data)


@given(st.text(), st.text())
def test_whatever_is_a_name_is_a_source_and_two_folders(environment_key: str, graph_key: str) -> None:
    try:
        name = BundleName.of(environment_key, graph_key)
    except InvalidRequest:
        return
    assert BundleName.parse(str(name)) == name
    assert Source.parse(f"bundle:{name}").path == str(name)
    for part in (name.environment_key, name.graph_key):
        assert part not in (".", "..")
        assert not set(part) & {"/", "\\", "\0"}


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,199}", fullmatch=True))
def test_every_key_of_the_form_is_taken(key: str) -> None:
    assert str(BundleName.of(key, key)) == f"{key}/{key}"


@pytest.mark.parametrize("key", ["", ".", "..", ".a", "-a", "a/b", "a\n", "a\0", "ä", "a" * 201, None, 1])
def test_what_is_no_key_is_refused(key: object) -> None:
    with pytest.raises(InvalidRequest) as why:
        BundleName.of(key, "g")
    assert "environment key" in why.value.message
    with pytest.raises(InvalidRequest):
        BundleName.of("e", key)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"digest": 1, "size": 1}', b'{"digest": "sha256:0", "size": 1, "x": 1}'])
def test_a_request_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        BundleRequest.parse(body)
