"""Digests: only a checked one is of the type."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest
from tests.shared.strategies import digests

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(st.binary())
def test_it_is_sha256_of_the_bytes(data: bytes) -> None:
    assert Digest.of(data) == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert Digest.of(memoryview(data)) == Digest.of(bytearray(data))


@given(digests)
def test_parse_reads_what_str_writes(digest: Digest) -> None:
    assert Digest.parse(str(digest)) == digest
    assert Digest.from_hex(digest.hex) == digest
    assert json.loads(json.dumps(digest)) == digest
    assert pickle.loads(pickle.dumps(digest)) == digest


@pytest.mark.parametrize(
    "text",
    [
        "", EMPTY[7:], EMPTY.upper(), EMPTY + "\n", " " + EMPTY, EMPTY[:-1], EMPTY + "0", "sha512:" + EMPTY[7:],
        EMPTY.replace("e3", "g3"), EMPTY.replace("0", "\u0660"), None, 5, b"sha256:", ["x"], {},
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_hint(text: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Digest.parse(text)
    assert "64 hex digits" in refused.value.hint


@given(st.text())
def test_random_text_is_no_digest(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Digest.parse(text)


def test_a_refusal_repeats_no_more_than_eighty_characters() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Digest.parse("x" * 200)
    assert caught.value.message == f"not a digest: {'x' * 80!r}"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_a_files_digest_is_of_all_of_it_wherever_its_position_is(tmp_path: pathlib.Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    with (tmp_path / "f").open("rb") as file:
        file.seek(size // 2)
        assert Digest.of_fd(file.fileno()) == Digest.of(data)
        assert file.tell() == size // 2
