"""What an origin and the network to it can do wrong, as data: catalogue rows 1 to 36 as far as one answer can show them.

A case spoils the answers of a scripted origin; `code` is what the caller must be told, None where a retry must cure it.
"""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from awscrt.checksums import crc64nvme

from tests.faults.scripted_origin import Ask, Reply, Spoil, error

SINGLE, RANGED, RESUMED = "single", "ranged", "resumed"
EVERY_SHAPE = (SINGLE, RANGED, RESUMED)


@dataclass(frozen=True, slots=True)
class Case:
    """`row` in CATALOGUE.md. `says` stands in the message or the hint. `on` is the kind of request that is spoilt.

    `published`: the object's digest is promised by a manifest. `times` answers are spoilt, None: all until healed.
    """

    row: int
    name: str
    spoil: Spoil
    code: str | None = None
    says: str = ""
    retryable: bool | None = None
    on: str = "GET"
    times: int | None = None
    shapes: tuple[str, ...] = EVERY_SHAPE
    published: bool = False
    most_asks: int | None = None


def refuse(status: int, code: str = "", *, body: bytes | None = None, **headers: str) -> Spoil:
    """An error instead; HEAD's has no body."""

    def spoil(ask: Ask, reply: Reply) -> None:
        text = error(code) if body is None else body
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        reply.status, reply.body = status, b"" if ask.method == "HEAD" else text
        reply.headers = {"Content-Type": "application/xml", "Content-Length": str(len(reply.body)), **names}

    return spoil


def header(name: str, value: str | None) -> Spoil:
    return lambda _ask, reply: reply.headers.update({name: value})


def body(change: Callable[[bytes], bytes], **headers: str | None) -> Spoil:
    """Other bytes, with a Content-Length that fits them."""

    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.body = change(reply.body)
        reply.headers |= {"Content-Length": str(len(reply.body)), **{n.replace("_", "-"): v for n, v in headers.items()}}

    return spoil


def ends(ending: str, after: int | None = 1_000) -> Spoil:
    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.cut, reply.ending = after, ending

    return spoil


def raw(head: bytes) -> Spoil:
    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.raw, reply.ending = head, "fin"

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(ask: Ask, reply: Reply) -> None:
        for one in spoils:
            one(ask, reply)

    return spoil


def whole(_ask: Ask, reply: Reply) -> None:
    """200 and all of the object, as from a server that knows no Range."""
    reply.status = 200
    reply.headers["Content-Range"] = None


def asked_for_checksum(spoil: Spoil) -> Spoil:
    def spoiled(ask: Ask, reply: Reply) -> None:
        if ask.headers.get("x-amz-checksum-mode") == "ENABLED":
            spoil(ask, reply)

    return spoiled


def right_crc64(_ask: Ask, reply: Reply) -> None:
    reply.headers["x-amz-checksum-crc64nvme"] = base64.b64encode(crc64nvme(reply.body).to_bytes(8, "big")).decode()


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if data else data


def gzipped(_ask: Ask, reply: Reply) -> None:
    body(gzip.compress)(_ask, reply)
    reply.headers["Content-Encoding"] = "gzip"


def bomb(_ask: Ask, reply: Reply) -> None:
    reply.headers["Content-Encoding"] = "deflate"
    body(lambda _data: zlib.compress(bytes(8 << 20)))(_ask, reply)


def shifted(_ask: Ask, reply: Reply) -> None:
    if text := reply.headers.get("Content-Range"):
        first, _, rest = text.removeprefix("bytes ").partition("-")
        reply.headers["Content-Range"] = f"bytes {int(first) + 1}-{rest}"


def longer_total(_ask: Ask, reply: Reply) -> None:
    if text := reply.headers.get("Content-Range"):
        reply.headers["Content-Range"] = text.partition("/")[0] + "/99999999"


NO_LENGTH = header("Content-Length", None)
PROXY_PAGE = b"<html><body>Proxy Authentication Required</body></html>"
PARTS = (RANGED, RESUMED)
WRONG_CRC64 = header("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")

