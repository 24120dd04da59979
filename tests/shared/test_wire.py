"""The messages of /v1: what is parsed has been checked, and a misspelt field is named with its neighbour."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_shared import wire
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError, InvalidRequest
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.source import Source
from hotshelf_shared.wire import AcquireRequest, LeaseAnswer, Progress, RenewRequest, Skipped, Wish, nearest
from tests.shared.strategies import digests, file_trees

PIN, OTHER = Digest.of(b""), Digest.of(b"other")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def acquire(**fields: Any) -> AcquireRequest:
    return AcquireRequest.parse(json.dumps(fields).encode())


def renew(**fields: Any) -> RenewRequest:
    return RenewRequest.parse(json.dumps({"client": "abcd1234", "ids": [], "seen": 0, **fields}).encode())


# ---- POST /v1/leases


def test_a_request_for_one_source() -> None:
    request = acquire(
        source="s3://w/m",
        revision=PIN,
        allow_patterns=["*.json"],
        ignore_patterns="x/",
        timeout_s=5,
        hold_s=3600,
        client="abcd1234",
    )
    assert request.wishes == (Wish(Source("s3", "w", "m", PIN), Patterns(("*.json",), ("x/*",))),)
    assert (request.several, request.timeout_s, request.hold_s, request.client) == (False, 5.0, 3600.0, "abcd1234")


def test_what_is_left_out_has_defaults() -> None:
    request = acquire(source="sdxl")
    assert request == AcquireRequest((Wish(Source("name", "", "sdxl")),))
    assert request.timeout_s == wire.DEFAULT_TIMEOUT_S
    assert (request.hold_s, request.client) == (None, None)


def test_several_sources_share_the_requests_patterns_unless_they_bring_their_own() -> None:
    request = acquire(sources=["a", {"source": "b", "allow_patterns": ["*.txt"], "revision": PIN}], allow_patterns=["*.json"])
    assert request.several
    assert request.wishes == (
        Wish(Source("name", "", "a"), Patterns(("*.json",))),
        Wish(Source("name", "", "b", PIN), Patterns(("*.txt",))),
    )


def test_a_null_is_the_same_as_leaving_the_field_out() -> None:
    nothing = dict.fromkeys(("revision", "allow_patterns", "ignore_patterns", "timeout_s", "hold_s", "client"))
    assert acquire(source="sdxl", **nothing) == acquire(source="sdxl")


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("allow_pattern", "allow_patterns"), ("ignore", "ignore_patterns"), ("sourse", "source"), ("timeout", "timeout_s"),
     ("rev", "revision")],
)  # fmt: skip
def test_a_misspelt_field_is_refused_naming_the_one_that_was_meant(misspelt: str, meant: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        acquire(source="sdxl", **{misspelt: "x"})
    assert misspelt in refused.value.message
    assert f"{meant!r}" in refused.value.hint


def test_a_field_that_resembles_none_is_answered_with_all_of_them() -> None:
    with pytest.raises(InvalidRequest) as refused:
        acquire(source="sdxl", zzz=1)
    assert "allow_patterns" in refused.value.hint


def test_a_misspelt_field_of_one_source_among_several_is_refused_too() -> None:
    with pytest.raises(InvalidRequest, match="allow_pattern"):
        acquire(sources=[{"source": "a", "allow_pattern": ["*"]}])


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"source": "a", "sources": ["a"]}, {"sources": []}, {"sources": "a"}, {"sources": ["a"] * 65}, {"sources": [5]},
        {"sources": [None]},
        {"sources": [{}]}, {"sources": [["a"]]}, {"source": None}, {"source": 5}, {"source": {"source": {"source": "a"}}},
        {"source": "../x"},
        {"source": "a", "revision": "sha256:xyz"}, {"source": "a", "revision": 5}, {"source": f"a@{PIN}", "revision": OTHER},
        {"sources": ["a", "b"], "revision": PIN}, {"source": "a", "timeout_s": 0}, {"source": "a", "timeout_s": -1},
        {"source": "a", "timeout_s": "5"}, {"source": "a", "timeout_s": True}, {"source": "a", "timeout_s": [5]},
        {"source": "a", "hold_s": -1}, {"source": "a", "client": "short"}, {"source": "a", "client": "x" * 65},
        {"source": "a", "client": "../../etc"}, {"source": "a", "client": "ümläüte1"}, {"source": "a", "client": 12345678},
        {"source": "a", "allow_patterns": 5}, {"source": "a", "allow_patterns": [""]},
    ],
    ids=lambda fields: json.dumps(fields)[:50],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        acquire(**fields)
    assert refused.value.hint


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b'"a"', b"{", b"\xff\xfe", b'{"source":"a","source":"b"}', b'{"source":"a","timeout_s":NaN}',
        b'{"source":"a","timeout_s":Infinity}', b'{"source":"a","timeout_s":1e999}', b"[" * 60_000, b'{"source":"a"}x',
        b'{"source":"a","timeout_s":' + b"9" * 60_000 + b"}",
    ],
    ids=lambda data: ascii(data)[:30],
)  # fmt: skip
def test_a_body_that_is_not_proper_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        AcquireRequest.parse(data)


@pytest.mark.parametrize("seconds", [1e9, 10**400])
def test_a_timeout_is_a_day_at_the_most(seconds: float) -> None:
    assert acquire(source="a", timeout_s=seconds).timeout_s == wire.MAX_TIMEOUT_S


def test_the_same_pin_twice_is_no_contradiction() -> None:
    assert acquire(source=f"a@{PIN}", revision=PIN).wishes[0].source.pinned == PIN


@given(
    st.dictionaries(
        st.sampled_from(["source", "sources", "revision", "allow_patterns", "timeout_s", "hold_s", "client"]), json_values
    )
)
def test_any_json_is_parsed_or_refused_and_nothing_else(fields: dict[str, Any]) -> None:
    try:
        request = acquire(**fields)
    except InvalidRequest:
        return
    assert 1 <= len(request.wishes) <= wire.MAX_SOURCES
    assert 0 < request.timeout_s <= wire.MAX_TIMEOUT_S


# ---- POST /v1/leases/renew


def test_a_renewal_declares_the_full_set() -> None:
    assert renew(ids=["a", "b", "a"], seen=7) == RenewRequest("abcd1234", frozenset({"a", "b"}), 7)


@pytest.mark.parametrize(
    "fields",
    [
        {"client": None}, {"client": "short"}, {"ids": None}, {"ids": "a"}, {"ids": [1]}, {"ids": ["a"] * 10_001},
        {"seen": None},
        {"seen": -1}, {"seen": True}, {"seen": 1.5}, {"seen": "1"}, {"seen": 1 << 62}, {"lease": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_renewal_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        renew(**fields)


@given(st.dictionaries(st.sampled_from(["client", "ids", "seen"]), json_values))
def test_any_json_is_a_renewal_or_refused_and_nothing_else(fields: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        assert renew(**fields).seen >= 0


# ---- answers


def on_the_wire(lease: LeaseAnswer) -> dict[str, Any]:
    return json.loads(lease.to_json())


def answer(**changes: Any) -> LeaseAnswer:
    fields: dict[str, Any] = {
        "id": "l1", "grant": 3, "source": "sdxl", "revision": PIN, "path": "snapshots/x", "kind": "tree", "files": {},
        "skipped": (Skipped("a.py", "code"),), "expires_s": 60.0, "store": "/shelf",
    }  # fmt: skip
    return LeaseAnswer(**{**fields, **changes})


@given(file_trees(), digests)
def test_a_lease_travels_unchanged(files: dict[str, Any], revision: Digest) -> None:
    sent = answer(files=files, revision=revision)
    assert LeaseAnswer.parse(on_the_wire(sent)) == sent


def test_a_lease_on_the_wire_has_the_contracts_fields() -> None:
    assert {"id", "revision", "path", "kind", "files", "skipped", "expires_s"} <= set(on_the_wire(answer()))


def test_a_lease_of_a_newer_daemon_with_more_fields_is_understood() -> None:
    assert LeaseAnswer.parse({**on_the_wire(answer()), "mood": "sunny"}) == answer()


@pytest.mark.parametrize("missing", ["id", "revision", "path", "kind", "files", "expires_s"])
def test_a_lease_that_lacks_something_says_that_versions_differ(missing: str) -> None:
    body = on_the_wire(answer())
    del body[missing]
    with pytest.raises(HotshelfError) as refused:
        LeaseAnswer.parse(body)
    assert "versions" in refused.value.hint


@pytest.mark.parametrize(
    "change",
    [{"revision": "no digest"}, {"files": 5}, {"files": [{}]}, {"files": [{"path": "a", "digest": "x", "size": 1}]},
     {"expires_s": "soon"},
     {"expires_s": None}, {"grant": "x"}, {"grant": math.inf}, {"skipped": [1]}, {"skipped": None}],
    ids=str,
)  # fmt: skip
def test_an_answer_that_is_no_lease_says_that_versions_differ(change: dict[str, Any]) -> None:
    with pytest.raises(HotshelfError) as refused:
        LeaseAnswer.parse({**on_the_wire(answer()), **change})
    assert "versions" in refused.value.hint


@pytest.mark.parametrize("body", [None, [], "x", 5, {}])
def test_an_answer_of_another_shape_says_that_versions_differ(body: object) -> None:
    with pytest.raises(HotshelfError) as refused:
        LeaseAnswer.parse(body)
    assert "versions" in refused.value.hint


# ---- progress


def test_progress_travels_and_reads_well() -> None:
    sent = Progress("fetching", 500_000_000, 1_000_000_000, 250e6, 2.0, 1, 4, "sdxl")
    assert Progress.parse(json.loads(json.dumps(sent.to_json()))) == sent
    assert str(sent) == "fetching  50% 500.0 of 1,000.0 MB, 250.0 MB/s, 2 s left"


def test_progress_before_anything_is_known_can_be_printed() -> None:
    assert str(Progress("waiting")) == "waiting  0.0 of 0.0 MB, 0.0 MB/s"


def test_progress_of_a_newer_daemon_is_understood() -> None:
    assert Progress.parse({"event": "progress", "phase": "fetching", "mood": "sunny"}) == Progress("fetching")


def test_the_nearest_word_is_a_question_and_no_near_word_a_list() -> None:
    assert nearest("budgett", ["budget", "store"]) == "Did you mean 'budget'?"
    assert nearest("zzz", ["store", "budget"]) == "Known: budget, store."


@pytest.mark.parametrize("half", [b"\xed\xa0\x80", b"\\ud800", b"\\uDFFF", b"\\ud800\\ud800"])
@pytest.mark.parametrize("field", ["source", "revision", "allow_patterns", "ignore_patterns", "client"])
def test_half_a_character_is_refused_and_a_whole_one_is_not(field: str, half: bytes) -> None:
    with pytest.raises(InvalidRequest):
        AcquireRequest.parse(json.dumps({"source": "m", field: "@"}).encode().replace(b"@", half))
    whole = AcquireRequest.parse(b'{"source": "m", "allow_patterns": ["\\ud83d\\ude00.json", "\xf0\x9f\x98\x80"]}')
    assert set(whole.wishes[0].patterns.allow or ()) == {"\U0001f600.json", "\U0001f600"}


def test_what_is_not_utf_8_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        AcquireRequest.parse('{"source": "m"}'.encode("utf-16"))
