"""Google Cloud Storage's JSON protocol over the scripted origin: generations, CRC32C, pages, and who hands out tokens.

It is good by default: GET pinned to a generation, ranged, with what the service tells in its headers; any bucket is the same.
Unless `token` is set whoever asks is served; then only who shows it. It hands it out as Google's token endpoint does and as the
metadata service of Google's machines does.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

from awscrt.checksums import crc32c

from tests.faults.scripted_origin import Ask, Reply, ScriptedOrigin

_OBJECTS = re.compile(r"(?:storage/)?v1/b/([^/]+)/o(?:/(.*))?\Z", re.DOTALL)
EMAIL = "reader@project.iam.gserviceaccount.com"


@dataclass(slots=True)
class GcsAsk(Ask):
    """`kind` is LIST, META (what is known of an object), GET (its bytes), TOKEN or METADATA."""

    what: str = ""

    @property
    def kind(self) -> str:
        return self.what


def refusal(status: int, reason: str = "", message: str = "as scripted") -> bytes:
    errors = [{"message": message, "domain": "global", "reason": reason}]
    return json.dumps({"error": {"code": status, "message": message, "errors": errors}}).encode()


def service_account_key(endpoint_url: str, **changes: Any) -> str:
    """The file of an account whose tokens come from there; a change to None leaves a field out."""
    key = _private_key()
    given = {"type": "service_account", "client_email": EMAIL, "private_key_id": "CANARY-id", "private_key": key,
             "token_uri": f"{endpoint_url}/token", "project_id": "project", "client_id": "1", **changes}  # fmt: skip
    return json.dumps({name: value for name, value in given.items() if value is not None})


@functools.cache
def _private_key() -> str:
    """Made once: it takes long."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048).private_bytes(*form).decode()


class ScriptedGcs(ScriptedOrigin):
    """`with ScriptedGcs() as gcs: gcs.objects["a"] = b"…"`; `kept` has the bytes of which a CRC32C is told instead."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.kept: dict[str, bytes] = {}
        self.token: str | None = None
        self._generations: dict[str, tuple[bytes, str]] = {}
        self._next = itertools.count(1_700_000_000_000_001)

    def generation(self, key: str) -> str:
        """Another one whenever another value is put there."""
        known = self._generations.get(key)
        if known is None or known[0] is not self.objects[key]:
            self._generations[key] = (self.objects[key], str(next(self._next)))
        return self._generations[key][1]

    def _understood(self, ask: Ask) -> Ask:
        fields = {field.name: getattr(ask, field.name) for field in dataclasses.fields(Ask)}
        if found := _OBJECTS.match(ask.key):
            kind = "LIST" if not found[2] else "GET" if ask.query.get("alt") == "media" else "META"
            return GcsAsk(**{**fields, "key": found[2] or ""}, what=kind)
        return GcsAsk(**fields, what="TOKEN" if ask.method == "POST" else "METADATA")

    def _answer(self, ask: Ask) -> Reply:
        if ask.kind in ("TOKEN", "METADATA"):
            return self._identity(ask)
        if self.token is not None and ask.headers.get("authorization") != f"Bearer {self.token}":
            return self._json(401, refusal(401, "authError", "Anonymous caller does not have storage.objects.get access"))
        if ask.kind == "LIST":
            return self._page(ask)
        if ask.key not in self.objects or ask.query.get("generation", self.generation(ask.key)) != self.generation(ask.key):
            return self._json(404, refusal(404, "notFound", f"No such object: bucket/{ask.key}"))
        return self._json(200, json.dumps(self._resource(ask.key)).encode()) if ask.kind == "META" else self._media(ask)

    def _media(self, ask: Ask) -> Reply:
        data = self.objects[ask.key]
        headers: dict[str, str | None] = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": self.generation(ask.key),
            "x-goog-stored-content-encoding": "identity",
            "x-goog-stored-content-length": str(len(data)),
            "x-goog-hash": f"crc32c={self._crc32c(ask.key)}",
        }
        if (asked := ask.range) is None:
            return Reply(200, {**headers, "Content-Length": str(len(data))}, data)
        start, last = asked[0], min(len(data) - 1, asked[1] if asked[1] is not None else len(data) - 1)
        if start >= len(data):
            return self._json(416, refusal(416, "requestedRangeNotSatisfiable"))
        headers["Content-Range"] = f"bytes {start}-{last}/{len(data)}"
        return Reply(206, {**headers, "Content-Length": str(last + 1 - start)}, data[start : last + 1])

    def _page(self, ask: Ask) -> Reply:
        after = ask.query.get("pageToken", "")
        keys = sorted(key for key in self.objects if key.startswith(ask.query.get("prefix", "")) and key > after)
        page: dict[str, Any] = {"kind": "storage#objects"}
        if listed := keys[: self.page_keys]:
            page["items"] = [self._resource(key) for key in listed]
        if keys[self.page_keys :]:
            page["nextPageToken"] = listed[-1]
        return self._json(200, json.dumps(page).encode())

    def _resource(self, key: str) -> dict[str, str]:
        size, generation = str(len(self.objects[key])), self.generation(key)
        return {"name": key, "bucket": "bucket", "size": size, "generation": generation, "crc32c": self._crc32c(key)}

    def _crc32c(self, key: str) -> str:
        return base64.b64encode(crc32c(self.kept.get(key, self.objects[key])).to_bytes(4, "big")).decode()

    def _identity(self, ask: Ask) -> Reply:
        google = {"Metadata-Flavor": "Google", "Content-Type": "application/json"}
        if ask.method == "POST" or ask.key.endswith("/token"):
            body = json.dumps({"access_token": self.token or "any", "expires_in": 3600, "token_type": "Bearer"}).encode()
        elif ask.key.endswith("/project-id"):
            body, google["Content-Type"] = b"project", "text/plain"
        elif "service-accounts" in ask.key:
            body = json.dumps({"email": EMAIL, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}).encode()
        elif ask.key.endswith("/universe-domain"):
            return Reply(404, {**google, "Content-Length": "0"})
        else:
            body = b"{}"
        return Reply(200, {**google, "Content-Length": str(len(body))}, body)

    def _json(self, status: int, body: bytes) -> Reply:
        return Reply(status, {"Content-Type": "application/json; charset=UTF-8", "Content-Length": str(len(body))}, body)
