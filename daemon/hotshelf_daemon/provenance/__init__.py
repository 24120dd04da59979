"""Who says that these are the right files: OpenSSF Model Signing signatures, made and checked offline, by key.

A `Statement` names files and digests, an `Envelope` is the signed file that holds one, keys sign and verify it, and the
`Keyring` knows whose signature each origin's files need. Digests are compared, files never read: they were hashed on arrival.
"""

from hotshelf_daemon.provenance.envelope import MAX_SIGNATURE_BYTES
from hotshelf_daemon.provenance.keyring import Keyring
from hotshelf_daemon.provenance.keys import PublicKey, SigningKey
from hotshelf_daemon.provenance.signature import Vouched, sign, verify
from hotshelf_daemon.provenance.statement import SIGNATURE, Statement, Unvouched

__all__ = [
    "MAX_SIGNATURE_BYTES", "SIGNATURE", "Keyring", "PublicKey", "SigningKey", "Statement", "Unvouched", "Vouched", "sign",
    "verify",
]  # fmt: skip
