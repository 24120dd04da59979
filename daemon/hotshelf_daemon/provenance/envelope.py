"""The signature as a file: a Sigstore bundle 0.3 around a DSSE envelope around the statement. Pure; verifies nothing.

Sources: docs.sigstore.dev/about/bundle, github.com/secure-systems-lab/dsse (protocol.md, v1.0).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Self

from hotshelf_daemon.provenance.statement import Unvouched
from hotshelf_shared.manifest import parse_json

#: 50,000 files with long names, as model-signing writes them, in Base64.
MAX_SIGNATURE_BYTES = 16 << 20
#: Marks of JSON's structure, of which Base64 has none. Anybody may have written this file, and a parser that is fed millions of
#: lists keeps everything else from running for seconds.
MAX_MARKS = 10_000
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True, slots=True)
class Envelope:
    """`signature` is over `signed`, which is all that may be believed of it; `hint` names the key, by its own word."""

    payload: bytes
    signature: bytes
    hint: str = ""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises Unvouched."""
        if len(data) > MAX_SIGNATURE_BYTES:
            raise Unvouched(f"a signature of {len(data):,} bytes; {MAX_SIGNATURE_BYTES:,} is the most")
        if sum(map(data.count, (b"[", b"{", b",", b'"'))) > MAX_MARKS:
            raise Unvouched("the signature is no Sigstore bundle: it holds far more values than one has")
        body = parse_json(data, "the signature", Unvouched)
        try:
            envelope = body["dsseEnvelope"]
            kinds = (body["mediaType"], envelope["payloadType"])
            (one,) = envelope["signatures"]
            payload, signature = (base64.b64decode(text, validate=True) for text in (envelope["payload"], one["sig"]))
            hint = body.get("verificationMaterial", {}).get("publicKey", {}).get("hint")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unvouched(f"the signature is no Sigstore bundle ({type(error).__name__}: {str(error)[:80]})") from error
        if kinds != (MEDIA_TYPE, PAYLOAD_TYPE):
            raise Unvouched(f"the signature is a bundle of another kind: {kinds[0]!r:.80} around {kinds[1]!r:.80}")
        return cls(payload, signature, hint if isinstance(hint, str) else "")

    def pack(self) -> bytes:
        body = {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": self.hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(self.signature).decode(), "keyid": ""}],
            },
        }
        return json.dumps(body).encode()

    @property
    def signed(self) -> bytes:
        return to_sign(self.payload)


def to_sign(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the type is signed with the payload, so that it cannot be taken for another."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
