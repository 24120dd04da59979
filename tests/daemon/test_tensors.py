"""A safetensors file whose header lies, swells or repeats itself never becomes part of a snapshot."""

from __future__ import annotations

import contextlib
import json
import pathlib
import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_daemon.policy import check_tensors, is_tensors
from hotshelf_shared.errors import UnsafeContent
from tests import objects
from tests.daemon.conftest import Put
from tests.daemon.looking import granted, refused, rows
from tests.daemon_process import Daemon


def tensor(start: int, stop: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def file(header: object, data: int = 0, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def check(data: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with (tmp_path / "x").open("rb") as opened:
        check_tensors("unet/x.safetensors", opened.fileno(), len(data))


GOOD = {
    "one": file({"a": tensor(0, 4)}, 4),
    "none": file({}),
    "two, and words about them": file({"b": tensor(4, 12, "F32", [2]), "a": tensor(0, 4), "__metadata__": {"x": "y"}}, 12),
    "a scalar": file({"a": tensor(0, 8, "I64", [])}, 8),
    "an empty one": file({"a": tensor(0, 0, "F16", [0, 3]), "b": tensor(0, 2, "F16", [1])}, 2),
    "a type of tomorrow": file({"a": tensor(0, 3, "Q3_K", [8])}, 3),
    "no safetensors at all": b"a" * 200,
    "too short to be one": b"{}",
    "no header, and a brace by chance": bytes(8) + b"{nonsense",
    "as the tests make them": objects.safetensors("x", 5_000),
}
BAD = {
    "a length of 2 to the 63": file({"a": tensor(0, 4)}, 4, length=1 << 63),
    "a length beyond the file": file({"a": tensor(0, 4)}, 4, length=10_000),
    "cut short": file({"a": tensor(0, 4_000)}, 1_000),
    "bytes left over": file({"a": tensor(0, 4)}, 5),
    "an overlap": file({"a": tensor(0, 4), "b": tensor(2, 6)}, 6),
    "a gap": file({"a": tensor(0, 4), "b": tensor(6, 8)}, 8),
    "an overflow": file({"a": tensor(0, 8, "F64", [1 << 62, 1 << 62])}, 8),
    "a shape beyond 64 bits": file({"a": tensor(0, 8, "U8", [1 << 70])}, 8),
    "a negative place": file({"a": tensor(-4, 4)}, 4),
    "an end before the start": file({"a": {"dtype": "U8", "shape": [4], "data_offsets": [8, 4]}}, 4),
    "a fraction": file({"a": {"dtype": "U8", "shape": [4.0], "data_offsets": [0, 4]}}, 4),
    "a truth": file({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, 1),
    "another size than the shape's": file({"a": tensor(0, 4, "F32", [2])}, 4),
    "a key twice": file(b"{" + b",".join([b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'] * 2) + b"}", 1),
    "a field twice": file(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', 1),
    "no JSON": file(b"{nonsense", 1),
    "deep JSON": file(b'{"a":' + b"[" * 100_000, 1),
    "no tensor": file({"a": [1, 2]}, 1),
    "a header of 17 MiB": file(b'{"__metadata__":{"x":"' + b"x" * (17 << 20) + b'"}}'),
    "900,000 tensors": file({str(n): tensor(0, 0) for n in range(900_000)}),
    "100,001 tensors": file({str(n): tensor(0, 0) for n in range(100_001)}),
    "65 dimensions": file({"a": tensor(0, 1, "U8", [1] * 65)}, 1),
}  # fmt: skip


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_an_honest_header_may_come(data: bytes, tmp_path: pathlib.Path) -> None:
    check(data, tmp_path)


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_header_that_lies_or_swells_is_refused_soon(data: bytes, tmp_path: pathlib.Path) -> None:
    began = time.monotonic()
    with pytest.raises(UnsafeContent, match=r"unet/x\.safetensors"):
        check(data, tmp_path)
    assert time.monotonic() - began < 5


@given(header=st.binary(max_size=200), data=st.integers(0, 50), length=st.none() | st.integers(0, 2**64 - 1))
def test_no_header_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, data: int, length: Any
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for text in (header, b"{" + header, b'{"a":' + header):
        with contextlib.suppress(UnsafeContent):
            check(file(text, data, length=length), folder)


def test_only_files_that_are_called_so_are_looked_into() -> None:
    assert is_tensors("unet/a.SafeTensors")
    assert not is_tensors("unet/config.json")


@pytest.mark.parametrize("name", ["an overlap", "a length of 2 to the 63", "cut short", "100,001 tensors"])
def test_a_snapshot_with_such_a_file_is_refused_before_a_worker_sees_a_path(shared: Daemon, put: Put, name: str) -> None:
    tree = {"unet/a.safetensors": BAD[name], "vae/b.safetensors": GOOD["one"], "config.json": b"{}"}
    source = put(tree)
    problem = refused(shared.acquire(source), "unsafe_content")
    assert "unet/a.safetensors" in problem["detail"]
    assert rows(shared, "SELECT * FROM v_refs WHERE source = ?", source) == []
    assert granted(shared.acquire(source, ignore_patterns=["unet/*"]))["files"]
