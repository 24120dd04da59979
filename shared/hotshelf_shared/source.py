"""What a user writes to name content: ``s3://weights/sdxl@sha256:…``, or a bare name from the configuration.

Invariant: a `Source` holds no ``..``, NUL, backslash or control character; ``Source.parse(str(s)) == s``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

from hotshelf_shared.digest import Revision
from hotshelf_shared.errors import InvalidRequest

MAX_SOURCE_BYTES = 2_048
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
#: An organisation or a repository, as the hub lets them be called.
_HUB_NAME = re.compile(r"(?!.*(--|\.\.|\.git\Z))\w([\w.-]{0,94}\w)?\Z", re.ASCII)
#: A branch, tag or other ref, as git lets them be called, or a commit.
_REF = re.compile(r"(?!.*(\.\.|//|@\{))[^\s~^:?*\[/-][^\s~^:?*\[]{0,254}(?<![/.])\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\Z")
_HOST = re.compile(r"[A-Za-z0-9.-]+(:\d{1,5})?\Z")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_KEY = re.compile(r"[A-Za-z0-9._=-]{1,200}(/[A-Za-z0-9._=-]{1,200})?\Z")
_REVISION = re.compile(r"(.*)@(sha256:.*)\Z", re.DOTALL)
SCHEMES = ("s3", "gs", "hf", "https", "file")
KEYED = ("pipeline", "bundle")


@dataclass(frozen=True, slots=True)
class Source:
    """`authority` is the bucket, host or hf organisation; `path` the key, folder or repository name, no outer slashes.

    `kind` is a scheme of `SCHEMES`, one of `KEYED`, or ``name``. `pinned` is a content revision; `ref` an hf revision.
    """

    kind: str
    authority: str
    path: str
    pinned: Revision | None = None
    ref: str | None = None

    @classmethod
    def parse(cls, text: object) -> Self:
        """Raises InvalidRequest saying what is wrong with `text`."""
        if not isinstance(text, str) or not text:
            raise InvalidRequest("the source is empty", hint="Write s3://BUCKET/PREFIX or a configured name.")
        if len(text.encode(errors="surrogatepass")) > MAX_SOURCE_BYTES:
            raise InvalidRequest(f"the source is over {MAX_SOURCE_BYTES} bytes")
        if "\\" in text or any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in text):
            raise InvalidRequest("the source holds a backslash or a control character", hint="Keys hold neither.")
        body, pinned = text, None
        if found := _REVISION.match(text):
            body, pinned = found[1], Revision.parse(found[2])
        scheme = _SCHEME.match(body)
        if scheme is None:
            return cls._keyed_or_name(body, pinned)
        kind, rest = scheme[1].lower(), body[scheme.end() :]
        if kind not in SCHEMES:
            raise InvalidRequest(f"{kind}:// is no kind of source", hint=f"Known: {', '.join(SCHEMES)}, or a bare name.")
        if "@" in rest.split("/", 1)[0]:
            raise InvalidRequest("the source holds credentials", hint="Put credentials in the origin's configuration.")
        return cls._of_scheme(kind, rest, pinned, text)

    @classmethod
    def _of_scheme(cls, kind: str, rest: str, pinned: Revision | None, text: str) -> Self:
        if kind == "file":
            return cls(kind, "", _clean(rest.removeprefix("/") if rest.startswith("/") else "..", text), pinned)
        authority, _, path = rest.partition("/")
        if kind == "hf":
            return cls._on_the_hub(authority, path, pinned, text)
        if kind == "https":
            return cls._on_the_web(authority, path, pinned, text)
        _require(_BUCKET, authority, "bucket", text)
        return cls(kind, authority, _clean_or_none(path, text), pinned)

    @classmethod
    def _on_the_hub(cls, organisation: str, path: str, pinned: Revision | None, text: str) -> Self:
        name, at, ref = path.partition("@")
        name = _clean(name, text)
        if "/" in name:
            hint = "Write hf://ORG/NAME[@REVISION], and name files with allow_patterns."
            raise InvalidRequest(f"the source {text[:200]!r} names more than a repository", hint=hint)
        _require(_HUB_NAME, organisation, "organisation", text)
        _require(_HUB_NAME, name, "repository", text)
        if at:
            _require(_REF, ref, "branch, tag or commit", text)
        return cls("hf", organisation, name, pinned, ref or None)

    @classmethod
    def _on_the_web(cls, host: str, path: str, pinned: Revision | None, text: str) -> Self:
        """The path as files are named: what a browser shows may be escaped, and may have a query, which names no file."""
        _require(_HOST, host, "host", text)
        if re.search(r"[?#]|%[0-9A-Fa-f]{2}", path):
            hint = "Leave out what begins with ? or #, and write %20 as a space."
            raise InvalidRequest(f"the source {text.partition('?')[0][:200]!r} is an address, not a path", hint=hint)
        return cls("https", host.lower(), _clean_or_none(path, text), pinned)

    @classmethod
    def _keyed_or_name(cls, body: str, pinned: Revision | None) -> Self:
        kind, colon, key = body.partition(":")
        if colon and kind in KEYED:
            _require(_KEY, key, "key", body)
            return cls(kind, "", _clean(key, body), pinned)
        return cls("name", "", _clean(body, body), pinned)

    def pin(self, revision: Revision) -> Source:
        return replace(self, pinned=revision)

    @property
    def unpinned(self) -> Source:
        return replace(self, pinned=None)

    @property
    def is_fixed(self) -> bool:
        """Whether it can never come to stand for anything else: pinned by its digest, or a commit."""
        return self.pinned is not None or is_commit(self.ref or "")

    def __str__(self) -> str:
        if self.kind == "name":
            body = self.path
        elif self.kind in KEYED:
            body = f"{self.kind}:{self.path}"
        else:
            body = f"{self.kind}://{self.authority}/{self.path}" if self.path else f"{self.kind}://{self.authority}"
        if self.ref:
            body += f"@{self.ref}"
        return f"{body}@{self.pinned}" if self.pinned else body


def is_commit(text: str) -> bool:
    """Whether it is a commit's name in full, which no branch and no tag may have."""
    return _COMMIT.match(text) is not None


def _require(form: re.Pattern[str], text: str, what: str, source: str) -> None:
    if not form.match(text):
        raise InvalidRequest(f"{text[:80]!r} is no {what}, in the source {source[:200]!r}")


def _clean_or_none(path: str, source: str) -> str:
    """A bucket or host may be meant as a whole."""
    return _clean(path, source) if path.strip("/") else ""


def _clean(path: str, source: str) -> str:
    """The path without its outer slashes. Raises when a part of it could step out of its folder."""
    path = path.strip("/")
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise InvalidRequest(
            f"the source {source[:200]!r} has an empty, '.' or '..' part", hint="Write the key or folder as it stands."
        )
    return path
