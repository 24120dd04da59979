"""Whether a file executes when it is loaded, by its bytes: a pickle is a pickle under any name.

The walk follows the pickle machine's own opcodes from the first byte, so nothing that `pickle.load` would get to run can
hide behind padding; a file that the machine would reject before its first import is no pickle.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import re
import struct
import zipfile
from typing import Any

_CALLS = frozenset({"REDUCE", "BUILD", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX", "STOP"})
_REGISTERED = frozenset({"EXT1", "EXT2", "EXT4"})
_NAMED = re.compile(r"[A-Za-z_][\w.]* [A-Za-z_][\w.]*\Z")
_MAX_OPCODES = 20_000
_MAX_MEMBERS = 20_000
_ZIP = b"PK\x03\x04", b"PK\x05\x06"


def reason_by_bytes(fd: int, size: int) -> str | None:
    """Why the open file is left out; None when it is inert. Reads the first pages only, unless it is a pickle."""
    if size < 2:
        return None
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as data:
        if data[:4] in _ZIP:
            return _reason_of_zip(data)
        return "pickle by content" if _is_pickle(data) else None


class _Window(io.RawIOBase):
    """What pickletools reads from: large arguments come as views of the map, never as copies."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._view, self._at = data, memoryview(data), 0

    def read(self, n: int = -1) -> bytes:
        taken = self._view[self._at : self._at + n] if n >= 0 else self._view[self._at :]
        self._at += len(taken)
        return bytes(taken) if len(taken) <= 4096 else taken  # type: ignore[return-value]

    def readline(self, _limit: int | None = -1) -> bytes:
        end = self._data.find(b"\n", self._at, self._at + 4096)
        return self.read(end + 1 - self._at) if end >= 0 else b""

    def tell(self) -> int:
        return self._at

    def release(self) -> None:
        self._view.release()


def _is_pickle(data: mmap.mmap) -> bool:
    """Whether the pickle machine would import something and go on to use it. Text and noise parse for a few opcodes too."""
    starts_as_one = data[0] == 0x80 and 1 < data[1] < 6
    strings, imports = 0, False
    window: Any = _Window(data)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(window)):
            strings += "UNICODE" in opcode.name or "STRING" in opcode.name
            imports = imports or _imports(opcode.name, argument, strings)
            if count >= _MAX_OPCODES or (imports and (starts_as_one or opcode.name in _CALLS)):
                return True
            if opcode.name == "STOP":
                return starts_as_one
    except (ValueError, struct.error):
        return False  # whatever pickletools cannot parse, the pickle machine stops at too
    return False


def _imports(opcode: str, argument: object, strings: int) -> bool:
    if opcode in ("GLOBAL", "INST"):
        return bool(_NAMED.match(str(argument)))
    return opcode in _REGISTERED or (opcode == "STACK_GLOBAL" and strings >= 2)


def _reason_of_zip(data: mmap.mmap) -> str | None:
    """torch.save and joblib write zips with pickles inside; a zip that cannot be read through is not trusted either."""
    try:
        file: Any = _Seekable(data)
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RecursionError):
        return "unreadable zip archive"
    if len(names) > _MAX_MEMBERS or any(name.lower().endswith((".pkl", ".pickle", ".py", "/data.pkl")) for name in names):
        return "zip archive with pickle or code"
    return None


class _Seekable(io.RawIOBase):
    """A map as a seekable file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, n: int = -1) -> bytes:
        taken = self._data[self._at : self._at + n] if n >= 0 else self._data[self._at :]
        self._at += len(taken)
        return taken
