"""Whether the pickle machine would import something from these bytes and go on to use it. Nothing is ever unpickled.

A walk over the machine's own opcodes from the first byte, so nothing that `pickle.load` would get to run can hide behind
padding. It stops only where the machine stops for certain: at an unknown opcode, a truncated argument, a line that no
machine reads as a number or string, a stack or mark that is not there. It is no parser: pickletools is stricter than the
machine (it refuses `I0x1`, or text that is no ASCII), and strictness here would be a place to hide. No argument is copied.
"""

from __future__ import annotations

import mmap
import pickletools
import re
from collections.abc import Iterator

#: A file, mapped or read.
Data = mmap.mmap | bytes
_CALLS = frozenset({"REDUCE", "BUILD", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX", "STOP"})
_IMPORTS_BY_LINE = frozenset({"GLOBAL", "INST"})
_REGISTERED = frozenset({"EXT1", "EXT2", "EXT4"})
_STRINGS = re.compile(r"UNICODE|STRING")
_NAMED = re.compile(rb"[^\W\d][\w.]*\n[^\W\d][\w.]*\n")
_NUMBER = re.compile(rb"[\s\w+.-]*(\0.*)?\n", re.DOTALL)
_QUOTED = re.compile(rb"(?:'.*'|\".*\")\n", re.DOTALL)
_LINES = {"INT": _NUMBER, "LONG": _NUMBER, "FLOAT": _NUMBER, "GET": _NUMBER, "PUT": _NUMBER, "STRING": _QUOTED}
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_MAX_OPCODES = 20_000
#: A line longer than this is not looked into; nobody writes one but to hide behind it.
_MAX_LINE = 1 << 20


def is_pickle(data: Data) -> bool:
    """Text and noise parse for a few opcodes too: they import nothing, or cannot use it."""
    declared = len(data) > 1 and data[0] == 0x80 and 1 < data[1] < 6
    strings, imports, stack = 0, False, _Stack()
    for count, (opcode, start, stop) in enumerate(_walk(data)):
        if stop - start > _MAX_LINE and opcode.arg is not None and opcode.arg.n == pickletools.UP_TO_NEWLINE:
            return True
        if opcode.name in _LINES and not _LINES[opcode.name].fullmatch(data, start, stop):
            return False
        if not stack.apply(opcode):
            return False
        strings += bool(_STRINGS.search(opcode.name))
        imports = imports or _imports(opcode.name, data, start, stop, strings)
        if count >= _MAX_OPCODES or (imports and (declared or opcode.name in _CALLS)):
            return True
        if opcode.name == "STOP":
            return declared
    return False


def _walk(data: Data) -> Iterator[tuple[pickletools.OpcodeInfo, int, int]]:
    """Each opcode with where its argument starts and stops, until the machine would stop."""
    at, size = 0, len(data)
    while at < size:
        opcode = _OPCODES.get(data[at])
        if opcode is None:
            return
        at += 1
        start, length = at, 0 if opcode.arg is None else opcode.arg.n
        if length == pickletools.UP_TO_NEWLINE:
            for _ in range(2 if opcode.name in _IMPORTS_BY_LINE else 1):
                at = data.find(b"\n", at) + 1
                if not at:
                    return
        elif length < 0:
            width = _LENGTHS[length]
            at += width + int.from_bytes(data[at : at + width], "little")
        else:
            at += length
        if at > size:
            return
        yield opcode, start, at


def _imports(opcode: str, data: Data, start: int, stop: int, strings: int) -> bool:
    if opcode in _IMPORTS_BY_LINE:
        return bool(_NAMED.fullmatch(data, start, stop))
    return opcode in _REGISTERED or (opcode == "STACK_GLOBAL" and strings > 0)


class _Stack:
    """How deep the machine's stack is; at least as deep as the real one, so that only certain underflows count."""

    def __init__(self) -> None:
        self._depth = 0
        self._marks: list[int] = []

    def apply(self, opcode: pickletools.OpcodeInfo) -> bool:
        """False where the machine raises for want of an operand or a mark."""
        if opcode.name == "MARK":
            self._marks.append(self._depth)
            return True
        if opcode.name == "POP" and self._marks and self._marks[-1] >= self._depth:
            self._marks.pop()
            return True
        needs = opcode.stack_before
        if pickletools.markobject in needs:
            if not self._marks:
                return False
            self._depth = min(self._depth, self._marks.pop())
            needs = needs[: needs.index(pickletools.markobject)]
        if self._depth < len(needs):
            return False
        self._depth += len(opcode.stack_after) - len(needs)
        return True
