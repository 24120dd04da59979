"""Making a signature of a tree, and getting the statement out of one that a trusted key made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hotshelf_daemon.provenance.envelope import Envelope, to_sign
from hotshelf_daemon.provenance.keys import PublicKey, SigningKey
from hotshelf_daemon.provenance.statement import Statement, Unvouched
from hotshelf_shared.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Vouched:
    """What a trusted key has signed, and the id of that key."""

    statement: Statement
    by: str


def sign(tree: Manifest, name: str, key: SigningKey) -> bytes:
    """The file to put beside the tree; the same for the same tree, name and key."""
    payload = Statement.of(tree).payload(name)
    return Envelope(payload, key.sign(to_sign(payload)), key.public.id).pack()


def verify(data: bytes, keys: Sequence[PublicKey], where: str) -> Vouched:
    """What one of the keys has signed. Raises Unvouched, saying of the signature at `where` what is wrong with it."""
    try:
        envelope = Envelope.parse(data)
        key = _signer(envelope, keys)
        return Vouched(Statement.parse(envelope.payload), key.id)
    except Unvouched as refusal:
        raise Unvouched(f"{where}: {refusal.message}", hint=refusal.hint) from refusal


def _signer(envelope: Envelope, keys: Sequence[PublicKey]) -> PublicKey:
    """Nothing of the statement is looked at before this has answered."""
    for key in keys:
        if key.verifies(envelope.signature, envelope.signed):
            return key
    if any(key.id == envelope.hint for key in keys):
        raise Unvouched("the signature is broken: what it holds is not what was signed", hint="Sign it again.")
    raise Unvouched(
        f"the signature is by the key {envelope.hint[:16]!r}, which is not trusted for this origin",
        hint="List that key's public half in the origin's `keys`, or sign with a key that is listed.",
    )
