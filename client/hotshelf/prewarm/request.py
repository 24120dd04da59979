"""The words between stub and zygote: frames of JSON on a Unix socket.

    stub    → request
    zygote  → {"unfit": why | null}
    stub    → {"go": true} with its open files and its working directory, then a byte for each signal that it gets
    zygote  → {"status": wait status}

Nothing starts before the stub says go: one that has waited too long is gone by then, and runs its program itself. Nor are
its files sent before: what waits to be read by a zygote that hangs would keep them open.
"""

from __future__ import annotations

import array
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from hotshelf.prewarm.footing import Footing
from hotshelf.prewarm.program import Program
from hotshelf_shared.errors import InvalidRequest

#: The kernel passes no more at a time (SCM_MAX_FD).
MAX_FILES = 253
MAX_BYTES = 8 << 20
_HEAD = struct.Struct("!4sI")
_MAGIC = b"hsw1"
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Request:
    """A worker as its stub wants it.

    `folder` is its working directory, `files` are the numbers of the files that it passes;
    `ignored` and `blocked` are signals, `umask` is the mask for new files.
    """

    program: Program
    footing: Footing
    executable: str
    folder: str
    umask: int
    files: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    blocked: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "program": self.program.words,
            "circumstances": dict(self.footing.circumstances),
            "environment": dict(self.footing.environment),
            "executable": self.executable,
            "folder": self.folder,
            "umask": self.umask,
            "files": list(self.files),
            "ignored": list(self.ignored),
            "blocked": list(self.blocked),
        }

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Raises InvalidRequest."""
        try:
            program = Program.parse(_texts(body["program"]))
            if program is None:
                raise InvalidRequest("the request names no program")
            return cls(
                program=program,
                footing=Footing(_mapping(body["circumstances"]), _mapping(body["environment"])),
                executable=_text(body["executable"]),
                folder=_text(body["folder"]),
                umask=_number(body["umask"]) & 0o777,
                files=tuple(map(_number, body["files"])),
                ignored=tuple(map(_number, body["ignored"])),
                blocked=tuple(map(_number, body["blocked"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRequest(f"not a request for a worker: {type(error).__name__}") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("not a text")
    return value


def _texts(value: object) -> list[str]:
    return [_text(one) for one in value] if isinstance(value, list) else [_text(value)]


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 16:
        raise ValueError("not a number")
    return value


def _mapping(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("not a mapping")
    return {_text(name): _text(one) for name, one in value.items()}


def send(channel: socket.socket, body: Mapping[str, Any], files: tuple[int, ...] = ()) -> None:
    """One frame. ASCII, so that what is no UTF-8 in an environment arrives as it is. Raises OSError."""
    data = json.dumps(body).encode("ascii")
    frame = _HEAD.pack(_MAGIC, len(data)) + data
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    sent = channel.sendmsg([frame], rights)
    if sent < len(frame):  # to send nothing fails, too, where the other side has read it all and gone
        channel.sendall(frame[sent:])


def receive(channel: socket.socket, files: list[int] | None = None) -> dict[str, Any]:
    """One frame; the files that come with it are appended to `files`. Raises OSError, EOFError or InvalidRequest."""
    head = b""
    while len(head) < _HEAD.size:
        wanted = _HEAD.size - len(head)
        if files is None:
            part = channel.recv(wanted)
        else:
            part, came, _, _ = socket.recv_fds(channel, wanted, MAX_FILES)
            files.extend(came)
        if not part:
            raise EOFError("the other side has gone")
        head += part
    magic, length = _HEAD.unpack(head)
    if magic != _MAGIC or length > MAX_BYTES:
        raise InvalidRequest("not a frame of this protocol")
    data = bytearray()
    while len(data) < length:
        part = channel.recv(min(1 << 20, length - len(data)))
        if not part:
            raise EOFError("the other side has gone")
        data += part
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("not JSON") from error
    if not isinstance(body, dict):
        raise InvalidRequest("not an object")
    return body


def peer_uid(channel: socket.socket) -> int:
    """Who is at the other end, as the kernel says."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])
