"""Whether mirrors give what is published, in ranges, and may keep it: each is asked for a small blob of a configured model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from hotshelf_daemon.acquire.names import Names
from hotshelf_daemon.acquire.resolve import find
from hotshelf_daemon.config import OriginSettings, Settings
from hotshelf_daemon.doctor.finding import Finding, Status
from hotshelf_daemon.origin import s3
from hotshelf_daemon.origin.mirrored import MirrorOrigin, ways_to
from hotshelf_daemon.plan import WantedFile
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Wish

#: A blob up to this size is read whole, and hashed.
READ_BYTES = 1 << 20
#: What bears its digest in its name may be kept for ever; a cache that lets go of it within a day is little help.
DAY_S = 86_400
_MAX_AGE = re.compile(r"(?:s-maxage|max-age)=(\d{1,12})")


def check(settings: Settings, _status: Status) -> Iterator[Finding]:
    """One published model of each bucket is enough."""
    seen = set[str]()
    for name, model in settings.names.items():
        source = Source.parse(model.source)
        origin = s3.bucket(settings, source.authority)[1] if source.kind == "s3" else OriginSettings()
        if not origin.mirrors or source.authority in seen:
            continue
        if (blob := _smallest(name, source.authority, settings)) is not None:
            seen.add(source.authority)
            for mirror in origin.mirrors:
                yield from _mirror(mirror, [*ways_to(mirror, source.authority, origin, settings.hasty())], blob)


def _smallest(name: str, bucket: str, settings: Settings) -> WantedFile | None:
    """The smallest blob with bytes in it; None where nothing is published. What the origin refuses is said elsewhere."""
    label, origin = s3.bucket(settings, bucket)
    try:
        there = s3.S3Origin(s3.client_for(origin, settings.hasty()), bucket, label)
        found = find(there, Names(settings).want(Wish(Source.parse(name))))
    except HotshelfError:
        return None
    blobs = [file for file in found.files if file.object.size and found.published]
    return min(blobs, key=lambda file: file.object.size, default=None)


def _mirror(mirror: str, ways: list[MirrorOrigin], blob: WantedFile) -> Iterator[Finding]:
    label, why = f"mirror {ways[0].label}", ""
    for way in ways:
        try:
            told = way.told(blob.object.key)
            if told is not None:
                yield from (Finding("warning", label, f"{mirror}: {message}", fix) for message, fix in _wrong(told))
                yield from _bytes(mirror, label, way, blob)
                return
        except HotshelfError as error:
            why = f": {error.message}"
    fix = "Its objects must be readable unsigned; where they lie elsewhere, say so with {bucket} and {key}."
    yield Finding("warning", label, f"{mirror} does not have {blob.object.key}{why}", fix)


def _bytes(mirror: str, label: str, way: MirrorOrigin, blob: WantedFile) -> Iterator[Finding]:
    if blob.object.size > READ_BYTES:
        return
    data = way.read(blob.object.key, READ_BYTES)
    if data is not None and Digest.of(data) != blob.digest:
        fix = "Purge it there; it is not used for what it gives wrongly, and costs a fetch each time."
        yield Finding("error", label, f"{mirror} gives wrong bytes for {blob.object.key}", fix)


def _wrong(told: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What its answer to a request for the first byte says that it should not, and what to do."""
    if not told.get("content-range", "").startswith("bytes 0-0/"):
        yield "it ignores Range: large files come from the origin", "Let it answer 206 (nginx: `slice`; CDNs: range requests)."
    keep = told.get("cache-control", "").lower()
    ages = [int(age) for age in _MAX_AGE.findall(keep)]
    if any(word in keep for word in ("no-store", "private", "no-cache")) or (ages and max(ages) < DAY_S):
        yield f"it says Cache-Control: {keep}, so that caches keep it briefly or not at all", _KEEP
    elif not ages and "expires" not in told:
        yield "it does not say how long caches may keep it", _KEEP
    if told.get("vary", "").strip() == "*" or "set-cookie" in told:
        yield "its answers vary or set cookies, so that caches keep none", "Send neither `Vary: *` nor Set-Cookie from there."


_KEEP = "`hotshelf push` sets public, max-age=31536000, immutable: let it through, or set it there for blobs/ and manifests/."
