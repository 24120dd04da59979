"""The messages of /v1 as frozen values: the daemon parses requests and renders answers, the client the reverse.

Invariant: what `parse` returns has been checked; unknown fields are refused by name, so that a misspelt filter is an
error and never a silently larger download.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Self

from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import HotshelfError, InvalidRequest
from hotshelf_shared.manifest import FileEntry, Manifest, parse_json
from hotshelf_shared.patterns import EVERYTHING, Patterns
from hotshelf_shared.source import Source

API_VERSION = 1
MAX_ACQUIRE_BODY_BYTES = 64 << 10
MAX_SOURCES = 64
MAX_RENEWED_IDS = 10_000
MAX_RENEW_BODY_BYTES = 512 << 10
DEFAULT_TIMEOUT_S = 600.0
MAX_TIMEOUT_S = 86_400.0

JSON = "application/json"
NDJSON = "application/x-ndjson"
PROBLEM_JSON = "application/problem+json"
BYTES = "application/octet-stream"
#: A held blob's bytes, in the answer to HEAD; and a problem's code, for answers that have no body.
SIZE_HEADER = "X-Hotshelf-Size"
CODE_HEADER = "X-Hotshelf-Code"
#: What the thin client calls itself in User-Agent, with its version after it.
AGENT = "hotshelf/"


@dataclass(frozen=True, slots=True)
class Wish:
    """One source and which of its files are wanted."""

    source: Source
    patterns: Patterns = EVERYTHING

    @classmethod
    def parse(cls, value: object, common: Mapping[str, Any]) -> Self:
        """From a string or an object; what the object leaves out comes from the request (`common`)."""
        body = {"source": value} if isinstance(value, str) else value
        known = ("source", "revision", "allow_patterns", "ignore_patterns")
        fields = {**{k: common[k] for k in known[1:] if k in common}, **_object(body, known, "a source")}
        source = Source.parse(fields.get("source"))
        if (revision := fields.get("revision")) is not None:
            pinned = Revision.parse(revision)
            if source.pinned not in (None, pinned):
                raise InvalidRequest(f"the source says @{source.pinned} and revision says {pinned}")
            source = source.pin(pinned)
        return cls(source, Patterns.parse(fields.get("allow_patterns"), fields.get("ignore_patterns")))


@dataclass(frozen=True, slots=True)
class AcquireRequest:
    """`POST /v1/leases`. Several wishes are granted all or nothing; `client` names the keeper that will renew."""

    wishes: tuple[Wish, ...]
    several: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    hold_s: float | None = None
    client: str | None = None

    @classmethod
    @lru_cache(maxsize=1024)  # workers ask for the same few things again and again, byte for byte
    def parse(cls, data: bytes) -> Self:
        known = ("source", "sources", "revision", "allow_patterns", "ignore_patterns", "timeout_s", "hold_s", "client")
        body = _object(parse_json(data, "the body", InvalidRequest), known, "the body")
        if ("source" in body) == ("sources" in body):
            raise InvalidRequest("give either source or sources")
        several = "sources" in body
        listed = body["sources"] if several else [body["source"]]
        if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_SOURCES:
            raise InvalidRequest(f"sources is a list of 1 to {MAX_SOURCES} sources")
        if several and body.get("revision") is not None:
            raise InvalidRequest("revision goes with a single source", hint="Write SOURCE@sha256:… in sources.")
        return cls(
            wishes=tuple(Wish.parse(one, body) for one in listed),
            several=several,
            timeout_s=seconds(body, "timeout_s", DEFAULT_TIMEOUT_S),
            hold_s=seconds(body, "hold_s", 0) or None,
            client=_client(body.get("client")),
        )


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """`POST /v1/leases/renew`: all the leases this client holds, and the newest grant number it has seen."""

    client: str
    ids: frozenset[str]
    seen: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        body = _object(parse_json(data, "the body", InvalidRequest), ("client", "ids", "seen"), "the body")
        client, ids, seen = _client(body.get("client")), body.get("ids"), body.get("seen")
        if client is None:
            raise InvalidRequest("client is missing")
        if not isinstance(ids, list) or len(ids) > MAX_RENEWED_IDS or not all(isinstance(i, str) for i in ids):
            raise InvalidRequest(f"ids is a list of at most {MAX_RENEWED_IDS} lease ids")
        if not isinstance(seen, int) or isinstance(seen, bool) or not 0 <= seen < 1 << 62:
            raise InvalidRequest("seen is the largest grant number this client has seen, or 0")
        return cls(client, frozenset(ids), seen)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that the content policy left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """A granted lease. `path` is relative to the store; `kind` is ``tree`` or ``file``; `grant` rises with every grant.

    `phases` are seconds of a miss: resolve, fetch, verify, commit. A hit has none.
    """

    id: str
    grant: int
    source: str
    revision: Revision
    path: str
    kind: str
    files: Mapping[str, FileEntry]
    skipped: tuple[Skipped, ...]
    expires_s: float
    store: str = ""
    phases: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, body: Any) -> Self:
        """From a daemon's answer. Raises HotshelfError when it is none (a daemon of another version)."""
        try:
            return cls(
                id=str(body["id"]),
                grant=int(body.get("grant", 0)),
                source=str(body.get("source", "")),
                revision=Revision.parse(body["revision"]),
                path=str(body["path"]),
                kind=str(body["kind"]),
                files={f["path"]: FileEntry(Digest.parse(f["digest"]), int(f["size"])) for f in body["files"]},
                skipped=tuple(Skipped(s["path"], s["reason"]) for s in body.get("skipped", ())),
                expires_s=float(body["expires_s"]),
                store=str(body.get("store", "")),
                phases={str(name): float(seconds) for name, seconds in body.get("phases", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, InvalidRequest) as error:
            raise HotshelfError(
                f"the daemon's answer is not a lease ({error!r})",
                hint="Client and daemon are of different versions: upgrade the older one.",
            ) from error

    def to_json(self) -> str:
        body: dict[str, Any] = {
            "id": self.id,
            "grant": self.grant,
            "source": self.source,
            "revision": self.revision,
            "path": self.path,
            "kind": self.kind,
            "skipped": [{"path": s.path, "reason": s.reason} for s in self.skipped],
            "expires_s": self.expires_s,
            "store": self.store,
        }
        if self.phases:
            body["phases"] = {name: round(seconds, 4) for name, seconds in self.phases.items()}
        rows = self.files.rows_json if isinstance(self.files, Manifest) else Manifest(self.files).rows_json
        return f'{json.dumps(body)[:-1]}, "files": {rows}}}'


def resolved(source: str, kind: str, held: bool, tree: Manifest | None) -> dict[str, Any]:
    """One answer of ``POST /v1/resolve``. Revision and files are null where digests are learnt by reading only."""
    files = None if tree is None else json.loads(tree.rows_json)
    return {"source": source, "kind": kind, "held": held, "revision": tree and tree.revision, "files": files}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an acquire is. Bytes count every source of the request; `eta_s` is None until there is a rate."""

    phase: str
    bytes_done: int = 0
    bytes_total: int = 0
    rate_bytes_s: float = 0.0
    eta_s: float | None = None
    files_done: int = 0
    files_total: int = 0
    source: str = ""

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        known = {name: body[name] for name in cls.__slots__ if name in body}
        return cls(**{"phase": "", **known})

    def to_json(self) -> dict[str, Any]:
        return {
            "event": "progress",
            "phase": self.phase,
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_total,
            "rate_bytes_s": round(self.rate_bytes_s),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "files_done": self.files_done,
            "files_total": self.files_total,
            "source": self.source,
        }

    def __str__(self) -> str:
        share = f"{self.bytes_done / self.bytes_total:4.0%} " if self.bytes_total else ""
        eta = "" if self.eta_s is None else f", {self.eta_s:.0f} s left"
        done, total, rate = (n / 1e6 for n in (self.bytes_done, self.bytes_total, self.rate_bytes_s))
        return f"{self.phase:8} {share}{done:,.1f} of {total:,.1f} MB, {rate:,.1f} MB/s{eta}"


def nearest(unknown: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to a mistyped one."""
    words = sorted(known)
    close = get_close_matches(unknown, words, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(words)}."


def _object(value: object, known: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} is a JSON object")
    for name in value:
        if name not in known:
            raise InvalidRequest(f"{what} has an unknown field {str(name)[:80]!r}", hint=nearest(str(name)[:80], known))
    return value


def seconds(body: Mapping[str, Any], name: str, default: float) -> float:
    """A duration of a request. Raises InvalidRequest."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InvalidRequest(f"{name} is a number of seconds above 0")
    return float(min(value, MAX_TIMEOUT_S))


def _client(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 8 <= len(value) <= 64 or not value.isascii() or not value.isalnum():
        raise InvalidRequest("client is 8 to 64 letters and digits")
    return value
