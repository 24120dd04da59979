"""What an answer over HTTP must be before a byte of it counts: the range that was asked for, of the version asked for."""

from __future__ import annotations

import re
from typing import Any

from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin.port import Changed, Misanswered
from hotshelf_shared.errors import IntegrityError

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")


def check_answer(answer: Any, obj: OriginObject, start: int, stop: int, where: str) -> None:
    """A range that is not exactly the one asked for must never reach the file."""
    if obj.version and answer.get("ETag", obj.version) != obj.version:
        raise Changed(f"{where} changed at the origin")
    if (encoding := answer.get("ContentEncoding", "")) not in ("", "identity", "aws-chunked"):
        raise IntegrityError(f"{where} comes {encoding}-encoded", hint="Store weights without Content-Encoding.")
    if not (start == 0 and stop == obj.size):
        status = answer["ResponseMetadata"]["HTTPStatusCode"]
        found = _CONTENT_RANGE.match(answer.get("ContentRange", ""))
        if status != 206 or found is None or (int(found[1]), int(found[2])) != (start, stop - 1):
            said = f"{status} {answer.get('ContentRange', 'and no Content-Range')}"
            raise Misanswered(f"{where}: asked for {stop - start:,} bytes, the origin answers the Range with {said}")
        if found[3] not in ("*", str(obj.size)):
            raise Changed(f"{where} is {found[3]} bytes by now, not {obj.size}")
    # Without a length the body ends with the connection: whoever reads counts.
    if (sent := answer.get("ContentLength", stop - start)) != stop - start:
        raise Misanswered(f"{where}: asked for {stop - start:,} bytes, the origin sends {sent:,}")


def strong(tag: str, where: str) -> str:
    """The ETag. A weak one says that the bytes may differ: nothing could tie two reads to one version."""
    if tag.startswith("W/"):
        raise IntegrityError(
            f"{where} has only a weak ETag",
            hint="Switch off what rewrites bodies on the way (gzip), or publish with `hotshelf push`.",
        )
    return tag