CASES = (
    Case(3, "forbidden", refuse(403, "AccessDenied"), "access_denied", "shelf-key", retryable=False, most_asks=3),
    Case(3, "wrong signature", refuse(403, "SignatureDoesNotMatch"), "access_denied", "secret_access_key", retryable=False),
    Case(3, "not signed in", refuse(401, "Unauthorized"), "access_denied", "shelf-key", retryable=False),
    Case(3, "head forbidden", refuse(403), "access_denied", "shelf-key", retryable=False, on="HEAD"),
    Case(4, "token expired for good", refuse(400, "ExpiredToken"), "access_denied", "fresh one", retryable=False),
    Case(5, "slow down for a while", refuse(503, "SlowDown"), None, times=1),
    Case(5, "slow down for ever", refuse(503, "SlowDown"), "origin_unavailable", "SlowDown", retryable=True),
    Case(5, "internal error for a while", refuse(500, "InternalError"), None, times=1),
    Case(5, "internal error for ever", refuse(500, "InternalError"), "origin_unavailable", "500", retryable=True),
    Case(5, "bad gateway", refuse(502, body=b"<html>bad gateway</html>"), "origin_unavailable", "502", retryable=True),
    Case(6, "too many requests", refuse(429, "TooManyRequests", Retry_After="1"), None, times=1),
    Case(6, "too many requests until a date", refuse(429, "", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), None, times=1),
    Case(7, "overwritten once", refuse(412, "PreconditionFailed"), None, times=1),
    Case(7, "overwritten again and again", refuse(412, "PreconditionFailed"), "integrity_error", "changed"),
    Case(8, "other version in one answer", header("ETag", '"0123"'), None, times=1),
    Case(8, "other version in every answer", header("ETag", '"0123"'), "integrity_error", "changed"),
    Case(9, "200 to a range", whole, "integrity_error", "Range", shapes=PARTS),
    Case(9, "200 and all of it to a range", both(whole, body(lambda data: data * 3)), "integrity_error", "Range", shapes=PARTS),
    Case(10, "no Content-Range once", header("Content-Range", None), None, times=1, shapes=PARTS),
    Case(10, "no Content-Range", header("Content-Range", None), "integrity_error", "Content-Range", shapes=PARTS),
    Case(10, "another Content-Range", shifted, "integrity_error", "Content-Range", shapes=PARTS),
    Case(10, "nonsense in Content-Range", header("Content-Range", "pages 1-2"), "integrity_error", "Range", shapes=PARTS),
    Case(11, "another total", longer_total, "integrity_error", "99999999", shapes=PARTS),
    Case(12, "416 once", refuse(416, "InvalidRange"), None, times=1),
    Case(12, "416 for ever", refuse(416, "InvalidRange"), "integrity_error", "changed"),
    Case(13, "no ETag", header("ETag", None), None, on="HEAD", shapes=(SINGLE, RANGED)),
    Case(14, "weak ETag", header("ETag", 'W/"abc"'), "integrity_error", "weak", on="HEAD", shapes=(SINGLE, RANGED)),
    Case(15, "wrong bytes once", body(flip), None, times=1, published=True),
    Case(15, "wrong bytes for ever", body(flip), "integrity_error", "digest", published=True),
    Case(16, "wrong checksum once", header("x-amz-checksum-crc32c", "AAAAAA=="), None, times=1, shapes=(SINGLE,)),
    Case(16, "wrong checksum", header("x-amz-checksum-crc32c", "AAAAAA=="), "integrity_error", "crc32c", shapes=(SINGLE,)),
    Case(16, "wrong crc64", header("x-amz-checksum-crc64nvme", "AAAAAAAAAAA="), "integrity_error", "crc64", shapes=(SINGLE,)),
    Case(16, "checksum of the whole on a part", header("x-amz-checksum-crc32c", "AAAAAA=="), None, shapes=PARTS),
    Case(16, "checksum of parts", header("x-amz-checksum-crc32c", "AAAAAA==-3"), None, shapes=(SINGLE,)),
    Case(16, "checksum that is none", header("x-amz-checksum-crc32c", "§"), None, shapes=(SINGLE,)),
    Case(16, "right crc64 of all", right_crc64, None, on="HEAD", shapes=PARTS),
    Case(16, "wrong crc64 of all", WRONG_CRC64, "integrity_error", "CRC-64", on="HEAD", shapes=PARTS),
    Case(16, "crc64 of all that is none", header("x-amz-checksum-crc64nvme", "AAAA-3"), None, on="HEAD", shapes=PARTS),
    Case(16, "published, so no crc64 is asked for", WRONG_CRC64, None, on="HEAD", shapes=PARTS, published=True),
    Case(16, "no crc64 for those who ask", asked_for_checksum(refuse(400, "InvalidRequest")), None, on="HEAD", shapes=PARTS),
    Case(17, "gzip", gzipped, "integrity_error", "gzip"),
    Case(17, "bomb", bomb, "integrity_error", "deflate"),
    Case(18, "an error in a 200", body(lambda _data: error("InternalError")), "integrity_error", "bytes"),
    Case(21, "redirect", refuse(307, "", Location="http://127.0.0.1:9/elsewhere"), "access_denied", "redirects"),
    Case(21, "moved", refuse(301, "PermanentRedirect", Location="http://127.0.0.1:9/"), "access_denied", "endpoint_url"),
    Case(25, "reset once", ends("rst"), None, times=1),
    Case(25, "reset for ever", ends("rst"), "origin_unavailable", retryable=True),
    Case(25, "reset before a byte", ends("rst", 0), "origin_unavailable", retryable=True),
    Case(26, "end before the length once", ends("fin"), None, times=1),
    Case(26, "end before the length for ever", ends("fin"), "origin_unavailable", retryable=True),
    Case(27, "end without a length once", both(NO_LENGTH, ends("fin")), None, times=1),
    Case(27, "end without a length for ever", both(NO_LENGTH, ends("fin")), "origin_unavailable", retryable=True),
    Case(27, "all of it without a length", both(NO_LENGTH, ends("fin", None)), None),
    Case(28, "stall once", ends("stall"), None, times=1),
    Case(28, "stall before a byte", ends("stall", 0), None, times=1),
    Case(28, "stall for ever", ends("stall"), "origin_unavailable", retryable=True),
    Case(29, "drip once", ends("drip", 10), None, times=1),
    Case(29, "drip for ever", ends("drip", 10), "origin_unavailable", "bytes a second", retryable=True),
    Case(34, "answers once and never again on that connection", ends("dead", None), None, times=2),
    Case(35, "a proxy's page", refuse(407, body=PROXY_PAGE), "origin_unavailable", "NO_PROXY", retryable=False),
    Case(35, "a proxy's page with status 200", body(lambda _data: PROXY_PAGE), "integrity_error", "bytes"),
    Case(36, "all of it and a reset", ends("rst", None), None),
    Case(36, "all of it and the end", ends("fin", None), None),
    # What no row names: heads that are none.
    Case(10, "a head of nonsense", raw(b"\x00\xff nonsense\r\n\r\n"), "origin_unavailable", retryable=True),
    Case(10, "a length that is no number", header("Content-Length", "many"), "integrity_error"),
    Case(10, "two lengths", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n"), "origin_unavailable"),
    Case(10, "a head without an end", raw(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000), "origin_unavailable"),
)  # fmt: skip
