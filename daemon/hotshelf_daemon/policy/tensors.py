"""The header of a safetensors file, held against its format before a worker parses it: small, plain, and true to its bytes.

Parsers differ in what they accept (900,000 tensors in 52 MB of header took one 5 s and 600 MB), so the caps are ours. The
format: 8 bytes of length, that much JSON, then the tensors' bytes without a gap.
"""

from __future__ import annotations

import json
import os
from typing import Any

from hotshelf_shared.errors import UnsafeContent

ENDINGS = (".safetensors", ".sft")
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 64
_LENGTH_BYTES = 8
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16,
    "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def is_tensors(path: str) -> bool:
    return path.lower().endswith(ENDINGS)


def check_tensors(path: str, fd: int, size: int) -> None:
    """Raises UnsafeContent. A file that does not begin as the format does is no such file to any parser: it is inert."""
    start = os.pread(fd, _LENGTH_BYTES + 1, 0)
    if len(start) <= _LENGTH_BYTES or start[_LENGTH_BYTES:] != b"{":
        return
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length < len("{}"):
        return
    if length > size - _LENGTH_BYTES:
        raise _refusal(path, f"its header claims {length:,} bytes of a file of {size:,}")
    if length > MAX_HEADER_BYTES:
        raise _refusal(path, f"its header has {length:,} bytes; {MAX_HEADER_BYTES:,} is the most")
    try:
        header = json.loads(os.pread(fd, length, _LENGTH_BYTES), object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"its header cannot be read ({str(error)[:80]})") from error
    if not isinstance(header, dict):
        raise _refusal(path, "its header is no mapping")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise _refusal(path, f"it names {len(header):,} tensors; {MAX_TENSORS:,} is the most")
    _check_extents(path, header, size - _LENGTH_BYTES - length)


def _check_extents(path: str, header: dict[str, Any], data: int) -> None:
    """Every tensor as long as its shape says, one after the other, up to the last byte."""
    at = 0
    for name, start, stop in sorted(_extents(path, header), key=lambda extent: extent[1:]):
        if start != at:
            raise _refusal(path, f"{name[:80]!r} lies at {start:,} and not behind the one before it, which ends at {at:,}")
        at = stop
    if at != data:
        raise _refusal(path, f"its tensors end at {at:,} of {data:,} bytes")


def _extents(path: str, header: dict[str, Any]) -> list[tuple[str, int, int]]:
    found = []
    for name, entry in header.items():
        try:
            (start, stop), shape, bits = entry["data_offsets"], entry["shape"], _BITS.get(entry["dtype"])
        except (TypeError, KeyError, ValueError) as error:
            raise _refusal(path, f"its entry {name[:80]!r} is no tensor") from error
        numbers = [start, stop, *shape] if isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS else [None]
        if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers) or start > stop:
            raise _refusal(path, f"{name[:80]!r} has a shape or place that no tensor has")
        count = 1
        for number in shape:
            count *= number
        if bits is not None and (count * bits + 7) // 8 != stop - start:  # a type we do not know yet has only its place
            raise _refusal(path, f"{name[:80]!r} has {stop - start:,} bytes, its shape wants {count * bits // 8:,}")
        found.append((name, start, stop))
    return found


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("a key stands twice")
    return body


def _refusal(path: str, why: str) -> UnsafeContent:
    return UnsafeContent(f"{path}: {why}", hint="Write it anew with the safetensors library and publish again.", path=path)
